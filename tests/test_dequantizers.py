"""The judges of dequantized checkpoints agree; where one of them is no judge, a case shows it."""

import re
from pathlib import Path

import comfy_kitchen
import numpy as np
import pytest
import torch
from compressed_tensors.entrypoints.convert.converters import CompressedTensorsDequantizer
from dequantized_pairs import MXFP4
from dequantizers import (
    GONE,
    Values,
    block_converter,
    converter,
    found,
    moe_packed,
    of_torch,
    operation,
    packed,
    scaled,
)
from quantized_cases import CASES, FLOATS, GPT_OSS
from quantized_formats import comfy, compressed, modelopt, scheme, tensors_of
from quantized_models import Tensors, lay
from recast.options import FloatName
from tensors import DTYPES

TARGETS: list[FloatName] = ["bf16", "fp16", "fp32"]
CODES = {"F8_E4M3", "F8_E5M2", "U8", "I8"}


@pytest.mark.parametrize("name", CASES)
def test_all_judges_of_a_checkpoint_agree(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    case.write(tmp_path / "in")
    codes = [key for key, (dtype, *_) in found(tmp_path / "in").items() if dtype in CODES]
    codes = [key for key in codes if not re.search(GONE, key)]
    assert codes
    for to in TARGETS:
        whole, *others = (judge(tmp_path / "in", to) for judge in case.judges)
        assert not any(re.search(GONE, key) for key in whole)
        assert others
        for values in others:
            assert len(values) >= len(codes)
            assert {key: whole[key] for key in values} == values


def differing(ours: Values, theirs: Values) -> float:
    """The part of the bytes' 16-bit words that is not the same."""
    pairs = [
        (np.frombuffer(ours[name][1], np.uint16), np.frombuffer(data, np.uint16))
        for name, (_, data) in theirs.items()
    ]
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs)


def block_fp8(folder: Path, shape: tuple[int, int], grid: tuple[int, int]) -> Path:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randn(shape, generator=draw).to(torch.float8_e4m3fn)
    scales = torch.rand(grid, generator=draw)
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    return lay(folder, {"m.weight": codes, "m.weight_scale_inv": scales}, config)


@pytest.mark.parametrize(
    ("shape", "grid"), [((192, 256), (2, 2)), ((1000, 256), (8, 2)), ((128, 200), (1, 2))]
)
def test_transformers_takes_blocks_of_another_size_where_they_are_ragged(
    shape: tuple[int, int], grid: tuple[int, int], tmp_path: Path
) -> None:
    source = block_fp8(tmp_path / "in", shape, grid)
    right = scaled((128, 128))(source, "bf16")
    assert block_converter((128, 128))(source, "bf16") == right
    assert differing(right, operation(source, "bf16")) > 0.05
    # The blocks that it takes: as many rows and columns as fit the grid.
    even = (-(-shape[0] // grid[0]), -(-shape[1] // grid[1]))
    assert scaled(even)(source, "bf16") == operation(source, "bf16")


def test_transformers_refuses_blocks_that_do_not_fit_at_all(tmp_path: Path) -> None:
    source = block_fp8(tmp_path / "in", (576, 256), (5, 2))
    with pytest.raises(ValueError, match="not divisible"):
        operation(source, "bf16")


def as_it_is(source: Path, to: FloatName) -> Values:
    """compressed-tensors' converter, given what is stored."""
    tensors = tensors_of(source)
    names = {name for name in tensors if f"{name}_scale" in tensors}
    plain = ["re:.*embed_tokens$", "re:.*norm$"]
    done = CompressedTensorsDequantizer(source, plain, DTYPES[to]).process(tensors)
    return of_torch({name: done[name] for name in names})


@pytest.mark.parametrize(
    ("stored", "same", "others"),
    [
        (torch.bfloat16, "bf16", {"fp16": 0.5, "fp32": 0.3}),
        (torch.float16, "fp16", {"bf16": 0.001, "fp32": 0.3}),
    ],
)
def test_compressed_tensors_rounds_to_the_dtype_of_the_scale_first(
    stored: torch.dtype, same: FloatName, others: dict[FloatName, float], tmp_path: Path
) -> None:
    source = compressed(tmp_path / "in", scheme("FP8_DYNAMIC"), stored)
    right = FLOATS(source, same)
    assert differing(right, as_it_is(source, same)) == 0
    for to, part in others.items():
        assert differing(FLOATS(source, to), as_it_is(source, to)) > part


def test_comfy_kitchen_rounds_the_scale_to_the_dtype_of_its_output_first(tmp_path: Path) -> None:
    source = comfy(tmp_path / "in", "old")
    tensors = tensors_of(source)
    parts: dict[FloatName, float] = {"bf16": 0.05, "fp16": 0.05, "fp32": 0}
    for to, part in parts.items():
        values: Tensors = {
            name: comfy_kitchen.dequantize_per_tensor_fp8(
                x, tensors[name.removesuffix("weight") + "scale_weight"], DTYPES[to]
            )
            for name, x in tensors.items()
            if x.dtype == torch.float8_e4m3fn and x.dim() == 2
        }
        differs = differing(FLOATS(source, to), of_torch(values))
        assert (differs > part) if part else (differs == 0)


def test_an_exponent_of_255_is_nan_in_the_standard_and_no_number(tmp_path: Path) -> None:
    """The Open Compute Project's MX formats: transformers and compressed-tensors forgot it."""
    codes = torch.tensor([0x11] * 16, dtype=torch.uint8)
    experts = {
        "e.down_proj_blocks": codes.reshape(1, 1, 1, 16),
        "e.down_proj_scales": torch.full((1, 1, 1), 255, dtype=torch.uint8),
    }
    source = lay(tmp_path / "blocks", experts, {})
    assert moe_packed(source, "fp32") == of_torch({"e.down_proj": torch.full((1, 32, 1), 2.0**127)})
    nan = of_torch({"e.down_proj": torch.full((1, 32, 1), float("nan"))})
    assert GPT_OSS(source, "fp32") == nan
    rows = {
        "m.weight_packed": codes.reshape(1, 16),
        "m.weight_scale": torch.full((1, 1), 255, dtype=torch.uint8),
    }
    source = lay(tmp_path / "packed", rows, {"quantization_config": MXFP4})
    ((_, data),) = converter(source, "fp32").values()
    assert np.isinf(np.frombuffer(data, np.float32)).all()
    ((_, data),) = packed(32)(source, "fp32").values()
    assert np.isnan(np.frombuffer(data, np.float32)).all()


def test_the_two_formulas_of_nvfp4_are_not_the_same(tmp_path: Path) -> None:
    """A product with the reciprocal is no quotient."""
    source = modelopt(tmp_path / "in", "NVFP4")
    renamed: Tensors = {}
    for name, x in tensors_of(source).items():
        if "_proj." in name:
            name = re.sub("weight_scale_2$", "weight_global_scale", name)
            name = re.sub("weight$", "weight_packed", name)
            renamed[name] = 1 / x if name.endswith("weight_global_scale") else x
    other = lay(tmp_path / "other", renamed, None)
    ours = packed(16, "weight_scale_2", "weight")(source, "fp32")
    theirs = packed(16, "weight_global_scale")(other, "fp32")
    assert theirs.keys() < ours.keys()
    assert 0 < differing(ours, theirs) < 0.5
