"""What can happen to a file of the source between two runs: the same bytes, or others."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def edited(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\x80\x3f")


def edited_secretly(path: Path) -> None:
    """The same inode, length and time of the last write."""
    before = path.stat()
    edited(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


def copied(path: Path) -> None:
    """Another inode; the same bytes and times."""
    shutil.copy2(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)


def replaced_by_another(path: Path) -> None:
    """As a download of another version: another inode, the same length."""
    copied(path)
    edited_secretly(path)


def relabeled(path: Path) -> None:
    """The names of two tensors trade places; the same inode, length and times."""
    before, data = path.stat(), path.read_bytes()
    for old, new in ((b"1.weight", b"1.NORM"), (b"1.norm", b"1.weight"), (b"1.NORM", b"1.norm")):
        data = data.replace(old, new)
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


SAME: dict[str, Callable[[Path], object]] = {
    "touched": lambda path: path.touch(),
    "copied": copied,
    "linked": lambda path: os.link(path, path.parent.with_suffix(".link")),
    "mode": lambda path: path.chmod(0o600),
}
OTHER: dict[str, Callable[[Path], object]] = {
    "edited": edited,
    "edited secretly": edited_secretly,
    "replaced": replaced_by_another,
}
