"""Thousands of damaged pickles, the same ones every time, each read by torch and by recast.

`python tests/mutated_pickles.py FIRST COUNT FOLDER` reads so many and prints what it found as JSON;
a process of its own, since a damaged file must not end the tests if torch does not survive it. The
file that is being read lies in FOLDER.
"""

import json
import pickletools
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pickle_bytes import archive, entries_of, integer, named
from valid_pickles import FILES

Random = random.Random
INTERESTING = (0, 1, 2, 0x28, 0x2E, 0x52, 0x7F, 0x80, 0xFE, 0xFF)
MANY = 20_000
SAMPLE = 4
"""Of how many files that both read the values are compared, too: one in so many."""

GLOBALS = (
    *("posix.system", "builtins.eval", "collections.OrderedDict", "collections.Counter"),
    *("torch.FloatStorage", "torch.LongStorage", "torch.storage.UntypedStorage", "torch.Size"),
    *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch.float32"),
    *("torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter", "torch.device"),
)


def bytewise(chance: Random, data: bytes) -> bytes:
    """One to three changes that know nothing of the format."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = chance.choice(CHANGES)(chance, data)
    return data


def flipped(chance: Random, data: bytes) -> bytes:
    return replaced(chance, data, lambda byte: byte ^ 1 << chance.randrange(8))


def assigned(chance: Random, data: bytes) -> bytes:
    return replaced(chance, data, lambda _: chance.choice(INTERESTING))


def stepped(chance: Random, data: bytes) -> bytes:
    return replaced(chance, data, lambda byte: (byte + chance.choice((-1, 1))) % 256)


def replaced(chance: Random, data: bytes, change: Callable[[int], int]) -> bytes:
    if not data:
        return data
    at = chance.randrange(len(data))
    return data[:at] + bytes([change(data[at])]) + data[at + 1 :]


def place(chance: Random, data: bytes) -> tuple[int, int]:
    """A short stretch of `data`."""
    at = chance.randrange(len(data) + 1)
    return at, min(len(data), at + chance.choice((1, 1, 2, 4, 8, 30)))


def deleted(chance: Random, data: bytes) -> bytes:
    first, last = place(chance, data)
    return data[:first] + data[last:]


def inserted(chance: Random, data: bytes) -> bytes:
    at, _ = place(chance, data)
    return data[:at] + chance.randbytes(chance.choice((1, 1, 2, 4, 8))) + data[at:]


def doubled(chance: Random, data: bytes) -> bytes:
    first, last = place(chance, data)
    return data[:last] + data[first:last] + data[last:]


def copied(chance: Random, data: bytes) -> bytes:
    """A stretch over another."""
    first, last = place(chance, data)
    at, _ = place(chance, data)
    return data[:at] + data[first:last] + data[at + last - first :]


def truncated(chance: Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


CHANGES = (flipped, flipped, assigned, assigned, stepped, deleted, inserted, doubled, copied)


def spliced(chance: Random, data: bytes) -> bytes:
    """The start of one file, and the end of another."""
    other = chance.choice(list(FILES.values()))
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


def opcodes(pickle: bytes) -> list[bytes]:
    """Each opcode with its argument."""
    starts = [at for _, _, at in pickletools.genops(pickle)]
    return [pickle[a:b] for a, b in zip(starts, [*starts[1:], len(pickle)], strict=True)]


def rewritten(chance: Random, pickle: bytes) -> bytes:
    """One to three changes of whole opcodes."""
    parts = opcodes(pickle)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at, other = chance.randrange(len(parts)), chance.randrange(len(parts))
        kind = chance.randrange(7)
        if kind == 0 and len(parts) > 1:
            del parts[at]
        elif kind == 1:
            parts.insert(at, parts[other])
        elif kind == 2:
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            parts[at] = parts[other]
        elif kind == 4:
            parts[at] = named(chance.choice(GLOBALS))
        elif kind == 5:
            parts.insert(at, chance.choice((b"0", b"2", b"N", b")", b"]", b"}", b"R", b"b", b"s")))
        else:
            parts[at] = parts[at][:1] + bytewise(chance, parts[at][1:])
    return b"".join(parts)


def tuned(chance: Random, pickle: bytes) -> bytes:
    """One to three other arguments, of the kind that was there."""
    parts = opcodes(pickle)
    kinds = {b"K": b"KMJ\x8a", b"M": b"KMJ\x8a", b"X": b"X", b"c": b"c", b"h": b"hj", b"q": b"qr"}
    places = [at for at, part in enumerate(parts) if part[:1] in kinds]
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.choice(places or [0])
        part = parts[at]
        same = [other for other in parts if other[:1] in kinds.get(part[:1], b"")]
        if part[:1] in b"KM" and chance.random() < 0.7:
            old = int.from_bytes(part[1:], "little")
            new = chance.choice((0, 1, 2, 3, 6, old - 1, old + 1, 2 * old, -old, 1 << 40, 1 << 63))
            parts[at] = integer(new)
        elif part[:1] == b"c" and chance.random() < 0.5:
            parts[at] = named(chance.choice(GLOBALS))
        elif part[:1] in b"hq" and chance.random() < 0.3:
            parts[at] = part[:1] + bytes([chance.randrange(8)])
        else:
            parts[at] = chance.choice(same or [part])
    return b"".join(parts)


def repacked(chance: Random, _: bytes) -> bytes:
    """An archive in which everything is right, but for its pickle."""
    storages, pickle = chance.choice(CONTENTS)
    change = chance.choice((rewritten, tuned, tuned, bytewise))
    return archive(entries_of(change(chance, pickle), storages))


def restored(chance: Random, _: bytes) -> bytes:
    """A legacy file in which one of its pickles is another."""
    pickles, data = chance.choice(LEGACIES)
    at = chance.choice((0, 1, 2, 3, 3, 3, 3, 3, 4, 4))
    changed = chance.choice((rewritten, tuned, tuned))(chance, pickles[at])
    return b"".join((*pickles[:at], changed, *pickles[at + 1 :], data))


def relabeled(chance: Random, _: bytes) -> bytes:
    """An archive in which both headers of one entry say the same wrong thing, or only one does."""
    storages, pickle = chance.choice(CONTENTS)
    entries = entries_of(pickle, storages)
    at = chance.randrange(len(entries))
    one = entries[at]
    fields: dict[str, Any] = {
        "name": bytewise(chance, one.name.encode()),
        "flags": chance.getrandbits(16),
        "method": chance.choice((0, 8, 9, 99)),
        "packed": max(0, len(one.data) + chance.choice((-8, -1, 1, 8, 1 << 30))),
        "size": max(0, len(one.data) + chance.choice((-8, -1, 1, 8, 1 << 30))),
        "crc": chance.getrandbits(32),
        "extra": chance.randbytes(chance.randrange(40)),
    }
    key = chance.choice(list(fields))
    changed = {key: fields[key]}
    sides: dict[str, Any] = chance.choice(
        ({"local": changed}, {"central": changed}, {"local": changed, "central": changed})
    )
    entries[at] = replace(one, **sides)
    if chance.random() < 0.3:
        chance.shuffle(entries)
    return archive(entries)


def contents(data: bytes) -> tuple[dict[str, bytes], bytes]:
    """The storages and the pickle of an archive that was written by hand."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as file:
        parts = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    storages = {n.removeprefix("data/"): part for n, part in parts.items() if n.startswith("data/")}
    return storages, parts["data.pkl"]


