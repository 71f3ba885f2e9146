"""Tries all schedules of runs that publish into one destination, and counts those that go wrong.

The routines of `publishing_protocol.py` say which file-system call a run makes next. All schedules
with few preemptions are tried; at any moment the source may be rewritten, and a run may be killed;
afterwards every run is done again. States that several schedules lead to are looked at once, and
counted for each. `test_publishing_model.py` has the scenarios, and is the program.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

from publishing_protocol import CONFIG, DEST, FOLDER, PUBLISH, REPORT, SOURCE, Look, Run, model

Call = tuple[Any, ...]

# The file system: paths, each with what it holds; None is a directory.


class Tree:
    """A state of the file system. Equal ones are one object."""

    known: ClassVar[dict[frozenset[tuple[str, Any]], "Tree"]] = {}

    def __init__(self, holds: dict[str, Any]) -> None:
        self.holds = holds
        self.after: dict[Call, tuple[Tree, Any]] = {}
        self.truths: dict[str, int] = {}
        self.there: dict[str, Any] = {
            path[len(DEST) + 1 :]: value
            for path, value in holds.items()
            if path.startswith(DEST + "/") and not path.startswith(FOLDER)
        }
        self.loads = CONFIG in self.there
        if REPORT in self.there:  # Without the time.
            self.there[REPORT] = self.there[REPORT].rpartition(" ")[0]
        _, recipe, text = self.there.get(CONFIG, "  ").split(" ")
        self.whole = (recipe, text) if self.loads and self.there == model(recipe, text) else None

    @staticmethod
    def of(holds: dict[str, Any]) -> "Tree":
        key = frozenset(holds.items())
        return Tree.known.get(key) or Tree.known.setdefault(key, Tree(holds))

    def below(self, path: str) -> list[str]:
        return [other for other in self.holds if other.startswith(path + "/")]

    def names(self, path: str) -> tuple[str, ...]:
        if path not in self.holds:
            raise FileNotFoundError
        start = len(path) + 1
        return tuple(sorted(it[start:] for it in self.below(path) if "/" not in it[start:]))

    def do(self, call: Call) -> tuple["Tree", Any]:
        """The state after a call, and its result; an error is a result too."""
        if call not in self.after:
            holds = dict(self.holds)
            try:
                result = getattr(self, call[0])(holds, *call[1:])
            except OSError as error:
                self.after[call] = self, type(error)
            else:
                self.after[call] = Tree.of(holds), result
        return self.after[call]

    def list(self, _: dict[str, Any], path: str) -> tuple[str, ...]:
        return self.names(path)

    def read(self, _: dict[str, Any], path: str) -> Any:
        if path not in self.holds:
            raise FileNotFoundError
        return self.holds[path]

    def write(self, holds: dict[str, Any], path: str, value: Any) -> None:
        if path.rpartition("/")[0] not in holds:
            raise FileNotFoundError
        holds[path] = value

    def mkdir(self, holds: dict[str, Any], path: str) -> None:
        if path in holds:
            raise FileExistsError
        self.write(holds, path, None)

    def remove(self, holds: dict[str, Any], path: str) -> None:
        """Removes a file, or a directory that is empty."""
        if path not in holds:
            raise FileNotFoundError
        if self.below(path):
            raise FileExistsError
        del holds[path]

    def clear(self, holds: dict[str, Any], path: str) -> None:
        """Removes a tree. One call, because nobody but who removes it has business there."""
        for gone in [path, *self.below(path)]:
            holds.pop(gone, None)

    def fill(self, holds: dict[str, Any], path: str, note: Any) -> None:
        """Makes the directory of a run that is being set up, which nobody looks into."""
        self.mkdir(holds, path)
        holds.update({f"{path}/{part}": None for part in ("new", "old", "seal")})
        holds[f"{path}/replaces"] = note

    def prune(self, holds: dict[str, Any], identity: str, part: str) -> None:
        """Removes what is in the directory of an ID, by a handle on it: wherever that is by now."""
        for path in self.holds:
            if f"/{identity}/{part}/" in f"{path}/":
                del holds[path]

    def rename(self, holds: dict[str, Any], old: str, new: str) -> None:
        """Replaces a file by a file, and an empty directory by a directory."""
        if old not in holds or new.rpartition("/")[0] not in holds:
            raise FileNotFoundError
        if new in holds and ((holds[old] is None) != (holds[new] is None) or self.below(new)):
            raise FileExistsError
        for path in [old, *self.below(old)]:
            holds[new + path[len(old) :]] = holds.pop(path)

    def move(self, holds: dict[str, Any], old: str, new: str) -> None:
        """Renames without replacing."""
        if old in holds and new in holds:
            raise FileExistsError
        self.rename(holds, old, new)


class Point:
    """A moment in a routine: the results so far, and the call or the verdict they lead to."""

    known: ClassVar[dict[Look, "Point"]] = {}

    def __init__(self, look: Look, results: tuple[Any, ...] = ()) -> None:
        self.look, self.results = look, results
        self.call: Call = ()
        self.verdict = ""
        self.after: dict[Any, Point] = {}

    @staticmethod
    def first(look: Look) -> "Point":
        if look not in Point.known:
            Point.known[look] = Point(look).reached()
        return Point.known[look]

    def reached(self) -> "Point":
        steps = self.look.steps()
        try:
            self.call = next(steps)
            for it in self.results:
                failed = isinstance(it, type)
                self.call = steps.throw(it()) if failed else steps.send(it)
        except StopIteration as end:
            if isinstance(end.value, Look):
                return Point.first(end.value)
            self.verdict = end.value
        return self

    def then(self, result: Any) -> "Point":
        if result not in self.after:
            self.after[result] = Point(self.look, (*self.results, result)).reached()
        return self.after[result]


@dataclass(frozen=True)
class Scenario:
    """Runs, and what they find."""

    name: str
    runs: tuple[Run, ...]
    old: str = ""
    """The recipe of the model that is there before."""
    source: tuple[str, ...] = ("1",)
    """What the source says, one after the other."""
    text: str = "0"
    """What the source said when the model that is there was made."""
    more: tuple[tuple[str, Any], ...] = ()
    """What is there beside it, or instead."""
    lost: tuple[str, str] | None = None
    """Of which model a file is lost."""

    def begin(self) -> Tree:
        holds: dict[str, Any] = {"": None, DEST: None, SOURCE: (0, self.source[0])}
        old = model(self.old, self.text) if self.old else {}
        holds |= {f"{DEST}/{name}": it + " 0" * (name == REPORT) for name, it in old.items()}
        return Tree.of(holds | dict(self.more))


# What can be true of a moment, for a run: bits; above them one for each text of its model there.
IN_THE_WAY, IS_THERE = 1, 2


def truths(tree: Tree, recipe: str) -> int:
    """What is true of the destination for a run of a recipe."""
    if recipe not in tree.truths:
        names = tree.names(FOLDER) if FOLDER in tree.holds else ()
        other = any(it.startswith("run-") and it[4] != recipe for it in names)
        its = (recipe, tree.holds[SOURCE][1])
        stranger = tree.there and tree.whole != its and not tree.below(PUBLISH)
        there = IS_THERE << int(tree.whole[1]) if tree.whole and tree.whole[0] == recipe else 0
        tree.truths[recipe] = there | IN_THE_WAY * bool(other or stranger)
    return tree.truths[recipe]


class Node(NamedTuple):
    """A moment of a schedule, and what may still happen."""

    tree: Tree
    points: tuple[Point | None, ...]
    """Where the runs are that are still at work."""
    known: tuple[int, ...]
    """What was true at some moment since each began to look."""
    looked: frozenset[int]
    """The runs that have looked first."""
    late: frozenset[int]
    """Those that had when what is there was published: they may not replace it."""
    turn: int
    preemptions: int
    kills: int
    done: bool = False
    """Whether a run has said that it is."""


@dataclass
class Exploration:
    """All schedules of a scenario."""

    scenario: Scenario
    preemptions: int
    kills: int
    without: frozenset[str] = frozenset()
    counts: dict[Node, tuple[int, int]] = field(default_factory=dict)
    reruns: dict[tuple[Tree, Run], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.runs = [
            replace(run, name=f"{at}.", without=self.without)
            for at, run in enumerate(self.scenario.runs)
        ]
        self.again = sorted({replace(it, name="rerun.") for it in self.runs}, key=str)
        self.damaged = self.scenario.begin().there

    def begin(self) -> Node:
        """The moment before anything has happened."""
        points = tuple(Point.first(Look(run)) for run in self.runs)
        none, known = frozenset[int](), (0,) * len(points)
        tree = self.scenario.begin()
        return Node(tree, points, known, none, none, -1, self.preemptions, self.kills)

    def moves(self, node: Node) -> Iterator[tuple[int | str, Node, str]]:
        """What can happen next: who or what it is, what it leads to, and what is wrong then."""
        tree, points, turn = node.tree, node.points, node.turn
        running = turn >= 0 and points[turn] is not None
        for at, point in enumerate(points):
            left = node.preemptions - (running and at != turn)
            if point is None or left < 0:
                continue
            changed, result = tree.do(point.call)
            then = point.then(result)
            known = self.known(node, at, changed, then)
            wrong = self.wrong(changed, then, known[at])
            if changed is not tree and tree.there != changed.there:
                wrong = wrong or self.replaces(node, point.call)
            looked = node.looked | {at} if then.look.seen else node.looked
            late = looked if changed.whole and tree.there != changed.there else node.late
            after = list(points)
            after[at] = then
            if then.verdict:
                after[at], known[at] = None, 0
            said = node.done or then.verdict.startswith("done")
            moved = node._replace(tree=changed, points=tuple(after), known=tuple(known))
            moved = moved._replace(looked=looked, late=late, turn=at, preemptions=left)
            yield at, moved._replace(done=said), wrong
        if node.kills and running:
            alive = (*points[:turn], None, *points[turn + 1 :])
            known = [*node.known[:turn], 0, *node.known[turn + 1 :]]
            killed = node._replace(points=alive, known=tuple(known), kills=node.kills - 1)
            yield f"run {turn} is killed", killed._replace(turn=-1), ""
        number = tree.holds[SOURCE][0] + 1
        if number < len(self.scenario.source) and any(points):
            changed, _ = tree.do(("write", SOURCE, (number, self.scenario.source[number])))
            bits = (truths(changed, run.recipe) for run in self.runs)
            known = [was | bit for was, bit in zip(node.known, bits, strict=True)]
            yield "the source is rewritten", node._replace(tree=changed, known=tuple(known)), ""

    def known(self, node: Node, at: int, changed: Tree, then: Point) -> list[int]:
        """What is known to each run after one went on."""
        known, point = list(node.known), node.points[at]
        first = point and not point.look.number and not point.results
        if first or not then.results:
            known[at] = truths(node.tree, then.look.run.recipe) if first else 0
        if changed is not node.tree or not then.results:
            for number, point in enumerate(node.points):
                if point:
                    known[number] |= truths(changed, point.look.run.recipe)
        return known

    def wrong(self, tree: Tree, point: Point, known: int) -> str:
        """What is wrong after a run went on."""
        verdict = point.verdict
        if tree.loads and not tree.whole and tree.there != self.damaged:
            return f"what is there loads and is not whole: {sorted(tree.there)}"
        if verdict.startswith("done") and not known & IS_THERE << int(verdict[5:]):
            return f"says {verdict}, and its model was not there"
        if verdict in ("refused", "replaced") and not known & IN_THE_WAY:
            return f"is {verdict}, and nothing was in the way"
        return verdict if verdict == "looks for ever" else ""

    def replaces(self, node: Node, call: Call) -> str:
        """What is wrong with a change of the destination."""
        path = next(it for it in call[1:] if it.startswith(PUBLISH))
        number = path.split("/")[3].split(".")[1]
        if number.isdigit() and int(number) in node.late:
            return "replaces what was published after the first look"
        if number.isdigit() and call[1] != path and not self.runs[int(number)].overwrite:
            return "replaces without --overwrite"
        return ""

    def count(self, node: Node) -> tuple[int, int]:
        """How many schedules there are from here on, and how many of them are wrong."""
        if (counted := self.counts.get(node)) is not None:
            return counted
        total = bad = 0
        for _, then, wrong in self.moves(node):
            part = (1, 1) if wrong else self.count(then)
            total, bad = total + part[0], bad + part[1]
        self.counts[node] = (total, bad) if total else (1, int(bool(self.end(node))))
        return self.counts[node]

    def fails(self, node: Node) -> bool:
        """Whether a schedule is wrong; stops at the first."""
        if node not in self.counts:
            moved = False
            for _, then, wrong in self.moves(node):
                moved = True
                if wrong or self.fails(then):
                    return True
            if not moved and self.end(node):
                return True
            self.counts[node] = 1, 0
        return False

    def end(self, node: Node) -> str:
        """What is wrong after all runs ended, or with any of them done again then."""
        tree, kept = node.tree, node.done
        unclear = (tree.there and tree.there != self.damaged) or tree.below(PUBLISH)
        is_lost = all(self.is_lost(tree, run) for run in self.runs)
        if node.kills == self.kills and not tree.whole and (kept or unclear) and not is_lost:
            return f"what is there at the end is not whole: {sorted(tree.there)}"
        for run in self.again:
            if (tree, run) not in self.reruns:
                self.reruns[tree, run] = self.rerun(tree, run)
            if wrong := self.reruns[tree, run]:
                return f"{run.recipe}, done again: {wrong}"
        return ""

    def is_lost(self, tree: Tree, run: Run) -> bool:
        """Whether a run cannot complete a publication under way of which a file is lost."""
        its = (run.recipe, tree.holds[SOURCE][1])
        return bool(self.scenario.lost and tree.below(PUBLISH)) and its != self.scenario.lost

    def rerun(self, tree: Tree, run: Run) -> str:
        """What is wrong with a run that is alone."""
        point, known = Point.first(Look(run)), truths(tree, run.recipe)
        kept = bool(self.scenario.old or tree.there)
        while not point.verdict:
            tree, result = tree.do(point.call)
            point = point.then(result)
            known = (known if point.results else 0) | truths(tree, run.recipe)
            if wrong := self.wrong(tree, point, known):
                return wrong
        text = tree.holds[SOURCE][1]
        if point.verdict == "lost" and self.is_lost(tree, run):
            return ""
        right = ["failed" if text == run.overflows else f"done {text}"]
        if point.verdict not in right + ["refused"] * (not run.overwrite):
            return f"ends with {point.verdict}"
        if point.verdict == right[0] != "failed" and tree.whole != (run.recipe, text):
            return f"says done, and there is {tree.whole}"
        if not tree.whole and tree.there != self.damaged and (kept or tree.there):
            return f"leaves what is not whole: {sorted(tree.there)}"
        return ""


def forget() -> None:
    """Lets go of all states, which take memory."""
    Tree.known.clear()
    Point.known.clear()
