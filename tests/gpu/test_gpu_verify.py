"""`recast verify` on a GPU: memory predicted to the byte, and what is found or refused there."""

import gc
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import recast
import torch
from conftest import build
from figures import record
from on_gpu import DEVICE, DRY, NEEDS_GPU, NOT_DRY
from recast.options import FloatName
from recast.verification import devices
from recast.verification.loaders import LoaderName
from support import environment, raw_bytes

pytestmark = NEEDS_GPU

# Sizes with tensors in both of the allocator's pools.
T5 = {"vocab_size": 5003, "d_model": 768, "d_kv": 64, "d_ff": 2048}
T5 |= {"num_layers": 3, "num_heads": 12}
LLAMA = {"vocab_size": 5003, "hidden_size": 1024, "intermediate_size": 2752}
LLAMA |= {"num_hidden_layers": 3, "num_attention_heads": 16, "num_key_value_heads": 4}


@pytest.fixture(scope="module", params=["llama", "t5", "tied"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as transformers saves it, in several shards; the folder is named after its kind."""
    sizes = T5 if request.param == "t5" else LLAMA
    path = tmp_path_factory.mktemp("built") / request.param
    build(request.param, **({} if DRY else sizes)).save_pretrained(path, max_shard_size="30MB")
    return path


@pytest.mark.parametrize("loader", ["transformers", "safetensors"])
@pytest.mark.parametrize("to", ["fp32", "fp16", "bf16"])
def test_a_models_memory_is_predicted_to_the_byte(
    built: Path, to: FloatName, loader: LoaderName, tmp_path: Path
) -> None:
    if loader == "transformers" and not DRY:
        pytest.importorskip("accelerate", reason="transformers loads onto a GPU with accelerate")
    recast.convert(built, tmp_path / "out", to=to, sync=False)
    found = recast.verify(built, tmp_path / "out", device=DEVICE, loader=loader, full=True)
    shutil.rmtree(tmp_path / "out")
    assert found.memory is not None, found.failures()
    bytes_: dict[str, int | None] = {}
    for name, figure in vars(found.memory).items():
        bytes_ |= {f"{name}_expected": figure.expected, name: figure.measured}
    record("models", model=built.name, to=to, loader=loader, **bytes_)
    assert found.passed, found.failures()
    for figure in (found.memory.requested, found.memory.allocated):
        assert DRY or figure.measured == figure.expected


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    build("llama", **({} if DRY else LLAMA)).save_pretrained(tmp_path / "model")
    recast.convert(tmp_path / "model", tmp_path / "out", to="bf16", sync=False)
    return tmp_path / "model", tmp_path / "out"


@NOT_DRY
def test_what_others_hold_and_have_freed_does_not_matter(small: tuple[Path, Path]) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = (2 ** (5 + 20 * torch.rand(200, generator=generator))).int().tolist()
    held = [torch.empty(size, dtype=torch.uint8, device=DEVICE) for size in sizes]
    del held[::2]
    before = torch.cuda.memory_allocated()
    found = recast.verify(*small, device="cuda")
    assert found.passed, found.failures()
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_a_flipped_bit_is_found_on_the_gpu(small: tuple[Path, Path]) -> None:
    path = small[1] / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(-12_345, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    found = recast.verify(*small, device=DEVICE, full=True)
    (mismatch,) = found.mismatches
    assert mismatch.count == 1
    assert not found.problems


def test_saturated_values_are_what_the_gpu_expects(tmp_path: Path) -> None:
    data = torch.tensor([7e4, -1e30, float("inf"), float("nan"), 65519.9, 65520.0])
    row = ("w", "F32", [6], data.numpy().tobytes())
    source = tmp_path / "model.safetensors"
    source.write_bytes(raw_bytes([row], {"format": "pt"}, pad_to=8))
    report = recast.convert(
        source, tmp_path / "out", to="fp16", on_overflow="saturate", verify=DEVICE, sync=False
    )
    assert report.verification is not None
    assert report.verification["passed"]
    assert report.verification["device"] == DEVICE


@NOT_DRY
def test_the_command_finds_the_gpu_by_itself(small: tuple[Path, Path]) -> None:
    command = shutil.which("recast")
    if command is None:
        pytest.skip("there is no command recast: run tests/gpu/run.py")
    result = subprocess.run(
        [command, "verify", *small, "--json"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    printed = json.loads(result.stdout)
    assert printed["device"].startswith("cuda:")
    assert printed["memory"]["reserved"]["measured"] > 0


@NOT_DRY
def test_a_model_that_does_not_fit_is_verified_but_for_its_memory(
    small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (257 << 20, 80 << 30))
    found = recast.verify(*small, device=DEVICE, full=True)
    assert found.passed, found.failures()
    assert found.values_checked == found.values_total > 0
    assert found.memory is not None
    assert found.memory.requested.measured is None
    assert any("does not fit" in note for note in found.notes)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20, 80 << 30))
    before = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
    with pytest.raises(recast.VerificationError, match="comparing requires"):
        recast.verify(*small, device=DEVICE)
    assert torch.cuda.memory_stats().get("allocation.all.allocated", 0) == before


@NOT_DRY
def test_a_gpu_beyond_the_last_is_an_error() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(recast.UsageError, match=f"this machine has {count}"):
        devices.choose_device(f"cuda:{count}")
