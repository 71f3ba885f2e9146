"""Destinations that a model cannot be put into, or that are the source: refused before anything is
touched, with the reason."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import recast
from interrupted import KIB, assert_whole, convert, converted, sharded
from support import fp32_bytes, raw_bytes, recast_here, tree

SHARD = "model.safetensors"
NOBODY = 65534

Mount = Callable[..., None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """`mount(*arguments, place)`, undone at the end; skips where nobody may."""
    places: list[object] = []

    def mount(*arguments: object) -> None:
        run = ["mount", *map(str, arguments)]
        result = subprocess.run(run, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            pytest.skip(f"cannot mount: {result.stderr.strip()}")
        places.append(arguments[-1])

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = sharded(tmp_path / "in", [4 * KIB] * 2)
    sharded(source / "unet", [4 * KIB])
    return source


@pytest.fixture
def old(source: Path, tmp_path: Path) -> Path:
    """A model that is to be replaced."""
    converted(source, tmp_path / "out", "--to", "fp16")
    return tmp_path / "out"


def refused(source: Path, dest: Path, *options: object, code: int = 73) -> str:
    """What is said when a model in `dest` may not be replaced; it is there as it was."""
    before = tree(dest)
    for more in (("--dry-run",), ()):
        result = convert(source, dest, "--overwrite", *options, *more)
        assert result.returncode == code, result.stderr
        assert "hint: " in result.stderr
        assert tree(dest) == before, result.stderr
    return result.stderr


def single(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw_bytes([("w", "F32", [64], fp32_bytes(64, value))]))
    return path


def test_a_single_file_is_never_replaced_by_its_own_result(tmp_path: Path, mount: Mount) -> None:
    """In whatever way DEST leads to where it is, links and mounts included."""
    file = single(tmp_path / "a" / SHARD, 0)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / SHARD).symlink_to(file)
    (tmp_path / "bound").mkdir()
    nested = single(tmp_path / "b" / "unet" / SHARD, 1)
    (tmp_path / "parent").symlink_to(tmp_path / "b")
    before = tree(tmp_path / "a"), tree(tmp_path / "b")
    pairs = [
        (file, tmp_path / "a"),
        (file, tmp_path / "link"),
        (file, tmp_path / "b" / ".." / "a"),
        (tmp_path / "link" / SHARD, tmp_path / "a"),
        (tmp_path / "files" / SHARD, tmp_path / "a"),
        (nested, tmp_path / "b"),
        (nested, tmp_path / "parent"),
        (nested, tmp_path / "parent" / "unet"),
        (tmp_path / "parent" / "unet" / SHARD, tmp_path / "b" / "unet"),
    ]
    for number, (source, dest) in enumerate(pairs):
        for options in ((), ("--overwrite",)):
            result = convert(source, dest, *options)
            assert result.returncode == 73, (number, result.stderr)
            assert (tree(tmp_path / "a"), tree(tmp_path / "b")) == before, number
    result = recast_here(
        *("convert", SHARD, ".", "--to", "bf16", "--overwrite"), cwd=tmp_path / "a"
    )
    assert result.returncode == 73, result.stderr
    mount("--bind", tmp_path / "a", tmp_path / "bound")
    for source, dest in ((file, tmp_path / "bound"), (tmp_path / "bound" / SHARD, tmp_path / "a")):
        result = convert(source, dest, "--overwrite")
        assert result.returncode == 73, result.stderr
    assert (tree(tmp_path / "a"), tree(tmp_path / "b")) == before


def test_a_directory_is_never_replaced_by_its_own_result(
    source: Path, tmp_path: Path, mount: Mount
) -> None:
    before = tree(source)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "bound").mkdir()
    mount("--bind", source, tmp_path / "bound")
    places = [source, tmp_path / "link", tmp_path / "bound", source / "unet", tmp_path]
    places += [tmp_path / "link" / "new", tmp_path / "bound" / "new", source / "unet" / "x" / "y"]
    for dest in places:
        for given in (source, tmp_path / "link", tmp_path / "bound"):
            result = convert(given, dest, "--overwrite")
            assert result.returncode == 73, (given, dest, result.stderr)
            assert tree(source) == before, (given, dest)


@pytest.mark.parametrize("name", ["config.json", "recast.json", "unet/config.json"])
def test_a_folder_in_the_place_of_a_file_is_refused(name: str, source: Path, old: Path) -> None:
    for inside in ([], ["file"]):
        if (old / name).is_file():
            (old / name).unlink()
        (old / name).mkdir(exist_ok=True)
        for file in inside:
            (old / name / file).touch()
        assert name in refused(source, old)


def test_a_file_in_the_place_of_a_folder_is_refused(source: Path, old: Path) -> None:
    shutil.rmtree(old / "unet")
    (old / "unet").write_text("mine")
    assert str(old / "unet") in refused(source, old)
    (old / "unet").unlink()
    (old / "unet").symlink_to(source / "unet")
    before = tree(source)
    assert str(old / "unet") in refused(source, old)
    assert tree(source) == before


def test_what_is_mounted_below_a_destination_is_refused(
    source: Path, old: Path, tmp_path: Path, mount: Mount
) -> None:
    """Nothing can be renamed into it or away from it."""
    shutil.copytree(old / "unet", tmp_path / "elsewhere")
    mount("--bind", tmp_path / "elsewhere", old / "unet")
    assert str(old / "unet") in refused(source, old)
    subprocess.run(["umount", str(old / "unet")], check=True)
    mount("--bind", old / "config.json", old / "config.json")
    assert str(old / "config.json") in refused(source, old)
    subprocess.run(["umount", str(old / "config.json")], check=True)
    assert convert(source, old, "--overwrite").returncode == 0
    assert_whole(old, converted(source, tmp_path / "clean"))


def test_a_read_only_destination_is_refused_for_that_reason(
    source: Path, tmp_path: Path, mount: Mount
) -> None:
    """Not for a lack of room, which such a file system also has."""
    dest = tmp_path / "disk"
    dest.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", dest)
    assert convert(source, dest, "--to", "fp16", "--no-sync").returncode == 0
    mount("-o", "remount,ro", dest)
    before = tree(dest)
    for there, options in ((dest, ["--overwrite"]), (dest / "new", [])):
        result = convert(source, there, *options)
        assert result.returncode == 73, result.stderr
        assert "needs" not in result.stderr
        assert "ead-only" in result.stderr
        assert "hint: " in result.stderr
        assert tree(dest) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_destination_that_may_not_be_changed_is_refused(source: Path, old: Path) -> None:
    """Also where only one of its folders may not: before the old model is touched."""
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        source, dest = (Path(shutil.copytree(path, f"{top}/{path.name}")) for path in (source, old))
        for closed in (dest, dest / "unet"):
            for path in (dest, *dest.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            os.chown(closed, 0, 0)
            before = tree(dest)
            said = converted_by_nobody(source, dest)
            assert said.startswith(f"OutputError: {closed}: cannot be created: Permission denied")
            assert tree(dest) == before
        os.chown(dest / "unet", NOBODY, NOBODY)
        assert converted_by_nobody(source, dest) == "done"
        assert_whole(dest, converted(source, Path(top) / "clean"))


def converted_by_nobody(source: Path, dest: Path) -> str:
    """What a process without rights says that replaces a model."""
    reading, writing = os.pipe()
    # The interpreter may be where nobody may start it, so that this one goes on as another user.
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            recast.convert(source, dest, to="bf16", overwrite=True, threads=1)
            said = "done"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    return said
