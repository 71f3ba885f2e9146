"""`recast.load` onto a GPU: its memory, its values, and its time beside that of others."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from figures import record
from on_gpu import (
    CORES,
    DEVICE,
    DRY,
    NEEDS_GPU,
    Llama,
    all_differences,
    grown,
    held,
    medians,
    peak,
    stored_bytes,
    tidy,
    torch_threads,
    write_model,
)
from recast.options import FloatName
from safetensors.torch import load_file
from tensors import DTYPES

pytestmark = NEEDS_GPU

Tensors = dict[str, torch.Tensor]

# Tensors larger than a buffer, and smaller ones.
SMALL = Llama(2, 128, 256, 300) if DRY else Llama(2, 2048, 5504, 32000)
# Two layers of Llama-2-7B, 2.7 GB.
LARGE = Llama(2, 128, 256, 300) if DRY else Llama(2, 4096, 11008, 32000)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("small")
    yield write_model(root / "model", SMALL.files(), SMALL.config())
    shutil.rmtree(root)


@pytest.mark.parametrize("to", [None, "fp32", "fp16", "bf16"])
def test_what_is_loaded_onto_the_gpu_is_exact_in_memory_and_values(
    to: FloatName | None, small: Path
) -> None:
    tidy()
    before = held()
    found = recast.load(small, to, device=DEVICE, on_overflow="inf")
    memory = grown(before)
    size = sum(tensor.nbytes for tensor in found.values())
    theirs = by_safetensors(small, DTYPES[to or "fp32"])
    wrong = all_differences(found, theirs)
    del found
    # The same device by another name.
    device = DEVICE.partition(":")[0]
    streamed = recast.tensors(small, to, device=device, on_overflow="inf")
    streamed_wrong = all_differences(dict(streamed), theirs)
    record(
        "loaded",
        to=to or "as stored",
        size=size,
        requested=memory.requested,
        allocated=memory.allocated,
        wrong=wrong,
        streamed=streamed_wrong,
    )
    assert wrong == streamed_wrong == 0
    # Every tensor is a multiple of 512 bytes and fills its block.
    assert DRY or (memory.requested, memory.allocated) == (size, size)


def by_safetensors(model: Path, dtype: torch.dtype) -> Tensors:
    return {
        name: tensor.to(dtype)
        for file in shards(model)
        for name, tensor in load_file(file, device=DEVICE).items()
    }


def by_transformers(model: Path, dtype: torch.dtype) -> Tensors:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    has_accelerate = find_spec("accelerate") is not None
    options: dict[str, Any] = {"device_map": {"": DEVICE}} if has_accelerate else {}
    load = transformers.LlamaForCausalLM.from_pretrained
    module: Any = load(model, dtype=dtype, local_files_only=True, **options)
    if not has_accelerate:
        module = module.to(DEVICE)
    state: Tensors = module.state_dict()
    return state


def by_fastsafetensors(model: Path, dtype: torch.dtype) -> Tensors:
    fastsafetensors = pytest.importorskip("fastsafetensors")
    # GPUDirect Storage requires a driver of its own.
    with fastsafetensors.fastsafe_open(shards(model), device=DEVICE, nogds=True) as opened:
        return {name: opened.get_tensor(name).to(dtype) for name in opened.keys()}  # noqa: SIM118


def by_runai_model_streamer(model: Path, dtype: torch.dtype) -> Tensors:
    runai = pytest.importorskip("runai_model_streamer")
    with runai.SafetensorsStreamer() as streamer:
        streamer.stream_files(shards(model))
        return {name: tensor.to(DEVICE).to(dtype) for name, tensor in streamer.get_tensors()}


def shards(model: Path) -> list[str]:
    return sorted(map(str, model.glob("*.safetensors")))


RIVALS: dict[str, Callable[[Path, torch.dtype], Tensors]] = {
    "safetensors": by_safetensors,
    "transformers": by_transformers,
    "fastsafetensors": by_fastsafetensors,
    "runai-model-streamer": by_runai_model_streamer,
}


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A model in each dtype; the folder is named after it."""
    root = tmp_path_factory.mktemp("large")
    model = write_model(root / "fp32", LARGE.files(), LARGE.config())
    if request.param != "fp32":
        to = request.param
        recast.convert(model, root / to, to=to, on_overflow="inf", sync=False)
    yield root / request.param
    shutil.rmtree(root)


@pytest.mark.parametrize("rival", RIVALS)
def test_the_time_to_load_bf16_onto_the_gpu_beside_others(rival: str, source: Path) -> None:
    peaks: dict[str, int] = {}

    def ours() -> Tensors:
        with peak(held()) as most:
            found = recast.load(source, "bf16", device=DEVICE, on_overflow="inf")
            peaks["ours"] = most()
        return found

    def theirs() -> Tensors:
        with peak(held()) as most, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = RIVALS[rival](source, torch.bfloat16)
            peaks["theirs"] = most()
        return found

    wrong = all_differences(ours(), theirs())
    with torch_threads(CORES):
        found = medians({"ours": ours, "theirs": theirs}, 3, tidy)
    record(
        "times",
        source=source.name,
        to="bf16",
        size=stored_bytes(source) / 1e9,
        rival=rival,
        **found,
        times=found["theirs"] / found["ours"],
        our_peak=peaks["ours"] / 1e9,
        their_peak=peaks["theirs"] / 1e9,
        wrong=wrong,
    )
