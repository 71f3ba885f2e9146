"""Headers of safetensors files, read without the core.

A check that used the core's reader would share its mistakes, so headers are read here, in a few
lines of Python, and compared with what the safetensors library reads.
"""

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recast.terminal import shown
from recast.verification.files import MAX_HEADER, checked_depth, open_regular, shards

Key = tuple[str, str]
"""A tensor: the path of its file below the root, and its name."""


@dataclass(frozen=True)
class Entry:
    """A tensor as a header describes it; `start` and `end` are positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        """The length of its data."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """How many values it has; 1 for shape `[]`."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """The bytes of one value; 0 for values of less than a byte, and where there are none."""
        width, rest = divmod(self.bytes, max(1, self.elements))
        return 0 if rest else width


Headers = dict[str, dict[str, Entry]]
"""The tensors of each file, by its path below the root, in the order of their data."""


def read_header(path: Path) -> dict[str, Entry]:
    """A file's tensors in the order of their data. Raises `ValueError` for a damaged header."""
    with open_regular(path) as file:
        length = os.fstat(file.fileno()).st_size
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise ValueError(
                f"the header has {size} bytes, over the format's limit of {MAX_HEADER}"
            )
        if size > length - 8:
            raise ValueError(f"the header has {size} bytes, the file {length}")
        header = json.loads(checked_depth(file.read(size)), object_pairs_hook=_unique)
    entries = {}
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                entries[name] = _entry(entry, 8 + size)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = shown(error)
        raise ValueError(f"the header is not a safetensors header: {reason}") from error
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    at = 8 + size
    for name, entry in ordered.items():
        if entry.start != at or entry.end < at:
            raise ValueError(
                f"the data of tensor '{shown(name)}' is not where the one before it ends"
            )
        at = entry.end
    if at != length:
        raise ValueError(f"the tensors end at byte {at}, the file at {length}")
    return ordered


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises `ValueError` for duplicate names, which readers resolve differently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the header has '{shown(name)}' more than once")
    return found


def _entry(fields: Any, data: int) -> Entry:
    """The tensor that `fields` describe, in a file whose data begin at byte `data`."""
    dtype, shape, (start, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not (isinstance(dtype, str) and isinstance(shape, list)):
        raise TypeError("a dtype is not a string, or a shape not a list")
    # A bool is an int to Python, and not a number to any other reader.
    if not all(type(number) is int and 0 <= number < 1 << 64 for number in (*shape, start, end)):
        raise TypeError("an extent or an offset is not a number of 64 bits")
    return Entry(dtype, tuple(shape), data + start, data + end)


def read_metadata(path: Path) -> dict[str, str]:
    """What a file says beside its tensors, as the safetensors library reads it."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return file.metadata() or {}


def plain_size(entries: dict[str, Entry], metadata: dict[str, str]) -> int:
    """The bytes of a file with these tensors, in this order, as the safetensors library writes it:
    without spaces, and the header padded to a multiple of 8."""
    first = min((entry.start for entry in entries.values()), default=0)
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for name, entry in entries.items():
        offsets = [entry.start - first, entry.end - first]
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
    length = len(text.encode(errors="surrogatepass"))
    return 8 + -(-length // 8) * 8 + sum(entry.bytes for entry in entries.values())


def read_headers(root: Path) -> tuple[Headers, dict[str, str]]:
    """The headers of all shards below `root`, and why those that are damaged cannot be read."""
    headers: Headers = {}
    damaged = {}
    for file in shards(root):
        try:
            entries = read_header(root / file)
            compare_with_safetensors(root / file, entries)
            headers[file] = entries
        except (OSError, ValueError, RecursionError) as error:
            damaged[file] = shown(error)
    return headers, damaged


def compare_with_safetensors(path: Path, entries: dict[str, Entry]) -> None:
    """Raises `ValueError` unless the safetensors library reads the same header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            same = set(file.keys()) == set(entries) and all(
                tuple(file.get_slice(name).get_shape()) == entry.shape
                for name, entry in entries.items()
            )
    except (SafetensorError, TypeError, OverflowError) as error:
        raise ValueError(f"safetensors does not open it: {shown(error)}") from error
    if not same:
        raise ValueError("safetensors reads other tensors in it")
