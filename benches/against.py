"""Time `recast convert` of this checkout beside that of another, alternating, in one run.

`make bench-against BASE=PATH` compares with the checkout at PATH, whose extension must be built
(`make build` there). The interpreter and its packages are the same for both.
"""

import argparse
import statistics
import sys
from pathlib import Path

from common import (
    CPUS,
    MIB,
    ROOT,
    Contestant,
    machine,
    publish,
    remove,
    take_turns,
)
from inputs import FULL_MEGABYTES, random_llama, tiny_file

WAYS = {"durable": [], "--no-sync": ["--no-sync"]}


def contestant(name: str, tree: Path, source: Path, dest: Path, options: list[str]) -> Contestant:
    """The conversion by the package in one tree."""
    python = ["env", f"PYTHONPATH={tree / 'python'}", sys.executable]
    command = [*python, "-m", "recast", "convert", str(source), str(dest), "--to", "bf16"]
    return Contestant(name, [*command, "--json", *options], "json")


def ratio(before: Contestant, after: Contestant, what: str) -> str:
    """After against before: of the medians, and of the fastest runs."""
    fastest = [min(getattr(one, what) for one in each.runs) for each in (after, before)]
    return f"{after.median(what) / before.median(what):.3f} ({fastest[0] / fastest[1]:.3f})"


def row(what: str, before: Contestant, after: Contestant) -> str:
    """One line of the table."""
    clocks = [(one.clock, other.clock) for one, other in zip(after.runs, before.runs, strict=True)]
    paired = statistics.median(one / other for one, other in clocks if one and other)
    return (
        f"| {what} | {before.median('clock'):.2f} s | {after.median('clock'):.2f} s "
        f"| {ratio(before, after, 'clock')} | {paired:.3f} | {ratio(before, after, 'wall')} "
        f"| {before.median('rss') / MIB:.0f} MiB | {after.median('rss') / MIB:.0f} MiB |"
    )


def main() -> None:
    """Take turns on a model of four shards and on a file of many tensors."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds")
    parser.add_argument("--data", type=Path, default=ROOT / "bench-data")
    parser.add_argument("--megabytes", type=int, default=FULL_MEGABYTES, help="of the input")
    options = parser.parse_args()
    if not list(options.base.glob("python/recast/_core*.so")):
        sys.exit(f"error: {options.base}: no extension is built there; run `make build` in it")
    options.data.mkdir(parents=True, exist_ok=True)
    dest = options.data / "output"
    remove(dest)
    model = random_llama(options.data, options.megabytes)
    jobs = [
        (f"{threads} thread{'s' if threads > 1 else ''}, {how}", model, threads, extra)
        for threads in sorted({1, CPUS})
        for how, extra in WAYS.items()
    ]
    tiny = tiny_file(options.data, 100_000)
    jobs.append(("100,000 tensors in a file", tiny, CPUS, ["--no-sync"]))
    lines = [
        f"Medians of {options.rounds} rounds, alternating; the fastest in brackets. {machine()}\n",
        "| | own clock before | after | ratio | ratio, paired | whole process "
        "| peak RSS before | after |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for what, source, threads, extra in jobs:
        extra = ["--threads", str(threads), *extra]
        trees = {"before": options.base.resolve(), "after": ROOT}
        pair = [contestant(name, tree, source, dest, extra) for name, tree in trees.items()]
        # The first round warms the page cache and is not counted.
        take_turns(pair, 1 + options.rounds, dest)
        for one in pair:
            del one.runs[0]
        lines.append(row(what, *pair))
    publish(lines, None, "against")


if __name__ == "__main__":
    main()
