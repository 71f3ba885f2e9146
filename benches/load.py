"""Time `recast.load` beside `load_file` of safetensors and torch's cast, with the source in the
page cache and without it.

`make bench-load` writes the table into docs/benchmarks.md. Each run is a process of its own, whose
clock starts when its imports are done.
"""

import argparse
import os
import sys
from pathlib import Path

from common import CPUS, MIB, ROOT, Contestant, machine, need_space, publish, run
from inputs import FULL_MEGABYTES, random_llama

SCRIPT = str(Path(__file__).with_name("load_script.py"))
CASES = (
    ("fp32 to bf16, warm", "bfloat16", True),
    ("fp32 to bf16, cold", "bfloat16", False),
    ("as stored, mapped alone, warm", "stored", True),
    ("as stored, each page looked at, warm", "stored touch", True),
)


def prepare(source: Path, warm: bool) -> None:
    """Put the source into the page cache, or take it out of it."""
    for path in source.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            if not warm:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while warm and file.read(4 * MIB):
                pass


def main() -> None:
    """Build the input if it is missing, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--data", type=Path, default=ROOT / "bench-data")
    parser.add_argument("--megabytes", type=int, default=FULL_MEGABYTES, help="size of the input")
    parser.add_argument("--write", type=Path, help="page to write the table into")
    options = parser.parse_args()
    where = machine("recast-weights", "torch", "safetensors")
    options.data.mkdir(parents=True, exist_ok=True)
    if not need_space(options.data, 1e6 * options.megabytes):
        sys.exit("error: not enough space on the disk")
    source = random_llama(options.data, options.megabytes)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors")) / 1e9
    lines = [
        f"{size:.2f} GB of fp32 Llama, {CPUS} threads, {options.rounds} rounds, medians. "
        f"{where}.\n",
        "| | recast.load | load_file and .to() | times faster | peak RSS of both |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, to, warm in CASES:
        both = [
            Contestant(
                program, [sys.executable, SCRIPT, program, str(source), *to.split()], "print"
            )
            for program in ("recast", "safetensors")
        ]
        for number in range(options.rounds + 1):
            for one in both if number % 2 else both[::-1]:
                print(f"{name}, round {number} of {options.rounds}: {one.name}", file=sys.stderr)
                prepare(source, warm)
                result = run(one.command, one.clock)
                if number:
                    one.runs.append(result)
        ours, theirs = (one.median("clock") for one in both)
        peaks = " and ".join(f"{one.median('rss') / MIB:,.0f}" for one in both)
        lines.append(
            f"| {name} | {ours:.4f} s | {theirs:.4f} s | {theirs / ours:.2f} | {peaks} MiB |"
        )
    publish(lines, options.write, "bench-load")


if __name__ == "__main__":
    main()
