"""Opcodes that no state dict has, each where a value may stand, and misuse of the others."""

import struct

from pickle_bytes import (
    BUILD,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ,
    NONE,
    REDUCE,
    SETITEM,
    SETITEMS,
    STOP,
    archive,
    call,
    dict_of,
    entries_of,
    get,
    integer,
    legacy,
    legacy_storage,
    list_of,
    named,
    ordered,
    pickled,
    put,
    storage,
    tensor,
    text,
    tuple_of,
    zipped,
)

from hostile_pickles.case import TOUCH, Hostile, bad, beside, instead

SHELL = TOUCH.encode()
RUN = text("posix") + text("system")

# By what pickle calls them. Each leaves one value, as a value of a dict must.
FORBIDDEN: dict[str, bytes] = {
    "POP": NONE + integer(1) + b"0",
    "POP_MARK": NONE + MARK + integer(1) + b"1",
    "DUP": integer(1) + b"2" + b"\x86",
    "FLOAT": b"F1.5\n",
    "INT": b"I5\n",
    "LONG": b"L5L\n",
    "LONG4": b"\x8b" + struct.pack("<i", 1) + b"\5",
    "STRING": b"S'x'\n",
    "BINSTRING": b"T" + struct.pack("<i", 1) + b"x",
    "UNICODE": b"Vx\n",
    "SHORT_BINUNICODE": b"\x8c\1x",
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", 1) + b"x",
    "BINBYTES": b"B" + struct.pack("<I", 1) + b"x",
    "SHORT_BINBYTES": b"C\1x",
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 1) + b"x",
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1) + b"x",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"C\1x\x98",
    "LIST": MARK + integer(1) + b"l",
    "DICT": MARK + text("a") + integer(1) + b"d",
    "ADDITEMS": b"\x8f" + MARK + integer(1) + b"\x90",
    "FROZENSET": MARK + integer(1) + b"\x91",
    "GET": integer(1) + put(9) + b"\x85g9\n\x86",
    "PUT": integer(1) + b"p9\n",
    "MEMOIZE": integer(1) + b"\x94",
    "FRAME": b"\x95" + struct.pack("<Q", 2) + integer(1),
    "PERSID": b"P0\n",
    "INST": MARK + text(TOUCH) + b"iposix\nsystem\n",
    "OBJ": MARK + named("subprocess.Popen") + list_of(text("touch"), text("canary")) + b"o",
    "STACK_GLOBAL": RUN + b"\x93" + tuple_of(text(TOUCH)) + REDUCE,
    "NEWOBJ_EX": named("collections.OrderedDict") + EMPTY_TUPLE + EMPTY_DICT + b"\x92",
    "EXT1": b"\x82\1",
    "EXT2": b"\x83\1\0",
    "EXT4": b"\x84\1\0\0\0",
}
# What precedes the opcode is refused first in these, or may be.
FIRST = {"READONLY_BUFFER": r"SHORT_BINBYTES|READONLY_BUFFER", "ADDITEMS": "EMPTY_SET|ADDITEMS"}
FIRST |= {"OBJ": r"OBJ|subprocess\.Popen"}
EXECUTE = {"INST", "OBJ", "STACK_GLOBAL"}

OUTSIDE = [
    bad(
        f"the opcode {name}",
        beside(code),
        FIRST.get(name, rf"\b{name}\b"),
        r"data\.pkl",
        executes=name in EXECUTE,
    )
    for name, code in FORBIDDEN.items()
]
OUTSIDE += [
    bad(f"the opcode 0x{code:02x}, which there is not", beside(bytes([code])), f"(?i)0x{code:02x}")
    for code in (0x00, 0x0A, 0x7F, 0x99, 0xFF)
]
OUTSIDE += [
    bad("protocol 4", archive(entries_of(pickled(dict_of({"w": tensor()}), 4))), "protocol 4"),
    bad("protocol 5", archive(entries_of(pickled(dict_of({"w": tensor()}), 5))), "protocol 5"),
    bad("protocol 255", archive(entries_of(pickled(dict_of({"w": tensor()}), 255))), "255"),
    bad("protocol 4, in the midst", beside(b"\x80\4" + integer(1)), "PROTO"),
    bad(
        "protocol 4 in a legacy file",
        legacy(b"\x80\4" + dict_of({"w": tensor(legacy_storage())})),
        "PROTO",
    ),
]
# torch warns of every protocol but 2, and reads what it can.
TORCH_READS = {"protocol 4", "protocol 5", "protocol 255", "protocol 4, in the midst"}
TORCH_READS |= {"protocol 4 in a legacy file"}
OUTSIDE = [
    bad(c.name, c.data, *c.says, torch="It reads any protocol while it knows the opcodes.")
    if c.name in TORCH_READS
    else c
    for c in OUTSIDE
]


