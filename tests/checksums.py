"""The judge of checksums: a dozen lines of Python that share no code with recast."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash
from support import fp32_bytes, raw_bytes

BLOCK = 256 << 10
NOT_UTF8 = os.fsdecode(b"caf\xe9.txt")
REPORT = "recast.json"


def segments(path: Path) -> list[int]:
    """Where the segments of a file start and the last one ends."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return [0, len(data)]
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    header.pop("__metadata__", None)
    starts = sorted(length + entry["data_offsets"][0] for entry in header.values())
    return [0, length, *starts, len(data)]


def checksum(path: Path) -> str:
    data, edges, digests = path.read_bytes(), segments(path), b""
    for start, end in pairwise(edges):
        for at in range(start, end, BLOCK):
            block = data[at : min(at + BLOCK, end)]
            # The package gives the digest's bytes with the highest first.
            digests += xxhash.xxh3_128_digest(block)[::-1]
    return xxhash.xxh3_128_hexdigest(digests)


def named(path: str) -> Path:
    """The path that a report means: a name that is not UTF-8 is given as its bytes."""
    if path.startswith("\0"):
        return Path(os.fsdecode(bytes.fromhex(path[1:])))
    return Path(path)


def report_of(dest: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((dest / REPORT).read_bytes())
    return found


def assert_right(source: Path, dest: Path) -> int:
    """Every file of the result is in the report with its own checksum and its source's."""
    rows = report_of(dest)["published_files"]
    for row in rows:
        path = dest / named(row["path"])
        assert (row["bytes"], row["xxh3_128"]) == (path.stat().st_size, checksum(path)), path
        origin = row["source"]
        if origin is not None:
            path = source / named(origin["path"])
            expected = (path.stat().st_size, checksum(path))
            assert (origin["bytes"], origin["xxh3_128"]) == expected, path
    there = {path.relative_to(dest) for path in dest.rglob("*") if path.is_file()}
    assert there == {named(row["path"]) for row in rows} | {Path(REPORT)}
    assert [named(row["path"]) for row in rows if row["source"] is None] in (
        [],
        [Path("SHA256SUMS")],
    )
    return len(rows)


def all_kinds(folder: Path) -> Path:
    """A model with all that can make a block begin or end somewhere odd."""
    (folder / "vae").mkdir(parents=True)
    odd = BLOCK // 4 + 1
    rows = [
        ("bytes", "U8", [3], b"abc"),
        ("large", "F32", [3 * odd + 1], fp32_bytes(3 * odd + 1)),
        ("empty", "F32", [0, 7], b""),
        ("scalar", "F32", [], fp32_bytes(1)),
        ("exact", "F32", [BLOCK // 4], fp32_bytes(BLOCK // 4)),
        ("codes", "I8", [BLOCK + 1], bytes(BLOCK + 1)),
        ("kept", "F32", [odd], fp32_bytes(odd, 1)),
        ("half", "F16", [odd], fp32_bytes(odd)[: 2 * odd]),
    ]
    # Not padded: nothing in this file is aligned.
    (folder / "model.safetensors").write_bytes(raw_bytes(rows))
    (folder / "vae" / "none.safetensors").write_bytes(raw_bytes([]))
    (folder / "vae" / "config.json").write_text('{"dtype": "float32"}')
    (folder / "config.json").write_text('{"model_type": "llama", "dtype": "float32"}\n')
    (folder / "large.txt").write_bytes(bytes(range(256)) * 3000)
    (folder / "block.txt").write_bytes(b"x" * BLOCK)
    (folder / "empty.txt").write_bytes(b"")
    (folder / NOT_UTF8).write_bytes(b"coffee")
    return folder


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
