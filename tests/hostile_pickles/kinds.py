"""What is called where a plain tensor or a legacy file's own facts should be."""

import re

from pickle_bytes import (
    MAGIC,
    call,
    dict_of,
    integer,
    legacy,
    legacy_storage,
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

from hostile_pickles.case import TOUCH, Hostile, bad, instead, shell

SYSTEM = named("posix.system")
REBUILD = "torch._utils._rebuild_tensor_v2"
ARGUMENTS = (storage(), integer(0), numbers([2, 3]), numbers([3, 1]), b"\x89", ordered())

# What torch's weights-only unpickler calls, and a plain tensor needs not.
OTHER_KINDS: dict[str, bytes] = {
    "torch._utils._rebuild_qtensor": call(
        "torch._utils._rebuild_qtensor",
        storage("torch.QInt8Storage", "0", 24),
        integer(0),
        numbers([24]),
        numbers([1]),
        tuple_of(named("torch.per_tensor_affine"), b"G?\xf0\0\0\0\0\0\0", integer(0)),
        b"\x89",
        ordered(),
    ),
    "torch._utils._rebuild_sparse_tensor": call(
        "torch._utils._rebuild_sparse_tensor",
        call("torch.serialization._get_layout", text("torch.sparse_coo")),
        tuple_of(
            tensor(storage("torch.LongStorage", "0", 3), [1, 3]),
            tensor(storage("torch.FloatStorage", "1", 3), [3]),
            call("torch.Size", numbers([9])),
        ),
    ),
    "torch._utils._rebuild_meta_tensor_no_storage": call(
        "torch._utils._rebuild_meta_tensor_no_storage",
        named("torch.float32"),
        numbers([2, 3]),
        numbers([3, 1]),
        b"\x89",
    ),
    "torch._utils._rebuild_wrapper_subclass": call(
        "torch._utils._rebuild_wrapper_subclass",
        named("torch.Tensor"),
        named("torch.float32"),
        numbers([2]),
        numbers([1]),
        integer(0),
        call("torch.serialization._get_layout", text("torch.strided")),
        text("cpu"),
        b"\x89",
    ),
    "torch._utils._rebuild_device_tensor_from_numpy": call(
        "torch._utils._rebuild_device_tensor_from_numpy",
        tensor(),
        named("torch.float32"),
        text("cpu"),
        b"\x89",
    ),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": call(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        tensor(),
        named("torch.float32"),
        text("cpu"),
        b"\x89",
    ),
    "torch._utils._rebuild_nested_tensor": call(
        "torch._utils._rebuild_nested_tensor", tensor(), tensor(), tensor(), tensor()
    ),
    "torch._utils._rebuild_xla_tensor": call(
        "torch._utils._rebuild_xla_tensor", tensor(), named("torch.float32"), text("cpu"), b"\x89"
    ),
    "torch.sparse.FloatTensor": call("torch.sparse.FloatTensor"),
    "torch.per_tensor_affine": named("torch.per_tensor_affine"),
}
MORE = {"0": bytes(24), "1": bytes(12)}
KINDS = "It reads tensors of kinds that safetensors has not."
NOT_READ = {"_rebuild_device_tensor_from_numpy", "_rebuild_nested_tensor", "_rebuild_xla_tensor"}
NOT_READ |= {"_rebuild_wrapper_subclass"}
UNUSUAL = [
    bad(
        f"the global {name}",
        zipped(dict_of({"v": tensor(), "w": code}), MORE),
        re.escape(name),
        torch="" if name.rsplit(".", 1)[1] in NOT_READ else KINDS,
    )
    for name, code in OTHER_KINDS.items()
]

LEGACY = [
    bad("posix.system for the magic number", legacy(magic=shell()), executes=True, foreign=True),
    bad(
        "posix.system before the magic number",
        legacy(magic=b"(" + shell() + MAGIC + b"t"),
        executes=True,
        foreign=True,
    ),
    bad("posix.system for the protocol", legacy(protocol=shell()), r"posix\.system", executes=True),
    bad(
        "posix.system in what the system was",
        legacy(info=dict_of({"little_endian": b"\x88", "x": shell()})),
        r"posix\.system",
        executes=True,
    ),
    bad(
        "posix.system in a legacy state dict",
        legacy(dict_of({"w": tensor(legacy_storage()), "x": shell()})),
        r"posix\.system",
        executes=True,
    ),
    bad(
        "posix.system among the keys",
        legacy(keys=list_of(text("0"), shell())),
        r"posix\.system",
        executes=True,
    ),
    bad(
        "posix.system in a persistent id",
        instead(tensor(persistent(text("storage"), shell(), text("0"), text("cpu"), integer(6)))),
        r"posix\.system",
        executes=True,
    ),
    bad(
        "posix.system for a storage's type",
        instead(tensor(persistent(text("storage"), SYSTEM, text("0"), text("cpu"), integer(6)))),
        r"posix\.system",
    ),
    bad(
        "posix.system as a module that was saved",
        legacy(
            dict_of(
                {
                    "w": tensor(legacy_storage()),
                    "x": persistent(text("module"), SYSTEM, text("x.py"), text("x")),
                }
            )
        ),
        r"posix\.system",
    ),
    bad(
        "posix.system for a tensor's type",
        instead(
            call(
                "torch._tensor._rebuild_from_type_v2",
                SYSTEM,
                named("torch.Tensor"),
                tuple_of(text(TOUCH)),
                dict_of({}),
            )
        ),
        r"posix\.system",
    ),
    bad(
        "a tensor's type that is none",
        instead(
            call(
                "torch._tensor._rebuild_from_type_v2",
                named(REBUILD),
                named("collections.OrderedDict"),
                tuple_of(*ARGUMENTS),
                dict_of({}),
            )
        ),
        r"class .* at byte \d",
    ),
]

FILES: list[Hostile] = [*UNUSUAL, *LEGACY]
