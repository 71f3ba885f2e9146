"""Storages and tensors that are not what they say, and models that are none."""

import struct

from pickle_bytes import (
    EMPTY_TUPLE,
    FALSE,
    FLOATS,
    NONE,
    TRUE,
    call,
    dict_of,
    integer,
    list_of,
    named,
    numbers,
    ordered,
    persistent,
    storage,
    tensor,
    text,
    tuple_of,
    zipped,
)

from hostile_pickles.case import Hostile, bad, instead

LIMIT = 1 << 63
HALF = b"G" + struct.pack(">d", 0.5)
TWO = b"G" + struct.pack(">d", 2.0)
ZERO = "storage '0'|data/0"
NO_STORAGE = r"no storage at byte \d"
ARGUMENTS = r"wrong arguments at byte \d"
STORAGE = text("storage")
FLOAT, KEY, CPU, SIX = named("torch.FloatStorage"), text("0"), text("cpu"), integer(6)

LARGER = "It takes what lies at the place of the entry, and compares no sizes."
EVERY = "It reads tensors that safetensors has not."


def stored(*fields: bytes) -> bytes:
    """A model of one tensor, which has such a storage."""
    return zipped(dict_of({"w": tensor(persistent(*fields))}))


def counted(count: int, shape: list[int]) -> bytes:
    return zipped(dict_of({"w": tensor(storage(count=count), shape)}))


