"""Time `recast convert` and `recast.cast` beside those of another checkout, in one run.

`make bench-against BASE=PATH` compares with the checkout at PATH, whose extension must be built
(`make build` there). The interpreter and its packages are the same for both. A virtual machine
may give memory that nobody uses back to its host, and get it again page by page: whether a run
meets such memory is then chance, and makes it up to three times as slow. With a pause before each
run (`--pause 5`) all meet it.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from cold import choose, empty_cache
from common import (
    CPUS,
    MIB,
    ROOT,
    Contestant,
    commit,
    convert,
    machine,
    publish,
    remove,
    take_turns,
)
from inputs import FULL_MEGABYTES, random_llama, tiny_file, tiny_shards

HOW_COLD = choose()
WAYS = {"durable": [], "--no-sync": ["--no-sync"]}
# Of the small casts.
ELEMENTS = (4 << 10, 32 << 10, 256 << 10, 1 << 20)


def python(tree: Path) -> list[str]:
    """The interpreter that imports the package in one tree."""
    return ["env", f"PYTHONPATH={tree / 'python'}", sys.executable]


@dataclass
class Job:
    """What both are asked to do: the words after `recast`, their clock, and what is read cold."""

    what: str
    words: list[str]
    clock: str = "json"
    cold: Path | None = None

    def contestant(self, name: str, tree: Path) -> Contestant:
        """The package in one tree, asked."""
        return Contestant(name, [*python(tree), "-m", "recast", *self.words], self.clock)


def work(data: Path, dest: Path, megabytes: int) -> Iterator[Job]:
    """The jobs: a model of four shards, and what there is little to convert of."""
    model = random_llama(data, megabytes)
    for threads in sorted({1, CPUS}):
        extra = ["--threads", str(threads)]
        name = f"{threads} thread{'s' if threads > 1 else ''}"
        for how, more in WAYS.items():
            yield Job(f"{name}, {how}", convert(model, dest, *extra, *more)[1:])
    if HOW_COLD != "skip":
        yield Job("cold page cache, durable", convert(model, dest)[1:], cold=model)
    tiny = tiny_file(data, 100_000)
    yield Job("100,000 tensors in a file", convert(tiny, dest, "--no-sync")[1:])
    shards = tiny_shards(data, 100_000, 1_000)
    yield Job("inspect, 1,000 shards, 100,000 tensors", ["inspect", str(shards)], "")
    yield Job("--help", ["--help"], "")


def ratio(before: Contestant, after: Contestant, what: str) -> str:
    """After against before: the median, the median of the rounds, and the fastest."""
    ours, theirs = ([getattr(run, what) for run in each.runs] for each in (after, before))
    paired = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    median = statistics.median(ours) / statistics.median(theirs)
    return f"{median:.3f}, {paired:.3f}, {min(ours) / min(theirs):.3f}"


def row(what: str, before: Contestant, after: Contestant, again: Contestant) -> str:
    """One line of the table."""
    told = "clock" if before.clock else "wall"
    return (
        f"| {what} | {before.median(told):.3f} s | {after.median(told):.3f} s "
        f"| {ratio(before, after, told)} | {ratio(before, again, told)} "
        f"| {before.median('rss') / MIB:.0f} MiB | {after.median('rss') / MIB:.0f} MiB |"
    )


def microseconds(worker: "subprocess.Popen[str]", question: str) -> float:
    """What one worker answers."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(question, file=worker.stdin, flush=True)
    return float(worker.stdout.readline())


def casts(trees: dict[str, Path], rounds: int) -> list[str]:
    """`recast.cast` of little, as a Markdown table.

    The trees take turns at each cell. Every round starts its own processes, because where the
    memory of one lies makes a difference that lasts as long as the process.
    """
    worker = str(ROOT / "benches" / "cast_worker.py")
    pairs = list(permutations(("fp32", "fp16", "bf16"), 2))
    taken: dict[tuple[str, str, int, str], list[float]] = {}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}: recast.cast", file=sys.stderr)
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(
                    subprocess.Popen(
                        [*python(tree), worker],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
                for name, tree in trees.items()
            }
            for elements in ELEMENTS:
                for a, b in pairs:
                    for name in [*workers] if number % 2 else [*workers][::-1]:
                        took = microseconds(workers[name], f"{a} {b} {elements} 1")
                        taken.setdefault((a, b, elements, name), []).append(took)
    lines = [
        "\n`recast.cast` into a given `out`, 1 thread, microseconds before / after (ratio)\n",
        f"| elements | {' | '.join(f'{a} -> {b}' for a, b in pairs)} |",
        "|---|" + "--:|" * len(pairs),
    ]
    for elements in ELEMENTS:
        cells = []
        for a, b in pairs:
            old, new = (statistics.median(taken[a, b, elements, name]) for name in trees)
            cells.append(f"{old:.1f} / {new:.1f} ({new / old:.2f})")
        lines.append(f"| {elements >> 10:,} Ki | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Take turns at every job, then at the casts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds")
    parser.add_argument("--pause", type=float, default=0, help="seconds before each run")
    parser.add_argument("--data", type=Path, default=ROOT / "bench-data")
    parser.add_argument("--megabytes", type=int, default=FULL_MEGABYTES, help="of the input")
    parser.add_argument("--write", type=Path, help="page to write the tables into")
    options = parser.parse_args()
    if not list(options.base.glob("python/recast/_core*.so")):
        sys.exit(f"error: {options.base}: no extension is built there; run `make build` in it")
    options.data.mkdir(parents=True, exist_ok=True)
    dest = options.data / "output"
    remove(dest)
    lines = [
        f"Before: commit {commit(options.base)}. Medians of {options.rounds} rounds, alternating, "
        f"after a pause of {options.pause:g} s; by the program's own clock, where it has one. A "
        "ratio is that of the medians, the median of the rounds, and that of the fastest runs. "
        "Before itself ran twice in each round: what differs there is chance. "
        f"{machine('recast-weights', 'torch')}.\n",
        "| | before | after | after / before | before / before | peak RSS before | after |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    trees = {"before": options.base.resolve(), "after": ROOT}
    for job in work(options.data, dest, options.megabytes):

        def ready(job: Job = job) -> None:
            if job.cold:
                empty_cache(HOW_COLD, job.cold)
            time.sleep(options.pause)

        three = [job.contestant(name, trees[name]) for name in ("before", "after", "before")]
        # The first round warms the page cache and is not counted.
        take_turns(three, 1 + options.rounds, dest, ready)
        for one in three:
            del one.runs[0]
        lines.append(row(job.what, *three))
    publish(lines + casts(trees, options.rounds), options.write, "against")


if __name__ == "__main__":
    main()
