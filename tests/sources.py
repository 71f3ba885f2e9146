"""fp64 and fp8, which recast only casts from: their inputs, and what torch, numpy and ml_dtypes
make of them. Run as a script, it compares the casts at the level that `RECAST_SIMD` names."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import recast
import torch
from recast.options import FloatName
from safetensors.torch import save_file

Row = tuple[str, int, int]

TARGETS: dict[FloatName, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
NUMPY: dict[FloatName, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
FP8 = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
STORED_FP8 = {
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
Tensors = dict[str, torch.Tensor]
Doubles = npt.NDArray[np.float64]


@np.errstate(all="ignore")
def by_numpy(x: np.ndarray[Any, Any], to: FloatName) -> dict[str, object]:
    """The audit of a cast, by numpy and ml_dtypes alone, which may go through fp32."""
    y = x.astype(np.float32).astype(NUMPY[to]).astype(np.float64)
    finite = np.isfinite(x)
    return {
        "to_inf": int((finite & np.isinf(y)).sum()),
        "to_zero": int(((x != 0) & (y == 0)).sum()),
        "nan": int(np.isnan(x).sum()),
        "inf": int(np.isinf(x).sum()),
        "max_abs": float(np.abs(x[finite]).max(initial=0)),
        "exact": bool(((x == y) | np.isnan(x)).all()),
    }


def codes() -> npt.NDArray[np.uint8]:
    """Every code of 8 bits at each place of the loop, and a rest."""
    return np.concatenate([np.roll(np.arange(256, dtype=np.uint8), n) for n in range(33)])[:-5]


def double_edges() -> Doubles:
    """Both sides of what may round another way: ties of fp32, those of fp16 and bf16, those that
    only rounding to fp32 makes, limits, subnormals of each, and specials."""
    exponents = np.arange(4096, dtype=np.uint64) << np.uint64(52)  # sign and exponent
    mantissas = {0, 1, (1 << 52) - 1}
    for shift in range(52):
        for tie in (1 << shift, 3 << shift, (1 << 52) - (1 << shift)):
            mantissas |= {(tie + near) % (1 << 52) for near in (-1, 0, 1)}
    every = (exponents[:, None] | np.array(sorted(mantissas), np.uint64)[None]).ravel()
    sixteen = np.arange(1 << 15, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        halves = sixteen.view(np.float16).astype(np.float64)
        brains = sixteen.view(ml_dtypes.bfloat16).astype(np.float64)
    singles = np.random.default_rng(5).integers(0, 0x7F800000, 20_000, dtype=np.uint32)
    tiny = np.random.default_rng(6).integers(0, 0x00900000, 20_000, dtype=np.uint32)
    grids = [halves, brains, *(x.view(np.float32).astype(np.float64) for x in (singles, tiny))]
    ties: list[Doubles] = []
    for grid in grids:
        values = np.unique(grid[np.isfinite(grid)])
        ties += [values, (values[:-1] + values[1:]) / 2]
    # Beyond the largest of each, where a next one would be.
    largest = [np.float64(ml_dtypes.finfo(dtype).max) for dtype in NUMPY.values()]
    ties.append(np.array([x * (1 + 2.0**-n) for x in largest for n in range(8, 53)]))
    bits = np.concatenate(ties).view(np.uint64)
    half = 1 << 28  # of the last place of fp32
    offsets = {0, 1, half // 2, half - 1, half, half + 1, 2 * half, 3 * half}
    signed = [np.uint64(near % (1 << 64)) for it in offsets for near in (it, -it)]
    near = np.concatenate([bits + offset for offset in signed])
    return np.concatenate([every, near, near | np.uint64(1 << 63)]).view(np.float64)


def doubles() -> Doubles:
    """The edges, and 10^7 random patterns of bits."""
    noise = np.random.default_rng(7).integers(0, 1 << 64, 10_000_000, dtype=np.uint64)
    # Most doubles overflow or vanish: half of the exponents are those of fp32.
    noise[::2] = (noise[::2] & np.uint64(0x800FFFFFFFFFFFFF)) | (
        (noise[::2] >> np.uint64(52) & np.uint64(0xFF)) + np.uint64(1023 - 140) << np.uint64(52)
    )
    return np.concatenate([double_edges(), noise.view(np.float64)])


def wrong(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """How many values differ: bits for numbers, class for NaN."""
    bits = {4: torch.int32, 2: torch.int16}[ours.element_size()]
    assert ours.dtype == theirs.dtype
    same = ours.view(bits) == theirs.view(bits)
    return int((~(same | (ours.isnan() & theirs.isnan()))).sum())


def as_torch(x: npt.NDArray[Any]) -> torch.Tensor:
    """An array of numpy or ml_dtypes, by its bits."""
    integers = {8: np.int64, 4: np.int32, 2: np.int16, 1: np.uint8}[x.itemsize]
    return torch.from_numpy(x.view(integers)).view(getattr(torch, str(x.dtype)))


def compared() -> Iterator[Row]:
    """A row for each cast and judge: a name, how many inputs, how many are wrong."""
    x = doubles()
    for to, dtype in TARGETS.items():
        ours = recast.cast(as_torch(x), to)
        yield f"fp64->{to} torch", x.size, wrong(ours, as_torch(x).to(dtype))
        with np.errstate(over="ignore", invalid="ignore"):
            theirs = x.astype(np.float32).astype(NUMPY[to])
        yield f"fp64->{to} numpy", x.size, wrong(ours, as_torch(theirs))
        for name in FP8:
            small = codes().view(getattr(ml_dtypes, name))
            ours = recast.cast(as_torch(small), to)
            yield f"{name}->{to} torch", small.size, wrong(ours, as_torch(small).to(dtype))
            with np.errstate(invalid="ignore"):
                theirs = small.astype(np.float32).astype(NUMPY[to])
            yield f"{name}->{to} ml_dtypes", small.size, wrong(ours, as_torch(theirs))


def by_torch(tensors: Tensors, to: FloatName) -> Tensors:
    """The tensors, the floats among them cast by torch."""
    return {name: x.to(TARGETS[to]) if x.is_floating_point() else x for name, x in tensors.items()}


def model(folder: Path, tensors: Tensors, metadata: Any = None, **jsons: Any) -> Path:
    """A directory with a shard and JSON files."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata or {"format": "pt"})
    for name, value in jsons.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def main() -> int:
    """Prints the rows; fails where anything is wrong."""
    rows = list(compared())
    for name, inputs, differing in rows:
        print(f"{name:32} {inputs:>13,} inputs {differing} wrong")
    return int(any(differing for *_, differing in rows))


if __name__ == "__main__":
    sys.exit(main())
