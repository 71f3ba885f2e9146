"""Strange files that harm nobody: each is refused, or read just as torch reads it."""

from dataclasses import replace

from pickle_bytes import (
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    FALSE,
    LITTLE,
    MARK,
    NONE,
    STOP,
    Entry,
    archive,
    call,
    dict_of,
    edited,
    entries_of,
    get,
    integer,
    legacy,
    legacy_storage,
    list_of,
    long1,
    named,
    numbers,
    ordered,
    persistent,
    pickled,
    put,
    storage,
    tensor,
    text,
    tuple_of,
    zipped,
)

from hostile_pickles.case import beside, instead, located

GOOD = pickled(dict_of({"w": tensor()}))
BASE = entries_of(GOOD)
PATH = b"\x75\x70" + (19 + 5).to_bytes(2, "little") + b"\1" + bytes(4) + b"archive/evil.pickle"


def whole(*parts: bytes) -> bytes:
    """An archive with a pickle of just these opcodes."""
    return archive(entries_of(b"\x80\2" + b"".join(parts) + STOP))


def cycle(made: bytes, *last: bytes) -> bytes:
    """A dict of one tensor that also holds what `last` says; the dict itself is memo 99."""
    return whole(EMPTY_DICT, put(99), MARK, text("w"), made, *last, b"u")


def doubled(levels: int) -> bytes:
    """A tuple of two of a tuple of two of ...: 2^levels empty tuples, in a few bytes."""
    made = EMPTY_TUPLE
    for level in range(levels):
        made += put(500 + level) + get(500 + level) + b"\x86"
    return made


FLOAT = named("torch.FloatStorage")
SPLIT = tensor().replace(b"torch._utils\n_rebuild", b"torch\n_utils._rebuild")
EMPTY_ROOT = [replace(entry, name=entry.name.removeprefix("archive")) for entry in BASE]
TWO_TYPES = {"v": tensor(), "w": tensor(storage("torch.IntStorage"))}
TWO_WIDTHS = {"v": tensor(), "w": tensor(storage("torch.DoubleStorage", "0", 3), [3])}
OLD_TYPES = {"v": tensor(legacy_storage()), "w": tensor(legacy_storage("torch.IntStorage"))}
OTHER_PROTOCOL = dict_of({**LITTLE, "protocol_version": integer(1000)})

V2, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
STATE_OF = "torch._utils._rebuild_parameter_with_state"
TYPE = "torch._tensor._rebuild_from_type_v2"
ARGUMENTS = tuple_of(storage(), integer(0), numbers([6]), numbers([1]), FALSE, ordered())
OTHER = tensor(None, [3], [2])
PAIR = tuple_of(text("w"), tensor())
DICT = named("collections.OrderedDict")


def typed(state: bytes) -> bytes:
    """A tensor with such a state, whose attributes torch sets."""
    return zipped(dict_of({"w": call(TYPE, named(V2), named("torch.Tensor"), ARGUMENTS, state)}))


def parameter(state: bytes) -> bytes:
    made = call(STATE_OF, tensor(), FALSE, ordered(), state)
    return zipped(dict_of({"v": tensor(), "w": made}))


def third(stored: bytes, dtype: str, shape: list[int]) -> bytes:
    more = (FALSE, ordered(), named(dtype))
    return zipped(dict_of({"w": tensor(stored, shape, None, 0, *more, function=V3)}))


