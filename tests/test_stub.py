"""The stub of the extension module is what the module is."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a stub cannot say or need not: pyo3's `__all__`, that a class has no subclasses, and a
# default that the module shows as `...`.
ALLOWED = r"""
recast\._core\.__all__
recast\._core\.[A-Z][A-Za-z]*
recast\._core\.Checkpoint\.plan
"""


def test_the_stub_agrees_with_the_module(tmp_path: Path) -> None:
    pytest.importorskip("mypy.stubtest")
    (tmp_path / "allowed").write_text(ALLOWED)
    options = ["--ignore-disjoint-bases", "--ignore-unused-allowlist", "--allowlist"]
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *options, tmp_path / "allowed", "recast._core"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
