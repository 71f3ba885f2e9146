"""Runs that something happens to on the way: a model to convert, and processes to disturb."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file
from support import environment, fp32_bytes, heed_interrupts, raw_bytes, recast_here, tree

KIB, MIB = 1 << 10, 1 << 20
HANG = 60
"""Seconds after which something counts as hung."""
NUMPY: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
LATE = (".recast", "recast.json")
"""What is in a destination but is not the model."""


# The same for many models: making them takes longer than writing them.
values = lru_cache(maxsize=32)(fp32_bytes)


def shard_name(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


SHARD = shard_name(1, 4)
"""The first shard of a model of four."""


def sharded(path: Path, sizes: list[int], seed: int = 0) -> Path:
    """A model of fp32 shards of `sizes` bytes each, with all that stands beside them."""
    path.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for number, size in enumerate(sizes, 1):
        name, half = shard_name(number, len(sizes)), size // 8
        rows = [
            (tensor, "F32", [half], values(half, seed + 2 * number + part))
            for part, tensor in enumerate((f"layers.{number}.weight", f"layers.{number}.norm"))
        ]
        (path / name).write_bytes(raw_bytes(rows, {"format": "pt"}, pad_to=8))
        weight_map |= {tensor: name for tensor, *_ in rows}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (path / "config.json").write_text('{"model_type": "llama", "dtype": "float32"}\n')
    (path / "tokenizer.json").write_text(json.dumps({"seed": seed, "vocab": ["a", "b"]}))
    return path


def slow(path: Path) -> Path:
    """A model that can be stopped in the middle: its last shard takes longer than the others."""
    return sharded(path, [256 * KIB] * 3 + [48 * MIB])


def words(source: Path, dest: Path, *options: object) -> list[str]:
    """`convert source dest`, to bf16 unless `options` say otherwise."""
    to = () if "--to" in options else ("--to", "bf16")
    return list(map(str, ("convert", source, dest, *to, *options)))


def command(source: Path, dest: Path, *options: object) -> list[str]:
    """The same as the command of a new process."""
    return [sys.executable, "-m", "recast", *words(source, dest, *options)]


def start(source: Path, dest: Path, *options: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(source, dest, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=heed_interrupts,
    )


def finish(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    """Waits for a run to end, and gives what it said."""
    out, complaint = process.communicate(timeout=HANG)
    return subprocess.CompletedProcess(process.args, process.returncode, out, complaint)


def convert(source: Path, dest: Path, *options: object) -> "subprocess.CompletedProcess[str]":
    """A run that nothing happens to, and so one in this process."""
    return recast_here(*words(source, dest, *options))


def converted(source: Path, dest: Path, *options: object) -> dict[str, bytes]:
    """The files of an undisturbed run, which numpy agrees with."""
    result = convert(source, dest, *options)
    assert result.returncode == 0, result.stderr
    assert_loads(dest, source)
    return content(dest)


def content(path: Path) -> dict[str, bytes]:
    """Every file of the model in `path`, and nothing of recast's own."""
    return {
        str(entry.relative_to(path)): entry.read_bytes()
        for entry in path.rglob("*")
        if entry.is_file() and entry.relative_to(path).parts[0] not in LATE
    }


def assert_whole(dest: Path, expected: dict[str, bytes], note: object = "") -> None:
    """`dest` holds the model `expected` and its report, and nothing else."""
    found = content(dest)
    assert sorted(found) == sorted(expected), note
    assert [name for name in found if found[name] != expected[name]] == [], note
    names = {path.name for path in dest.iterdir()}
    assert ".recast" not in names, note
    assert "recast.json" in names, note


def assert_loads(path: Path, source: Path) -> None:
    """A loader finds, by the index, the tensors of `source` as numpy and ml_dtypes cast them."""
    dtype = json.loads((path / "config.json").read_text())["dtype"]
    weight_map = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in sorted(set(weight_map.values())):
        ours, theirs = load_file(path / shard), load_file(source / shard)
        assert ours.keys() == theirs.keys() == {n for n in weight_map if weight_map[n] == shard}
        for name, tensor in theirs.items():
            assert ours[name].dtype == NUMPY[dtype]
            assert ours[name].tobytes() == tensor.astype(NUMPY[dtype]).tobytes()


def runs(dest: Path) -> list[Path]:
    """The folders of runs that were begun in `dest` and are not being published."""
    try:
        return sorted((dest / ".recast").glob("run-*/*"))
    except FileNotFoundError:
        # Moved away while it was looked at.
        return []


def new_files(dest: Path) -> Path:
    """Where the staged files of the only run in `dest` are."""
    (run,) = runs(dest)
    return run / "new"


def staged(dest: Path) -> list[str]:
    """The files that are staged in `dest`: each is there only once it is whole and sealed."""
    found: list[str] = []
    for run in runs(dest):
        # What is moved away meanwhile is no error.
        files = [Path(at, name) for at, _, here in os.walk(run / "new") for name in here]
        names = sorted(str(path.relative_to(run / "new")) for path in files)
        found += [name for name in names if not name.endswith(".part") and name not in LATE]
    return found


def is_publishing(dest: Path) -> bool:
    return any((dest / ".recast" / "publish").glob("*"))


def stopped_midway(source: Path, dest: Path, *options: object) -> "subprocess.Popen[str]":
    """A run to a new `dest` that stands still (SIGSTOP) with some of its files staged."""
    for _ in range(20):
        process = start(source, dest, "--threads", 1, *options)
        wait_for(process, lambda: len(staged(dest)) >= 2)
        if stands_still(process) and len(staged(dest)) < len(list(source.iterdir())):
            return process
        process.kill()
        finish(process)
        shutil.rmtree(dest)
    raise AssertionError("no run could be stopped in the middle")


def killed_midway(source: Path, dest: Path, *options: object) -> list[str]:
    """A run to a new `dest` that was killed; gives the files it had staged."""
    process = stopped_midway(source, dest, *options)
    process.kill()
    finish(process)
    return staged(dest)


def wait_for(process: "subprocess.Popen[str]", done: Callable[[], bool]) -> None:
    """Waits until something is done, or the run has ended."""
    end = time.monotonic() + HANG
    while process.poll() is None and not done():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.0005)


def stands_still(process: "subprocess.Popen[str]") -> bool:
    """Stops a run where it is, unless it has ended."""
    process.send_signal(signal.SIGSTOP)
    while process.poll() is None:
        # A thread that is in a call to the system stops after it.
        threads = Path(f"/proc/{process.pid}/task").glob("*/stat")
        if all(state(thread) == "T" for thread in threads):
            return True
    return False


def state(stat: Path) -> str:
    """The letter that the system has for what a thread does."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


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
