"""Zip archives whose headers lie, or disagree with each other."""

import struct
import zlib

from pickle_bytes import (
    DESCRIPTOR,
    FLOATS,
    FULL32,
    archive,
    dict_of,
    edited,
    entries_of,
    pickled,
    tensor,
)

from hostile_pickles.case import Hostile, bad, shell

GOOD = pickled(dict_of({"w": tensor()}))
OTHER = pickled(dict_of({"w": tensor(shape=[3, 2])}))
EVIL = pickled(shell())
BASE = entries_of(GOOD)
SIZE = len(archive(BASE))
PKL, DATA = "archive/data.pkl", "archive/data/0"

# Why torch opens them: its reader, miniz, searches the directory and skips local headers.
LENIENT = "It reads what its directory lists first, and looks at little else."
NO_CHECK = "It does not compare checksums."
STORED, STRAY = "storage '0'|data/0", r"bytes at \d+ that belong to no entry"
MAPS = "It takes what lies there, inflated or not."


def deflated(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


def at(name: str) -> int:
    """Where the local header of an entry of `BASE` is."""
    data = archive(BASE)
    return data.index(name.encode()) - 30


def zip64(*values: int) -> bytes:
    return b"\1\0" + struct.pack(f"<H{len(values)}Q", 8 * len(values), *values)


def local(which: str, **changes: object) -> bytes:
    return archive(edited(BASE, which, local=changes))


def central(which: str, **changes: object) -> bytes:
    return archive(edited(BASE, which, central=changes))


def both(which: str, **changes: object) -> bytes:
    return archive(edited(BASE, which, local=changes, central=changes))


DISAGREE = [
    bad(
        "another name in the local header",
        local("data/0", name=b"archive/data/1"),
        "data/0",
        torch=LENIENT,
    ),
    bad(
        "another name for data.pkl in the local header",
        local("data.pkl", name=b"archive/evil.pkl"),
        r"data\.pkl",
        torch=LENIENT,
    ),
    bad(
        "a longer name in the local header",
        local("data/0", name=b"archive/data/0000000"),
        "data/0",
        torch=MAPS,
    ),
    bad(
        "a name in other case in the local header",
        local("data.pkl", name=b"archive/DATA.pkl"),
        r"data\.pkl",
        torch=LENIENT,
    ),
    bad(
        "a name length that reaches into the data",
        local("data/0", name_length=14 + 8),
        "data/0",
        torch=MAPS,
    ),
    bad(
        "an extra length that reaches into the data",
        local("data/0", extra=b"", extra_length=8),
        STRAY,
        torch=MAPS,
    ),
    bad("an extra length beyond the file", local("data/0", extra_length=0xFFFF), "data/0"),
    bad("another method in the local header", local("data/0", method=8), "data/0", torch=LENIENT),
    bad(
        "deflated by the local header of data.pkl",
        local("data.pkl", method=8),
        r"data\.pkl",
        torch=LENIENT,
    ),
    bad("encrypted by the local header", local("data/0", flags=0x809), "data/0", torch=LENIENT),
    bad(
        "another size in the local header",
        local("data/0", packed=20, size=20),
        "data/0",
        torch=LENIENT,
    ),
    bad(
        "another size in the local header of data.pkl",
        local("data.pkl", packed=9, size=9),
        r"data\.pkl",
        torch=LENIENT,
    ),
    bad(
        "another checksum in the local header",
        local("data.pkl", crc=1),
        r"data\.pkl",
        torch=LENIENT,
    ),
    bad(
        "sizes that are missing from the local header",
        local("data/0", flags=0x800),
        "data/0",
        torch=LENIENT,
    ),
    bad("no local header", local("data/0", signature=b"PK\0\0"), "data/0", torch=MAPS),
    bad("a central header for a local one", local("data.pkl", signature=b"PK\1\2"), foreign=True),
    bad("no central header", central("data/0", signature=b"PK\0\0"), "directory|central"),
    bad("deflated by the central header", central("data/0", method=8), "data/0", torch=MAPS),
    bad("encrypted by the central header", central("data/0", flags=0x809), "data/0"),
    bad("encrypted", both("data/0", flags=0x809), "(?i)data/0.*encrypt|encrypt.*data/0"),
    bad("strongly encrypted", both("data/0", flags=0x849), "(?i)data/0.*encrypt|encrypt.*data/0"),
    bad("with masked headers", both("data/0", flags=0x2808), "data/0"),
    bad("patched data", both("data/0", flags=0x828), "data/0"),
    bad("an encrypted data.pkl", both("data.pkl", flags=0x809), r"data\.pkl"),
    bad(
        "a deflated storage",
        archive(edited(BASE, "data/0", data=bytes(24), stored=deflated(bytes(24)), method=8)),
        "(?i)data/0.*(deflate|compress)|(deflate|compress).*data/0",
        torch=MAPS,
    ),
    bad(
        "a deflated data.pkl",
        archive(edited(BASE, "data.pkl", stored=deflated(GOOD), method=8)),
        r"data\.pkl",
        torch="It inflates what is deflated.",
    ),
    bad(
        "a deflated version",
        archive(edited(BASE, "archive/version", stored=deflated(b"3\n"), method=8)),
        "version",
        torch="It inflates what is deflated.",
    ),
    bad(
        "a zip bomb",
        archive(
            edited(BASE, "data/0", data=bytes(24), stored=deflated(bytes(10_000_000)), method=8)
        ),
        "data/0",
        torch=MAPS,
    ),
    bad("a method that is none", both("data/0", method=99), "data/0"),
    bad("other packed and unpacked sizes", central("data/0", size=20), "data/0"),
    bad(
        "a storage cut short by the directory",
        central("data/0", packed=20, size=20),
        STRAY,
        torch=MAPS,
    ),
    bad(
        "a storage made longer by the directory",
        central("data/0", packed=28, size=28),
        STRAY,
        torch=MAPS,
    ),
    bad(
        "a data.pkl made longer by the directory",
        central("data.pkl", packed=len(GOOD) + 4, size=len(GOOD) + 4),
        STRAY,
        torch=LENIENT,
    ),
    bad(
        "a wrong checksum of data.pkl",
        archive(
            edited(
                BASE,
                "data.pkl",
                central={"crc": 1},
                descriptor=DESCRIPTOR + struct.pack("<3I", 1, len(GOOD), len(GOOD)),
            )
        ),
        r"data\.pkl",
        torch=NO_CHECK,
    ),
    bad(
        "data.pkl with a byte changed",
        archive(edited(BASE, "data.pkl", stored=GOOD.replace(b"w", b"v"))),
        r"data\.pkl",
        torch=NO_CHECK,
    ),
    bad(
        "a descriptor with other sizes",
        archive(
            edited(
                BASE,
                "data/0",
                descriptor=DESCRIPTOR + struct.pack("<3I", zlib.crc32(FLOATS), 20, 20),
            )
        ),
        STRAY,
        torch=LENIENT,
    ),
    bad(
        "a descriptor with another checksum",
        archive(
            edited(
                BASE,
                "data.pkl",
                descriptor=DESCRIPTOR + struct.pack("<3I", 1, len(GOOD), len(GOOD)),
            )
        ),
        STRAY,
        torch=LENIENT,
    ),
    bad("a data.pkl that is marked as a folder", central("data.pkl", external=0x10), r"data\.pkl"),
    bad(
        "a storage that is marked as a folder",
        central("data/0", external=0x10),
        "data/0",
        torch=MAPS,
    ),
    bad("another disk", central("data/0", disk=1), "disk|parts", torch=MAPS),
]

COUNT = len(BASE)
RECORDS: dict[str, dict[str, object]] = {
    "2^63 entries": {"entries": 1 << 63, "entries_here": 1 << 63},
    "2^32 entries": {"entries": 1 << 32, "entries_here": 1 << 32},
    "an entry too many": {"entries": COUNT + 1, "entries_here": COUNT + 1},
    "a directory beyond the file": {"offset": 1 << 62},
    "a directory of 2^64 - 1 bytes": {"size": (1 << 64) - 1},
    "a directory that wraps": {"offset": (1 << 64) - 46, "size": 92},
    "a second disk": {"disk": 1},
    "no signature": {"signature": b"PK\6\0"},
}
LOCATORS: dict[str, dict[str, object]] = {
    "an offset beyond the file": {"offset": 1 << 62},
    "an offset of 2^64 - 1": {"offset": (1 << 64) - 1},
    "an offset to itself": {"offset": len(archive(BASE)) + 56 - 22},
    "an offset of 0": {"offset": 0},
    "no signature": {"signature": b"PK\6\0"},
}
SIXTY_FOUR = [
    bad(
        "zip64: sizes that disagree",
        archive(
            edited(
                BASE,
                "data/0",
                central={"size": FULL32, "packed": FULL32, "extra": zip64(1 << 40, 1 << 40)},
            )
        ),
        "data/0",
    ),
    bad(
        "zip64: another size than 24",
        archive(
            edited(
                BASE, "data/0", central={"size": FULL32, "packed": FULL32, "extra": zip64(20, 20)}
            )
        ),
        STRAY,
        torch=MAPS,
    ),
    bad(
        "zip64: no field where the header says so",
        archive(edited(BASE, "data/0", central={"size": FULL32, "packed": FULL32})),
        "data/0",
        torch=MAPS,
    ),
    bad(
        "zip64: a field that is too short",
        archive(
            edited(BASE, "data/0", central={"size": FULL32, "packed": FULL32, "extra": zip64(24)})
        ),
        "data/0",
    ),
    bad(
        "zip64: a field that ends beyond its header",
        archive(
            edited(
                BASE,
                "data/0",
                central={"size": FULL32, "packed": FULL32, "extra": b"\1\0\xff\xff" + bytes(16)},
            )
        ),
        "data/0",
    ),
    bad(
        "zip64: two fields",
        archive(
            edited(
                BASE,
                "data/0",
                central={"size": FULL32, "packed": FULL32, "extra": zip64(24, 24) + zip64(20, 20)},
            )
        ),
        "data/0",
        torch=LENIENT,
    ),
    bad(
        "zip64: an offset of 2^63",
        archive(edited(BASE, "data/0", central={"offset": FULL32, "extra": zip64(1 << 63)})),
        "data/0",
    ),
    bad(
        "zip64: an offset of 2^64 - 8",
        archive(edited(BASE, "data/0", central={"offset": FULL32, "extra": zip64((1 << 64) - 8)})),
        "data/0",
    ),
    bad(
        "zip64: sizes of 2^64 - 1",
        archive(
            edited(
                BASE,
                "data/0",
                central={
                    "size": FULL32,
                    "packed": FULL32,
                    "extra": zip64((1 << 64) - 1, (1 << 64) - 1),
                },
            )
        ),
        "data/0",
        torch=MAPS,
    ),
    *(
        bad(f"zip64: {name}", archive(BASE, end64=changes), "model")
        for name, changes in RECORDS.items()
    ),
    *(
        bad(f"zip64: a locator with {name}", archive(BASE, end64={}, locator=changes), "model")
        for name, changes in LOCATORS.items()
    ),
    bad(
        "zip64: another end than the old one",
        archive(BASE, end64={}, end={"entries": 1, "entries_here": 1, "size": 46, "offset": 0}),
        "model",
        torch=LENIENT,
    ),
    bad("zip64: a record that is too short", archive(BASE, end64={"record_size": 4}), "model"),
]

FILES: list[Hostile] = [*DISAGREE, *SIXTY_FOUR]
