"""Time `recast convert` beside cp, the floor, torch and transformers, all in one run.

`make bench` writes the tables into docs/benchmarks.md and the chart into docs/bench.svg. The
contestants take turns, in an order that changes from round to round, so that a slow minute of the
machine affects all of them and nobody always runs after the same neighbor. The first round is not
counted: it warms the page cache and compares what was written, byte for byte.
"""

import argparse
import filecmp
import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cold
import small
from common import (
    CPUS,
    MIB,
    RECAST,
    ROOT,
    Contestant,
    Run,
    build,
    convert,
    idle_anon,
    machine,
    need_space,
    peak_anon,
    publish,
    remove,
    run,
    take_turns,
)
from inputs import FULL_MEGABYTES, random_llama
from plot import bars

TORCH_NAMES = {"fp16": "float16", "bf16": "bfloat16"}
FLOOR = "floor: write the output"
SPREAD = "floor, one file per thread"


def tensors(folder: Path) -> dict[str, tuple[Path, dict[str, Any], int]]:
    """All tensors of a folder: file, header entry and where the file's data begin."""
    result = {}
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as source:
            (size,) = struct.unpack("<Q", source.read(8))
            for name, entry in json.loads(source.read(size)).items():
                if name != "__metadata__":
                    result[name] = (file, entry, 8 + size)
    return result


def content(tensor: tuple[Path, dict[str, Any], int]) -> Iterator[bytes]:
    """The bytes of a tensor, in blocks."""
    file, entry, begin = tensor
    start, end = entry["data_offsets"]
    with file.open("rb") as source:
        source.seek(begin + start)
        for at in range(start, end, 4 * MIB):
            yield source.read(min(4 * MIB, end - at))


