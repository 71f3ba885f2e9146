"""The same command on a finished result: already done, or damaged and named."""

import json
import os
import shutil
from pathlib import Path

import pytest
from interrupted import SHARD, convert, converted, refused, replaced, reported, stats
from support import recast_here, tree


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
    found = recast_here("verify", dest)
    assert found.returncode == 1, found.stderr
    assert name in found.stdout + found.stderr
    assert stats(dest) == places
    replaced(small, dest)
    assert recast_here("verify", dest).returncode == 0


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
            assert (
                f"{dest / name}: is missing, or was changed since recast wrote it" in result.stderr
            )
            assert "--overwrite" in result.stderr.partition("hint: ")[2]
            assert stats(dest) == before
            (dest / name).write_bytes(data)
    assert "already done" in convert(small, dest).stdout
    report = json.loads((dest / "recast.json").read_text())
    for key in report:
        others = {name: value for name, value in report.items() if name != key}
        (dest / "recast.json").write_text(json.dumps(others))
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
