"""What `recast inspect` prints: where the bytes are, and what they take on a GPU."""

from typing import TYPE_CHECKING

from recast.gpu.device import Gpu
from recast.inspection import Inspection, Scheme
from recast.terminal import bar, columns, counted, grid, heading, plain, render, shown, size, width

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

# A CUDA context takes about this much, and no counter of PyTorch's shows it.
CONTEXT = 512 << 20
LONGEST_BAR, SHORTEST_BAR = 24, 8
# A picture of more groups than this shows nothing; the rest goes into one line.
GROUPS = 12
# More names than this in a note help nobody.
LISTED = 5


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
    if left := inspection.not_loaded:
        more = f" and {len(left) - LISTED:,} more" if len(left) > LISTED else ""
        names = ", ".join(map(shown, left[:LISTED])) + more
        notes.append(
            f"note: not counted, because transformers, diffusers and peft take other files: {names}"
        )
    return render(
        heading(inspection.path),
        grid(total),
        heading("by dtype"),
        _picture(dtypes, inspection.bytes),
        heading("by part of the model"),
        _picture(parts, inspection.bytes),
        *_schemes(inspection),
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


def _schemes(inspection: Inspection) -> "list[RenderableType]":
    """How weights are quantized, and what `convert` makes of them."""
    if not inspection.schemes:
        return []
    rows = [
        (
            plain(scheme["name"]),
            f"{counted(scheme['weights'], 'weight')}, {size(scheme['bytes'])}, {_fate(scheme)}",
        )
        for scheme in inspection.schemes
    ]
    return [heading("quantized weights"), grid(rows)]


def _fate(scheme: Scheme) -> str:
    """What `convert` makes of the weights, or why it does not."""
    problem = plain(scheme["problem"] or "dequantized by convert")
    # Of several weights it is that of the first, and names it.
    return f"the first: {problem}" if scheme["weights"] > 1 and "'" in problem else problem


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
        amounts = (need["requested"], need["allocated"], need["reserved"])
        rows.append((name.replace("_", " "), *map(size, amounts), fit))
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