PERSISTENT = [
    bad("a persistent id that is a string", instead(tensor(text("0") + b"Q")), NO_STORAGE),
    bad("a persistent id that is a number", instead(tensor(integer(0) + b"Q")), NO_STORAGE),
    bad("a persistent id that is None", instead(tensor(NONE + b"Q")), NO_STORAGE),
    bad(
        "a persistent id that is a list",
        instead(tensor(list_of(STORAGE, FLOAT, KEY, CPU, SIX) + b"Q")),
        NO_STORAGE,
    ),
    bad("a persistent id that is a storage", instead(tensor(storage() + b"Q")), NO_STORAGE),
    bad("a persistent id of nothing", stored(), NO_STORAGE),
    bad("a persistent id of a module", stored(text("module"), FLOAT, KEY, CPU, SIX), NO_STORAGE),
    bad(
        "a persistent id of a kind in capitals",
        stored(text("STORAGE"), FLOAT, KEY, CPU, SIX),
        NO_STORAGE,
    ),
    bad(
        "a persistent id of a kind that is a number",
        stored(integer(0), FLOAT, KEY, CPU, SIX),
        NO_STORAGE,
    ),
    bad("a persistent id without a count", stored(STORAGE, FLOAT, KEY, CPU), NO_STORAGE),
    bad("a persistent id with a view", stored(STORAGE, FLOAT, KEY, CPU, SIX, NONE), NO_STORAGE),
    bad("a persistent id within another", stored(STORAGE, FLOAT, storage(), CPU, SIX), NO_STORAGE),
    bad(
        "a storage's type that is a string",
        stored(STORAGE, text("FloatStorage"), KEY, CPU, SIX),
        NO_STORAGE,
    ),
    bad(
        "a storage's type that is a dtype",
        stored(STORAGE, named("torch.float32"), KEY, CPU, SIX),
        NO_STORAGE,
    ),
    bad(
        "a storage's type that is a dict's",
        stored(STORAGE, named("collections.OrderedDict"), KEY, CPU, SIX),
        NO_STORAGE,
    ),
    bad(
        "a storage's type that torch has not",
        stored(STORAGE, named("torch.PosixStorage"), KEY, CPU, SIX),
        r"torch\.PosixStorage",
    ),
    bad(
        "a storage of quantized numbers",
        stored(STORAGE, named("torch.QUInt8Storage"), KEY, CPU, integer(24)),
        r"torch\.QUInt8Storage|quint8",
        torch=EVERY,
    ),
    bad(
        "a storage of complex128",
        zipped(
            dict_of({"w": tensor(storage("torch.ComplexDoubleStorage", "0", 1), [1])}),
            {"0": bytes(16)},
        ),
        "ComplexDouble|complex128",
        torch=EVERY,
    ),
    bad(
        "a key that leaves the folder",
        stored(STORAGE, FLOAT, text("../data/0"), CPU, SIX),
        r"\.\./data/0",
    ),
    bad(
        "a key that is data.pkl",
        stored(STORAGE, FLOAT, text("../data.pkl"), CPU, SIX),
        r"data\.pkl",
    ),
    bad(
        "a key with a NUL",
        stored(STORAGE, FLOAT, text("0\0"), CPU, SIX),
        r"storage '0\\x00'",
        torch="Its reader takes names up to a NUL.",
    ),
    bad("a key with a space", stored(STORAGE, FLOAT, text("0 "), CPU, SIX), "storage '0 '"),
    bad("a key that is empty", stored(STORAGE, FLOAT, text(""), CPU, SIX), "storage ''"),
    bad("a key that is missing", stored(STORAGE, FLOAT, text("1"), CPU, SIX), "data/1|storage '1'"),
    bad("a key that is None", stored(STORAGE, FLOAT, NONE, CPU, SIX), NO_STORAGE),
    bad("a key of a megabyte", stored(STORAGE, FLOAT, text("0" * 1_000_000), CPU, SIX), "000"),
    bad(
        "a key with a terminal's commands", stored(STORAGE, FLOAT, text("\x1b[2J0"), CPU, SIX), "J0"
    ),
    bad("a count below zero", stored(STORAGE, FLOAT, KEY, CPU, integer(-1)), NO_STORAGE),
    bad("a count that is a float", stored(STORAGE, FLOAT, KEY, CPU, TWO), NO_STORAGE),
    bad("a count that is a string", stored(STORAGE, FLOAT, KEY, CPU, text("6")), NO_STORAGE),
    bad("a count that is None", stored(STORAGE, FLOAT, KEY, CPU, NONE), NO_STORAGE),
    bad("a count of 2^62", stored(STORAGE, FLOAT, KEY, CPU, integer(1 << 62)), ZERO, torch=LARGER),
    bad(
        "a count of 2^63",
        stored(STORAGE, FLOAT, KEY, CPU, integer(LIMIT)),
        "count|storage|number",
        torch=LARGER,
    ),
    bad(
        "a count of 2^64 + 6",
        stored(STORAGE, FLOAT, KEY, CPU, integer((1 << 64) + 6)),
        "count|storage|number",
        torch=LARGER,
    ),
    bad(
        "a count of 255 bytes",
        stored(STORAGE, FLOAT, KEY, CPU, b"\x8a\xff" + b"\x7f" * 255),
        "count|storage|number|LONG1",
        torch=LARGER,
    ),
    bad(
        "a count of one more than is there",
        stored(STORAGE, FLOAT, KEY, CPU, integer(7)),
        ZERO,
        torch=LARGER,
    ),
    bad("a count of one less than is there", counted(5, [5]), ZERO, torch=LARGER),
    bad("a count of none", counted(0, [0]), ZERO, torch=LARGER),
    bad(
        "doubles where floats are",
        stored(STORAGE, named("torch.DoubleStorage"), KEY, CPU, SIX),
        ZERO,
        torch=LARGER,
    ),
    bad(
        "halves where floats are",
        stored(STORAGE, named("torch.HalfStorage"), KEY, CPU, SIX),
        ZERO,
        torch=LARGER,
    ),
    bad(
        "one storage with two counts",
        zipped(dict_of({"v": tensor(), "w": tensor(storage(count=5), [5])})),
        ZERO,
        torch=LARGER,
    ),
    bad(
        "a storage that is no whole number of elements",
        zipped(dict_of({"w": tensor()}), {"0": FLOATS + b"\0"}),
        ZERO,
        torch=LARGER,
    ),
]

