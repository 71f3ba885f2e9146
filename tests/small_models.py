"""Small models of all classes of transformers and diffusers: which there are, what shrinks them."""

import contextlib
import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto import configuration_auto, modeling_auto

MOST_PARAMETERS = 50_000_000

# What makes a model small, by the names that configurations use. A width must stay a multiple of
# the heads, so all of them are powers of two.
SIZES = {
    r"(n|num|encoder|decoder|text_encoder|num_(?!feat_)\w+)_layers?": 2,
    r"depth": 2,
    r"\w*vocab_size\w*": 128,
    r"(\w+_)?hidden_size|d_model|n_embd|embed_dim|hidden_dim|dim|encoder_hidden_dim|d_embed": 32,
    r"\w*(intermediate_size|ffn_dim|inner_dim|d_ff|ffn_hidden_size|mlp_dim)": 64,
    r"(num|n|encoder|decoder)?_?(attention_)?heads?|num_attention_heads|n_head": 4,
    r"num_key_value_heads|num_kv_heads": 4,
    r"head_dim|d_kv|qk_nope_head_dim|qk_rope_head_dim|v_head_dim": 8,
    r"\w*_lora_rank": 16,
    r"(n_routed|n_shared|num|num_local|moe_num|n)_experts": 4,
    r"num_experts_per_tok|topk_group|n_group|num_expert_groups": 1,
    r"first_k_dense_replace|first_num_dense_layers|num_dense_layers": 1,
    r"max_position_embeddings|n_positions|max_seq_len|max_source_positions": 64,
    r"\w*_token_(id|index)": 1,
    r"(?!n_)\w*_groups": 1,
    r"context_size": 16,
    r"upsample_initial_channel": 64,
    r"num_\w+_rope_pairs\w*": 1,
    r"output_dim|emb_dim": 32,
    r"mamba_(n|num)_heads": 8,
    r"mamba_(d_head|head_dim)": 8,
}
DIFFUSERS_SIZES = {
    r"num_layers|num_\w*layers|depth|num_blocks|num_\w+_blocks": 1,
    r"attention_head_dim|head_dim": 12,
    r"num_attention_heads|num_heads|num_key_value_heads": 2,
    r"in_channels|out_channels|latent_channels|z_dim": 4,
    r"\w*(text|caption|image|pooled|cross_attention|joint_attention|freq|ffn)\w*_dim|ffn_dim": 32,
    r"hidden_size|inner_dim|base_dim|dim|model_channels": 24,
    r"model_dim|ff_dim": 128,
    r"time_dim": 64,
}

# The same for lists, with a value for each stage.
LISTS = {
    r"depths|layers_per_block|num_(conv_)?blocks|blocks_per_group": 1,
    r"hidden_sizes|embed_dims|\w*channels|\w*_dims|dims|widths|neck_hidden_sizes": 32,
    r"num_(attention_)?heads": 1,
}
# What the rules above get wrong, by the model type or the class.
ROPE = {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [2, 1, 1]}
PROTEINA = {"nlayers": 2, "token_dim": 48, "nheads": 2, "pair_repr_dim": 32, "dim_cond": 32}
SERIES = {"prediction_length": 4}
OWN: dict[str, dict[str, Any]] = {
    "AutoencoderKLMiniMaxH3": {
        "decoder_num_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_attention_head_dim": 16,
    },
    "AutoencoderKLMiniMaxH3Audio": {"encoder_dim": 4, "latent_dim": 128, "decoder_dim": 128},
    "CosmosControlNetModel": {"extra_pos_embed_type": "learnable"},
    "Krea2Transformer2DModel": {
        "axes_dims_rope": (4, 4, 4),
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
    },
    "RFD4ProteinaAutoencoder": {
        **PROTEINA,
        "atom37_mask": [[True] * 37] * 147,
        "allowed_residue_types": [[True] * 147] * 7,
    },
    "RFD4ProteinaTransformer": {**PROTEINA, "tri_mult_c": 16},
    "WanAnimateTransformer3DModel": {"in_channels": 12, "latent_channels": 4},
    "WanVACETransformer3DModel": {"vace_layers": [0]},
    "apertus1p5": {"image_token_offset": 16, "audio_token_offset": 32},
    "apertus1p5_vision_tokenizer": {"codebook_size": 16, "base_channels": 32},
    "autoformer": SERIES,
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "deepseek_ocr2_text": {
        "mlp_layer_types": ["dense", "sparse"],
        "num_experts_per_tok": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "dots3_note_audio_encoder": {
        "adapter_input_size": 32,
        "adapter_out_dim": 32,
        "conv_output_size": 512,
    },
    "dots3_note_text": {"head_dim": 16, "per_layer_config": {}},
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "ernie4_5_vl_moe_text": {
        "moe_k": 1,
        "moe_intermediate_size": [32, 16],
        "rope_parameters": ROPE,
    },
    "esmfold2": {"single_inputs_size": 99},
    "informer": SERIES,
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 32},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "time_series_transformer": SERIES,
    "wavtokenizer": {"codebook_dim": 32},
    "wavtokenizer_encoder": {"codebook_dim": 32, "codebook_size": 16},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
}

