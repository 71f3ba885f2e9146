"""The same command continues a stopped run, and mixes in nothing of another source."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from changes import OTHER, SAME
from interrupted import (
    SHARD,
    assert_loads,
    assert_whole,
    content,
    convert,
    converted,
    finish,
    killed_midway,
    new_files,
    reported,
    slow,
    staged,
    stats,
    stopped_midway,
)
from support import tree


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
def test_a_stopped_run_continues_and_keeps_its_finished_files(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    undisturbed = reported(source, tmp_path / "clean")
    process = stopped_midway(source, dest)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    result = finish(process)
    assert result.returncode == code
    if number != signal.SIGKILL:
        assert "the model is not published; the same command continues" in result.stderr
    assert content(dest) == {}
    names = staged(dest)
    assert len(names) >= 2
    new = new_files(dest)
    before = stats(new)
    report = reported(source, dest)
    assert report["resumed_files"] == len(names)
    for name in names:
        assert stats(dest)[str(dest / name)] == before[str(new / name)]
    assert report["audit"] == undisturbed["audit"]
    assert len(report["audit"]["tensors"]) == 8
    assert_whole(dest, content(tmp_path / "clean"))
    assert_loads(dest, source)


def test_unsynced_files_are_reused_unless_the_machine_was_restarted(
    tmp_path: Path,
) -> None:
    """A power cut may have taken what was in them. Before one, a run that syncs syncs them first,
    as tests/test_durability.py shows."""
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    names = killed_midway(source, dest, "--no-sync")
    for copy in ("cut", "cut again"):
        shutil.copytree(dest, tmp_path / copy)
        for seal in (new_files(tmp_path / copy).parent / "seal").iterdir():
            text = json.loads(seal.read_text())
            assert text["unsynced"], seal
            seal.write_text(json.dumps({**text, "unsynced": "another start"}))
    assert reported(source, dest)["resumed_files"] == len(names)
    assert reported(source, tmp_path / "cut")["resumed_files"] == 0
    assert reported(source, tmp_path / "cut again", "--no-sync")["resumed_files"] == 0
    for copy in ("cut", "cut again"):
        assert tree(tmp_path / copy) == tree(dest)
    assert_loads(dest, source)


@pytest.mark.parametrize("change", SAME)
def test_a_source_with_the_same_bytes_is_the_same_source(change: str, tmp_path: Path) -> None:
    """Touched, or copied or downloaded again: what was begun goes on, what is done is done."""
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    names = killed_midway(source, dest)
    SAME[change](source / SHARD)
    assert reported(source, dest)["resumed_files"] == len(names)
    assert_loads(dest, source)
    if change == "linked":
        (tmp_path / "in.link").unlink()
    SAME[change](source / SHARD)
    before = stats(dest)
    assert reported(source, dest)["already_done"]
    assert stats(dest) == before


@pytest.mark.parametrize("change", OTHER)
def test_a_changed_source_is_never_mixed_with_what_was_staged(change: str, tmp_path: Path) -> None:
    """What was staged from it is made again."""
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    name = killed_midway(source, dest)[0]
    OTHER[change](source / name)
    assert reported(source, dest)["resumed_files"] == 0
    assert_loads(dest, source)
    assert_whole(dest, converted(source, tmp_path / "clean"))


def test_a_dry_run_writes_nothing_where_a_run_would_begin_or_continue(tmp_path: Path) -> None:
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    before = stats(tmp_path)
    assert "continues" not in convert(source, dest, "--dry-run").stdout
    assert not reported(source, dest, "--dry-run")["resumes"]
    assert stats(tmp_path) == before
    names = killed_midway(source, dest)
    before = stats(tmp_path)
    for options in ((), ("--overwrite",)):
        said = convert(source, dest, "--dry-run", *options).stdout
        assert said.startswith("started before; the same command without --dry-run continues\n")
        assert reported(source, dest, "--dry-run", *options)["resumes"]
        assert stats(tmp_path) == before
    # What another conversion began is no help to this one.
    assert not reported(source, dest, "--dry-run", "--overwrite", "--to", "fp16")["resumes"]
    assert reported(source, dest)["resumed_files"] == len(names)
