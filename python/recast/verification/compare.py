"""Comparing the values of all tensors of a result with those of its source."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from recast.options import Progress
from recast.verification import values
from recast.verification.dequantized import Dequantized, Products
from recast.verification.dtypes import FLOATS, SOURCES, torch_floats
from recast.verification.header import Entry, Headers, Key
from recast.verification.loaders import Loader
from recast.verification.promise import Promise
from recast.verification.result import Mismatch
from recast.verification.tally import Tally

if TYPE_CHECKING:
    import torch


@dataclass
class Comparison:
    """How much was compared, and what is wrong."""

    tensors: int = 0
    values: int = 0
    total: int = 0
    """The values that the compared tensors have."""
    mismatches: list[Mismatch] = field(default_factory=list)
    tallies: dict[Key, Tally] = field(default_factory=dict)
    """What became of the values that were cast, where all were compared."""


class _Pair(NamedTuple):
    """A tensor of the source, the one in the result, and what to compare of them."""

    file: str
    name: str
    entry: Entry
    stored: Entry
    wanted: list[values.Range]
    weight: Dequantized | None = None
    """What it must be made of, where it is dequantized; `entry` is that of its exact values."""

    @property
    def bytes(self) -> int:
        """How many bytes of the source are compared."""
        compared = sum(end - start for start, end in self.wanted)
        entry = self.weight.codes.entry if self.weight else self.entry
        return entry.bytes * compared // max(1, self.entry.elements)


def compare(
    promise: Promise,
    root: Path,
    headers: Headers,
    loader: Loader | None,
    device: str,
    *,
    samples: int | None,
    seed: int,
    counts: bool,
    progress: Progress | None,
) -> Comparison:
    """Compares the tensors of the result below `root`: as `loader` loaded them, or else, and
    without a loader, as they are in their files. `samples` is that of `values.ranges`; `counts`
    says whether to count what casts did, which is complete where every value is compared."""
    reader, files = values.Reader(device), values.Reader(device)
    pairs = list(_pairs(promise, headers, samples, seed))
    to_do = sum(pair.bytes for pair in pairs)
    found, done = Comparison(), 0
    for pair in pairs:
        loaded = loader.find((pair.file, pair.name)) if loader else None
        if loaded is None:
            elements = _stored(files, root / pair.file, pair.stored)
        else:
            elements = partial(values.chosen, loaded.detach().reshape(-1))
        read: Callable[[list[values.Range]], torch.Tensor]
        if pair.weight is not None:
            read = Products(pair.weight, reader)
        else:
            read = partial(reader.read, promise.source.file(pair.file), pair.entry)
        tally = None
        if counts and pair.entry.dtype != pair.stored.dtype:
            tally = found.tallies[pair.file, pair.name] = Tally(pair.weight is not None)
        count, wrong = values.compare(
            read,
            pair.entry,
            pair.stored,
            elements,
            pair.wanted,
            promise.intent.on_overflow,
            tally,
        )
        found.tensors += 1
        found.values += count
        found.total += pair.entry.elements
        if wrong is not None:
            found.mismatches.append(Mismatch(pair.name, pair.file, **vars(wrong), compared=count))
        done += pair.bytes
        if progress is not None:
            progress(done, to_do)
    return found


def _pairs(promise: Promise, headers: Headers, samples: int | None, seed: int) -> Iterator[_Pair]:
    """The tensors whose values can be compared: a wrong shape, or a dtype that no cast gives, is a
    problem of the structure."""
    weights = promise.source.quantized if promise.dequantizes else {}
    sources = {
        (file, name): entry
        for file, entries in promise.headers.items()
        for name, entry in entries.items()
    }
    sources |= {key: _exact(weight) for key, weight in weights.items()}
    for (file, name), entry in sources.items():
        stored = headers.get(file, {}).get(name)
        if stored is None or stored.shape != entry.shape:
            continue
        if stored.dtype == entry.dtype or (stored.dtype in FLOATS and entry.dtype in SOURCES):
            # The name of a file may not be UTF-8.
            drawn_from = f"{seed}/{file}/{name}".encode(errors="surrogateescape")
            wanted = values.ranges(entry.elements, samples, random.Random(drawn_from))
            yield _Pair(file, name, entry, stored, wanted, weights.get((file, name)))


def _exact(weight: Dequantized) -> Entry:
    """A dequantized weight as a tensor of the source: its values before any rounding are fp64."""
    return Entry("F64", weight.shape, 0, 8 * math.prod(weight.shape))


def _stored(
    files: values.Reader, path: Path, entry: Entry
) -> Callable[[list[values.Range]], "torch.Tensor"]:
    """The elements of a tensor that is not loaded, from its file."""
    import torch

    dtype = torch_floats().get(entry.dtype, torch.uint8)
    return lambda batch: files.read(path, entry, batch).view(dtype)