Build = Callable[[], Any]
BROKEN = "cannot be built from its defaults"


class LeftOut(Exception):
    """Why a class is not judged; the part before the colon says what kind of reason it is."""


@contextlib.contextmanager
def itself(what: str) -> Iterator[None]:
    """A class that the library cannot handle by itself says nothing of recast."""
    try:
        yield
    except ImportError as error:
        raise LeftOut(f"needs an optional package: {line(error)}") from error
    except Exception as error:
        raise LeftOut(f"the library cannot {what} it: {line(error)}") from error


def line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def model_types() -> list[str]:
    """Every model type of transformers."""
    return sorted({*vars(configuration_auto)["CONFIG_MAPPING_NAMES"], *auto_classes()})


def auto_classes() -> dict[str, set[str]]:
    """The classes that the `Auto` classes load, by model type."""
    names: dict[str, set[str]] = {}
    for variable, entries in vars(modeling_auto).items():
        if variable.endswith("_MAPPING_NAMES") and "CONFIG" not in variable:
            for key, value in entries.items():
                names.setdefault(key, set()).update([value] if isinstance(value, str) else value)
    return names


def classes_of(model_type: str) -> dict[str, Any]:
    """The model classes of a model type by name."""
    names = [name for name in auto_classes().get(model_type, ()) if hasattr(transformers, name)]
    auto = {name: getattr(transformers, name) for name in names}
    found = dict(auto)
    folder = f"transformers.models.{configuration_auto.model_type_to_module_name(model_type)}"
    with contextlib.suppress(ImportError):
        for module in pkgutil.iter_modules(importlib.import_module(folder).__path__):
            if module.name.startswith("modeling_"):
                with contextlib.suppress(ImportError):
                    found |= own_classes(importlib.import_module(f"{folder}.{module.name}"))
    own = {name: found[name] for name in sorted(found) if owner(found[name]) in (None, model_type)}
    config = {"config_class": CONFIG_MAPPING[model_type]} if model_type in CONFIG_MAPPING else {}
    if own or not config or config["config_class"].model_type != model_type:
        return own
    # The classes of another type, and a configuration of its own.
    return {name: type(name, (cls,), config) for name, cls in sorted(auto.items())}


def owner(cls: Any) -> str | None:
    """The model type of a class; `None` for the stand-in of one that needs another package."""
    with contextlib.suppress(ImportError):
        return getattr(getattr(cls, "config_class", None), "model_type", None)
    return None


def own_classes(module: Any) -> dict[str, Any]:
    return {
        name: cls
        for name, cls in vars(module).items()
        if isinstance(cls, type)
        and issubclass(cls, PreTrainedModel)
        and cls.__module__ == module.__name__
        and cls.config_class
        and not re.search("Pre[Tt]rained", name)
    }


def diffusers_classes() -> dict[str, Any]:
    """The model classes of diffusers by name; none where it is not installed."""
    try:
        base = importlib.import_module("diffusers.models.modeling_utils").ModelMixin
    except ImportError:
        return {}
    for package in map(importlib.import_module, ("diffusers.models", "diffusers.pipelines")):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            with contextlib.suppress(Exception):
                importlib.import_module(module.name)
    found = [base]
    for cls in found:
        found += [sub for sub in cls.__subclasses__() if sub not in found]
    found = [cls for cls in found[1:] if cls.__module__.startswith("diffusers.")]
    return {cls.__name__: cls for cls in found if not cls.__name__.endswith("Mixin")}


def small(cls: Any) -> Build:
    """What builds a model of a class of transformers that has few parameters."""
    return first_small(partial(configured, cls, sizes) for sizes in attempts())


def small_of_diffusers(cls: Any) -> Build:
    """What builds a model of a class of diffusers that has few parameters."""
    return first_small(partial(changed, cls, sizes) for sizes in attempts_of_diffusers())


def first_small(tries: Iterable[Callable[[], Build]]) -> Build:
    failures = []
    for attempt in tries:
        try:
            build = attempt()
            with torch.device("meta"):
                count = sum(tensor.numel() for tensor in build().state_dict().values())
        except Exception as error:
            kind = "needs an optional package" if isinstance(error, ImportError) else BROKEN
            failures.append(f"{kind}: {line(error)}")
            continue
        if count <= MOST_PARAMETERS:
            return build
        failures.append(f"cannot be made small: {count / 1e6:.0f} million parameters")
    # The last one changes nothing, so what it says is of the library.
    raise LeftOut(failures[-1] if failures[-1] == failures[0] else f"{failures[-1]}; {failures[0]}")


