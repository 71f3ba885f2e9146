"""Another conversion is refused and named; --overwrite replaces all of a model or nothing."""

import shutil
from pathlib import Path

import pytest
from changes import OTHER, relabeled
from interrupted import (
    KIB,
    SHARD,
    assert_loads,
    convert,
    converted,
    killed_midway,
    refused,
    replaced,
    reported,
    shard_name,
    sharded,
    slow,
    stats,
)


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
    for there in ("another unfinished", "the result of another"):
        relabeled(source / SHARD)
        said = refused(source, dest)
        assert f"contains {there} conversion" in said
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
