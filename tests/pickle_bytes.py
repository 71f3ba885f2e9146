"""Files of torch.save byte by byte, without torch: each can be wrong in just one thing."""

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"
MARK, STOP, REDUCE, BUILD, NEWOBJ, BINPERSID = b"(", b".", b"R", b"b", b"\x81", b"Q"
EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT = b")", b"]", b"}"
TUPLE, APPENDS, SETITEM, SETITEMS = b"t", b"e", b"s", b"u"
PROTO = b"\x80\x02"

FLOATS = struct.pack("<6f", 1, 2, 3, 4, 5, 6)
"""The data of storage "0" in the valid files."""


def text(value: str | bytes) -> bytes:
    """BINUNICODE."""
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return b"X" + len(data).to_bytes(4, "little") + data


def integer(value: int) -> bytes:
    """The opcode that pickle's protocol 2 takes for this number."""
    if 0 <= value < 1 << 8:
        return b"K" + bytes([value])
    if 0 <= value < 1 << 16:
        return b"M" + value.to_bytes(2, "little")
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    return long1(value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def long1(data: bytes) -> bytes:
    return b"\x8a" + bytes([len(data)]) + data


def named(path: str, name: str | None = None) -> bytes:
    """GLOBAL, of a dotted path or of a module and a name."""
    module, name = path.rsplit(".", 1) if name is None else (path, name)
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def put(index: int) -> bytes:
    """BINPUT or LONG_BINPUT."""
    return b"q" + bytes([index]) if index < 256 else b"r" + index.to_bytes(4, "little")


def get(index: int) -> bytes:
    """BINGET or LONG_BINGET."""
    return b"h" + bytes([index]) if index < 256 else b"j" + index.to_bytes(4, "little")


def tuple_of(*items: bytes) -> bytes:
    return MARK + b"".join(items) + TUPLE if items else EMPTY_TUPLE


def list_of(*items: bytes) -> bytes:
    return EMPTY_LIST + MARK + b"".join(items) + APPENDS


def pairs(items: Mapping[str, bytes]) -> bytes:
    """What fills a dict that lies on the stack."""
    return MARK + b"".join(text(key) + value for key, value in items.items()) + SETITEMS


def dict_of(items: Mapping[str, bytes]) -> bytes:
    return EMPTY_DICT + pairs(items)


def call(function: str | bytes, *arguments: bytes) -> bytes:
    """REDUCE of a global, or of what `function` leaves on the stack."""
    made = named(function) if isinstance(function, str) else function
    return made + tuple_of(*arguments) + REDUCE


def ordered(items: Mapping[str, bytes] | None = None) -> bytes:
    made = call("collections.OrderedDict")
    return made + pairs(items) if items is not None else made


def persistent(*fields: bytes) -> bytes:
    return tuple_of(*fields) + BINPERSID


def storage(
    kind: str = "torch.FloatStorage", key: str = "0", count: int = 6, *more: bytes
) -> bytes:
    """A storage by its persistent id; legacy files have a sixth field, `NONE` or a view."""
    return persistent(text("storage"), named(kind), text(key), text("cpu"), integer(count), *more)


def numbers(values: Iterable[int | bytes]) -> bytes:
    return tuple_of(*(v if isinstance(v, bytes) else integer(v) for v in values))


def steps(shape: Sequence[int]) -> list[int]:
    """The strides of a contiguous tensor."""
    made = [1]
    for extent in reversed(shape[1:]):
        made.insert(0, made[0] * extent)
    return made[: len(shape)]


def tensor(
    stored: bytes | None = None,
    shape: bytes | Sequence[int] = (2, 3),
    stride: bytes | Sequence[int] | None = None,
    offset: bytes | int = 0,
    *more: bytes,
    function: str = "torch._utils._rebuild_tensor_v2",
) -> bytes:
    """A call that rebuilds a tensor. `more` stands where requires_grad and the hooks usually do;
    what is bytes already goes in as it is."""
    if stride is None:
        assert not isinstance(shape, bytes)
        stride = steps(shape)
    return call(
        function,
        storage() if stored is None else stored,
        offset if isinstance(offset, bytes) else integer(offset),
        shape if isinstance(shape, bytes) else numbers(shape),
        stride if isinstance(stride, bytes) else numbers(stride),
        *(more or (FALSE, ordered())),
    )


def pickled(value: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + value + STOP


# The zip format. A field of a header that a test sets is written as it is, and nothing else
# changes with it; what no test sets is what torch writes.

LOCAL = ("<4sHHHHHIIIHH", b"PK\3\4")
CENTRAL = ("<4sHHHHHHIIIHHHHHII", b"PK\1\2")
END = ("<4sHHHHIIH", b"PK\5\6")
END64 = ("<4sQHHIIQQQQ", b"PK\6\6")
LOCATOR = ("<4sIQI", b"PK\6\7")
DESCRIPTOR = b"PK\7\x08"
FULL16, FULL32 = 0xFFFF, 0xFFFF_FFFF

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A file in an archive. `local` and `central` change fields of its two headers."""

    name: str
    data: bytes
    local: Fields = field(default_factory=dict)
    central: Fields = field(default_factory=dict)
    end64: bool = False
    """Whether the central header has its sizes and its offset in a zip64 field."""
    stored: bytes | None = None
    """What stands there instead of `data`, with the sizes and the checksum of `data`."""
    descriptor: bytes | None = None
    before: bytes = b""
    """Bytes before the local header that belong to nothing."""
    flags: int = 0
    """More flags than torch sets."""
    method: int = 0
    listed: bool = True
    """Whether the central directory lists it."""
    align: int = 64


def pack(form: tuple[str, bytes], values: dict[str, Any], changes: Fields) -> bytes:
    unknown = changes.keys() - values.keys() - {"signature", "name", "extra", "comment"}
    assert not unknown, unknown
    merged = {"signature": form[1], **values, **changes}
    fixed = [merged[key] for key in ("signature", *values)]
    return struct.pack(form[0], *fixed)


def _local(entry: Entry, at: int) -> bytes:
    """Its local header, with an extra field after which the data is aligned."""
    name = entry.local.get("name", entry.name.encode())
    flags = 0x808 if entry.data else 0x800
    values: dict[str, Any] = {"version": 0, "flags": flags | entry.flags, "method": entry.method}
    values |= {"time": 0, "date": 0, "crc": 0, "packed": 0, "size": 0}
    extra = entry.local.get("extra")
    if extra is None:
        padding = -(at + 30 + len(name) + 4) % entry.align
        extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding if entry.align > 1 else b""
    values |= {"name_length": len(name), "extra_length": len(extra)}
    return pack(LOCAL, values, entry.local) + name + extra


def _central(entry: Entry, at: int) -> bytes:
    name = entry.central.get("name", entry.name.encode())
    comment = entry.central.get("comment", b"")
    flags = 0x808 if entry.data else 0x800
    stored = entry.data if entry.stored is None else entry.stored
    sizes = [len(entry.data), len(stored) if entry.method else len(entry.data), at]
    extra = b""
    if entry.end64:
        extra = b"\1\0" + (24).to_bytes(2, "little") + struct.pack("<3Q", *sizes)
        sizes = [FULL32] * 3
    extra = entry.central.get("extra", extra)
    size, packed, offset = sizes
    values: dict[str, Any] = {"made_by": 0, "version": 0, "flags": flags | entry.flags}
    values |= {"method": entry.method, "time": 0, "date": 0, "crc": zlib.crc32(entry.data)}
    values |= {"packed": packed, "size": size, "name_length": len(name)}
    values |= {"extra_length": len(extra), "comment_length": len(comment), "disk": 0}
    values |= {"internal": 0, "external": 0, "offset": offset}
    return pack(CENTRAL, values, entry.central) + name + extra + comment


def archive(
    entries: Sequence[Entry],
    *,
    head: bytes = b"",
    gap: bytes = b"",
    comment: bytes = b"",
    tail: bytes = b"",
    end: Fields | None = None,
    end64: Fields | None = None,
    locator: Fields | None = None,
    shift: bool = True,
) -> bytes:
    """A zip archive; `gap` stands before its directory. It has the records of zip64 if `end64` is
    not None. Offsets count from the start of the file, or without `shift` from the end of `head`.
    """
    written, directory = bytearray(head), bytearray()
    for entry in entries:
        written += entry.before
        at = len(written) if shift else len(written) - len(head)
        written += _local(entry, len(written))
        written += entry.data if entry.stored is None else entry.stored
        if entry.descriptor is not None:
            written += entry.descriptor
        elif entry.data:
            sizes = (zlib.crc32(entry.data), len(entry.data), len(entry.data))
            written += DESCRIPTOR + struct.pack("<3I", *sizes)
        if entry.listed:
            directory += _central(entry, at)
    written += gap
    at = len(written) if shift else len(written) - len(head)
    count = sum(entry.listed for entry in entries)
    where: dict[str, Any] = {"entries_here": count, "entries": count}
    where |= {"size": len(directory), "offset": at}
    written += directory
    values: dict[str, Any] = {"disk": 0, "start_disk": 0}
    if end64 is not None:
        place = len(written)
        made_by: dict[str, Any] = {"record_size": 44, "made_by": 0, "version": 0}
        written += pack(END64, {**made_by, **values, **where}, end64)
        written += pack(LOCATOR, {"disk": 0, "offset": place, "disks": 1}, locator or {})
        where = {"entries_here": FULL16, "entries": FULL16, "size": FULL32, "offset": FULL32}
    values |= {**where, "comment_length": len(comment)}
    return bytes(written + pack(END, values, end or {}) + comment + tail)


def entries_of(
    pickle: bytes, storages: Mapping[str, bytes] | None = None, root: str = "archive"
) -> list[Entry]:
    """What torch.save writes, in its order."""
    stored = {"0": FLOATS} if storages is None else storages
    contents = {
        "data.pkl": pickle,
        ".format_version": b"1",
        ".storage_alignment": b"64",
        "byteorder": b"little",
        **{f"data/{key}": data for key, data in stored.items()},
        "version": b"3\n",
        ".data/serialization_id": b"0" * 40,
    }
    return [Entry(f"{root}/{name}", data) for name, data in contents.items()]


def edited(entries: Sequence[Entry], which: str, **changes: Any) -> list[Entry]:
    """`entries` with other fields in the one whose name ends in `which`."""
    made = [replace(e, **changes) if e.name.endswith(which) else e for e in entries]
    assert sum(one is not other for one, other in zip(made, entries, strict=True)) == 1, which
    return made


def without(entries: Sequence[Entry], name: str) -> list[Entry]:
    made = [entry for entry in entries if not entry.name.endswith(name)]
    assert len(made) == len(entries) - 1, name
    return made


def zipped(
    value: bytes | None = None, storages: Mapping[str, bytes] | None = None, **options: Any
) -> bytes:
    """A file of today's torch.save that holds `value`, or one tensor `w`."""
    value = dict_of({"w": tensor()}) if value is None else value
    return archive(entries_of(pickled(value), storages), **options)


# The legacy format: five pickles in a row, then each storage with its count in front.

MAGIC = long1(bytes.fromhex("6cfc9c46f9206aa85019"))
LITTLE = {"protocol_version": integer(1001), "little_endian": TRUE}
LITTLE |= {"type_sizes": dict_of({"short": integer(2), "int": integer(4), "long": integer(4)})}


def legacy_storage(
    kind: str = "torch.FloatStorage", key: str = "0", count: int = 6, view: bytes = NONE
) -> bytes:
    return storage(kind, key, count, view)


def legacy(
    value: bytes | None = None,
    storages: Mapping[str, tuple[int, bytes]] | None = None,
    *,
    magic: bytes = MAGIC,
    protocol: bytes = integer(1001),
    info: bytes | None = None,
    keys: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """A file of torch.save before 1.6; `storages` gives the count and the data of each."""
    value = dict_of({"w": tensor(legacy_storage())}) if value is None else value
    stored = {"0": (6, FLOATS)} if storages is None else storages
    info = dict_of(LITTLE) if info is None else info
    keys = list_of(*map(text, stored)) if keys is None else keys
    head = b"".join(map(pickled, (magic, protocol, info, value, keys)))
    data = (count.to_bytes(8, "little", signed=True) + raw for count, raw in stored.values())
    return head + b"".join(data) + tail
