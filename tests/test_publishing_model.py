"""Publishing without a lock: no schedule goes wrong, and every rule is needed for that.

The tests explore little; far more is tried by

    python tests/test_publishing_model.py [--preemptions N] [--kills N] [--without RULE]
                                          [--only TEXT] [--rules]
"""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from publishing_model import Exploration, Point, Scenario, forget
from publishing_protocol import CONFIG, DEST, FOLDER, PUBLISH, REPORT, Run, content, model

# Of a schedule: as many calls as its runs make.
RECURSION = 100_000

RULES = {
    "id": "an ID that is never used again is in every path",
    "own name": "a run is set up under a name of its own and appears whole",
    "aside": "what is being set up is moved aside before it is removed",
    "same note": "a run uses only what was set up when the destination held what it saw first",
    "first look": "only what the destination held at the first look makes way",
    "seal first": "a file gets its seal before its name",
    "seal once": "no seal is ever replaced",
    "seal compared": "who finds a seal compares it with what they made",
    "not mended": "what a power cut left without a whole seal is not mended but made elsewhere",
    "agree": "a seal counts only where it agrees with the source, to the transition",
    "one moment": "what agrees with the source is looked at until nothing changed meanwhile",
    "missing": "all files are there before the transition",
    "one": "there is one name for the publication under way",
    "list once": "what makes way is decided once",
    "kept": "an old file is moved out without replacing one that was",
    "model first": "what makes it a model goes first",
    "model last": "what makes it a model comes last",
    "by id": "what is over is moved away by its ID",
    "content": "a result is done if its files and the source are what the report says",
    "own report": "who published says so only of the report that they made",
    "report first": "the report is read before the names of the files beside it",
    "time": "a report with the same text that was written at another time is another one",
    "settled": "a destination is refused only if it stays the same while nobody publishes",
    "lost once": "who cannot make a lost file again as it was stops",
    "put back once": "a lost file that is in its place already is not in the way",
}


GUARDS = ("own name", "same note")
"""Rules without which nothing goes wrong, but work is done in vain."""
NEEDED = {
    "id": ("equal, a file lost, source rewritten", 1),
    "aside": ("equal", 1),
    "first look": ("different, one without --overwrite", 2),
    "seal first": ("equal, source rewritten", 1),
    "seal once": ("equal, source rewritten", 1),
    "seal compared": ("equal, source rewritten", 1),
    "not mended": ("equal, after a power cut, source rewritten", 1),
    "agree": ("equal, source rewritten", 0),
    "one moment": ("one, source rewritten and back", 0),
    "missing": ("equal, source rewritten", 1),
    "one": ("different, over an old model", 2),
    "list once": ("equal", 0),
    "kept": ("equal, over an old model", 0),
    "model first": ("equal, over an old model", 0),
    "model last": ("equal", 0),
    "by id": ("different", 1),
    "content": ("equal, over a model of an older source", 0),
    "own report": ("equal, source rewritten", 2),
    "report first": ("equal, over a model of an older source", 1),
    "time": ("equal, over a damaged model", 0),
    "settled": ("equal", 1),
    "lost once": ("equal, a file lost, source rewritten", 0),
    "put back once": ("equal, a file lost", 1),
}
"""For each other rule, where schedules with so many preemptions go wrong without it."""
SLOW = ("one", "own report", "not mended")
"""Rules for which the tests have no time."""


