"""What torch reads in a pickle, and whether recast reads the same."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from recast import _core
from safetensors import safe_open
from safetensors.torch import load_file

RECOGNIZED = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network"),
    *("generator", "params", "params_ema", "ema", "ema_state_dict", "state_dict_ema", "weights"),
)
"""The keys under which a model is looked for, as docs have them."""

STORED = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
Tensors = dict[str, torch.Tensor]
DEEPEST = 7


class NoModelError(Exception):
    """torch opens the file, and it holds no model that could be chosen without a guess."""


def opened(path: Path) -> Any:
    """What the file holds, as torch has it where nothing of the file is trusted."""
    with path.open("rb") as file:
        mapped = file.read(4) == b"PK\3\4"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def tensors_of(value: Any) -> Tensors:
    if not isinstance(value, Mapping):
        return {}
    return {name: tensor for name, tensor in value.items() if isinstance(tensor, torch.Tensor)}


def nested_in(value: Any, above: tuple[int, ...] = ()) -> dict[int, Tensors]:
    """What holds tensors under recognized keys, each once, also under several in a row."""
    found: dict[int, Tensors] = {}
    for key in RECOGNIZED if isinstance(value, Mapping) else ():
        inner = value.get(key)
        if not isinstance(inner, Mapping) or id(inner) in above or len(above) > DEEPEST:
            continue
        below = {id(inner): tensors_of(inner)} if tensors_of(inner) else {}
        found |= below or nested_in(inner, (*above, id(inner)))
    return found


def model_of(top: Any) -> Tensors:
    """The tensors of the model, of which the file must hold just one."""
    candidates = [*nested_in(top).values()] or [tensors_of(top)]
    if len(candidates) != 1 or not candidates[0]:
        raise NoModelError("no model, or several")
    if not all(isinstance(name, str) for name in candidates[0]):
        raise NoModelError("names that are no strings")
    return candidates[0]


def view(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same view of the same bytes."""
    if not tensor.numel():
        return (tensor.dtype, tensor.shape)
    # A stride along a single element leads nowhere.
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return (tensor.dtype, tensor.data_ptr(), *((n, step) for n, step in sizes if n > 1))


def described(path: Path) -> dict[str, tuple[str, list[int]]]:
    """The dtype and the shape of each tensor, as recast reads them."""
    found = _core.Checkpoint.open(str(path)).tensors
    assert len(found) == len({tensor.name for tensor in found})
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in found}


def difference(model: Tensors, ours: Mapping[str, tuple[str, list[int]]]) -> str | None:
    """What is other than in `model`, apart from tied tensors, of which one is enough."""
    kept = {view(model[name]) for name in ours if name in model}
    for name, (dtype, shape) in ours.items():
        if name not in model:
            return f"{name!r} is not in torch's"
        theirs = (STORED.get(model[name].dtype, "none"), list(model[name].shape))
        if (dtype, shape) != theirs:
            return f"{name!r} is {(dtype, shape)}, not {theirs}"
    for name in model.keys() - ours.keys():
        if view(model[name]) not in kept:
            return f"{name!r} is missing"
    return None


def raw(tensor: torch.Tensor) -> bytes:
    # `contiguous()` keeps strides that one element does not need.
    copied = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return copied.reshape(-1).view(torch.uint8).numpy().tobytes()


def other_values(model: Tensors, result: Path) -> list[str]:
    """The names of the tensors that have other bytes in a result of `--to as-stored`; what is tied
    is found by what the metadata says of it."""
    with safe_open(result, "pt") as file:
        notes: dict[str, str] = file.metadata() or {}
    written = load_file(result)
    names = {name: name if name in written else notes.get(name, "") for name in model}
    return [
        name
        for name, source in names.items()
        if source not in written or raw(written[source]) != raw(model[name])
    ]
