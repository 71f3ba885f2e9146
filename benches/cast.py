"""Time the casts in memory beside memcpy, torch, numpy, ml_dtypes and half, in one run.

`make bench-cast` writes the tables into docs/benchmarks.md. The programs take turns, round by
round; a cell is the median over the rounds, in GB/s read and written. The audit is on.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import recast
import torch
from common import build, machine, publish

NAMES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# torch's idle threads spin for a while, and would take a core from what runs next.
SPIN = 0.5
SMALL = (4 << 10, 32 << 10, 256 << 10, 1 << 20)
PAIRS = [(a, b) for a in NAMES for b in NAMES if a != b]
Note = Callable[..., None]
ROWS = (
    "memcpy",
    "portable",
    "avx2",
    "avx512",
    "checked",
    "recast.cast",
    "torch",
    "numpy",
    "ml_dtypes",
    "half",
)


def timed(nbytes: int, work: Callable[[], object]) -> float:
    """GB/s of `work`, which moves `nbytes`."""
    started = time.perf_counter()
    work()
    return nbytes / (time.perf_counter() - started) / 1e9


def python_rates(elements: int, threads: int, note: Note) -> None:
    """One round of torch, numpy and ml_dtypes on every pair they have."""
    torch.set_num_threads(threads)
    base = torch.randn(elements) * 0.02
    for source, target in PAIRS:
        x = base.to(NAMES[source])
        out = torch.empty(elements, dtype=NAMES[target])
        out.zero_()
        nbytes = x.nbytes + out.nbytes
        if threads > 1:
            time.sleep(SPIN)
        note(
            f"{source}->{target} recast.cast",
            timed(nbytes, partial(recast.cast, x, target, out=out, threads=threads)),
        )
        note(f"{source}->{target} torch", timed(nbytes, partial(out.copy_, x)))
        if threads > 1:
            continue
        name = "ml_dtypes" if "bf16" in (source, target) else "numpy"

        def as_numpy(t: torch.Tensor) -> Any:
            if t.dtype == torch.bfloat16:
                return t.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return t.numpy()

        a, b = as_numpy(x), as_numpy(out)
        note(
            f"{source}->{target} {name}",
            timed(nbytes, partial(np.copyto, b, a, casting="unsafe")),
        )


def rust_rates(binary: str, elements: int, threads: int, note: Note) -> None:
    """One round of recast at every level, half and memcpy."""
    command = [binary, str(elements), str(threads), "1"]
    rates = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    for name, values in rates.items():
        note(name, *values)


def table(threads: int, rates: dict[str, list[float]]) -> list[str]:
    """The rates of one thread count as a Markdown table."""
    medians = {key: statistics.median(values) for key, values in rates.items()}
    rows = [row for row in ROWS if any(key.endswith(f" {row}") for key in medians)]
    best = next(row for row in ("avx512", "avx2", "portable") if row in rows)
    pairs = [f"{source}->{target}" for source, target in PAIRS]

    def line(name: str, cells: list[str]) -> str:
        return f"| {name} | {' | '.join(cells)} |"

    def ratios(above: str, below: str) -> str:
        cells = [f"{medians[f'{p} {above}'] / medians[f'{p} {below}']:.2f}" for p in pairs]
        return line(f"{above} / {below}", cells)

    lines = [
        f"\n**{threads} thread{'s' if threads > 1 else ''}**, GB/s read + written\n",
        line("GB/s", [pair.replace("->", " -> ") for pair in pairs]),
        "|---|" + "--:|" * len(pairs),
    ]
    for row in rows:
        keys = [f"{pair} {row}" for pair in pairs]
        lines.append(line(row, [f"{medians[key]:.1f}" if key in medians else "" for key in keys]))
    return [*lines, ratios(best, "memcpy"), ratios("recast.cast", "torch")]


def small() -> list[str]:
    """What one call takes with little to cast, as a Markdown table."""
    torch.set_num_threads(1)
    lines = [
        "\n**Small arrays**, 1 thread, microseconds a call\n",
        f"| | {' | '.join(f'{source} -> {target}' for source, target in PAIRS)} |",
        "|---|" + "--:|" * len(PAIRS),
    ]
    for elements in SMALL:
        times: dict[str, list[str]] = {"recast.cast": [], "torch": []}
        for source, target in PAIRS:
            x = (torch.randn(elements) * 0.02).to(NAMES[source])
            out = torch.empty(elements, dtype=NAMES[target])
            work: dict[str, Callable[[], object]] = {
                "recast.cast": partial(recast.cast, x, target, out=out, threads=1),
                "torch": partial(out.copy_, x),
            }
            taken: dict[str, list[float]] = {name: [] for name in work}
            for name in [*work] * 50:
                taken[name].append(1e6 * min(timeit.repeat(work[name], number=1, repeat=20)))
            for name, values in taken.items():
                times[name].append(f"{statistics.median(values):.1f}")
        for name, cells in times.items():
            lines.append(f"| {elements >> 10:,} Ki elements, {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Runs the rounds and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=64 << 20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", type=Path, help="page to write the tables into")
    options = parser.parse_args()
    binary = build("cast")
    lines = [
        f"{options.elements:,} elements, {options.rounds} rounds, medians. "
        f"{machine('torch', 'numpy', 'ml_dtypes')}.",
        "The rows portable, avx2 and avx512 are recast with its audit on. The row checked is the "
        "best of them and also computes the checksums of source and result, as a conversion does. "
        "The row recast.cast writes past the caches, as it does into any out of this size.",
    ]
    for threads in sorted({1, os.cpu_count() or 1}):
        rates: dict[str, list[float]] = {}

        def note(name: str, *values: float, rates: dict[str, list[float]] = rates) -> None:
            rates.setdefault(name, []).extend(values)

        for done in range(options.rounds):
            rust_rates(binary, options.elements, threads, note)
            python_rates(options.elements, threads, note)
            print(f"{threads} threads: round {done + 1} of {options.rounds}", file=sys.stderr)
        lines += table(threads, rates)
    lines += small()
    publish(lines, options.write, "bench-cast")


if __name__ == "__main__":
    main()
