"""Every model class of transformers and diffusers that can be made small: what do its loaders keep?

    python tests/sweep.py [--part I/N] [--only TYPE ...]

For each class and target, a small model of random values is saved in fp32. The judge is the
loader: a tensor on disk stays in fp32 when its values are still there, unrounded, after the model
was loaded in the target dtype. recast must keep all of these, and loading its result must give
what loading the source gives, tensor by tensor. Prints a line for each class, and at the end the
counts, the classes left out, each with the reason, and the failures; exits 1 when there is one.
"""

import argparse
import collections
import contextlib
import importlib
import inspect
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import recast
import torch
import transformers
from recast.options import FloatName
from safetensors.torch import load_file
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import configuration_auto, modeling_auto

DTYPES: dict[FloatName, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
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
}


@dataclass
class Result:
    """What came of one class."""

    parameters: int = 0
    kept: collections.Counter[str] = field(default_factory=collections.Counter)
    """Tensors that the loader keeps in fp32, by target."""
    more: list[str] = field(default_factory=list)
    """Tensors that recast keeps though the loader casts them."""
    wrong: list[str] = field(default_factory=list)


class LeftOut(Exception):
    """Why a class is not judged."""


def families() -> Iterator[tuple[str, str]]:
    """Every model type of transformers with the names of its classes."""
    names: dict[str, set[str]] = {
        key: set() for key in vars(configuration_auto)["CONFIG_MAPPING_NAMES"]
    }
    for variable, entries in vars(modeling_auto).items():
        if variable.endswith("_MAPPING_NAMES") and variable != "CONFIG_MAPPING_NAMES":
            for key, value in entries.items():
                names.setdefault(key, set()).update([value] if isinstance(value, str) else value)
    for key in sorted(names):
        for name in sorted(names[key]) or sorted(others(key)) or [""]:
            yield key, name


def others(model_type: str) -> Iterator[str]:
    """The classes of a model type that no `Auto` class loads."""
    folder = configuration_auto.model_type_to_module_name(model_type)
    with contextlib.suppress(ImportError):
        module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
        for name, cls in vars(module).items():
            if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and cls.config_class:
                known = hasattr(transformers, name) and not name.endswith("PreTrainedModel")
                if known and cls.config_class.model_type == model_type:
                    yield name


def shrink(config: PretrainedConfig, sizes: dict[str, int], done: set[int]) -> None:
    if id(config) in done:
        return
    done.add(id(config))
    chosen = choose_layers(config) if sizes else set()
    for key, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            shrink(value, sizes, done)
        elif isinstance(value, int) and not isinstance(value, bool):
            for pattern, size in sizes.items():
                if re.fullmatch(pattern, key) and value > size and key not in chosen:
                    with contextlib.suppress(Exception):
                        setattr(config, key, size)
        elif value is None and "" in sizes:
            for pattern, size in SIZES.items():
                if re.fullmatch(pattern, key):
                    setattr(config, key, size)


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


def attempts() -> Iterator[dict[str, int]]:
    """All of the sizes first, also for what has no default, then those that fit any model."""
    yield SIZES
    yield {**SIZES, "": 0}
    safe = ("layers", "depth", "vocab", "experts", "group", "position")
    yield {pattern: size for pattern, size in SIZES.items() if any(s in pattern for s in safe)}
    yield {}


def small(cls: type[PreTrainedModel]) -> PretrainedConfig:
    """A configuration whose model can be built and has few parameters."""
    assert cls.config_class is not None
    failures = []
    for sizes in attempts():
        try:
            config = cls.config_class()
            shrink(config, sizes, set())
            config = cls.config_class.from_dict(config.to_dict())  # as a saved one is read
            with torch.device("meta"):
                model = cls(config)
            count = sum(parameter.numel() for parameter in model.state_dict().values())
            if count <= MOST_PARAMETERS:
                return config
            failures.append(f"{count / 1e6:.0f} million parameters")
        except Exception as error:
            failures.append(line(error))
    raise LeftOut(failures[0] if failures[0] == failures[-1] else f"{failures[0]}; {failures[-1]}")


def fill(model: torch.nn.Module) -> None:
    """Values between 2**-14 and 4 that no 16 bits hold, each of them only once in the model."""
    first = 0
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                counted = torch.arange(first, first + tensor.numel())
                first += tensor.numel()
                # An odd factor only changes the order.
                scattered = counted * 0x9E3779B1 % 2**26
                bits = ((127 - 14) << 23) + 2 * scattered + 1
                tensor.copy_(bits.to(torch.int32).view(torch.float32).reshape(tensor.shape))


