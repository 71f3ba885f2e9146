"""Others at work on the source or at the destination: a right result or a refusal, never a mix."""

import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from interrupted import (
    HANG,
    MIB,
    assert_loads,
    assert_whole,
    content,
    convert,
    converted,
    finish,
    killed_midway,
    shard_name,
    sharded,
    slow,
    staged,
    start,
    stopped_midway,
)
from support import tree

SHARDS = 6

Change = Callable[[Path, Path], object]


def edit(path: Path, _: Path) -> None:
    """The last value becomes 1, in place and in one call."""
    file = os.open(path, os.O_WRONLY)
    os.pwrite(file, b"\0\0\x80\x3f", path.stat().st_size - 4)
    os.close(file)


CHANGES: dict[str, Change] = {
    "cut in half": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "cut to nothing": lambda path, _: os.truncate(path, 0),
    "rewritten": lambda path, other: path.write_bytes(other.read_bytes()),
    "edited": edit,
    "replaced": lambda path, other: os.replace(other, path),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(tmp_path_factory.mktemp("races") / "in", [MIB] * SHARDS)


@pytest.fixture(scope="module")
def expected(source: Path) -> dict[str, bytes]:
    return converted(source, source.parent / "clean")


@pytest.mark.slow
def test_a_source_that_changes_meanwhile_is_converted_whole_or_refused(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """50 random moments. One before the source is looked at makes it another, as good source."""
    other = sharded(tmp_path / "other", [MIB] * SHARDS, seed=100)
    choose, usual = random.Random(0), usual_time(source, tmp_path / "usual")
    outcomes: collections.Counter[tuple[str, int]] = collections.Counter()
    for number in range(50):
        work, dest = tmp_path / f"in-{number}", tmp_path / f"out-{number}"
        name = shard_name(choose.randint(1, SHARDS), SHARDS)
        # Only one file is changed; the others may as well be shared.
        shutil.copytree(source, work, copy_function=os.link)
        (work / name).unlink()
        shutil.copy(source / name, work)
        what, change = list(CHANGES.items())[number % len(CHANGES)]
        replacement = tmp_path / "replacement"
        shutil.copy(other / name, replacement)
        moment = choose.uniform(0.3, 1.1) * usual
        process = start(work, dest, "--io", "read", "--threads", 1)
        time.sleep(moment)
        change(work / name, replacement)
        result = finish(process)
        note = f"seed 0, run {number}: {name} {what} after {moment:.4f} s"
        outcomes[what, result.returncode] += 1
        assert result.returncode in (0, 65, 74), f"{note}: {result.stderr}"
        if result.returncode == 0:
            made = content(dest)
            assert_whole(dest, made, note)
            if made != expected:
                # The source as it is now; for one that was cut, there is no such result.
                assert_loads(dest, work)
        else:
            assert name in result.stderr, note
            assert not dest.exists(), note
        shutil.rmtree(work)
        shutil.rmtree(dest, ignore_errors=True)
    assert {code for _, code in outcomes} >= {0, 65}, outcomes


def usual_time(source: Path, dest: Path) -> float:
    times = []
    for _ in range(3):
        started = time.monotonic()
        assert finish(start(source, dest, "--io", "read", "--threads", 1)).returncode == 0
        times.append(time.monotonic() - started)
        shutil.rmtree(dest)
    return sorted(times)[1]


def test_two_equal_runs_at_one_destination_both_succeed(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """The second joins in, or finds the result done."""
    dest = tmp_path / "out"
    choose = random.Random(0)
    for number in range(20):
        runs = [start(source, dest)]
        # At once, and so much later that the other is anywhere on its way.
        time.sleep(0 if number % 2 else choose.uniform(0, 0.1))
        runs.append(start(source, dest))
        results = [finish(run) for run in runs]
        note = f"seed 0, run {number}: {[result.stderr for result in results]}"
        assert [result.returncode for result in results] == [0, 0], note
        done = ["already done" in result.stdout for result in results]
        assert False in done, note
        assert_whole(dest, expected, note)
        shutil.rmtree(dest)


def test_of_two_conversions_at_one_destination_one_is_the_result(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    models = {"bf16": expected, "fp16": converted(source, tmp_path / "clean", "--to", "fp16")}
    dest = tmp_path / "out"
    for number in range(10):
        order = ("bf16", "fp16") if number % 2 else ("fp16", "bf16")
        runs = {to: start(source, dest, "--to", to) for to in order}
        results = {to: finish(run) for to, run in runs.items()}
        note = f"run {number}: {[result.stderr for result in results.values()]}"
        winners = [to for to in order if results[to].returncode == 0]
        assert len(winners) == 1, note
        loser = "bf16" if winners == ["fp16"] else "fp16"
        assert results[loser].returncode == 73, note
        said = results[loser].stderr
        reasons = ("another conversion", "another unfinished conversion", "by another process")
        assert any(reason in said for reason in reasons), note
        assert "hint: " in said, note
        assert_whole(dest, models[winners[0]], note)
        shutil.rmtree(dest)


def test_a_killed_run_does_not_block_the_next(tmp_path: Path) -> None:
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    expected = converted(source, tmp_path / "clean")
    assert killed_midway(source, dest)
    result = convert(source, dest)
    assert result.returncode == 0, result.stderr
    assert_whole(dest, expected)


def test_a_killed_run_that_nobody_waited_for_does_not_block_the_next(tmp_path: Path) -> None:
    """A zombie has a process number and a start time; nothing asks for either."""
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    process = stopped_midway(source, dest)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    result = convert(source, dest)
    finish(process)
    assert result.returncode == 0, result.stderr
    assert_loads(dest, source)


@pytest.mark.parametrize("options", [(), ("--overwrite",)], ids=["", "--overwrite"])
def test_a_run_that_stands_still_is_joined_by_its_like(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    """The other one uses what is staged, and ends; the first goes on and finds it done."""
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    expected = converted(source, tmp_path / "clean")
    process = stopped_midway(source, dest)
    names = staged(dest)
    result = convert(source, dest, "--json", *options)
    assert result.returncode == 0, result.stderr
    assert f'"resumed_files": {len(names)}' in result.stdout
    assert_whole(dest, expected)
    process.send_signal(signal.SIGCONT)
    result = finish(process)
    assert result.returncode == 0, result.stderr
    assert "already done" in result.stdout
    assert_whole(dest, expected)


def test_only_overwrite_displaces_a_run_that_stands_still(
    tmp_path: Path,
) -> None:
    """And then does no harm to the other's result, and says that it is not its own."""
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    other = converted(source, tmp_path / "clean", "--to", "fp16")
    process = stopped_midway(source, dest)
    before = tree(dest)
    result = convert(source, dest, "--to", "fp16")
    assert result.returncode == 73, result.stderr
    assert "contains another unfinished conversion" in result.stderr
    assert tree(dest) == before
    result = convert(source, dest, "--to", "fp16", "--overwrite")
    assert result.returncode == 0, result.stderr
    assert_whole(dest, other)
    process.send_signal(signal.SIGCONT)
    result = finish(process)
    assert result.returncode == 73, result.stderr
    assert "hint: " in result.stderr
    assert_whole(dest, other)


def test_equal_runs_in_one_process_all_succeed(tmp_path: Path) -> None:
    """Two threads that call the API share a process number."""
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    code = (
        "import sys, threading, recast\n"
        "source, dest = sys.argv[1:]\n"
        "outcomes = []\n"
        "def run():\n"
        "    try: outcomes.append(recast.convert(source, dest, to='bf16').already_done)\n"
        "    except recast.RecastError as error: outcomes.append(error.message)\n"
        "threads = [threading.Thread(target=run) for _ in range(4)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "assert len(outcomes) == 4 and set(outcomes) <= {True, False}, outcomes\n"
        "assert False in outcomes, outcomes\n"
    )
    run = [sys.executable, "-c", code, str(source), str(dest)]
    result = subprocess.run(run, capture_output=True, text=True, timeout=HANG, check=False)
    assert result.returncode == 0, result.stderr
    assert_loads(dest, source)
