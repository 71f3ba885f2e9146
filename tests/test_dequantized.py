"""A quantized checkpoint becomes what everybody else who dequantizes it makes of it, bit by bit."""

from pathlib import Path

import pytest
import recast
import torch
from dequantizers import found
from quantized_cases import CASES
from recast.options import FloatName
from support import STORED, recast_here

TARGETS: list[FloatName] = ["bf16", "fp16", "fp32"]


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_every_judge_makes_the_same_bytes_of_the_source(
    name: str, to: FloatName, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    case.write(tmp_path / "in")
    source, out = tmp_path / "in", tmp_path / "out"
    run = recast_here("convert", source, out, "--to", to, "--no-sync")
    assert run.returncode == 0, run.stderr
    before, ours = found(source), found(out)
    whole, *others = (judge(source, to) for judge in case.judges)
    assert ours.keys() == whole.keys()
    for key in plain(source, to):
        assert ours[key] == before[key]
        assert ours.pop(key)[0] in ("BF16", "F16", "F32", "I64")
    for key, (dtype, shape, data) in ours.items():
        assert dtype == STORED[to], key
        for values in (whole, *others):
            assert values.get(key, (shape, data)) == (shape, data), key


def plain(source: Path, to: FloatName) -> set[str]:
    """What is not quantized and stays as it is: integers, and what libraries keep."""
    tensors = recast.plan(source, to=to).tensors
    return {
        tensor.name
        for tensor in tensors
        if tensor.action == "keep" or tensor.source_dtype.startswith("I")
        if tensor.action != "dequantize"
    }
