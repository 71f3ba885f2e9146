"""The structure of a result: what was promised, and what its files say, read without the core.

The promise comes from the plan. What is there is read here, in a few lines of Python and by the
safetensors library, because a check that used the core's reader would share its mistakes. Whatever
a result holds, no more of it is read than a file of its kind may have.
"""

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from recast._core import Plan, nesting
from recast.errors import InputError
from recast.terminal import shown

FLOATS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
SPELLINGS = {
    "fp32": {"fp32", "f32", "float32", "float"},
    "fp16": {"fp16", "f16", "float16", "half"},
    "bf16": {"bf16", "bfloat16"},
}

# The most bytes that are read: of a header by the format's rule, of all else by what makes sense.
MAX_HEADER = MAX_INDEX = MAX_REPORT = 100_000_000
MAX_CONFIG = 10_000_000
# As deep as the core reads JSON.
NESTING = 127
# More lines than this on one index help nobody.
LISTED = 20

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


@dataclass(frozen=True)
class Promise:
    """What a result must be. With `exact`, every dtype and size is known beforehand; without, a
    tensor may also have kept the source's dtype."""

    plan: Plan
    to: str | None
    """The dtype that configs and indexes must state; `None` where there is no float."""
    on_overflow: str
    exact: bool

    @property
    def source(self) -> Path:
        """The source: a directory or a file."""
        return Path(self.plan.source)

    def source_file(self, file: str) -> Path:
        """Where the source of the result's `file` is."""
        return self.source if self.source.is_file() else self.source / file


def read_header(path: Path) -> dict[str, Entry]:
    """A file's tensors in the order of their data. Raises `ValueError` for a damaged header."""
    with _open(path) as file:
        length = os.fstat(file.fileno()).st_size
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise ValueError(
                f"the header has {size} bytes, over the format's limit of {MAX_HEADER}"
            )
        if size > length - 8:
            raise ValueError(f"the header has {size} bytes, the file {length}")
        header = json.loads(_flat(file.read(size)), object_pairs_hook=_unique)
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
    """A JSON object. Raises `ValueError` where readers may differ in what it says."""
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
    # A bool is an int to Python, and no number to any other reader.
    if not all(type(number) is int and 0 <= number < 1 << 64 for number in (*shape, start, end)):
        raise TypeError("an extent or an offset is not a number of 64 bits")
    return Entry(dtype, tuple(shape), data + start, data + end)


def read_headers(root: Path, problems: list[str]) -> Headers:
    """The headers of all shards below `root`; those that are damaged become problems."""
    headers: Headers = {}
    for file in shards(root):
        try:
            entries = read_header(root / file)
            _check_with_safetensors(root / file, entries)
            headers[file] = entries
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{shown(file)} is damaged: {error}")
    return headers


def _check_with_safetensors(path: Path, entries: dict[str, Entry]) -> None:
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


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        # Hidden folders are no part of a model; recast's own staging folder is one of them.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            yield os.path.relpath(os.path.join(folder, name), root)


def shards(root: Path) -> list[str]:
    """The paths of all safetensors files below `root`, hidden folders aside."""
    return [file for file in _walk(root) if file.endswith(".safetensors")]


def is_index(file: str) -> bool:
    """Whether a file name is that of an index of safetensors shards."""
    return file.endswith(".json") and ".safetensors.index." in os.path.basename(file)


def infer_target(before: Mapping[Key, str], after: Mapping[Key, str]) -> str | None:
    """The dtype that tensors were cast to, by majority, of the dtypes of source and result.

    Where no tensor was cast it is the dtype most floats have; `None` where there is no float.
    """
    floats = {key: dtype for key, dtype in after.items() if dtype in FLOATS}
    cast = [dtype for key, dtype in floats.items() if before.get(key) in FLOATS.keys() - {dtype}]
    ranked = Counter(cast or floats.values()).most_common(1)
    return FLOATS[ranked[0][0]] if ranked else None


def check(promise: Promise, dest: Path, headers: Headers) -> list[str]:
    """Everything in which the structure of `dest` differs from what was promised."""
    problems = []
    planned = {file.path: file for file in promise.plan.files}
    for file, facts in planned.items():
        path = dest / file
        if not path.is_file():
            problems.append(f"{shown(file)} is missing")
        elif promise.exact and facts.action == "cast" and path.stat().st_size != facts.bytes:
            found = path.stat().st_size
            problems.append(f"{shown(file)} has {found} bytes, planned were {facts.bytes}")
    for file in sorted(set(shards(dest)) - planned.keys()):
        problems.append(f"{shown(file)} is stale or extra: the source has no such shard")
    known = {file: entries for file, entries in headers.items() if file in planned}
    problems += _check_tensors(promise, known)
    for file in _walk(dest):
        if is_index(file):
            problems += _check_index(promise, dest, file, headers)
        elif os.path.basename(file) == "config.json" and file in planned:
            problems += _check_config(promise, dest, file)
    return problems


