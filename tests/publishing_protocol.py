"""How runs publish a directory of files without a lock: the calls they make, one after the other.

    dest/.recast/new-ID/ID/{new,seal,old,replaces}           a run that is being set up
    dest/.recast/run-ID/ID/{new,seal,old,replaces}           staging: files, and a seal for each
    dest/.recast/publish/ID/{new,seal,old,replaces,old.list} the one publication under way
    dest/.recast/trash-ID                                    what anybody may remove

An ID is RECIPE.UNIQUE. A run looks, does one thing, and looks again, until it has a verdict. A seal
says what a file holds and what the source was then; `replaces` says what the destination held when
the run began. `publishing_model.py` tries what can go wrong. Not in the model: directories in the
destination, power loss at any moment, names that differ only in case.
"""

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Call = tuple[Any, ...]
Steps = Generator[Call, Any, Any]
"""What a run does until it looks again: ends with a verdict, or with the routine to go on with."""

WEIGHTS = {"A": ("a", "w"), "B": ("b", "w"), "O": ("o", "w")}
"""The weights that each recipe makes: one that all have, one that no other has."""
REPORT, CONFIG = "recast.json", "config"
DEST, FOLDER, PUBLISH, SOURCE = "dest", "dest/.recast", "dest/.recast/publish", "source"
LOOKS = 16
"""Who looks more often than this is taken to do so for ever; each preemption costs two."""


def names_of(recipe: str) -> tuple[str, ...]:
    """The files of a model, in the order in which they come to their places."""
    return (*WEIGHTS[recipe], REPORT, CONFIG)


def content(recipe: str, text: str, name: str) -> str:
    return f"{name} {recipe} {text}"


def model(recipe: str, text: str) -> dict[str, str]:
    return {name: content(recipe, text, name) for name in names_of(recipe)}


class Stale(Exception):
    """What is staged is of another state of the source."""


@dataclass(frozen=True)
class Run:
    """A run: a recipe, and whether it may replace what is there. Equal recipes make equal bytes."""

    recipe: str
    overwrite: bool = False
    overflows: str = ""
    """What the source says when this recipe cannot be carried out."""
    name: str = ""
    without: frozenset[str] = frozenset()
    """The rules that are left out."""

    def obeys(self, rule: str) -> bool:
        return rule not in self.without


Seen = tuple[tuple[str, ...], str | None]
"""What tells what a destination holds from what another publication leaves there."""


@dataclass(frozen=True)
class Look:
    """A run that looks for the `number`th time, with what it knows by then."""

    run: Run
    number: int = 0
    seen: Seen | None = None
    """What the destination held at the first look."""
    other: Seen | None = None
    """A model of this recipe that is damaged, or of another source."""
    mine: str = ""
    """The run that this one works on."""
    made: str = ""
    """The report that this run published."""

    def steps(self) -> Steps:
        if self.number > LOOKS:
            return "looks for ever"
        work = Work(self)
        verdict = yield from work.carry_out()
        if not verdict:
            return Look(self.run, self.number + 1, work.seen, work.other, work.mine, work.made)
        yield from work.clear_up(verdict)
        return verdict


