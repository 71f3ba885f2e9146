"""The checkpoints that the benchmarks convert, built once.

numpy is imported only where it is needed, to keep the benchmarks' own process small: the peak RSS
of its children starts at its own.
"""

import json
import math
import multiprocessing
import struct
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import remove

SHARDS = 4
FULL_MEGABYTES = 2170


def llama_config(hidden: int, intermediate: int, layers: int, vocabulary: int) -> dict[str, object]:
    """A config.json that is sufficient for LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128,
        "num_key_value_heads": hidden // 128,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }


def llama(megabytes: int) -> dict[str, object]:
    """The config of a Llama of this size in fp32; 2,170 MB are 0.54 billion weights."""
    scale = math.sqrt(megabytes / FULL_MEGABYTES)
    hidden = max(128, round(16 * scale) * 128)
    return llama_config(hidden, hidden * 11 // 4, 8, round(32_000 * scale))


def llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    vocabulary = config["vocab_size"]
    result: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name in "qkvo":
            result[f"{prefix}.self_attn.{name}_proj.weight"] = (hidden, hidden)
        result[f"{prefix}.mlp.gate_proj.weight"] = (intermediate, hidden)
        result[f"{prefix}.mlp.up_proj.weight"] = (intermediate, hidden)
        result[f"{prefix}.mlp.down_proj.weight"] = (hidden, intermediate)
        result[f"{prefix}.input_layernorm.weight"] = (hidden,)
        result[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
    result["model.norm.weight"] = (hidden,)
    result["lm_head.weight"] = (vocabulary, hidden)
    return result


def split(shapes: dict[str, tuple[int, ...]], count: int) -> list[dict[str, tuple[int, ...]]]:
    """The tensors in `count` shards of about the same size, in order."""
    total, done = sum(map(math.prod, shapes.values())), 0
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(count)]
    for name, shape in shapes.items():
        shards[min(count - 1, done * count // total)][name] = shape
        done += math.prod(shape)
    return [shard for shard in shards if shard]


def write_folder(
    folder: Path,
    shards: list[dict[str, tuple[int, ...]]],
    write: Callable[[Path, dict[str, tuple[int, ...]]], object],
    config: object,
) -> Path:
    """Write shards, index and config with `write(file, shard)`; the folder appears complete."""
    unfinished = folder.with_suffix(".unfinished")
    remove(unfinished)
    unfinished.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write(unfinished / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    total = 4 * sum(math.prod(shape) for shard in shards for shape in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (unfinished / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (unfinished / "config.json").write_text(json.dumps(config, indent=2))
    unfinished.rename(folder)
    return folder


def header(shapes: dict[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """The header of an fp32 file, and how many bytes of data follow it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offset


def write_sparse(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of zeros that takes no space on the disk."""
    head, size = header(shapes)
    with file.open("wb") as output:
        output.write(head)
        output.truncate(len(head) + size)


def write_small(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A small file of values that are exact in bf16."""
    head, size = header(shapes)
    file.write_bytes(head + array("f", [0.5]).tobytes() * (size // 4))


def write_random(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of normally distributed values, like the weights of a model."""
    import numpy as np
    from safetensors.numpy import save_file

    seed = int(file.name.split("-")[1])
    random = np.random.default_rng(seed)
    tensors = {
        name: random.standard_normal(shape, np.float32) * np.float32(0.02)
        for name, shape in shapes.items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def random_llama(data: Path, megabytes: int) -> Path:
    """The folder of a random Llama in fp32, built if it is missing."""
    full = megabytes == FULL_MEGABYTES
    folder = data / ("llama-0.5b-fp32" if full else f"llama-{megabytes}mb-fp32")
    config = llama(megabytes)
    if not folder.exists():
        print(f"writing {megabytes:,} MB of random fp32 weights (once)", file=sys.stderr)
        shards = split(llama_shapes(config), SHARDS)
        writer = multiprocessing.get_context("spawn").Process(
            target=write_folder, args=(folder, shards, write_random, config)
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit("error: the checkpoint could not be written")
    elif json.loads((folder / "config.json").read_text()) != config:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def tiny_tensors(count: int) -> dict[str, tuple[int, ...]]:
    """Tensors of 16 elements."""
    return {f"model.layers.{number}.weight": (16,) for number in range(count)}


def tiny_file(data: Path, tensors: int) -> Path:
    """One file of tiny tensors."""
    file = data / f"tiny-{tensors}.safetensors"
    if not file.exists():
        data.mkdir(exist_ok=True)
        write_small(file, tiny_tensors(tensors))
    return file


def tiny_shards(data: Path, tensors: int, shards: int) -> Path:
    """A checkpoint of tiny tensors in many shards."""
    folder = data / f"tiny-{tensors}-in-{shards}"
    if not folder.exists():
        write_folder(folder, split(tiny_tensors(tensors), shards), write_small, {})
    return folder


def sparse(folder: Path, nbytes: float, tensors: int, shards: int) -> Path:
    """A sparse checkpoint of about this many bytes in equal tensors."""
    elements = max(1, int(nbytes) // 4 // tensors)
    shapes: dict[str, tuple[int, ...]]
    shapes = {f"model.layers.{number}.weight": (elements,) for number in range(tensors)}
    return write_folder(folder, split(shapes, shards), write_sparse, {"dtype": "float32"})
