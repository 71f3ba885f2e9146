"""All pairs of a code of 4 bits and a scale, against torch and against numpy with ml_dtypes (those
of 8 bits are in `products.py`). Run as a script, with a folder to work in, it compares them at the
level that `RECAST_SIMD` names."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import recast
import torch
from quantized_models import Tensors, lay
from recast.options import FloatName
from safetensors.torch import load_file
from sources import NUMPY, TARGETS, as_torch, wrong

Row = tuple[str, int, int]
Array = np.ndarray[Any, Any]

PACKED: dict[str, Any] = {"format": "mxfp4-pack-quantized", "quant_method": "compressed-tensors"}
GROUP = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
MXFP4 = {**PACKED, "config_groups": {"group_0": {"targets": ["Linear"], "weights": GROUP}}}
NVFP4 = {
    **PACKED,
    "format": "nvfp4-pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**GROUP, "strategy": "tensor_group", "group_size": 16},
        }
    },
}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


def results(folder: Path, tensors: Tensors, said: Any, to: FloatName) -> Tensors:
    """What recast makes of the tensors."""
    source = lay(folder / "in", tensors, {"quantization_config": said} if said else {})
    recast.convert(source, folder / "out", to=to, on_overflow="inf", sync=False)
    found = load_file(folder / "out" / "model.safetensors")
    shutil.rmtree(folder)
    return found


def judged(name: str, ours: torch.Tensor, codes: Array, scales: Array, to: FloatName) -> list[Row]:
    """Codes and scales as numbers of any dtype, in shapes that broadcast."""
    with np.errstate(over="ignore", invalid="ignore"):
        products = codes.astype(np.float32) * scales.astype(np.float32)
        theirs = as_torch(products.astype(NUMPY[to]))
    exact = as_torch(codes).to(torch.float64) * as_torch(scales).to(torch.float64)
    others = exact.to(torch.float32).to(TARGETS[to])
    assert ours.shape == theirs.shape
    return [
        (f"{name}->{to} numpy", ours.numel(), wrong(ours, theirs)),
        (f"{name}->{to} torch", ours.numel(), wrong(ours, others)),
    ]


def halves() -> Array:
    """Every code of 4 bits twice, in 16 bytes, once in either half."""
    return (np.arange(16) | np.arange(15, -1, -1) << 4).astype(np.uint8)


def numbers(packed: Array) -> Array:
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)
    return codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)


def mxfp4(folder: Path) -> Iterator[Row]:
    """Every code of 4 bits with every exponent, as it is packed and in gpt-oss's blocks."""
    packed = np.tile(halves(), (256, 1))
    exponents = np.arange(256, dtype=np.uint8)[:, None]
    scales = exponents.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    codes = numbers(packed)
    tensors = {"m.weight_packed": as_torch(packed), "m.weight_scale": as_torch(exponents)}
    blocks = {
        "e.down_proj_blocks": as_torch(packed[None, :, None]),
        "e.down_proj_scales": as_torch(exponents[None]),
    }
    for to in TARGETS:
        ours = results(folder / "packed", tensors, MXFP4, to)["m.weight"]
        yield from judged("MXFP4", ours, codes, scales, to)
        ours = results(folder / "blocks", blocks, None, to)["e.down_proj"]
        yield from judged("MXFP4 blocks", ours[0].T.contiguous(), codes, scales, to)


def nvfp4(folder: Path, weights: int) -> Iterator[Row]:
    """Every code of 4 bits with every scale in fp8, under many second scales."""
    packed = np.tile(halves(), (128, 1))
    scales = np.arange(256, dtype=np.uint8).reshape(128, 2).view(ml_dtypes.float8_e4m3fn)
    draw = np.random.default_rng(4)
    seconds = np.exp(draw.uniform(-12, 12, weights)).astype(np.float32)
    codes = numbers(packed)
    each = np.repeat(scales.astype(np.float32), 16, -1)
    formulas: dict[str, Any] = {
        "NVFP4": ("weight_packed", "weight_global_scale", NVFP4, np.divide),
        "ModelOpt NVFP4": ("weight", "weight_scale_2", MODELOPT, np.multiply),
    }
    for name, (weight, whole, said, combine) in formulas.items():
        tensors: Tensors = {}
        for at, second in enumerate(seconds):
            tensors[f"m{at}.{weight}"] = as_torch(packed).clone()
            tensors[f"m{at}.weight_scale"] = as_torch(scales).clone()
            tensors[f"m{at}.{whole}"] = torch.tensor([float(second)], dtype=torch.float32)
        for to in TARGETS:
            found = results(folder / "nvfp4", tensors, said, to)
            ours = torch.stack([found[f"m{at}.weight"] for at in range(weights)])
            every = np.stack([combine(each, second, dtype=np.float32) for second in seconds])
            yield from judged(name, ours, np.tile(codes, (weights, 1, 1)), every, to)


def compared(folder: Path, weights: int) -> Iterator[Row]:
    """Everything, with so many second scales."""
    yield from mxfp4(folder)
    yield from nvfp4(folder, weights)


def main() -> int:
    """Prints the rows; fails where anything is wrong."""
    found = list(compared(Path(sys.argv[1]), 1000))
    for name, inputs, differing in found:
        print(f"{name:40} {inputs:>13,} pairs {differing} wrong")
    return int(any(differing for *_, differing in found))


if __name__ == "__main__":
    sys.exit(main())
