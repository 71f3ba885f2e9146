"""Finding and reading the files of a result, which may come from anybody.

Of a file no more is read than a file of its kind may have, and only regular files are opened.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from recast._core import nesting

# The most bytes that are read: of a header by the format's rule, of all else by what makes sense.
MAX_HEADER = MAX_INDEX = MAX_REPORT = 100_000_000
MAX_CONFIG = 10_000_000
# As deep as the core reads JSON.
NESTING = 500
# What Python reads by default has no more.
DIGITS = 4300


def walk(root: Path) -> Iterator[str]:
    """The paths of all files below `root`, hidden folders aside."""
    for folder, folders, files in os.walk(root):
        # Hidden folders are no part of a model; recast's own staging folder is one of them.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            yield os.path.relpath(os.path.join(folder, name), root)


def shards(root: Path) -> list[str]:
    """The paths of all safetensors files below `root`, hidden folders aside."""
    return [file for file in walk(root) if file.endswith(".safetensors")]


def is_index(file: str) -> bool:
    """Whether a file name is that of an index of safetensors shards."""
    return file.endswith(".json") and ".safetensors.index." in os.path.basename(file)


def open_regular(path: Path) -> IO[bytes]:
    """The regular file at `path`. Raises `ValueError` for a pipe, on which reading would wait, and
    for a device."""
    # Checked first, because opening a device can do anything; and again once it is open, because
    # it may have been replaced in between.
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def read_json(path: Path, limit: int) -> Any:
    """The value in a JSON file. Raises `OSError` or `ValueError` where it is not JSON, or has more
    than `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # The limit also holds where the file grows, or has no length until it is read.
        data = file.read(limit + 1) if size <= limit else b""
    if (size := max(size, len(data))) > limit:
        raise ValueError(f"it has {size} bytes, and recast reads at most {limit} of such a file")
    return json.loads(checked_depth(data), parse_int=_whole)


def _whole(digits: str) -> int | str:
    """A whole number; as it is written where Python reads no number of so many digits."""
    return int(digits) if len(digits) <= DIGITS else digits


def checked_depth(data: bytes) -> str:
    """`data` as text. Raises `ValueError` where its JSON is nested too deeply: Python's parser is
    recursive, and its own limit can be raised by anybody until the stack overflows."""
    if (depth := nesting(data)) > NESTING:
        raise ValueError(f"it is nested {depth:,} levels deep, and recast reads at most {NESTING}")
    return data.decode()
