"""Draw terminal.svg: what the commands print on a terminal, from a real run on a small model."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import sysconfig
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
COLUMNS = 72
COMMANDS = [
    "recast convert model model-bf16 --to bf16",
    "recast verify model model-bf16 --full",
]


def on_terminal(command: str, folder: Path) -> str:
    """What `command` writes to stdout, a terminal of COLUMNS columns; the progress is left out."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    program, *arguments = command.split()
    path = Path(sysconfig.get_path("scripts")) / program
    hidden = {"NO_COLOR", "COLUMNS", "LINES"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    process = subprocess.Popen(
        [path, *arguments],
        cwd=folder,
        env={**env, "TERM": "xterm-256color", "PYTHONUTF8": "1"},
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # The other end is closed.
            part = b""
        if not part:
            break
        written += part
    os.close(ours)
    _, complaint = process.communicate()
    if process.returncode:
        sys.exit(f"{command}: {complaint.decode()}")
    return written.decode().replace("\r\n", "\n")


def picture(folder: Path) -> str:
    """The session as SVG; `folder` holds a `model`."""
    console = Console(
        record=True,
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
    for command in COMMANDS:
        console.print(Text(f"$ {command}", style="bold bright_white"))
        console.print(Text.from_ansi(on_terminal(command, folder)))
    svg = console.export_svg(title="recast", unique_id="recast")
    # A picture asks no other machine for a font.
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def main() -> None:
    """Write the picture to the path that is given, or beside this file."""
    sys.path.insert(0, str(HERE.parents[1] / "examples"))
    from demo import write_model

    output = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "terminal.svg"
    with tempfile.TemporaryDirectory(prefix="recast-picture-") as temporary:
        write_model(Path(temporary) / "model")
        text = picture(Path(temporary))
    output.write_text("".join(f"{line.rstrip()}\n" for line in text.splitlines()), encoding="utf-8")


if __name__ == "__main__":
    main()