def whole(pickle: bytes) -> bytes:
    """An archive with just this pickle."""
    return archive(entries_of(pickle))


GOOD = dict_of({"w": tensor()})
# What is said of an opcode that is misused: what it did, and where.
AT = r" at byte \d+ of archive/data\.pkl"
CALLS, TAKES, MAKES = f"calls what .*{AT}", f"what are no arguments{AT}", f"makes an object.*{AT}"
SETS, MEMBER = f"sets the state.*{AT}", f"sets a member of what is no dict{AT}"
APPENDS_TO, MISSING = f"appends to what is no list{AT}", r"data\.pkl.* not there at byte \d"
LIST = list_of(integer(1))
STATE = dict_of({"__class__": text("x")})
SET = "torch.Tensor.set_ is what BUILD of a tensor calls."
CALLED = {
    "a string": text("posix.system"),
    "a string that names a function": text("torch._utils._rebuild_tensor_v2"),
    "a number": integer(1),
    "None": NONE,
    "a tuple": tuple_of(text("posix"), text("system")),
    "a list": LIST,
    "a dict": dict_of({"posix": text("system")}),
    "a storage": storage(),
    "a tensor": tensor(),
    "an OrderedDict": ordered(),
    "the type of a storage": named("torch.FloatStorage"),
    "a dtype": named("torch.float32"),
}

MISUSE = [
    *(
        bad(f"REDUCE of {name}", beside(call(code, text(TOUCH))), CALLS)
        for name, code in CALLED.items()
    ),
    *(
        bad(
            f"REDUCE with {name} for arguments",
            instead(named("torch._utils._rebuild_tensor_v2") + code + REDUCE),
            TAKES,
        )
        for name, code in {
            "a string": text("abcdefg"),
            "None": NONE,
            "a dict": dict_of({}),
            "a number": integer(7),
            "a storage": storage(),
        }.items()
    ),
    *(
        bad(f"NEWOBJ of {name}", beside(code + EMPTY_TUPLE + NEWOBJ), MAKES)
        for name, code in CALLED.items()
        if name not in ("a dtype", "the type of a storage")
    ),
    bad(
        "NEWOBJ of a rebuild function",
        beside(named("torch._utils._rebuild_tensor_v2") + EMPTY_TUPLE + NEWOBJ),
        MAKES,
    ),
    *(
        bad(f"BUILD of {name}", beside(code + STATE + BUILD), SETS)
        for name, code in CALLED.items()
        if name not in ("an OrderedDict", "a tensor", "a storage")
    ),
    bad(
        "BUILD of a storage",
        beside(storage() + STATE + BUILD),
        SETS,
        torch="A storage has a dict of its own.",
    ),
    bad("BUILD of a tensor with a dict", instead(tensor() + STATE + BUILD), SETS),
    bad(
        "BUILD of a tensor with another storage",
        zipped(
            dict_of(
                {
                    "w": tensor()
                    + tuple_of(
                        storage(key="1"), integer(0), tuple_of(integer(6)), tuple_of(integer(1))
                    )
                    + BUILD
                }
            ),
            {"0": bytes(24), "1": bytes(24)},
        ),
        SETS,
        torch=SET,
    ),
    bad(
        "BUILD of a tensor with __setstate__",
        instead(tensor() + dict_of({"__setstate__": named("posix.system")}) + BUILD),
        r"posix\.system",
    ),
    bad(
        "BUILD of a parameter",
        instead(call("torch._utils._rebuild_parameter", tensor(), NONE, ordered()) + STATE + BUILD),
        SETS,
    ),
    bad("BUILD of an OrderedDict with a number", beside(ordered() + integer(1) + BUILD), SETS),
    bad("BUILD of an OrderedDict with a string", beside(ordered() + text("ab") + BUILD), SETS),
    bad("SETITEM of a list", beside(LIST + integer(0) + integer(2) + SETITEM), MEMBER),
    bad(
        "SETITEM of a tuple",
        beside(tuple_of(integer(1)) + integer(0) + integer(2) + SETITEM),
        MEMBER,
    ),
    bad("SETITEM of None", beside(NONE + integer(0) + integer(2) + SETITEM), MEMBER),
    bad("SETITEM of a tensor", instead(tensor() + integer(0) + integer(2) + SETITEM), MEMBER),
    bad("SETITEM of a storage", beside(storage() + integer(0) + integer(2) + SETITEM), MEMBER),
    bad(
        "SETITEMS of a storage",
        beside(storage() + MARK + integer(0) + integer(2) + SETITEMS),
        MEMBER,
    ),
    bad("SETITEMS of a list", beside(LIST + MARK + integer(0) + integer(2) + SETITEMS), MEMBER),
    bad(
        "SETITEMS of a key and no value",
        beside(EMPTY_DICT + MARK + text("a") + SETITEMS),
        r"key has no value at byte \d",
    ),
    bad(
        "SETITEM of a key that is a dict",
        beside(EMPTY_DICT + EMPTY_DICT + integer(1) + SETITEM),
        "SETITEM|key",
    ),
    bad(
        "SETITEM of a key that is a list",
        beside(EMPTY_DICT + EMPTY_LIST + integer(1) + SETITEM),
        "SETITEM|key",
    ),
    bad("APPEND to a dict", beside(EMPTY_DICT + integer(1) + b"a"), APPENDS_TO),
    bad("APPEND to a tuple", beside(EMPTY_TUPLE + integer(1) + b"a"), APPENDS_TO),
    bad("APPEND to a tensor", instead(tensor() + integer(1) + b"a"), APPENDS_TO),
    bad("APPENDS to a storage", beside(storage() + MARK + integer(1) + b"e"), APPENDS_TO),
]

