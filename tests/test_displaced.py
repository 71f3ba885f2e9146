"""Whatever others do at a destination while a run stands still, or to what it has staged: a result
is whole, or the run that lacks something says so."""

import json
import os
import random
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import recast
from interrupted import (
    KIB,
    assert_loads,
    assert_whole,
    content,
    convert,
    converted,
    finish,
    is_publishing,
    new_files,
    shard_name,
    sharded,
    staged,
    stands_still,
    start,
    wait_for,
)
from recast import _core
from recast.options import Options

SHARDS = 120
SIGNALS = (signal.SIGCONT, signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(tmp_path_factory.mktemp("displaced") / "in", [16 * KIB] * SHARDS)


@pytest.fixture(scope="module")
def expected(source: Path) -> dict[str, dict[str, bytes]]:
    made = {to: converted(source, source.parent / to, "--to", to) for to in ("bf16", "fp16")}
    assert made["bf16"] != made["fp16"]
    return made


@pytest.mark.parametrize("to", [pytest.param("bf16", marks=pytest.mark.slow), "fp16"])
def test_a_run_that_wakes_up_spoils_nothing_of_the_one_that_went_on(
    to: str, source: Path, expected: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """The first stands still, the second is at work; then the first goes on, or is told to end,
    while the second stands still too or runs. The second makes the same, or something else in its
    place. At 16 moments of both."""
    choose = random.Random(0)
    both = 0
    for number in range(16):
        dest = tmp_path / f"out-{number}"
        first = start(source, dest, "--threads", 1, "--no-sync")
        moments = sorted(choose.sample(range(1, SHARDS), 2))
        wait_for(first, partial(has_staged, dest, moments[0]))
        stands_still(first)
        options = ("--to", to, "--overwrite", "--threads", 1, "--no-sync")
        second = start(source, dest, *options)
        at = moments[1] if to == "bf16" else moments[0]
        wait_for(second, partial(has_staged, dest, at))
        paused = bool(number % 2) and stands_still(second)
        both += first.poll() is None and second.poll() is None
        what = SIGNALS[number // 2 % len(SIGNALS)]
        if first.poll() is None:
            first.send_signal(what)
            first.send_signal(signal.SIGCONT)
        if paused:
            early = finish(first)
            second.send_signal(signal.SIGCONT)
            late = finish(second)
        else:
            late, early = finish(second), finish(first)
        note = f"seed 0, run {number}: {what!r} {early.stdout} {early.stderr} | {late.stderr}"
        if late.returncode == 0 and early.returncode != 0:
            assert_whole(dest, expected[to], note)
        elif late.returncode == 0:
            # Who was first to publish is up to them; it is one of the two, and whole.
            found = "fp16" if content(dest) == expected["fp16"] else "bf16"
            assert_whole(dest, expected[found], note)
        else:
            assert late.returncode == 73, note
            assert content(dest) in ({}, expected["bf16"]), note
        assert early.returncode in (0, 73, 130, 143, -signal.SIGKILL, -what), note
        shutil.rmtree(dest)
    assert both >= 8


@pytest.mark.parametrize("name", [shard_name(1, 4), "tokenizer.json", "config.json"])
@pytest.mark.parametrize("when", ["staging", "verified", "publishing"])
def test_a_staged_file_that_vanishes_is_made_again_or_told(
    name: str, when: str, tmp_path: Path
) -> None:
    """By a cleaner or a user's rm: never is a model published that lacks it."""
    source, dest = sharded(tmp_path / "in", [16 * KIB] * 4), tmp_path / "out"
    expected = converted(source, tmp_path / "clean")
    taken: list[Path] = []

    def take() -> None:
        for path in dest.glob(f".recast/*/*/new/{name}"):
            if not taken:
                path.unlink()
                taken.append(path)

    def progress(done: int, total: int) -> None:
        if when == "staging" or (when == "publishing" and is_publishing(dest)):
            take()

    def verify(_: str) -> str:
        take()
        return "null"

    planned = recast.plan(source, to="bf16")
    judge = verify if when == "verified" else None
    try:
        options = Options(to="bf16", threads=1, sync=False)
        _core.convert(planned, str(dest), options, progress=progress, verify=judge)
    except recast.RecastError:
        published = content(dest)
        assert "config.json" not in published
        assert convert(source, dest).returncode == 0
    assert taken
    assert_whole(dest, expected)


def test_a_lost_file_that_cannot_be_made_again_is_told_at_once(tmp_path: Path) -> None:
    """Where publication has begun, and the source is another one by now."""
    source, dest = sharded(tmp_path / "in", [16 * KIB] * 4), tmp_path / "out"
    begin_publication(source, dest)
    name = shard_name(2, 4)
    (path,) = dest.glob(f".recast/publish/*/new/{name}")
    path.unlink()
    data = (source / name).read_bytes()
    (source / name).write_bytes(data[:-4] + b"\0\0\x80\x3f")
    result = convert(source, dest)
    assert result.returncode == 73
    assert f"{dest / name}: cannot be published, because its staged file is gone" in result.stderr
    assert "config.json" not in content(dest)
    # Another command cannot make that file; it is told which one can.
    with pytest.raises(recast.OutputError) as caught:
        recast.convert(source, dest, to="fp16", overwrite=True)
    assert "repeat the conversion that was being published (to='bf16')" in str(caught.value.hint)
    assert f"the old model's files are in '{path.parents[1] / 'old'}'" in str(caught.value.hint)
    (source / name).write_bytes(data)
    assert convert(source, dest).returncode == 0
    assert_whole(dest, converted(source, tmp_path / "clean"))


def has_staged(dest: Path, count: int) -> bool:
    return len(staged(dest)) >= count or is_publishing(dest)


def begin_publication(source: Path, dest: Path, overwrite: bool = False) -> None:
    """Leaves a publication that has begun and has moved nothing yet."""

    def stop(done: int, total: int) -> None:
        if is_publishing(dest):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recast.convert(source, dest, to="bf16", sync=False, progress=stop, overwrite=overwrite)
    assert is_publishing(dest)


@pytest.mark.slow
def test_overwrite_over_an_interrupted_overwrite_keeps_a_whole_model(tmp_path: Path) -> None:
    """The first was killed in the middle of its publication; the second does not get to its end.
    Then what the first made is there, whole."""
    old, new = sharded(tmp_path / "old", [KIB] * 40, seed=9), sharded(tmp_path / "in", [KIB] * 40)
    expected = converted(new, tmp_path / "clean")
    # A value that is too large for fp16.
    large = tmp_path / "large"
    shutil.copytree(old, large)
    for path in large.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-4] + b"\xff\xff\x7f\x7f")
    middles = 0
    for number in range(12):
        dest = tmp_path / f"out-{number}"
        assert convert(old, dest, "--no-sync").returncode == 0
        process = start(new, dest, "--overwrite", "--threads", 1, "--no-sync")
        wait_for(process, partial(is_publishing, dest))
        process.kill()
        finish(process)
        if not is_publishing(dest):
            continue
        middles += 1
        result = convert(large, dest, "--to", "fp16", "--overwrite")
        assert result.returncode == 1, result.stderr
        assert_whole(dest, expected)
    assert middles
    # Also where the first cannot be done again.
    dest = tmp_path / "out"
    assert convert(old, dest, "--no-sync").returncode == 0
    begin_publication(new, dest, overwrite=True)
    shutil.rmtree(new)
    result = convert(large, dest, "--to", "fp16", "--overwrite")
    assert result.returncode == 1, result.stderr
    assert_whole(dest, expected)


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_source_whose_inodes_are_made_up_is_one_source(how: str, tmp_path: Path) -> None:
    """As on exFAT, sshfs and other FUSE: between planning and converting, while converting, and
    between two runs the same files get other inodes and times."""
    source, dest = sharded(tmp_path / "in", [64 * KIB] * 20), tmp_path / "out"

    def renew() -> None:
        for path in source.iterdir():
            if how == "replaced":
                shutil.copy(path, path.with_suffix(".copy"))
                path.with_suffix(".copy").replace(path)
            else:
                path.touch()

    calls = iter(range(1000))

    def progress(done: int, total: int) -> None:
        if next(calls) in (1, 2):
            renew()

    planned = recast.plan(source, to="bf16")
    renew()
    _core.convert(planned, str(dest), Options(to="bf16", threads=1), progress=progress)
    assert_loads(dest, source)
    renew()
    assert recast.convert(source, dest, to="bf16").already_done


@pytest.mark.parametrize("moment", ["planned", "staged"])
def test_an_edit_is_seen_though_length_inode_and_times_were_put_back(
    moment: str, tmp_path: Path
) -> None:
    source, dest = sharded(tmp_path / "in", [64 * KIB] * 4), tmp_path / "out"
    name = shard_name(3, 4)

    def edit() -> None:
        before = (source / name).stat()
        with (source / name).open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\x80\x3f")
        os.utime(source / name, ns=(before.st_atime_ns, before.st_mtime_ns))

    def verify(staged_files: str) -> str:
        if moment == "staged" and new_files(dest) == Path(staged_files):
            edit()
        return "null"

    planned = recast.plan(source, to="bf16")
    if moment == "planned":
        edit()
    _core.convert(planned, str(dest), Options(to="bf16", sync=False), verify=verify)
    assert_loads(dest, source)
    report = json.loads((dest / "recast.json").read_text())
    made = recast.convert(source, tmp_path / "fresh", to="bf16")
    assert report == json.loads((tmp_path / "fresh" / "recast.json").read_text())
    assert not made.already_done