W = r"'w'|tensor .* at byte \d|tensors repeat"
WIDE = 1 << 32
# What a tensor of these would be made of: shape, strides, offset.
SHAPES: dict[str, tuple[object, object, object]] = {
    "a row too many": ([3, 3], None, 0),
    "an offset too far": ([2, 3], None, 1),
    "a stride too wide": ([2, 3], [4, 1], 0),
    "an offset of the storage's end": ([1], None, 6),
    "an offset below zero": ([1], None, -1),
    "an offset of 2^62": ([1], None, 1 << 62),
    "an offset of 2^63 - 1": ([1], None, LIMIT - 1),
    "an offset of 2^64": ([1], None, 1 << 64),
    "an offset that is a float": ([1], None, TWO),
    "an offset that is None": ([1], None, NONE),
    "an offset that is a string": ([1], None, text("0")),
    "an offset of 255 bytes": ([1], None, b"\x8a\xff" + b"\x7f" * 255),
    "a stride below zero": ([6], [-1], 5),
    "strides below zero": ([2, 3], [-3, -1], 5),
    "a stride of -2^63": ([2, 3], [-LIMIT, 1], 0),
    "a stride of 2^62": ([2, 3], [1 << 62, 1], 0),
    "a stride of 2^64 + 1": ([2, 3], [(1 << 64) + 3, 1], 0),
    "strides that wrap to the start": ([3, 2], [1 << 62, 1 << 62], 0),
    "a stride that is a float": ([2], numbers([TWO]), 0),
    "a stride that is None": ([2], numbers([NONE]), 0),
    "an extent below zero": ([-2, 3], [3, 1], 0),
    "extents below zero": ([-2, -3], [3, 1], 0),
    "an extent of -2^63": ([-LIMIT], [1], 0),
    "an extent of 2^62": ([1 << 62], [1], 0),
    "an extent of 2^64 + 6": ([(1 << 64) + 6], [1], 0),
    "an extent of 255 bytes": (numbers([b"\x8a\xff" + b"\x7f" * 255]), [1], 0),
    "a product that overflows": ([WIDE, WIDE], [0, 0], 0),
    "a product that wraps to 6": ([(1 << 63) + 3, 2], [0, 0], 0),
    "a product of many extents that overflows": ([4] * 60, [0] * 60, 0),
    "10^12 elements of stride 0": ([10**6, 10**6], [0, 0], 0),
    "10^12 elements of one row": ([10**12], [0], 0),
    "10^9 rows of stride 0": ([10**9, 3], [0, 1], 0),
    "rows that overlap": ([10**9, 3], [1, 1], 0),
    "an extent that is a float": (numbers([HALF]), [1], 0),
    "an extent that is a string": (numbers([text("6")]), [1], 0),
    "an extent that is None": (numbers([NONE]), [1], 0),
    "an extent that is a tuple": (numbers([numbers([6])]), [1], 0),
    "an extent that is a tensor": (numbers([tensor()]), [1], 0),
    "more extents than strides": ([2, 3], [1], 0),
    "more strides than extents": ([6], [3, 1], 0),
    "no strides": ([6], EMPTY_TUPLE, 0),
    "no extents": (EMPTY_TUPLE, [1], 0),
    "strides that are None": ([6], NONE, 0),
    "a shape that is None": (NONE, [1], 0),
    "a shape that is a number": (integer(6), [1], 0),
    "a shape that is a string": (text("6"), [1], 0),
    "a shape that is a dict": (dict_of({}), EMPTY_TUPLE, 0),
    "a shape that is a storage": (storage(), [1], 0),
    "a shape that holds itself": (b"]q\7h\7a", [1], 0),
}
# Why torch opens some of them.
COPIES = "Nothing is copied before something reads it, and then it takes all memory."
FILLS = "It takes strides that are missing for contiguous ones."
OPENED = {"10^12 elements of stride 0": COPIES, "10^12 elements of one row": COPIES}
OPENED |= {"10^9 rows of stride 0": COPIES, "no strides": FILLS, "strides that are None": FILLS}


def shaped(shape: object, stride: object, offset: object) -> bytes:
    return instead(tensor(None, shape, stride, offset))  # type: ignore[arg-type]


VIEWS = [
    bad(f"a tensor of {name}", shaped(*made), W, torch=OPENED.get(name, ""))
    for name, made in SHAPES.items()
]

V3 = "torch._utils._rebuild_tensor_v3"
BYTES = storage("torch.storage.UntypedStorage", "0", 24)
PARAMETER = "torch._utils._rebuild_parameter"


def third(dtype: bytes) -> bytes:
    return instead(tensor(BYTES, [2, 3], None, 0, FALSE, ordered(), dtype, function=V3))


def conjugate(kind: str, count: int, bit: str) -> bytes:
    made = tensor(
        storage(kind, "0", count), [count], None, 0, FALSE, ordered(), dict_of({bit: TRUE})
    )
    return zipped(dict_of({"w": made}))


