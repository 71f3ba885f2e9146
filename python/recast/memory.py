"""GPU memory, foretold: what PyTorch's caching allocator will report for a set of tensors.

The rules are those of `c10/cuda/CUDACachingAllocator.cpp` for the native backend, one stream and
no frees, which is what loading a checkpoint straight onto a device is.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Any, NamedTuple

MIB = 1 << 20
ROUND = 512
SMALL_REQUEST = MIB
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
LARGE_SEGMENT_BELOW = 10 * MIB
SEGMENT_ROUND = 2 * MIB


class Memory(NamedTuple):
    """Bytes on a device, by the three counters of `torch.cuda.memory_stats()`."""

    requested: int
    """The tensors' own bytes."""
    allocated: int
    """Bytes of the blocks handed out: rounded, and whole where a rest is too small to split."""
    reserved: int
    """Bytes of the segments taken from the driver. The CUDA context is not in it."""


def predict(sizes: Iterable[int], *, expandable_segments: bool = False) -> Memory:
    """The memory tensors of `sizes` bytes take on a GPU, allocated in that order.

    `sizes` is in file order, one entry per tensor, in bytes. `expandable_segments` is the option
    of the same name in `PYTORCH_CUDA_ALLOC_CONF`.
    """
    # Only the sizes of free blocks matter: nothing is freed, so no two blocks ever merge.
    small_free: list[int] = []
    large_free: list[int] = []
    requested = allocated = reserved = 0
    for size in sizes:
        if size == 0:
            continue
        requested += size
        block = -(-size // ROUND) * ROUND
        small = block <= SMALL_REQUEST
        free = small_free if small else large_free
        best = bisect_left(free, block)
        if best < len(free):
            whole = free.pop(best)
        else:
            whole = _segment(block)
            if expandable_segments:
                # The one segment of the pool grows behind its free tail, in whole pages.
                tail = free.pop() if free else 0
                page = SMALL_SEGMENT if small else LARGE_SEGMENT
                mapped = -(-(whole - tail) // page) * page
                whole = tail + mapped
                reserved += mapped
            else:
                reserved += whole
        rest = whole - block
        if rest >= ROUND if small or expandable_segments else rest > SMALL_REQUEST:
            insort(free, rest)
            allocated += block
        else:
            allocated += whole
    return Memory(requested, allocated, reserved)


def _segment(block: int) -> int:
    """Bytes asked of the driver for a block that no free one can hold."""
    if block <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if block < LARGE_SEGMENT_BELOW:
        return LARGE_SEGMENT
    return -(-block // SEGMENT_ROUND) * SEGMENT_ROUND


def device() -> dict[str, Any] | None:
    """The first GPU as `{name, free, total}`, sizes in bytes.

    `None` where there is no `nvidia-smi`, or where it has no GPU with its own memory to report.
    """
    import shutil
    import subprocess

    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = ["--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            [command, *query], capture_output=True, text=True, timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        # A driver that hangs must not keep anyone from reading a checkpoint's header.
        return None
    lines = answer.stdout.splitlines()
    if answer.returncode != 0 or not lines:
        return None
    name, free, total = (part.strip() for part in lines[0].rsplit(",", 2))
    if not (free.isdigit() and total.isdigit()):
        return None
    return {"name": name, "free": int(free) * MIB, "total": int(total) * MIB}
