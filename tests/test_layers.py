"""Imports point down: to a lower layer, never to a higher or the same one, and never in a circle.

A package or folder is one entry of a table; within it only circles are forbidden. A file of a Rust
folder may use what the folder's `mod.rs` holds for all of them.
"""

import pytest
from imports import Graph, circles, python_imports, rust_imports, tokens

# From the top to the bottom; `recast` is the package's `__init__`, `crate` is `lib.rs`.
PYTHON = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"recast"},
    {"api"},
    {"show"},
    {"bits", "inspection", "loading", "published", "verification"},
    {"array", "report", "rounding"},
    {"gpu", "json_text", "options"},
    {"dtypes", "terminal"},
    {"errors", "names"},
    {"_core"},
]
RUST = [
    {"python"},
    {"commit"},
    {"make", "report"},
    {"plan"},
    {"checkpoint", "keep"},
    {"recognize"},
    {"recipe"},
    {"format"},
    {"place"},
    {"fs"},
    {"cast"},
    {"error"},
    {"checksum", "dtype", "names", "shown", "view"},
    {"crate"},
]


def upward(graph: Graph, layers: list[set[str]], separator: str) -> list[str]:
    """The imports that do not point down, and the modules that no layer has."""
    level = {name: number for number, layer in enumerate(layers) for name in layer}
    found = []
    for module, imports in graph.items():
        room = module.split(separator)[0]
        if room not in level:
            found.append(f"{module} is in no layer: add it to a table in tests/test_layers.py")
            continue
        for other in imports:
            below = other.split(separator)[0]
            if below != room and level.get(below, len(level)) <= level[room]:
                found.append(f"{module} imports {other}, which is not below it")
    return sorted(found)


def test_imports_of_the_package_point_down() -> None:
    assert upward(python_imports(), PYTHON, ".") == []


def test_imports_of_the_crate_point_down() -> None:
    assert upward(rust_imports(), RUST, "::") == []


@pytest.mark.parametrize("graph", [python_imports(), rust_imports()], ids=["package", "crate"])
def test_no_modules_import_each_other(graph: Graph) -> None:
    of_others = {
        module: {name for name in imports if not module.startswith(f"{name}::")}
        for module, imports in graph.items()
    }
    assert circles(of_others) == []


def test_every_layer_is_one_that_exists() -> None:
    for graph, layers, separator in ((python_imports(), PYTHON, "."), (rust_imports(), RUST, "::")):
        rooms = {module.split(separator)[0] for module in graph} | {"_core"}
        named = [name for layer in layers for name in layer]
        assert len(named) == len(set(named))
        assert set(named) <= rooms


def test_an_import_that_points_up_or_to_the_same_layer_is_found() -> None:
    graph: Graph = {"a": {"b"}, "b": {"c.d"}, "c": {"c.d"}, "c.d": {"b"}, "e": set()}
    assert upward(graph, [{"a"}, {"b", "c"}], ".") == [
        "b imports c.d, which is not below it",
        "c.d imports b, which is not below it",
        "e is in no layer: add it to a table in tests/test_layers.py",
    ]
    assert circles(graph) == [["b", "c.d"]]


def test_the_tokenizer_sees_code_only() -> None:
    source = """
        use crate::a::{b, c as d}; // use crate::comment;
        /* use crate::comment; */
        fn f<'a>(x: &'a str) -> char { g("use crate::text;", r#"crate::"raw""#, '"', b'\\'') }
        #[cfg(test)]
        mod tests { use crate::test; fn f() {} }
        #[cfg(test)]
        use crate::test;
        match x { #[cfg(test)] Test(_) => crate::test::f(), _ => crate::h::f::<u8>() }
    """
    assert [word for word in tokens(source) if word in {"comment", "text", "raw", "test"}] == []
    assert {"a", "b", "c", "h", "u8"} <= set(tokens(source))
