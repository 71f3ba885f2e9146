"""A type checker knows what recast takes and gives: users' code passes, misspelt options do not."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import recast

# Minutes with a cold cache.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tests" / "typing"
Checker = Callable[[Path, Path], list[int]]
MISSPELT = [
    *('to="bf61"', 'on_overflow="saturat"', 'io="mmapp"', 'verify="gpu"', 'loader="trans'),
    '"passes"',
]


def mypy(script: Path, folder: Path) -> list[int]:
    """The lines that mypy finds fault with."""
    options = [
        "--strict",
        "--cache-dir",
        str(folder),
        "--config-file",
        str(ROOT / "pyproject.toml"),
    ]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(script)],
        env={**os.environ, "MYPYPATH": str(ROOT / "python")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    return [int(line) for line in re.findall(rf"{script.name}:(\d+): error", result.stdout)]


def pyright(script: Path, folder: Path) -> list[int]:
    """The lines that pyright finds fault with."""
    config = {
        "include": [script.name],
        "extraPaths": [str(ROOT / "python")],
        "typeCheckingMode": "strict",
    }
    shutil.copy(script, folder)
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    options = ["--project", str(folder), "--pythonpath", sys.executable, "--outputjson"]
    result = subprocess.run(
        [sys.executable, "-m", "pyright", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert found["summary"]["filesAnalyzed"] == 1
    errors = [each for each in found["generalDiagnostics"] if each["severity"] == "error"]
    return [each["range"]["start"]["line"] + 1 for each in errors]


CHECKERS = [
    pytest.param(
        checker,
        id=checker.__name__,
        marks=pytest.mark.skipif(
            find_spec(checker.__name__) is None, reason=f"{checker.__name__} is not installed"
        ),
    )
    for checker in (mypy, pyright)
]


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_users_script_passes(checker: Checker, tmp_path: Path) -> None:
    assert checker(SCRIPTS / "user.py", tmp_path) == []


def test_that_script_uses_every_public_name() -> None:
    text = (SCRIPTS / "user.py").read_text(encoding="utf-8")
    assert set(re.findall(r"\brecast\.(\w+)", text)) == set(recast.__all__)


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_misspelt_option_or_field_is_an_error(checker: Checker, tmp_path: Path) -> None:
    script = SCRIPTS / "misspelt.py"
    lines = script.read_text(encoding="utf-8").splitlines()
    wrong = [
        number
        for number, line in enumerate(lines, 1)
        if any(misspelt in line for misspelt in MISSPELT)
    ]
    assert len(wrong) == len(MISSPELT)
    assert sorted(set(checker(script, tmp_path))) == wrong
