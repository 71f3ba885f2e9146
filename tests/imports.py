"""Which module imports which: the Python package by its syntax tree, the crate by a tokenizer.

A module is named by its path: `verification.run` for Python, `commit::stage` for Rust. The roots,
the package's `__init__` and the crate's `lib.rs`, are `recast` and `crate`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
Graph = dict[str, set[str]]

# In this order: what is dropped (comments, strings, characters), then what is kept.
TOKEN = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | b?r(?P<hashes>\#*)".*?"(?P=hashes) | b?"(?:[^"\\]|\\.)*"
      | b?'(?:[^'\\]|\\.[^']*)' | (?P<kept>\w+ | :: | \S)""",
    re.DOTALL | re.VERBOSE,
)


def python_imports() -> Graph:
    """Every import of the package, those inside of functions and for type checkers included."""
    package = ROOT / "python" / "recast"
    files = {_name(path.relative_to(package), "__init__", "recast", "."): path
             for path in package.rglob("*.py")}  # fmt: skip
    known = {*files, "_core"}
    graph: Graph = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {name for node in ast.walk(tree) for name in _imported(node)}
        found = {_longest(name.split("."), known, "recast", ".") for name in names}
        # A module of a package may import its siblings through the package.
        graph[module] = found - {module}
    return graph


def _imported(node: ast.AST) -> Iterator[str]:
    """What a statement imports from the package, without `recast.` in front."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, "the package has absolute imports only"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return
    for name in names:
        top, _, rest = name.partition(".")
        if top == "recast":
            yield rest


def rust_imports() -> Graph:
    """Every path of the crate that a module names, tests aside."""
    source = ROOT / "src"
    files = {_name(path.relative_to(source), "mod", "crate", "::"): path
             for path in source.rglob("*.rs")}  # fmt: skip
    files["crate"] = files.pop("lib")
    tests = {name for name in files if name.endswith("::tests")}
    known = files.keys() - tests
    graph: Graph = {}
    for module in known:
        here = [] if module == "crate" else module.split("::")
        paths = _paths(tokens(files[module].read_text(encoding="utf-8")), here, known)
        graph[module] = {_longest(path, known, "crate", "::") for path in paths} - {module}
    return graph


def tokens(text: str) -> list[str]:
    """The tokens of Rust source without comments, literals, and what is only compiled for tests."""
    tokens = [match["kept"] for match in TOKEN.finditer(text) if match["kept"]]
    kept: list[str] = []
    at = 0
    while at < len(tokens):
        if tokens[at : at + 7] == ["#", "[", "cfg", "(", "test", ")", "]"]:
            at = _end_of_item(tokens, at + 7)
        else:
            kept.append(tokens[at])
            at += 1
    return kept


def _end_of_item(tokens: list[str], at: int) -> int:
    """Where the item, field or arm ends that begins at `at`."""
    depth = 0
    while at < len(tokens):
        token = tokens[at]
        if token in "([{":
            depth += 1
        elif token in ")]}":
            depth -= 1
            if depth < 0:
                return at
            if depth == 0 and token == "}":
                return at + 1
        elif depth == 0 and token in ",;":
            return at + 1
        at += 1
    return at


def _paths(tokens: list[str], here: list[str], known: set[str]) -> Iterator[list[str]]:
    """The paths of the crate in `tokens` of the module `here`, each from the root."""
    inline: list[tuple[str, int]] = []
    depth = at = 0
    while at < len(tokens):
        token, before = tokens[at], tokens[at - 1] if at else ""
        depth += (token == "{") - (token == "}")
        if token == "mod" and tokens[at + 2 : at + 3] == ["{"]:
            inline.append((tokens[at + 1], depth))
        if token == "}" and inline and inline[-1][1] == depth:
            inline.pop()
        if before != "::" and tokens[at + 1 : at + 2] == ["::"]:
            place = [*here, *(name for name, _ in inline)]
            start = _start(token, place, known)
            if start is not None:
                paths, at = _tree(tokens, at + 2, start)
                yield from paths
                continue
        at += 1


def _start(token: str, place: list[str], known: set[str]) -> list[str] | None:
    """Where a path that begins with `token` starts, if it is one of the crate."""
    if token == "crate":
        return []
    if token == "super":
        return place[:-1]
    if token == "self":
        return place
    child = [*place, token]
    return child if "::".join(child) in known else None


def _tree(tokens: list[str], at: int, start: list[str]) -> tuple[list[list[str]], int]:
    """The paths of the tree (`a::{b, c::d}`) at `at`, below `start`, and where it ends."""
    if tokens[at] == "super":
        return _tree(tokens, at + 2, start[:-1])
    if tokens[at] != "{":
        path = [*start, tokens[at]]
        if tokens[at + 1 : at + 2] == ["::"] and re.match(r"\w|\{", tokens[at + 2]):
            return _tree(tokens, at + 2, path)
        return [path], at + 1
    paths: list[list[str]] = []
    at += 1
    while tokens[at] != "}":
        if tokens[at] == ",":
            at += 1
            continue
        found, at = _tree(tokens, at, start)
        paths += found
        if tokens[at] == "as":
            at += 2
    return paths, at + 1


def _name(path: Path, root: str, top: str, separator: str) -> str:
    """The module in the file at `path`; a file called `root` is the module of its folder."""
    parts = [*path.parts[:-1], *([] if path.stem == root else [path.stem])]
    return separator.join(parts) or top


def _longest(path: list[str], known: set[str], top: str, separator: str) -> str:
    """The module that `path` names something of."""
    for end in range(len(path), 0, -1):
        if (name := separator.join(path[:end])) in known:
            return name
    return top


def circles(graph: Graph) -> list[list[str]]:
    """The sets of modules that import each other, directly or not."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for module in graph.get(todo.pop(), ()):
                if module not in seen:
                    seen.add(module)
                    todo.append(module)
        return seen

    reached = {module: reach(module) for module in graph}
    groups = {
        tuple(sorted(b for b in graph if b in reached[a] and a in reached[b]))
        for a in graph if a in reached[a]
    }  # fmt: skip
    return [list(group) for group in sorted(groups)]
