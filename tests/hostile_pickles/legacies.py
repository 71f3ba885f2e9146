"""Legacy files whose five pickles, or the storages behind them, do not fit together."""

from pickle_bytes import (
    EMPTY_LIST,
    FALSE,
    FLOATS,
    LITTLE,
    MAGIC,
    NONE,
    TRUE,
    dict_of,
    integer,
    legacy,
    legacy_storage,
    list_of,
    long1,
    numbers,
    pickled,
    tensor,
    text,
    tuple_of,
    zipped,
)

from hostile_pickles.case import Hostile, bad, shell

GOOD = legacy()
HEAD = len(GOOD) - 32
TWO = {"v": tensor(legacy_storage(key="0")), "w": tensor(legacy_storage(key="1"))}
RAW = (6, FLOATS)
BOTH = {"0": RAW, "1": RAW}
NO_STORAGE = r"no storage at byte \d"
VIEW = rf"view|'[w10]'|{NO_STORAGE}"
KEYS = "list of storages|storage '"
KEPT = "It leaves the memory of such a storage as it was."
MORE = "It reads no further than it must."
UNREAD = "It does not look at what the system was."


def view(*fields: bytes, count: int = 6) -> bytes:
    """A file whose one tensor is of a view of its storage."""
    return legacy(dict_of({"w": tensor(legacy_storage(count=count, view=tuple_of(*fields)), [2])}))


