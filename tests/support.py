"""What the tests share: files written by hand, trees as data, the command as a process."""

import contextlib
import fcntl
import gc
import hashlib
import io
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import patch

import numpy as np
import pytest
from recast import cli

STORED = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}

AS_MAIN_DOES: Any = {"encoding": "utf-8", "errors": "backslashreplace"}
"""How `main` has the streams encode."""

Raw = tuple[str, str, list[int], bytes]


def raw_header(entries: dict[str, Any], *, pad_to: int = 1) -> bytes:
    """A header, its length in front, padded with spaces to a multiple of `pad_to`."""
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % pad_to)
    return len(text).to_bytes(8, "little") + text


def raw_bytes(
    tensors: list[Raw], metadata: dict[str, str] | None = None, *, pad_to: int = 1
) -> bytes:
    """A safetensors file with `tensors` in just this order, written without any library."""
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, dtype, shape, data in tensors:
        offsets = [end, end + len(data)]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        end += len(data)
    return raw_header(entries, pad_to=pad_to) + b"".join(data for *_, data in tensors)


def header_of(path: Path) -> dict[str, Any]:
    """A file's header; JSON objects keep their order."""
    data = path.read_bytes()
    parsed: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return parsed


def stored(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """A file's tensors: `{name: (dtype, shape, bytes)}`, whatever the dtype."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = {name: entry for name, entry in header_of(path).items() if name != "__metadata__"}
    found = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        found[name] = (entry["dtype"], entry["shape"], data[start + first : start + last])
    return found


def fp32_bytes(count: int, seed: int = 0) -> bytes:
    """`count` fp32 values that fit every target."""
    return np.random.default_rng(seed).standard_normal(count, np.float32).tobytes()


def tree(path: Path) -> dict[str, str]:
    """Every entry below `path`, with a link's target or a hash of a file's bytes."""
    found = {}
    for entry in sorted(path.rglob("*")):
        name = str(entry.relative_to(path))
        if entry.is_symlink():
            found[name] = f"-> {os.readlink(entry)}"
        elif entry.is_file():
            found[name] = hashlib.sha256(entry.read_bytes()).hexdigest()
        elif entry.is_dir():
            found[name] = "directory"
        else:
            found[name] = "special"
    return found


def files(path: Path) -> set[str]:
    return {str(entry.relative_to(path)) for entry in path.rglob("*") if not entry.is_dir()}


def recast_process(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Runs the command as a user does, with nothing in the environment that changes its output."""
    options.setdefault("env", environment())
    return subprocess.run(
        [sys.executable, "-m", "recast", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def recast_here(
    *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """The same in this process, without the seconds that a process needs to import torch.

    What does not end with an exit code of its own, such as a warning, is an exception here.
    """
    words = list(map(str, arguments))
    with contextlib.chdir(cwd or Path.cwd()):
        streams = [io.TextIOWrapper(io.BytesIO(), **AS_MAIN_DOES) for _ in range(2)]
        code = _run_here(words, environment() if env is None else env, *streams)
    for stream in streams:
        stream.seek(0)
    return subprocess.CompletedProcess(words, code, *(stream.read() for stream in streams))


def _run_here(words: list[str], env: dict[str, str], out: TextIO, complaint: TextIO) -> int:
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(complaint),
        patch.dict(os.environ, env, clear=True),
        patch.object(sys, "argv", ["recast", *words]),
    ):
        try:
            return cli._run()
        finally:
            # `inspect` switches it off.
            gc.enable()


def slow(*values: object) -> list[Any]:
    """Values of a parameter that only `make test-slow` tries."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def heed_interrupts() -> None:
    """Makes a new process one as from a terminal, whatever the parent of the tests ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def environment(**changes: str) -> dict[str, str]:
    hidden = {"FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "RECAST_SIMD"}
    hidden |= {"COLUMNS", "LINES", "PYTHONUNBUFFERED"}
    hidden |= {"LANG", "LC_ALL", "LC_CTYPE", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    return {**kept, "PYTHONUTF8": "1", **changes}


def terminal(columns: int) -> tuple[int, int]:
    """Both ends of a terminal of so many columns: ours, and that of a program."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return ours, theirs


def drawn_on(ours: int) -> str:
    """All that is drawn until the other end is closed."""
    drawn = b""
    while True:
        ready, _, _ = select.select([ours], [], [], 30)
        try:
            part = os.read(ours, 65536) if ready else b""
        except OSError:  # Linux's way to say that the other end is closed.
            part = b""
        if not part:
            break
        drawn += part
    os.close(ours)
    return drawn.decode()


def on_terminal(
    command: list[str], *, stdout: bool = False, columns: int = 80, code: int = 0, **changes: str
) -> tuple[str, str]:
    """Runs `command` with stderr, or all output, on a terminal; what it drew, and its stdout."""
    ours, theirs = terminal(columns)
    process = subprocess.Popen(
        [sys.executable, "-m", "recast", *command],
        stdin=theirs,
        stdout=theirs if stdout else subprocess.PIPE,
        stderr=theirs,
        env=environment(**{"TERM": "xterm-256color", **changes}),
    )
    os.close(theirs)
    drawn = drawn_on(ours)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == code, drawn
    return drawn, (printed or b"").decode()


def on_terminal_here(command: list[str], *, code: int = 0, **changes: Any) -> str:
    """The same in this process, with all output on the terminal; what it drew."""
    drawn, found = drawn_here(command, **changes)
    assert found == code, drawn
    return drawn


def drawn_here(command: list[str], *, columns: int = 80, **changes: str) -> tuple[str, int]:
    """What `command` draws on a terminal, and its exit code."""
    ours, theirs = terminal(columns)
    # Where this process itself has a terminal, that would be asked for its width.
    env = environment(**{"TERM": "xterm-256color", "COLUMNS": str(columns), **changes})
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(drawn_on, ours)
        with open(theirs, "w", **AS_MAIN_DOES) as screen:
            code = _run_here(command, env, screen, screen)
        return drawn.result(), code
