"""Products of codes and scales, converted at the level that `RECAST_SIMD` names, against numpy with
the tables of ml_dtypes and against torch.

`tests/test_products.py` runs it: every code with every power of two, and with every 16-bit scale,
or as many random binary32 scales as it is told to.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import recast
import torch
from recast.options import FloatName
from safetensors import safe_open
from safetensors.torch import save_file

Array = npt.NDArray[Any]

CODES: dict[str, Any] = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}
TARGETS: dict[FloatName, tuple[Any, torch.dtype]] = {
    "fp32": (np.float32, torch.float32),
    "fp16": (np.float16, torch.float16),
    "bf16": (ml_dtypes.bfloat16, torch.bfloat16),
}
BITS: dict[int, Any] = {2: np.uint16, 4: np.uint32}
# Values that are compared at a time.
STEP = 1 << 24
EVERY = np.arange(256, dtype=np.uint8)


def wrong(found: Array, expected: Array) -> int:
    """How many values differ: bits for numbers, class for NaN."""
    bits = BITS[found.itemsize]
    different = found.view(bits) != expected.view(bits)
    wide = found[different].astype(np.float32), expected[different].astype(np.float32)
    return int(different.sum() - (np.isnan(wide[0]) & np.isnan(wide[1])).sum())


def judged(codes: Array, scales: Array, to: FloatName, found: Array) -> int:
    """How many of the values that were `found` are not the products of rows of codes, whose dtypes
    are those of ml_dtypes, and the scale of each row, by numpy or by torch."""
    numpy_dtype, torch_dtype = TARGETS[to]
    count = 0
    with np.errstate(all="ignore"):
        products = codes.astype(np.float32) * scales.astype(np.float32)[:, None]
        count += wrong(found, products.astype(numpy_dtype))
    of_torch = [torch.from_numpy(array.view(np.uint8)) for array in (codes, scales)]
    names = [array.dtype.name for array in (codes, scales)]
    wide = [
        raw.view(getattr(torch, name)).float() for raw, name in zip(of_torch, names, strict=True)
    ]
    expected = (wide[0] * wide[1].reshape(-1, 1)).to(torch_dtype)
    as_numpy = expected.view(torch.int32 if to == "fp32" else torch.int16).numpy()
    return count + wrong(found, as_numpy.view(numpy_dtype))


def check(folder: Path, codes: Array, scales: Array) -> Iterator[tuple[str, int, int]]:
    """Each target: how many products were compared, and how many are wrong."""
    source = folder / "in"
    source.mkdir(exist_ok=True)
    tensors = {
        "a.weight": torch.from_numpy(codes.view(np.uint8)).view(getattr(torch, codes.dtype.name)),
        "a.weight_scale": torch.from_numpy(scales.view(np.uint8).reshape(len(scales), -1)).view(
            getattr(torch, scales.dtype.name)
        ),
    }
    save_file(tensors, source / "model.safetensors")
    for to in TARGETS:
        recast.convert(source, folder / to, to=to, on_overflow="inf", sync=False, overwrite=True)
        count = 0
        with safe_open(folder / to / "model.safetensors", "pt") as file:
            made = file.get_slice("a.weight")
            rows = max(1, STEP // codes.shape[1])
            for start in range(0, len(codes), rows):
                part = made[start : start + rows]
                raw = part.view(torch.int32 if to == "fp32" else torch.int16).numpy()
                chosen = slice(start, start + rows)
                found = raw.view(TARGETS[to][0])
                count += judged(codes[chosen], scales[chosen], to, found)
        yield to, codes.size, count


def pairs(scale: str) -> Iterator[tuple[Array, Array]]:
    """Every code of every kind with every scale of a dtype."""
    dtype = getattr(ml_dtypes, scale, None) or getattr(np, scale)
    scales = np.arange(1 << (8 * np.dtype(dtype).itemsize)).astype(
        np.uint8 if np.dtype(dtype).itemsize == 1 else np.uint16
    )
    for kind in CODES.values():
        codes = np.tile(EVERY, (len(scales), 1)).view(kind)
        yield codes, scales.view(dtype)


def random(count: int) -> tuple[Array, Array]:
    """Random codes with random scales of binary32, of any bits."""
    rng = np.random.default_rng(15)
    codes = rng.integers(0, 256, (count // 128, 128), dtype=np.uint8)
    scales = rng.integers(0, 1 << 32, count // 128, dtype=np.uint32)
    # Half of them of the size that scales have.
    ordinary = rng.random(len(scales) // 2, dtype=np.float32) * 0.01 + 1e-5
    scales[: len(ordinary)] = ordinary.view(np.uint32)
    return codes.view(ml_dtypes.float8_e4m3fn), scales.view(np.float32)


def main(what: str) -> None:
    """Compares, and prints a JSON list of `[codes, scales, target, products, wrong]`."""
    torch.set_num_threads(1)
    examples = [random(int(what))] if what.isdecimal() else pairs(what)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for codes, scales in examples:
            for to, count, bad in check(Path(folder), codes, scales):
                rows.append((codes.dtype.name, scales.dtype.name, to, count, bad))
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1])
