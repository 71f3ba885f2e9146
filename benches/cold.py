"""The cold part of bench.py: the same conversions with a source that is not in the page cache."""

import os
import sys
from pathlib import Path

from common import CPUS, Contestant, build, convert, take_turns

DROP = Path("/proc/sys/vm/drop_caches")
HOW = {
    "drop": "the page cache was dropped before each run (drop_caches)",
    "fadvise": "the source was dropped from the page cache before each run (POSIX_FADV_DONTNEED)",
}


def choose() -> str:
    """How the cache can be emptied on this machine."""
    try:
        # Opening checks the permission; only a write drops the cache.
        DROP.open("w").close()
    except OSError:
        return "fadvise" if hasattr(os, "posix_fadvise") else "skip"
    return "drop"


def empty_cache(how: str, source: Path) -> None:
    """Remove the source from the page cache."""
    os.sync()
    if how == "drop":
        DROP.write_text("3\n")
        return
    for file in source.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def readers(source: Path) -> list[Contestant]:
    """The floor of a cold read with small and with large blocks; empty if O_DIRECT fails."""
    script = str(Path(__file__).with_name("direct_read.py"))
    result = []
    for block in (1, 8):
        command = [sys.executable, script, str(source), str(CPUS), str(block)]
        name = f"floor: read with O_DIRECT, {block} MiB blocks, write nothing"
        result.append(Contestant(name, command, "print", "floor"))
    try:
        descriptor = os.open(next(source.glob("*.safetensors")), os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return []
    os.close(descriptor)
    return result


def both(source: Path, dest: Path) -> list[Contestant]:
    """Writing the output alone, and while the source is read: what this disk can do at once."""
    script = str(Path(__file__).with_name("direct_read.py"))
    read = [sys.executable, script, str(source), str(CPUS), "1"]
    write = [build("floor"), str(dest.with_name("first")), str(dest), str(CPUS), "sync", "spread"]
    at_once = [sys.executable, str(Path(__file__).with_name("at_once.py")), *read, "--", *write]
    return [
        Contestant("floor: write the output, durable, read nothing", write, "print", "write"),
        Contestant("floor: read with O_DIRECT and write, at once", at_once, "print", "both"),
    ]


def disk(contestants: list[Contestant], read: float, ours: float) -> str:
    """What kind of disk this is, as a sentence."""
    seconds = {one.kind: one.seconds() for one in contestants}
    write, at_once = seconds["write"], seconds["both"]
    larger, total = max(read, write), read + write
    # Nearer to which of the two.
    together = at_once - larger < total - at_once
    what = "does both at once" if together else "does one after the other"
    floor = larger if together else total
    return (
        f"\nReading alone takes {read:.2f} s, writing alone {write:.2f} s, both at once "
        f"{at_once:.2f} s: this disk {what} (the larger is {larger:.2f} s, the sum {total:.2f} s). "
        f"recast, durable, takes {ours:.2f} s, which is {ours / floor:.2f} of that."
    )


def measure(source: Path, dest: Path, rounds: int, how: str, to: str) -> list[str]:
    """The cold rounds as Markdown."""
    title = "\n**Cold page cache**"
    if how == "skip":
        return [f"{title}: not measured; the cache could not be emptied here."]
    contestants = [
        Contestant(f"recast --io {io}", convert(source, dest, "--io", io, to=to), "json")
        for io in ("auto", "mmap", "read")
    ]
    unsynced = convert(source, dest, "--no-sync", to=to)
    contestants.append(Contestant("recast --io auto --no-sync", unsynced, "json"))
    contestants.append(Contestant("cp -r", ["cp", "-r", str(source), str(dest)]))
    contestants += readers(source)
    contestants += both(source, dest) if len(contestants) > 5 else []
    take_turns(contestants, rounds, dest, lambda: empty_cache(how, source))
    copy = next(one for one in contestants if one.name == "cp -r").median("wall")
    floor = min((one.seconds() for one in contestants if one.kind == "floor"), default=None)
    lines = [
        f"{title}: {HOW[how]}; {CPUS} threads, {rounds} rounds. The programs are cold too, but "
        "their own clock does not include that.\n"
        if how == "drop"
        else f"{title}: {HOW[how]}; {CPUS} threads, {rounds} rounds.\n",
        "| | whole process | own clock | own clock / read floor | process / cp -r |",
        "|---|--:|--:|--:|--:|",
    ]
    for one in contestants:
        clock = f"{one.median('clock'):.2f} s" if one.clock else ""
        ratio = f"{one.seconds() / floor:.2f}" if floor else ""
        lines.append(
            f"| {one.name} | {one.median('wall'):.2f} s | {clock} | {ratio} "
            f"| {one.median('wall') / copy:.2f} |"
        )
    if floor:
        lines.append(disk(contestants, floor, contestants[0].median("clock")))
    return lines
