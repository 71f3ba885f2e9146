"""The suite for a GPU runs whole, on a CPU with small sizes, and finds every figure of its page."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from figures import TABLES, UNFINISHED, markdown, read

SUITE = Path(__file__).parent / "gpu" / "run.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is tested here, packed as a wheel is."""
    path = tmp_path_factory.mktemp("dist") / "recast.whl"
    package = Path(recast.__file__).parent
    with zipfile.ZipFile(path, "w") as archive:
        for file in (*package.rglob("*.py"), *package.glob("_core*.so")):
            archive.write(file, file.relative_to(package.parent))
    return path


def run(*options: object) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(SUITE), *map(str, options)],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_dry_run_of_the_gpu_suite_finds_every_figure(wheel: Path, tmp_path: Path) -> None:
    result = run("--dry", "--wheel", wheel, "--out", tmp_path)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    found: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())
    for name, table in TABLES.items():
        assert found["tables"][name], name
        for row in found["tables"][name]:
            assert row.keys() == {"case", *table.columns}
            assert row["case"] in found["cases"]
            assert all(value == 0 for key, value in row.items() if key.startswith("wrong"))
    ends = [case["outcome"] for case in found["cases"].values()]
    assert ends.count("passed") > 40
    assert set(ends) == {"passed", "skipped"}
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["recast"].startswith(recast.__version__)
    page = (tmp_path / "results.md").read_text()
    assert "Not measured" not in page
    assert all(table.title in page for table in TABLES.values())


def test_a_gpu_suite_that_is_stopped_writes_what_it_found(wheel: Path, tmp_path: Path) -> None:
    result = run("--dry", "--wheel", wheel, "--out", tmp_path, "--minutes", 0)
    assert result.returncode == 1
    assert "stopped before all cases had ended" in (tmp_path / "results.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["tables"].keys() == TABLES.keys()


def test_a_case_that_was_stopped_is_on_the_page() -> None:
    lines = [
        {"machine": {"GPU": "none"}},
        {"ended": "a.py::one", "outcome": UNFINISHED, "seconds": None, "reason": ""},
        {"ended": "a.py::one", "outcome": "failed", "seconds": 1.5, "reason": "a\nE   1 | 2\nb"},
        {"ended": "a.py::two", "outcome": UNFINISHED, "seconds": None, "reason": ""},
    ]
    page = markdown(read(map(json.dumps, lines)), "A note.")
    assert "| a.py::one | failed | 1.500 | 1 \\| 2 |" in page
    assert f"| a.py::two | {UNFINISHED} |  |  |" in page
    assert page.count("Not measured.") == len(TABLES)