def _check_tensors(promise: Promise, headers: Headers) -> list[str]:
    """In what the tensors of the promised files differ."""
    problems = []
    extra = {(file, name) for file, entries in headers.items() for name in entries}
    for tensor in promise.plan.tensors:
        if tensor.file not in headers:
            continue
        extra.discard((tensor.file, tensor.name))
        entry = headers[tensor.file].get(tensor.name)
        where = f"'{shown(tensor.name)}' in {shown(tensor.file)}"
        if entry is None:
            problems.append(f"tensor {where} is missing")
            continue
        if entry.shape != tuple(tensor.shape):
            there, here = shown(list(entry.shape)), shown(tensor.shape)
            problems.append(f"tensor {where} has shape {there}, the source {here}")
        kept = not promise.exact and entry.dtype == tensor.source_dtype
        if entry.dtype != tensor.dtype and not kept:
            problems.append(f"tensor {where} is {entry.dtype}, promised was {tensor.dtype}")
    problems += [
        f"tensor '{shown(name)}' in {shown(file)} is not in the source"
        for file, name in sorted(extra)
    ]
    return problems


def read_json(path: Path, limit: int) -> Any:
    """What a JSON file holds. Raises `OSError` or `ValueError` where it is none, or where it has
    more than `limit` bytes."""
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        # The limit holds also where the file grows, or has no length until it is read.
        data = file.read(limit + 1) if size <= limit else b""
    if (size := max(size, len(data))) > limit:
        raise ValueError(f"it has {size} bytes, and recast reads at most {limit} of such a file")
    return json.loads(_flat(data))


def _flat(data: bytes) -> str:
    """`data` as text. Raises `ValueError` where it is nested so deep that Python's reader, which
    calls itself, could run out of stack: the limit that should stop it is anybody's to raise."""
    if (depth := nesting(data)) > NESTING:
        raise ValueError(f"it is nested {depth:,} levels deep")
    return data.decode()


def _open(path: Path) -> IO[bytes]:
    """The regular file at `path`. Raises `ValueError` for a pipe, which would be waited for, and
    for a device."""
    # Looked at first, because opening a device can do anything; and again once it is open, because
    # it may have been replaced in between.
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    wait_for_nobody = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | wait_for_nobody))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def _read_source(promise: Promise, file: str, limit: int) -> Any:
    """What a JSON file of the source holds, which was JSON when the promise was made."""
    try:
        return read_json(promise.source_file(file), limit)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{shown(promise.source)} changed meanwhile: {shown(error)}") from error


def _float(value: Any) -> str | None:
    """`fp32`, `fp16` or `bf16` where a config's value is a spelling of it."""
    if not isinstance(value, str):
        return None
    word = value.lower().removeprefix("torch.")
    return next((name for name, words in SPELLINGS.items() if word in words), None)


def _stated(value: Any, at: str = "") -> dict[str, str]:
    """Every float dtype that a config states, by the path of its key."""
    found = {}
    for key, inner in value.items() if isinstance(value, dict) else ():
        path = f"{at}.{key}" if at else key
        if isinstance(inner, dict):
            found.update(_stated(inner, path))
        elif key in ("dtype", "torch_dtype") and (name := _float(inner)):
            found[path] = name
    return found


def _check_config(promise: Promise, dest: Path, file: str) -> list[str]:
    try:
        stated = _stated(read_json(dest / file, MAX_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        return [f"{shown(file)} is not JSON: {shown(error)}"]
    before = _stated(_read_source(promise, file, MAX_CONFIG))
    return [
        f"{shown(file)} states {shown(key)} = {stated.get(key)}, promised was {promise.to}"
        for key in sorted(before.keys() | stated.keys())
        if promise.to and stated.get(key) != promise.to
    ]


def _check_index(promise: Promise, dest: Path, file: str, headers: Headers) -> list[str]:
    """What an index says that the shards beside it, or the source's index, do not."""
    called = shown(file)
    if not promise.source_file(file).is_file() or promise.source.is_file():
        return [f"{called} is stale or extra: the source has no such index"]
    try:
        index = read_json(dest / file, MAX_INDEX)
        weight_map, metadata = dict(index["weight_map"]), dict(index.get("metadata") or {})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return [f"{called} is not an index: {shown(repr(error))}"]
    problems, lost, total = [], 0, 0
    folder = os.path.dirname(file)
    for name, shard in weight_map.items():
        entry = headers.get(os.path.join(folder, str(shard)), {}).get(name)
        if entry is not None:
            total += entry.bytes
            continue
        lost += 1
        if lost <= LISTED:
            where = shown(shard)
            problems.append(f"{called} says that '{shown(name)}' is in {where}, where it is not")
    if lost > LISTED:
        problems.append(f"{called}: the same for {lost - LISTED:,} more tensors")
    if weight_map != _read_source(promise, file, MAX_INDEX)["weight_map"]:
        problems.append(f"{called} maps other tensors or to other shards than the source's")
    size = metadata.get("total_size")
    if not problems and size != total:
        problems.append(
            f"{called} states total_size = {shown(size)}, the tensors have {total} bytes"
        )
    stated = _float(metadata.get("dtype"))
    if promise.to and stated not in (None, promise.to):
        problems.append(f"{called} states dtype = {stated}, promised was {promise.to}")
    return problems
