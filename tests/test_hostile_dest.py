"""A destination that somebody else prepared: nothing outside it is touched, and nothing waits.

As a downloaded model that is to be replaced, or a directory unpacked from an archive.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import recast
from interrupted import KIB, assert_whole, content, convert, new_files, sharded
from recast import _core
from recast.options import Options
from support import slow, tree

SHARD = "unet/model-00001-of-00002.safetensors"
OWN = ("seal/0", "about.json", "replaces", "old.list", "verified.json", "new/recast.json")
"""The files of recast's own in the folder of a run."""


def pipeline(path: Path, value: int) -> Path:
    """A model with files at its top and in folders."""
    sharded(path / "unet", [4 * KIB] * 2, seed=value)
    sharded(path / "vae" / "decoder", [2 * KIB], seed=value + 10)
    (path / "model_index.json").write_text("{}")
    return path


class Place:
    """A model, a destination, and beside them what is not to be touched."""

    def __init__(self, top: Path) -> None:
        self.source, self.dest, self.outside = top / "in", top / "out", top / "outside"
        pipeline(self.source, 0)
        pipeline(self.outside, 1)
        # Named and sized as what a run looks for, so that it would be taken for it.
        finished = top / "finished"
        assert convert(self.source, finished, "--no-sync").returncode == 0
        self.expected = content(finished)
        self.report = json.loads((finished / "recast.json").read_text())
        shutil.copytree(finished, self.outside / "same")
        for folder in (self.outside, self.outside / "unet", self.outside / "same" / "unet"):
            for name in ("0", "victim", "x.part", "recast.json", "about.json", "old.list"):
                (folder / name).write_text("precious")
            (folder / "empty").mkdir()
        for name in ("new", "seal", "old", "run-1"):
            (self.outside / name).mkdir()
            (self.outside / name / "0").write_text("precious")
        (self.outside / "short").mkdir()
        for path in self.expected:
            (self.outside / "short" / path).parent.mkdir(parents=True, exist_ok=True)
            (self.outside / "short" / path).write_text("precious")
        self.before = tree(self.outside)

    def begin(self) -> Path:
        """Leaves in the destination what a run left that was stopped once all was staged."""

        def stop(_: str) -> None:
            raise KeyboardInterrupt

        shutil.rmtree(self.dest, ignore_errors=True)
        options = Options(to="bf16", sync=False)
        planned = recast.plan(self.source, to="bf16")
        with pytest.raises(KeyboardInterrupt):
            _core.convert(planned, str(self.dest), options, verify=stop)
        return new_files(self.dest).parent

    def begin_publication(self) -> Path:
        """The same, as if it had begun to publish and then stopped."""
        run = self.begin()
        publish = self.dest / ".recast" / "publish"
        run.parent.rename(publish)
        (publish / run.name / "new" / "recast.json").write_text(json.dumps(self.report))
        return publish / run.name

    def check(self, *options: object) -> None:
        """Whatever a run makes of it, it ends, and nothing outside is another than before."""
        result = convert(self.source, self.dest, *options)
        said = f"{result.returncode}: {result.stderr}"
        assert result.returncode in (0, 73, 74), said
        assert "Traceback" not in said
        assert "other processes keep changing it" not in said
        assert tree(self.outside) == self.before, said
        if result.returncode == 0:
            assert_whole(self.dest, self.expected, said)
        else:
            is_link = (self.dest / "model_index.json").is_symlink() or self.dest.is_symlink()
            assert is_link or not (self.dest / "model_index.json").exists(), said


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def replace(path: Path, target: Path) -> None:
    """A link in the place of whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target, target_is_directory=target.is_dir())


@pytest.mark.parametrize("target", ["", "same", *slow("short", "unet")])
@pytest.mark.parametrize("options", [(), ("--overwrite",)], ids=["", "--overwrite"])
def test_links_in_a_destination_lead_nowhere(
    target: str, options: tuple[str, ...], place: Place
) -> None:
    """In the place of every directory of recast's own, and of those of the model."""
    folder = place.dest / ".recast"
    for name in ("", "run-1", "new-1", "trash-1", "rejected-1", "publish", "x"):
        shutil.rmtree(place.dest, ignore_errors=True)
        replace(folder / name if name else folder, place.outside / target)
        place.check(*options)
    for name in ("unet", "vae", "vae/decoder", SHARD, "model_index.json", "recast.json"):
        shutil.rmtree(place.dest)
        replace(place.dest / name, place.outside / target)
        place.check(*options)