CALLS = [
    bad("a tensor of no arguments", instead(call("torch._utils._rebuild_tensor_v2")), ARGUMENTS),
    bad(
        "a tensor of three arguments",
        instead(call("torch._utils._rebuild_tensor_v2", storage(), integer(0), numbers([6]))),
        ARGUMENTS,
    ),
    bad(
        "a tensor of ten arguments",
        instead(tensor(None, [6], None, 0, FALSE, ordered(), NONE, NONE, NONE, NONE)),
        ARGUMENTS,
    ),
    *(
        bad(f"a tensor of {name} for its storage", instead(tensor(code)), ARGUMENTS)
        for name, code in {
            "None": NONE,
            "a tensor": tensor(),
            "a tuple": tuple_of(STORAGE, FLOAT, KEY, CPU, SIX),
            "a dict": dict_of({}),
            "a type": FLOAT,
            "a string": text("0"),
        }.items()
    ),
    bad(
        "a conjugated tensor",
        conjugate("torch.ComplexFloatStorage", 3, "conj"),
        "(?i)conj",
        torch=EVERY,
    ),
    bad("a negated tensor", conjugate("torch.FloatStorage", 6, "neg"), "(?i)neg", torch=EVERY),
    bad("a dtype that is a string", third(text("float32")), ARGUMENTS),
    bad("a dtype that is a storage's type", third(FLOAT), ARGUMENTS),
    bad("a dtype that is None", third(NONE), ARGUMENTS, torch="It takes its default dtype."),
    bad("a dtype that safetensors has not", third(named("torch.uint1")), "uint1", torch=EVERY),
    bad("a quantized dtype", third(named("torch.quint8")), "quint8", torch=EVERY),
    bad(
        "a dtype of complex128",
        instead(
            tensor(BYTES, [1], None, 0, FALSE, ordered(), named("torch.complex128"), function=V3)
        ),
        "complex128",
        torch=EVERY,
    ),
    bad(
        "elements wider than the storage",
        instead(tensor(BYTES, [4], None, 0, FALSE, ordered(), named("torch.float64"), function=V3)),
        W,
    ),
    bad(
        "a parameter of None",
        instead(call(PARAMETER, NONE, TRUE, ordered())),
        ARGUMENTS,
        torch="It makes an empty tensor of it.",
    ),
    bad(
        "a parameter of a storage", instead(call(PARAMETER, storage(), TRUE, ordered())), ARGUMENTS
    ),
    bad("a parameter of no arguments", instead(call(PARAMETER)), ARGUMENTS),
    bad(
        "a size of strings", instead(tensor(None, call("torch.Size", tuple_of(text("6"))), [1])), W
    ),
]

NESTED = {"state_dict": dict_of({"w": tensor()}), "ema": dict_of({"w": tensor()})}
MODELS = [
    *(
        bad(f"{name} at the top", zipped(code), "model", torch="It reads whatever it is.")
        for name, code in {
            "a number": integer(1),
            "None": NONE,
            "a string": text("x"),
            "a tensor": tensor(),
            "a storage": storage(),
            "a list of tensors": list_of(tensor()),
            "a tuple of tensors": tuple_of(tensor()),
            "an empty dict": dict_of({}),
            "an empty OrderedDict": ordered(),
            "a dict of numbers": dict_of({"a": integer(1)}),
            "a parameter": call(PARAMETER, tensor(), TRUE, ordered()),
            "a dict of unknown keys": dict_of({"x": dict_of({"w": tensor()})}),
            "a type": FLOAT,
            "a dtype": named("torch.float32"),
            "a list in a list": list_of(list_of()),
        }.items()
    ),
    bad(
        "two candidates",
        zipped(dict_of(NESTED)),
        "state_dict",
        "ema",
        torch="It reads whatever it is.",
    ),
    bad(
        "a name that is no string",
        zipped(b"}(" + integer(0) + tensor() + b"u"),
        "0|key|name",
        torch="Keys may be anything.",
    ),
    bad(
        "a name that is a tuple",
        zipped(dict_of({"v": tensor()}) + tuple_of(text("w")) + tensor() + b"s"),
        "key|name",
        torch="Keys may be anything.",
    ),
    bad(
        "a name that is half a surrogate",
        zipped(dict_of({"\ud800": tensor()})),
        r"data\.pkl|name|UTF-8",
        torch="Python's strings hold it.",
    ),
    bad(
        "a name that is not UTF-8",
        zipped(b"}(" + text(b"\xff") + tensor() + b"u"),
        r"data\.pkl|name|UTF-8",
    ),
    bad(
        "a name that is safetensors' own",
        zipped(dict_of({"__metadata__": tensor()})),
        "__metadata__",
        torch="The name is only safetensors'.",
    ),
]

FILES: list[Hostile] = [*PERSISTENT, *VIEWS, *CALLS, *MODELS]
