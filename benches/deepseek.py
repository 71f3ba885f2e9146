"""A checkpoint with the names, shapes and blocks of DeepSeek-V3, whole and sparse, or a few layers
of random codes. Every shard ends with a weight whose scales are in the next."""

import json
import math
import multiprocessing
import struct
import sys
from pathlib import Path
from typing import BinaryIO

from common import remove

HIDDEN, DENSE, EXPERT, EXPERTS, VOCABULARY = 7168, 18432, 2048, 256, 129280
BLOCK = 128
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "torch_dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    },
}

Tensor = tuple[str, tuple[int, ...]]
"""A dtype and a shape."""


def quantized(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    """A weight in blocks, and its scales."""
    grid = (-(-rows // BLOCK), -(-columns // BLOCK))
    return {name: ("F8_E4M3", (rows, columns)), f"{name}_scale_inv": ("F32", grid)}


def mlp(prefix: str, width: int) -> dict[str, Tensor]:
    """The three matrices of an MLP."""
    return {
        **quantized(f"{prefix}.gate_proj.weight", width, HIDDEN),
        **quantized(f"{prefix}.up_proj.weight", width, HIDDEN),
        **quantized(f"{prefix}.down_proj.weight", HIDDEN, width),
    }


def layer(number: int, experts: int) -> dict[str, Tensor]:
    """One layer; the first three have no experts."""
    name = f"model.layers.{number}"
    attention = f"{name}.self_attn"
    found: dict[str, Tensor] = {
        f"{name}.input_layernorm.weight": ("BF16", (HIDDEN,)),
        **quantized(f"{attention}.q_a_proj.weight", 1536, HIDDEN),
        f"{attention}.q_a_layernorm.weight": ("BF16", (1536,)),
        **quantized(f"{attention}.q_b_proj.weight", 24576, 1536),
        **quantized(f"{attention}.kv_a_proj_with_mqa.weight", 576, HIDDEN),
        f"{attention}.kv_a_layernorm.weight": ("BF16", (512,)),
        **quantized(f"{attention}.kv_b_proj.weight", 32768, 512),
        **quantized(f"{attention}.o_proj.weight", HIDDEN, 16384),
        f"{name}.post_attention_layernorm.weight": ("BF16", (HIDDEN,)),
    }
    if number < 3:
        return found | mlp(f"{name}.mlp", DENSE)
    found[f"{name}.mlp.gate.weight"] = ("BF16", (EXPERTS, HIDDEN))
    found[f"{name}.mlp.gate.e_score_correction_bias"] = ("F32", (EXPERTS,))
    for expert in range(experts):
        found |= mlp(f"{name}.mlp.experts.{expert}", EXPERT)
    return found | mlp(f"{name}.mlp.shared_experts", EXPERT)


def size(tensor: Tensor) -> int:
    """Its bytes."""
    return {"F8_E4M3": 1, "BF16": 2, "F32": 4}[tensor[0]] * math.prod(tensor[1])


def header(tensors: dict[str, Tensor]) -> bytes:
    """The header of a file."""
    entries: dict[str, object] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + size((dtype, shape))
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write(folder: Path, tensors: dict[str, Tensor], shard_bytes: int, filled: bool) -> None:
    """Cut into shards of a size, each of which ends with a quantized weight."""
    shards: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        shards[-1][name] = tensor
        held += size(tensor)
        if held > shard_bytes and tensor[0] == "F8_E4M3":
            shards.append({})
            held = 0
    unfinished = folder.with_suffix(".unfinished")
    remove(unfinished)
    unfinished.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = unfinished / f"model-{number:05}-of-{len(shards):06}.safetensors"
        weight_map |= dict.fromkeys(shard, file.name)
        head, data = header(shard), sum(map(size, shard.values()))
        with file.open("wb") as output:
            output.write(head)
            if filled:
                fill(output, shard)
            else:
                output.truncate(len(head) + data)
    index = {"metadata": {"total_size": sum(map(size, tensors.values()))}, "weight_map": weight_map}
    (unfinished / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (unfinished / "config.json").write_text(json.dumps(CONFIG, indent=2))
    unfinished.rename(folder)


def fill(output: BinaryIO, shard: dict[str, Tensor]) -> None:
    """Random codes of weights, scales of the usual size."""
    import ml_dtypes
    import numpy as np

    random = np.random.default_rng(len(shard))
    codes = (random.standard_normal(1 << 22, np.float32) * 100).clip(-448, 448)
    pool = codes.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    for dtype, shape in shard.values():
        count = math.prod(shape)
        if dtype == "F8_E4M3":
            output.write(np.resize(np.roll(pool, count % 9973), count).tobytes())
        elif dtype == "F32":
            output.write((random.random(count, np.float32) * 4e-4 + 1e-5).tobytes())
        else:
            values = random.standard_normal(count, np.float32) * np.float32(0.02)
            output.write(values.astype(ml_dtypes.bfloat16).tobytes())


def a_few_layers(data: Path) -> Path:
    """Four layers, of the last 50 of 256 experts: about 4 GB in 5 shards."""
    folder = data / "deepseek-v3-4-layers"
    if not folder.exists():
        print("writing 4 GB of random fp8 weights (once)", file=sys.stderr)
        tensors = {name: it for each in range(4) for name, it in layer(each, 50).items()}
        writer = multiprocessing.get_context("spawn").Process(
            target=write, args=(folder, tensors, 900_000_000, True)
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit("error: the checkpoint could not be written")
    return folder


def sparse(folder: Path) -> Path:
    """All of it, as files of zeros that take no space on the disk."""
    tensors: dict[str, Tensor] = {"model.embed_tokens.weight": ("BF16", (VOCABULARY, HIDDEN))}
    for number in range(61):
        tensors |= layer(number, EXPERTS)
    tensors["model.norm.weight"] = ("BF16", (HIDDEN,))
    tensors["lm_head.weight"] = ("BF16", (VOCABULARY, HIDDEN))
    write(folder, tensors, 4_300_000_000, filled=False)
    return folder
