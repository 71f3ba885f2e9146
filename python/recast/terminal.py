"""Text for people on stdout and stderr: readable without color and in any encoding."""

import io
import os
import sys
import textwrap
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from recast.errors import StorageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import ProgressColumn
    from rich.text import Text

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
    """`texts` with a colored word in front of each, such as `warning`."""
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
    """`parts` one below the other, with color only if stdout is a terminal that wants it."""
    written = io.StringIO()
    console = _console(written)
    for part in parts:
        console.print(part)
    return "".join(f"{line.rstrip(' ')}\n" for line in written.getvalue().split("\n")[:-1])


def write(text: str) -> None:
    """Writes data to stdout. It is not an error that a reader, such as `head`, has seen enough."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise StorageError(f"cannot write to standard output: {error.strerror}") from error


def complain(message: str, hint: str | None = None, notes: Iterable[str] = ()) -> None:
    """Writes an error to stderr."""
    # A message can have several lines, one for each tensor, for example. Names in it have none.
    first, *more = map(plain, message.split("\n"))
    lines = [("error: ", first), *(("", line) for line in more)]
    if hint is not None:
        lines.append(("hint: ", plain(hint)))
    say(*lines, *(("note: ", plain(note)) for note in notes))


STYLES = {"error: ": "bold red", "hint: ": "bold cyan", "note: ": "bold yellow"}


def say(*lines: tuple[str, str]) -> None:
    """Writes lines to stderr, each with a word in front of it; on a terminal that word is in color,
    and a line is only broken between words."""
    try:
        if not sys.stderr.isatty():
            sys.stderr.write("".join(f"{word}{text}\n" for word, text in lines))
        else:
            from rich.console import Console
            from rich.text import Text

            console = Console(stderr=True, highlight=False, markup=False, emoji=False)
            for word, text in lines:
                # A word that is too long, such as a path, stays whole, to be copied.
                folded = textwrap.wrap(
                    word + text, console.width, break_long_words=False, break_on_hyphens=False
                )
                for line in folded:
                    drawn = Text(line)
                    drawn.stylize(STYLES.get(word, ""), 0, len(word))
                    word = ""
                    console.print(drawn, overflow="ignore", crop=False)
        sys.stderr.flush()
    except OSError:
        # The exit code still tells.
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """Lets Python, which flushes `stream` again as it exits, find nothing to complain about."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def progress(wanted: bool) -> Iterator[Callable[[str, int, int], Any] | None]:
    """A bar on stderr while the block runs, drawn by `bar(step, done, total)`, in bytes; nothing
    unless `wanted`."""
    if not wanted:
        yield None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(stderr=True)
    with rich_progress.Progress(*_columns(console), console=console, transient=True) as drawn:
        task = drawn.add_task("starting", total=None)

        def bar(step: str, done: int, total: int) -> None:
            drawn.update(task, description=step, completed=done, total=total)

        yield bar


def _columns(console: "Console") -> list["ProgressColumn"]:
    """As many columns as fit: a cut one ends with a sign that is not ASCII."""
    from rich import progress as rich_progress
    from rich.text import Text

    class Speed(rich_progress.ProgressColumn):
        def render(self, task: rich_progress.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(
                "" if speed is None else f"{size(int(speed))}/s", style="progress.data.speed"
            )

    class Done(rich_progress.DownloadColumn):
        def render(self, task: rich_progress.Task) -> Text:
            # Before the first step, there is nothing to say of how much.
            return Text() if task.total is None else super().render(task)

    columns: list[ProgressColumn] = [rich_progress.TaskProgressColumn()]
    if console.width >= 20:
        columns.insert(0, rich_progress.TextColumn("{task.description}"))
    if console.width >= 80 and draws_blocks(sys.stderr):
        columns.insert(1, rich_progress.BarColumn(bar_width=20))
    if console.width >= 40:
        columns.append(Done(binary_units=True))
    if console.width >= 60:
        columns += [Speed(), rich_progress.TimeRemainingColumn()]
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
