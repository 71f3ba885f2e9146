"""By whatever way DEST leads to the source, the source stays as it is."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import files, fp32_bytes, raw_bytes, recast_here, tree

SHARD = "model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    root.mkdir()
    (root / SHARD).write_bytes(raw_bytes([("w", "F32", [100], fp32_bytes(100))]))
    (root / "config.json").write_text(json.dumps({"torch_dtype": "float32"}))
    return root


@pytest.fixture
def mounted(model: Path, tmp_path: Path) -> Iterator[Path]:
    """The model once more, by a bind mount."""
    place = tmp_path / "mounted"
    place.mkdir()
    done = subprocess.run(
        ["mount", "--bind", str(model), str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no bind mount here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def refused(model: Path, source: Path, dest: Path) -> None:
    before = tree(model)
    for more in ((), ("--overwrite",)):
        result = recast_here("convert", source, dest, "--to", "bf16", *more)
        assert result.returncode == 73, result.stderr
        assert "hint: " in result.stderr
        assert tree(model) == before


@pytest.mark.parametrize("dest", [".", "../model", "sub", "sub/deep", "../link", "../link/sub"])
def test_the_source_and_what_is_below_it_is_no_destination(
    dest: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("model")
    refused(model, model, model / dest)
    refused(model, tmp_path / "link", model / dest)


def test_the_directory_that_holds_the_source_is_no_destination(model: Path, tmp_path: Path) -> None:
    refused(model, model, tmp_path)


def test_a_bind_mount_of_the_source_is_no_destination(model: Path, mounted: Path) -> None:
    refused(model, model, mounted)
    refused(model, mounted, model)
    refused(model, model, mounted / "below")


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_old_model_of_links_to_the_source_is_replaced_by_files(
    link: object, model: Path, tmp_path: Path
) -> None:
    assert callable(link)
    dest = tmp_path / "out"
    dest.mkdir()
    for name in files(model):
        link(model / name, dest / name)
    before = tree(model)
    plain = recast_here("convert", model, dest, "--to", "bf16")
    assert plain.returncode == 73
    assert tree(model) == before
    result = recast_here("convert", model, dest, "--to", "bf16", "--overwrite")
    assert result.returncode == 0, result.stderr
    assert tree(model) == before
    for name in files(model):
        assert not (dest / name).is_symlink()
        assert not os.path.samefile(dest / name, model / name)
    assert (dest / SHARD).stat().st_size < (model / SHARD).stat().st_size


def test_a_model_with_names_that_are_not_utf_8_is_replaced(model: Path, tmp_path: Path) -> None:
    (model / os.fsdecode(b"n\xffame.safetensors")).write_bytes((model / SHARD).read_bytes())
    dest = tmp_path / "out"
    for to, more in (("fp16", ()), ("bf16", ("--overwrite",))):
        result = recast_here("convert", model, dest, "--to", to, *more)
        assert result.returncode == 0, result.stderr
    assert files(dest) == files(model) | {"recast.json"}
