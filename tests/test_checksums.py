"""The checksums in recast.json and SHA256SUMS, judged by the xxhash package and by coreutils."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import recast
from checksums import BLOCK, all_kinds, assert_right, flip, report_of
from conftest import Save
from recast.options import FloatName
from support import recast_here, tree


@pytest.mark.parametrize("to", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("options", [{}, {"io": "mmap", "threads": 3}, {"sync": False}])
def test_the_checksum_of_every_file_is_what_another_program_computes(
    to: FloatName, options: dict[str, Any], tmp_path: Path
) -> None:
    source = all_kinds(tmp_path / "source")
    options = {"on_overflow": "saturate", "keep": ["kept"], **options}
    recast.convert(source, tmp_path / "out", to=to, **options)
    assert assert_right(source, tmp_path / "out") == 8


@pytest.mark.parametrize("kind", ["llama", "tied", "t5", "bert"])
def test_the_checksums_of_models_as_transformers_saves_them(
    kind: str, saved: Save, tmp_path: Path
) -> None:
    source = saved(kind, "fp32")
    recast.convert(source, tmp_path / "out", to="bf16", sha256=True)
    assert assert_right(source, tmp_path / "out") >= 3


def test_the_checksum_of_a_single_file(tmp_path: Path) -> None:
    source = all_kinds(tmp_path / "source")
    recast.convert(source / "model.safetensors", tmp_path / "out", to="bf16", on_overflow="inf")
    assert assert_right(source, tmp_path / "out") == 1


def test_the_checksums_of_a_resumed_run_are_the_same(result: Path, tmp_path: Path) -> None:
    """A checksum does not depend on who made a file, or in which order."""
    again = tmp_path / "again"
    options: dict[str, Any] = {"on_overflow": "inf", "keep": ["kept"], "threads": 1}

    def stop(done: int, total: int) -> None:
        if done > 4 * BLOCK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recast.convert(tmp_path / "source", again, to="bf16", progress=stop, **options)
    recast.convert(tmp_path / "source", again, to="bf16", **options)
    assert tree(again) == tree(result)


ODD_NAMES = [b"two words.txt", b"line\nbreak.txt", b"back\\slash.txt", b"caf\xe9.txt", b"-dash.txt"]
ODD_NAMES += [b"carriage\rreturn.txt", b" blank ends ", b"*star.txt", b"#sharp.txt"]


def test_sha256sum_accepts_the_sums_whatever_files_are_called(model: Path, tmp_path: Path) -> None:
    (model / "sub folder").mkdir()
    for number, name in enumerate(ODD_NAMES):
        (model / os.fsdecode(name)).write_bytes(bytes([number]) * number)
        (model / "sub folder" / os.fsdecode(name)).write_bytes(b"below")
    recast.convert(model, tmp_path / "out", to="bf16", sha256=True)
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(check, cwd=tmp_path / "out", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    rows = report_of(tmp_path / "out")["published_files"]
    assert done.stdout.count(b": OK\n") == len(rows) - 1 == 2 * len(ODD_NAMES) + 2
    assert recast_here("verify", tmp_path / "out").returncode == 0
    flip(tmp_path / "out" / os.fsdecode(ODD_NAMES[1]), 0)
    done = subprocess.run(check, cwd=tmp_path / "out", capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout.count(b": FAILED\n") == 1


def test_the_sums_of_a_source_are_not_those_of_the_result(model: Path, tmp_path: Path) -> None:
    (model / "SHA256SUMS").write_text("of the source\n")
    (model / "sub").mkdir()
    (model / "sub" / "SHA256SUMS").write_text("copied as it is\n")
    recast.convert(model, tmp_path / "plain", to="bf16")
    assert not (tmp_path / "plain" / "SHA256SUMS").exists()
    assert (tmp_path / "plain" / "sub" / "SHA256SUMS").read_text() == "copied as it is\n"
    recast.convert(model, tmp_path / "out", to="bf16", sha256=True)
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=tmp_path / "out", check=True)
    # So it can be converted on.
    recast.convert(tmp_path / "out", tmp_path / "back", to="fp32", sha256=True)
    subprocess.run(check, cwd=tmp_path / "back", check=True)


def test_a_rerun_sees_sums_that_are_damaged_or_not_asked_for(model: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    recast.convert(model, dest, to="bf16", sha256=True)
    assert recast.convert(model, dest, to="bf16", sha256=True).already_done
    with pytest.raises(recast.OutputError, match="\n  sha256: given there, not given here"):
        recast.convert(model, dest, to="bf16")
    sums = (dest / "SHA256SUMS").read_bytes()
    flip(dest / "SHA256SUMS", 3)
    with pytest.raises(recast.OutputError, match="SHA256SUMS: is missing, or was changed"):
        recast.convert(model, dest, to="bf16", sha256=True)
    (dest / "SHA256SUMS").unlink()
    with pytest.raises(recast.OutputError, match="SHA256SUMS: is missing, or was changed"):
        recast.convert(model, dest, to="bf16", sha256=True)
    recast.convert(model, dest, to="bf16", sha256=True, overwrite=True)
    assert (dest / "SHA256SUMS").read_bytes() == sums