def stays(source: Path, state: dict[str, torch.Tensor]) -> set[str]:
    """The tensors on disk whose values are still in a loaded model."""
    wide = [tensor.flatten() for tensor in state.values() if tensor.dtype == torch.float32]
    values = torch.cat(wide) if wide else torch.empty(0)
    values = values.view(torch.int32).unique()
    kept = set()
    for file in source.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if tensor.dtype == torch.float32 and tensor.numel():
                probe = tensor.flatten()[:: max(1, tensor.numel() // 7)][:8]
                probe = probe.contiguous().view(torch.int32)
                at = torch.searchsorted(values, probe).clamp(max=max(0, len(values) - 1))
                # One is enough: no other tensor has it, and no cast gives it.
                if len(values) and bool((values[at] == probe).any()):
                    kept.add(name)
    return kept


@contextlib.contextmanager
def itself(what: str) -> Iterator[None]:
    """A class that the library cannot handle by itself says nothing of recast."""
    try:
        yield
    except Exception as error:
        raise LeftOut(f"the library cannot {what} it: {line(error)}") from error


def line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def judge(cls: Any, build: Any, keyword: str, work: Path) -> Result:
    """Converts a small model of `cls` to each target and loads source and result."""
    result = Result()
    source = work / "source"
    with itself("build and save"):
        model = build()
        result.parameters = sum(parameter.numel() for parameter in model.parameters())
        fill(model)
        model.save_pretrained(source)
        del model
    for to, dtype in DTYPES.items():
        with itself("load"):
            expected = cls.from_pretrained(source, **{keyword: dtype}).state_dict()
        wanted = stays(source, expected)
        tensors = recast.plan(source, to=to).tensors
        kept = {tensor.name for tensor in tensors if tensor.action == "keep"}
        result.kept[to] = len(wanted)
        result.wrong += [f"{to}: {name} is cast" for name in sorted(wanted - kept)]
        result.more += [f"{to}: {name}" for name in sorted(kept - wanted)]
        out = work / to
        recast.convert(source, out, to=to, sync=False)
        found = cls.from_pretrained(out, **{keyword: dtype}).state_dict()
        result.wrong += [
            f"{to}: {name} is not what the source gives"
            for name in expected
            if name not in found
            or found[name].dtype != expected[name].dtype
            or not torch.equal(found[name].nan_to_num(), expected[name].nan_to_num())
        ]
        shutil.rmtree(out)
    return result


def of_transformers(name: str, work: Path) -> Result:
    cls = getattr(transformers, name, None) if name else None
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise LeftOut("no class that an Auto class loads" if not name else "a library is missing")
    config = small(cls)
    return judge(cls, lambda: cls(config), "dtype", work)


def diffusers_classes() -> dict[str, Any]:
    """The model classes of diffusers by name; none where it is not installed."""
    try:
        models = importlib.import_module("diffusers.models")
        base = importlib.import_module("diffusers.models.modeling_utils").ModelMixin
    except ImportError:
        return {}
    names = [name for name in dir(importlib.import_module("diffusers")) if name[0].isupper()]
    found = {name: getattr(models, name, None) for name in names}
    return {
        name: cls
        for name, cls in found.items()
        if isinstance(cls, type) and issubclass(cls, base) and cls is not base
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


def of_diffusers(cls: Any, work: Path) -> Result:
    failures = []
    for sizes in (DIFFUSERS_SIZES, {r"num_layers|num_\w*layers|depth": 1}, {}):
        changed = {}
        for key, parameter in inspect.signature(cls.__init__).parameters.items():
            for pattern, size in sizes.items():
                default = parameter.default
                if re.fullmatch(pattern, key) and type(default) is int and default > size:
                    changed[key] = size
        try:
            with torch.device("meta"):
                model = cls(**changed)
            count = sum(parameter.numel() for parameter in model.parameters())
            if count > MOST_PARAMETERS:
                raise LeftOut(f"{count / 1e6:.0f} million parameters")
        except Exception as error:
            failures.append(line(error))
            continue
        return judge(cls, lambda changed=changed: cls(**changed), "torch_dtype", work)
    raise LeftOut(failures[0])


def run(jobs: list[tuple[str, Any]]) -> int:
    judged = keeping = wide = 0
    left_out: dict[str, str] = {}
    wrong: list[str] = []
    for label, job in jobs:
        work = Path(tempfile.mkdtemp(prefix="sweep"))
        start = time.monotonic()
        try:
            result = job(work)
        except LeftOut as reason:
            left_out[label] = str(reason)
            continue
        except Exception as error:
            wrong.append(f"{label}: {line(error)}")
            continue
        finally:
            shutil.rmtree(work)
        judged += 1
        keeping += bool(sum(result.kept.values()))
        wide += sum(result.kept.values())
        wrong += [f"{label}: {problem}" for problem in result.wrong]
        print(
            f"{label}: {result.parameters / 1e6:.2f} M parameters, "
            f"kept {result.kept['fp16']} in fp16 and {result.kept['bf16']} in bf16, "
            f"{len(result.more)} more than the loader, {len(result.wrong)} wrong, "
            f"{time.monotonic() - start:.1f} s",
            flush=True,
        )
        for name in result.more[:4]:
            print(f"    kept, though the loader casts it: {name}")
    for label, why in left_out.items():
        print(f"left out: {label}: {why}")
    for problem in wrong:
        print(f"WRONG {problem}")
    print(
        f"{judged} classes judged, {keeping} of them keep something ({wide} tensors); "
        f"{len(left_out)} left out, {len(wrong)} wrong"
    )
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="1/1", help="I/N: every Nth class, from the Ith")
    parser.add_argument("--only", nargs="*", help="model types, or class names of diffusers")
    options = parser.parse_args()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    jobs: list[tuple[str, Any]] = []
    for model_type, name in families():
        if not options.only or model_type in options.only or name in options.only:
            jobs.append(
                (f"{model_type} {name}".strip(), lambda work, n=name: of_transformers(n, work))
            )
    for name, cls in diffusers_classes().items():
        if not options.only or name in options.only:
            jobs.append((name, lambda work, cls=cls: of_diffusers(cls, work)))
    part, parts = map(int, options.part.split("/"))
    return run(jobs[part - 1 :: parts])


if __name__ == "__main__":
    sys.exit(main())
