"""Time `recast.cast` on request, for against.py: a line of four words in, microseconds out.

The words: source dtype, target dtype, elements, threads. The answer is the median of bursts of
which each gives its fastest call, into a given `out`.
"""

import statistics
import sys
import timeit
from functools import partial

import recast
import torch

NAMES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        source, target, elements, threads = line.split()
        x = (torch.randn(int(elements)) * 0.02).to(NAMES[source])
        out = torch.zeros(int(elements), dtype=NAMES[target])
        work = partial(recast.cast, x, target, out=out, threads=int(threads))
        bursts = [min(timeit.repeat(work, number=1, repeat=20)) for _ in range(10)]
        print(1e6 * statistics.median(bursts), flush=True)


if __name__ == "__main__":
    main()
