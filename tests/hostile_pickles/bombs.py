"""Files that ask for much, or are large: those are made when they are wanted."""

import struct
from collections.abc import Callable

from pickle_bytes import (
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    MARK,
    NONE,
    STOP,
    Entry,
    archive,
    dict_of,
    entries_of,
    get,
    integer,
    named,
    numbers,
    pickled,
    put,
    storage,
    tensor,
    text,
)

from hostile_pickles.case import Hostile, bad, beside, instead

MIB = 1 << 20
BOUNDS = "It has none."
TOO_MANY = "values|stack|limit|more than|long"


def below(part: bytes, times: int, first: bytes = b"") -> Callable[[], bytes]:
    """An archive whose pickle leaves these below a good model."""
    model = dict_of({"w": tensor()}) + STOP
    return lambda: archive(entries_of(b"\x80\2" + first + part * times + model))


def expanded() -> bytes:
    """Each tensor is modest; all of them, no two of which are tied, are 84 GB."""
    shared = {f"w{n}": tensor(get(900), [(1 << 20) + n], [0]) for n in range(20_000)}
    model = {"v": tensor(storage() + put(900)), **shared}
    return archive(entries_of(pickled(dict_of(model))))


def remembered() -> bytes:
    model = dict_of({"w": tensor()})
    notes = b"".join(map(put, range(256, 12_000_256)))
    return archive(entries_of(pickled(integer(1) + notes + model)))


def listed() -> bytes:
    items = b"".join(b"J" + n.to_bytes(4, "little") + NONE for n in range(10_000_000))
    return beside(EMPTY_DICT + MARK + items + b"u")


NAME = "name does not end|xxx"


def copied_pairs() -> bytes:
    """One list of pairs, of which hundreds of dicts are made: each a copy of it."""
    pairs = put(300) + MARK + b"NN\x86" * 250_000 + b"e"
    arguments = EMPTY_LIST + pairs + b"\x85" + put(301)
    function = named("collections.OrderedDict") + put(302)
    return beside(MARK + arguments + function + (get(302) + get(301) + b"R") * 300 + b"t")


def many_arguments() -> bytes:
    """A call of something inert with half a million arguments, half a million times."""
    arguments = MARK + NONE * 500_000 + b"t" + put(0)
    call = get(1) + get(0) + b"R"
    return beside(MARK + arguments + named("builtins.set") + put(1) + call * 500_000 + b"t")


def deep_tensors() -> bytes:
    """One call, half a million times: each makes a tensor of 64 dimensions, and holds its sizes."""
    first = tensor(storage(), [1] * 64, [1] * 64)
    function, arguments = named("torch._utils._rebuild_tensor_v2"), first[first.index(MARK) : -1]
    again = get(1) + get(0) + b"R"
    return beside(MARK + function + put(1) + arguments + put(0) + again * 500_000 + b"t")


def deep_model() -> bytes:
    """The same as the model."""
    first = tensor(storage(), [1] * 64, [1] * 64)
    function, arguments = named("torch._utils._rebuild_tensor_v2"), first[first.index(MARK) : -1]
    again = {f"w{n}": get(1) + get(0) + b"R" for n in range(300_000)}
    state = dict_of({"state_dict": dict_of(again)})
    below = EMPTY_DICT + MARK + text("x") + MARK + function + put(1) + arguments + put(0) + b"t"
    return archive(entries_of(pickled(below + b"u" + state[1:])))


def everything() -> bytes:
    """As many values as there may be, each with memory of its own, each noted."""
    rows = b"".join(b"}NNs" + put(256 + n) for n in range(2_000_000))
    half = len(rows) // 2
    half -= half % 9
    return beside(MARK + MARK + rows[:half] + b"t" + MARK + rows[half:] + b"tt")


