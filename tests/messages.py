"""Every message of an error that recast raises on purpose, taken from its source."""

import ast
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import recast

ROOT = Path(__file__).parents[1]
VARIANT = re.compile(r'#\[error\("(?P<text>(?:[^"\\]|\\.)*)".*?\)\]\s+(?P<name>\w+)', re.DOTALL)


STRING = r'"((?:[^"\\]|\\.)*)"'
# Where a variant's message is mostly a reason: the file that gives it, how it stands there, and the
# variant.
REASONS = (
    ("commit/destination.rs", r"(?:reason: |let reason = |refuse\(\s*)" + STRING, "Destination"),
    ("commit/destination.rs", r"in_the_way\(&place, " + STRING, "Destination"),
    ("commit/conversion.rs", r"let reason = " + STRING, "Destination"),
    ("report.rs", r"let mut text = format!\(\s*" + STRING, "Overflow"),
    ("place/links.rs", STRING.replace('"(', '"(a '), "NotRegular"),
    ("place/mod.rs", r"format!\(\s*" + STRING, "Json"),
    ("format/json.rs", r"format!\(\s*" + STRING, "Json"),
    ("format/index.rs", r"invalid\(&?(?:format!\()?" + STRING, "Json"),
    ("format/safetensors.rs", r"format!\(\s*" + STRING, "Header"),
    ("plan/tensors.rs", r"let reason = format!\(\s*" + STRING, "Header"),
    ("format/safetensors.rs", r"[{]\s*" + STRING + r"\s*[}]", "Header"),
)


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


def of_the_core() -> list[Message]:
    """One for each variant of the core's `Error`, and for each reason that one spells out."""
    source = (ROOT / "src" / "error.rs").read_text(encoding="utf-8")
    arms = source.split("fn class(")[1].split("pub fn ")[0].split("=>")
    headings: dict[str, set[str]] = {}
    for left, right in pairwise(arms):
        exception = re.search(r'"(\w+Error)"', right)
        assert exception
        for variant in re.findall(r"Error::(\w+)", left):
            heading = _heading(getattr(recast.errors, exception[1]))
            headings.setdefault(variant, set()).add(heading)
    enum = source.split("pub enum Error {")[1].split("\n}\n")[0]
    found = []
    for variant in VARIANT.finditer(enum):
        found.append(Message(variant["name"], _literal(variant["text"]), headings[variant["name"]]))
    for path, pattern, variant in REASONS:
        # Their tests have texts of their own.
        text = (ROOT / "src" / path).read_text(encoding="utf-8").split("#[cfg(test)]")[0]
        reasons = re.findall(pattern, text, re.DOTALL)
        assert reasons, path
        for reason in reasons:
            found.append(Message(path, _literal(reason), headings[variant]))
    return found


def of_warnings() -> list[Message]:
    """One for each warning of a plan."""
    source = (ROOT / "src" / "plan.rs").read_text(encoding="utf-8")
    texts = re.findall(r'push\(format!\(\s*"((?:[^"\\]|\\.)*)"', source, re.DOTALL)
    return [Message("plan.rs", _literal(text), {"Warnings"}) for text in texts]


def of_the_package() -> list[Message]:
    """One for each error that the Python package raises."""
    found = []
    for path in sorted((ROOT / "python" / "recast").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            exception = getattr(recast.errors, node.func.id, None)
            if exception is not None:
                words = _words(_constants(node.args[0]))
                origin = f"{path.name}:{node.lineno}"
                found.append(Message(origin, words, {_heading(exception)}))
    return found


def of_verification() -> list[Message]:
    """One for each thing that a verification may find wrong."""
    found = []
    for name in ("structure", "loaders", "sealed", "memory", "result"):
        path = ROOT / "python" / "recast" / "verification" / f"{name}.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for text in _problems(node, name):
                origin = f"{path.name}:{text.lineno}"
                found.append(Message(origin, _words(_constants(text)), {"What verification finds"}))
    source = (ROOT / "src" / "commit" / "published.rs").read_text(encoding="utf-8")
    for text in re.findall(r'(?:Some\(|then_some\(|\(path, )"([^"]+)"', source):
        found.append(Message("published.rs", _literal(text), {"What verification finds"}))
    return found


def _problems(node: ast.AST, module: str) -> list[ast.expr]:
    """The texts of problems that `node` itself makes."""
    if isinstance(node, ast.Call) and node.args:
        called = ast.unparse(node.func)
        raises = called in ("LoadError", "ValueError", "self._folder")
        return node.args[:1] if raises or called == "problems.append" else []
    if module == "structure" and isinstance(node, ast.List | ast.ListComp):
        texts = node.elts if isinstance(node, ast.List) else [node.elt]
        return [text for text in texts if isinstance(text, ast.JoinedStr)]
    if isinstance(node, ast.FunctionDef) and node.name == "mismatch_text":
        return [inner.value for inner in node.body if isinstance(inner, ast.Return) and inner.value]
    return []


def _heading(exception: type[recast.RecastError]) -> str:
    return f"Exit code {exception.exit_code}:"


def _constants(node: ast.expr) -> list[str]:
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.Constant)]
    return [node.value] if isinstance(node, ast.Constant) else []


def _words(parts: list[str]) -> list[str]:
    return [word for part in parts if (word := part.strip(" \n:'()=,")) and len(word) > 1]


def _literal(text: str) -> list[str]:
    """The words of a Rust string: without what is filled in, and with its escapes resolved."""
    plain = re.sub(r"\\\n\s*", "", text).replace("\\n", " ").replace("\\'", "'")
    return _words(re.split(r"\{[^}]*\}", plain))