FILES: list[Hostile] = [
    bad("nothing", b"", foreign=True),
    bad("a byte", b"\x80", foreign=True),
    bad("zeros", bytes(4096), foreign=True),
    bad("text", b"<!DOCTYPE html><html>404</html>", foreign=True),
    bad("an ELF program", b"\x7fELF\2\1\1" + bytes(57), foreign=True),
    bad("a tar archive", b"storages".ljust(257, b"\0") + b"ustar\x0000" + bytes(248), foreign=True),
    bad("a pickle of a dict", pickled(dict_of({"w": integer(1)})), foreign=True),
    bad("a pickle of a dict, protocol 4", pickled(dict_of({"w": integer(1)}), 4), foreign=True),
    bad(
        "legacy: another magic number",
        legacy(magic=long1(bytes.fromhex("6dfc9c46f9206aa85019"))),
        foreign=True,
    ),
    bad(
        "legacy: a magic number that is a string",
        legacy(magic=text("1950a86a20f9469cfc6c")),
        foreign=True,
    ),
    bad(
        "legacy: a magic number that is a float",
        legacy(magic=b"G\x44\xb9\x50\xa8\x6a\x20\xf9\x47"),
        foreign=True,
    ),
    bad("legacy: a magic number in a tuple", legacy(magic=MAGIC + b"\x85"), "magic|head|model"),
    bad("legacy: a magic number and a call", legacy(magic=MAGIC + EMPTY_LIST + b"b"), "head|model"),
    bad(
        "legacy: a magic number of 255 bytes",
        legacy(magic=long1(bytes.fromhex("6cfc9c46f9206aa85019") + bytes(244) + b"\1")),
        foreign=True,
    ),
    bad("legacy: protocol 1000", legacy(protocol=integer(1000)), "1001"),
    bad("legacy: protocol 1002", legacy(protocol=integer(1002)), "1001"),
    bad("legacy: a protocol that is a string", legacy(protocol=text("1001")), "1001"),
    bad("legacy: a protocol that is None", legacy(protocol=NONE), "1001"),
    bad(
        "legacy: big endian",
        legacy(info=dict_of({**LITTLE, "little_endian": FALSE})),
        "(?i)endian",
        torch=UNREAD,
    ),
    bad(
        "legacy: an endianness that is a string",
        legacy(info=dict_of({**LITTLE, "little_endian": text("no")})),
        "(?i)endian",
        torch=UNREAD,
    ),
    bad("legacy: a system that is None", legacy(info=NONE), "model", torch=UNREAD),
    bad(
        "legacy: a system that is a list",
        legacy(info=list_of(text("little_endian"), TRUE)),
        "model",
        torch=UNREAD,
    ),
    bad("legacy: a key twice", legacy(keys=list_of(text("0"), text("0"))), "0"),
    bad(
        "legacy: a key twice, with data twice",
        legacy(keys=list_of(text("0"), text("0")), tail=GOOD[HEAD:]),
        "0",
        torch=KEPT,
    ),
    bad("legacy: a key that is missing", legacy(dict_of(TWO), {"0": RAW}), "1", torch=KEPT),
    bad("legacy: no keys", legacy(keys=EMPTY_LIST), "model", torch=KEPT),
    bad("legacy: a key that nothing has", legacy(None, BOTH), "1"),
    bad("legacy: a key that is a number", legacy(keys=list_of(integer(0))), KEYS),
    bad("legacy: a key that is a list", legacy(keys=list_of(list_of())), KEYS),
    bad("legacy: keys that are None", legacy(keys=NONE), KEYS),
    bad(
        "legacy: keys that are a string",
        legacy(keys=text("0")),
        KEYS,
        torch="A string is made of strings.",
    ),
    bad(
        "legacy: keys that are a dict",
        legacy(keys=dict_of({"0": NONE})),
        KEYS,
        torch="A dict is its keys.",
    ),
    bad(
        "legacy: keys that are a tuple",
        legacy(keys=tuple_of(text("0"))),
        KEYS,
        torch="A tuple will do.",
    ),
    bad(
        "legacy: storages in another order than their keys",
        legacy(
            dict_of(
                {
                    "v": tensor(legacy_storage(key="0")),
                    "w": tensor(legacy_storage(key="1", count=5), [5]),
                }
            ),
            BOTH,
        ),
        "1",
    ),
    bad("legacy: a count of one more", legacy(None, {"0": (7, FLOATS)}), "0"),
    bad("legacy: a count of one less", legacy(None, {"0": (5, FLOATS)}), "0"),
    bad(
        "legacy: a count of one less, with data for it", legacy(None, {"0": (5, FLOATS[:20])}), "0"
    ),
    bad("legacy: a count of zero", legacy(None, {"0": (0, b"")}), "0"),
    bad("legacy: a count below zero", legacy(None, {"0": (-1, FLOATS)}), "0"),
    bad("legacy: a count of 2^62", legacy(None, {"0": (1 << 62, FLOATS)}), "0"),
    bad(
        "legacy: both counts of 2^61",
        legacy(dict_of({"w": tensor(legacy_storage(count=1 << 61))}), {"0": (1 << 61, FLOATS)}),
        "0",
    ),
    bad(
        "legacy: both counts of one more",
        legacy(dict_of({"w": tensor(legacy_storage(count=7))}), {"0": (7, FLOATS)}),
        "0",
    ),
    bad("legacy: a count that is big-endian", GOOD[:HEAD] + (6).to_bytes(8, "big") + FLOATS, "0"),
    bad("legacy: half a count", GOOD[: HEAD + 4], "0"),
    bad("legacy: no data", GOOD[: HEAD + 8], "0"),
    bad("legacy: a byte too few", GOOD[:-1], "0"),
    bad("legacy: a byte too many", GOOD + b"\0", "model", torch=MORE),
    bad("legacy: a pickle after the end", GOOD + pickled(shell()), "model", torch=MORE),
    bad("legacy: an archive after the end", GOOD + zipped(), "model", torch=MORE),
    bad("legacy: itself twice", GOOD + GOOD, "model", torch=MORE),
    bad("legacy: a pickle in front", pickled(integer(1)) + GOOD, foreign=True),
    bad("legacy: a byte in front", b"\0" + GOOD, foreign=True),
    bad("legacy: the magic number alone", pickled(MAGIC), "model"),
    bad("legacy: no list of keys", GOOD[: GOOD.rindex(b"\x80\2")], "model"),
    bad("legacy: a persistent id of five fields", legacy(dict_of({"w": tensor()})), NO_STORAGE),
    bad("legacy: a view beyond its storage", view(text("1"), integer(5), integer(2)), VIEW),
    bad(
        "legacy: a view larger than its storage",
        view(text("1"), integer(0), integer(7)),
        VIEW,
        torch="It cuts off a view where its storage ends.",
    ),
    bad("legacy: a view below zero", view(text("1"), integer(-1), integer(2)), VIEW),
    bad("legacy: a view of a size below zero", view(text("1"), integer(2), integer(-1)), VIEW),
    bad("legacy: a view at 2^62", view(text("1"), integer(1 << 62), integer(2)), VIEW),
    bad("legacy: a view smaller than its tensor", view(text("1"), integer(0), integer(1)), VIEW),
    bad("legacy: a view of two fields", view(text("1"), integer(0)), NO_STORAGE),
    bad(
        "legacy: a view that is a number",
        legacy(dict_of({"w": tensor(legacy_storage(view=integer(1)))})),
        NO_STORAGE,
    ),
    bad(
        "legacy: a view with the key of its storage",
        view(text("0"), integer(2), integer(2)),
        VIEW,
        torch="It takes the storage for the view.",
    ),
    bad(
        "legacy: two views of one key",
        legacy(
            dict_of(
                {
                    "v": tensor(
                        legacy_storage(view=tuple_of(text("1"), integer(0), integer(2))), [2]
                    ),
                    "w": tensor(
                        legacy_storage(view=tuple_of(text("1"), integer(2), integer(4))), [4]
                    ),
                }
            )
        ),
        VIEW,
    ),
    bad(
        "legacy: one storage with two counts",
        legacy(dict_of({"v": tensor(legacy_storage()), "w": tensor(legacy_storage(count=5), [5])})),
        "0",
        torch="It compares no counts.",
    ),
    bad(
        "legacy: a tensor that reaches beyond",
        legacy(dict_of({"w": tensor(legacy_storage(), [7])})),
        "'w'",
    ),
    bad(
        "legacy: a tensor of negative strides",
        legacy(dict_of({"w": tensor(legacy_storage(), numbers([6]), numbers([-1]), 5)})),
        r"'w'|strides .* at byte \d",
    ),
    bad(
        "legacy: 10^12 elements",
        legacy(dict_of({"w": tensor(legacy_storage(), [10**12], [0])})),
        "'w'|repeat",
        torch="Nothing is copied.",
    ),
]
