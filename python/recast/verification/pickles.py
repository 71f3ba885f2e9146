"""PyTorch pickles as a source: what torch finds in them, and how it reads their values.

The judge is torch's own unpickler for weights, which creates nothing but tensors and plain values.
Recast's reader has read the file before, and it accepts less.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recast.errors import InputError, UsageError
from recast.terminal import shown
from recast.verification.dtypes import SOURCES
from recast.verification.header import Entry
from recast.verification.loaders.sealed import utf8_path

if TYPE_CHECKING:
    import torch

SINCE = (2, 6)
"""The first torch whose unpickler for weights runs nothing of what a file says."""
NESTED = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network"),
    *("generator", "params", "params_ema", "ema", "ema_state_dict", "state_dict_ema", "weights"),
)
"""What training scripts call the state dict among the other things that they save."""
DEEPEST = 8
"""So many of these names in a row are followed."""
DTYPES = {
    **SOURCES,
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E8M0": "float8_e8m0fnu",
}
"""The attribute of `torch` that a dtype is, by its name in a header."""
MAPPED = 128 << 20
"""What is read of a mapped file stays in memory until the file is mapped anew, after so many
bytes."""
HEADS = {
    *("lm_head.weight", "proj_out.weight", "embed_out.weight", "output_projection.weight"),
    *("output.weight", "decoder.weight"),
}
"""The last parts of what models make of their embeddings."""
ZIP = b"PK\x03\x04"

State = dict[str, "torch.Tensor"]


def is_pickle(file: str) -> bool:
    """Whether a file of the source that holds tensors is a pickle."""
    return not file.endswith(".safetensors")


def check_torch() -> None:
    """Raises `UsageError` where the torch that is installed must not open pickles."""
    import torch

    version = torch.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < SINCE:
        raise UsageError(
            f"torch {version} may run code while it reads a pickle, so it cannot verify one",
            f"pip install 'torch>={'.'.join(map(str, SINCE))}'",
        )


@dataclass(frozen=True)
class Unpickled(Entry):
    """A tensor of a pickle, from byte 0 on, as if it were contiguous."""

    path: Path
    key: str | None
    name: str
    source: "Pickles" = field(compare=False, repr=False)

    def pieces(self, start: int, end: int) -> "Iterator[torch.Tensor]":
        """The elements `start` to `end`, as integers of their bits, in parts of any shape."""
        return self.source.read(self, start, end)


@dataclass(frozen=True)
class Found:
    """The tensors of a pickle."""

    entries: dict[str, Unpickled]
    tied: dict[str, str]
    """Of those that are the same, all but one, each with that one."""


class Pickles:
    """Loads pickles, and holds one of them at a time."""

    def __init__(self) -> None:
        self._load = lru_cache(maxsize=1)(_load)
        self._read = 0

    def find(self, path: Path, key: str | None) -> Found:
        """The tensors below `key`, or without it those of the model. Of tied ones, that is
        taken which loaders make the others of."""
        state, _ = self._load(path, key)
        entries = {}
        for name, tensor in state.items():
            shape, size = tuple(tensor.shape), tensor.numel() * tensor.element_size()
            entries[name] = Unpickled(dtype_of(tensor), shape, 0, size, path, key, name, self)
        tied: dict[str, str] = {}
        for names in same(state):
            first = min(names, key=_made_last)
            tied |= {name: first for name in names if name != first}
        return Found(entries, tied)

    def read(self, entry: Unpickled, start: int, end: int) -> "Iterator[torch.Tensor]":
        """What `Unpickled.pieces` gives."""
        import torch

        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        state, mapped = self._load(entry.path, entry.key)
        tensor = state.get(entry.name)
        if tensor is None or (dtype_of(tensor), tuple(tensor.shape)) != (entry.dtype, entry.shape):
            raise InputError(
                f"{shown(entry.path)} changed during verification: "
                f"tensor '{shown(entry.name)}' is another"
            )
        for piece in flat(tensor, start, end):
            yield piece.view(bits[piece.element_size()])
            self._read += piece.nbytes
        if mapped and self._read > MAPPED:
            self._load.cache_clear()
            self._read = 0


def chosen(top: Any, key: str | None) -> State:
    """The tensors of the state dict in what was unpickled: below `key`, or else below the names
    that such a dict usually has, or else at the top. None where that is not clear."""
    if key is not None:
        return _at(top, key)
    nested = _nested(top)
    if len(nested) > 1:
        return {}
    return _tensors(nested[0] if nested else top)


def _nested(value: Any, above: tuple[int, ...] = ()) -> list[dict[Any, Any]]:
    """What holds tensors below names that a state dict usually has, each once, also below several
    in a row."""
    found: dict[int, dict[Any, Any]] = {}
    for name in NESTED if isinstance(value, dict) else ():
        inner = value.get(name)
        if not isinstance(inner, dict) or id(inner) in above:
            continue
        if _tensors(inner):
            found[id(inner)] = inner
        elif len(above) < DEEPEST:
            found |= {id(below): below for below in _nested(inner, (*above, id(inner)))}
    return list(found.values())


def _at(value: Any, key: str) -> State:
    """The tensors below a key, or below the only state dict in what is there; a key with dots may
    be several."""
    if not isinstance(value, dict):
        return {}
    for name, inner in value.items():
        if name == key:
            nested = [] if _tensors(inner) else _nested(inner)
            state = _tensors(nested[0] if len(nested) == 1 else inner)
        elif isinstance(name, str) and key.startswith(f"{name}."):
            state = _at(inner, key[len(name) + 1 :])
        else:
            continue
        if state:
            return state
    return {}


def same(state: State) -> list[list[str]]:
    """The names of tensors that are one and the same, each list in order. Those without elements
    have nothing in common."""
    found: dict[object, list[str]] = {}
    for name in sorted(state):
        tensor = state[name]
        # A stride along a single element leads nowhere.
        pairs = zip(tensor.stride(), tensor.shape, strict=True)
        strides = [step for step, extent in pairs if extent > 1]
        where = (tensor.data_ptr(), tensor.dtype, tensor.shape, *strides)
        found.setdefault(where if tensor.numel() else name, []).append(name)
    return [names for names in found.values() if len(names) > 1]


def flat(tensor: "torch.Tensor", start: int, end: int) -> "Iterator[torch.Tensor]":
    """The elements `start` to `end` of a tensor in C order, as parts of it: nothing is copied."""
    if not tensor.dim() or tensor.is_contiguous():
        yield tensor.reshape(-1)[start:end]
        return
    row = tensor[0].numel()
    while start < end:
        index, inside = divmod(start, row)
        if inside or end - start < row:
            stop = min(end, (index + 1) * row)
            yield from flat(tensor[index], inside, inside + stop - start)
        else:
            stop = end - end % row
            yield tensor[index : stop // row]
        start = stop


def dtype_of(tensor: "torch.Tensor") -> str:
    """What a header calls the dtype of a tensor; torch's own name where it has none."""
    name = str(tensor.dtype).removeprefix("torch.")
    return next((stored for stored, own in DTYPES.items() if own == name), name)