def attempts() -> Iterator[dict[str, int]]:
    """All of the sizes first, also for what has no default, then those that fit any model."""
    yield SIZES | LISTS
    yield SIZES
    yield {**SIZES, "": 0}
    safe = ("layers", "depth", "vocab", "experts", "group", "position")
    yield {pattern: size for pattern, size in SIZES.items() if any(s in pattern for s in safe)}
    yield {}


def attempts_of_diffusers() -> Iterator[dict[str, int]]:
    yield DIFFUSERS_SIZES | LISTS
    yield DIFFUSERS_SIZES
    yield {r"num_layers|num_\w*layers|depth": 1}
    yield {}


def configured(cls: Any, sizes: dict[str, int]) -> Build:
    config = cls.config_class()
    shrink(config, sizes, set())
    values = config.to_dict()
    if sizes:
        adapt(values)
    config = cls.config_class.from_dict(values)  # as a saved one is read
    return lambda: cls(config)


def shrink(config: PretrainedConfig, sizes: dict[str, int], done: set[int]) -> None:
    if id(config) in done:
        return
    done.add(id(config))
    chosen = choose_layers(config) if sizes else set()
    for key, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            shrink(value, sizes, done)
        elif key not in chosen or isinstance(value, list | tuple):
            with contextlib.suppress(Exception):
                setattr(config, key, shrunk(key, value, sizes))


def shrunk(key: str, value: Any, sizes: dict[str, int]) -> Any:
    """A value of a configuration, or a smaller one."""
    fits = partial(re.fullmatch, string=key)
    if isinstance(value, int) and not isinstance(value, bool):
        own = sizes.keys() - LISTS.keys()
        return min([value, *(sizes[pattern] for pattern in own if fits(pattern))])
    if isinstance(value, list | tuple) and value and {type(item) for item in value} == {int}:
        for pattern, size in LISTS.items():
            if pattern in sizes and fits(pattern):
                return type(value)(min(item, size) for item in value)
    if value is None and "" in sizes:
        return next((size for pattern, size in SIZES.items() if fits(pattern)), None)
    return value


def choose_layers(config: PretrainedConfig) -> set[str]:
    """One layer of each kind, where lists say of which kind each layer is; what is settled."""
    depth = getattr(config, "num_hidden_layers", None)
    lists = {
        key: value
        for key, value in vars(config).items()
        if isinstance(value, list | tuple) and depth and depth > 2 and len(value) == depth
    }
    if lists:
        kinds: dict[str, int] = {}
        for layer, kind in enumerate(zip(*lists.values(), strict=True)):
            kinds.setdefault(repr(kind), layer)
        layers = sorted({0, 1, *kinds.values()})[:8]
        for key, value in lists.items():
            setattr(config, key, [value[layer] for layer in layers])
        config.num_hidden_layers = len(layers)
    return {"num_hidden_layers", *lists} if lists else set()


def adapt(values: dict[str, Any]) -> None:
    """Changes what must fit the sizes, in a configuration and its parts."""
    depth = values.get("num_hidden_layers") or 0
    if isinstance(values.get("out_features"), list) and isinstance(depth, int):
        # A backbone gives the last of its layers to the model around it.
        count = len(values["out_features"])
        values["num_hidden_layers"] = depth = max(depth, count)
        for key in ("out_features", "stage_names"):
            del values[key]
        values["out_indices"] = list(range(depth - count + 1, depth + 1))
    if isinstance(values.get("per_layer_config"), dict):
        of_layers = values["per_layer_config"].items()
        values["per_layer_config"] = {key: own for key, own in of_layers if int(key) < depth}
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and "mrope_section" in rope:
        rope["mrope_section"] = [2, 1, 1]
    values |= OWN.get(values.get("model_type", ""), {})
    for value in values.values():
        if isinstance(value, dict) and "model_type" in value:
            adapt(value)


def changed(cls: Any, sizes: dict[str, int]) -> Build:
    values = {}
    for key, parameter in inspect.signature(cls.__init__).parameters.items():
        if parameter.default is not parameter.empty:
            value = shrunk(key, parameter.default, sizes)
            if value != parameter.default:
                values[key] = value
    values |= OWN.get(cls.__name__, {}) if sizes else {}
    return lambda: cls(**values)


def fill(model: torch.nn.Module) -> None:
    """Values between 2**-14 and 4 that no 16 bits hold, each of them only once in the model."""
    first = 0
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            bits = torch.arange(first, first + tensor.numel(), dtype=torch.int32)
            first += tensor.numel()
            # An odd factor only changes the order.
            bits.mul_(0x9E3779B1 - 2**32).bitwise_and_(2**26 - 1)
            bits.mul_(2).add_(((127 - 14) << 23) + 1)
            tensor.copy_(bits.view(torch.float32).reshape(tensor.shape))
