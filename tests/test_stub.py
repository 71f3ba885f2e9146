"""The stub of the extension module is what the module is."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from recast import _core

ROOT = Path(__file__).parents[1]

# What a stub cannot say or need not: pyo3's `__all__`, that a class has no subclasses, and a
# default that the module shows as `...`.
ALLOWED = r"""
recast\._core\.__all__
recast\._core\.[A-Z][A-Za-z]*
recast\._core\.Checkpoint\.plan
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_stub_agrees_with_the_module(tmp_path: Path) -> None:
    pytest.importorskip("mypy.stubtest")
    (tmp_path / "allowed").write_text(ALLOWED)
    # The stub needs nothing of these, and reading all of them takes a minute.
    others = "[mypy]\n[mypy-torch.*,transformers.*,safetensors.*]\nfollow_imports = skip\n"
    (tmp_path / "mypy.ini").write_text(others)
    options = ["--mypy-config-file", str(tmp_path / "mypy.ini")]
    options += ["--ignore-disjoint-bases", "--ignore-unused-allowlist", "--allowlist"]
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *options, tmp_path / "allowed", "recast._core"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_stub_names_what_the_module_has_and_nothing_else() -> None:
    stub = ast.parse((ROOT / "python" / "recast" / "_core.pyi").read_text())
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    names = {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    values = [node.target for node in stub.body if isinstance(node, ast.AnnAssign)]
    names |= {target.id for target in values if isinstance(target, ast.Name)} - {"__version__"}
    assert names == {name for name in dir(_core) if not name.startswith("_")}
    for name, node in classes.items():
        members = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        assert members == {item for item in vars(getattr(_core, name)) if not item.startswith("_")}


def test_the_stub_explains_what_the_module_explains_in_the_same_words() -> None:
    stub = ast.parse((ROOT / "python" / "recast" / "_core.pyi").read_text())
    plans = [node for node in stub.body if isinstance(node, ast.ClassDef) and "Plan" in node.name]
    assert len(plans) == 3
    for plan in plans:
        core = getattr(_core, plan.name)
        assert ast.get_docstring(plan) == inspect.getdoc(core)
        for member in plan.body:
            if isinstance(member, ast.FunctionDef):
                documented = inspect.getdoc(getattr(core, member.name))
                assert ast.get_docstring(member) == documented, member.name