V3, UNTYPED = "torch._utils._rebuild_tensor_v3", "torch.storage.UntypedStorage"
CALLS: dict[str, bytes] = {
    "a tensor whose state is other data": typed(dict_of({"data": OTHER})),
    "a tensor whose state is a pair with other data": typed(
        tuple_of(dict_of({}), dict_of({"data": OTHER}))
    ),
    "a tensor whose state is a name": typed(dict_of({"x": integer(1)})),
    "a tensor whose state is None": typed(NONE),
    "a parameter whose state is other data": parameter(dict_of({"data": OTHER})),
    "a parameter whose state is a number": parameter(dict_of({"x": integer(1)})),
    "a parameter of a parameter": instead(
        call(PARAMETER, call(PARAMETER, tensor(), FALSE, ordered()), FALSE, ordered())
    ),
    "an OrderedDict of pairs": zipped(call(DICT, list_of(PAIR))),
    "an OrderedDict of pairs that grows": zipped(
        call(DICT, list_of(PAIR)) + text("v") + tensor() + b"s"
    ),
    "an OrderedDict of a dict that grows": zipped(
        call(DICT, dict_of({"w": tensor()})) + text("v") + tensor() + b"s"
    ),
    "a new OrderedDict of pairs": zipped(
        DICT + tuple_of(list_of(PAIR)) + b"\x81" + text("v") + tensor() + b"s"
    ),
    "a new OrderedDict": zipped(DICT + EMPTY_TUPLE + b"\x81" + text("v") + tensor() + b"s"),
    "an OrderedDict of a list of arguments": zipped(
        DICT + EMPTY_LIST + b"R" + text("v") + tensor() + b"s"
    ),
    "a Counter of tensors": zipped(call("collections.Counter", dict_of({"w": tensor()}))),
    "a Counter beside tensors that gets one": zipped(
        dict_of(
            {"v": tensor(), "state_dict": call("collections.Counter") + text("w") + tensor() + b"s"}
        )
    ),
    "a tensor that is set to a number": zipped(
        dict_of({"v": tensor(), "w": tensor()}) + text("w") + integer(1) + b"s"
    ),
    "a state dict that is set to a number": zipped(
        dict_of({"v": tensor(), "state_dict": dict_of({"w": tensor()})})
        + text("state_dict")
        + integer(1)
        + b"s"
    ),
    "a state dict that grows in another place": zipped(
        dict_of(
            {
                "state_dict": dict_of({"w": tensor()}) + put(50),
                "x": get(50) + text("v") + tensor() + b"s",
            }
        )
    ),
    "a state dict put where another was": zipped(
        dict_of(
            {
                "x": dict_of({"a": tensor()}) + put(50),
                "y": dict_of({"b": tensor()}) + put(50),
                "state_dict": get(50),
            }
        )
    ),
    "a new Size": instead(
        tensor(None, named("torch.Size") + tuple_of(numbers([2, 3])) + b"\x81", [3, 1])
    ),
    "a Size of a Size": instead(
        tensor(None, call("torch.Size", call("torch.Size", numbers([2, 3]))), [3, 1])
    ),
    "a new tensor": instead(named("torch.Tensor") + EMPTY_TUPLE + b"\x81"),
    "a new tensor that is set": instead(
        named("torch.Tensor")
        + EMPTY_TUPLE
        + b"\x81"
        + tuple_of(storage(), integer(0), numbers([6]), numbers([1]))
        + b"b"
    ),
    "a new parameter": instead(
        named("torch.nn.parameter.Parameter") + tuple_of(tensor(), FALSE) + b"\x81"
    ),
    "halves of a storage of floats": third(storage(), "torch.float16", [12]),
    "doubles of a storage of floats": third(storage(), "torch.float64", [3]),
    "floats of a storage of bytes": third(storage(UNTYPED, "0", 24), "torch.float32", [6]),
    "bytes of a storage of bytes": third(storage(UNTYPED, "0", 24), "torch.uint8", [24]),
    "a dtype by its other name": third(storage(UNTYPED, "0", 24), "torch.float", [6]),
    "bytes without a dtype": zipped(dict_of({"w": tensor(storage(UNTYPED, "0", 24), [24])})),
    "bytes without a dtype beside floats of the same storage": zipped(
        dict_of({"v": tensor(storage(UNTYPED, "0", 24), [24]), "w": tensor()})
    ),
    "a storage of CUDA": zipped(dict_of({"w": tensor(storage("torch.cuda.FloatStorage"))})),
    "a storage by its module": zipped(
        dict_of({"w": tensor(storage("torch.storage.FloatStorage"))})
    ),
    "a storage that is typed": zipped(
        dict_of({"w": tensor(storage("torch.storage.TypedStorage"))})
    ),
    "a kind that is bytes": zipped(
        dict_of({"w": tensor(persistent(b"U\7storage", FLOAT, text("0"), text("cpu"), integer(6)))})
    ),
    "a key that is a number": zipped(
        dict_of(
            {"w": tensor(persistent(text("storage"), FLOAT, integer(0), text("cpu"), integer(6)))}
        )
    ),
}

