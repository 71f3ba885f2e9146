"""Killed at any moment: no partial model is ever visible, and the rerun makes the right one.

`RECAST_KILLS` says how many kills, `RECAST_SEED` at which moments.
"""

import collections
import json
import os
import random
import shutil
import statistics
import time
from pathlib import Path

import pytest
from interrupted import (
    MIB,
    assert_loads,
    assert_whole,
    content,
    converted,
    finish,
    is_publishing,
    runs,
    sharded,
    start,
    wait_for,
)

# Every call to the file system is the last one in tests/faults, which `make test` runs.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("RECAST_KILLS", "30"))
SEED = int(os.environ.get("RECAST_SEED", "0"))
PHASES = ("not begun", "staging", "publishing", "done")


class Killer:
    """Kills runs of one command, half at any moment of its usual time, half while it works."""

    def __init__(self, source: Path, expected: dict[str, bytes], old: Path | None = None) -> None:
        self.source, self.expected, self.old = source, expected, old
        self.dest = source.parent / "out"
        # A thread and nothing to print: more of the time is spent at what matters here.
        self.options = ("--threads", 1, "--quiet", *(("--overwrite",) if old else ()))
        self.choose = random.Random(SEED)
        self.hits: collections.Counter[str] = collections.Counter()
        self.times: collections.deque[float] = collections.deque(maxlen=5)
        for _ in range(3):
            self.prepare()
            self.run_through("undisturbed")

    def prepare(self) -> None:
        """Makes the destination what it is before the first run."""
        shutil.rmtree(self.dest, ignore_errors=True)
        if self.old:
            shutil.copytree(self.old, self.dest)

    def run_through(self, note: str) -> None:
        """Runs to the end, which must make the right tree."""
        phase, started = self.phase(), time.monotonic()
        result = finish(start(self.source, self.dest, *self.options))
        if phase in ("not begun", "staging"):
            self.times.append(time.monotonic() - started)
        assert result.returncode == 0, f"{note}: {result.stderr}"
        assert_whole(self.dest, self.expected, note)

    def kill(self) -> str:
        """Kills a run, and gives the moment in words, for messages."""
        # A machine is not equally fast all the time; so that kills are spread, the last runs count.
        usual, since = statistics.median(self.times), self.choose.choice(("start", "work"))
        moment = self.choose.uniform(0, 1.2 if since == "start" else 0.3) * usual
        before = runs(self.dest)
        process = start(self.source, self.dest, *self.options)
        if since == "work":
            # Python takes its time to start; what is at stake begins after it. Of a run that goes
            # on with another's, nothing tells when it begins.
            wait_for(process, lambda: bool(before or runs(self.dest)))
        time.sleep(moment)
        process.kill()
        finish(process)
        phase = self.phase()
        self.hits[phase] += 1
        return f"seed {SEED}, kill {self.hits.total()}, {moment:.4f} s after its {since}, {phase}"

    def phase(self) -> str:
        if is_publishing(self.dest):
            return "publishing"
        if content(self.dest) == self.expected:
            return "done"
        return "staging" if (self.dest / ".recast").exists() else "not begun"

    def tell(self, what: str, capsys: pytest.CaptureFixture[str]) -> None:
        parts = ", ".join(f"{self.hits[phase]} {phase}" for phase in PHASES)
        with capsys.disabled():
            print(f"\n{what}: {self.hits.total()} kills, seed {SEED}: {parts}")
        assert self.hits["staging"], "no kill hit a run at work"


def test_killed_at_any_moment_the_rerun_makes_the_right_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when the rerun is killed, and the rerun of the rerun."""
    source = sharded(tmp_path / "in", [6 * MIB] * 8)
    expected = converted(source, tmp_path / "clean")
    killer = Killer(source, expected)
    while killer.hits.total() < KILLS:
        killer.prepare()
        for _ in range(min(killer.choose.choice((1, 1, 2, 3)), KILLS - killer.hits.total())):
            note = killer.kill()
            found = content(killer.dest)
            if "config.json" in found:
                assert found == expected, note
                assert_loads(killer.dest, source)
            if killer.phase() == "done":
                break
        killer.run_through(note)
    killer.tell("a new model", capsys)


def test_killed_while_replacing_a_model_either_model_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = sharded(tmp_path / "in", [6 * MIB] * 8)
    old_source = sharded(tmp_path / "old-in", [MIB] * 3, seed=100)
    new = converted(source, tmp_path / "clean")
    old = converted(old_source, tmp_path / "old", "--to", "fp16")
    assert old.keys() != new.keys()
    killer = Killer(source, new, tmp_path / "old")
    while killer.hits.total() < KILLS // 3:
        killer.prepare()
        for _ in range(min(killer.choose.choice((1, 1, 2)), KILLS // 3 - killer.hits.total())):
            note = killer.kill()
            found = content(killer.dest)
            if "config.json" in found:
                assert found in (old, new), note
                assert_loads(killer.dest, source if found == new else old_source)
                report = killer.dest / "recast.json"
                if report.exists():
                    to = json.loads(report.read_text())["to"]
                    assert found == (new if to == "bf16" else old), note
            if killer.phase() == "done":
                break
        killer.run_through(note)
    killer.tell("an old model replaced", capsys)
