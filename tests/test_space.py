"""A disk that is too small is seen before anything is written; one that fills up harms nothing."""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from interrupted import (
    MIB,
    assert_whole,
    content,
    convert,
    converted,
    finish,
    runs,
    sharded,
    slow,
    staged,
    stands_still,
    start,
    stopped_midway,
    wait_for,
)
from support import tree

BLOCK = os.sysconf("SC_PAGE_SIZE")
OWN = 16 * BLOCK
"""Room for what is no part of the result: notes, seals, the report."""


class Disk:
    """A file system in memory of which the test says how much is free."""

    def __init__(self, path: Path) -> None:
        self.path, self.dest, self.filler = path, path / "out", path / "filler"
        path.mkdir()
        self.mount("size=1m")

    def mount(self, options: str) -> None:
        run = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        result = subprocess.run(run, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            pytest.skip(f"cannot mount a small file system: {result.stderr.strip()}")

    @property
    def free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def leave(self, free: int) -> None:
        """Makes `free` bytes free: all, but for a file that stands for others' data."""
        self.filler.unlink(missing_ok=True)
        size = os.statvfs(self.path).f_blocks * BLOCK - self.free + free + MIB
        self.mount(f"remount,size={size}")
        with self.filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.free - free)
        assert self.free == free

    def fill(self) -> None:
        """Takes all that is free, also what a running process gives back meanwhile."""
        with self.filler.open("ab", buffering=0) as file:
            for size in (MIB, BLOCK):
                block = bytes(size)
                try:
                    while file.write(block) == size:
                        pass
                except OSError:
                    continue

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], capture_output=True, check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.unmount()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(tmp_path_factory.mktemp("space") / "in", [MIB] * 8)


@pytest.fixture(scope="module")
def expected(source: Path) -> dict[str, bytes]:
    return converted(source, source.parent / "clean")


def blocks(files: dict[str, bytes]) -> int:
    return sum(-(-len(data) // BLOCK) * BLOCK for data in files.values())


@pytest.mark.parametrize("percent", [0, 25, 50, 75, 99, 100])
def test_a_result_that_does_not_fit_is_refused_before_it_is_published(
    percent: int, disk: Disk, source: Path, expected: dict[str, bytes]
) -> None:
    """At 100 %, one block is missing. With more room the same command succeeds."""
    needed = blocks(expected)
    free = needed * percent // 100 // BLOCK * BLOCK - (BLOCK if percent == 100 else 0)
    disk.leave(free)
    result = convert(source, disk.dest)
    assert result.returncode == 73, result.stderr
    assert not disk.dest.exists()
    said = re.search(r"needs (\d+) more bytes, but only (\d+) are free", result.stderr)
    assert said, result.stderr
    assert int(said[1]) == needed
    assert free - OWN <= int(said[2]) <= free
    assert "hint: " in result.stderr
    assert disk.free == free
    disk.mount(f"remount,size={128 * MIB}")
    assert convert(source, disk.dest).returncode == 0
    assert_whole(disk.dest, expected)


def test_a_result_that_just_fits_is_made(
    disk: Disk, source: Path, expected: dict[str, bytes]
) -> None:
    disk.leave(blocks(expected) + OWN)
    result = convert(source, disk.dest)
    assert result.returncode == 0, result.stderr
    assert_whole(disk.dest, expected)


@pytest.mark.parametrize("more", range(4))
def test_a_result_that_barely_fits_is_whole_or_not_there(
    more: int, disk: Disk, source: Path, expected: dict[str, bytes]
) -> None:
    """The notes, the seals and the report take a block each, at least."""
    disk.leave(blocks(expected) + more * BLOCK)
    result = convert(source, disk.dest)
    assert result.returncode in (0, 73), result.stderr
    found = content(disk.dest)
    assert found == (expected if "config.json" in found else {})
    assert result.returncode == 73 or found == expected
    disk.filler.unlink()
    assert convert(source, disk.dest).returncode == 0
    assert_whole(disk.dest, expected)


def test_a_full_disk_stops_the_run_and_with_room_it_continues(disk: Disk, tmp_path: Path) -> None:
    source = slow(tmp_path / "in")
    expected = converted(source, tmp_path / "clean")
    disk.mount(f"remount,size={64 * MIB}")
    process = stopped_midway(source, disk.dest)
    disk.fill()
    process.send_signal(signal.SIGCONT)
    result = finish(process)
    assert result.returncode == 73, result.stderr
    assert "No space left" in result.stderr
    assert "the same command" in result.stderr
    assert content(disk.dest) == {}
    before = staged(disk.dest)
    assert before
    disk.fill()
    assert convert(source, disk.dest).returncode == 73
    assert content(disk.dest) == {}
    disk.filler.unlink()
    result = convert(source, disk.dest, "--json")
    assert result.returncode == 0, result.stderr
    assert f'"resumed_files": {len(before)}' in result.stdout
    assert_whole(disk.dest, expected)


def test_whenever_a_disk_fills_up_no_partial_model_is_published(
    disk: Disk, source: Path, expected: dict[str, bytes]
) -> None:
    """At random moments of the run, publication and the report included."""
    choose = random.Random(0)
    for number in range(8):
        note = f"seed 0, run {number}"
        disk.leave(blocks(expected) + OWN)
        process = start(source, disk.dest, "--threads", 1)
        wait_for(process, lambda: bool(runs(disk.dest)))
        time.sleep(choose.uniform(0, 0.01))
        if stands_still(process):
            disk.fill()
            process.send_signal(signal.SIGCONT)
        result = finish(process)
        assert result.returncode in (0, 73), f"{note}: {result.stderr}"
        found = content(disk.dest)
        if result.returncode == 0:
            assert_whole(disk.dest, expected, note)
        elif "config.json" in found:
            assert found == expected, note
        disk.filler.unlink()
        result = convert(source, disk.dest)
        assert result.returncode == 0, f"{note}: {result.stderr}"
        assert_whole(disk.dest, expected, note)
        subprocess.run(["rm", "-r", str(disk.dest)], check=True)


def test_making_room_for_itself_counts(
    disk: Disk, source: Path, expected: dict[str, bytes]
) -> None:
    """What a killed run left half done is not needed twice."""
    disk.leave(blocks(expected) + OWN)
    for delay in (0.0, 0.002, 0.004, 0.008):
        process = start(source, disk.dest, "--threads", 1)
        wait_for(process, lambda: len(staged(disk.dest)) > 0)
        time.sleep(delay)
        process.kill()
        finish(process)
    result = convert(source, disk.dest)
    assert result.returncode == 0, result.stderr
    assert_whole(disk.dest, expected)


def test_an_old_model_stays_when_there_is_no_room_beside_it(
    disk: Disk, source: Path, expected: dict[str, bytes]
) -> None:
    disk.mount(f"remount,size={64 * MIB}")
    assert convert(source, disk.dest, "--to", "fp16").returncode == 0
    before = tree(disk.dest)
    disk.leave(blocks(expected) - BLOCK)
    result = convert(source, disk.dest, "--overwrite")
    assert result.returncode == 73
    assert "are free" in result.stderr
    assert tree(disk.dest) == before
    disk.filler.unlink()
    assert convert(source, disk.dest, "--overwrite").returncode == 0
    assert_whole(disk.dest, expected)
