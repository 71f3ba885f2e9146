"""Which tensors of a plan are wanted, which parts of them, and how many at a time."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from recast import _core
from recast._core import Checkpoint, Plan, PlannedTensor
from recast.errors import UsageError
from recast.terminal import plain

BATCH = 64 << 20
"""About so many bytes of tensors are made at a time where they are given out one by one, and as
many are on the way to a GPU."""
FILES = 32
"""So many files are read at a time at most."""

Slices = Sequence[slice]
Sharding = Callable[[str, tuple[int, ...]], Slices | None]
"""Which part of a tensor is wanted, by its name and shape: a slice for each of the first
dimensions, without a step; `None` for all of it."""


@dataclass(frozen=True)
class Wanted:
    """A tensor of a plan, or a part of it."""

    file: int
    """The number of its file in the plan."""
    position: int
    """That in its file."""
    planned: PlannedTensor
    shape: tuple[int, ...]
    """Of what is wanted of it."""
    slices: list[tuple[int, int]] | None
    """The part, as far as the core makes it alone."""
    cut: tuple[slice, ...] | None
    """The part, where it has to be cut from the whole."""
    stored: str | None
    """The safetensors file that holds it as it is wanted."""

    @property
    def bytes(self) -> int:
        """Of what is made."""
        elements = math.prod(self.shape)
        return self.planned.bytes * elements // max(1, self.planned.elements)


def wanted_of(
    plan: Plan,
    checkpoint: Checkpoint,
    sharding: Sharding | None,
    has_torch: bool,
    mapped: Sequence[str],
) -> Iterator[Wanted]:
    """The tensors that a loader takes, or what is wanted of them. What is wanted as it is stored is
    not made where its file may be mapped: of each file of the plan, its path; none if none may."""
    left = set(checkpoint.not_loaded)
    numbers = {file.path: number for number, file in enumerate(plan.files)}
    sources = [file.source for file in plan.files]
    positions: dict[int, int] = {}
    for planned in plan.tensors:
        file = numbers[planned.file]
        position = positions.get(file, 0)
        positions[file] = position + 1
        if sources[file] in left:
            continue
        stored = None
        is_stored = (
            bool(mapped)
            and planned.action in ("copy", "keep")
            and sources[file].endswith(".safetensors")
        )
        # numpy has no bfloat16 and no 8-bit floats that safetensors knows.
        if is_stored and (has_torch or not planned.dtype.startswith(("BF", "F8", "F6", "F4"))):
            # Nor does it know names that are not UTF-8.
            stored = mapped[file] if _is_utf8(mapped[file]) else None
        shape = tuple(planned.shape)
        given = sharding(planned.name, shape) if sharding else None
        if given is None:
            yield Wanted(file, position, planned, shape, None, None, stored)
            continue
        slices = _slices(planned.name, shape, given)
        part = tuple(last - first for first, last in slices)
        if stored or _core.can_cut(plan, file, position, slices):
            yield Wanted(file, position, planned, part, slices, None, stored)
        else:
            cut = tuple(slice(first, last) for first, last in slices)
            yield Wanted(file, position, planned, shape, None, cut, None)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _slices(name: str, shape: tuple[int, ...], given: Slices) -> list[tuple[int, int]]:
    """A slice for each dimension, as its first index and the one behind its last."""
    if len(given) > len(shape):
        raise UsageError(
            f"sharding gives {len(given)} slices of '{plain(name)}', which has {len(shape)} "
            "dimensions"
        )
    found = []
    for size, part in zip(
        shape, (*given, *(slice(None),) * (len(shape) - len(given))), strict=True
    ):
        first, last, step = part.indices(size)
        if step != 1:
            raise UsageError(
                f"sharding gives a slice of '{plain(name)}' with a step, which recast does not make"
            )
        found.append((first, max(first, last)))
    return found


def batches_of(wanted: list[Wanted]) -> list[list[Wanted]]:
    """Tensors in order, about `BATCH` bytes of at most `FILES` files at a time."""
    batches: list[list[Wanted]] = []
    size, files = BATCH, 0
    for it in wanted:
        if size + it.bytes > BATCH or it.file >= files:
            batches.append([])
            size, files = 0, it.file + FILES
        batches[-1].append(it)
        size += it.bytes
    return batches
