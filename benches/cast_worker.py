"""Time `recast.cast` on request, for against.py: a line of four words in, microseconds out.

The words: source dtype, target dtype, elements, threads. The answer is the median of bursts of
which each gives its fastest call, into a given `out`. Where source and result begin within a page
changes the speed of small casts by a half, so that each burst has its own place.
"""

import random
import statistics
import sys
import timeit
from functools import partial

import recast
import torch

from cast import NAMES

LINE = 64
PAGE = 4096


def burst(x: torch.Tensor, target: torch.dtype, threads: int, place: random.Random) -> float:
    """The fastest of 20 calls, in seconds, somewhere in a page."""

    def placed(dtype: torch.dtype) -> torch.Tensor:
        room = torch.zeros(x.numel() + PAGE // dtype.itemsize, dtype=dtype)
        return room[place.randrange(0, PAGE, LINE) // dtype.itemsize :][: x.numel()]

    source = placed(x.dtype).copy_(x)
    work = partial(recast.cast, source, target, out=placed(target), threads=threads)
    return min(timeit.repeat(work, number=1, repeat=20))


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    # Both checkouts have the same places.
    place = random.Random(0)
    for line in sys.stdin:
        source, target, elements, threads = line.split()
        x = (torch.randn(int(elements)) * 0.02).to(NAMES[source])
        bursts = [burst(x, NAMES[target], int(threads), place) for _ in range(20)]
        print(1e6 * statistics.median(bursts), flush=True)


if __name__ == "__main__":
    main()
