"""The same command continues, and only the same; --overwrite replaces all of a model or nothing."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interrupted import (
    KIB,
    assert_loads,
    assert_whole,
    content,
    convert,
    converted,
    finish,
    killed_midway,
    new_files,
    shard_name,
    sharded,
    slow,
    staged,
    stopped_midway,
)
from support import recast_process, tree

SHARD = shard_name(1, 4)


def stats(path: Path) -> dict[str, tuple[int, int, int]]:
    """What tells whether anything at or below `path` was made again or written to."""
    found = {entry: entry.stat() for entry in (path, *path.rglob("*"))}
    return {str(e): (s.st_ino, s.st_mtime_ns, s.st_size) for e, s in found.items()}


def reported(source: Path, dest: Path, *options: object) -> dict[str, Any]:
    result = convert(source, dest, "--json", *options)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def refused(source: Path, dest: Path, *options: object) -> str:
    """What a run says that writes nothing and exits with 73; a dry run says and does the same."""
    before, places = tree(dest), stats(dest)
    result = convert(source, dest, *options)
    dry = convert(source, dest, *options, "--dry-run")
    assert result.returncode == dry.returncode == 73, result.stderr
    assert dry.stderr == result.stderr
    assert (tree(dest), stats(dest)) == (before, places)
    assert "hint: " in result.stderr
    return result.stderr


def replaced(source: Path, dest: Path, *options: object) -> None:
    """With --overwrite the run makes what it makes in a new place; a dry run writes nothing."""
    before, fresh = stats(dest), dest.with_name("fresh")
    assert convert(source, dest, *options, "--overwrite", "--dry-run").returncode == 0
    assert stats(dest) == before
    result = convert(source, dest, *options, "--overwrite")
    assert result.returncode == 0, result.stderr
    assert convert(source, fresh, *options).returncode == 0
    assert_whole(dest, content(fresh))
    assert tree(dest).keys() == tree(fresh).keys()
    shutil.rmtree(fresh)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
def test_a_stopped_run_is_continued_without_making_its_finished_files_again(
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


def test_files_that_were_not_synced_are_reused_unless_the_machine_was_started_anew(
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


def relabelled(path: Path) -> None:
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


@pytest.mark.parametrize("change", OTHER)
def test_a_changed_source_is_told_from_that_of_a_finished_result(
    change: str, small: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    converted(small, dest)
    before = stats(dest)
    OTHER[change](small / SHARD)
    result = convert(small, dest)
    assert result.returncode == 73, result.stderr
    assert "contains the result of another conversion" in result.stderr
    assert f"\n  {SHARD}: other content there\n" in result.stderr
    assert "--overwrite" in result.stderr.partition("hint: ")[2]
    assert stats(dest) == before
    replaced(small, dest)
    assert_loads(dest, small)


def test_a_changed_header_is_told_and_only_overwrite_goes_on(tmp_path: Path) -> None:
    """On what was begun, and then on what is finished; a dry run tells it too."""
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    killed_midway(source, dest)
    for there in ("another unfinished conversion", "the result of another conversion"):
        relabelled(source / SHARD)
        said = refused(source, dest)
        assert f"contains {there}" in said
        assert "the headers, configs or indexes of the source are different" in said
        assert "--overwrite" in said.partition("hint: ")[2]
        replaced(source, dest)
        assert_loads(dest, source)


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        (["--to", "fp16"], ("--to: ", "bf16", "fp16")),
        (["--keep", "layers.1.*"], ("--keep: ", "none", "layers.1.*")),
        (["--no-auto-keep"], ("built-in keep list: ", "used", "not used")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_changed_option_is_told_and_only_overwrite_goes_on(
    options: list[str], sides: tuple[str, str, str], tmp_path: Path
) -> None:
    """On what was begun, and then, the other way round, on what is finished."""
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    if "--no-auto-keep" in options:
        # A model of which the list names a tensor.
        (source / "config.json").write_text('{"model_type": "deepseek_v3"}')
        for name in (SHARD, "model.safetensors.index.json"):
            data = (source / name).read_bytes()
            (source / name).write_bytes(data.replace(b"layers.1.norm", b"1.gate.weight"))
    assert killed_midway(source, dest)
    what, old, new = sides
    said = refused(source, dest, *options)
    assert "contains another unfinished conversion" in said
    assert f"  {what}{old} there, {new} here\n" in said
    assert "--overwrite" in said.partition("hint: ")[2]
    replaced(source, dest, *options)
    said = refused(source, dest)
    assert "contains the result of another conversion" in said
    assert f"  {what}{new} there, {old} here\n" in said
    assert "--overwrite" in said.partition("hint: ")[2]
    replaced(source, dest)


def test_a_policy_for_values_that_overflow_counts_only_where_some_do(tmp_path: Path) -> None:
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    names = killed_midway(source, dest)
    said = refused(source, dest, "--on-overflow", "saturate")
    assert "  --on-overflow: error there, saturate here\n" in said
    assert reported(source, dest, "--on-overflow", "inf")["resumed_files"] == len(names)
    report = (dest / "recast.json").read_bytes()
    for policy in ("error", "inf", "saturate"):
        assert reported(source, dest, "--on-overflow", policy)["already_done"]
    reported(source, tmp_path / "error")
    assert (tmp_path / "error" / "recast.json").read_bytes() == report
    data = bytearray((source / SHARD).read_bytes())
    data[-4:] = b"\xff\xff\x7f\x7f"
    (source / SHARD).write_bytes(data)
    dest = tmp_path / "overflowed"
    assert reported(source, dest, "--on-overflow", "inf")["audit"]["to_inf"] == 1
    assert reported(source, dest, "--on-overflow", "inf")["already_done"]
    for policy, there in (("error", "inf"), ("saturate", "inf")):
        said = refused(source, dest, "--on-overflow", policy)
        assert f"  --on-overflow: {there} there, {policy} here\n" in said


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return sharded(tmp_path / "in", [16 * KIB] * 4)


def test_the_same_command_after_it_is_done_says_so_and_touches_nothing(
    small: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    first = reported(small, dest)
    before = stats(tmp_path)
    result = convert(small, dest)
    assert (result.returncode, result.stderr) == (0, "")
    total = first["bytes_read"] + first["bytes_written"]
    compared = f"checksums of 7 files and of the source, {total} bytes"
    assert result.stdout.startswith(f"already done; nothing was written (compared the {compared})")
    dry = convert(small, dest, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "already done" in dry.stdout
    second = reported(small, dest, "--threads", 1, "--io", "mmap", "--no-sync")
    told = {"already_done": True, "compared": f"compared the {compared}"}
    assert second == {**first, **told, "seconds": second["seconds"]}
    assert stats(tmp_path) == before


def test_the_same_model_elsewhere_and_otherwise_spelled_is_already_done(
    small: Path, tmp_path: Path
) -> None:
    """A copy in another place, the order of patterns, the ways to write a path and a dtype."""
    dest = tmp_path / "out"
    keep = ["--keep", "layers.1.*", "--keep", "layers.2.norm"]
    assert not reported(small, dest, *keep)["already_done"]
    moved = tmp_path / "else where" / "renamed"
    shutil.copytree(small, moved)
    (tmp_path / "link").symlink_to(moved)
    before = stats(tmp_path)
    for source, there, options in (
        (moved, dest, keep),
        (tmp_path / "link", dest, [*keep[2:], *keep[:2]]),
        (Path(f"{small}/../in/."), Path(f"{tmp_path}/link/../../out/"), keep),
        (small, dest, [*keep, "--to", "bfloat16"]),
        (small, dest, [*keep, *keep]),
    ):
        assert reported(source, there, *options)["already_done"], (source, options)
    assert stats(tmp_path) == before


def test_the_same_conversion_elsewhere_leaves_the_same_bytes(small: Path, tmp_path: Path) -> None:
    """All of them, the report's too: no place, time or number of threads is in them."""
    first, second = tmp_path / "out", tmp_path / "deep" / "er" / "other name"
    moved = tmp_path / "else where" / "renamed"
    shutil.copytree(small, moved)
    for number, path in enumerate(moved.rglob("*")):
        os.utime(path, (number, number))
    reported(small, first, "--threads", 1, "--keep", "layers.1.*", "--keep", "layers.2.norm")
    options = ("--keep", "layers.2.norm", "--keep", "layers.1.*", "--no-sync", "--io", "mmap")
    reported(moved, second, "--threads", 5, *options)
    assert tree(first) == tree(second)
    assert str(tmp_path).encode() not in (first / "recast.json").read_bytes()


