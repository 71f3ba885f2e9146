"""What only a GPU can show. `make test-gpu` runs it and prints figures; no time is asserted."""

import gc
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from conftest import build
from recast.options import FloatName
from recast.verification import devices
from recast.verification.loaders import LoaderName
from recast.verification.result import MemoryFigure
from safetensors.torch import load_file, save_file
from sources import FP8, as_torch, codes, double_edges
from support import raw_bytes, raw_header, recast_process
from tensors import DTYPES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a GPU that torch can use; there is none"
    ),
]

Files = list[dict[str, list[int]]]

PARAMETERS = 6_738_415_616
DISK = 45 << 30
T5 = {"vocab_size": 5003, "d_model": 768, "d_kv": 64, "d_ff": 2048}
T5 |= {"num_layers": 3, "num_heads": 12}
LLAMA = {"vocab_size": 5003, "hidden_size": 1024, "intermediate_size": 2752}
LLAMA |= {"num_hidden_layers": 3, "num_attention_heads": 16, "num_key_value_heads": 4}
CHUNK = 1 << 25
INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def llama_2_7b(
    layers: int = 32, width: int = 4096, inner: int = 11008, words: int = 32000
) -> Files:
    """Names and shapes of Llama-2-7B, a file at a time."""
    files: Files = [{"model.embed_tokens.weight": [words, width]}, {}, {}]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        file = files[layer * 3 // layers]
        for name in "qkvo":
            file[f"{at}.self_attn.{name}_proj.weight"] = [width, width]
        file[f"{at}.mlp.gate_proj.weight"] = file[f"{at}.mlp.up_proj.weight"] = [inner, width]
        file[f"{at}.mlp.down_proj.weight"] = [width, inner]
        file[f"{at}.input_layernorm.weight"] = [width]
        file[f"{at}.post_attention_layernorm.weight"] = [width]
    files[2].update({"model.norm.weight": [width], "lm_head.weight": [words, width]})
    return files


def write_model(root: Path, files: Files, device: str) -> None:
    """Writes fp32 shards of random values: of every bit pattern in every other tensor, NaN and
    infinity too, else as a model has them."""
    root.mkdir()
    generator = torch.Generator(device).manual_seed(0)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shapes.items():
            size = 4 * int(torch.Size(shape).numel())
            entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
            weight_map[name], end = file, end + size
        with (root / file).open("wb") as out:
            out.write(raw_header(entries, pad_to=8))
            for place, shape in enumerate(shapes.values()):
                for chunk in values(int(torch.Size(shape).numel()), place % 2, device, generator):
                    chunk.cpu().numpy().tofile(out)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "config.json").write_text('{"model_type": "llama", "dtype": "float32"}')