def begun(place: str, staged: dict[str, Any], seals: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What is left of a run or a publication that has begun."""
    inner = f"{place}/A.x"
    folders = (FOLDER, place, inner, *(f"{inner}/{part}" for part in ("new", "old", "seal")))
    holds: dict[str, Any] = dict.fromkeys(folders) | {f"{inner}/replaces": ((), None)}
    holds |= {f"{inner}/new/{name}": it for name, it in staged.items()}
    holds |= {f"{inner}/seal/{name}": it for name, it in seals.items()}
    return tuple(holds.items())


def scenarios() -> list[Scenario]:
    """What is explored; the runs of one scenario may begin in any order."""
    a, b = Run("A"), Run("B")
    over_a, over_b = Run("A", overwrite=True), Run("B", overwrite=True)
    fails = Run("A", overwrite=True, overflows="1")
    damaged = ((f"{DEST}/w", "w damaged"),)
    its, twice = ("A", "1"), ("1", "2")
    # A publication of which a file was lost, and what a power cut left: a file with half a seal.
    staged = model(*its) | {REPORT: content(*its, REPORT) + " x"}
    seal = content(*its, "w"), 0, "1"
    lost = begun(PUBLISH, {name: it for name, it in staged.items() if name != "w"}, {"w": seal})
    cut = begun(f"{FOLDER}/run-A.x", {CONFIG: ""}, {CONFIG: ""})
    return [
        Scenario("equal", (a, a)),
        Scenario("equal, over an old model", (over_a, over_a), "O"),
        Scenario("equal, one without --overwrite", (a, over_a)),
        Scenario("equal, one without --overwrite, over an old model", (a, over_a), "O"),
        Scenario("equal, over a model of an older source", (over_a, over_a), "A"),
        Scenario("equal, one without --overwrite, over an older one", (a, over_a), "A"),
        Scenario("equal, over a damaged model", (over_a, over_a), "A", text="1", more=damaged),
        Scenario("different", (over_a, over_b)),
        Scenario("different, over an old model", (over_a, over_b), "O"),
        Scenario("different, over a model of one", (over_a, over_b), "A"),
        Scenario("different, one without --overwrite", (a, over_b)),
        Scenario("different, none with --overwrite", (a, b)),
        Scenario("equal, a file lost", (a, a), more=lost, lost=its),
        Scenario("equal, a file lost, source rewritten", (a, over_a), "", twice, "", lost, its),
        Scenario("different, a file lost", (over_a, over_b), more=lost, lost=its),
        Scenario("equal, after a power cut, source rewritten", (a, a), "", twice, more=cut),
        Scenario("equal, source rewritten", (a, a), source=twice),
        Scenario("equal, source rewritten, over an old model", (over_a, over_a), "O", twice),
        Scenario("one, source rewritten and back", (a,), source=("1", "2", "1")),
        Scenario("equal, source rewritten and back", (a, a), source=("1", "2", "1")),
        Scenario("equal, one overflows", (fails, fails), "O", twice),
        Scenario("different, source rewritten", (over_a, over_b), "O", twice),
        Scenario("three equal", (a, a, a)),
        Scenario("two equal and another, over an old model", (over_a, over_b, over_a), "O"),
        Scenario("two equal and another, one without --overwrite", (a, over_a, over_b)),
    ]


SCENARIOS = {scenario.name: scenario for scenario in scenarios()}
QUICK = [it for it in SCENARIOS.values() if "source rewritten" not in it.name or not it.runs[1:]]


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    # As long as it is needed: with it, other readers of this process could run out of stack.
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(RECURSION)
    yield
    sys.setrecursionlimit(before)
    forget()


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_no_schedule_without_preemptions_goes_wrong(scenario: Scenario) -> None:
    exploration = Exploration(scenario, preemptions=0, kills=1)
    schedules, wrong = exploration.count(exploration.begin())
    assert schedules > 50
    assert not wrong, schedule(exploration)


def test_no_schedule_with_one_preemption_goes_wrong() -> None:
    exploration = Exploration(SCENARIOS["equal, over an old model"], preemptions=1, kills=1)
    schedules, wrong = exploration.count(exploration.begin())
    assert schedules > 1000
    assert not wrong, schedule(exploration)


def is_needed(rule: str) -> bool:
    name, preemptions = NEEDED[rule]
    exploration = Exploration(SCENARIOS[name], preemptions, 1, frozenset([rule]))
    return exploration.fails(exploration.begin())


@pytest.mark.parametrize("rule", [rule for rule in NEEDED if rule not in SLOW])
def test_a_schedule_goes_wrong_without(rule: str) -> None:
    assert is_needed(rule)


def test_every_rule_is_needed_or_a_guard() -> None:
    assert sorted([*NEEDED, *GUARDS]) == sorted(RULES)


def test_what_goes_wrong_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["", "--preemptions", "0", "--without", "model last", "--only", "equal, over an"]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 1
    out = capsys.readouterr().out
    assert "=> what is there loads and is not whole: ['config']" in out


def schedule(exploration: Exploration) -> list[str]:
    """A schedule that is wrong."""
    lines, node = [], exploration.begin()
    while moves := list(exploration.moves(node)):
        for who, then, wrong in moves:
            if wrong or exploration.count(then)[1]:
                point = node.points[who] if isinstance(who, int) else None
                lines.append(f"{who}: {' '.join(map(str, point.call))}" if point else str(who))
                if wrong:
                    return [*lines, f"=> {wrong}"]
                node = then
                break
    return [*lines, f"=> {exploration.end(node)}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preemptions", type=int, default=2, metavar="N")
    parser.add_argument("--kills", type=int, default=1, metavar="N")
    parser.add_argument("--without", action="append", choices=RULES, default=[], help=str(RULES))
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios named so")
    parser.add_argument("--rules", action="store_true", help="only whether each rule is needed")
    options = parser.parse_args()
    sys.setrecursionlimit(RECURSION)
    if options.rules:
        needed = {rule: is_needed(rule) for rule in NEEDED}
        print(
            *(f"{rule}: {'needed' if it else 'NOT NEEDED'}" for rule, it in needed.items()),
            sep="\n",
        )
        return int(not all(needed.values()))
    failed = False
    for scenario in scenarios():
        if options.only not in scenario.name:
            continue
        began, without = time.monotonic(), frozenset(options.without)
        exploration = Exploration(scenario, options.preemptions, options.kills, without)
        total, bad = exploration.count(exploration.begin())
        states, seconds = len(exploration.counts), time.monotonic() - began
        looks = 1 + max(it.number for it in Point.known)
        print(f"{scenario.name}: {total:,} schedules, {bad:,} wrong ({states:,} states, ", end="")
        print(f"no run looked more than {looks} times, {seconds:.0f} s)", flush=True)
        if bad:
            print(*(f"    {line}" for line in schedule(exploration)), sep="\n")
        failed |= bool(bad)
        forget()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
