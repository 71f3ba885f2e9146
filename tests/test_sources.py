"""fp64 and fp8, which recast only casts from, are cast as torch does it, in memory."""

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import recast
import torch
from recast.options import FloatName
from sources import FP8, NUMPY, TARGETS, as_torch

SHARD = "model.safetensors"


@pytest.mark.parametrize("level", ["portable", "avx2", "avx512"])
def test_doubles_and_every_code_of_8_bits_match_torch_and_ml_dtypes_at_every_level(
    level: str,
) -> None:
    command = [sys.executable, str(Path(__file__).with_name("sources.py"))]
    environment = {**os.environ, "RECAST_SIMD": level}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "no such instruction set" in run.stderr:
        pytest.skip(f"this CPU does not run {level}")
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 3 * 2 * (1 + len(FP8))
    assert all(line.endswith(" 0 wrong") for line in lines)


def test_a_double_rounds_twice_as_in_torch_and_not_once() -> None:
    x = torch.tensor([1 + 2**-8 + 2**-40, -(1 + 2**-11 + 2**-40)], dtype=torch.float64)
    assert recast.cast(x, "bf16").tolist() == x.to(torch.bfloat16).tolist() == [1.0, -1.0]
    assert recast.cast(x, "fp16").tolist() == x.half().tolist() == [1.00390625, -1.0]


@pytest.mark.parametrize("to", list(TARGETS))
def test_subnormals_are_kept_whatever_the_mode_of_the_processor(to: FloatName) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    inputs = [codes.view(getattr(torch, name)) for name in FP8]
    # Around the subnormals of fp32, and of binary64 itself.
    scales = torch.tensor(
        [2.0**-120, 2.0**-128, 2.0**-140, 2.0**-150, 2.0**-1030], dtype=torch.float64
    )
    inputs += [torch.randn(1000, dtype=torch.float64) * scale for scale in scales]
    expected = [recast.cast(x, to, threads=1) for x in inputs]
    assert torch.set_flush_denormal(True)
    try:
        found = [recast.cast(x, to, threads=1) for x in inputs]
    finally:
        torch.set_flush_denormal(False)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
    assert bool(expected[5].any()) == (to != "fp16")


@pytest.mark.parametrize("name", ["float64", *FP8])
@pytest.mark.parametrize("to", list(TARGETS))
def test_every_layout_of_a_tensor_and_of_an_array_is_cast(name: str, to: FloatName) -> None:
    base = torch.randn(64, 66).to(getattr(torch, name))
    kinds = [base, base[3, 4], base[:0], base.t(), base[::3, 1::2], base[0].expand(5, -1)]
    for x in [*kinds, base.flatten()[1:]]:
        out = recast.cast(x, to)
        assert (out.dtype, out.shape) == (TARGETS[to], x.shape)
        assert torch.equal(out, x.to(TARGETS[to]))
    dtype = np.float64 if name == "float64" else getattr(ml_dtypes, name)
    array = np.random.default_rng(1).standard_normal((64, 66)).astype(dtype)
    for a in [array, array[3, 4:5].reshape(()), array[:0], array.T, array[::3, 1::2], array[::-1]]:
        made = recast.cast(a, to)
        expected = a.astype(np.float32).astype(NUMPY[to])
        assert (made.dtype, made.shape) == (expected.dtype, a.shape)
        assert np.array_equal(made, expected)


def test_a_double_that_does_not_fit_is_an_error_in_memory_too() -> None:
    x = np.array([1e39, 1.0, -1e300, np.inf])
    with pytest.raises(recast.CastOverflowError, match=r"2 of 4 values.* is 1e\+300"):
        recast.cast(x, "fp32", on_overflow="error")
    assert recast.cast(x, "fp32").tolist() == [np.inf, 1.0, -np.inf, np.inf]
    largest = float(np.finfo(np.float32).max)
    saturated = recast.cast(x, "fp32", on_overflow="saturate")
    assert saturated.tolist() == [largest, 1.0, -largest, np.inf]


@pytest.mark.parametrize("to", list(TARGETS))
def test_nan_stays_nan_and_is_quiet(to: FloatName) -> None:
    tensors = {
        name: torch.arange(256, dtype=torch.uint8).view(getattr(torch, name)) for name in FP8
    }
    patterns = [0x7FF0000000000001, 0xFFF8123456789ABC, 0x7FFFFFFFFFFFFFFF, 0xFFF0000020000000]
    tensors["double"] = as_torch(np.array(patterns, np.uint64).view(np.float64))
    for name, x in tensors.items():
        out = recast.cast(x, to)
        assert torch.equal(out.isnan(), x.float().isnan()), name
        bits = out[out.isnan()].view(torch.int32 if to == "fp32" else torch.int16)
        quiet = {"fp32": 0x00400000, "fp16": 0x0200, "bf16": 0x0040}[to]
        assert bool((bits & quiet).all()), name
        if name != "double" and to != "bf16" and not name.endswith("fnuz"):
            # torch has one answer here: sign and payload kept.
            assert torch.equal(bits, x.to(TARGETS[to])[out.isnan()].view(bits.dtype))
