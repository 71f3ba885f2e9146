"""What the tests of verification's judge of dequantized weights share: small quantized
checkpoints, and products made by loops over numpy's and ml_dtypes' numbers."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from recast.verification import values
from recast.verification.dequantized import Dequantized, Products
from recast.verification.header import Headers, read_headers
from recast.verification.labels import Labels, read_labels
from recast.verification.quantized import dropped, find
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
FP8 = torch.float8_e4m3fn
E8M0 = torch.float8_e8m0fnu
TARGETS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BLOCKS = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def save(folder: Path, *shards: Tensors, **jsons: Any) -> Path:
    """A directory with shards and JSON files."""
    folder.mkdir()
    for number, tensors in enumerate(shards):
        save_file(tensors, folder / f"model-{number}.safetensors", {"format": "pt"})
    for name, value in jsons.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def judged(root: Path) -> tuple[Headers, Callable[[str], Path], Callable[[str], Labels]]:
    """What verification needs to find the quantized weights below `root`."""
    headers, damaged = read_headers(root)
    assert not damaged
    return headers, root.joinpath, partial(read_labels, root)


def found(root: Path) -> dict[str, Dequantized]:
    weights = find(*judged(root))
    assert len({name for _, name in weights}) == len(weights)
    return {name: weight for (_, name), weight in weights.items()}


def gone(root: Path) -> set[str]:
    given = judged(root)
    return {name for _, name in dropped(given[0], find(*given))}


def products(weight: Dequantized) -> torch.Tensor:
    """All products of a weight, in its shape."""
    read = Products(weight, values.Reader("cpu"))
    return read([(0, math.prod(weight.shape))]).view(weight.shape)


def codes(*shape: int) -> torch.Tensor:
    """Every fp8 code, NaN and minus zero too."""
    return torch.randint(0, 256, shape, dtype=torch.uint8).view(FP8)


def packed(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def scales(*shape: int) -> torch.Tensor:
    """Scales with all their bits, some of them odd ones."""
    made = torch.rand(shape) * 10.0 ** torch.randint(-5, 2, shape)
    return made * torch.where(torch.rand(shape) < 0.1, -1.0, 1.0)


def number(tensor: torch.Tensor, *index: int) -> np.float32:
    """An element, decoded by numpy or ml_dtypes; a byte is an exponent."""
    kinds: dict[torch.dtype, Any] = {
        torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
        torch.float8_e5m2: ml_dtypes.float8_e5m2,
        torch.float8_e8m0fnu: ml_dtypes.float8_e8m0fnu,
        torch.uint8: ml_dtypes.float8_e8m0fnu,
        torch.bfloat16: ml_dtypes.bfloat16,
        torch.float16: np.float16,
        torch.float32: np.float32,
    }
    raw = tensor[index].reshape(1).view(torch.uint8).numpy()
    return np.float32(raw.view(kinds[tensor.dtype])[0])


def fp4(tensor: torch.Tensor, *index: int) -> np.float32:
    """The element at `index` of what is packed by two to a byte along the last dimension."""
    *outer, column = index
    byte = int(tensor[(*outer, column // 2)].view(torch.uint8))
    nibble = byte >> 4 if column % 2 else byte & 15
    return np.float32(np.uint8(nibble).view(ml_dtypes.float4_e2m1fn))


def loop(shape: tuple[int, ...], one: Callable[..., tuple[Any, Any]]) -> np.ndarray[Any, Any]:
    """`one(*index)` gives the code and the scale of an element; here they are multiplied."""
    made = np.empty(shape, np.float32)
    with np.errstate(all="ignore"):
        for index in np.ndindex(*shape):
            code, scale = one(*index)
            made[index] = np.float32(code) * np.float32(scale)
    return made


def agrees(weight: Dequantized, expected: np.ndarray[Any, Any]) -> bool:
    """Whether the values are those fp32 products, in every target: NaN by class, else by bits."""
    assert weight.shape == expected.shape
    with np.errstate(all="ignore"):
        cast: dict[str, Any] = {
            "fp32": expected,
            "fp16": expected.astype(np.float16),
            "bf16": expected.astype(ml_dtypes.bfloat16),
        }
    made = products(weight)
    for name, dtype in TARGETS.items():
        ours = values.cast(made, dtype, "inf").reshape(-1).view(torch.uint8).numpy()
        ours = ours.view(cast[name].dtype)
        theirs = cast[name].reshape(-1)
        width = f"u{theirs.dtype.itemsize}"
        nan = np.isnan(ours.astype(np.float32)) & np.isnan(theirs.astype(np.float32))
        if not np.all((ours.view(width) == theirs.view(width)) | nan):
            return False
    return True
