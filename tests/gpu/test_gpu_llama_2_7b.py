"""Llama-2-7B on a GPU: the memory of each dtype, as a well-known article measured it
(`examples/llama2_7b_memory.py`), and every value.

41 GB on disk at most: the model in fp32, and one conversion of it at a time.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from figures import record
from on_gpu import (
    DEVICE,
    DRY,
    NEEDS_GPU,
    Llama,
    grown,
    held,
    peak,
    tidy,
    timed,
    write_model,
)
from recast.gpu.predict import ROUND, predict_here
from recast.verification.result import MemoryFigure
from tensors import DTYPES

pytestmark = NEEDS_GPU

LLAMA = Llama(2, 256, 256, 300) if DRY else Llama(32, 4096, 11008, 32000)
PARAMETERS = 1_072_384 if DRY else 6_738_415_616
TENSORS = 21 if DRY else 291
DISK = 0 if DRY else 45 << 30
# The bytes of a value after each method.
WIDTHS = {"half": 2, "float": 4}


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("llama-2-7b")
    free = shutil.disk_usage(root).free
    if free < DISK:
        pytest.skip(f"needs {DISK >> 30} GiB of disk at {root}; {free >> 30} are free")
    yield write_model(root / "fp32", LLAMA.files(), LLAMA.config())
    shutil.rmtree(root)


@pytest.fixture(scope="module", params=["bf16", "fp16"])
def converted(
    request: pytest.FixtureRequest, seven_billion: Path
) -> Iterator[tuple[Path, recast.Report]]:
    """A conversion of the model; the folder is named after its dtype."""
    out = seven_billion.with_name(request.param)
    report = recast.convert(seven_billion, out, to=request.param, on_overflow="inf", sync=False)
    yield out, report
    shutil.rmtree(out)


def test_llama_2_7b_in_fp32_takes_the_memory_of_its_dtypes(seven_billion: Path) -> None:
    load_and_cast(seven_billion, "fp32", ["half", "float"])


def test_llama_2_7b_in_16_bits_takes_the_memory_of_its_dtypes(
    converted: tuple[Path, recast.Report],
) -> None:
    load_and_cast(converted[0], converted[0].name, ["float", "half"])


def load_and_cast(source: Path, dtype: str, steps: list[str]) -> None:
    """Loads the model, and casts it with its own methods: every step takes what it should."""
    tidy()
    before = held()
    module = without_memory(source)
    parameters = [parameter.numel() for parameter in module.parameters()]
    buffers = [buffer.numel() for buffer in module.buffers()]
    assert sum(parameters) == PARAMETERS
    # The buffers are fp32 until they are cast.
    width, wide = DTYPES[dtype].itemsize, 4
    work: Callable[[], object] = partial(recast.load_into, module, source, device=DEVICE)
    for step in ("load_into", *steps):
        if step != "load_into":
            width = wide = WIDTHS[step]
            work = getattr(module, step)
        with peak(before) as most:
            # What a step returns may be the model, which nothing may hold in the end.
            seconds = timed(work)[0]
            highest = most()
        memory = grown(before)
        requested = PARAMETERS * width + sum(buffers) * wide
        # Every weight is a multiple of 512 bytes and fills its block; a buffer is smaller.
        allocated = PARAMETERS * width + ROUND * len(buffers)
        record(
            "article",
            loaded=dtype,
            step=f"recast.{step}" if step == "load_into" else f".{step}()",
            requested_expected=requested,
            requested=memory.requested,
            allocated_expected=allocated,
            allocated=memory.allocated,
            gib=f"{memory.allocated / 2**30:.9f}",
            peak=highest,
            reserved=memory.reserved,
            seconds=seconds,
        )
        sizes = [count * width for count in parameters] + [count * wide for count in buffers]
        assert predict_here(sizes)[:2] == (requested, allocated)
        assert DRY or (memory.requested, memory.allocated) == (requested, allocated)
        assert {str(tensor.device) for tensor in module.parameters()} == {DEVICE}
    del module, work
    tidy()
    assert held().requested == before.requested


def without_memory(source: Path) -> Any:
    """The model of transformers on the meta device, but for the buffers that no file holds."""
    from transformers import AutoConfig, LlamaForCausalLM

    with torch.device("meta"):
        module: Any = LlamaForCausalLM(AutoConfig.from_pretrained(source))
    rotary = module.model.rotary_emb
    module.model.rotary_emb = type(rotary)(rotary.config).to(DEVICE)
    return module


def test_llama_2_7b_is_exact_in_every_value_and_every_byte_of_memory(
    converted: tuple[Path, recast.Report], seven_billion: Path
) -> None:
    out, report = converted
    found = recast.verify(seven_billion, out, device=DEVICE, full=True)
    sampled = recast.verify(seven_billion, out, device=DEVICE)
    assert found.memory is not None, found.failures()
    record(
        "verified",
        to=out.name,
        convert=report.seconds,
        full=found.seconds,
        sample=sampled.seconds,
        values=found.values_checked,
        wrong=sum(mismatch.count for mismatch in found.mismatches),
        requested=found.memory.requested.measured or 0,
        allocated=found.memory.allocated.measured or 0,
    )
    assert found.passed, found.failures()
    assert sampled.passed, sampled.failures()
    assert report.parameters == found.values_checked == PARAMETERS
    assert found.tensors_checked == TENSORS
    exact = MemoryFigure(2 * PARAMETERS, 2 * PARAMETERS)
    assert DRY or found.memory.requested == found.memory.allocated == exact
