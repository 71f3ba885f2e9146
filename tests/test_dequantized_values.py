"""Every pair of a code of 4 bits and a scale has the value that it has in torch and ml_dtypes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dequantized_pairs import compared

ROWS = 3 * 2 * 4
"""Targets, judges, schemes."""


def test_every_pair_of_a_code_and_a_scale_has_its_value(tmp_path: Path) -> None:
    found = list(compared(tmp_path, 8))
    assert len(found) == ROWS
    assert [row for row in found if row[2]] == []


@pytest.mark.slow
@pytest.mark.parametrize("level", ["portable", "avx2", "avx512"])
def test_every_pair_has_its_value_at_every_level_of_the_cpu(level: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("dequantized_pairs.py")
    run = subprocess.run(
        [sys.executable, script, tmp_path],
        env={**os.environ, "RECAST_SIMD": level},
        capture_output=True,
        text=True,
    )
    if "no such instruction set" in run.stderr:
        pytest.skip(f"this CPU does not run {level}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == ROWS