def pickles(data: bytes) -> tuple[list[bytes], bytes]:
    """The five pickles of a legacy file, and what follows."""
    found = []
    for _ in range(5):
        last = data.index(b".", max(at or 0 for _, _, at in pickletools.genops(data)))
        found.append(data[: last + 1])
        data = data[last + 1 :]
    return found, data


LEGACIES = [pickles(data) for name, data in FILES.items() if name.startswith("legacy")]
# zipfile reads none whose checksums are missing.
ZIPS = [name for name in FILES if name.startswith("zip") and "checksums" not in name]
CONTENTS = [contents(FILES[name]) for name in ZIPS]
KINDS = (bytewise, truncated, spliced, repacked, repacked, repacked, restored, restored, relabeled)


def mutation(number: int) -> bytes:
    chance = Random(number)
    return chance.choice(KINDS)(chance, chance.choice(list(FILES.values())))


def reason(message: str) -> str:
    """A message without what differs from file to file."""
    message = message.splitlines()[0]
    message = re.sub(r"'(?:[^'\\]|\\.)*'", "'...'", message)
    message = re.sub(r"(archive|[^ ]*)/data\.pkl|the pickle", "PICKLE", message)
    return re.sub(r"\d+", "0", message)[:150]


def compared(path: Path, sample: bool) -> tuple[str, str]:
    """What came of it (who refuses, `same` or `other`), and why."""
    import recast
    from pickle_judge import NoModelError, described, difference, model_of, opened, other_values

    refusal = theirs = ""
    model, ours = {}, {}
    try:
        ours = described(path)
    except recast.InputError as error:
        refusal = reason(error.message.removeprefix(f"{path}: "))
    try:
        model = model_of(opened(path))
    except NoModelError as error:
        theirs = str(error)
    except Exception as error:
        theirs = reason(f"{type(error).__name__}: {error}")
    if refusal or theirs:
        if refusal and theirs:
            return "both refuse", ""
        return ("recast refuses", refusal) if refusal else ("torch refuses", theirs)
    if (found := difference(model, ours)) is not None:
        return "other", found
    if sample:
        out = path.with_suffix(".out")
        recast.convert(path, out, to="as-stored", sync=False)
        result = next(out.glob("*.safetensors"))
        if names := other_values(model, result):
            return "other", f"values of {names}"
    return "same", "values" if sample else ""


def main(first: int, count: int, folder: Path) -> None:
    import shutil

    import torch

    torch.set_num_threads(1)
    found: Counter[tuple[str, str]] = Counter()
    examples: dict[str, int] = {}
    for number in range(first, first + count):
        path = folder / f"{number}.bin"
        path.write_bytes(mutation(number))
        verdict = compared(path, number % SAMPLE == 0)
        found[verdict] += 1
        examples.setdefault("\n".join(verdict), number)
        path.unlink()
        shutil.rmtree(path.with_suffix(".out"), ignore_errors=True)
    rows = [[*verdict, times, examples["\n".join(verdict)]] for verdict, times in found.items()]
    print(json.dumps(sorted(rows)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
