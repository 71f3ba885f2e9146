"""Small checkpoints in the formats of compressed-tensors, ComfyUI and NVIDIA's ModelOpt."""

import json
from pathlib import Path
from typing import Any

import comfy_kitchen
import torch
from comfy_kitchen.tensor import TensorCoreFP8Layout
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from loguru import logger
from quantized_models import Tensors, lay, quantized, tiled, tiny
from safetensors.torch import load_file, save_file

# It warns of every layer that blocks do not fit.
logger.disable("compressed_tensors")

FP8 = torch.float8_e4m3fn


def scheme(preset: str, **changes: Any) -> QuantizationScheme:
    """A preset of llm-compressor; the changes are to what it says of weights."""
    found = preset_name_to_scheme(preset, ["Linear"])
    args = {**found.weights.model_dump(), **changes}
    found.weights = QuantizationArgs(**args)
    return found


def extremes(weight: torch.Tensor, args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the greatest value under each scale."""
    if args.strategy == "tensor":
        return weight.amin().reshape(1), weight.amax().reshape(1)
    if args.strategy == "block":
        tiles = tiled(weight, args.block_structure)
        return tiles.amin((-3, -1)), tiles.amax((-3, -1))
    groups = weight.reshape(len(weight), -1, args.group_size or weight.shape[1])
    return groups.amin(-1), groups.amax(-1)


def compressed(
    folder: Path,
    chosen: QuantizationScheme,
    dtype: torch.dtype = torch.bfloat16,
    shard_size: str = "40KB",
    **sizes: Any,
) -> Path:
    """A model as llm-compressor saves it; scales have the dtype that the model had."""
    model = tiny("llama", dtype, **sizes)
    config = QuantizationConfig(config_groups={"group_0": chosen}, ignore=["lm_head"])
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        args = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        if args is None:
            continue
        weight = module.weight.detach()
        whole = None
        if hasattr(module, "weight_global_scale"):
            whole = generate_gparam(weight.float().amin(), weight.float().amax())
            module.weight_global_scale.data = whole
        scale, _ = calculate_qparams(*extremes(weight, args), args, global_scale=whole)
        module.weight_scale.data.copy_(scale)
        for name in ("input_scale", "input_global_scale"):
            # Nothing has been measured: there are no inputs.
            if hasattr(module, name):
                getattr(module, name).data.fill_(0.5)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder, max_shard_size=shard_size)
    compressor.update_config(str(folder))
    return folder


def comfy(
    folder: Path, spelling: str, dtype: torch.dtype = FP8, source: torch.dtype = torch.bfloat16
) -> Path:
    """A diffusion model in one file, in one of the spellings of ComfyUI's scaled fp8."""
    torch.manual_seed(0)
    tensors: Tensors = {}
    layers: dict[str, Any] = {}
    told = {"format": str(dtype).removeprefix("torch.")}
    for name, shape in {"blocks.0.attn.qkv": (96, 32), "blocks.0.mlp.out": (32, 72)}.items():
        weight = torch.randn(shape).to(source)
        # ComfyUI finds the scale in fp32.
        scale = weight.float().abs().amax() / torch.finfo(dtype).max
        codes, params = TensorCoreFP8Layout.quantize(weight, scale, dtype)
        tensors[f"{name}.weight"] = codes
        tensors[f"{name}.bias"] = torch.randn(shape[0]).to(source)
        if spelling == "old":
            tensors[f"{name}.scale_weight"] = params.scale
            tensors[f"{name}.scale_input"] = torch.tensor(0.5)
        else:
            tensors[f"{name}.weight_scale"] = params.scale
            tensors[f"{name}.input_scale"] = torch.tensor(0.5)
        if spelling == "layers":
            text = json.dumps(told).encode()
            tensors[f"{name}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
        layers[name] = told
    tensors["blocks.0.norm.weight"] = torch.randn(32).to(source)
    metadata = {"modelspec.title": "small"}
    if spelling == "old":
        tensors["scaled_fp8"] = torch.zeros(2).to(dtype)
    if spelling == "metadata":
        said = {"format_version": "1.0", "layers": layers}
        metadata["_quantization_metadata"] = json.dumps(said)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "diffusion.safetensors", metadata)
    return folder


def modelopt_quantized(name: str, weight: torch.Tensor, algorithm: str) -> Tensors:
    """What ModelOpt writes for a weight, by the formulas of its `modelopt.torch.quantization`."""
    stem = name.removesuffix("weight")
    active = {stem + "input_scale": torch.tensor(0.5)}
    weight = weight.float()
    largest = weight.abs().amax()
    if algorithm == "FP8":
        scale = largest / 448
        return {name: (weight / scale).to(FP8), stem + "weight_scale": scale, **active}
    if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
        rows = weight.abs().amax(1) / 448
        return {name: (weight / rows[:, None]).to(FP8), stem + "weight_scale": rows}
    if algorithm == "FP8_PB_WO":
        tiles = tiled(weight, [128, 128])
        blocks = tiles.abs().amax((-3, -1), keepdim=True) / 448
        padded = (tiles / blocks).reshape(len(tiles) * 128, -1)
        codes = padded[: len(weight), : weight.shape[1]].to(FP8)
        return {name: codes, stem + "weight_scale": blocks}
    assert algorithm == "NVFP4"
    second = largest / (6 * 448)
    blocks = weight.reshape(len(weight), -1, 16)
    scales = (blocks.abs().amax(-1) / 6 / second).to(FP8)
    values = blocks / (scales.float() * second)[..., None]
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = (values.abs()[..., None] - table).abs().argmin(-1) + 8 * (values < 0)
    codes = codes.reshape(len(weight), -1).to(torch.uint8)
    return {
        name: codes[:, ::2] | codes[:, 1::2] << 4,
        stem + "weight_scale": scales,
        stem + "weight_scale_2": second,
        **active,
    }


def modelopt(folder: Path, algorithm: str, *, in_config: bool = False) -> Path:
    """A model as ModelOpt exports it, with its sidecar or, as newer ones have it, in the config."""
    quantization = {
        "quant_algo": algorithm,
        "kv_cache_quant_algo": None,
        "group_size": 16,
        "exclude_modules": ["lm_head"],
    }
    producer = {"name": "modelopt", "version": "0.33.0"}
    said = {"quant_method": "modelopt", "ignore": ["lm_head"], "producer": producer}
    quantized(
        folder,
        "llama",
        lambda name, weight: modelopt_quantized(name, weight, algorithm),
        {**said, "quant_algo": algorithm} if in_config else None,
        shards=2,
    )
    if not in_config:
        sidecar = {"producer": producer, "quantization": quantization}
        (folder / "hf_quant_config.json").write_text(json.dumps(sidecar))
    return folder


def fused_experts(folder: Path) -> Path:
    """Experts in one tensor each, with one grid of scales an expert, ragged in both directions."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randn(3, 96, 80, generator=draw).to(FP8)
    scales = torch.rand(3, 2, 3, generator=draw) / 448
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 32]}}
    name = "model.layers.0.mlp.experts.gate_up_proj"
    return lay(folder, {name: codes, f"{name}_scale_inv": scales}, config)


def shared_scale(folder: Path) -> Path:
    """Tables of embeddings that have one scale together."""
    draw = torch.Generator().manual_seed(0)
    tables = {f"embed.tables.{n}": torch.randn(24, 16, generator=draw).to(FP8) for n in range(5)}
    return lay(folder, {**tables, "embed.weight_scale": torch.tensor(0.0123)}, {}, shards=2)


def swizzled(scales: torch.Tensor) -> torch.Tensor:
    """Block scales as the kernels want them."""
    moved: torch.Tensor = comfy_kitchen.to_blocked(scales, flatten=False)
    return moved


def tensors_of(folder: Path) -> Tensors:
    """All tensors of a directory."""
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found
