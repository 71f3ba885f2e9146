"""How time and memory of `recast convert` grow with size, tensors and shards.

`make bench-scale` writes the tables into docs/benchmarks.md and the chart into docs/scale.svg. The
sources are sparse files of zeros, so nothing is read from the disk; what is written is real. The
points of an axis take turns. Last comes a checkpoint that is larger than the memory of most
machines, once beside cp and once in a memory cgroup.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common import (
    CPUS,
    MIB,
    ROOT,
    Run,
    convert,
    idle_anon,
    machine,
    memory,
    need_space,
    order,
    publish,
    remove,
    run,
)
from inputs import llama_config, llama_shapes, sparse, split, write_folder, write_sparse
from plot import bars

CGROUPS = Path("/sys/fs/cgroup")
LIMIT = 512 * MIB
Row = tuple[str, float, str, str]


@dataclass
class Point:
    """A sparse source and its counted runs."""

    label: str
    nbytes: float
    tensors: int
    shards: int
    anon: int = 0
    runs: list[Run] = field(default_factory=list)

    def median(self, what: str) -> float:
        """The median of one field of the runs."""
        values = sorted(getattr(one, what) for one in self.runs)
        return values[len(values) // 2]


def axes(unit: float) -> dict[str, list[Point]]:
    """What grows, and how far; `unit` is a gigabyte, or less for a quick try."""
    sizes = (0.25, 0.5, 1, 2, 4)
    return {
        "size": [Point(f"{n * unit / 1e9:g} GB", n * unit, 256, 4) for n in sizes],
        "tensors": [Point(f"{n:,} tensor{'s' * (n > 1)}", unit, n, 1) for n in (1, 1_000, 100_000)],
        "shards": [Point(f"{n:,} shard{'s' * (n > 1)}", unit, 1_000, n) for n in (1, 30, 1_000)],
    }


def measure(points: list[Point], rounds: int, work: Path, idle: int) -> None:
    """Convert every point once for its anonymous memory, then in turn for its time."""
    dest = work / "output"
    commands = [
        convert(sparse(work / f"source-{n}", one.nbytes, one.tensors, one.shards), dest)
        for n, one in enumerate(points)
    ]
    for one, command in zip(points, commands, strict=True):
        print(f"memory: {one.label}", file=sys.stderr)
        one.anon = run(command, "json", sample=True).anon - idle
        remove(dest)
    for number in range(rounds):
        for index in order(len(points), number):
            print(f"round {number + 1} of {rounds}: {points[index].label}", file=sys.stderr)
            points[index].runs.append(run(commands[index], "json"))
            remove(dest)
    for number in range(len(points)):
        remove(work / f"source-{number}")


def table(axis: str, points: list[Point]) -> tuple[list[str], tuple[str, list[Row]]]:
    """One axis as Markdown and as a group of bars."""
    fixed = {
        "size": "256 tensors in 4 shards",
        "tensors": "one shard",
        "shards": "1,000 tensors",
    }[axis]
    same = "" if axis == "size" else f", {points[0].nbytes / 1e9:g} GB"
    heading = f"Growing {axis} ({fixed}{same})"
    lines = [
        f"\n**{heading}**\n",
        "| | own clock | GB/s read + written | peak RSS | peak anonymous |",
        "|---|--:|--:|--:|--:|",
    ]
    rows: list[Row] = []
    for one in points:
        seconds, anon = one.median("clock"), one.anon / MIB
        rate, rss = one.nbytes * 1.5 / seconds / 1e9, one.median("rss") / MIB
        lines.append(
            f"| {one.label} | {seconds:.3f} s | {rate:.2f} | {rss:,.0f} MiB | {anon:.1f} MiB |"
        )
        rows.append((one.label, seconds, f"{seconds:.2f} s, {anon:.1f} MiB", "recast"))
    return lines, (heading, rows)


def group_place() -> tuple[Path, str]:
    """The folder in which a memory cgroup can be created, and the name of its limit."""
    if (CGROUPS / "cgroup.controllers").exists():
        return CGROUPS, "memory.max"
    # Version 1: below the group of this process, so that a limit set from outside still holds.
    own = "/"
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            own = path
    return CGROUPS / "memory" / own.lstrip("/"), "memory.limit_in_bytes"


@contextmanager
def memory_group(limit: int) -> Iterator[Callable[[], None]]:
    """A function that moves its caller into a cgroup with so much memory and no swap."""
    place, limit_file = group_place()
    group = place / "recast-bench"
    group.mkdir()
    try:
        (group / limit_file).write_text(str(limit))
        for swap, most in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", limit)):
            if (group / swap).exists():
                (group / swap).write_text(str(most))

        def enter() -> None:
            (group / "cgroup.procs").write_text("0")

        yield enter
    finally:
        group.rmdir()


def limited(command: list[str], dest: Path, idle: int) -> str:
    """The large conversion in a memory cgroup, as a row of the table."""
    name = f"recast in a memory cgroup of {LIMIT // MIB} MiB"
    try:
        with memory_group(LIMIT) as enter:
            result = row(name, command, dest, idle, enter)
    except (OSError, subprocess.SubprocessError) as error:  # the latter if `enter` fails
        result = f"| {name} | not permitted: {error} | | |"
    except SystemExit as error:
        print(error, file=sys.stderr)
        result = f"| {name} | failed | | |"
    return result


def row(
    name: str, command: list[str], dest: Path, idle: int, enter: Callable[[], None] = lambda: None
) -> str:
    """One run with the large checkpoint as a row of the table."""
    print(f"larger than memory: {name}", file=sys.stderr)
    ours = command[0] != "cp"
    try:
        one = run(command, "json" if ours else "", sample=ours, enter=enter)
    finally:
        remove(dest)
    anon = f"{(one.anon - idle) / MIB:.1f} MiB" if ours else ""
    return f"| {name} | {one.wall:.1f} s | {one.rss / MIB:,.0f} MiB | {anon} |"


def larger_than_memory(work: Path, idle: int, layers: int) -> list[str]:
    """A Llama-2-7B in fp32, or one with fewer layers, as Markdown."""
    config = llama_config(4096, 11008, layers, 32_000)
    shapes = llama_shapes(config)
    source, dest = work / "llama", work / "output"
    write_folder(source, split(shapes, 3), write_sparse, config)
    size = sum(file.stat().st_size for file in source.iterdir())
    title = (
        f"\n**{size / 1e9:.1f} GB, the shape of Llama-2-7B in fp32 with {layers} layers**, "
        f"3 shards, on a machine with {memory() / 1e9:.1f} GB of memory; one run each"
    )
    if not need_space(work, size):
        return [f"{title}: not measured; there was not enough space on the disk."]
    command = convert(source, dest)
    copy = ["cp", "-r", "--sparse=never", str(source), str(dest)]
    return [
        f"{title}\n",
        "| | whole process | peak RSS | peak anonymous |",
        "|---|--:|--:|--:|",
        row("recast", command, dest, idle),
        limited(command, dest, idle),
        row("cp -r --sparse=never (no sync)", copy, dest, idle),
    ]


def main() -> None:
    """Run the axes and the large checkpoint, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds")
    parser.add_argument("--data", type=Path, default=ROOT / "bench-data")
    parser.add_argument("--megabytes", type=int, default=1000, help="megabytes in a unit of size")
    parser.add_argument("--layers", type=int, default=32, help="of the large checkpoint")
    parser.add_argument("--no-big", action="store_true", help="skip the large checkpoint")
    parser.add_argument("--write", type=Path, help="page to write the tables into")
    options = parser.parse_args()

    where, unit = machine("recast-weights"), options.megabytes * 1e6
    work = options.data / "scale-work"
    remove(work)
    work.mkdir(parents=True)
    lines = [
        f"{options.rounds} rounds, medians, {CPUS} threads, sparse sources, synced results. "
        f"{where}.\n",
        "![Time and memory over size, tensors and shards](scale.svg)",
    ]
    groups = []
    try:
        if not need_space(work, 4 * unit):
            sys.exit("error: not enough space on the disk")
        idle = idle_anon()
        for axis, points in axes(unit).items():
            measure(points, options.rounds, work, idle)
            text, group = table(axis, points)
            lines += text
            groups.append(group)
        if not options.no_big:
            lines += larger_than_memory(work, idle, options.layers)
    finally:
        remove(work)
    title = "recast convert, fp32 to bf16: seconds, and peak anonymous memory"
    publish(lines, options.write, "scale", bars(title, groups))


if __name__ == "__main__":
    main()
