"""Small models of transformers, quantized by its own code, as their publishers lay them out."""

import json
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from compressed_tensors.compressors import FloatQuantizationCompressor, MXFP4PackedCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from tensors import DTYPES
from transformers.integrations.finegrained_fp8 import Fp8Quantize

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

Tensors = dict[str, torch.Tensor]
Quantize = Callable[[str, torch.Tensor], Tensors]

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
LATENT = {"q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16}
EXPERTS = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
HEAVY = "heavily_compressed_attention"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "ministral3": ("Ministral3", {"head_dim": 32}),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **LATENT,
            **EXPERTS,
            "v_head_dim": 32,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 64,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "deepseek_v4": (
        "DeepseekV4",
        {
            "hidden_size": 64,
            "moe_intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "q_lora_rank": 32,
            "o_groups": 2,
            "o_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "index_n_heads": 4,
            "index_head_dim": 32,
            "index_topk": 4,
            "num_nextn_predict_layers": 0,
            "layer_types": [HEAVY, "compressed_sparse_attention", HEAVY],
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
            "compress_rates": {"compressed_sparse_attention": 2, HEAVY: 4},
            "expert_dtype": "fp4",
        },
    ),
    # In the published models both sizes are the same, so that no shape tells the two axes apart.
    "gpt_oss": (
        "GptOss",
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "head_dim": 16,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
        },
    ),
}


def tiny(kind: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    """A small model of random weights, the same ones every time."""
    name, sizes = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **sizes, **changes})
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).to(dtype).eval()


def lay(folder: Path, tensors: Tensors, config: dict[str, Any] | None, shards: int = 1) -> Path:
    """A directory of shards, in which no tensor has its neighbors by name beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    names = ["model.safetensors"]
    if shards > 1:
        names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
        where = {name: names[at % shards] for at, name in enumerate(tensors)}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    for at, name in enumerate(names):
        own = {key: tensors[key] for n, key in enumerate(tensors) if n % shards == at}
        save_file(own, folder / name, {"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def is_linear(name: str, tensor: torch.Tensor) -> bool:
    """Whether the publishers of block fp8 quantize a tensor."""
    skipped = ("embed_tokens", "lm_head", "mlp.gate.")
    return tensor.dim() == 2 and not any(part in name for part in skipped)


def quantized(
    folder: Path,
    kind: str,
    quantize: Quantize,
    config: dict[str, Any] | None,
    *,
    shards: int = 1,
    chosen: Callable[[str, torch.Tensor], bool] = is_linear,
) -> Path:
    """A small model as transformers saves it, its linear layers quantized."""
    model = tiny(kind)
    model.save_pretrained(folder)
    saved = folder / "model.safetensors"
    tensors: Tensors = {}
    for name, tensor in load_file(saved).items():
        tensors |= quantize(name, tensor) if chosen(name, tensor) else {name: tensor}
    saved.unlink()
    values = json.loads((folder / "config.json").read_text())
    if config is not None:
        values["quantization_config"] = config
    return lay(folder, tensors, values, shards)


def by_transformers(block: list[int] | None, scale_fmt: str | None = None) -> Quantize:
    """Quantizes as transformers does; what does not fit the blocks stays as it is."""
    config = types.SimpleNamespace(weight_block_size=block, scale_fmt=scale_fmt)
    operation: Any = Fp8Quantize(types.SimpleNamespace(quantization_config=config))
    return lambda name, tensor: dict(operation.convert({name: tensor}))


def by_compressed_tensors(block: list[int]) -> Quantize:
    """Quantizes as compressed-tensors does, which fills ragged blocks with zeros first."""
    args = QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=block)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)

    def quantize(name: str, tensor: torch.Tensor) -> Tensors:
        tiles = tiled(tensor.float(), block)
        scale, _ = calculate_qparams(tiles.amin((-3, -1)), tiles.amax((-3, -1)), args)
        parts = {"weight": tensor.float(), "weight_scale": scale}
        codes = FloatQuantizationCompressor.compress(parts, scheme)["weight"]
        return {name: codes, f"{name}_scale_inv": scale}

    return quantize


def tiled(tensor: torch.Tensor, block: list[int]) -> torch.Tensor:
    """A matrix as blocks, with zeros where the last ones have no values."""
    rows, cols = (-(-size // side) for size, side in zip(tensor.shape, block, strict=True))
    padded = torch.zeros(rows * block[0], cols * block[1], dtype=tensor.dtype)
    padded[: tensor.shape[0], : tensor.shape[1]] = tensor
    return padded.reshape(rows, block[0], cols, block[1])


def with_scales(quantize: Quantize, change: Callable[[torch.Tensor], torch.Tensor]) -> Quantize:
    """The same with scales of another dtype."""

    def changed(name: str, tensor: torch.Tensor) -> Tensors:
        parts = quantize(name, tensor)
        return {key: change(x) if "_scale" in key else x for key, x in parts.items()}

    return changed


def block_config(block: list[int] | None, **more: Any) -> dict[str, Any]:
    """What `config.json` says of block fp8."""
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": block,
        "modules_to_not_convert": ["lm_head", "model.embed_tokens", "re:.*mlp.gate$"],
        **more,
    }


def fine_grained(
    folder: Path,
    kind: str = "qwen3",
    block: tuple[int, int] = (64, 32),
    scale: str = "float32",
    **more: Any,
) -> Path:
    """Block fp8 as DeepSeek published it first and others do since; `scale` is a dtype."""
    side = list(block)
    quantize = by_transformers(side)
    config = block_config(side)
    if scale in ("float8_e8m0fnu", "uint8"):
        quantize = by_transformers(side, "ue8m0")
        config["scale_fmt"] = "ue8m0"
    stored = getattr(torch, scale)
    move = (lambda x: x.view(stored)) if scale == "uint8" else (lambda x: x.to(stored))
    return quantized(folder, kind, with_scales(quantize, move), config, **more)


def ragged(folder: Path, kind: str = "deepseek_v3", side: int = 40, shards: int = 3) -> Path:
    """Blocks that fit few of the layers, as those of DeepSeek's `kv_a_proj_with_mqa`."""
    block = [side, side]
    return quantized(folder, kind, by_compressed_tensors(block), block_config(block), shards=shards)


