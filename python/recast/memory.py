"""GPU memory, foretold: what PyTorch's caching allocator will report for a set of tensors.

The rules are those of `c10/cuda/CUDACachingAllocator.cpp` for the native backend, one stream and
no frees, which is what loading a checkpoint straight onto a device is.
"""

import os
import re
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

MIB = 1 << 20
ROUND = 512
SMALL_REQUEST = MIB
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
LARGE_SEGMENT_BELOW = 10 * MIB
SEGMENT_ROUND = 2 * MIB

# PyTorch 2.15 reads the first that is set, even to nothing; the old name goes first.
VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
UNCACHED = "PYTORCH_NO_CUDA_MEMORY_CACHING"
# `roundup_power2_divisions` has one entry for sizes from 1, 2, 4 ... MiB on; the last is 32 GiB.
INTERVALS = 16


class Memory(NamedTuple):
    """Bytes on a device, by the three counters of `torch.cuda.memory_stats()`."""

    requested: int
    """The tensors' own bytes."""
    allocated: int
    """Bytes of the blocks handed out: rounded, and whole where a rest is too small to split."""
    reserved: int
    """Bytes of the segments taken from the driver. The CUDA context is not in it."""


class Settings(NamedTuple):
    """Options of the allocator that change what a load takes, as keywords of `predict`."""

    expandable_segments: bool = False
    """One segment for each pool, which grows by pages, instead of many of fixed size."""
    roundup_power2_divisions: tuple[int, ...] = ()
    """Into how many steps the range from a power of two to the next is divided, one entry for the
    sizes from 1, 2, 4 ... MiB on; sizes are rounded up to a step. 0 and 1 mean no such rounding."""
    large_segment: int = LARGE_SEGMENT
    """Bytes of a segment for blocks of 1 to 10 MiB, and of a page of an expandable segment."""


def predict(
    sizes: Iterable[int],
    *,
    expandable_segments: bool = False,
    roundup_power2_divisions: Sequence[int] = (),
    large_segment: int = LARGE_SEGMENT,
    warm_up: int = 0,
) -> Memory:
    """The memory tensors of `sizes` bytes take on a GPU, allocated in that order.

    `sizes` is in file order, one entry per tensor, in bytes. `warm_up` bytes were allocated at once
    and freed before, as transformers does to ask the driver only once. The other keywords are those
    of `Settings`.
    """
    # Only the sizes of free blocks matter: nothing more is freed, so no two blocks ever merge.
    small_free: list[int] = []
    large_free: list[int] = []
    requested = allocated = reserved = 0
    if warm_up:
        first = predict(
            [warm_up],
            expandable_segments=expandable_segments,
            roundup_power2_divisions=roundup_power2_divisions,
            large_segment=large_segment,
        )
        reserved = first.reserved
        (small_free if first.allocated <= SMALL_REQUEST else large_free).append(reserved)
    for size in sizes:
        if size == 0:
            continue
        requested += size
        block = -(-size // ROUND) * ROUND
        if roundup_power2_divisions:
            block = _round_up(size, block, roundup_power2_divisions)
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
    return predict(sizes, warm_up=warm_up, **settings()[0]._asdict())


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


def settings(environ: Mapping[str, str] = os.environ) -> tuple[Settings, list[str]]:
    """The allocator's settings in the environment, and sentences on what they mean here.

    Settings that PyTorch would refuse count as none, with a sentence that says so.
    """
    found = Settings()
    notes: list[str] = []
    variable = next((name for name in VARIABLES if name in environ), None)
    if variable is not None:
        text = environ[variable]
        try:
            found, unknown = _parse(text)
        except ValueError as error:
            notes.append(
                f"{variable}={text} is not valid ({error}): GPU memory is for the defaults"
            )
        else:
            if found != Settings():
                notes.append(f"GPU memory is for {variable}={text}")
            notes += [f"{variable}: {option} is not modelled" for option in unknown]
    if UNCACHED in environ:
        notes.append(f"{UNCACHED} is set, which GPU memory here does not model")
    return found, notes


def _parse(text: str) -> tuple[Settings, list[str]]:
    """Settings from `key:value,key:[a:b,c:d]`, and the options in it that `predict` lacks."""
    found = Settings()
    unknown: list[str] = []
    # A comma inside brackets separates the parts of a value.
    for entry in re.split(r",(?![^\[]*\])", re.sub(r"\s", "", text)):
        key, _, value = entry.partition(":")
        if key == "expandable_segments":
            if value not in ("True", "False"):
                raise ValueError(f"{key} must be True or False")
            found = found._replace(expandable_segments=value == "True")
        elif key == "roundup_power2_divisions":
            found = found._replace(roundup_power2_divisions=_divisions(value))
        elif key == "large_segment_size_mb":
            if _number(value) * MIB <= LARGE_SEGMENT_BELOW:
                raise ValueError(f"{key} must be more than {LARGE_SEGMENT_BELOW // MIB}")
            found = found._replace(large_segment=_number(value) * MIB)
        elif key == "max_split_size_mb" or (key == "backend" and value != "native"):
            unknown.append(entry)
    return found, unknown


def _divisions(value: str) -> tuple[int, ...]:
    """One entry for each interval, from `8` or from `[64:8,256:4,>:1]` with bounds in MiB."""
    if not value.startswith("["):
        return (_power_of_two(value),) * INTERVALS
    if not value.endswith("]"):
        raise ValueError("']' is missing")
    table = [0] * INTERVALS
    last: int | None = None
    for bound, _, text in (part.partition(":") for part in value[1:-1].split(",") if part):
        steps = 0 if text == "0" else _power_of_two(text)
        if bound == ">":
            # What PyTorch does: the interval of the last bound keeps its own entry.
            after = (last or 0) + 1
            table[after:] = [steps] * (INTERVALS - after)
            continue
        index = min(_power_of_two(bound).bit_length() - 1, INTERVALS - 1)
        if last is None:
            table[:index] = [steps] * index
        table[index] = steps
        last = index
    return tuple(table)


def _power_of_two(text: str) -> int:
    value = _number(text)
    if value == 0 or value & (value - 1):
        raise ValueError(f"{text} is not a power of two")
    return value


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"'{text}' is not a number")
    return int(text)


def device() -> dict[str, Any] | None:
    """The GPU that programs see first, as `{name, free, total}`, sizes in bytes.

    `None` where there is no `nvidia-smi`, or where it has no GPU with its own memory to report, and
    where `CUDA_VISIBLE_DEVICES` hides them all.
    """
    import shutil
    import subprocess

    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = ["--query-gpu=uuid,name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            [command, *query], capture_output=True, text=True, timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        # A driver that hangs must not keep anyone from reading a checkpoint's header.
        return None
    line = _visible(answer.stdout.splitlines()) if answer.returncode == 0 else None
    if line is None:
        return None
    name, free, total = (part.strip() for part in line.partition(",")[2].rsplit(",", 2))
    if not (free.isdigit() and total.isdigit()):
        return None
    return {"name": name, "free": int(free) * MIB, "total": int(total) * MIB}


def _visible(gpus: list[str]) -> str | None:
    """The GPU that `CUDA_VISIBLE_DEVICES` puts first, by its number or the start of its UUID."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.isdecimal():
        chosen = gpus[int(first) :][:1]
    else:
        # Also what is meant to hide them all, empty or -1: no UUID begins with it.
        chosen = [line for line in gpus if first and line.startswith(first)]
    return chosen[0] if len(chosen) == 1 else None
