"""Zip archives that hold more than one model, or more than entries, or entries that overlap."""

import struct
import zlib
from dataclasses import replace

from pickle_bytes import (
    CENTRAL,
    END,
    FLOATS,
    FULL32,
    Entry,
    archive,
    dict_of,
    edited,
    entries_of,
    pack,
    pickled,
    storage,
    tensor,
    without,
    zipped,
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


TWO = [
    bad("two data.pkl", archive([*BASE, Entry(PKL, OTHER)]), r"data\.pkl", torch=LENIENT),
    bad(
        "two data.pkl, the evil one first",
        archive([Entry(PKL, EVIL), *BASE]),
        r"data\.pkl",
        torch=LENIENT,
    ),
    bad("two data.pkl, the evil one last", archive([*BASE, Entry(PKL, EVIL)]), r"data\.pkl"),
    bad("the same data.pkl twice", archive([*BASE, Entry(PKL, GOOD)]), r"data\.pkl", torch=LENIENT),
    bad("data.pkl of another root first", archive([Entry("other/data.pkl", EVIL), *BASE]), "other"),
    bad("data.pkl of another root last", archive([*BASE, Entry("other/data.pkl", EVIL)]), "other"),
    bad(
        "data.pkl of a root within the root",
        archive([*BASE, Entry("archive/archive/data.pkl", EVIL)]),
        r"archive/archive/data\.pkl",
        torch=LENIENT,
    ),
    bad(
        "DATA.PKL beside data.pkl",
        archive([*BASE, Entry("archive/DATA.PKL", EVIL)]),
        r"(?i)data\.pkl",
    ),
    bad(
        "DATA.PKL before data.pkl",
        archive([Entry("archive/DATA.PKL", EVIL), *BASE]),
        r"(?i)data\.pkl",
        torch=LENIENT,
    ),
    bad(
        "DATA.PKL of another model last",
        archive([*BASE, Entry("archive/DATA.PKL", OTHER)]),
        r"(?i)data\.pkl",
        torch=LENIENT,
    ),
    bad(
        "DATA.PKL of another model first",
        archive([Entry("archive/DATA.PKL", OTHER), *BASE]),
        r"(?i)data\.pkl",
        torch=LENIENT,
    ),
    bad(
        "a storage twice, the other case first",
        archive(
            [
                Entry("archive/data/A", bytes(24)),
                *entries_of(pickled(dict_of({"w": tensor(storage(key="a"))})), {"a": FLOATS}),
            ]
        ),
        "(?i)data/a",
        torch=LENIENT,
    ),
    bad("a storage twice", archive([*BASE, Entry(DATA, bytes(24))]), "data/0", torch=LENIENT),
    bad(
        "a storage twice, but for its case",
        archive(
            [
                *entries_of(pickled(dict_of({"w": tensor(storage(key="a"))})), {"a": FLOATS}),
                Entry("archive/data/A", bytes(24)),
            ]
        ),
        "(?i)data/a",
        torch=LENIENT,
    ),
    bad("an entry of another root", archive([*BASE, Entry("other/data/0", FLOATS)]), "other"),
    bad("an entry without a root", archive([*BASE, Entry("loose", b"x")]), "loose"),
    bad(
        "no root at all",
        archive([replace(e, name=e.name.removeprefix("archive/")) for e in BASE]),
        r"data\.pkl",
    ),
    bad("an entry with an absolute path", archive([*BASE, Entry("/etc/x", b"x")]), "''|/etc/x"),
    bad("a name with a backslash", archive([*BASE, Entry("archive\\data.pkl", EVIL)]), "data"),
    bad(
        "a name with a NUL",
        archive([*BASE, Entry("archive/data.pkl\0x", EVIL)]),
        r"data\.pkl",
        torch=LENIENT,
    ),
    bad(
        "an entry whose name is not UTF-8",
        archive(
            edited(
                BASE,
                "archive/version",
                local={"name": b"archive/\xff"},
                central={"name": b"archive/\xff"},
            )
        ),
        "UTF-8|archive",
    ),
    bad("a name that is empty", archive([*BASE, Entry("", b"x")]), "''"),
    bad(
        "byteorder twice",
        archive([*BASE, Entry("archive/byteorder", b"big")]),
        "byteorder",
        torch=LENIENT,
    ),
    bad(
        "a TorchScript program",
        archive([*BASE, Entry("archive/constants.pkl", EVIL)]),
        "(?i)TorchScript",
    ),
    bad("no data.pkl", archive(without(BASE, "data.pkl")), r"data\.pkl"),
    bad("a data.pkl of no bytes", archive(entries_of(b"")), r"data\.pkl"),
    bad(
        "data.pkl as a directory",
        archive([Entry(PKL + "/", b""), *without(BASE, "data.pkl")]),
        r"data\.pkl",
    ),
    bad(
        "only data.pkl in capitals",
        archive(edited(BASE, "data.pkl", name="archive/DATA.PKL")),
        r"data\.pkl",
        torch=LENIENT,
    ),
    bad("no entries", archive([]), foreign=True),
    bad("no storage", archive(without(BASE, "data/0")), STORED),
    bad(
        "a storage under a longer name",
        archive(edited(BASE, "data/0", name="archive/data/00")),
        STORED,
    ),
    bad(
        "big endian",
        archive(edited(BASE, "byteorder", data=b"big")),
        "(?i)big",
        torch="It swaps the bytes.",
    ),
    bad(
        "big endian, in capitals",
        archive(edited(BASE, "byteorder", name="archive/BYTEORDER", data=b"big")),
        "(?i)byteorder|big",
        torch="It swaps the bytes.",
    ),
    bad(
        "a byte order that is none",
        archive(edited(BASE, "byteorder", data=b"middle")),
        "byte order.*middle",
    ),
    bad("an empty byte order", archive(edited(BASE, "byteorder", data=b"")), "byte order"),
]


def central(which: str, **changes: object) -> bytes:
    return archive(edited(BASE, which, central=changes))


def sharing(named: str, **changes: object) -> bytes:
    """An archive with one more line in its directory, for bytes that are another's."""
    fields: dict[str, object] = {"offset": at("archive/data/0"), **changes}
    whole = archive(BASE)
    end = whole.rindex(END[1])
    line = {"made_by": 0, "version": 0, "flags": 0x808, "method": 0, "time": 0, "date": 0}
    line |= {"crc": zlib.crc32(FLOATS), "packed": 24, "size": 24, "name_length": len(named)}
    line |= {"extra_length": 0, "comment_length": 0, "disk": 0, "internal": 0, "external": 0}
    added = pack(CENTRAL, {**line, "offset": 0}, fields) + named.encode()
    fixed = struct.unpack("<HHHHIIH", whole[end + 4 :])
    count, size, place = fixed[2] + 1, fixed[4] + len(added), fixed[5]
    return (
        whole[:end]
        + added
        + pack(
            END,
            {
                "disk": 0,
                "start_disk": 0,
                "entries_here": count,
                "entries": count,
                "size": size,
                "offset": place,
                "comment_length": 0,
            },
            {},
        )
    )


INNER = archive([Entry("archive/data/9", bytes(24))])
OVERLAP = [
    bad("two names for one storage", sharing("archive/data/1"), "data/[01]", torch=LENIENT),
    bad(
        "an entry within data.pkl",
        sharing("archive/x", offset=at(PKL) + 60, packed=8, size=8),
        "archive/x|overlap",
        torch=LENIENT,
    ),
    bad(
        "an entry over all of the file",
        sharing("archive/x", offset=0, packed=SIZE - 100, size=SIZE - 100),
        "archive/x|overlap|data",
        torch=LENIENT,
    ),
    bad(
        "an archive within a storage",
        archive([*edited(BASE, "data/0", stored=INNER, data=INNER)]),
        STORED,
        torch=MAPS,
    ),
    bad("an entry beyond the file", central("data/0", packed=1 << 30, size=1 << 30), "data/0"),
    bad(
        "an entry that ends in the directory",
        central("archive/.data/serialization_id", packed=300, size=300),
        "serialization_id|overlap|beyond",
    ),
    bad("an offset beyond the file", central("data/0", offset=SIZE + 1), "data/0"),
    bad("an offset at the end of the file", central("data/0", offset=SIZE), "data/0"),
    bad("an offset into the end's record", central("data/0", offset=SIZE - 22), "data/0"),
    bad(
        "an offset into the directory",
        central("data/0", offset=archive(BASE).index(b"PK\1\2")),
        "data/0",
        torch=MAPS,
    ),
    bad("an offset of 2^32 - 2", central("data/0", offset=FULL32 - 1), "data/0"),
    bad("an offset that is one too far", central("data.pkl", offset=1), r"data\.pkl"),
    bad("data.pkl at a storage's place", central("data.pkl", offset=at(DATA)), r"data\.pkl|data/0"),
]

FAKE = archive(entries_of(EVIL))
COUNT = len(BASE)
ENDS = [
    bad("an end in the comment", archive(BASE, comment=FAKE[-22:]), "model"),
    bad(
        "an end in the comment, with a comment",
        archive(BASE, comment=FAKE[-22:-2] + b"\5\0hello"),
        "model",
    ),
    bad("an archive in the comment", archive(BASE, comment=FAKE), "model"),
    bad(
        "a comment that is longer than the file",
        archive(BASE, end={"comment_length": 9}),
        "model",
        torch=LENIENT,
    ),
    bad(
        "a comment that is shorter than what follows",
        archive(BASE, comment=b"hello", end={"comment_length": 2}),
        "model",
        torch=LENIENT,
    ),
    bad("a byte after the end", zipped(tail=b"\0"), "model", torch=LENIENT),
    bad("70,000 bytes after the end", zipped(tail=bytes(70_000)), "model"),
    bad("zip: a pickle after the end", zipped(tail=EVIL), "model", torch=LENIENT),
    bad(
        "a byte before the first entry",
        archive([replace(BASE[0], before=b"\0"), *BASE[1:]]),
        foreign=True,
    ),
    bad(
        "a local header before the first entry",
        archive([replace(Entry("archive/x", b"x"), listed=False), *BASE]),
        "model|byte",
        torch=LENIENT,
    ),
    bad(
        "an unlisted entry between",
        archive([*BASE[:3], Entry("archive/x", b"evil", listed=False), *BASE[3:]]),
        "byte",
        torch=LENIENT,
    ),
    bad(
        "an unlisted data.pkl",
        archive([*BASE, Entry(PKL, EVIL, listed=False)]),
        "byte",
        torch=LENIENT,
    ),
    bad(
        "bytes between entries",
        archive(edited(BASE, "data/0", before=b"evil" * 100)),
        "byte",
        torch=LENIENT,
    ),
    bad("bytes before the directory", archive(BASE, gap=b"evil"), "byte", torch=LENIENT),
    bad("no end", archive(BASE)[:-22], "model"),
    bad("no directory", archive(BASE, end={"size": 0, "entries": 0, "entries_here": 0}), "model"),
    bad("65,535 entries", archive(BASE, end={"entries": 0xFFFF, "entries_here": 0xFFFF}), "model"),
    bad("65,534 entries", archive(BASE, end={"entries": 0xFFFE, "entries_here": 0xFFFE}), "model"),
    bad(
        "an entry too many",
        archive(BASE, end={"entries": COUNT + 1, "entries_here": COUNT + 1}),
        "model",
    ),
    bad(
        "an entry too few",
        archive(BASE, end={"entries": COUNT - 1, "entries_here": COUNT - 1}),
        "model",
        torch=LENIENT,
    ),
    bad("other entries on this disk", archive(BASE, end={"entries_here": 1}), "model"),
    bad("a second disk", archive(BASE, end={"disk": 1}), "model|disk"),
    bad("a directory on another disk", archive(BASE, end={"start_disk": 1}), "model|disk"),
    bad("a directory that is too long", archive(BASE, end={"size": SIZE}), "model"),
    bad("a directory that is too short", archive(BASE, end={"size": 46}), "model"),
    bad("a directory beyond the file", archive(BASE, end={"offset": SIZE}), "model"),
    bad("a directory at the start", archive(BASE, end={"offset": 0}), "model"),
    bad("a directory at 2^32 - 1", archive(BASE, end={"offset": FULL32}), "model"),
    bad(
        "a directory a byte too early",
        archive(BASE, end={"offset": archive(BASE).index(b"PK\1\2") - 1}),
        "model",
    ),
]

ZIP = zipped()
POLYGLOTS = [
    *(
        bad(f"{kind}, then an archive{how}", archive(BASE, head=head, shift=shift), foreign=True)
        for kind, head in {
            "an ELF program": b"\x7fELF\2\1\1" + bytes(57),
            "a PDF": b"%PDF-1.7\n" + bytes(55),
            "a shell script": b"#!/bin/sh\ntouch canary\nexit\n",
            "a GIF": b"GIF89a" + bytes(58),
            "a pickle": EVIL,
            "a header of safetensors": b"\2\0\0\0\0\0\0\0{}",
        }.items()
        for shift, how in ((True, ""), (False, " whose offsets know nothing of it"))
    ),
    bad("an archive, then an archive", ZIP + ZIP, "model", torch=LENIENT),
    bad(
        "an archive in an archive",
        archive([*BASE, Entry("archive/data.zip", ZIP)], comment=ZIP[-22:]),
        "model",
    ),
]

FILES: list[Hostile] = [*TWO, *OVERLAP, *ENDS, *POLYGLOTS]
