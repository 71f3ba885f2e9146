"""What every command prints, kept in tests/snapshots/ so that a change of it is seen in review.

To accept an intended change: `RECAST_UPDATE_SNAPSHOTS=1 .venv/bin/python -m pytest
tests/test_snapshots.py`, and look at the difference before it is committed.
"""

import contextlib
import os
import re
import struct
from pathlib import Path

import pytest
from conftest import Save
from support import drawn_here, environment, raw_bytes, recast_here, recast_process

SNAPSHOTS = Path(__file__).parent / "snapshots"
UPDATE = bool(os.environ.get("RECAST_UPDATE_SNAPSHOTS"))
CONVERT = "convert model out --to bf16"
# Each is a session: commands one after the other, in a folder with `model` and `huge`.
SESSIONS = {
    "help": ["--help"],
    "help-convert": ["convert --help"],
    "help-inspect": ["inspect --help"],
    "help-verify": ["verify --help"],
    "help-bits": ["bits --help"],
    "version": ["--version"],
    "convert": [CONVERT, CONVERT, "convert model out --to fp16"],
    "convert-sha256": [f"{CONVERT} --sha256 --quiet", f"{CONVERT} --sha256 --dry-run", CONVERT],
    "convert-warnings": ["convert old out --to bf16"],
    "convert-keep": ["convert model out --to fp16 --keep *norm* --keep lm_head.*"],
    "convert-dry-run": [f"{CONVERT} --dry-run"],
    "convert-verify": [f"{CONVERT} --verify cpu"],
    "convert-overflow": [
        "convert huge out --to fp16",
        "convert huge out --to fp16 --on-overflow saturate",
    ],
    "inspect": ["inspect model", "inspect model --tensors"],
    "inspect-converted": ["convert huge out --to bf16", "inspect out"],
    "verify": [
        "convert model out --to bf16 --quiet",
        "verify model out --device cpu --seed 7",
        "verify huge out --device cpu --full",
    ],
    "verify-published": [
        f"{CONVERT} --quiet",
        "verify out",
        "verify out --full",
        "verify model",
    ],
    "bits": ["bits 3.14", "bits -65520 --to fp16", "bits 0x7C01 --from fp16 --to bf16"],
    "errors": [
        "inspect nowhere",
        "convert model model/out --to bf16",
        "convert model out --to fp8",
        "convert model out --to bf16 --keep nothing.*",
        "convert model out",
        "bits many",
    ],
}
# The same lines again, on terminals.
SCREEN = [
    f"{CONVERT} --dry-run",
    "convert old out --to bf16 --quiet",
    "convert old out --to bf16",
    CONVERT,
    "convert model kept --to fp16 --keep *norm* --keep lm_head.* --verify cpu",
    "convert huge overflow --to fp16",
    "convert model kept --to bf16 --keep nothing.*",
    "convert model",
    "inspect model",
    "inspect nowhere",
    "verify huge out --device cpu",
    "verify old out --device cpu --seed 7",
    "verify out",
    "verify out --full",
    "verify model",
    "bits 3.14",
    "bits -65520 --to fp16",
]
SESSIONS |= {"terminal-80": SCREEN, "terminal-120": SCREEN}
# In processes of their own, as a person has it: every stream and some exit codes.
REAL = {"convert", "errors", "version"}
# A time, a rate, and what a machine is.
VARYING = [
    (re.compile(r"\d+\.\d+(?= s\b)"), "#"),
    (re.compile(r"\d+(\.\d+)? ([GMK]i)?B/s"), "# GiB/s"),
    (re.compile(r"(?<=^recast )[\d.]+$", re.MULTILINE), "#"),
    (re.compile(r"(?<=^simd   )\w+$", re.MULTILINE), "#"),
    (re.compile(r"(?<=^torch  )[\w.+]+$", re.MULTILINE), "#"),
]


@pytest.fixture
def folder(saved: Save, tmp_path: Path) -> Path:
    (tmp_path / "model").symlink_to(saved("llama", "fp32"))
    weights = {"w": [1.0, 65520.0, 1e-30], "small": [0.5, -2.0, 0.0]}
    rows = [(name, "F32", [3], struct.pack("<3f", *values)) for name, values in weights.items()]
    (tmp_path / "huge").mkdir()
    (tmp_path / "huge" / "model.safetensors").write_bytes(raw_bytes(rows))
    (tmp_path / "old").mkdir()
    carried = [("complex", "C64", [1], bytes(8)), *rows]
    (tmp_path / "old" / "model.fp32.safetensors").write_bytes(raw_bytes(carried))
    for number in range(30):
        (tmp_path / "old" / f"pytorch_model-{number:02}.bin").touch()
    return tmp_path


def screen(drawn: str) -> str:
    """The lines on a terminal in the end: colors aside, and a bar that was removed again."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", drawn):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\r":
            column = 0
        elif part.endswith("A") and part[0] == "\x1b":
            row -= int(part[2:-1])
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part[0] != "\x1b":
            lines[row] = lines[row].ljust(column)[:column] + part
            column += len(part)
    return "\n".join(lines)


def session(name: str, folder: Path) -> str:
    """What a person who types these commands in `folder` would see, with each exit code but 0."""
    seen, start = [], recast_process if name in REAL else recast_here
    # No GPU, whatever this machine has.
    machine = {"PATH": "/nowhere", "CUDA_VISIBLE_DEVICES": ""}
    for command in SESSIONS[name]:
        seen.append(f"$ recast {command}\n")
        if name.startswith("terminal-"):
            width = int(name.removeprefix("terminal-"))
            with contextlib.chdir(folder):
                drawn, code = drawn_here(command.split(), columns=width, **machine)
            seen.append(screen(drawn))
        else:
            # The width a pipe gets.
            env = environment(COLUMNS="100", **machine)
            result = start(*command.split(), cwd=folder, env=env)
            seen += [result.stdout, result.stderr]
            code = result.returncode
        if code:
            seen.append(f"[exit code {code}]\n")
    text = "".join(seen).replace(str(folder), "/folder")
    for pattern, placeholder in VARYING:
        text = pattern.sub(placeholder, text)
    return text


@pytest.mark.parametrize("name", SESSIONS)
def test_what_is_printed_is_what_was_agreed_on(name: str, folder: Path) -> None:
    path, printed = SNAPSHOTS / f"{name}.txt", session(name, folder)
    if UPDATE:
        SNAPSHOTS.mkdir(exist_ok=True)
        path.write_text(printed, encoding="utf-8")
    assert printed == path.read_text(encoding="utf-8"), "RECAST_UPDATE_SNAPSHOTS=1 accepts it"


def test_no_snapshot_is_left_over_and_none_names_a_machine() -> None:
    assert {path.stem for path in SNAPSHOTS.iterdir()} == set(SESSIONS)
    for path in SNAPSHOTS.iterdir():
        assert not re.search(r"/tmp|/home|/root|\x1b", path.read_text(encoding="utf-8")), path
