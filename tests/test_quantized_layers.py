"""The quantized layers that transformers itself makes, whose tensors are what it would save."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
import transformers
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

MOE: dict[str, Any] = {"hidden_size": 256, "moe_intermediate_size": 128, "num_experts": 4}
BLOCKS = {"block_size": (128, 128)}
# The module of transformers.integrations, the class, and what it is made with.
LAYERS: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    ("finegrained_fp8", "FP8Linear", (256, 256), BLOCKS),
    ("finegrained_fp8", "FP8Linear", (256, 256), {"activation_scheme": "static"}),
    ("finegrained_fp8", "FP8Embedding", (16, 32), {}),
    ("finegrained_fp8", "FP8Experts", (transformers.Qwen3MoeConfig(**MOE),), BLOCKS),
    ("bitnet", "BitLinear", (64, 64), {"bias": True, "dtype": torch.bfloat16}),
    ("fbgemm_fp8", "FbgemmFp8Linear", (64, 64), {"bias": True, "dtype": torch.float8_e4m3fn}),
    ("eetq", "EetqLinear", (64, 64, torch.int8), {"bias": True}),
    ("metal_quantization", "MetalLinear", (128, 64), {"bias": True}),
]


@pytest.mark.parametrize(("module", "name", "sizes", "more"), LAYERS)
def test_a_quantized_layer_of_transformers_is_dequantized_or_refused_or_carried(
    module: str, name: str, sizes: tuple[Any, ...], more: dict[str, Any], tmp_path: Path
) -> None:
    found = importlib.import_module(f"transformers.integrations.{module}")
    layer = getattr(found, name, None) or pytest.skip(f"this transformers has no {name}")
    model = torch.nn.ModuleDict({"layer": layer(*sizes, **more), "norm": torch.nn.LayerNorm(8)})
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    source = tmp_path / "in"
    for to in ("fp16", "bf16"):
        if not BLOCKS.items() <= more.items() and module in ("finegrained_fp8", "fbgemm_fp8"):
            actions = {tensor.name: tensor.action for tensor in recast.plan(source, to=to).tensors}
            assert actions.pop("layer.weight") == "dequantize"
            assert set(actions.values()) <= {"cast", "copy"}
        else:
            # Of blocks a config would say how large they are, and there is none.
            with pytest.raises(recast.QuantizedError, match=r"quantized weights|no config"):
                recast.plan(source, to=to)
    recast.convert(source, tmp_path / "out", to="fp16", skip_quantized=True, sync=False)
    after = load_file(tmp_path / "out" / "model.safetensors")
    for key, tensor in tensors.items():
        is_plain = key.startswith("norm.") or key == "layer.bias"
        assert after[key].dtype == (torch.float16 if is_plain else tensor.dtype), key
