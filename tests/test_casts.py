"""`recast.cast`: bit-identical to torch, for every kind of array, at every CPU level."""

import os
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import recast
import torch
from recast.options import FloatName

DTYPES: dict[FloatName, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
NUMPY: dict[FloatName, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
Bits = npt.NDArray[np.uint32]
BITS = {4: torch.int32, 2: torch.int16}
PAIRS = [(a, b) for a in DTYPES for b in DTYPES]


def thinned() -> Bits:
    """Binary32 patterns: both sides of every rounding boundary of every exponent, all specials,
    and 10^7 random ones."""
    exponents = np.arange(512, dtype=np.uint32) << 23  # sign and exponent
    ties = [1 << shift for shift in range(23)] + [3 << shift for shift in range(22)]
    mantissas = {0, 1, 0x7FFFFF, 0x400000, 0x3FFFFF, 0x400001}
    for tie in ties:
        mantissas |= {(tie + near) & 0x7FFFFF for near in (-1, 0, 1)}
        mantissas |= {(0x7FFFFF - tie + near) & 0x7FFFFF for near in (-1, 0, 1)}
    edges = (exponents[:, None] | np.array(sorted(mantissas), dtype=np.uint32)[None]).ravel()
    # Every fp16 and bf16 value, the ties between neighbors, and what lies next to both.
    sixteen = np.arange(1 << 16, dtype=np.uint16)
    half = sixteen.view(np.float16).astype(np.float32).view(np.uint32)
    brain = sixteen.astype(np.uint32) << 16
    near: list[npt.NDArray[Any]] = [half + d for d in (0, 1, 0xFFF, 0x1000, 0x1001, 0xFFFFFFFF)]
    near += [brain + d for d in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFFFFFF)]
    noise = np.random.default_rng(7).integers(0, 1 << 32, 10_000_000, dtype=np.uint32)
    return np.concatenate([edges, *(part.astype(np.uint32) for part in near), noise])


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    bits = BITS[ours.element_size()]
    same = ours.view(bits) == theirs.view(bits)
    both_nan = ours.isnan() & theirs.isnan()
    assert bool((same | both_nan).all())


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_fp32_inputs_around_every_boundary_match_torch(to: FloatName) -> None:
    x = torch.from_numpy(thinned().view(np.int32)).view(torch.float32)
    assert_same(recast.cast(x, to), x.to(DTYPES[to]))


@pytest.mark.parametrize("source", ["fp16", "bf16"])
@pytest.mark.parametrize("to", list(DTYPES))
def test_every_16_bit_input_matches_torch(source: FloatName, to: FloatName) -> None:
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(DTYPES[source])
    assert_same(recast.cast(x, to), x.to(DTYPES[to]))


@pytest.mark.parametrize("level", ["portable", "avx2", "avx512"])
def test_the_level_that_is_forced_gives_the_same_bits(level: str) -> None:
    script = (
        "import sys, numpy as np, ml_dtypes, recast\n"
        "x = np.random.default_rng(3).integers(0, 1 << 32, 1_000_003, dtype=np.uint32)\n"
        "out = [recast.cast(x.view(np.float32), to) for to in ('fp16', 'bf16')]\n"
        "h = x.astype(np.uint16)\n"
        "out += [recast.cast(h.view(np.float16), to) for to in ('fp32', 'bf16')]\n"
        "out += [recast.cast(h.view(ml_dtypes.bfloat16), to) for to in ('fp32', 'fp16')]\n"
        "sys.stdout.buffer.write(b''.join(a.tobytes() for a in out))\n"
    )

    def run(environment: dict[str, str]) -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env={**os.environ, **environment}, capture_output=True)

    forced = run({"RECAST_SIMD": level})
    if b"no such instruction set" in forced.stderr:
        pytest.skip(f"this CPU does not run {level}")
    assert forced.returncode == 0, forced.stderr
    assert forced.stdout == run({"RECAST_SIMD": ""}).stdout


def test_an_unknown_level_is_a_clear_error() -> None:
    script = "import recast, numpy as np; recast.cast(np.zeros(3, np.float32), 'fp16')"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "RECAST_SIMD": "sse9"},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "RECAST_SIMD=sse9" in run.stderr
    assert "hint: unset RECAST_SIMD" in run.stderr


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_nan_stays_nan_with_its_sign_and_top_payload(to: FloatName) -> None:
    payloads = np.arange(1, 1 << 23, dtype=np.uint32)
    for sign in (0, 0x80000000):
        x = (payloads | 0x7F800000 | sign).view(np.float32)
        out = recast.cast(x, to).view(np.uint16).astype(np.uint32)
        shift, quiet = (13, 0x7E00) if to == "fp16" else (16, 0x7FC0)
        assert np.array_equal(out, (sign >> 16) | quiet | (payloads >> shift))


def kinds(source: FloatName) -> dict[str, torch.Tensor]:
    """The shapes and layouts an array can come in."""
    base = (torch.randn(64, 66) * 100).to(DTYPES[source])
    return {
        "contiguous": base,
        "0-dim": base[3, 4],
        "empty": base[:0],
        "transposed": base.t(),
        "strided": base[::3, 1::2],
        "expanded": base[0].expand(5, -1),
        "offset": base.flatten()[1:],
    }