def deepseek_v4(folder: Path, shards: int = 2) -> Path:
    """DeepSeek-V4's names: scales are called `scale`, and experts hold two codes a byte."""
    blocks = by_transformers([32, 16], "ue8m0")
    args = preset_name_to_scheme("MXFP4", ["Linear"])

    def quantize(name: str, tensor: torch.Tensor) -> Tensors:
        scale = name.removesuffix("weight") + "scale"
        if ".experts." not in name:
            return dict(zip([name, scale], blocks(name, tensor).values(), strict=True))
        groups = tensor.reshape(len(tensor), -1, 32)
        scales, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args.weights)
        parts = MXFP4PackedCompressor.compress({"weight": tensor, "weight_scale": scales}, args)
        return {
            name: parts["weight_packed"].view(torch.int8),
            scale: parts["weight_scale"].view(torch.float8_e8m0fnu),
        }

    return quantized(
        folder,
        "deepseek_v4",
        quantize,
        block_config([32, 16], scale_fmt="ue8m0", modules_to_not_convert=["lm_head"]),
        shards=shards,
        chosen=lambda name, _: re.search(r"attn\.w|experts\.", name) is not None,
    )


def mistral(
    folder: Path, scale: str = "weight_scale_inv", active: str = "activation_scale"
) -> Path:
    """One scale a matrix and one for its inputs, as Mistral publishes its own models."""
    whole = by_transformers(None)

    def quantize(name: str, tensor: torch.Tensor) -> Tensors:
        codes, inverse = whole(name, tensor).values()
        stem = name.removesuffix("weight")
        parts = {name: codes, stem + scale: inverse.reshape(())}
        return parts | {stem + active: torch.tensor(0.5)}

    config = block_config(None, activation_scheme="static")
    return quantized(folder, "ministral3", quantize, config)


def mistral_native(folder: Path) -> Path:
    """The same as in Mistral's own files, which have no config that transformers reads."""
    mistral(folder, "qscale_weight", "qscale_act")
    (folder / "config.json").unlink()
    return folder


def auto_fp8(folder: Path) -> Path:
    """AutoFP8's names, with the scales of a cache in one of the layers."""
    whole = by_transformers(None)

    def quantize(name: str, tensor: torch.Tensor) -> Tensors:
        codes, inverse = whole(name, tensor).values()
        stem = name.removesuffix("weight")
        parts = {name: codes, stem + "weight_scale": inverse.reshape(())}
        parts[stem + "input_scale"] = torch.tensor([0.25])
        if "k_proj" in name:
            parts[stem + "k_scale"] = torch.tensor(1.0)
        return parts

    config = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
    return quantized(folder, "llama", quantize, config)


def fbgemm(folder: Path) -> Path:
    """One scale a row, as Meta published Llama 3.1 405B."""

    def quantize(name: str, tensor: torch.Tensor) -> Tensors:
        # `quantize_fp8_per_row` of fbgemm, whose kernels need a GPU.
        scale = tensor.float().abs().amax(1, keepdim=True) / 448
        codes = (tensor.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {name: codes, f"{name}_scale": scale}

    config = {
        "quant_method": "fbgemm_fp8",
        "activation_scale_ub": 1200.0,
        "modules_to_not_convert": ["lm_head"],
    }
    return quantized(folder, "llama", quantize, config, shards=2)


def gpt_oss(folder: Path, spelling: str = "_", exponents: tuple[int, int] = (100, 141)) -> Path:
    """MXFP4 experts: all codes, and scales from what is 0 in fp16 to the largest that it holds."""

    def quantize(name: str, tensor: torch.Tensor) -> Tensors:
        experts, columns, rows = tensor.shape
        shape = (experts, rows, columns // 32)
        draw = torch.Generator().manual_seed(len(name))
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=draw)
        scales = torch.randint(*exponents, shape, dtype=torch.uint8, generator=draw)
        return {f"{name}{spelling}blocks": blocks, f"{name}{spelling}scales": scales}

    config = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    return quantized(
        folder,
        "gpt_oss",
        quantize,
        config,
        shards=2,
        chosen=lambda name, tensor: tensor.dim() == 3,
    )


def logits(model: Any) -> torch.Tensor:
    """What a model answers to a few tokens."""
    with torch.inference_mode():
        answer: torch.Tensor = model.eval()(torch.arange(1, 25).reshape(2, 12)).logits
    return answer


def loaded(folder: Path, to: str, quantization: Any = None) -> Any:
    """A model as transformers loads it; with a configuration that says so, dequantized."""
    more = {} if quantization is None else {"quantization_config": quantization}
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(folder, dtype=DTYPES.get(to, to), **more)
