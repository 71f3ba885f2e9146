"""What a power cut leaves is a model or none, judged by the calls to the system (strace).

Also what the system decides about new files: their modes are the umask's, not the source's; only
a script stays executable.
"""

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from interrupted import (
    HANG,
    KIB,
    MIB,
    command,
    convert,
    killed_midway,
    sharded,
    slow,
    staged,
)
from support import environment

WRITES = ("write", "pwrite64", "pwritev", "copy_file_range")
CALLS = "?open,openat,?openat2,?creat,fsync,fdatasync,?sync,?syncfs,?rename,renameat,renameat2,"
CALLS += ",".join(f"?{name}" for name in WRITES)
CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)")
FLAGS = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC")


@dataclass(frozen=True)
class Call:
    """A call that succeeded: when it began and when it was over, in lines of the trace."""

    name: str
    text: str
    began: int
    ended: int

    @property
    def synced(self) -> Path | None:
        found = re.match(r"\d+<(.*)>$", self.text) if self.name in ("fsync", "fdatasync") else None
        return Path(found[1]) if found else None

    @property
    def renamed(self) -> tuple[Path, Path] | None:
        names = re.findall(r'"([^"]*)"', self.text) if self.name.startswith("rename") else []
        return (Path(names[0]), Path(names[1])) if names else None

    @property
    def filled(self) -> Path | None:
        """The file that bytes are written to: of two, the second."""
        found = re.findall(r"\d+<([^>]*)>", self.text) if self.name in WRITES else []
        return Path(found[-1]) if found else None

    @property
    def opened(self) -> Path | None:
        """The file that is opened or made to be written to."""
        writes = self.name == "creat" or any(flag in self.text for flag in FLAGS)
        found = re.search(r'"([^"]*)"', self.text)
        return Path(found[1]) if writes and found else None


def calls(trace: Path) -> Iterator[Call]:
    """The calls of a trace; one that another thread's stood between is put together again."""
    begun: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(trace.read_text().splitlines()):
        pid, _, text = line.partition(" ")
        text, first = text.strip(), number
        if text.endswith("<unfinished ...>"):
            begun[pid] = (text.removesuffix("<unfinished ...>").rstrip(), number)
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", text):
            before, first = begun.pop(pid)
            text = before + resumed[1]
        found = CALL.match(text)
        if found and int(found[3]) >= 0:
            yield Call(found[1], found[2], first, number)


@dataclass(frozen=True)
class Trace:
    dest: Path
    calls: list[Call]

    def published(self) -> list[tuple[Path, Path, Call]]:
        """The renames into DEST from where nobody looks: what, to what, and the call."""
        hidden = self.dest / ".recast"
        renames = [(*call.renamed, call) for call in self.calls if call.renamed]
        found = [rename for rename in renames if not rename[1].is_relative_to(hidden)]
        assert found, "the trace has no rename"
        assert all(source.is_relative_to(hidden) for source, *_ in found)
        return found

    def transition(self) -> Call:
        """The rename with which publication begins: from then on there is no way back."""
        publish = self.dest / ".recast" / "publish"
        (call,) = [call for call in self.calls if call.renamed and call.renamed[1] == publish]
        return call

    def names(self, path: Path, before: Call) -> list[Path]:
        """All names that what is at `path` when a call begins had since the trace began."""
        found = [path]
        for call in reversed(self.calls):
            if call.renamed and call.ended < before.began:
                old, new = call.renamed
                if found[-1].is_relative_to(new):
                    found.append(old / found[-1].relative_to(new))
        return found

    def is_synced(self, path: Path, *, after: int = -1, before: int | None = None) -> bool:
        """Whether a sync of `path` began after one line and was over before another."""
        return any(
            call.synced == path and call.began > after and (before is None or call.ended < before)
            for call in self.calls
        )