def same_tensors(reference: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors, however they are split into files."""
    ours, theirs = tensors(reference), tensors(other)
    return ours.keys() == theirs.keys() and all(
        all(one[1][key] == theirs[name][1][key] for key in ("dtype", "shape"))
        and all(a == b for a, b in zip(content(one), content(theirs[name]), strict=True))
        for name, one in ours.items()
    )


def same(reference: Path, other: Path) -> bool:
    """Whether two folders hold the same model: files where their names agree, else tensors."""
    ours = {file.name for file in reference.glob("*.safetensors")}
    if ours != {file.name for file in other.glob("*.safetensors")}:
        return same_tensors(reference, other)
    return all(filecmp.cmp(reference / name, other / name, shallow=False) for name in ours)


def entrants(source: Path, work: Path, to: str) -> list[Contestant]:
    """The contestants that run with a warm cache."""
    dest, floor, here = work / "output", build("floor"), Path(__file__).parent
    result = []
    for threads in sorted({1, CPUS}):
        text = f"{threads} thread{'s' if threads > 1 else ''}"
        for sync in (True, False):
            command = convert(source, dest, "--threads", str(threads), to=to)
            name = f"recast, {text}" + ("" if sync else ", --no-sync")
            command += [] if sync else ["--no-sync"]
            result.append(Contestant(name, command, "json", "recast"))
    # A single thread never waits for another, so the two orders are the same.
    orders = [(1, "in-order"), *([(CPUS, "in-order"), (CPUS, "spread")] if CPUS > 1 else [])]
    for threads, order in orders:
        text = f"{threads} thread{'s' if threads > 1 else ''}"
        for sync in (True, False):
            how = "sync" if sync else "no-sync"
            command = [floor, str(work / "first"), str(dest), str(threads), how, order]
            name = f"{FLOOR if order == 'in-order' else SPREAD}, {text}"
            name += "" if sync else ", no sync"
            result.append(Contestant(name, command, "print", "floor"))
    arguments = [str(source), str(dest), TORCH_NAMES[to]]
    for name, script in (
        ("torch, shard by shard (no sync)", "torch_script.py"),
        ("transformers, load and save (no sync)", "transformers_script.py"),
    ):
        result.append(Contestant(name, [sys.executable, str(here / script), *arguments]))
    return [*result, Contestant("cp -r (no sync)", ["cp", "-r", str(source), str(dest)])]


def first_round(
    contestants: list[Contestant], work: Path, same: Callable[[Path, Path], bool] = same
) -> None:
    """Run all contestants once; stop unless all that convert wrote the same model."""
    dest, first = work / "output", work / "first"
    for one in contestants:
        print(f"round 0, not counted: {one.name}", file=sys.stderr)
        run(one.command, one.clock)
        if not first.exists():
            dest.rename(first)
        elif one.kind != "floor" and not one.name.startswith("cp") and not same(first, dest):
            sys.exit(f"error: {contestants[0].name} and {one.name} wrote different weights")
        remove(dest)


def above(one: Contestant, floor: str, contestants: list[Contestant]) -> str:
    """The time of a recast run over that of the floor with the same threads and syncing."""
    name = floor + one.name.removeprefix("recast").replace("--no-sync", "no sync")
    found = [each for each in contestants if each.name == name]
    return f"{one.median('clock') / found[0].median('clock'):.2f}" if found else ""


def table(contestants: list[Contestant], anon: dict[str, int], least: Run) -> list[str]:
    """The warm rounds of the programs that convert or copy, as Markdown."""
    named = {one.name.partition(",")[0].partition(" (")[0]: one for one in contestants}
    copy, torch = named["cp -r"].median("wall"), named["torch"].median("wall")
    lines = [
        "| | whole process | fastest | process / cp -r | torch / process | peak RSS "
        "| peak anonymous |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for one in contestants:
        if one.kind == "floor":
            continue
        wall, rss = one.median("wall"), one.median("rss")
        peak = f"{rss / MIB:,.0f} MiB" if rss > 1.1 * least.rss else f"< {rss / MIB:.0f} MiB"
        extra = f"{anon[one.name] / MIB:.1f} MiB" if one.name in anon else ""
        lines.append(
            f"| {one.name} | {wall:.2f} s | {min(each.wall for each in one.runs):.2f} s "
            f"| {wall / copy:.2f} | {torch / wall:.1f} | {peak} | {extra} |"
        )
    return lines


def floors(contestants: list[Contestant]) -> list[str]:
    """The warm rounds of recast and the floors, as Markdown."""
    lines = [
        "| | own clock | own clock / floor | own clock / floor, one file per thread |",
        "|---|--:|--:|--:|",
    ]
    for one in contestants:
        if one.clock:
            ratios = [above(one, floor, contestants) for floor in (FLOOR, SPREAD)]
            ratios = ratios if one.kind == "recast" else ["", ""]
            lines.append(f"| {one.name} | {one.median('clock'):.2f} s | {' | '.join(ratios)} |")
    return lines


def charted(one: Contestant) -> bool:
    """Whether the chart shows a contestant: what a user would run, and one floor."""
    return one.kind == "other" or (f"{CPUS} thread" in one.name and SPREAD not in one.name)


def warm(source: Path, work: Path, rounds: int, to: str) -> tuple[list[str], str]:
    """The warm rounds as Markdown and as a chart."""
    contestants = entrants(source, work, to)
    first_round(contestants, work)
    idle = idle_anon()
    anon = {
        one.name: peak_anon(one.command, work / "output") - idle
        for one in contestants
        if one.kind == "recast"
    }
    take_turns(contestants, rounds, work / "output")
    lines = ["**Warm page cache**\n", *table(contestants, anon, run(["true"]))]
    lines.append(
        "\nPeak RSS includes mapped pages of the source, which the kernel can reclaim at any time. "
        f"Peak anonymous memory is what recast adds to the {idle / MIB:.0f} MiB of an idle "
        "interpreter that has imported it, sampled in a separate run."
    )
    lines += ["\n**Beside the floors**, by each program's own clock\n", *floors(contestants)]
    rows = sorted((one.median("wall"), one.name, one.kind) for one in contestants if charted(one))
    chart = [(name, wall, f"{wall:.2f} s", kind) for wall, name, kind in rows]
    size = sum(file.stat().st_size for file in source.iterdir()) / 1e9
    title = f"{size:.2g} GB of fp32 to {to}: seconds for the whole process, warm page cache"
    return lines, bars(title, [("", chart)])


def main() -> None:
    """Build the inputs if they are missing, run the rounds, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--to", choices=TORCH_NAMES, default="bf16")
    parser.add_argument("--data", type=Path, default=ROOT / "bench-data")
    parser.add_argument("--megabytes", type=int, default=FULL_MEGABYTES, help="size of the input")
    parser.add_argument("--tensors", type=int, default=100_000, help="tensors in the tiny inputs")
    parser.add_argument("--cold", choices=("auto", "drop", "fadvise", "skip"), default="auto")
    parser.add_argument("--write", type=Path, help="page to write the tables into")
    options = parser.parse_args()
    if not Path(RECAST).exists():
        sys.exit(f"error: {RECAST} is missing; run `make build`")

    where = machine("recast-weights", "torch", "transformers", "safetensors")
    options.data.mkdir(parents=True, exist_ok=True)
    need = 4e6 * options.megabytes
    if not need_space(options.data, need):
        sys.exit("error: not enough space on the disk")
    source, work = random_llama(options.data, options.megabytes), options.data / "work"
    remove(work)
    work.mkdir()
    size = sum(file.stat().st_size for file in source.iterdir()) / 1e9
    shards = len(list(source.glob("*.safetensors")))
    lines = [
        f"{size:.2f} GB of fp32 Llama in {shards} shards to {options.to}, {options.rounds} rounds, "
        f"medians. The outputs were first compared byte for byte. {where}.\n"
    ]
    how = cold.choose() if options.cold == "auto" else options.cold
    try:
        tables, chart = warm(source, work, options.rounds, options.to)
        lines += ["![Medians of the warm runs](bench.svg)\n", *tables]
        lines += cold.measure(source, work / "output", options.rounds, how, options.to)
        lines += small.measure(options.data, work / "output", options.rounds, options.tensors)
    finally:
        remove(work)
    publish(lines, options.write, "bench", chart)


if __name__ == "__main__":
    main()
