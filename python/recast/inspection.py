"""What `inspect` finds: dtypes, where the bytes are, and the memory they take on a GPU."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recast._core import Checkpoint, Tensor
from recast.gpu.device import Gpu
from recast.report import REPORT_NAME, SCHEMA_VERSION, json_text, picked
from recast.terminal import bar, columns, counted, grid, heading, plain, render, shown, size, width

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

# A CUDA context takes about this much, and no counter of PyTorch's shows it.
CONTEXT = 512 << 20
LONGEST_BAR, SHORTEST_BAR = 24, 8
# A picture of more groups than this shows nothing; the rest goes into one line.
GROUPS = 12

NUMBER = re.compile(r"\.([0-9]{1,9})\.")
# The first that fits names a part of a layer, so norms inside attention count as norms.
PARTS = {
    "norm": re.compile(r"norm|(?:^|[._])ln(?:$|[._\d])", re.IGNORECASE),
    "experts": re.compile(r"experts?(?:$|[._\d])", re.IGNORECASE),
    "attention": re.compile(r"att(?:n|ention)", re.IGNORECASE),
    "mlp": re.compile(r"mlp|ffn|feed_?forward|dense_?relu_?dense", re.IGNORECASE),
}


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is made of. `to_json()` is what `inspect --json` prints.

    Sizes are in bytes; `dtypes` has safetensors' names as keys.
    """

    path: str
    files: int
    """Shards: files that hold tensors."""
    tensors: int
    parameters: int
    """Elements of all tensors."""
    bytes: int
    """Tensor data, without headers."""
    dtypes: dict[str, dict[str, int]]
    """`{dtype: {tensors, parameters, bytes}}`."""
    groups: list[dict[str, Any]]
    """`{name, tensors, parameters, bytes}`: the same by part of the model, largest first."""
    gpu_memory: dict[str, dict[str, int]]
    """`{as_stored|fp32|fp16|bf16: {requested, allocated, reserved}}`, the built-in keep list and
    the allocator's settings in the environment respected. A quantized checkpoint has only
    `as_stored`."""
    device: Gpu | None
    """`{name, free, total}` of the GPU that programs see first, when there is one."""
    notes: list[str]
    stored: list[Tensor] = field(repr=False, compare=False)
    """Every tensor, as its header describes it."""
    schema_version: int = SCHEMA_VERSION

    @property
    def tensor_list(self) -> list[dict[str, Any]]:
        """`{name, dtype, shape, bytes, file}` of every tensor."""
        return [picked(tensor, "name", "dtype", "shape", "bytes", "file") for tensor in self.stored]

    def to_json(self, *, tensor_list: bool = False) -> str:
        """The inspection as one JSON object, ASCII only, with `tensor_list` when asked for."""
        fields = dict(vars(self))
        del fields["stored"]
        if tensor_list:
            fields["tensor_list"] = self.tensor_list
        return json_text(fields)


def groups(tensors: Iterable[Tensor]) -> list[dict[str, Any]]:
    """The parts of a model, largest first, as `{name, tensors, parameters, bytes}`.

    A name such as `model.layers.7.self_attn.q_proj.weight` has a stack (`model.layers`), the
    number of a layer, and a part of it; one group is the same part of all layers of a stack.
    A name without a number belongs to the module its first two words name.
    """
    # By what surrounds the number of a layer: far fewer names than tensors have to be understood.
    places: dict[tuple[str, str | None], tuple[list[int], set[str]]] = {}
    for tensor in tensors:
        # With a dot in front a number at the very beginning looks like any other.
        name = f".{tensor.name}"
        match = NUMBER.search(name)
        place = (name[: match.start()], name[match.end() :]) if match else (name, None)
        entry = places.get(place)
        if entry is None:
            entry = places[place] = ([0, 0, 0], set())
        row = entry[0]
        row[0] += 1
        row[1] += tensor.elements
        row[2] += tensor.bytes
        if match:
            entry[1].add(match[1])
    parts: dict[tuple[str, str | None], tuple[list[int], set[int]]] = {}
    for (before, rest), (row, numbers) in places.items():
        key = (_module(before[1:]), None) if rest is None else (before[1:], _part(rest))
        total, layers = parts.setdefault(key, ([0, 0, 0], set()))
        total[:] = map(sum, zip(total, row, strict=True))
        layers.update(map(int, numbers))
    named = ((_name(*key, layers), total) for key, (total, layers) in parts.items())
    return [
        {"name": name, "tensors": total[0], "parameters": total[1], "bytes": total[2]}
        for name, total in sorted(named, key=lambda item: (-item[1][2], item[0]))
    ]


def _name(stack: str, part: str | None, numbers: set[int]) -> str:
    if part is None:
        return stack
    first, last = min(numbers), max(numbers)
    span = f"{first}-{last}" if last > first else f"{first}"
    if len(numbers) < last - first + 1:
        span += f" ({len(numbers)} of them)"
    return " ".join(word for word in (f"{stack}.{span}".lstrip("."), part) if word)


def _module(name: str) -> str:
    return ".".join(name.split(".")[:-1][:2]) or name


