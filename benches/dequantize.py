"""Time `recast convert` of a block-fp8 checkpoint beside the floor, cp and two other dequantizers,
all in one run, and the plan of all of DeepSeek-V3.

`make bench-dequantize` writes the tables into docs/benchmarks.md. The contestants take turns, as in
`bench.py`; the first round is not counted, and compares what was written.
"""

import argparse
import sys
from pathlib import Path

import deepseek
from bench import SPREAD, above, first_round, same_tensors
from common import (
    CPUS,
    MIB,
    RECAST,
    ROOT,
    Contestant,
    build,
    convert,
    machine,
    need_space,
    publish,
    remove,
    take_turns,
)


def entrants(source: Path, work: Path, others: bool) -> list[Contestant]:
    """The contestants; the other dequantizers only with `others`."""
    dest, floor, here = work / "output", build("floor"), Path(__file__).parent
    result = []
    for sync in (True, False):
        extra = [] if sync else ["--no-sync"]
        name = f"recast, {CPUS} threads" + ("" if sync else ", --no-sync")
        result.append(Contestant(name, convert(source, dest, *extra), "json", "recast"))
    for sync in (True, False):
        how = "sync" if sync else "no-sync"
        command = [floor, str(work / "first"), str(dest), str(CPUS), how, "spread"]
        name = f"{SPREAD}, {CPUS} threads" + ("" if sync else ", no sync")
        result.append(Contestant(name, command, "print", "floor"))
    for name, script in (
        ()
        if not others
        else (
            ("DeepSeek's script, in torch (no sync)", "dequantize_script.py"),
            ("compressed-tensors (no sync)", "dequantize_converter.py"),
        )
    ):
        result.append(
            Contestant(name, [sys.executable, str(here / script), str(source), str(dest)])
        )
    return [*result, Contestant("cp -r (no sync)", ["cp", "-r", str(source), str(dest)])]


def table(contestants: list[Contestant]) -> list[str]:
    """All contestants, as Markdown."""
    others = [one for one in contestants if one.kind == "other" and not one.name.startswith("cp")]
    fastest = min((one.median("wall") for one in others), default=0.0)
    lines = [
        "| | whole process | fastest other / process | own clock | own clock / floor | peak RSS |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for one in contestants:
        wall, rss = one.median("wall"), one.median("rss")
        clock = f"{one.median('clock'):.2f} s" if one.clock else ""
        is_ours = one.kind == "recast"
        ratio = above(one, SPREAD, contestants) if is_ours else ""
        faster = f"{fastest / wall:.1f}" if is_ours and others else ""
        peak = "" if one.kind == "floor" else f"{rss / MIB:,.0f} MiB"
        lines.append(f"| {one.name} | {wall:.2f} s | {faster} | {clock} | {ratio} | {peak} |")
    return lines


def warm(source: Path) -> None:
    """Read the source, so that every contestant finds it in the page cache."""
    for file in source.iterdir():
        with file.open("rb", buffering=0) as opened:
            while opened.read(4 * MIB):
                pass


def empty(folder: Path) -> None:
    """Leave files of the same sizes, which take no space: the floor needs no more of them, and what
    they hold would take the place of the source in the page cache."""
    for file in folder.iterdir():
        size = file.stat().st_size
        with file.open("wb") as opened:
            opened.truncate(size)


def planned(work: Path, rounds: int) -> str:
    """How long it takes to plan all of DeepSeek-V3."""
    source = deepseek.sparse(work / "whole")
    command = [RECAST, "convert", str(source), "--to", "bf16", "--dry-run", "--json"]
    one = Contestant("plan", command)
    take_turns([one], rounds, work / "nothing")
    size = sum(file.stat().st_size for file in source.iterdir()) / 1e9
    tensors = sum(len(deepseek.layer(number, deepseek.EXPERTS)) for number in range(61))
    return (
        f"`convert --dry-run` of all of DeepSeek-V3 ({size:,.0f} GB in sparse files, {tensors:,} "
        f"tensors in its layers): {one.median('wall'):.2f} s, peak RSS "
        f"{one.median('rss') / MIB:.0f} MiB, medians of {rounds} runs."
    )


def main() -> None:
    """Build the inputs if they are missing, run the rounds, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--data", type=Path, default=ROOT / "bench-data")
    parser.add_argument("--floor-only", action="store_true", help="leave out other dequantizers")
    parser.add_argument("--write", type=Path, help="page to write the tables into")
    options = parser.parse_args()
    if not Path(RECAST).exists():
        sys.exit(f"error: {RECAST} is missing; run `make build`")
    where = machine("recast-weights", "torch", "compressed-tensors", "safetensors")
    options.data.mkdir(parents=True, exist_ok=True)
    if not need_space(options.data, 24e9):
        sys.exit("error: not enough space on the disk")
    source, work = deepseek.a_few_layers(options.data), options.data / "work"
    remove(work)
    work.mkdir()
    size = sum(file.stat().st_size for file in source.iterdir()) / 1e9
    shards = len(list(source.glob("*.safetensors")))
    lines = [
        f"{size:.2f} GB of block fp8 in {shards} shards, with the names and shapes of four layers "
        f"of DeepSeek-V3 (of the last, 50 of 256 experts), to bf16, {options.rounds} rounds, "
        f"medians. The outputs of the dequantizers were first compared byte for byte. {where}.\n"
    ]
    try:
        contestants = entrants(source, work, not options.floor_only)
        # Only recast writes metadata, so the files are not the same.
        first_round(contestants, work, same_tensors)
        empty(work / "first")
        take_turns(contestants, options.rounds, work / "output", lambda: warm(source))
        lines += [*table(contestants), "", planned(work, options.rounds)]
    finally:
        remove(work)
    publish(lines, options.write, "bench-dequantize")


if __name__ == "__main__":
    main()
