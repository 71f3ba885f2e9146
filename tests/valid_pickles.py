"""Files that torch and recast both read, in every form that pickles of tensors take."""

import struct
from dataclasses import replace

from pickle_bytes import (
    BUILD,
    DESCRIPTOR,
    FALSE,
    FLOATS,
    NONE,
    TRUE,
    Entry,
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
    numbers,
    ordered,
    persistent,
    pickled,
    put,
    storage,
    tensor,
    text,
    tuple_of,
    without,
    zipped,
)

PARAMETER, V3 = "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v3"
UNTYPED = "torch.storage.UntypedStorage"
MODEL = dict_of({"w": tensor()})
BASE = entries_of(pickled(MODEL))
NUMBER = b"G" + struct.pack(">d", 0.5)

STRIDED = {
    "transposed": tensor(None, [3, 2], [1, 3]),
    "every other": tensor(None, [3], [2], 1),
    "a row": tensor(None, [3], [1], 3),
    "expanded": tensor(None, [4, 3], [0, 1], 2),
    "a number": tensor(None, [], [], 5),
    "nothing": tensor(None, [0, 3], [3, 1], 6),
    "deep": tensor(None, [1, 2, 1, 3, 1], [9, 1, 7, 2, 5]),
}
TIED = {
    "embed.weight": tensor(storage() + put(4)),
    "lm_head.weight": tensor(get(4)),
    "norm.weight": call(PARAMETER, tensor(get(4), [3], [1], 3), TRUE, ordered()),
}
NESTED = {
    "epoch": integer(3),
    "lr": NUMBER,
    "best": FALSE,
    "run": text("\u00e9t\u00e9"),
    "none": NONE,
    "big": integer(1 << 40),
    "state_dict": ordered({"w": tensor(), "b": tensor(None, [2], [1], 4)}),
    "optimizer": dict_of({"groups": list_of(dict_of({"betas": tuple_of(NUMBER, NUMBER)}))}),
}
METADATA = dict_of({"": dict_of({"version": integer(1)})})
INERT = {
    "w": tensor(),
    "set": call("builtins.set", list_of(integer(1))),
    "counter": call("collections.Counter", dict_of({"a": integer(2)})),
    "bytes": call("_codecs.encode", text("abc"), text("latin1")),
    "array": call("builtins.bytearray", call("_codecs.encode", text("abc"), text("latin1"))),
    "complex": call("builtins.complex", NUMBER, NUMBER),
    "device": call("torch.device", text("cpu")),
    "layout": call("torch.serialization._get_layout", text("torch.strided")),
    "size": call("torch.Size", numbers([2, 3])),
    "dtype": named("torch.bfloat16"),
}
FROM_TYPE = call(
    "torch._tensor._rebuild_from_type_v2",
    named("torch._utils._rebuild_tensor_v2"),
    named("torch.Tensor"),
    tuple_of(storage(), integer(0), numbers([2, 3]), numbers([3, 1]), FALSE, ordered()),
    dict_of({}),
)
FIRST = call("torch._utils._rebuild_tensor", storage(), integer(0), numbers([6]), numbers([1]))
WITH_STATE = call(f"{PARAMETER}_with_state", tensor(), FALSE, ordered(), dict_of({}))
KINDS = {
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
    "ComplexFloat": 8,
}
NEWER = {"float8_e4m3fn": 1, "float8_e5m2": 1, "uint16": 2, "uint32": 4, "uint64": 8}
COUNT = 6


def unchecked(entry: Entry) -> Entry:
    """As torch.save writes it where it was told not to compute checksums."""
    sizes = struct.pack("<3I", 0, len(entry.data), len(entry.data))
    return replace(entry, central={"crc": 0}, descriptor=DESCRIPTOR + sizes)


def every_dtype() -> bytes:
    """A tensor of each, with its own storage; those after torch 2.2 name their dtype."""
    tensors, storages = {}, {}
    for number, (kind, width) in enumerate(KINDS.items()):
        storages[str(number)] = bytes([0, 1] * (COUNT * width // 2))
        tensors[kind] = tensor(storage(f"torch.{kind}Storage", str(number), COUNT), [COUNT])
    for number, (dtype, width) in enumerate(NEWER.items(), len(KINDS)):
        storages[str(number)] = bytes(range(COUNT * width))
        stored = storage(UNTYPED, str(number), COUNT * width)
        made = (FALSE, ordered(), named(f"torch.{dtype}"))
        tensors[dtype] = tensor(stored, [COUNT], None, 0, *made, function=V3)
    return zipped(dict_of(tensors), storages)


TWO = {
    "v": tensor(legacy_storage(key="7")),
    "w": tensor(legacy_storage("torch.LongStorage", "3", 3), [3]),
}
OLD = {name: made.replace(storage(), legacy_storage()) for name, made in STRIDED.items()}
OLD_TIED = {
    "embed.weight": tensor(legacy_storage() + put(4)),
    "lm_head.weight": tensor(get(4)),
    "norm.weight": call(PARAMETER, tensor(get(4), [3], [1], 3), TRUE, ordered()),
}
OLDEST = persistent(
    b"U\7storage", named("torch.FloatStorage"), b"U\0010", b"U\3cpu", integer(6), NONE
)
VIEW = legacy_storage(view=tuple_of(text("1"), integer(2), integer(3)))

FILES: dict[str, bytes] = {
    "zip": zipped(),
    "zip of before byteorder": archive(
        [e for e in BASE if e.name in ("archive/data.pkl", "archive/data/0", "archive/version")]
    ),
    "zip without alignment": archive([replace(entry, align=1) for entry in BASE]),
    "zip without checksums": archive([unchecked(entry) for entry in BASE]),
    "zip with zip64": archive([replace(entry, end64=True) for entry in BASE], end64={}),
    "zip with data.pkl last": archive([*without(BASE, "data.pkl"), BASE[0]]),
    "zip of another root": archive(entries_of(pickled(MODEL), root="pytorch_model (1)")),
    "zip of strided tensors": zipped(dict_of(STRIDED)),
    "zip of tied tensors": zipped(ordered(TIED)),
    "zip of a checkpoint": zipped(dict_of(NESTED)),
    "zip of a state dict with metadata": zipped(
        ordered({"w": tensor()}) + dict_of({"_metadata": METADATA}) + BUILD
    ),
    "zip of a set, a counter and others": zipped(dict_of(INERT)),
    "zip of a tensor by its type": zipped(dict_of({"w": FROM_TYPE})),
    "zip of every dtype": every_dtype(),
    "zip of the first rebuild function": zipped(dict_of({"w": FIRST})),
    "zip of a parameter with a state": zipped(dict_of({"w": WITH_STATE})),
    "zip of protocol 3": archive(entries_of(pickled(MODEL, 3))),
    "legacy": legacy(),
    "legacy of two storages": legacy(dict_of(TWO), {"3": (3, bytes(range(24))), "7": (6, FLOATS)}),
    "legacy of strided tensors": legacy(dict_of(OLD)),
    "legacy of tied tensors": legacy(ordered(OLD_TIED)),
    "legacy of Python 2": legacy(dict_of({"w": tensor(OLDEST)}), keys=list_of(b"U\0010")),
    "legacy of a view": legacy(dict_of({"w": tensor(VIEW, [3])})),
}
