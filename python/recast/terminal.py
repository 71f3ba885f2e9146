"""Text for people: sizes, rows and bars, readable without colour and in any encoding."""

import io
import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import ProgressColumn
    from rich.text import Text

Progress = Callable[[int, int], Any]

# What a pipe gets where a terminal would be asked for its width.
PIPE_WIDTH = 100
EIGHTHS = " ▏▎▍▌▋▊▉█"
# Characters that are shown of a name that is too long, from its start and from its end.
START, END = 400, 160


def plain(text: str) -> str:
    """`text` with what does not print escaped: a tensor's name must not steer a terminal, nor
    forge a line. Bytes of a file's name that are no text become `\\xff`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def shown(value: object) -> str:
    """`value` as a message shows it: plain, and with its middle left out where it is too long to
    be read, because names come from files and may have a hundred million bytes."""
    text = str(value)
    if len(text) > START + END:
        text = f"{text[:START]}[...]{text[-END:]}"
    return plain(text)


def size(count: int) -> str:
    """A number of bytes in binary units: `12.55 GiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def counted(number: int, what: str) -> str:
    """A number of things, in the singular or the plural: `1,024 tensors`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def first_of(names: list[str]) -> str:
    """The first of `names`, and how many more there are."""
    return shown(names[0]) + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def columns(rows: Sequence[tuple[str, ...]], right: Container[int] = ()) -> list[str]:
    """`rows` as lines, each column as wide as it has to be; those in `right` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [f"{{:{'>' if at in right else '<'}{width}}}" for at, width in enumerate(widths)]
    line = "  ".join([*padded[:-1], "{}"])
    return [line.format(*row) for row in rows]


def width() -> int:
    """Columns of the terminal, or a usual number of them where stdout is none."""
    return _console(io.StringIO()).width if sys.stdout.isatty() else PIPE_WIDTH


def draws_blocks(stream: TextIO | None = None) -> bool:
    """Whether `stream`, or else stdout, can take more than ASCII."""
    try:
        EIGHTHS.encode((stream or sys.stdout).encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    # Python writes UTF-8 even where the locale is C, and then sets LC_CTYPE itself.
    ctype = os.environ.get("LC_CTYPE")
    declared = os.environ.get("LC_ALL") or (ctype if ctype != "C.UTF-8" else None)
    return (declared or os.environ.get("LANG")) not in ("C", "POSIX")


def bar(share: float, columns: int) -> str:
    """A bar of `share` (0 to 1) of `columns`; a share above zero is never invisible in blocks."""
    if not draws_blocks():
        return "#" * round(share * columns)
    eighths = max(round(share * columns * 8), 1 if share > 0 else 0)
    return EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def heading(text: str) -> "Text":
    """`text` as the heading of what stands below it."""
    from rich.text import Text

    return Text(plain(text), style="bold")


def marked(word: str, style: str, texts: Iterable[str]) -> "list[Text]":
    """`texts` with a coloured word in front of each, such as `warning`."""
    from rich.text import Text

    return [Text.assemble((f"{word}: ", style), plain(text)) for text in texts]


def grid(lines: list[tuple[str, str]]) -> "RenderableType":
    """Labels and values in two columns; a value that is too long is folded inside its own."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in lines:
        table.add_row(f"  {label}", value)
    return table


def render(*parts: "RenderableType") -> str:
    """`parts` one below the other, with colour only if stdout is a terminal that wants it."""
    written = io.StringIO()
    console = _console(written)
    for part in parts:
        console.print(part)
    return "".join(f"{line.rstrip(' ')}\n" for line in written.getvalue().split("\n")[:-1])


@contextmanager
def progress(wanted: bool) -> Iterator[Progress | None]:
    """Bytes, rate and time left on stderr while the block runs; nothing unless `wanted`."""
    if not wanted:
        yield None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(stderr=True)
    with rich_progress.Progress(*_columns(console), console=console, transient=True) as drawn:
        task = drawn.add_task("", total=None)
        yield lambda done, total: drawn.update(task, completed=done, total=total)


def _columns(console: "Console") -> list["ProgressColumn"]:
    """As many columns as fit: one that does not would be cut, with a sign that is not ASCII."""
    from rich import progress as rich_progress

    columns: list[ProgressColumn] = [rich_progress.TaskProgressColumn()]
    if console.width >= 40:
        columns.append(rich_progress.DownloadColumn(binary_units=True))
    if console.width >= 60:
        columns += [rich_progress.TransferSpeedColumn(), rich_progress.TimeRemainingColumn()]
    if console.width >= 80 and draws_blocks(sys.stderr):
        columns.insert(0, rich_progress.BarColumn(bar_width=24))
    return columns


def _console(file: io.StringIO) -> "Console":
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(
        file=file,
        force_terminal=terminal,
        # A pipe has no width; lines are only ever folded for a terminal.
        width=None if terminal else 10_000,
        highlight=False,
        markup=False,
        emoji=False,
    )
