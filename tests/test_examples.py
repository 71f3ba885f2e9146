"""The examples do what they say."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import environment, files

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "llama2_7b_memory.py"


def test_the_llama_example_arrives_at_what_was_measured(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env=environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    table = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line}
    sixteen = "12.551277160644531 12.551277160644531 12.582542419433594 12.582542419433594"
    assert table["fp32"] == (
        ["25.102554321289062", "25.102554321289062", "25.165069580078125", "25.165069580078125"]
    )
    assert table["fp16"] == table["bf16"] == sixteen.split()
    assert "6,738,415,616 parameters" in result.stdout
    # (25.165069580078125 - 25.102554321289062) x 2^30 and its like, by hand.
    assert "67,125,248 bytes in fp32" in result.stdout
    assert "33,570,816 bytes in bf16" in result.stdout
    assert result.stdout.splitlines()[-1] == "ok: exact to the byte"
    assert files(tmp_path) == set()
