"""Times the casts in memory beside memcpy, torch, numpy, ml_dtypes and half, in one run.

`make bench-cast` writes the table into docs/benchmarks.md. The programs take turns, round by
round; a cell is the median over the rounds, in GB/s read and written. The audit is on.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import recast
import torch
from common import build, machine, publish

NAMES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PAIRS = [(a, b) for a in NAMES for b in NAMES if a != b]
COLUMNS = (
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


def timed(nbytes, work):
    """GB/s of `work`, which moves `nbytes`."""
    started = time.perf_counter()
    work()
    return nbytes / (time.perf_counter() - started) / 1e9


def python_rates(elements, threads, note):
    """One round of torch, numpy and ml_dtypes on every pair they have."""
    torch.set_num_threads(threads)
    base = torch.randn(elements) * 0.02
    for source, target in PAIRS:
        x = base.to(NAMES[source])
        out = torch.empty(elements, dtype=NAMES[target])
        out.zero_()
        nbytes = x.nbytes + out.nbytes
        note(f"{source}->{target} torch", timed(nbytes, lambda out=out, x=x: out.copy_(x)))
        if threads > 1:
            # torch's idle threads spin for a while and would take the core from whoever is next.
            continue
        note(
            f"{source}->{target} recast.cast",
            timed(nbytes, lambda out=out, x=x, to=target: recast.cast(x, to, out=out, threads=1)),
        )
        name = "ml_dtypes" if "bf16" in (source, target) else "numpy"

        def as_numpy(t):
            if t.dtype == torch.bfloat16:
                return t.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return t.numpy()

        a, b = as_numpy(x), as_numpy(out)
        note(
            f"{source}->{target} {name}",
            timed(nbytes, lambda a=a, b=b: np.copyto(b, a, casting="unsafe")),
        )


def rust_rates(binary, elements, threads, note):
    """One round of recast at every level, half and memcpy."""
    command = [binary, str(elements), str(threads), "1"]
    rates = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    for name, values in rates.items():
        note(name, *values)


def table(threads, rates):
    """The rates of one thread count as a markdown table."""
    columns = [c for c in COLUMNS if any(key.endswith(f" {c}") for key in rates)]
    best = next(c for c in ("avx512", "avx2", "portable") if c in columns)
    # In one process with torch where that is fair: the same buffers, in turn.
    ours = "recast.cast" if threads == 1 else best
    lines = [
        f"\n**{threads} thread{'s' if threads > 1 else ''}**, GB/s read + written\n",
        f"| cast | {' | '.join(columns)} | {best} / memcpy | {ours} / torch |",
        "|---|" + "---:|" * (len(columns) + 2),
    ]
    for source, target in PAIRS:
        median = {
            column: statistics.median(rates[key])
            for column in columns
            if (key := f"{source}->{target} {column}") in rates
        }
        cells = [f"{median[c]:.1f}" if c in median else "" for c in columns]
        ratios = [
            f"{median[best] / median['memcpy']:.2f}",
            f"{median[ours] / median['torch']:.2f}",
        ]
        lines.append(f"| {source} -> {target} | {' | '.join(cells + ratios)} |")
    return lines


def main():
    """Runs the rounds and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=64 << 20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", type=Path, help="markdown file whose table is replaced")
    options = parser.parse_args()
    binary = build("cast")
    lines = [
        f"{options.elements:,} elements, {options.rounds} rounds, medians. "
        f"{machine('torch', 'numpy', 'ml_dtypes')}.",
        "The columns portable, avx2 and avx512 are recast with its audit on; checked is the best "
        "of them with the checksums of source and result, block by block, as in a conversion.",
    ]
    for threads in sorted({1, os.cpu_count() or 1}):
        rates = {}

        def note(name, *values, rates=rates):
            rates.setdefault(name, []).extend(values)

        for done in range(options.rounds):
            rust_rates(binary, options.elements, threads, note)
            python_rates(options.elements, threads, note)
            print(f"{threads} threads: round {done + 1} of {options.rounds}", file=sys.stderr)
        lines += table(threads, rates)
    publish(lines, options.write, "bench-cast")


if __name__ == "__main__":
    main()