def traced(source: Path, dest: Path, *options: str) -> Trace:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = dest.with_suffix(".trace")
    strace = ["strace", "-f", "-y", "-s", "0", "-o", str(trace), "-e", f"trace={CALLS}"]
    if subprocess.run([*strace, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not let strace trace")
    result = subprocess.run(
        [*strace, *command(source, dest, *options)],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
        env=environment(),
    )
    assert result.returncode == 0, result.stderr
    return Trace(dest, list(calls(trace)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded model with a file in a folder."""
    source = sharded(tmp_path_factory.mktemp("durability") / "in", [256 * KIB] * 4 + [MIB])
    (source / "original").mkdir()
    (source / "original" / "params.json").write_text("{}")
    return source


@pytest.fixture(scope="module")
def durable(source: Path) -> Trace:
    return traced(source, source.parent / "out")


def assert_files_are_synced(trace: Trace) -> None:
    """Every published file is on the disk, under some name, before there is no way back."""
    for file, _, rename in trace.published():
        names = trace.names(file, rename)
        last = max((c.ended for c in trace.calls if c.filled in names), default=-1)
        synced = [
            trace.is_synced(name, after=last, before=trace.transition().began) for name in names
        ]
        assert any(synced), names


def test_every_published_file_is_on_the_disk_before_publication_begins(
    source: Path, durable: Trace
) -> None:
    published = durable.published()
    names = {str(to.relative_to(durable.dest)) for _, to, _ in published}
    expected = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    assert names == expected | {"recast.json"}
    for file, _, rename in published:
        was = durable.names(file, rename)
        assert any(call.filled in was for call in durable.calls), f"no write to {file}"
    assert_files_are_synced(durable)


def test_what_a_run_without_sync_staged_is_synced_before_it_is_published(
    source: Path, tmp_path: Path
) -> None:
    killed_midway(slow(tmp_path / "in"), tmp_path / "out", "--no-sync")
    before = staged(tmp_path / "out")
    assert before
    trace = traced(tmp_path / "in", tmp_path / "out")
    written = {call.filled for call in trace.calls if call.filled}
    old = [file for file, to, call in trace.published() if to.name in before]
    assert len(old) == len(before)
    for file, to, call in trace.published():
        assert (to.name in before) == written.isdisjoint(trace.names(file, call)), to
    assert_files_are_synced(trace)
    assert_names_are_synced(trace)


def test_every_name_is_on_the_disk_before_the_run_ends(durable: Trace) -> None:
    for _, to, rename in durable.published():
        for folder in to.parents:
            assert durable.is_synced(folder, after=rename.ended), (to, folder)
            if folder == durable.dest:
                break


def test_the_file_that_makes_it_a_model_comes_after_all_others_are_durable(durable: Trace) -> None:
    """The report too: a model never is without it."""
    *others, config = durable.published()
    assert config[1].name == "config.json"
    assert others[-1][1].name == "recast.json"
    for _, to, rename in others:
        for folder in (to.parent, durable.dest, durable.dest.parent):
            synced = durable.is_synced(folder, after=rename.ended, before=config[2].began)
            assert synced, (to, folder)
    assert durable.is_synced(durable.dest, after=config[2].ended)


def assert_names_are_synced(trace: Trace) -> None:
    """The staged files' names are on the disk before publication begins, and that it has begun
    before the first of them is published."""
    transition, first = trace.transition(), trace.published()[0][2]
    assert transition.renamed
    run = transition.renamed[0]
    for file, _, _ in trace.published():
        (here,) = [name for name in trace.names(file, transition) if name.is_relative_to(file)]
        below = run / here.relative_to(trace.dest / ".recast" / "publish")
        named = max(
            (c.ended for c in trace.calls if c.renamed and c.renamed[1] == below), default=0
        )
        assert trace.is_synced(below.parent, after=named, before=transition.began), below
        for folder in below.parents:
            assert trace.is_synced(folder, before=transition.began), folder
            if folder == run:
                break
    assert trace.is_synced(run.parent, after=transition.ended, before=first.began)


def test_that_publication_begins_is_on_the_disk_before_the_first_rename(durable: Trace) -> None:
    assert_names_are_synced(durable)


def test_no_file_is_ever_opened_for_writing_under_its_final_name(durable: Trace) -> None:
    opened = [call.opened for call in durable.calls if call.opened]
    inside = [path for path in opened if path.is_relative_to(durable.dest)]
    assert any(".safetensors." in path.name for path in inside), "the trace shows no write"
    assert [p for p in inside if not p.is_relative_to(durable.dest / ".recast")] == []


def test_replacing_a_model_is_durable_in_the_same_order(source: Path, tmp_path: Path) -> None:
    """And the old one stops to be a model, for good, before anything of it changes."""
    dest = tmp_path / "out"
    assert convert(source, dest, "--to", "fp16").returncode == 0
    trace = traced(source, dest, "--overwrite")
    assert_files_are_synced(trace)
    assert_names_are_synced(trace)
    publish = dest / ".recast" / "publish"
    renames = [call for call in trace.calls if call.renamed]
    leaving = [
        c
        for c in renames
        if c.renamed
        and c.renamed[1].is_relative_to(publish)
        and c.renamed[1].relative_to(publish).parts[1:2] == ("old",)
    ]
    entering = [call for *_, call in trace.published()]
    first = {call.renamed[0].name for call in leaving[:3] if call.renamed}
    assert first == {"config.json", "recast.json", "model.safetensors.index.json"}
    for here, there in pairwise(leaving[:4]):
        assert trace.is_synced(dest, after=here.ended, before=there.began)
    assert trace.is_synced(dest, after=leaving[-1].ended, before=entering[0].began)
    config = next(c for c in entering if c.renamed and c.renamed[1] == dest / "config.json")
    assert all(call.ended < config.began for call in leaving)


def test_without_sync_nothing_waits_for_the_disk(source: Path, tmp_path: Path) -> None:
    trace = traced(source, tmp_path / "out", "--no-sync")
    assert trace.published()[-1][1].name == "config.json"
    assert [call for call in trace.calls if "sync" in call.name] == []


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o027, 0o077])
def test_the_modes_of_the_result_are_what_the_umask_gives(
    umask: int, source: Path, tmp_path: Path
) -> None:
    """The judge: what the shell makes under the same umask. Of the source's modes, only whether
    the owner may execute a file counts, and only for a file that is merely copied."""
    spoiled, dest = tmp_path / "in", tmp_path / "out"
    shutil.copytree(source, spoiled)
    for path in spoiled.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o744)
    for name, bits in {
        "run.sh": 0o500,
        "data.txt": 0o644,
        "others.sh": 0o611,
        "original/run.sh": 0o500,
    }.items():
        (spoiled / name).write_text("#!/bin/sh\n")
        (spoiled / name).chmod(bits)
    subprocess.run(["sh", "-c", "mkdir d && : > f"], umask=umask, cwd=tmp_path, check=True)
    run = command(spoiled, dest)
    subprocess.run(run, umask=umask, check=True, capture_output=True, env=environment())

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    made = [dest, *dest.rglob("*")]
    assert len(made) > len(list(source.rglob("*")))
    scripts = {dest / name for name in ("run.sh", "tokenizer.json", "original/run.sh")}
    assert scripts < set(made)
    # The umask makes of a script what it makes of a directory: both start with every bit.
    like = {path: "d" if path.is_dir() or path in scripts else "f" for path in made}
    assert {path: mode(path) for path in made} == {
        path: mode(tmp_path / name) for path, name in like.items()
    }


def test_a_script_that_is_executable_is_so_in_the_result(source: Path, tmp_path: Path) -> None:
    spoiled, dest = tmp_path / "in", tmp_path / "out"
    shutil.copytree(source, spoiled)
    (spoiled / "run.sh").write_text("#!/bin/sh\necho runs\n")
    (spoiled / "run.sh").chmod(0o755)
    assert convert(spoiled, dest).returncode == 0
    result = subprocess.run([dest / "run.sh"], capture_output=True, text=True, check=True)
    assert result.stdout == "runs\n"
    assert not os.access(dest / "config.json", os.X_OK)


def test_extended_attributes_stay_with_the_source(source: Path, tmp_path: Path) -> None:
    spoiled, dest = tmp_path / "in", tmp_path / "out"
    shutil.copytree(source, spoiled)
    (tmp_path / "plain").write_text("")
    for path in (spoiled, *spoiled.rglob("*")):
        try:
            os.setxattr(path, "user.note", b"private")
        except OSError as error:
            pytest.skip(f"no extended attributes here: {error}")
    assert convert(spoiled, dest).returncode == 0
    usual = os.listxattr(tmp_path / "plain")
    assert {path: os.listxattr(path) for path in dest.rglob("*")} == dict.fromkeys(
        dest.rglob("*"), usual
    )