@pytest.mark.parametrize("target", ["same/unet", *slow("same", "short/unet", "unet")])
@pytest.mark.parametrize("begun", ["staged", "publishing"])
def test_links_in_what_was_begun_lead_nowhere(begun: str, target: str, place: Place) -> None:
    start = place.begin if begun == "staged" else place.begin_publication
    folders = ["", "new", "seal", "old", "new/unet", "new/vae", "new/vae/decoder", "old/unet"]
    for name in (*folders, *OWN, f"new/{SHARD}", "new/model_index.json"):
        run = start()
        replace(run / name if name else run, place.outside / target)
        place.check()
    for name in ("unet", "vae", "vae/decoder"):
        start()
        replace(place.dest / name, place.outside / target)
        place.check()


@pytest.mark.parametrize("there", ["link", "link above"])
def test_what_makes_way_is_never_outside(there: str, place: Place) -> None:
    """A list of what makes way that was written by somebody else, and links in its way."""
    lists: list[object] = [
        [str(place.outside / "victim")],
        ["../outside/victim"],
        ["unet/../../outside/victim"],
        ["victim", "unet/victim", "unet/empty", "unet"],
        ["link/victim", "link/unet/victim", "link/empty", "link/same/unet/victim"],
        ["./link/victim", "link//victim", "link/"],
        ["", ".", "..", "/", ".recast", ".recast/publish"],
        {"victim": 1},
        "victim",
    ]
    for listed in lists:
        run = place.begin_publication()
        (run / "old.list").write_text(json.dumps(listed))
        if there == "link":
            (place.dest / "link").symlink_to(place.outside)
        else:
            (place.dest / "unet").symlink_to(place.outside)
        place.check()


def test_a_report_that_names_files_outside_is_none(place: Place) -> None:
    report = place.report
    for path in ("victim", "../outside/victim", str(place.outside / "victim"), ".", "", ".recast"):
        shutil.rmtree(place.dest, ignore_errors=True)
        shutil.copytree(place.outside.parent / "finished", place.dest)
        file = {**report["published_files"][0], "path": path}
        changed = {**report, "published_files": [*report["published_files"], file]}
        for options in ((), ("--overwrite",), ("--overwrite", "--to", "fp16")):
            (place.dest / "recast.json").write_text(json.dumps(changed))
            result = convert(place.source, place.dest, *options)
            assert result.returncode in (0, 73), result.stderr
            assert tree(place.outside) == place.before
        run = place.begin_publication()
        (run / "new" / "recast.json").write_text(json.dumps(changed))
        assert convert(place.source, place.dest).returncode in (0, 73)
        assert tree(place.outside) == place.before


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    """A name of a socket is short, so it is made where it is."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("special", [fifo, listening])
def test_special_files_in_a_destination_are_not_waited_for(
    special: Callable[[Path], None], place: Place
) -> None:
    folder = place.dest / ".recast"
    for name in ("lock", "publish", "run-1", "trash-1", "journal"):
        shutil.rmtree(place.dest, ignore_errors=True)
        folder.mkdir(parents=True)
        special(folder / name)
        place.check()
    for begin in (place.begin, place.begin_publication):
        for name in (*OWN, f"new/{SHARD}", "new/x.part", "new/unet/x.part"):
            path = begin() / name
            path.unlink(missing_ok=True)
            special(path)
            place.check()
            place.check("--overwrite")
    for options in ((), ("--overwrite",)):
        shutil.rmtree(place.dest, ignore_errors=True)
        place.dest.mkdir()
        special(place.dest / "recast.json")
        place.check(*options)


@pytest.mark.parametrize("name", ["journal", "lock.1", "run-", "run-x", "notes", "run-1.zz"])
def test_what_recast_does_not_know_stays(name: str, place: Place) -> None:
    """Of another version or of somebody's: refused, with what is there left as it is."""
    for make in (Path.mkdir, Path.touch):
        shutil.rmtree(place.dest, ignore_errors=True)
        (place.dest / ".recast").mkdir(parents=True)
        make(place.dest / ".recast" / name)
        before = tree(place.dest)
        for options in ((), ("--overwrite",), ("--dry-run",)):
            result = convert(place.source, place.dest, *options)
            assert result.returncode == 73, result.stderr
            what = "is not something that recast creates"
            assert f"{place.dest / '.recast' / name}: {what}" in result.stderr
            assert "hint: " in result.stderr
            assert tree(place.dest) == before


def test_what_a_cleaner_took_is_made_again(place: Place) -> None:
    """One that removes empty directories, or some files."""
    for begin in (place.begin, place.begin_publication):
        for name in ("new", "seal", "old", "about.json", "replaces", "seal/0", f"new/{SHARD}"):
            path = begin() / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            result = convert(place.source, place.dest)
            if begin == place.begin:
                assert result.returncode == 0, (name, result.stderr)
                assert_whole(place.dest, place.expected)
            else:
                assert result.returncode in (0, 73), (name, result.stderr)
                assert result.returncode == 0 or not (place.dest / "model_index.json").exists()