@pytest.mark.parametrize("name", [SHARD, "config.json", "tokenizer.json"])
def test_a_flipped_bit_in_the_result_is_found(name: str, small: Path, tmp_path: Path) -> None:
    """By the same command and by `recast verify DEST`, whatever length and times say."""
    dest = tmp_path / "out"
    converted(small, dest)
    data, before = bytearray((dest / name).read_bytes()), (dest / name).stat()
    data[-1] ^= 1
    with (dest / name).open("r+b") as file:
        file.write(data)
    os.utime(dest / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    places = stats(dest)
    result = convert(small, dest)
    assert result.returncode == 73, result.stderr
    assert f"{dest / name}: is missing, or was changed since recast wrote it" in result.stderr
    assert "--overwrite" in result.stderr.partition("hint: ")[2]
    found = recast_process("verify", dest)
    assert found.returncode == 1, found.stderr
    assert name in found.stdout + found.stderr
    assert stats(dest) == places
    replaced(small, dest)
    assert recast_process("verify", dest).returncode == 0


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
        assert said.startswith("begun before; the same command without --dry-run continues\n")
        assert reported(source, dest, "--dry-run", *options)["resumes"]
        assert stats(tmp_path) == before
    # What another conversion began is no help to this one.
    assert not reported(source, dest, "--dry-run", "--overwrite", "--to", "fp16")["resumes"]
    assert reported(source, dest)["resumed_files"] == len(names)


def test_a_damaged_result_is_told_and_not_called_done(small: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    expected = converted(small, dest)
    for name in (SHARD, "model.safetensors.index.json", "config.json", "tokenizer.json"):
        data = expected[name]
        damages: list[bytes | None] = [None, data[:-1]]
        if name == SHARD:
            damages += [data.replace(b"BF16", b"I16 "), bytes(len(data))]
        for left in damages:
            (dest / name).unlink()
            if left is not None:
                (dest / name).write_bytes(left)
            before = stats(dest)
            result = convert(small, dest)
            assert result.returncode == 73, (name, left)
            assert f"{dest / name}: is missing, or was changed" in result.stderr
            assert "--overwrite" in result.stderr.partition("hint: ")[2]
            assert stats(dest) == before
            (dest / name).write_bytes(data)
    assert "already done" in convert(small, dest).stdout
    report = json.loads((dest / "recast.json").read_text())
    for key in report:
        left = {name: value for name, value in report.items() if name != key}
        (dest / "recast.json").write_text(json.dumps(left))
        before = stats(dest)
        result = convert(small, dest)
        assert result.returncode == 73, (key, result.stderr)
        assert "hint: " in result.stderr
        assert stats(dest) == before
    (dest / "recast.json").write_text(json.dumps(report))
    (dest / SHARD).unlink()
    refused(small, dest)
    replaced(small, dest)


def test_a_report_that_is_no_file_is_not_waited_for(small: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    dest.mkdir()
    os.mkfifo(dest / "recast.json")
    for options in ((), ("--dry-run",)):
        result = convert(small, dest, *options)
        assert (result.returncode, "not empty" in result.stderr) == (73, True)
    expected = converted(small, tmp_path / "fresh")
    assert converted(small, dest, "--overwrite") == expected


@pytest.mark.parametrize("stranger", ["notes.txt", "sub/notes.txt", ".hidden", "old.safetensors"])
def test_overwrite_deletes_nothing_that_is_not_the_old_model(
    stranger: str, small: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    converted(small, dest)
    (dest / stranger).parent.mkdir(exist_ok=True)
    (dest / stranger).write_text("mine")
    said = refused(small, dest, "--overwrite", "--to", "fp16")
    assert str(dest / stranger) in said
    before = stats(dest)
    assert reported(small, dest, "--overwrite")["already_done"]
    assert stats(dest) == before
    # Where the model has to be made again, it is in the way too.
    (dest / SHARD).unlink()
    said = refused(small, dest, "--overwrite")
    assert str(dest / stranger) in said
    assert (dest / stranger).read_text() == "mine"


def test_overwrite_leaves_no_shard_of_another_layout(small: Path, tmp_path: Path) -> None:
    dest, old = tmp_path / "out", sharded(tmp_path / "old", [16 * KIB] * 7, seed=50)
    (old / "original").mkdir()
    (old / "original" / "params.json").write_text("{}")
    converted(old, dest)
    said = refused(small, dest)
    assert f"  {shard_name(1, 4)}: only here\n" in said
    replaced(small, dest)
    assert_loads(dest, small)
    assert not (dest / "original").exists()


def test_overwrite_replaces_a_model_of_unknown_making_only_file_by_file(
    small: Path, tmp_path: Path
) -> None:
    """Without a report, what belongs to the old model is what the new one has too."""
    dest = tmp_path / "out"
    shutil.copytree(small, dest)
    assert "not empty" in refused(small, dest)
    replaced(small, dest)
    shutil.rmtree(dest)
    sharded(dest, [16 * KIB] * 5)
    assert shard_name(1, 5) in refused(small, dest, "--overwrite")