def _made_last(name: str) -> int:
    """How far loaders are from making a tensor of that name of another one."""
    last = ".".join(name.split(".")[-2:])
    if last == "shared.weight":
        return 0
    if last == "embed_tokens.weight":
        return 2
    return 3 if last in HEADS else 1


def _tensors(value: Any) -> State:
    """The tensors that are directly in a dict; none in anything else."""
    import torch

    if not isinstance(value, dict):
        return {}
    return {
        name: tensor.detach()
        for name, tensor in value.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }


def _load(path: Path, key: str | None) -> tuple[State, bool]:
    """The tensors of the state dict in a pickle, and whether they are in a file that is mapped."""
    import torch

    check_torch()
    try:
        with path.open("rb") as file:
            # Only zip archives can be mapped; what torch saved before 1.6 is read whole.
            mapped = file.read(len(ZIP)) == ZIP
        with utf8_path(path) as link:
            top = torch.load(str(link), map_location="cpu", mmap=mapped, weights_only=True)
    except Exception as error:
        # Of what torch raises, without its advice before and after to load the file in unsafe ways.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
        raise InputError(
            f"{shown(path)}: torch cannot load it, so it cannot be verified: "
            f"{shown(reason.partition('. Please')[0])}"
        ) from error
    return chosen(top, key), mapped