class Work:
    """One look and what follows from it."""

    def __init__(self, look: Look) -> None:
        self.run, self.tag, self.renamed = look.run, f"{look.run.name}{look.number}", 0
        self.seen, self.other, self.mine, self.made = look.seen, look.other, look.mine, look.made

    def unique(self) -> str:
        self.renamed += 1
        return self.tag + "abcdefghijklmnop"[self.renamed]

    def carry_out(self) -> Steps:
        """A verdict, or nothing to look again."""
        try:
            return (yield from self.attempt())
        except FileNotFoundError:
            pass
        except Stale:
            yield from self.displace(self.mine)
            self.mine = ""
        return ""

    def attempt(self) -> Steps:
        run, names = self.run, (yield from self.names())
        if identity := (yield from self.publishing(names)):
            publish = PUBLISH if run.obeys("one") else f"{PUBLISH}-{identity}"
            return (yield from self.carry_on(publish, identity))
        there = yield from self.found()
        if verdict := (yield from self.judge(names, there)):
            settled = verdict.startswith("done") or (yield from self.is_settled(there))
            return verdict if settled else ""
        mine = min((it[4:] for it in names if it.startswith(f"run-{run.recipe}")), default="")
        if not mine:
            return (yield from self.set_up())
        note = yield from self.ask("read", f"{FOLDER}/run-{mine}/{mine}/replaces")
        if note != self.seen and run.obeys("same note"):
            return (yield from self.displace(mine))
        before, self.mine = self.mine, mine
        if before != mine:
            yield from self.displace(before)
        return (yield from self.stage(mine))

    def ask(self, call: str, path: str, otherwise: Any = None) -> Steps:
        try:
            return (yield call, path)
        except FileNotFoundError:
            return otherwise

    def names(self, path: str = FOLDER) -> Steps:
        return self.ask("list", path, ())

    def publishing(self, names: tuple[str, ...]) -> Steps:
        """The ID of the publication under way."""
        for name in (it for it in names if it.startswith("publish")):
            for identity in (yield from self.names(f"{FOLDER}/{name}")):
                return identity
        return ""

    def found(self) -> Steps:
        """What the destination holds."""
        first = self.run.obeys("report first")
        names = () if first else (yield "list", DEST)
        report = yield from self.ask("read", f"{DEST}/{REPORT}")
        names = (yield "list", DEST) if first else names
        if report and not self.run.obeys("time"):
            report = report.rpartition(" ")[0]
        return tuple(name for name in names if name != ".recast"), report

    def is_settled(self, there: Seen) -> Steps:
        if not self.run.obeys("settled"):
            return True
        busy = yield from self.publishing((yield from self.names()))
        return not busy and there == (yield from self.found())

    def judge(self, names: tuple[str, ...], there: Seen) -> Steps:
        """What is there: this run's result, what it may not replace, or nothing of either."""
        run, report = self.run, there[1] or " "
        if report.split()[1:2] == [run.recipe] and there != self.other:
            found = yield from self.done(report)
            if found.startswith("done"):
                for name in (it for it in names if it.startswith(f"run-{run.recipe}")):
                    yield from self.displace(name[4:])
                yield from self.sweep(names, True)
                return found
            if found == "gone" or not run.overwrite:
                return "refused"
            self.other = there
        yield from self.sweep(names, self.seen is None)
        if self.seen is None:
            others = [it[4:] for it in names if it.startswith("run-") and it[4] != run.recipe]
            if ((there[0] or others) and not run.overwrite) or self.stranger(there):
                return "refused"
            for other in others:
                yield from self.displace(other)
            self.seen = there
        return "" if self.seen == there else "replaced"

    def stranger(self, there: Seen) -> bool:
        """Whether there is a file that no report tells of."""
        known = names_of(there[1].split()[1]) if there[1] else ()
        return not {*known, *names_of(self.run.recipe)} >= set(there[0])

    def done(self, report: str) -> Steps:
        """Whether the result that has this report is there, and is of the source as it is."""
        run, text = self.run, report.split()[2]
        if not {*names_of(run.recipe)} <= {*(yield "list", DEST)}:
            return "damaged"
        made, self.made = self.made, ""
        if made and (report.startswith(made) or not run.obeys("own report")):
            return f"done {made.split()[2]}"
        for name in (*WEIGHTS[run.recipe], CONFIG) if run.obeys("content") else ():
            if (there := (yield from self.ask("read", f"{DEST}/{name}"))) is None:
                return "gone"
            if there != content(run.recipe, text, name) or (yield "read", SOURCE)[1] != text:
                return "other"
        return f"done {text}"

    def sweep(self, names: tuple[str, ...], first: bool) -> Steps:
        """Removes what is over; whoever begins also what is being set up, which may be dead."""
        for name in names:
            path = f"{FOLDER}/{name}"
            if name.startswith("trash-"):
                yield "clear", path
            elif first and name.startswith("new-") and self.run.obeys("aside"):
                trash = f"{FOLDER}/trash-{self.unique()}"
                with suppress(FileNotFoundError):
                    yield "move", path, trash
                    yield "clear", trash
            elif first and name.startswith("new-"):
                for part in ("new", "old", "seal", "replaces"):
                    yield "prune", name[4:], part
                yield "clear", path

    def displace(self, identity: str) -> Steps:
        if identity:
            with suppress(FileNotFoundError):
                yield "move", f"{FOLDER}/run-{identity}", f"{FOLDER}/trash-{self.unique()}"

    def set_up(self) -> Steps:
        run = self.run
        self.mine = f"{run.recipe}.{self.tag if run.obeys('id') else 'x'}"
        place = f"{FOLDER}/run-{self.mine}"
        new = f"{FOLDER}/new-{run.recipe}.{self.tag}" if run.obeys("own name") else place
        with suppress(FileExistsError):
            yield "mkdir", FOLDER
        yield "mkdir", new
        yield "fill", f"{new}/{self.mine}", self.seen
        with suppress(FileExistsError):
            yield "move", new, place

    def stage(self, identity: str) -> Steps:
        """Stages what is missing, and begins to publish."""
        run, inner = self.run, f"{FOLDER}/run-{identity}/{identity}"
        seals: dict[str, tuple[str, int, str]] = {}
        yield from self.compare(inner, seals)
        for name in (CONFIG, *reversed(WEIGHTS[run.recipe])):
            if name not in seals:
                now = yield "read", SOURCE
                if now[1] == run.overflows and name == "w":
                    return "failed"
                seals[name] = yield from self.make(inner, name, now)
        texts = "+".join(sorted({seal[2] for seal in seals.values()}))
        made = content(run.recipe, texts, REPORT)
        part = f"{inner}/new/{REPORT}.{self.tag}.part"
        yield "write", part, f"{made} {self.tag}"
        yield from self.put(part, f"{inner}/new/{REPORT}")
        if run.obeys("agree"):
            yield from self.compare(inner, seals)
        if len(seals) < 3 and run.obeys("missing"):
            return ""
        there = yield from self.found()
        if self.stranger(there):
            return "refused" if (yield from self.is_settled(there)) else ""
        publish = PUBLISH if run.obeys("one") else f"{PUBLISH}-{identity}"
        with suppress(FileExistsError):
            yield "rename", f"{FOLDER}/run-{identity}", publish
            self.made = made
        return ""

    def compare(self, inner: str, seals: dict[str, tuple[str, int, str]]) -> Steps:
        """Finds what is staged, all of it of the source as it is."""
        run, changed = self.run, True
        while changed:
            changed, staged = False, (yield "list", f"{inner}/new")
            for name in (*WEIGHTS[run.recipe], CONFIG):
                if name not in staged and run.obeys("missing"):
                    seals.pop(name, None)
                    continue
                seal = seals.get(name) or (yield from self.ask("read", f"{inner}/seal/{name}"))
                if not seal:  # Of before a power cut.
                    if name in staged and run.obeys("not mended"):
                        raise Stale
                    yield "clear", f"{inner}/new/{name}"
                    yield "clear", f"{inner}/seal/{name}"
                    continue
                now = yield "read", SOURCE
                if now[1] != seal[2] and run.obeys("agree"):
                    raise Stale
                seals[name] = seal[0], now[0], seal[2]
                changed |= now[0] != seal[1] and run.obeys("one moment")

    def make(self, inner: str, name: str, now: tuple[int, str]) -> Steps:
        """Puts a file and its seal."""
        run, seal, path = self.run, f"{inner}/seal/{name}", f"{inner}/new/{name}"
        part, its = f"{path}.{self.tag}.part", f"{seal}.{self.tag}.part"
        made = content(run.recipe, now[1], name), *now
        yield "write", part, made[0]
        if not run.obeys("seal first"):
            yield from self.put(part, path)
        yield "write", its, made
        move = "move" if run.obeys("seal once") else "rename"
        while not (yield from self.put(its, seal, move)):
            there = (yield from self.ask("read", seal)) or ""
            if there[::2] == made[::2] or (there and not run.obeys("seal compared")):
                break
            if there or run.obeys("not mended"):
                raise Stale
            yield "clear", seal
            yield "write", its, made
        if run.obeys("seal first"):
            yield from self.put(part, path)
        return made

    def put(self, part: str, path: str, move: str = "move") -> Steps:
        """Gives a part its name, unless another has it. Whether it did."""
        try:
            yield move, part, path
        except FileExistsError:
            yield "remove", part
            return False
        return True

    def carry_on(self, publish: str, identity: str) -> Steps:
        """Carries the publication under way to its end, whoever began it."""
        lost = yield from self.forward(publish, identity)
        if not lost or identity not in (yield from self.names(publish)):
            return ""
        if lost not in (*WEIGHTS[self.run.recipe], CONFIG) or identity[0] != self.run.recipe:
            return "lost"
        try:
            yield from self.make(f"{publish}/{identity}", lost, (yield "read", SOURCE))
        except Stale:
            return "lost" if self.run.obeys("lost once") else ""
        return ""

    def forward(self, publish: str, identity: str) -> Steps:
        """The name of a file that is not there any more, or in whose place another is."""
        run, inner = self.run, f"{publish}/{identity}"
        old = yield from self.making_way(inner)
        if old != "refuse":
            for name in old if run.obeys("model first") else reversed(old):
                with suppress(FileExistsError, FileNotFoundError):
                    move = "move" if run.obeys("kept") else "rename"
                    yield move, f"{DEST}/{name}", f"{inner}/old/{name}"
            report = yield from self.ask("read", f"{inner}/new/{REPORT}")
            report = report or (yield from self.ask("read", f"{DEST}/{REPORT}")) or ""
            if report.split()[1:2] != [identity[0]]:
                return REPORT
            new, last = names_of(identity[0]), run.obeys("model last")
            for name in new if last else reversed(new):
                if last and name == CONFIG and not {*new[:-1]} <= {*(yield "list", DEST)}:
                    return REPORT
                if not (yield from self.move_in(inner, name)):
                    return name
        trash = f"{FOLDER}/trash-{self.unique()}"
        if run.obeys("by id"):
            yield "mkdir", trash
            yield "move", inner, f"{trash}/{identity}"
            with suppress(FileExistsError):
                yield "remove", publish
        else:
            yield "move", publish, trash
        return ""

    def move_in(self, inner: str, name: str) -> Steps:
        """Whether a file is in its place."""
        try:
            yield "move", f"{inner}/new/{name}", f"{DEST}/{name}"
        except FileNotFoundError:
            return name in (yield "list", DEST)
        except FileExistsError:
            again = yield "read", f"{inner}/new/{name}"
            return again == (yield "read", f"{DEST}/{name}") and self.run.obeys("put back once")
        return True

    def making_way(self, inner: str) -> Steps:
        """The files that make way, what makes them a model first; or a refusal."""
        decided, once = f"{inner}/old.list", self.run.obeys("list once")
        old = yield from self.ask("read", decided)
        if old is None or not once:
            there = yield from self.found()
            old = tuple(sorted(there[0], key=lambda name: (name != CONFIG, name != REPORT, name)))
            if (yield "read", f"{inner}/replaces") != there and self.run.obeys("first look"):
                old = "refuse"
            yield "write", f"{decided}.{self.tag}", old
            yield from self.put(f"{decided}.{self.tag}", decided, "move" if once else "rename")
            old = yield "read", decided
        return old

    def clear_up(self, verdict: str) -> Steps:
        """Removes what is of no use to anybody."""
        if not verdict.startswith("done") and PUBLISH not in (yield from self.names()):
            yield from self.displace(self.mine)
        yield from self.sweep((yield from self.names()), False)
        with suppress(FileExistsError, FileNotFoundError):
            yield "remove", FOLDER
