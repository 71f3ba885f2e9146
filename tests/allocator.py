"""PyTorch's caching allocator, simulated block by block: a judge of predictions and of checks.

Written from the description of `c10/cuda/CUDACachingAllocator.cpp`, with addresses and frees, and
with nothing of `recast.gpu`. It also stands in for `torch.cuda`, and can be made to lie.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

MIB = 1024 * 1024


@dataclass
class Block:
    address: int
    size: int
    requested: int = 0
    used: bool = False


@dataclass
class Segment:
    small: bool
    blocks: list[Block]


@dataclass
class Handle:
    """Memory that somebody holds until `free`."""

    allocator: "Allocator"
    address: int

    def __del__(self) -> None:
        self.allocator.free(self.address)


@dataclass
class Allocator:
    """One device; also what `recast` uses of `torch.cuda`."""

    total: int = 80 * 1024 * MIB
    segments: list[Segment] = field(default_factory=list)
    lies: dict[str, int] = field(default_factory=dict)
    """What is added to a counter once `lying` is true."""
    lying: bool = False
    end: int = 1 << 40

    def allocate(self, size: int) -> Handle:
        rounded = max(512, (size + 511) // 512 * 512)
        small = rounded <= MIB
        fitting = [
            (block.size, block.address, segment, block)
            for segment in self.segments
            if segment.small == small
            for block in segment.blocks
            if not block.used and block.size >= rounded
        ]
        if fitting:
            _, _, segment, block = min(fitting, key=lambda found: found[:2])
        else:
            length = 2 * MIB if small else 20 * MIB
            if rounded >= 10 * MIB:
                length = (rounded + 2 * MIB - 1) // (2 * MIB) * (2 * MIB)
            block = Block(self.end, length)
            segment = Segment(small, [block])
            self.segments.append(segment)
            self.end += 1 << 36
        rest = block.size - rounded
        if rest >= 512 if small else rest > MIB:
            at = segment.blocks.index(block)
            segment.blocks.insert(at + 1, Block(block.address + rounded, rest))
            block.size = rounded
        block.used, block.requested = True, size
        return Handle(self, block.address)

    def free(self, address: int) -> None:
        for segment in self.segments:
            for block in segment.blocks:
                if block.address == address and block.used:
                    block.used, block.requested = False, 0
                    self._merge(segment)
                    return

    def _merge(self, segment: Segment) -> None:
        merged: list[Block] = []
        for block in segment.blocks:
            if merged and not merged[-1].used and not block.used:
                merged[-1].size += block.size
            else:
                merged.append(block)
        segment.blocks = merged

    def memory_stats(self, device: str) -> dict[str, int]:
        used = [b for segment in self.segments for b in segment.blocks if b.used]
        counts = {
            "requested": sum(block.requested for block in used),
            "allocated": sum(block.size for block in used),
            "reserved": sum(b.size for segment in self.segments for b in segment.blocks),
        }
        for name, lie in self.lies.items() if self.lying else ():
            counts[name] += lie
        return {f"{name}_bytes.all.current": count for name, count in counts.items()}

    def memory_snapshot(self) -> list[dict[str, Any]]:
        return [
            {
                "device": 0,
                "stream": 0,
                "segment_pool_id": (0, 0),
                "segment_type": "small" if segment.small else "large",
                "blocks": [
                    {
                        "address": block.address,
                        "size": block.size,
                        "state": "active_allocated" if block.used else "inactive",
                    }
                    for block in segment.blocks
                ],
            }
            for segment in self.segments
        ]

    def empty_cache(self) -> None:
        self.segments = [s for s in self.segments if any(block.used for block in s.blocks)]

    def synchronize(self, device: str) -> None:
        pass

    def current_stream(self, device: str) -> SimpleNamespace:
        return SimpleNamespace(cuda_stream=0)

    def mem_get_info(self, device: str) -> tuple[int, int]:
        reserved = sum(b.size for segment in self.segments for b in segment.blocks)
        return self.total - reserved, self.total