UNDERFLOW = [
    bad("nothing but STOP", whole(b"\x80\2" + STOP), MISSING),
    bad("a pickle that is empty", whole(b""), r"data\.pkl"),
    bad("a pickle without STOP", whole(b"\x80\2" + GOOD), r"data\.pkl"),
    bad(
        "a pickle that ends in an opcode's argument", whole(b"\x80\2" + GOOD + b"M\0"), r"data\.pkl"
    ),
    bad("a pickle without PROTO that is text", whole(b"hello"), r"data\.pkl"),
    bad("TUPLE without MARK", whole(b"\x80\2" + GOOD + b"t" + STOP), MISSING),
    bad("TUPLE3 of two", whole(b"\x80\2" + NONE + NONE + b"\x87" + STOP), MISSING),
    bad("TUPLE1 of a mark", whole(b"\x80\2" + MARK + b"\x85" + STOP), MISSING),
    bad("TUPLE2 across a mark", whole(b"\x80\2" + GOOD + MARK + NONE + b"\x86" + STOP), MISSING),
    bad("REDUCE of nothing", whole(b"\x80\2" + REDUCE + STOP), MISSING),
    bad(
        "REDUCE across a mark",
        whole(b"\x80\2" + named("collections.OrderedDict") + MARK + EMPTY_TUPLE + REDUCE + STOP),
        MISSING,
    ),
    bad("BUILD of nothing", whole(b"\x80\2" + BUILD + STOP), MISSING),
    bad("NEWOBJ of nothing", whole(b"\x80\2" + NEWOBJ + STOP), MISSING),
    bad("SETITEMS without MARK", whole(b"\x80\2" + EMPTY_DICT + SETITEMS + STOP), MISSING),
    bad("SETITEM of nothing", whole(b"\x80\2" + SETITEM + STOP), MISSING),
    bad(
        "SETITEM across a mark",
        whole(b"\x80\2" + EMPTY_DICT + MARK + text("a") + NONE + SETITEM + STOP),
        MISSING,
    ),
    bad("APPENDS without MARK", whole(b"\x80\2" + EMPTY_LIST + b"e" + STOP), MISSING),
    bad("APPEND of nothing", whole(b"\x80\2a" + STOP), MISSING),
    bad("BINPERSID of nothing", whole(b"\x80\2Q" + STOP), MISSING),
    bad("BINPUT of nothing", whole(b"\x80\2" + put(0) + GOOD + STOP), MISSING),
    bad("BINPUT of a mark", whole(b"\x80\2" + GOOD + MARK + put(0) + STOP), MISSING),
    bad("BINGET of what was never put", beside(get(7)), r"has not noted at byte \d"),
    bad("LONG_BINGET of what was never put", beside(get(1 << 31)), r"has not noted at byte \d"),
    bad("STOP on a mark", whole(b"\x80\2" + GOOD + MARK + STOP), MISSING),
]

FILES: list[Hostile] = [*OUTSIDE, *MISUSE, *UNDERFLOW]
