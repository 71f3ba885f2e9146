"""The small part of bench.py: what recast costs when there is little to convert."""

import sys
from pathlib import Path

from common import RECAST, Contestant, convert, take_turns
from inputs import tiny_file, tiny_shards


def measure(data: Path, dest: Path, rounds: int, tensors: int) -> list[str]:
    """The times of small things as Markdown."""
    shards = max(1, tensors // 100)
    folder, file = tiny_shards(data, tensors, shards), tiny_file(data, tensors)
    bare = Contestant("python", [sys.executable, "-c", "pass"])
    imported = Contestant("import recast", [sys.executable, "-c", "import recast"])
    shown = Contestant("recast --help", [RECAST, "--help"])
    take_turns([bare, imported, shown], max(10, rounds), dest)
    inspected = Contestant("recast inspect", [RECAST, "inspect", str(folder)])
    converted = Contestant("recast convert", convert(file, dest), "json")
    take_turns([inspected, converted], rounds, dest)
    start, extra = bare.median("wall"), imported.median("wall") - bare.median("wall")
    each = converted.median("clock") / tensors
    return [
        "\n**Small things**, medians\n",
        "| | |",
        "|---|--:|",
        f"| `python -c pass` | {start * 1e3:.0f} ms |",
        f"| `import recast`, in addition | {extra * 1e3:.0f} ms |",
        f"| `recast --help`, whole process | {shown.median('wall') * 1e3:.0f} ms |",
        f"| `recast inspect`, {shards:,} shards, {tensors:,} tensors, whole process "
        f"| {inspected.median('wall'):.2f} s |",
        f"| `recast convert`, one file of {tensors:,} tensors of 16 elements, own clock "
        f"| {converted.median('clock'):.2f} s |",
        f"| the same, per tensor | {each * 1e6:.1f} µs |",
        f"| the same, whole process, with the start of Python and a report of "
        f"{tensors:,} tensors | {converted.median('wall'):.2f} s |",
    ]
