"""A model of block fp8, dequantized for a GPU, against a product in torch there."""

import json
import shutil
from pathlib import Path

import pytest
import recast
import torch
from figures import record
from on_gpu import DEVICE, DRY, NEEDS_GPU, all_differences, timed
from recast.options import FloatName
from safetensors.torch import load_file, save_file
from tensors import DTYPES

pytestmark = NEEDS_GPU

SIDE = 128
WIDTH, INNER, LAYERS = (256, 384, 1) if DRY else (4096, 11008, 2)
CONFIG = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [SIDE, SIDE],
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes of every pattern, in whole blocks and in broken ones, and a norm that stays bf16."""
    draw = torch.Generator(DEVICE).manual_seed(0)
    tensors: dict[str, torch.Tensor] = {"model.norm.weight": torch.ones(WIDTH).bfloat16()}
    for layer in range(LAYERS):
        shapes = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"mlp.{name}_proj": (INNER, WIDTH) for name in ("gate", "up")}
        # The shape of DeepSeek's: the last blocks of rows are not whole.
        shapes |= {"mlp.down_proj": (WIDTH, INNER), "self_attn.kv_a_proj": (576, WIDTH)}
        for name, (rows, columns) in shapes.items():
            codes = torch.randint(0, 256, (rows, columns), device=DEVICE, generator=draw)
            blocks = (-(-rows // SIDE), -(-columns // SIDE))
            scales = torch.rand(blocks, device=DEVICE, generator=draw) * 1e-3 + 1e-5
            weight = f"model.layers.{layer}.{name}.weight"
            tensors[weight] = codes.to(torch.uint8).view(torch.float8_e4m3fn).cpu()
            tensors[f"{weight}_scale_inv"] = scales.cpu()
    path = tmp_path_factory.mktemp("quantized") / "model"
    path.mkdir()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = {"model_type": "deepseek_v3", "dtype": "bfloat16", "quantization_config": CONFIG}
    (path / "config.json").write_text(json.dumps(config))
    return path


def products(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every code times the scale of its block, in fp32, then cast; all else is cast alone."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith("_scale_inv"):
            continue
        value = tensor.float()
        scale = tensors.get(f"{name}_scale_inv")
        if scale is not None:
            every = scale.repeat_interleave(SIDE, 0).repeat_interleave(SIDE, 1)
            value *= every[: value.shape[0], : value.shape[1]]
        found[name] = value.to(dtype)
    return found


@pytest.mark.parametrize("to", ["fp32", "fp16", "bf16"])
def test_dequantized_fp8_is_the_product_that_the_gpu_computes(
    to: FloatName, quantized: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    seconds, _ = timed(lambda: recast.convert(quantized, out, to=to, on_overflow="inf", sync=False))
    loading, loaded = timed(lambda: recast.load(quantized, to, device=DEVICE, on_overflow="inf"))
    expected = products(load_file(quantized / "model.safetensors", device=DEVICE), DTYPES[to])
    converted = load_file(out / "model.safetensors", device=DEVICE)
    verified = recast.verify(quantized, out, device=DEVICE, full=True)
    shutil.rmtree(out)
    wrong = all_differences(converted, expected), all_differences(loaded, expected)
    record(
        "dequantized",
        to=to,
        values=sum(tensor.numel() for tensor in expected.values()),
        converted=wrong[0],
        loaded=wrong[1],
        convert=seconds,
        load=loading,
        verify=verified.seconds,
    )
    assert wrong == (0, 0)
    assert verified.passed, verified.failures()
    assert verified.values_checked == verified.values_total
