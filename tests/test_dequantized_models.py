"""transformers loads what was dequantized, and it computes what the source dequantized on loading
computes, to the last bit."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from quantized_formats import compressed, scheme
from quantized_models import (
    block_config,
    deepseek_v4,
    fine_grained,
    gpt_oss,
    loaded,
    logits,
    mistral,
)
from recast.options import FloatName
from tensors import DTYPES
from transformers.utils.quantization_config import (
    CompressedTensorsConfig,
    FineGrainedFP8Config,
    Mxfp4Config,
)

Said = dict[str, Any]


def fine(block: list[int] | None, **more: Any) -> Any:
    said = block_config(block, **more)
    del said["quant_method"], said["fmt"]
    return FineGrainedFP8Config(**said, dequantize=True)


# How the source is written, and what transformers is told to dequantize it on loading.
MODELS: dict[str, tuple[Callable[[Path], Path], Callable[[], Any]]] = {
    "qwen3": (partial(fine_grained, shards=3), lambda: fine([64, 32])),
    "deepseek_v3": (
        partial(fine_grained, kind="deepseek_v3", shards=2),
        lambda: fine([64, 32]),
    ),
    "deepseek_v4": (
        deepseek_v4,
        lambda: fine([32, 16], scale_fmt="ue8m0", modules_to_not_convert=["lm_head"]),
    ),
    "E8M0": (
        partial(fine_grained, scale="float8_e8m0fnu"),
        lambda: fine([64, 32], scale_fmt="ue8m0"),
    ),
    "MXFP8": (
        partial(fine_grained, block=(1, 32), scale="uint8"),
        lambda: fine([1, 32], scale_fmt="ue8m0"),
    ),
    "ministral3": (mistral, lambda: fine(None, activation_scheme="static")),
    "gpt-oss": (
        partial(gpt_oss, exponents=(115, 122)),
        lambda: Mxfp4Config(dequantize=True),
    ),
}


@pytest.mark.parametrize("to", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same_bits_as_when_it_dequantizes(
    name: str, to: FloatName, tmp_path: Path
) -> None:
    write, told = MODELS[name]
    source = write(tmp_path / "in")
    if (name, to) == ("deepseek_v4", "fp16"):
        pytest.skip("transformers runs no such model in fp16: it keeps half of a product in fp32")
    recast.convert(source, tmp_path / "out", to=to, sync=False)
    model, judge = loaded(tmp_path / "out", "auto"), loaded(source, to, told())
    assert model.config.dtype == DTYPES[to]
    assert not hasattr(model.config, "quantization_config")
    ours, theirs = model.state_dict(), judge.state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        # What the library keeps in fp32 it keeps so only as long as it casts.
        same = ours[key].to(theirs[key].dtype)
        assert torch.equal(same, theirs[key]), key
    result, expected = logits(model), logits(judge)
    assert result.isfinite().all()
    assert result.std() > 0.01
    assert torch.equal(result, expected)


@pytest.mark.parametrize("preset", ["FP8", "FP8_DYNAMIC", "MXFP4", "MXFP8", "NVFP4A16"])
def test_transformers_computes_what_compressed_tensors_makes_of_the_source(
    preset: str, tmp_path: Path
) -> None:
    """In bf16, from scales in bf16, where it rounds as it should."""
    source = compressed(tmp_path / "in", scheme(preset))
    recast.convert(source, tmp_path / "out", to="bf16", sync=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        judge = loaded(source, "bf16", CompressedTensorsConfig(run_compressed=False))
    model = loaded(tmp_path / "out", "auto")
    ours, theirs = model.state_dict(), judge.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert logits(model).isfinite().all()
