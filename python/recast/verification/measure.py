"""The memory of a loaded result: what PyTorch's allocator counts, against the prediction."""

import gc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from recast.errors import VerificationError
from recast.gpu.predict import ROUND, Memory
from recast.gpu.settings import MIB
from recast.terminal import shown, size
from recast.verification.problems import Problem, problem
from recast.verification.values import WORKSPACE

LISTED = 5

T = TypeVar("T")


class Allocation(NamedTuple):
    """A tensor on a device: its name, its own bytes, and what `torch.Tensor.data_ptr` says."""

    name: str
    bytes: int
    address: int = 0


def counters(cuda: Any, device: str) -> Memory:
    """What `cuda`, which is `torch.cuda`, counts on `device` at this moment."""
    stats = cuda.memory_stats(device)
    names = ("requested_bytes", "allocated_bytes", "reserved_bytes")
    return Memory(*(stats.get(f"{name}.all.current", 0) for name in names))


def measure(
    cuda: Any, device: str, allocate: Callable[[int], object], load: Callable[[], T]
) -> tuple[T, Memory]:
    """Calls `load`; its result, and by how much the counters grew.

    `allocate(n)` makes something that holds `n` bytes on `device`. Memory that others hold does
    not count. Nor does `load` use free blocks of the allocator's cache, which are held meanwhile: a
    block from there can be larger than a new one.
    """
    gc.collect()
    cuda.synchronize(device)
    cuda.empty_cache()
    held = [allocate(count) for count in _free_blocks(cuda, device)]
    before = counters(cuda, device)
    loaded = load()
    cuda.synchronize(device)
    gc.collect()
    after = counters(cuda, device)
    del held
    return loaded, Memory(*(now - then for now, then in zip(after, before, strict=True)))


def _free_blocks(cuda: Any, device: str) -> list[int]:
    """Sizes of requests that fill exactly what is free in the allocator's cache."""
    index = int(device.partition(":")[2])
    stream = cuda.current_stream(device).cuda_stream
    requests = []
    for segment in cuda.memory_snapshot():
        pool = tuple(segment.get("segment_pool_id", (0, 0)))
        if (segment["device"], segment["stream"], pool) != (index, stream, (0, 0)):
            continue
        for block in segment["blocks"]:
            if block["state"] != "inactive":
                continue
            if segment["segment_type"] == "large":
                # Nothing of up to 1 MiB is ever taken from this pool.
                requests += [block["size"]] if block["size"] > MIB else []
            else:
                # Nothing larger is ever taken from this one.
                whole, rest = divmod(block["size"], MIB)
                requests += [MIB] * whole + ([rest] if rest else [])
    # The largest first: then every rest finds the very block it is the rest of.
    return sorted(requests, reverse=True)


def too_large(cuda: Any, device: str, predicted: Memory) -> str | None:
    """Why a model of `predicted` bytes cannot be loaded on `device` beside the `WORKSPACE` that
    comparing takes; `None` where it can."""
    free, total = cuda.mem_get_info(device)
    if predicted.reserved + WORKSPACE <= free:
        return None
    return (
        f"the model does not fit on {device}: it requires {size(predicted.reserved)} and "
        f"{size(WORKSPACE)} to compare, but {size(free)} of {size(total)} are free"
    )


def check_workspace(cuda: Any, device: str) -> None:
    """Raises `VerificationError` unless what comparing takes is free on `device`."""
    free, total = cuda.mem_get_info(device)
    if free < WORKSPACE:
        raise VerificationError(
            f"comparing requires {size(WORKSPACE)} on {device}, but {size(free)} of {size(total)} "
            "are free",
            "free memory there, choose another GPU with cuda:N, or verify on cpu",
        )


def explain(
    cuda: Any,
    expected: Memory,
    measured: Memory,
    predicted: Sequence[Allocation],
    loaded: Sequence[Allocation],
) -> list[Problem]:
    """Why `requested` or `allocated` is not as expected: which tensors, which rule.

    Empty where both agree to the byte. `reserved` is never a problem: it depends on what was
    cached before.
    """
    problems = []
    if measured.requested != expected.requested:
        reason = f"{_apart(measured, expected, 'requested')}: {_requested(predicted, loaded)}"
        problems.append(problem("memory_requested", found=f"{measured.requested:,}", reason=reason))
    if measured.allocated != expected.allocated:
        blocks = _allocated(cuda, expected, measured, loaded)
        reason = f"{_apart(measured, expected, 'allocated')}: {blocks}"
        problems.append(problem("memory_allocated", found=f"{measured.allocated:,}", reason=reason))
    return problems


def _apart(measured: Memory, expected: Memory, counter: str) -> str:
    difference = getattr(measured, counter) - getattr(expected, counter)
    return f"{abs(difference):,} {'more' if difference > 0 else 'less'} than predicted"


def _listed(texts: list[str]) -> str:
    rest = len(texts) - LISTED
    return "; ".join(texts[:LISTED] + ([f"and {rest:,} more"] if rest > 0 else []))


def _requested(predicted: Sequence[Allocation], loaded: Sequence[Allocation]) -> str:
    before = {tensor.name: tensor.bytes for tensor in predicted}
    after = {tensor.name: tensor.bytes for tensor in loaded}
    texts = [
        f"{shown(name)} takes {after.get(name, 0):,} bytes, not {before.get(name, 0):,}"
        for name in {**before, **after}
        if before.get(name, 0) != after.get(name, 0)
    ]
    if texts:
        return _listed(texts)
    return "every tensor has the size it should have, so something else was allocated meanwhile"


def _allocated(cuda: Any, expected: Memory, measured: Memory, loaded: Sequence[Allocation]) -> str:
    if measured.allocated - expected.allocated == measured.requested - expected.requested:
        return "by as much as requested"
    blocks = {
        block["address"]: block["size"]
        for segment in cuda.memory_snapshot()
        for block in segment["blocks"]
        if "address" in block
    }
    texts = []
    for tensor in loaded:
        rounded = -(-tensor.bytes // ROUND) * ROUND
        block, name = blocks.get(tensor.address, rounded), shown(tensor.name)
        if block > rounded:
            texts.append(
                f"{name} ({tensor.bytes:,} bytes) has a block of {block:,}: a rest of "
                f"{block - rounded:,} is too small to split off"
            )
        elif block < rounded:
            texts.append(
                f"{name} ({tensor.bytes:,} bytes) has a block of {block:,}: it was not "
                f"rounded up to a multiple of {ROUND}"
            )
    if texts:
        return f"the blocks that are not their tensors rounded up to {ROUND}: {_listed(texts)}"
    return (
        "every tensor's block is its size rounded up to 512, so the prediction left unsplit a "
        "rest that was split off, or something else was allocated meanwhile; does "
        "PYTORCH_CUDA_ALLOC_CONF change the allocator's rules?"
    )
