"""Casts on the host against those of torch on the GPU."""

from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from figures import record
from on_gpu import DEVICE, DRY, NEEDS_GPU, differences
from recast.options import FloatName
from safetensors.torch import save_file
from sources import FP8, as_torch, codes, double_edges
from tensors import DTYPES

pytestmark = NEEDS_GPU

PART = 1 << 28
# A dry run takes a little of each part.
TAKEN = 1 << 10 if DRY else PART


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_all_inputs_of_32_bits_are_cast_as_on_the_gpu(to: FloatName) -> None:
    inputs = wrong = 0
    # To pinned memory, which is there already, a GPU copies many times as fast.
    host = torch.empty(TAKEN, pin_memory=not DRY)
    for start in range(-(1 << 31), 1 << 31, PART):
        x = torch.arange(start, start + TAKEN, dtype=torch.int64, device=DEVICE).to(torch.int32)
        x = x.view(torch.float32)
        host.copy_(x)
        wrong += differences(recast.cast(host, to).to(DEVICE), x.to(DTYPES[to]))
        inputs += x.numel()
    record("casts", source="fp32", to=to, values=inputs, wrong=wrong)
    assert wrong == 0
    assert DRY or inputs == 1 << 32


@pytest.mark.parametrize("source", ["fp16", "bf16"])
@pytest.mark.parametrize("to", ["fp32", "fp16", "bf16"])
def test_all_inputs_of_16_bits_are_cast_as_on_the_gpu(source: str, to: FloatName) -> None:
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(DTYPES[source])
    wrong = differences(recast.cast(x, to).to(DEVICE), x.to(DEVICE).to(DTYPES[to]))
    record("casts", source=source, to=to, values=x.numel(), wrong=wrong)
    assert wrong == 0


@pytest.fixture(scope="module")
def others() -> dict[str, torch.Tensor]:
    """What recast casts from only: codes of 8 bits, and doubles that may round another way."""
    edges = as_torch(double_edges()[:: 997 if DRY else 1])
    tensors = {name: as_torch(codes()).view(getattr(torch, name)) for name in FP8}
    return {**tensors, "float64": edges[~edges.isnan()]}


@pytest.mark.parametrize("to", ["fp32", "fp16", "bf16"])
def test_doubles_and_all_inputs_of_8_bits_are_cast_as_on_the_gpu(
    to: FloatName, others: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    for name, x in others.items():
        wrong = differences(recast.cast(x, to).to(DEVICE), x.to(DEVICE).to(DTYPES[to]))
        record("casts", source=name, to=to, values=x.numel(), wrong=wrong)
        assert wrong == 0
    save_file(others, tmp_path / "model.safetensors", {"format": "pt"})
    options: dict[str, Any] = {"on_overflow": "saturate", "unscaled_fp8": True, "verify": DEVICE}
    recast.convert(tmp_path / "model.safetensors", tmp_path / "out", to=to, **options)
