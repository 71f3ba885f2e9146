"""The values of a result: the source, read in chunks and cast by torch, against what is loaded.

The cast that judges is torch's, on the device that will use the model; nothing here is shared
with the casts it judges. NaN is compared by class, everything else bit by bit.
"""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from recast.errors import InputError, StorageError
from recast.terminal import shown
from recast.verification.dtypes import SOURCES, torch_floats
from recast.verification.header import Entry
from recast.verification.pickles import Unpickled
from recast.verification.tally import Tally

if TYPE_CHECKING:
    import torch

BLOCK = 4096
"""Elements at each end of a tensor, and in each random block."""
CHUNK = 32 << 20
"""Bytes of the source that are on the host and on the device at a time."""
WORKSPACE = 8 * CHUNK
"""The most bytes on the device that comparing a chunk requires, beside the model."""

Range = tuple[int, int]


def ranges(elements: int, samples: int | None, random_: random.Random) -> list[Range]:
    """What to compare of a tensor: `(start, end)` in elements, in order, without overlap.

    All of it where `samples` is `None`. Else both ends and `samples` of the blocks between them,
    drawn without replacement, so that a value between the ends is compared with the probability
    `samples / blocks`.
    """
    inner = elements - 2 * BLOCK
    if samples is None or inner <= 0:
        return [(0, elements)] if elements else []
    blocks = -(-inner // BLOCK)
    drawn = sorted(random_.sample(range(blocks), min(samples, blocks)))
    last = elements - BLOCK
    middle = [(BLOCK * (1 + block), min(BLOCK * (2 + block), last)) for block in drawn]
    return [(0, BLOCK), *middle, (last, elements)]


def batches(wanted: list[Range], limit: int) -> Iterator[list[Range]]:
    """`wanted` in lists of at most `limit` elements."""
    batch: list[Range] = []
    room = limit
    for start, end in wanted:
        while start < end:
            count = min(end - start, room)
            batch.append((start, start + count))
            start, room = start + count, room - count
            if not room:
                yield batch
                batch, room = [], limit
    if batch:
        yield batch


@dataclass(frozen=True)
class Wrong:
    """The first wrong value of a tensor, and how many of the compared are wrong."""

    index: int
    source: str
    source_bits: str
    expected_bits: str
    found_bits: str
    count: int


class Reader:
    """Reads ranges of tensors onto a device through one buffer of a fixed size."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        # From pinned memory a copy to a GPU runs at the speed of the bus.
        self.buffer = torch.empty(CHUNK, dtype=torch.uint8, pin_memory=device != "cpu")

    def read(self, path: Path, entry: Entry, wanted: list[Range]) -> "torch.Tensor":
        """The bytes of `wanted`, values or else bytes; valid until the next call."""
        if isinstance(entry, Unpickled):
            return self._unpickle(entry, wanted)
        try:
            return self._read(path, entry, wanted)
        except OSError as error:
            raise StorageError(f"{shown(path)}: cannot read: {error.strerror}") from error

    def _read(self, path: Path, entry: Entry, wanted: list[Range]) -> "torch.Tensor":
        view, at, width = self.buffer.numpy().data, 0, entry.width or 1
        with path.open("rb", buffering=0) as file:
            for start, end in wanted:
                position, left = entry.start + start * width, (end - start) * width
                while left:
                    count = os.preadv(file.fileno(), [view[at : at + left]], position)
                    if not count:
                        raise InputError(f"{shown(path)} ends before byte {position + left}")
                    at, position, left = at + count, position + count, left - count
        return self.buffer[:at].to(self.device)

    def _unpickle(self, entry: Unpickled, wanted: list[Range]) -> "torch.Tensor":
        at = 0
        for start, end in wanted:
            for piece in entry.pieces(start, end):
                place = self.buffer[at : at + piece.nbytes].view(piece.dtype)
                place.view(piece.shape).copy_(piece)
                at += piece.nbytes
        return self.buffer[:at].to(self.device)


def cast(x: "torch.Tensor", dtype: "torch.dtype", on_overflow: str) -> "torch.Tensor":
    """The floats `x` as a conversion must cast them, by torch on the device of `x`."""
    import torch

    if on_overflow == "saturate":
        # bf16 does not have fp16's largest value, so a clamp in bf16 would not clamp.
        wide, limit = x if x.dtype == torch.float64 else x.float(), torch.finfo(dtype).max
        x = torch.where(wide.isfinite(), wide.clamp(-limit, limit), wide)
    return x.to(dtype)


def differences(expected: "torch.Tensor", found: "torch.Tensor") -> "torch.Tensor":
    """Where two flat tensors of one dtype differ: by class for NaN, by bits for all else."""
    import torch

    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = integers[expected.element_size()]
    different = expected.view(bits) != found.view(bits)
    if expected.is_floating_point() and bool(different.any()):
        different &= ~(expected.isnan() & found.isnan())
    return different


def compare(
    read: Callable[[list[Range]], "torch.Tensor"],
    entry: Entry,
    stored: Entry,
    found: Callable[[list[Range]], "torch.Tensor"],
    wanted: list[Range],
    on_overflow: str,
    tally: Tally | None = None,
) -> tuple[int, Wrong | None]:
    """Compares ranges of a tensor; how many values, and what is wrong with them, if anything is.

    `entry` is the tensor in the source, `stored` the one in the result; `read(ranges)` gives its
    bytes in the source, `found(ranges)` its elements as they were loaded, flat, of the dtype they
    were loaded in. What is not a float, and what was loaded as it was stored, is compared byte by
    byte. A `tally` counts what becomes of a float that is cast.
    """
    import torch

    if not entry.elements:
        return 0, None
    is_float, width = entry.dtype in SOURCES, entry.width or 1
    checked = 0
    wrong: Wrong | None = None
    if not entry.width:
        # Values of 4 and 6 bits are compared as bytes.
        wanted = [(0, entry.bytes)]
    # The result is also read in batches, and may be the wider one.
    for batch in batches(wanted, CHUNK // max(width, stored.width)):
        raw, loaded = read(batch), found(batch)
        values = raw.view(torch_floats()[entry.dtype]) if is_float else raw
        if is_float and (entry.dtype != stored.dtype or loaded.dtype != values.dtype):
            # A loader may widen what is stored, or narrow what was kept, by a cast of its own.
            if tally is not None and entry.dtype != stored.dtype:
                tally.add(values, torch_floats()[stored.dtype])
            expected = cast(values, torch_floats()[stored.dtype], on_overflow).to(loaded.dtype)
            different = differences(expected, loaded)
        else:
            expected, loaded = raw, loaded.view(torch.uint8)
            different = (expected != loaded).view(-1, width).any(1)
        checked += different.numel()
        # Nearly always there is nothing to count, which takes longer than looking.
        count = int(different.sum()) if bool(different.any()) else 0
        if count and wrong is None:
            at = int(different.int().argmax())
            wrong = Wrong(
                index=_element(batch, at),
                source=str(values[at].item()) if is_float else "bytes",
                source_bits=_bits(raw, at, different.numel()),
                expected_bits=_bits(expected, at, different.numel()),
                found_bits=_bits(loaded, at, different.numel()),
                count=count,
            )
        elif wrong is not None:
            wrong = replace(wrong, count=wrong.count + count)
    return checked if entry.width else entry.elements, wrong


def chosen(flat: "torch.Tensor", batch: list[Range]) -> "torch.Tensor":
    """Ranges of a flat tensor, joined; by their bytes, because torch cannot join every dtype."""
    import torch

    parts = [flat[start:end] for start, end in batch]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.view(torch.uint8) for part in parts]).view(flat.dtype)


def _element(batch: list[Range], at: int) -> int:
    """Which element of the tensor is at position `at` of a batch."""
    for start, end in batch:
        if at < end - start:
            return start + at
        at -= end - start
    raise IndexError(at)


def _bits(held: "torch.Tensor", at: int, count: int) -> str:
    """The bits of one of `count` values, most significant first."""
    import torch

    width = held.nbytes // count
    value = held.view(torch.uint8)[at * width : (at + 1) * width]
    return "0x" + bytes(value.tolist())[::-1].hex().upper()
