"""Time `recast convert` of a PyTorch pickle beside the same tensors in safetensors, torch and
transformers, all in one run.

`make bench-pickles` writes the table into docs/benchmarks.md. The contestants take turns, as in
`bench.py`; the first round is not counted, and compares what was written.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from bench import first_round
from common import (
    CPUS,
    MIB,
    RECAST,
    ROOT,
    Contestant,
    convert,
    machine,
    need_space,
    publish,
    remove,
    take_turns,
)
from inputs import FULL_MEGABYTES

PICKLE = f"recast, the pickle, {CPUS} threads"
PLAIN = f"recast, safetensors, {CPUS} threads"
TORCH = "torch.load, cast, save_file (no sync)"
NO_SYNC = ", --no-sync"


def random_llama(data: Path, megabytes: int) -> Path:
    """A folder with a random Llama as a pickle and as safetensors, written if it is missing."""
    folder = data / f"llama-{megabytes}mb-pickled"
    if not folder.exists():
        print(f"writing {2 * megabytes:,} MB of random fp32 weights (once)", file=sys.stderr)
        unfinished = folder.with_suffix(".unfinished")
        remove(unfinished)
        script = Path(__file__).with_name("pickles_input.py")
        subprocess.run([sys.executable, script, unfinished, str(megabytes)], check=True)
        unfinished.rename(folder)
    return folder


def entrants(source: Path, work: Path) -> list[Contestant]:
    """The contestants: recast from both formats, and what else reads the pickle."""
    dest, here = work / "output", Path(__file__).parent
    result = []
    for sync in (True, False):
        for name, folder in ((PICKLE, "pickle"), (PLAIN, "safetensors")):
            command = convert(source / folder, dest, *([] if sync else ["--no-sync"]))
            label = name if sync else name + NO_SYNC
            result.append(Contestant(label, command, "json", "recast"))
    arguments = [str(source / "pickle"), str(dest)]
    script = [sys.executable, str(here / "pickles_script.py"), *arguments]
    result.append(Contestant(TORCH, script, "print"))
    script = [sys.executable, str(here / "transformers_script.py"), *arguments, "bfloat16"]
    result.append(Contestant("transformers, load and save (no sync)", script))
    return result


def table(contestants: list[Contestant]) -> list[str]:
    """All contestants and what their times say, as Markdown."""
    lines = [
        "| | own clock | whole process | fastest process | peak RSS |",
        "|---|--:|--:|--:|--:|",
    ]
    for one in contestants:
        clock = f"{one.median('clock'):.2f} s" if one.clock else ""
        fastest = min(each.wall for each in one.runs)
        lines.append(
            f"| {one.name} | {clock} | {one.median('wall'):.2f} s | {fastest:.2f} s "
            f"| {one.median('rss') / MIB:,.0f} MiB |"
        )
    named = {one.name: one for one in contestants}
    lines += ["", "| by their own clocks | synced | --no-sync |", "|---|--:|--:|"]
    both = [(named[PICKLE + end], named[PLAIN + end]) for end in ("", NO_SYNC)]
    over = [f"{ours.median('clock') / plain.median('clock'):.2f}" for ours, plain in both]
    lines.append(f"| the pickle / the same tensors in safetensors | {' | '.join(over)} |")
    torch = named[TORCH].median("clock")
    faster = [f"{torch / ours.median('clock'):.1f}" for ours, _ in both]
    lines.append(f"| torch (no sync) / recast, both from the pickle | {' | '.join(faster)} |")
    return lines


def warm(folder: Path) -> None:
    """Read both sources, so that every contestant finds its own in the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as opened:
                while opened.read(4 * MIB):
                    pass


def main() -> None:
    """Build the inputs if they are missing, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--data", type=Path, default=ROOT / "bench-data")
    parser.add_argument("--megabytes", type=int, default=FULL_MEGABYTES, help="size of the input")
    parser.add_argument("--write", type=Path, help="page to write the table into")
    options = parser.parse_args()
    if not Path(RECAST).exists():
        sys.exit(f"error: {RECAST} is missing; run `make build`")
    where = machine("recast-weights", "torch", "transformers", "safetensors")
    options.data.mkdir(parents=True, exist_ok=True)
    if not need_space(options.data, 4e6 * options.megabytes):
        sys.exit("error: not enough space on the disk")
    source, work = random_llama(options.data, options.megabytes), options.data / "work"
    remove(work)
    work.mkdir()
    size = (source / "pickle" / "pytorch_model.bin").stat().st_size / 1e9
    lines = [
        f"{size:.2f} GB of fp32 Llama in one `pytorch_model.bin` to bf16, {options.rounds} rounds, "
        "medians, warm page cache. The outputs were first compared byte for byte; torch's clock "
        f"starts when its imports are done. {where}.\n"
    ]
    try:
        contestants = entrants(source, work)
        first_round(contestants, work)
        take_turns(contestants, options.rounds, work / "output", lambda: warm(source))
        lines += table(contestants)
    finally:
        remove(work)
    publish(lines, options.write, "bench-pickles")


if __name__ == "__main__":
    main()
