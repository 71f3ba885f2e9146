"""Every message of a failure: the core lists its own, those of the package are in its source."""

import ast
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import recast
from recast import _core
from recast.show.verify import CAUSES
from recast.verification.problems import SENTENCES
from recast.verification.result import MISMATCH

ROOT = Path(__file__).parents[1]
HEADER = "PATH: not a valid safetensors file: "
HEADINGS = {
    "warning": "Warnings",
    "finding": "What verification finds",
    "note": "Exit codes 130 and 143:",
}
# What raises the reason of a problem.
REASONS_OF_PROBLEMS = ("LoadError", "ValueError", "self._folder")


@dataclass(frozen=True)
class Message:
    """The words of a message that are always the same, and the headings it belongs under."""

    origin: str
    words: list[str]
    headings: set[str]

    def is_in(self, text: str) -> bool:
        """Whether `text` has all of the words, in order."""
        at = 0
        for word in self.words:
            at = text.find(word, at) + len(word)
            if at < len(word):
                return False
        return True


def of_the_core() -> list[tuple[str, str, str | None]]:
    """An example of everything that the core may say: its heading, the text, the hint."""
    found = []
    for kind, text, hint in _core.messages():
        heading = HEADINGS.get(kind) or _heading(getattr(recast.errors, kind))
        found.append((heading, general(text), hint))
    found.append((_heading(recast.HeaderError), "REASON", None))
    return found


def general(message: str) -> str:
    """A message with words for its numbers, on one line, a repeated line once."""
    lines = [line.strip() for line in message.splitlines()]
    text = " ".join(line for line, next in pairwise([*lines, ""]) if line != next)
    text = text.removeprefix(HEADER)
    return re.sub(r"\d[\d.e]*", "NUMBER", re.sub(r"\[[\d, ]+\]", "SHAPE", text))


def of_the_package() -> list[Message]:
    """One for each error that the Python package raises."""
    found = []
    for path in sorted((ROOT / "python" / "recast").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            exception = getattr(recast.errors, node.func.id, None)
            if isinstance(exception, type):
                words = _words(_constants(node.args[0]))
                origin = f"{path.name}:{node.lineno}"
                found.append(Message(origin, words, {_heading(exception)}))
    return found


def of_verification() -> list[Message]:
    """One for each thing that a verification may find wrong."""
    sentences: list[tuple[str, str]] = [
        *SENTENCES.items(),
        *CAUSES.items(),
        ("mismatch", MISMATCH),
    ]
    found = [
        Message(name, _words(re.split(r"\{[^}]*\}", sentence)), {"What verification finds"})
        for name, sentence in sentences
    ]
    for path in sorted((ROOT / "python" / "recast" / "verification").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in REASONS_OF_PROBLEMS:
                origin, words = f"{path.name}:{node.lineno}", _words(_constants(node.args[0]))
                found.append(Message(origin, words, {"What verification finds"}))
    return found


def _heading(exception: type[recast.RecastError]) -> str:
    return f"Exit code {exception.exit_code}:"


def _constants(node: ast.expr) -> list[str]:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return [str(part.value) for part in parts if isinstance(part, ast.Constant)]


def _words(parts: list[str]) -> list[str]:
    return [word for part in parts if (word := part.strip(" \n:'()=,")) and len(word) > 1]
