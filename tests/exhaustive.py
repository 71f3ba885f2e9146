"""Every input of every cast (of fp64, the hard ones) against torch, numpy and ml_dtypes, at every
level that this CPU runs.

`make test-exhaustive` runs it: 2^32 binary32 patterns to binary16 and to bfloat16, the 65,536
inputs of the four casts from 16 bits, the 256 of those from 8, and those of binary64 that
`sources.py` chooses. NaN is compared by class, everything else by bits.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import recast
import sources
import torch

Row = tuple[str, int, int, float]

STEP = 1 << 26
INT = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
NUMPY: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def differences(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """How many values differ: bits for numbers, class for NaN."""
    same = ours.view(INT[ours.dtype]) == theirs.view(INT[theirs.dtype])
    if bool(same.all()):
        return 0
    return int((~(same | (ours.isnan() & theirs.isnan()))).sum())


def from_fp32() -> Iterator[Row]:
    """All 2^32 inputs."""
    for to in ("fp16", "bf16"):
        started, wrong = time.perf_counter(), 0
        for start in range(-(1 << 31), 1 << 31, STEP):
            x = torch.arange(start, start + STEP, dtype=torch.int32).view(torch.float32)
            wrong += differences(recast.cast(x, to), x.to(TORCH[to]))
        yield f"fp32->{to} torch", 1 << 32, wrong, time.perf_counter() - started


def from_16_bits() -> Iterator[Row]:
    """All 2^16 inputs of each cast, against torch and against numpy or ml_dtypes."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    for source in ("fp16", "bf16"):
        for to in ("fp32", "fp16", "bf16"):
            if to == source:
                continue
            started = time.perf_counter()
            x = torch.from_numpy(patterns.view(np.int16)).view(TORCH[source])
            wrong = differences(recast.cast(x, to), x.to(TORCH[to]))
            yield f"{source}->{to} torch", 1 << 16, wrong, time.perf_counter() - started
            started = time.perf_counter()
            a = patterns.view(NUMPY[source])
            with np.errstate(over="ignore", invalid="ignore"):
                theirs = a.astype(np.float32).astype(NUMPY[to])
            bits = f"u{theirs.itemsize}"
            ours = recast.cast(a, to)
            different = (ours.view(bits) != theirs.view(bits)) & ~(
                np.isnan(ours) & np.isnan(theirs)
            )
            yield (
                f"{source}->{to} numpy",
                1 << 16,
                int(different.sum()),
                (time.perf_counter() - started),
            )


def from_64_and_8_bits() -> Iterator[Row]:
    """All inputs of 8 bits, and many of 64."""
    started = time.perf_counter()
    for name, inputs, wrong in sources.compared():
        yield name, inputs, wrong, time.perf_counter() - started
        started = time.perf_counter()


def main() -> int:
    """One level when it is given in the environment, else all of them."""
    from recast import _core

    if "RECAST_SIMD" in os.environ:
        failed = 0
        for name, inputs, wrong, seconds in [
            *from_64_and_8_bits(),
            *from_16_bits(),
            *from_fp32(),
        ]:
            level = _core.simd_level()
            print(f"{level:9} {name:26} {inputs:>13,} inputs {wrong} wrong {seconds:.1f} s")
            failed += wrong
        return int(failed > 0)
    failed = 0
    for level in ("portable", "avx2", "avx512"):
        environment = {**os.environ, "RECAST_SIMD": level}
        probe = [sys.executable, "-c", "from recast import _core; _core.simd_level()"]
        if subprocess.run(probe, env=environment, capture_output=True).returncode:
            print(f"{level:9} not on this machine")
            continue
        failed |= subprocess.run([sys.executable, __file__], env=environment).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