def _part(rest: str) -> str:
    """The part of a layer that `rest`, a name from behind its number, belongs to."""
    for part, pattern in PARTS.items():
        if pattern.search(rest):
            return part
    words = rest.split(".")[:-1]
    # Containers such as `layer.0.` say where a module is, not what it is.
    while len(words) > 2 and words[1].isdecimal():
        words = words[2:]
    return words[0] if words else ""


def exactness(checkpoint: Checkpoint) -> list[str]:
    """A sentence on what the conversion that made `checkpoint` kept of the values.

    Empty where there is no `recast.json` that may be read, or where it is not about the tensors
    that are there.
    """
    try:
        found = checkpoint.lossless
    except ValueError as error:
        return [f"{REPORT_NAME} is not valid JSON: {error}"]
    if found is None:
        return []
    count, to = found
    return [f"converted without loss: all {count} cast tensors are exactly representable in {to}"]


def inspection_text(inspection: Inspection) -> str:
    """What `inspect` prints."""
    total = [
        ("shards", f"{inspection.files:,}"),
        ("tensors", f"{inspection.tensors:,}"),
        ("parameters", f"{inspection.parameters:,}"),
        ("size", f"{size(inspection.bytes)} ({inspection.bytes:,} bytes)"),
    ]
    dtypes = [
        (f"{name}, {counted(row['tensors'], 'tensor')}", row["bytes"])
        for name, row in inspection.dtypes.items()
    ]
    parts = [(row["name"], row["bytes"]) for row in inspection.groups[:GROUPS]]
    if rest := inspection.groups[GROUPS:]:
        more = counted(len(rest), "smaller part")
        parts.append((more, sum(row["bytes"] for row in rest)))
    notes = [f"note: {plain(note)}" for note in inspection.notes]
    return render(
        heading(inspection.path),
        grid(total),
        heading("by dtype"),
        _picture(dtypes, inspection.bytes),
        heading("by part of the model"),
        _picture(parts, inspection.bytes),
        _gpu_heading(inspection.device),
        _gpu_table(inspection),
        *notes,
    )


def _picture(parts: list[tuple[str, int]], total: int) -> "Text":
    """A line for each `(name, bytes)`, with a bar as long as its share of `total` bytes."""
    from rich.cells import cell_len
    from rich.text import Text

    labels = [shown(name) for name, _ in parts]
    widest = max(map(cell_len, labels), default=0)
    figures = [(size(count), count / total if total else 0.0) for _, count in parts]
    numbers = max((len(amount) for amount, _ in figures), default=0) + len("  100.0 %  ")
    room = width() - len("  ") - widest - len("  ") - numbers
    beside = room >= SHORTEST_BAR
    if not beside:
        room = width() - len("    ") - numbers
    picture = Text()
    for label, (amount, share) in zip(labels, figures, strict=True):
        gap = " " * (widest - cell_len(label) + 2) if beside else "\n    "
        amount = amount.rjust(numbers - len("  100.0 %  "))
        drawn = bar(share, min(max(room, 1), LONGEST_BAR))
        picture.append("\n" if picture else "").append(f"  {label}", style="cyan")
        picture.append(f"{gap}{amount}  {100 * share:5.1f} %  ").append(drawn, style="green")
    return picture


def _gpu_heading(gpu: Gpu | None) -> "Text":
    if gpu is None:
        return heading("GPU memory once loaded by PyTorch (no GPU found here to compare with)")
    return heading(
        f"GPU memory once loaded by PyTorch, on {gpu['name']} with {size(gpu['free'])} "
        f"of {size(gpu['total'])} free"
    )


def _gpu_table(inspection: Inspection) -> "RenderableType":
    """What each dtype takes; where there is a GPU, also whether that fits."""
    counters = ("requested", "allocated", "reserved")
    rows: list[tuple[str, ...]] = []
    for name, need in inspection.gpu_memory.items():
        fit = _fit(need["reserved"], inspection.device["free"]) if inspection.device else ""
        rows.append((name.replace("_", " "), *(size(need[key]) for key in counters), fit))
    wide = [f"  {line}" for line in columns([("", *counters, ""), *rows], right=(1, 2, 3))]
    if max(map(len, wide)) <= width():
        return "\n".join(wide)
    return grid(
        [
            (label, "\n".join([*map("{} {}".format, amounts, counters), *filter(None, [fit])]))
            for label, *amounts, fit in rows
        ]
    )


def _fit(need: int, free: int) -> str:
    """Whether `need` bytes and the CUDA context, which no counter shows, fit into `free`."""
    if need + CONTEXT <= free:
        return "fits"
    if need <= free:
        return f"tight: {size(free - need)} to spare"
    return f"does not fit: {size(need - free)} short"


def tensors_text(inspection: Inspection) -> str:
    """What `inspect --tensors` prints: a tensor a line, never folded, so that grep finds it."""
    rows = [
        (
            plain(tensor.name),
            plain(tensor.dtype),
            "[" + ",".join(map(str, tensor.shape)) + "]",
            str(tensor.bytes),
            plain(tensor.file),
        )
        for tensor in inspection.stored
    ]
    return "".join(f"{line}\n" for line in columns(rows))
