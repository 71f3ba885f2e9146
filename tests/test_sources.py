"""fp64 and fp8, which recast only casts from, are cast as torch does it, in memory and in files."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import recast
import torch
from recast.options import FloatName, OnOverflow
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from sources import (
    FP8,
    NUMPY,
    TARGETS,
    Tensors,
    as_torch,
    by_numpy,
    by_torch,
    double_edges,
    model,
)
from support import header_of, recast_process

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


def hard() -> Tensors:
    """Doubles of every kind and every fp8 number, beside other floats and integers. No NaN, the
    bits of which are nobody's."""
    edges = torch.from_numpy(double_edges()[::37].copy())
    tensors: Tensors = {"edges": edges[~edges.isnan()], "small": torch.randn(700_001).double()}
    for name in FP8:
        values = torch.arange(256, dtype=torch.uint8).view(getattr(torch, name))
        numbers = values.view(torch.uint8)[~values.float().isnan()]
        # More than a piece of 1 MiB.
        tensors[name] = numbers.repeat(3000).view(getattr(torch, name))
    tensors |= {"single": torch.randn(33), "half": torch.randn(35).half(), "scalar": edges[7]}
    return tensors | {"positions": torch.arange(5), "empty": torch.zeros(0, 3).double()}


@pytest.mark.parametrize("to", list(TARGETS))
@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_is_the_one_that_the_official_writer_makes_of_torchs_casts(
    to: FloatName, threads: int, tmp_path: Path
) -> None:
    tensors = hard()
    save_file(tensors, tmp_path / SHARD, {"format": "pt"})
    options: dict[str, Any] = {"threads": threads, "on_overflow": "inf", "unscaled_fp8": True}
    report = recast.convert(tmp_path / SHARD, tmp_path / "out", to=to, sync=False, **options)
    save_file(by_torch(tensors, to), tmp_path / "judge", {"format": "pt"})
    assert (tmp_path / "out" / SHARD).read_bytes() == (tmp_path / "judge").read_bytes()
    assert not any("carried" in text or "no tensor" in text for text in report.warnings)
    found = recast.verify(tmp_path / SHARD, tmp_path / "out", device="cpu", samples=None)
    assert found.passed, found.failures()


@pytest.mark.parametrize("policy", ["inf", "saturate"])
@pytest.mark.parametrize("to", list(TARGETS))
def test_doubles_beyond_the_range_follow_the_policy(
    to: FloatName, policy: OnOverflow, tmp_path: Path
) -> None:
    largest = torch.finfo(TARGETS[to]).max
    beyond = [1e300, -1e39, largest * (1 + 2**-30), -largest * (1 + 2**-5)]
    x = torch.tensor([*beyond, largest, 2.0, float("-inf"), 1e-320], dtype=torch.float64)
    x = x.repeat(1000)
    save_file({"x": x}, tmp_path / SHARD, {"format": "pt"})
    out = tmp_path / "out"
    report = recast.convert(tmp_path / SHARD, out, to=to, on_overflow=policy, sync=False)
    expected = x.to(TARGETS[to])
    overflowed = expected.isinf() & x.isfinite()
    if policy == "saturate":
        expected = torch.where(x.isfinite(), x.clamp(-largest, largest), x).to(TARGETS[to])
    assert torch.equal(load_file(out / SHARD)["x"], expected)
    assert report.audit["to_inf"] == int(overflowed.sum()) > 0
    assert report.audit["to_zero"] == 1000
    assert report.tensor_audits[0]["max_abs"] == 1e300
    assert recast.verify(tmp_path / SHARD, out, device="cpu").passed


@pytest.mark.parametrize("to", list(TARGETS))
def test_a_double_that_does_not_fit_stops_the_run(to: FloatName, tmp_path: Path) -> None:
    save_file({"w": torch.tensor([1.0, 1e39], dtype=torch.float64)}, tmp_path / SHARD)
    run = recast_process("convert", tmp_path / SHARD, tmp_path / "out", "--to", to)
    assert run.returncode == 1
    assert f"1 finite value in 1 tensor is too large for {to}" in run.stderr
    assert "w in model.safetensors: 1 of 2 values, max_abs 1e39" in run.stderr
    assert not (tmp_path / "out").exists()


