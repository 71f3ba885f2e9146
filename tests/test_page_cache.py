"""A conversion of more than half of the memory that is left takes the page cache from nobody.

The judge is the system: `mincore` says which pages of a file are in memory. How much memory is left
is what `/proc/meminfo` says, so a file in its place, in a mount namespace, makes a model large.
"""

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import recast
from support import environment, fp32_bytes, raw_bytes, stored, tree

MIB = 1 << 20
ROWS = 4 * MIB
UNSHARE = ["unshare", "--map-root-user", "--mount"]


def cached(path: Path) -> float:
    """The share of a file that is in memory."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    with path.open("rb") as file:
        start = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    found = (ctypes.c_ubyte * pages)()
    whole = ctypes.c_void_p(start), ctypes.c_size_t(size)
    assert libc.mincore(*whole, found) == 0
    libc.munmap(*whole)
    return sum(page & 1 for page in found) / pages


def let_go(path: Path) -> None:
    """Puts a file on the disk, and out of memory."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_memory(path: Path) -> bool:
    """Whether a file is in a place without a disk, whose pages always stay."""
    let_go(path)
    return cached(path) > 0.5


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two files of 16 MiB, one of them in memory."""
    root = tmp_path / "model"
    root.mkdir()
    for seed, name in enumerate(("a", "b")):
        rows = [(name, "F32", [ROWS], fp32_bytes(ROWS, seed))]
        (root / f"{name}.safetensors").write_bytes(raw_bytes(rows, {"format": "pt"}, pad_to=8))
    (root / "config.json").write_text("{}")
    if in_memory(root / "b.safetensors"):
        pytest.skip("the temporary directory is in memory")
    let_go(root / "a.safetensors")
    (root / "b.safetensors").read_bytes()
    return root


def convert(
    source: Path, out: Path, available: int, *options: str, seen_at: Path | None = None
) -> None:
    """Converts where `/proc/meminfo` says that so many MiB are available.

    With `seen_at`, an empty directory, the source is read there, through an overlay.
    """
    fake = out.with_name("meminfo")
    fake.write_text(f"MemTotal: 99999999 kB\nMemAvailable:  {available * 1024} kB\n")
    script = 'mount --bind "$0" /proc/meminfo && exec "$@"'
    if seen_at is not None:
        layers = f"lowerdir={source}:{source.parent / 'empty'}"
        script = f"mount -t overlay overlay -o '{layers}' '{seen_at}' && {script}"
    ours = [sys.executable, "-m", "recast", "convert", seen_at or source, out, "--to", "bf16"]
    command = [*UNSHARE, "sh", "-c", script, fake, *ours]
    done = subprocess.run(
        [*map(str, command), *options],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"a file cannot be put in the place of /proc/meminfo: {done.stderr}")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
@pytest.mark.parametrize("options", [[], ["--no-sync"], ["--io", "mmap"], ["--sha256"]])
def test_what_is_large_does_not_stay_in_memory_and_what_was_there_does(
    options: list[str], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "large"
    convert(source, out, 95, *options)
    results = [out / "a.safetensors", out / "b.safetensors"]
    if "--no-sync" in options:
        # The pages go once they are on the disk.
        os.sync()
    assert max(map(cached, results)) < 0.1
    if "mmap" not in options:
        # The system reads on behind a header.
        assert cached(source / "a.safetensors") < 0.3
    assert cached(source / "b.safetensors") > 0.9
    let_go(source / "a.safetensors")
    small = tmp_path / "small"
    convert(source, small, 97, *options)
    assert min(cached(small / file.name) for file in results) > 0.9
    assert cached(source / "a.safetensors") > 0.9
    assert tree(out) == tree(small)
    reference = recast.convert(source, tmp_path / "here", to="bf16", sync=False)
    assert reference.audit["inexact_tensors"] == 2
    assert stored(out / "a.safetensors") == stored(tmp_path / "here" / "a.safetensors")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_what_was_in_memory_stays_where_the_system_cannot_read_past_it(
    source: Path, tmp_path: Path
) -> None:
    # An overlay, as in a container, refuses RWF_DONTCACHE, as every system before Linux 6.14 does.
    out, seen_at = tmp_path / "large", tmp_path / "overlay"
    for folder in (seen_at, tmp_path / "empty"):
        folder.mkdir()
    convert(source, out, 95, "--threads", "1", seen_at=seen_at)
    assert cached(source / "a.safetensors") < 0.3
    assert cached(source / "b.safetensors") > 0.9
    assert max(cached(out / f"{name}.safetensors") for name in "ab") < 0.1