def entries() -> bytes:
    """More than a million entries of no bytes, by a shorter way than `archive`."""
    whole = archive(entries_of(pickled(dict_of({"w": tensor()}))), end64={})
    start, end = whole.index(b"PK\1\2"), whole.rindex(b"PK\6\6")
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0x800, *[0] * 6, 15, 0)
    line = struct.pack("<4s6H3I5HI", b"PK\1\2", 0, 0, 0x800, *[0] * 6, 15, *[0] * 5)
    count = 1_050_000
    names = [b"archive/%07x" % number for number in range(count)]
    data = b"".join(local + name for name in names)
    places = range(start, start + len(data), len(data) // count)
    lines = (
        line + place.to_bytes(4, "little") + name for name, place in zip(names, places, strict=True)
    )
    directory = whole[start:end] + b"".join(lines)
    total = 7 + count
    wide = struct.pack(
        "<4sQHHIIQQQQ", b"PK\6\6", 44, 0, 0, 0, 0, total, total, len(directory), start + len(data)
    )
    found = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(data) + len(directory), 1)
    return whole[:start] + data + directory + wide + found + whole[-22:]


def directory() -> bytes:
    """A pickle and a directory that are both just short enough."""
    comment = {"comment": bytes(62_000)}
    pickle = pickled(dict_of({"w": tensor(), "x": text(b"x" * (63 * MIB))}))
    many = [Entry(f"archive/{n}", b"", central=comment, align=1) for n in range(1060)]
    return archive([*entries_of(pickle), *many])


MILLION = numbers([1] * 1_000_000)
STRING, LIMIT = "cut short at byte", "long|limit|more than|64"

SMALL: list[Hostile] = [
    bad("2 GB of string claimed", beside(b"X\xff\xff\xff\x7fabc"), STRING),
    bad("4 GB of string claimed", beside(b"X\xff\xff\xff\xffabc"), STRING),
    bad("a string that ends beyond the pickle", beside(b"X\xff\xff\0\0abc"), STRING),
    bad("bytes that end beyond", archive(entries_of(b"\x80\2U\xffabc")), r"data\.pkl"),
    bad("a number that ends beyond", archive(entries_of(b"\x80\2\x8a\xff\1")), r"data\.pkl"),
    bad("a megabyte of a global's name", instead(named("torch", "x" * MIB)), NAME),
    bad("a megabyte of a global's module", instead(named("x" * MIB, "y")), NAME),
    bad("a million extents", instead(tensor(None, MILLION, MILLION)), "'w'|tensor|sizes"),
]

LARGE: list[Hostile] = [
    bad("20,000 expanded tensors", expanded, "repeat", torch=BOUNDS),
    bad("64 MiB of NONE", below(NONE, 64 * MIB), TOO_MANY, torch=BOUNDS),
    bad("60 MiB of NONE", below(NONE, 60 * MIB), TOO_MANY, torch=BOUNDS),
    bad("60 MiB of EMPTY_TUPLE", below(EMPTY_TUPLE, 60 * MIB), TOO_MANY, torch=BOUNDS),
    bad("60 MiB of EMPTY_DICT", below(EMPTY_DICT, 60 * MIB), TOO_MANY, torch=BOUNDS),
    bad("60 MiB of EMPTY_LIST", below(EMPTY_LIST, 60 * MIB), TOO_MANY, torch=BOUNDS),
    bad("60 MiB of MARK", below(MARK, 60 * MIB), TOO_MANY, torch=BOUNDS),
    bad("60 MiB of BINGET", below(get(0), 30 * MIB, integer(1) + put(0)), TOO_MANY, torch=BOUNDS),
    bad("60 MiB of tuples of one", below(b"N\x85", 30 * MIB), TOO_MANY, torch=BOUNDS),
    bad("60 MiB of strings", below(text("x" * 26), 2 * MIB), TOO_MANY, torch=BOUNDS),
    bad("12 million entries in the memo", remembered, "memo|" + TOO_MANY, torch=BOUNDS),
    bad("10 million entries in a dict", listed, TOO_MANY, torch=BOUNDS),
    bad("a string of 65 MiB", lambda: beside(text(b"x" * (65 * MIB))), LIMIT, torch=BOUNDS),
]
FILES = SMALL

# What may be read, or refused; but it takes neither long nor much.
HEAVY: dict[str, Callable[[], bytes]] = {
    "300 copies of a list of pairs": copied_pairs,
    "half a million calls with half a million arguments": many_arguments,
    "half a million tensors of 64 dimensions": deep_tensors,
    "a model of 300,000 tensors of 64 dimensions": deep_model,
    "two million values": everything,
    "a million entries": entries,
    "a pickle and a directory of 63 MiB": directory,
}
