"""The code blocks of the documentation: found in the Markdown, and run as a reader runs them."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from support import environment

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = {"bash", "console", "python"}
# What a run prints anew each time: a time, a rate, a drawn seed, the name of a staging folder.
VARYING = re.compile(
    r"\d+\.\d+(?= s\b)|\d+(?:\.\d+)? (?:[GMK]i)?B/s|(?<=\(seed )\d+|(?<=[-.])[0-9a-f]{32}(?=[/.])"
)
# What a page shows for the directory its commands run in.
HOME = "/models/"
# The one GPU that may be seen: no real one, but the one that a page may show.
GPU = "GPU-0"
# Stands around the status of each command, in what a console block prints.
MARK = "\x1e"


@dataclass(frozen=True)
class Block:
    """One fenced block; `prints` is a text block titled "prints" that stands right below it."""

    page: str
    line: int
    language: str
    title: str
    text: str
    prints: str | None = None

    @property
    def not_run(self) -> str | None:
        """Why it is not run, as its title tells the reader."""
        _, marker, reason = self.title.partition("not run here: ")
        return reason if marker else None


def pages() -> list[Path]:
    """README.md and everything below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The blocks of `page`, in order."""
    source = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in FENCE.finditer(source):
        language, _, rest = match["info"].strip().partition(" ")
        named = re.search(r'title="([^"]*)"', rest)
        title = named[1] if named else ""
        if title == "prints" and not source[end : match.start()].strip():
            found[-1] = replace(found[-1], prints=match["text"])
        else:
            line = source.count("\n", 0, match.start()) + 1
            name = str(page.relative_to(ROOT))
            found.append(Block(name, line, language, title, match["text"]))
        end = match.end()
    return found


def run(block: Block, folder: Path, tools: Path) -> None:
    """Runs `block` in `folder`, and fails where it fails or prints something else.

    A Python block whose title is a file's name is saved under it. In a console block a command
    fails exactly where the page shows an error. Programs in `tools` go before all others.
    """
    where = f"{block.page}:{block.line}"
    if block.title.endswith(".py"):
        (folder / block.title).write_text(block.text, encoding="utf-8")
        return
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = environment(PATH=path, CUDA_VISIBLE_DEVICES=GPU, HF_HUB_OFFLINE="1")
    session = commands(block) if block.language == "console" else []
    program = "".join(
        f"{command}\n__status=$?; printf '{MARK}%s{MARK}' $__status; (exit $__status)\n"
        for command, _ in session
    )
    start = {
        "bash": ["bash", "-euo", "pipefail", "-c", block.text],
        "python": [sys.executable, "-c", block.text],
        "console": ["bash", "-c", f"exec 2>&1\n{program}exit 0"],
    }[block.language]
    done = subprocess.run(
        start, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{where}:\n{done.stdout}{done.stderr}"
    # The page cannot know where it is run.
    printed = done.stdout.replace(f"{folder}/", HOME)
    if block.prints is not None:
        assert _settled(printed) == _settled(block.prints), where
    answers = printed.split(MARK)[:-1]
    for (command, shown), printed, status in zip(session, answers[::2], answers[1::2], strict=True):
        assert _settled(printed) == _settled(shown), f"{where}: {command}"
        assert (status != "0") == ("error: " in shown), f"{where}: {command}"


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a console block, each with what it prints."""
    found: list[tuple[str, str]] = []
    for line in block.text.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:].rstrip("\n"), ""))
        else:
            command, shown = found[-1]
            goes_on = command.endswith("\\") and not shown
            found[-1] = (
                (f"{command}\n{line}".rstrip("\n"), "") if goes_on else (command, shown + line)
            )
    return found


def _settled(text: str) -> list[str]:
    return [line.rstrip() for line in VARYING.sub("#", text).strip("\n").splitlines()]
