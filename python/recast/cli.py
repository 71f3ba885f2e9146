"""The command `recast` as a process: its signals, its streams, and its exit code.

Data goes to stdout, everything else to stderr.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from recast import terminal
from recast.commands import cli
from recast.errors import RecastError, UsageError


class Interrupted(BaseException):
    """A signal asked to stop. Not an `Exception`, so that nothing but cleanup catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def _run() -> int:
    """Runs the command and returns its exit code: every way to fail ends here."""
    try:
        # In this mode click returns the code of `--help` and `--version`, and raises its errors.
        code = cli.main(prog_name="recast", standalone_mode=False)
    except RecastError as error:
        message, hint = error.args
        terminal.complain(message, hint, getattr(error, "__notes__", []))
        return error.exit_code
    except click.UsageError as error:
        terminal.complain(terminal.shown(_message(error)), _hint(error))
        return UsageError.exit_code
    except Interrupted as error:
        notes = getattr(error, "__notes__", [])
        terminal.say(("", terminal.plain("; ".join(["interrupted", *notes]))))
        return error.exit_code
    return code if isinstance(code, int) else 0


def _message(error: click.UsageError) -> str:
    """What click says, with no more than the nearest option or command."""
    meant = getattr(error, "possibilities", None)
    return f"{error.message} Did you mean '{meant[0]}'?" if meant else error.format_message()


def _hint(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx else "recast"
    return f"`{command} --help` lists the options"


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


def main() -> None:
    """The entry point of the command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # What the parent chose to ignore (nohup, a background job) stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    # A stream that the caller closed is None here; nobody reads what is written instead.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A tensor's name may hold what the terminal's encoding does not.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run())