@pytest.mark.parametrize(("source", "to"), PAIRS)
def test_every_layout_of_a_torch_tensor_is_cast(source: FloatName, to: FloatName) -> None:
    for name, x in kinds(source).items():
        out = recast.cast(x, to)
        assert isinstance(out, torch.Tensor), name
        assert (out.dtype, out.shape) == (DTYPES[to], x.shape), name
        assert torch.equal(out, x.to(DTYPES[to])), name


@pytest.mark.parametrize(("source", "to"), PAIRS)
def test_every_layout_of_a_numpy_array_is_cast(source: FloatName, to: FloatName) -> None:
    base = (np.random.default_rng(1).standard_normal((64, 66)) * 100).astype(NUMPY[source])
    frozen = base.copy()
    frozen.flags.writeable = False
    layouts = [
        base,
        base[3, 4:5].reshape(()),
        base[:0],
        base.T,
        base[::3, 1::2],
        base[::-1],
        frozen,
    ]
    for x in layouts:
        out = recast.cast(x, to)
        expected = x.astype(np.float32).astype(NUMPY[to])
        assert (out.dtype, out.shape) == (expected.dtype, x.shape)
        assert np.array_equal(out.view(f"u{out.itemsize}"), expected.view(f"u{out.itemsize}"))


def test_out_is_filled_and_returned() -> None:
    x = torch.randn(1000)
    out = torch.empty(1000, dtype=torch.bfloat16)
    assert recast.cast(x, "bf16", out=out) is out
    assert torch.equal(out, x.to(torch.bfloat16))
    bad: Any
    for bad in (torch.empty(999, dtype=torch.bfloat16), torch.empty(1000), np.empty(1000)):
        with pytest.raises(recast.UsageError):
            recast.cast(x, "bf16", out=bad)


def test_a_tensor_that_is_not_on_the_cpu_is_a_clear_error() -> None:
    with pytest.raises(recast.UsageError, match="cpu"):
        recast.cast(torch.empty(3, device="meta"), "bf16")


def test_what_cannot_be_cast_is_a_clear_error() -> None:
    bad: Any
    complex_ = np.zeros(3, np.complex64)
    scales = np.zeros(3, ml_dtypes.float8_e8m0fnu)
    integers = (np.zeros(3, np.int32), torch.zeros(3, dtype=torch.int64))
    for bad in (complex_, scales, np.zeros(3, ">f8"), *integers, [1.0], 1.0):
        with pytest.raises(recast.UsageError):
            recast.cast(bad, "bf16")


def test_any_number_of_threads_gives_the_same_values() -> None:
    x = torch.randn(3_000_001)
    expected = x.to(torch.float16)
    for threads in (1, 2, 3, 16):
        assert torch.equal(recast.cast(x, "fp16", threads=threads), expected)


@pytest.mark.parametrize(("source", "to"), [(a, b) for a, b in PAIRS if a != b])
def test_a_large_result_is_written_in_place_and_nowhere_else(
    source: FloatName, to: FloatName
) -> None:
    # Beyond 32 MiB, what lies in an `out` is overwritten past the caches.
    elements = (33 << 20) // DTYPES[to].itemsize + 13
    x = (torch.randn(elements) * 30_000).to(DTYPES[source])
    expected = x.to(DTYPES[to])
    bits = BITS[expected.element_size()]
    whole = torch.empty(elements + 64, dtype=DTYPES[to])
    for threads, start in ((1, 0), (2, 1), (3, 37)):
        whole.view(bits).fill_(0x5A5A)
        out = whole[start : start + elements]
        recast.cast(x, to, out=out, threads=threads)
        assert torch.equal(out.view(bits), expected.view(bits))
        for around in (whole[:start], whole[start + elements :]):
            assert bool((around.view(bits) == 0x5A5A).all())


def test_without_new_threads_the_running_ones_do_the_work() -> None:
    # Room for a few stacks beside what the process has, and for nothing like 64 of them.
    code = """
import resource
from pathlib import Path
import numpy as np
import recast
x, out = np.ones(64 << 18, np.float32), np.empty(64 << 18, np.float16)
recast.cast(x[:10], "fp16")
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (12 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
recast.cast(x, "fp16", out=out, threads=64)
print(out.min(), out.max())
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("1.0 1.0\n", "")


def test_the_input_is_not_copied() -> None:
    # Casting 256 MiB grows the process by the output and little more.
    script = (
        "import resource, numpy as np, recast\n"
        "x = np.ones(1 << 26, np.float32)\n"
        "x = x[::2] if {strided} else x\n"
        "recast.cast(x[:8], 'bf16')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "y = recast.cast(x, 'bf16')\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 - y.nbytes)\n"
    )
    for strided in (False, True):
        command = [sys.executable, "-c", script.format(strided=strided)]
        extra = int(subprocess.run(command, check=True, capture_output=True).stdout)
        assert extra < 32 << 20
