"""Every code with every scale, and random binary32 scales, at every CPU level: the products are
numpy's and torch's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
HERE = Path(__file__).parent
LEVELS = ["portable", "avx2", "avx512"]


def run(level: str, what: str) -> list[tuple[str, str, str, int, int]]:
    environment = {**os.environ, "RECAST_SIMD": level}
    command = [sys.executable, str(HERE / "products.py"), what]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "no such instruction set" in result.stderr:
        pytest.skip(f"this CPU does not run {level}")
    assert result.returncode == 0, result.stderr
    rows: list[tuple[str, str, str, int, int]] = json.loads(result.stdout)
    return rows


def check(rows: list[tuple[str, str, str, int, int]], kinds: int, count: int) -> None:
    assert [row for row in rows if row[4]] == []
    assert len(rows) == 3 * kinds
    assert {row[3] for row in rows} == {count}


@pytest.mark.parametrize("level", LEVELS)
def test_every_code_with_every_power_of_two_at_every_level(level: str) -> None:
    check(run(level, "float8_e8m0fnu"), 4, 1 << 16)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["bfloat16", "float16"])
@pytest.mark.parametrize("level", LEVELS)
def test_every_code_with_every_scale_of_16_bits_at_every_level(level: str, scale: str) -> None:
    check(run(level, scale), 4, 1 << 24)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_a_hundred_million_products_with_random_scales_at_every_level(level: str) -> None:
    check(run(level, "100000000"), 1, 100_000_000 // 128 * 128)
