"""What the cases on a GPU share: the device, its memory, the clock, and models written fast.

With `RECAST_GPU_DRY=1` all of it runs on a CPU, with small sizes, to find plain errors where there
is no GPU. Memory is not measured then: what is asserted of it begins with `DRY or`.
"""

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pytest
import torch
from recast.gpu.predict import Memory
from support import raw_header

T = TypeVar("T")

DRY = os.environ.get("RECAST_GPU_DRY") == "1"
DEVICE: Literal["cpu", "cuda:0"] = "cpu" if DRY else "cuda:0"
CORES = len(os.sched_getaffinity(0))

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not DRY and not torch.cuda.is_available(),
        reason="needs a GPU that torch can use; there is none",
    ),
]
NOT_DRY = pytest.mark.skipif(DRY, reason="a dry run has no GPU")

CHUNK = 1 << 25
INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def differences(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """How many values differ: in class for NaN, in bits for all else."""
    assert ours.shape == theirs.shape
    same = ours.view(INTEGERS[ours.dtype]) == theirs.view(INTEGERS[theirs.dtype])
    return int((~(same | (ours.isnan() & theirs.isnan()))).sum())


def all_differences(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> int:
    """How many values of all tensors differ."""
    assert ours.keys() == theirs.keys()
    return sum(differences(ours[name], theirs[name]) for name in ours)


# Memory


def wait() -> None:
    """Waits until the GPU has done what it was given."""
    if not DRY:
        torch.cuda.synchronize()


def tidy() -> None:
    """Gives back what nothing holds."""
    if not DRY:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def held() -> Memory:
    """What torch counts on the GPU at this moment; nothing in a dry run."""
    if DRY:
        return Memory(0, 0, 0)
    stats = torch.cuda.memory_stats()
    names = ("requested_bytes", "allocated_bytes", "reserved_bytes")
    return Memory(*(int(stats.get(f"{name}.all.current", 0)) for name in names))


def grown(before: Memory) -> Memory:
    """By how much that grew."""
    wait()
    return Memory(*(now - then for now, then in zip(held(), before, strict=True)))


@contextmanager
def peak(before: Memory) -> Iterator[Callable[[], int]]:
    """A function that gives the most bytes that were allocated since, beyond those `before`."""
    if not DRY:
        torch.cuda.reset_peak_memory_stats()
    yield lambda: 0 if DRY else torch.cuda.max_memory_allocated() - before.allocated


# Time


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """The seconds that `work` takes, until the GPU is done, and its result."""
    wait()
    started = time.perf_counter()
    result = work()
    wait()
    return time.perf_counter() - started, result


def medians(
    contestants: dict[str, Callable[[], object]],
    rounds: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """The median seconds of each, which take turns, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            before()
            seconds = timed(work)[0]
            if number:
                found[name].append(seconds)
    return {name: statistics.median(each) for name, each in found.items()}


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Lets torch use so many threads; all other tests leave it one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Models

Files = list[dict[str, list[int]]]
"""The names and shapes of the tensors of each file."""


class Llama(NamedTuple):
    """The sizes of a Llama."""

    layers: int
    width: int
    inner: int
    words: int

    def files(self) -> Files:
        """Names and shapes, a file at a time."""
        files: Files = [{"model.embed_tokens.weight": [self.words, self.width]}, {}, {}]
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            file = files[layer * 3 // self.layers]
            for name in "qkvo":
                file[f"{at}.self_attn.{name}_proj.weight"] = [self.width, self.width]
            for name in ("gate", "up"):
                file[f"{at}.mlp.{name}_proj.weight"] = [self.inner, self.width]
            file[f"{at}.mlp.down_proj.weight"] = [self.width, self.inner]
            file[f"{at}.input_layernorm.weight"] = [self.width]
            file[f"{at}.post_attention_layernorm.weight"] = [self.width]
        head = [self.words, self.width]
        files[2].update({"model.norm.weight": [self.width], "lm_head.weight": head})
        return files

    def config(self) -> dict[str, Any]:
        """What `config.json` says."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "dtype": "float32",
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "vocab_size": self.words,
            "num_attention_heads": self.width // 128,
            "tie_word_embeddings": False,
        }


def write_model(root: Path, files: Files, config: dict[str, Any]) -> Path:
    """Writes fp32 shards of random values: of every bit pattern in every other tensor, NaN and
    infinity too, else as a model has them."""
    root.mkdir()
    generator = torch.Generator(DEVICE).manual_seed(0)
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
                for chunk in _values(int(torch.Size(shape).numel()), place % 2, generator):
                    chunk.cpu().numpy().tofile(out)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "config.json").write_text(json.dumps(config))
    return root


def _values(count: int, every_pattern: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    options: dict[str, Any] = {"device": DEVICE, "generator": generator}
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        if every_pattern:
            low, high = -(1 << 31), 1 << 31
            yield torch.randint(low, high, (size,), dtype=torch.int64, **options).to(torch.int32)
        else:
            yield torch.randn(size, **options) * 0.02


def stored_bytes(model: Path) -> int:
    """The bytes of its safetensors files."""
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))
