"""What the tests of hostile input share: a refusal that leaves nothing, a file nothing may open."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import recast
from support import raw_bytes

SHARD = "model.safetensors"
# Not that of model.safetensors, beside which an index of shards that are missing is left over.
INDEX = "shards.safetensors.index.json"
CANARY = raw_bytes([("w", "F32", [1], b"bird")])
IN_OPEN = 0x20


@contextmanager
def unopened(*paths: Path) -> Iterator[None]:
    """The kernel's word that nothing opens `paths` meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_NONBLOCK)
    assert watcher >= 0
    try:
        for path in paths:
            assert libc.inotify_add_watch(watcher, os.fsencode(path), IN_OPEN) >= 0
        yield
        with pytest.raises(BlockingIOError):
            os.read(watcher, 4096)
    finally:
        os.close(watcher)


def state(path: Path) -> dict[Path, tuple[int, ...]]:
    """Every entry below `path` with what a write would change, found without opening anything."""
    stats = {entry: entry.lstat() for entry in path.rglob("*")}
    return {entry: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for entry, s in stats.items()}


def refused(source: Path, exception: type[recast.RecastError], *says: str) -> None:
    """Both commands refuse `source`, say so alike, and change nothing at all."""
    before, out = state(source.parent), source.parent / "out"
    messages = set()
    for attempt in (recast.inspect, lambda path: recast.convert(path, out, to="bf16")):
        with pytest.raises(recast.RecastError) as caught:
            attempt(source)
        assert type(caught.value) is exception, caught.value
        assert caught.value.exit_code == 65
        assert caught.value.hint
        messages.add(caught.value.message)
    (message,) = messages
    assert len(message) < 2000
    for words in says:
        assert words in message
    assert not out.exists()
    assert state(source.parent) == before