def planted() -> dict[str, np.ndarray[Any, Any]]:
    """Tensors of ordinary weights and of exact ones, most with a few edges planted."""
    random, edges = np.random.default_rng(3), double_edges()
    tensors = {}
    for index in range(400):
        size = int(random.integers(0, 9000))
        x = random.standard_normal(size) * 0.02
        for dtype in ([], [np.float32], [np.float16], [ml_dtypes.bfloat16])[index % 4]:
            x = x.astype(dtype).astype(np.float64)
        if size and index % 3:
            x[random.integers(0, size, index % 3)] = random.choice(edges, index % 3)
        tensors[f"t{index:03}"] = x
    return tensors


@pytest.mark.parametrize("to", list(TARGETS))
def test_the_audit_of_doubles_is_that_of_numpy(to: FloatName, tmp_path: Path) -> None:
    tensors = planted()
    save_numpy(tensors, tmp_path / SHARD)
    options: dict[str, Any] = {"on_overflow": "inf", "sync": False}
    report = recast.convert(tmp_path / SHARD, tmp_path / "out", to=to, **options)
    expected = {name: by_numpy(x, to) for name, x in tensors.items()}
    rows = {row.pop("name"): row for row in map(dict, report.tensor_audits)}
    for row in rows.values():
        del row["file"]
    assert rows == expected
    assert len({str(row["exact"]) for row in expected.values()}) == 2


@pytest.mark.parametrize("to", list(TARGETS))
def test_the_audit_of_fp8_says_exact(to: FloatName, tmp_path: Path) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    tensors = {name: codes.view(getattr(torch, name)).clone() for name in FP8}
    save_file(tensors, tmp_path / SHARD)
    report = recast.convert(tmp_path / SHARD, tmp_path / "out", to=to, unscaled_fp8=True)
    found = {row["name"]: row for row in report.tensor_audits}
    for name, x in tensors.items():
        row, values = found[name], x.float()
        assert (row["exact"], row["to_inf"], row["to_zero"]) == (True, 0, 0)
        assert row["nan"] == int(values.isnan().sum())
        assert row["inf"] == int(values.isinf().sum())
        assert row["max_abs"] == float(values[values.isfinite()].abs().max())


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


def test_a_config_that_still_states_float64_is_found(tmp_path: Path) -> None:
    stated = {"torch_dtype": "float64"}
    source = model(tmp_path / "model", {"w": torch.randn(4).double()}, config=stated)
    recast.convert(source, tmp_path / "out", to="fp32")
    config = tmp_path / "out" / "config.json"
    assert json.loads(config.read_text()) == {"torch_dtype": "float32"}
    assert recast.verify(source, tmp_path / "out", device="cpu").passed
    config.write_text(json.dumps(stated))
    assert not recast.verify(source, tmp_path / "out", device="cpu").passed


@pytest.mark.parametrize("report", [True, False])
@pytest.mark.parametrize("name", ["float64", *FP8])
def test_verification_finds_one_wrong_bit(name: str, report: bool, tmp_path: Path) -> None:
    x = torch.randn(5000).to(getattr(torch, name))
    save_file({"x": x, "y": torch.randn(9)}, tmp_path / SHARD, {"format": "pt"})
    out = tmp_path / "out"
    recast.convert(tmp_path / SHARD, out, to="bf16", unscaled_fp8=True, sync=False)
    if not report:
        (out / "recast.json").unlink()
    assert recast.verify(tmp_path / SHARD, out, device="cpu").passed
    data = bytearray((out / SHARD).read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    at = 8 + length + header_of(out / SHARD)["x"]["data_offsets"][0] + 2 * 1234
    data[at] ^= 1
    (out / SHARD).write_bytes(data)
    found = recast.verify(tmp_path / SHARD, out, device="cpu")
    assert not found.passed
    (wrong,) = found.mismatches
    assert (wrong.tensor, wrong.index, wrong.count) == ("x", 1234, 1)


def test_a_few_doubles_in_a_16_bit_checkpoint_stay_doubles(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(100, 100).bfloat16(), "few": torch.randn(9).double()}
    source = model(tmp_path / "model", tensors, config={"model_type": "x"})
    report = recast.convert(source, tmp_path / "out", to="fp16")
    (kept,) = report.kept
    assert kept["reason"] == "fp64 in a checkpoint that is otherwise 16-bit"
    assert kept["tensors"] == ["few"]
    assert torch.equal(load_file(tmp_path / "out" / SHARD)["few"], tensors["few"])
    assert recast.verify(source, tmp_path / "out", device="cpu").passed
    plan = recast.plan(source, to="fp16", auto_keep=False)
    assert {tensor.name: tensor.reason for tensor in plan.tensors} == {
        "few": "fp64 to fp16",
        "w": "bf16 to fp16",
    }