def values(
    count: int, every_pattern: int, device: str, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        options: dict[str, Any] = {"device": device, "generator": generator}
        if every_pattern:
            low, high = -(1 << 31), 1 << 31
            yield torch.randint(low, high, (size,), dtype=torch.int64, **options).to(torch.int32)
        else:
            yield torch.randn(size, **options) * 0.02


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("llama-2-7b")
    free = shutil.disk_usage(root).free
    if free < DISK:
        pytest.skip(f"needs {DISK >> 30} GiB of disk at {root}; {free >> 30} are free")
    write_model(root / "model", llama_2_7b(), "cuda")
    yield root / "model"
    shutil.rmtree(root)


@pytest.mark.parametrize("to", ["bf16", "fp16"])
def test_llama_2_7b_is_exact_in_every_value_and_every_byte_of_memory(
    to: FloatName, seven_billion: Path
) -> None:
    out = seven_billion.with_name(to)
    started = time.perf_counter()
    report = recast.convert(seven_billion, out, to=to, on_overflow="inf", sync=False)
    converted = time.perf_counter() - started
    found = recast.verify(seven_billion, out, device="cuda", full=True)
    sampled = recast.verify(seven_billion, out, device="cuda")
    shutil.rmtree(out)
    print(
        f"\n{to}: convert {converted:.1f} s, verify every value {found.seconds:.1f} s, "
        f"a sample {sampled.seconds:.1f} s, on {torch.cuda.get_device_name()}\n{found.memory}"
    )
    assert found.passed, found.failures()
    assert sampled.passed, sampled.failures()
    assert report.parameters == found.values_checked == PARAMETERS
    assert found.tensors_checked == 291
    assert found.memory is not None
    # Every weight is a multiple of 512 bytes and fills its block, so both are the same figure.
    exact = MemoryFigure(2 * PARAMETERS, 2 * PARAMETERS)
    assert found.memory.requested == found.memory.allocated == exact


def differences(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """How many values differ: in class for NaN, in bits for all else."""
    same = ours.view(INTEGERS[ours.dtype]) == theirs.view(INTEGERS[theirs.dtype])
    return int((~(same | (ours.isnan() & theirs.isnan()))).sum())


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_all_inputs_of_32_bits_are_cast_as_on_the_gpu(to: FloatName) -> None:
    inputs = 0
    for start in range(-(1 << 31), 1 << 31, 1 << 28):
        stop = start + (1 << 28)
        x = torch.arange(start, stop, dtype=torch.int64, device="cuda").to(torch.int32)
        x = x.view(torch.float32)
        ours = recast.cast(x.cpu(), to)
        assert differences(ours.cuda(), x.to(DTYPES[to])) == 0
        inputs += x.numel()
    assert inputs == 1 << 32


@pytest.mark.parametrize("source", ["fp16", "bf16"])
@pytest.mark.parametrize("to", ["fp32", "fp16", "bf16"])
def test_all_inputs_of_16_bits_are_cast_as_on_the_gpu(source: str, to: FloatName) -> None:
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(DTYPES[source])
    assert differences(recast.cast(x, to).cuda(), x.cuda().to(DTYPES[to])) == 0


@pytest.mark.parametrize("to", ["fp32", "fp16", "bf16"])
def test_doubles_and_all_inputs_of_8_bits_are_cast_as_on_the_gpu(
    to: FloatName, tmp_path: Path
) -> None:
    edges = as_torch(double_edges())
    tensors = {name: as_torch(codes()).view(getattr(torch, name)) for name in FP8}
    tensors["double"] = edges[~edges.isnan()]
    for x in tensors.values():
        assert differences(recast.cast(x, to).cuda(), x.cuda().to(DTYPES[to])) == 0
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    options: dict[str, Any] = {"on_overflow": "saturate", "unscaled_fp8": True, "verify": "cuda"}
    recast.convert(tmp_path / "model.safetensors", tmp_path / "out", to=to, **options)


def model_of(kind: str) -> Any:
    """A model with tensors in both of the allocator's pools."""
    return build(kind, **(T5 if kind == "t5" else LLAMA))


@pytest.mark.parametrize("loader", ["transformers", "safetensors"])
@pytest.mark.parametrize("to", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", ["llama", "t5", "tied"])
def test_a_models_memory_is_predicted_to_the_byte(
    kind: str, to: FloatName, loader: LoaderName, tmp_path: Path
) -> None:
    model_of(kind).save_pretrained(tmp_path / "model", max_shard_size="30MB")
    recast.convert(tmp_path / "model", tmp_path / "out", to=to, sync=False)
    found = recast.verify(
        tmp_path / "model", tmp_path / "out", device="cuda", loader=loader, full=True
    )
    print(f"\n{kind} {to} {loader}: {found.memory}")
    assert found.passed, found.failures()
    assert found.memory is not None
    for figure in (found.memory.requested, found.memory.allocated):
        assert figure.measured == figure.expected


@pytest.mark.parametrize("to", [None, "fp32", "fp16", "bf16"])
def test_what_is_loaded_onto_the_gpu_is_exact_in_memory_and_values(
    to: FloatName | None, tmp_path: Path
) -> None:
    """Tensors larger than a buffer and smaller ones, of every bit pattern."""
    write_model(tmp_path / "model", llama_2_7b(2, 2048, 5504, 32000), "cuda")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()

    def held(which: str) -> int:
        return int(torch.cuda.memory_stats()[f"{which}_bytes.all.current"])

    before = held("requested"), held("allocated")
    started = time.perf_counter()
    found = recast.load(tmp_path / "model", to, device="cuda", on_overflow="inf")
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    size = sum(tensor.nbytes for tensor in found.values())
    # Every tensor is a multiple of 512 bytes and fills its block.
    assert (held("requested") - before[0], held("allocated") - before[1]) == (size, size)
    started = time.perf_counter()
    theirs = {
        name: tensor.to(DTYPES[to]) if to else tensor
        for file in sorted((tmp_path / "model").glob("*.safetensors"))
        for name, tensor in load_file(file, device="cuda").items()
    }
    torch.cuda.synchronize()
    other = time.perf_counter() - started
    print(f"\n{to}: recast.load {seconds:.2f} s, load_file and .to() {other:.2f} s")
    assert found.keys() == theirs.keys()
    assert sum(differences(found[name], theirs[name]) for name in theirs) == 0
    streamed = dict(recast.tensors(tmp_path / "model", to, device="cuda", on_overflow="inf"))
    assert sum(differences(streamed[name], theirs[name]) for name in theirs) == 0


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    model_of("llama").save_pretrained(tmp_path / "model")
    recast.convert(tmp_path / "model", tmp_path / "out", to="bf16", sync=False)
    return tmp_path / "model", tmp_path / "out"


def test_what_others_hold_and_have_freed_does_not_matter(small: tuple[Path, Path]) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = (2 ** (5 + 20 * torch.rand(200, generator=generator))).int().tolist()
    held = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]
    del held[::2]
    before = torch.cuda.memory_allocated()
    found = recast.verify(*small, device="cuda")
    assert found.passed, found.failures()
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_a_flipped_bit_is_found_on_the_gpu(small: tuple[Path, Path]) -> None:
    path = small[1] / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(-123_457, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    found = recast.verify(*small, device="cuda", full=True)
    (mismatch,) = found.mismatches
    assert mismatch.count == 1
    assert not found.problems


def test_saturated_values_are_what_the_gpu_expects(tmp_path: Path) -> None:
    data = torch.tensor([7e4, -1e30, float("inf"), float("nan"), 65519.9, 65520.0])
    row = ("w", "F32", [6], data.numpy().tobytes())
    source = tmp_path / "model.safetensors"
    source.write_bytes(raw_bytes([row], {"format": "pt"}, pad_to=8))
    report = recast.convert(
        source, tmp_path / "out", to="fp16", on_overflow="saturate", verify="cuda", sync=False
    )
    assert report.verification is not None
    assert report.verification["passed"]
    assert report.verification["device"].startswith("cuda:")


def test_the_command_finds_the_gpu_by_itself(small: tuple[Path, Path]) -> None:
    result = recast_process("verify", *small, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    printed = json.loads(result.stdout)
    assert printed["device"].startswith("cuda:")
    assert printed["memory"]["reserved"]["measured"] > 0


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20, 80 << 30))
    with pytest.raises(recast.VerificationError, match="does not fit"):
        recast.verify(*small, device="cuda")
    assert torch.cuda.memory_stats().get("allocation.all.allocated", 0) == before


def test_a_gpu_beyond_the_last_is_an_error() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(recast.UsageError, match=f"this machine has {count}"):
        devices.choose_device(f"cuda:{count}")
