"""What the audit counts of dequantized weights, and what becomes of values that fit no target."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import recast
import torch
from dequantized_pairs import NVFP4
from quantized_formats import FP8
from quantized_models import Tensors, block_config, lay
from recast.options import FloatName
from safetensors.torch import load_file
from sources import NUMPY, TARGETS
from support import recast_here

NAN, INF = float("nan"), float("inf")


def blocks(folder: Path, codes: torch.Tensor, scales: torch.Tensor, **more: torch.Tensor) -> Path:
    """A checkpoint of one weight in blocks of 2 by 2, and other tensors."""
    tensors: Tensors = {"m.weight": codes, "m.weight_scale_inv": scales, **more}
    return lay(folder, tensors, {"quantization_config": block_config([2, 2])})


def every_code() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).reshape(16, 16).view(FP8)


def row_of(report: Any, name: str = "m.weight") -> dict[str, Any]:
    (row,) = [row for row in report.tensor_audits if row["name"] == name]
    return dict(row)


@pytest.mark.parametrize("to", ["bf16", "fp16", "fp32"])
def test_the_audit_counts_codes_that_are_nan_and_scales_that_are_odd(
    to: FloatName, tmp_path: Path
) -> None:
    scales = torch.full((8, 8), 0.5)
    scales[0, :6] = torch.tensor([NAN, INF, 0.0, -0.25, -3.0, NAN])
    second = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    more = {"n.weight": second.to(FP8), "n.weight_scale_inv": torch.zeros(2, 2)}
    source = blocks(tmp_path / "in", every_code(), scales, plain=torch.tensor([1.0, NAN]), **more)
    report = recast.convert(source, tmp_path / "out", to=to, sync=False)
    found = row_of(report)
    assert found["nan_codes"] == 2
    assert found["scales"] == {"nan": 2, "inf": 1, "zero": 1, "negative": 2}
    other = row_of(report, "n.weight")
    assert other["nan_codes"] == 0
    assert other["scales"] == {"nan": 0, "inf": 0, "zero": 4, "negative": 0}
    if to != "fp32":
        assert not {"nan_codes", "scales"} & row_of(report, "plain").keys()
    audit = json.loads((tmp_path / "out" / "recast.json").read_text())["audit"]
    assert audit["nan_codes"] == 2
    assert audit["scales"] == {"nan": 2, "inf": 1, "zero": 5, "negative": 2}
    assert audit["tensors"] == report.tensor_audits
    # The values themselves.
    grid = scales.numpy().repeat(2, 0).repeat(2, 1)
    codes = every_code().view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    with np.errstate(invalid="ignore"):
        values = (codes.astype(np.float32) * grid).astype(NUMPY[to])
    result = load_file(tmp_path / "out" / "model.safetensors")["m.weight"]
    ours = result.view(torch.uint8).numpy().view(NUMPY[to])
    assert np.array_equal(np.isnan(ours), np.isnan(values))
    bits = f"u{ours.dtype.itemsize}"
    same = (ours.view(bits) == values.view(bits)) | np.isnan(values)
    assert same.all()
    assert found["nan"] == np.isnan(values).sum()


def test_an_exponent_of_255_is_nan_and_one_of_0_is_no_zero(tmp_path: Path) -> None:
    exponents = torch.tensor([[255, 0], [127, 254]], dtype=torch.uint8)
    codes = torch.ones(4, 4).to(FP8)
    for at, scales in enumerate((exponents, exponents.view(torch.float8_e8m0fnu))):
        source = blocks(tmp_path / f"in{at}", codes, scales)
        report = recast.convert(source, tmp_path / f"out{at}", to="fp32", sync=False)
        assert row_of(report)["scales"] == {"nan": 1, "inf": 0, "zero": 0, "negative": 0}
        result = load_file(tmp_path / f"out{at}" / "model.safetensors")["m.weight"]
        assert result[:2, :2].isnan().all()
        assert (result[:2, 2:] == 2.0**-127).all()
        assert (result[2:, :2] == 1).all()
        assert (result[2:, 2:] == 2.0**127).all()


def test_a_scale_is_counted_once_however_many_values_it_has(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.ones(6, 6).to(FP8), "a.weight_scale": torch.tensor(-1.0)}
    tensors |= {"b.weight": torch.ones(6, 6).to(FP8), "b.weight_scale": -torch.ones(6, 1)}
    report = recast.convert(lay(tmp_path / "in", tensors, {}), tmp_path / "out", to="bf16")
    assert row_of(report, "a.weight")["scales"]["negative"] == 1
    assert row_of(report, "b.weight")["scales"]["negative"] == 6


# The scale of 448 and -448, what overflows at it, and the largest that the target holds.
BEYOND: dict[FloatName, tuple[float, float]] = {
    "fp16": (200.0, 65504.0),
    "bf16": (2e36, float(torch.finfo(torch.bfloat16).max)),
    "fp32": (2e36, float(torch.finfo(torch.float32).max)),
}


def overflowing(folder: Path, to: FloatName) -> Path:
    codes = torch.ones(4, 4)
    codes[0, 0], codes[1, 1] = 448, -448
    return blocks(folder, codes.to(FP8), torch.tensor([[BEYOND[to][0], 1], [INF, -INF]]))


@pytest.mark.parametrize("to", BEYOND)
def test_overflow_of_a_product_is_an_error_by_default(to: FloatName, tmp_path: Path) -> None:
    source = overflowing(tmp_path / "in", to)
    run = recast_here("convert", source, tmp_path / "out", "--to", to)
    assert run.returncode == 1
    assert "m.weight" in run.stderr
    assert "2 finite values in 1 tensor" in run.stderr
    assert "model.safetensors" in run.stderr
    # A pattern that kept the weight would be an error itself.
    assert "--on-overflow=saturate" in run.stderr
    assert "--keep" not in run.stderr
    assert not any((tmp_path / "out").glob("*.safetensors"))
    assert not any((tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize("to", BEYOND)
@pytest.mark.parametrize("policy", ["inf", "saturate"])
def test_a_product_that_is_too_large_becomes_what_the_policy_says(
    policy: Any, to: FloatName, tmp_path: Path
) -> None:
    source = overflowing(tmp_path / "in", to)
    report = recast.convert(source, tmp_path / "out", to=to, on_overflow=policy, sync=False)
    result = load_file(tmp_path / "out" / "model.safetensors")["m.weight"]
    assert result.dtype == TARGETS[to]
    largest = INF if policy == "inf" else BEYOND[to][1]
    assert float(result[0, 0]) == largest
    assert float(result[1, 1]) == -largest
    # An infinite scale is no overflow.
    assert (result[2:, :2] == INF).all()
    assert (result[2:, 2:] == -INF).all()
    assert (result[:2, 2:] == 1).all()
    found = row_of(report)
    assert found["scales"] == {"nan": 0, "inf": 2, "zero": 0, "negative": 1}
    assert found["to_inf"] == 2


@pytest.mark.parametrize("scale", [65504 / 448, 65519.99 / 448, 65520 / 448, 65520.01 / 448])
def test_the_edge_of_fp16_is_where_numpy_has_it(scale: float, tmp_path: Path) -> None:
    """Half a step above the largest value decides, after the rounding to fp32."""
    source = blocks(tmp_path / "in", torch.full((2, 2), 448.0).to(FP8), torch.tensor([[scale]]))
    with np.errstate(over="ignore"):
        expected = (np.float32(448) * np.float32(scale)).astype(np.float16)
    if np.isinf(expected):
        with pytest.raises(recast.CastOverflowError):
            recast.convert(source, tmp_path / "out", to="fp16", sync=False)
    else:
        recast.convert(source, tmp_path / "out", to="fp16", sync=False)
        result = load_file(tmp_path / "out" / "model.safetensors")["m.weight"]
        assert (result == float(expected)).all()


def near_ties(bits: int) -> np.ndarray[Any, Any]:
    """Scales of fp32 whose products with some code lie so near to the middle between two numbers
    of so many bits that fp32 holds nothing but the middle."""
    ties = (2 * np.arange(2 ** (bits - 1), 2**bits) + 1) << (27 - bits)
    scales = np.concatenate([np.rint(ties / code) for code in (9, 11, 13, 15)])
    return (scales[scales < 2**24] * 2.0**-30).astype(np.float32)


@pytest.mark.parametrize(("to", "bits"), [("bf16", 8), ("fp16", 11)])
def test_products_are_rounded_twice_as_the_field_rounds_them(
    to: FloatName, bits: int, tmp_path: Path
) -> None:
    scales = near_ties(bits)[:, None]
    # Between 2**-6 and 448, as no product is a subnormal of fp16.
    codes = np.tile(np.arange(8, 0x7F, dtype=np.uint8), (len(scales), 1))
    tensors = {
        "m.weight": torch.from_numpy(codes).view(FP8),
        "m.weight_scale": torch.from_numpy(scales),
    }
    source = lay(tmp_path / "in", tensors, {})
    recast.convert(source, tmp_path / "out", to=to, on_overflow="inf", sync=False)
    result = load_file(tmp_path / "out" / "model.safetensors")["m.weight"]
    ours = result.view(torch.uint8).numpy().view(NUMPY[to]).astype(np.float64)
    numbers = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(ours, (numbers * scales).astype(NUMPY[to]).astype(np.float64))
    # One rounding of the exact product is something else.
    mantissas, exponents = np.frexp(numbers.astype(np.float64) * scales)
    once = np.ldexp(np.rint(mantissas * 2.0**bits), exponents - bits)
    assert (once != ours).mean() > 0.01


def counted(*scales: Any) -> dict[str, int]:
    """What the audit says of scales, by numpy."""
    every = np.concatenate([np.asarray(part, np.float32).ravel() for part in scales])
    return {
        "nan": int(np.isnan(every).sum()),
        "inf": int(np.isinf(every).sum()),
        "zero": int((every == 0).sum()),
        "negative": int((every < 0).sum()),
    }


def odd(*shape: int) -> np.ndarray[Any, Any]:
    """Scales, some of them of every kind that is counted."""
    draw = np.random.default_rng(sum(shape))
    scales = draw.random(shape, np.float32)
    return np.where(
        draw.random(shape) < 0.2, draw.choice([NAN, INF, 0, -1.5, -0.0, -INF], shape), scales
    ).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("block", [(128, 128), (24, 40), (1, 32), (4096, 4096), (3, 1)])
def test_a_weight_made_in_pieces_is_counted_as_one(
    block: tuple[int, int], threads: int, tmp_path: Path
) -> None:
    shape = (2100, 1031)
    codes = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    grid = [-(-size // side) for size, side in zip(shape, block, strict=True)]
    scales = odd(*grid)
    tensors = {
        "m.weight": torch.from_numpy(codes).view(FP8),
        "m.weight_scale_inv": torch.from_numpy(scales),
    }
    config = {"quantization_config": block_config(list(block))}
    source = lay(tmp_path / "in", tensors, config)
    report = recast.convert(
        source, tmp_path / "out", to="fp16", on_overflow="inf", threads=threads, sync=False
    )
    found = row_of(report)
    assert found["nan_codes"] == ((codes & 127) == 127).sum()
    assert found["scales"] == counted(scales)
    each = scales.repeat(block[0], 0).repeat(block[1], 1)[: shape[0], : shape[1]]
    with np.errstate(invalid="ignore", over="ignore"):
        products = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * each
        expected = products.astype(np.float16)
    assert found["nan"] == np.isnan(products).sum()
    assert found["inf"] == np.isinf(products).sum()
    assert found["to_inf"] == (np.isinf(expected) & np.isfinite(products)).sum()
    assert found["to_zero"] == ((expected == 0) & (products != 0)).sum()
    assert found["max_abs"] == np.abs(products[np.isfinite(products)]).max(initial=0)


def test_experts_that_are_transposed_are_counted_as_they_are_stored(tmp_path: Path) -> None:
    draw = np.random.default_rng(6)
    scales = draw.integers(110, 130, (3, 700, 21), dtype=np.uint8)
    scales[draw.random(scales.shape) < 0.1] = 255
    blocks = draw.integers(0, 256, (*scales.shape, 16), dtype=np.uint8)
    tensors = {
        "e.down_proj_blocks": torch.from_numpy(blocks),
        "e.down_proj_scales": torch.from_numpy(scales),
    }
    report = recast.convert(lay(tmp_path / "in", tensors, {}), tmp_path / "out", to="bf16")
    found = row_of(report, "e.down_proj")
    nan = int((scales == 255).sum())
    assert found["scales"] == {"nan": nan, "inf": 0, "zero": 0, "negative": 0}
    assert (found["nan_codes"], found["nan"]) == (0, 32 * nan)


@pytest.mark.parametrize("second", [-3.0, 1e-40, 0.0, INF, NAN])
def test_the_scales_of_nvfp4_are_counted_as_both_make_them(second: float, tmp_path: Path) -> None:
    scales = np.random.default_rng(7).integers(0, 256, (90, 50), dtype=np.uint8)
    tensors = {
        "m.weight_packed": torch.randint(0, 256, (90, 400), dtype=torch.uint8),
        "m.weight_scale": torch.from_numpy(scales).view(FP8),
        "m.weight_global_scale": torch.tensor([second]),
    }
    source = lay(tmp_path / "in", tensors, {"quantization_config": NVFP4})
    report = recast.convert(source, tmp_path / "out", to="bf16", on_overflow="inf", sync=False)
    with np.errstate(all="ignore"):
        both = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32) / np.float32(second)
    assert row_of(report)["scales"] == counted(both)