FILES: dict[str, bytes] = {
    **CALLS,
    "a dict that holds itself": beside(EMPTY_DICT + put(99) + MARK + text("x") + get(99) + b"u"),
    "a list that holds itself": beside(EMPTY_LIST + put(99) + get(99) + b"a"),
    "a list in a tuple that holds it": beside(EMPTY_LIST + put(99) + get(99) + b"\x85a"),
    "a model that holds itself": cycle(tensor(), text("self"), get(99)),
    "a model that is its own state dict": cycle(tensor(), text("state_dict"), get(99)),
    "a model that holds only itself": cycle(NONE, text("state_dict"), get(99)),
    "a tuple of 2^100 tuples": beside(doubled(100)),
    "a memo of one entry at 2^32 - 1": beside(integer(1) + put((1 << 32) - 1)),
    "a number of 255 bytes": beside(long1(b"\x7f" * 255)),
    "a number of no bytes": beside(long1(b"")),
    "10,000 times the same global": beside(list_of(*[named("torch.float32")] * 10_000)),
    "1,000 tensors that are the same": zipped(dict_of({f"w{n}": tensor() for n in range(1000)})),
    "nothing of a shape that overflows": instead(tensor(None, [0, 1 << 62, 1 << 62], [1, 1, 1])),
    "nothing far beyond the storage": instead(tensor(None, [0], [1], 1 << 40)),
    "nothing of large strides": instead(tensor(None, [0, 3], [1 << 62, 1 << 62])),
    "65 extents of one": instead(tensor(None, [1] * 65, [1] * 65)),
    "one element of a large stride": instead(tensor(None, [1], [1 << 62])),
    "a second pickle in data.pkl": archive(entries_of(GOOD + b"\x80\2cposix\nsystem\n.")),
    "values below the model": whole(NONE, integer(1), dict_of({"w": tensor()})),
    "a mark below the model": whole(MARK, NONE, dict_of({"w": tensor()})),
    "a name twice": cycle(tensor(), text("w"), tensor(None, [6])),
    "a name that is a string and bytes": whole(dict_of({"w": tensor()}), b"U\1w", NONE, b"s"),
    "a name that is empty": zipped(dict_of({"": tensor()})),
    "a name with a line's end": zipped(dict_of({"w\n": tensor()})),
    "a split between module and name": instead(SPLIT),
    "a location that torch knows not": instead(tensor(located(text("evil:0")))),
    "a location that is None": instead(tensor(located(NONE))),
    "a location that is bytes": instead(tensor(located(b"U\3cpu"))),
    "hooks that are not empty": instead(tensor(None, [6], None, 0, FALSE, dict_of({"x": NONE}))),
    "a gradient that is asked for": instead(tensor(None, [6], None, 0, b"\x88", dict_of({}))),
    "metadata that says no": instead(
        tensor(None, [6], None, 0, FALSE, dict_of({}), dict_of({"conj": FALSE}))
    ),
    "a shape that is a list": instead(tensor(None, list_of(integer(6)), [1])),
    "extents that are bools": instead(tensor(None, tuple_of(b"\x88", integer(6)), [6, 1])),
    "a count that is a bool": zipped(
        dict_of({"w": tensor(located(text("cpu"), b"\x88"), [1])}), {"0": bytes(4)}
    ),
    "one storage with two dtypes": zipped(dict_of(TWO_TYPES)),
    "one storage with dtypes of two widths": zipped(dict_of(TWO_WIDTHS)),
    "one legacy storage with two dtypes": legacy(dict_of(OLD_TYPES)),
    "another protocol in what the legacy system was": legacy(info=OTHER_PROTOCOL),
    "an empty root": archive(EMPTY_ROOT),
    "an entry that leaves its root": archive([*BASE, Entry("archive/../../x", b"x")]),
    "a TorchScript program's code": archive([*BASE, Entry("archive/code/__torch__.py", b"x")]),
    "a comment": archive(BASE, comment=b"hello"),
    "a comment of an entry": archive(edited(BASE, "data/0", central={"comment": b"hello"})),
    "an extra field with another name": archive(edited(BASE, "data.pkl", central={"extra": PATH})),
    "an entry that nothing needs": archive([*BASE, Entry("archive/data/9", bytes(24))]),
    "a folder": archive([*BASE, Entry("archive/folder/", b"")]),
    "another version": archive(edited(BASE, "archive/version", data=b"999\n")),
    "a version that is none": archive(edited(BASE, "archive/version", data=b"three\n")),
    "an alignment that lies": archive(edited(BASE, ".storage_alignment", data=b"4096")),
    "payloads that are not aligned": archive([replace(entry, align=1) for entry in BASE]),
    "a directory in another order": archive(list(reversed(BASE))),
}

DEEP = 1_000_000
LARGE: dict[str, bytes] = {
    "a tuple a million deep": EMPTY_TUPLE + b"\x85" * DEEP,
    "a list a million deep": EMPTY_LIST * DEEP + b"a" * (DEEP - 1),
    "a dict a million deep": (EMPTY_DICT + NONE) * DEEP + EMPTY_DICT + b"s" * DEEP,
    "a million marks of tuples": MARK * DEEP + b"t" * DEEP,
}
"""Values beside a model that no reader may recurse into."""
