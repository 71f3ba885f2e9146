"""Large conversions: what they do to the page cache of others, and one file beside four.

`make bench-large` writes the tables into docs/benchmarks.md. The checkpoint that is larger than the
memory of most machines is a sparse file of zeros, so nothing of it is read from the disk; what is
written is real. Beside it lies a file of somebody else's, which is in the page cache before.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cold import DROP
from common import CPUS, MIB, ROOT, convert, machine, memory, need_space, publish, remove, run
from inputs import header, llama_config, llama_shapes, split, write_folder, write_sparse
from scale import LIMIT, memory_group

OTHERS = 2000 * MIB


def resident(path: Path) -> int:
    """The bytes of a file that are in the page cache."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def cached() -> float:
    """The page cache in bytes, as `free` has it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = {line.split()[0]: int(line.split()[1]) << 10 for line in lines}
    return found["Cached:"] + found["Buffers:"]


def write_others(path: Path) -> None:
    """A file of random bytes, in the page cache."""
    with open("/dev/urandom", "rb") as random, path.open("wb") as file:
        for _ in range(OTHERS // MIB):
            file.write(random.read(MIB))


def write_dense(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of normally distributed values, which are repeated."""
    import numpy as np

    head, size = header(shapes)
    piece = np.random.default_rng(0).standard_normal(16 * MIB, np.float32) * np.float32(0.02)
    left = piece.tobytes()
    with path.open("wb") as file:
        file.write(head)
        for at in range(0, size, len(left)):
            file.write(left[: size - at])


def page_cache(work: Path, layers: int, rounds: int) -> list[str]:
    """A Llama-2-7B in fp32, whatever the page cache held before, as Markdown."""
    config = llama_config(4096, 11008, layers, 32_000)
    source, dest, others = work / "llama", work / "output", work / "others"
    write_folder(source, split(llama_shapes(config), 3), write_sparse, config)
    size = sum(file.stat().st_size for file in source.iterdir())
    title = f"\n**{size / 1e9:.1f} GB beside a file of others**, {memory() / 1e9:.1f} GB of memory"
    if not need_space(work, size / 2 + OTHERS):
        return [f"{title}: not measured; there was not enough space on the disk."]
    write_others(others)
    command = convert(source, dest)

    def empty() -> None:
        DROP.write_text("3\n")

    def full() -> None:
        for file in source.glob("*.safetensors"):
            with file.open("rb") as opened:
                while opened.read(8 * MIB):
                    pass

    states: dict[str, Callable[[], None]] = {"nothing": empty, "the source": full}
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in states}
    grouped: list[float] = []
    for number in range(rounds):
        for name, before in states.items():
            print(f"round {number + 1} of {rounds}: page cache with {name}", file=sys.stderr)
            before()
            others.read_bytes()
            was, theirs = cached(), resident(others)
            seconds = run(command).wall
            rows[name].append((seconds, resident(others) / theirs, cached() - was))
            remove(dest)
        print(f"round {number + 1} of {rounds}: cgroup", file=sys.stderr)
        empty()
        with memory_group(LIMIT) as enter:
            grouped.append(run(command, enter=enter).wall)
        remove(dest)
    base = statistics.median(grouped)
    lines = [
        f"{title}; {rounds} rounds, medians, durable, {CPUS} threads\n",
        "| page cache before | whole process | / in the cgroup | others' file still cached "
        "| cache grew by |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, found in rows.items():
        seconds, share, grew = (statistics.median(each) for each in zip(*found, strict=True))
        lines.append(
            f"| {name}, and the file of others | {seconds:.1f} s | {seconds / base:.2f} "
            f"| {100 * share:.0f} % | {grew / 1e9:.2f} GB |"
        )
    lines.append(f"| in a memory cgroup of {LIMIT // MIB} MiB | {base:.1f} s | 1.00 | | |")
    return lines


def one_file(work: Path, nbytes: float, rounds: int) -> list[str]:
    """One file beside the same bytes in four, as Markdown."""
    lines = [
        f"\n**One file beside four**, {nbytes / 1e9:g} GB of fp32 to bf16 in one tensor or four; "
        f"{rounds} rounds, medians, own clock, {CPUS} threads\n",
        "| | one file | four files | one / four |",
        "|---|--:|--:|--:|",
    ]
    if not need_space(work, 2.5 * nbytes):
        return [*lines, "| not measured: there was not enough space | | | |"]
    dest = work / "output"
    writers = {"dense": write_dense, "sparse": write_sparse}
    for kind, write in writers.items():
        sources = {}
        for count in (1, 4):
            shapes: dict[str, tuple[int, ...]]
            shapes = {f"w{n}": (int(nbytes) // 4 // count,) for n in range(count)}
            folder = work / f"{kind}-{count}"
            sources[count] = write_folder(folder, split(shapes, count), write, {})
        for options in ((), ("--no-sync",)):
            times: dict[int, list[float]] = {1: [], 4: []}
            for number in range(rounds + 1):
                for count, source in sources.items():
                    print(f"round {number} of {rounds}: {kind} {count} {options}", file=sys.stderr)
                    seconds = run(convert(source, dest, *options), "json").clock or 0.0
                    # The first brings the source into the page cache.
                    times[count] += [seconds] if number else []
                    remove(dest)
            one, four = (statistics.median(times[count]) for count in (1, 4))
            name = f"{kind}, {'no sync' if options else 'durable'}"
            lines.append(f"| {name} | {one:.2f} s | {four:.2f} s | {one / four:.2f} |")
        for source in sources.values():
            remove(source)
    return lines


def main() -> None:
    """Run both, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds")
    parser.add_argument("--data", type=Path, default=ROOT / "bench-data")
    parser.add_argument("--layers", type=int, default=32, help="of the large checkpoint")
    parser.add_argument("--gigabytes", type=float, default=5, help="in one file")
    parser.add_argument("--write", type=Path, help="page to write the tables into")
    options = parser.parse_args()
    work = options.data / "large-work"
    remove(work)
    work.mkdir(parents=True)
    try:
        lines = [f"{machine('recast-weights')}."]
        lines += one_file(work, options.gigabytes * 1e9, options.rounds)
        lines += page_cache(work, options.layers, options.rounds)
    finally:
        remove(work)
    publish(lines, options.write, "large")


if __name__ == "__main__":
    main()
