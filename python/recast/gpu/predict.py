"""GPU memory, predicted: what PyTorch's caching allocator will report for a set of tensors.

The rules are those of `c10/cuda/CUDACachingAllocator.cpp` for the native backend, one stream and
no frees, which is what loading a checkpoint straight onto a device is.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict

from recast.gpu.settings import LARGE_SEGMENT_BELOW, MIB, Settings, read_settings

ROUND = 512
SMALL_REQUEST = MIB
SMALL_SEGMENT = 2 * MIB
SEGMENT_ROUND = 2 * MIB
# The settings of an allocator that was given none.
DEFAULTS = Settings()


class MemoryDict(TypedDict):
    """`Memory` as JSON has it."""

    requested: int
    allocated: int
    reserved: int


class Memory(NamedTuple):
    """Bytes on a device, by the three counters of `torch.cuda.memory_stats()`."""

    requested: int
    """The tensors' own bytes."""
    allocated: int
    """Bytes of the blocks handed out: rounded, and whole where a rest is too small to split."""
    reserved: int
    """Bytes of the segments taken from the driver. The CUDA context is not in it."""

    def to_dict(self) -> MemoryDict:
        """The counters by name."""
        return MemoryDict(
            requested=self.requested, allocated=self.allocated, reserved=self.reserved
        )


def predict(sizes: Iterable[int], settings: Settings = DEFAULTS, *, warm_up: int = 0) -> Memory:
    """The memory that tensors of `sizes` bytes take on a GPU, allocated in that order.

    `sizes` is in file order, one entry per tensor, in bytes. `warm_up` bytes were allocated at once
    and freed before, as transformers does to ask the driver only once.
    """
    expandable_segments, divisions, large_segment = settings
    # Only the sizes of free blocks matter: nothing more is freed, so no two blocks ever merge.
    small_free: list[int] = []
    large_free: list[int] = []
    requested = allocated = reserved = 0
    if warm_up:
        first = predict([warm_up], settings)
        reserved = first.reserved
        (small_free if first.allocated <= SMALL_REQUEST else large_free).append(reserved)
    for size in sizes:
        if size == 0:
            continue
        requested += size
        block = -(-size // ROUND) * ROUND
        if divisions:
            block = _round_up(size, block, divisions)
        small = block <= SMALL_REQUEST
        free = small_free if small else large_free
        best = bisect_left(free, block)
        if best < len(free):
            whole = free.pop(best)
        elif expandable_segments:
            # The one segment of the pool grows behind its free tail, in whole pages.
            tail = free.pop() if free else 0
            page = SMALL_SEGMENT if small else large_segment
            mapped = -(-(block - tail) // page) * page
            whole = tail + mapped
            reserved += mapped
        else:
            whole = _segment(block, large_segment)
            reserved += whole
        rest = whole - block
        if rest >= ROUND if small or expandable_segments else rest > SMALL_REQUEST:
            insort(free, rest)
            allocated += block
        else:
            allocated += whole
    return Memory(requested, allocated, reserved)


def predict_here(sizes: Iterable[int], *, warm_up: int = 0) -> Memory:
    """`predict` with the settings of the allocator in the environment."""
    return predict(sizes, read_settings()[0], warm_up=warm_up)


def _round_up(size: int, block: int, divisions: Sequence[int]) -> int:
    """`size` rounded up to a step between two powers of two; `block` where no steps are asked."""
    octave = size.bit_length() - 1
    interval = octave - (MIB.bit_length() - 1)
    steps = divisions[min(max(interval, 0), len(divisions) - 1)]
    if steps <= 1 or size <= ROUND * steps:
        return block
    step = (1 << octave) // steps
    return -(-size // step) * step


def _segment(block: int, large_segment: int) -> int:
    """Bytes asked of the driver for a block that no free one can hold."""
    if block <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if block < LARGE_SEGMENT_BELOW:
        return large_segment
    return -(-block // SEGMENT_ROUND) * SEGMENT_ROUND
