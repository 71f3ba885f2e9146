"""What transformers and diffusers keep in fp32, observed on models without data.

Every class is built from its default configuration on the meta device, as `from_pretrained` builds
it, and the libraries' own functions say which tensors *on disk* they load in fp32.
"""

import contextlib
import importlib
import pkgutil
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.modeling_utils import ModelMixin
from transformers import PretrainedConfig, PreTrainedModel
from transformers import conversion_mapping as mapping
from transformers import core_model_loading as loading
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import (
    CONFIG_MAPPING_NAMES,
    model_type_to_module_name,
)

TARGETS = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Names repeat from layer to layer and from expert to expert; more of them only take time.
DEPTHS = re.compile(r"(num_(hidden_|encoder_|decoder_)?|n_|encoder_|decoder_)layers?|depth")
EXPERTS = re.compile(r"(n_routed|num|num_local|moe_num|n)_experts")
MAX_DEPTH = 12
MAX_EXPERTS = 4
CPU_SECONDS = 60


@dataclass
class Seen:
    """What was seen of one model type or class, for each target."""

    kept: dict[str, set[str]] = field(default_factory=lambda: {to: set() for to in TARGETS})
    """Names on disk of tensors that are loaded in fp32; numbers are `#`."""
    cast: dict[str, set[str]] = field(default_factory=lambda: {to: set() for to in TARGETS})
    """Names on disk of floating tensors that are not."""
    declared: dict[str, set[str]] = field(default_factory=lambda: {to: set() for to in TARGETS})
    """The library's own patterns."""
    typed: set[str] = field(default_factory=set)
    """Names on disk of those that no pattern keeps: the class creates them in fp32."""
    parts: set[str] = field(default_factory=set)
    """The model types of its submodels."""
    failed: dict[str, str] = field(default_factory=dict)
    """The classes that could not be built, with the reason."""

    def add(self, name: str, to: str, kept: bool) -> None:
        """Notes what becomes of a tensor on disk."""
        (self.kept if kept else self.cast)[to].add(without_numbers(name))


def without_numbers(name: str) -> str:
    """A name with every number in it as `#`."""
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))


def classes() -> dict[str, list[type[PreTrainedModel]]]:
    """The model classes of each model type of transformers."""
    names: dict[str, set[str]] = {model_type: set() for model_type in CONFIG_MAPPING_NAMES}
    for variable, entries in vars(auto).items():
        if variable.endswith("_MAPPING_NAMES") and "CONFIG" not in variable:
            for model_type, value in entries.items():
                names.setdefault(model_type, set()).update(
                    [value] if isinstance(value, str) else value
                )
    found: dict[str, list[type[PreTrainedModel]]] = {}
    for model_type in sorted(names):
        loaded = {name: getattr(transformers, name, None) for name in names[model_type]}
        for module in modules(model_type):
            loaded |= {
                name: cls
                for name, cls in vars(module).items()
                if isinstance(cls, type)
                and cls.__module__ == module.__name__
                and getattr(getattr(cls, "config_class", None), "model_type", None) == model_type
                and not name.endswith("PreTrainedModel")
            }
        found[model_type] = [
            loaded[name]
            for name in sorted(loaded)
            if isinstance(loaded[name], type) and issubclass(loaded[name], PreTrainedModel)
        ]
    return found


def modules(model_type: str) -> Iterator[Any]:
    """The modules that define the classes of a model type."""
    folder = f"transformers.models.{model_type_to_module_name(model_type)}"
    with contextlib.suppress(ImportError):
        for module in pkgutil.iter_modules(importlib.import_module(folder).__path__):
            if module.name.startswith("modeling_"):
                with contextlib.suppress(ImportError):
                    yield importlib.import_module(f"{folder}.{module.name}")


def shrunk(config: PretrainedConfig, seen: tuple[int, ...] = ()) -> None:
    """Makes a configuration's models shallow, which changes no name but the numbers in it."""
    choose_layers(config)
    for key, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig) and id(value) not in seen:
            shrunk(value, (*seen, id(config)))
        elif isinstance(value, int) and not isinstance(value, bool):
            most = MAX_DEPTH if DEPTHS.fullmatch(key) else MAX_EXPERTS
            if value > most and (DEPTHS.fullmatch(key) or EXPERTS.fullmatch(key)):
                with contextlib.suppress(Exception):
                    setattr(config, key, most)


def choose_layers(config: PretrainedConfig) -> None:
    """Moves layers of a kind that begins late to the front, where lists say what each is."""
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int) or depth <= MAX_DEPTH:
        return
    lists = {
        key: value
        for key, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == depth
    }
    kinds: dict[str, int] = {}
    for layer, kind in enumerate(zip(*lists.values(), strict=True)):
        kinds.setdefault(repr(kind), layer)
    late = [layer for layer in kinds.values() if layer >= MAX_DEPTH]
    if late:
        layers = [*range(MAX_DEPTH - len(late)), *late]
        for key, value in lists.items():
            setattr(config, key, [value[layer] for layer in layers])


def filled(config: PretrainedConfig) -> None:
    """Gives a configuration the numbers that its defaults lack."""
    shrunk(config)
    for key, part in parts(config).items():
        if getattr(config, key, None) is None:
            with contextlib.suppress(Exception):
                setattr(config, key, part())
    for key, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            filled(value)
        elif value is None and NUMBERS.search(key):
            with contextlib.suppress(Exception):
                setattr(config, key, 4)


def parts(config: Any) -> dict[str, Any]:
    """The configuration classes of a composite model's parts that are known by name."""
    found = getattr(config, "sub_configs", {})
    return {key: part for key, part in found.items() if getattr(part, "model_type", "")}


NUMBERS = re.compile(
    r"^(n|num|max)_|_(size|dim|rank|group|groups|experts|tok|layers|heads|replace)$"
)


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` after so much processor time."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def build(cls: type[PreTrainedModel]) -> PreTrainedModel:
    """A model on the meta device, as `from_pretrained` builds it."""
    failure: Exception | None = None
    for attempt in (shrunk, lambda config: None, filled):
        try:
            config = cls.config_class()
            attempt(config)
            with cpu_limit(CPU_SECONDS), contextlib.ExitStack() as stack:
                for context in cls.get_init_context(torch.bfloat16, False, False, None):
                    stack.enter_context(context)
                return cls(config)
        except Exception as error:
            failure = failure or error
    assert failure is not None
    raise failure


def reason(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def observe(cls: type[PreTrainedModel], seen: Seen) -> None:
    """Adds what `cls` keeps, by the names that a checkpoint may have."""
    for to, attributes in PATTERNS.items():
        for attribute in attributes:
            seen.declared[to] |= set(getattr(cls, attribute) or ())
    seen.parts |= {part.model_type for part in parts(cls.config_class).values()}
    try:
        model = build(cls)
    except Exception as error:
        seen.failed[cls.__name__] = reason(error)
        return
    state = model.state_dict()
    names = set(state)
    try:
        with cpu_limit(CPU_SECONDS):
            names |= set(loading.revert_weight_conversion(model, state))
    except Exception as error:
        seen.failed[f"{cls.__name__} on disk"] = reason(error)
    conversions = mapping.get_model_conversion_mapping(model)
    plans = {}
    for to, dtype in TARGETS.items():
        patterns = list(model._get_dtype_plan(dtype))
        seen.declared[to] |= set(patterns)
        plans[to] = loading.build_glob_alternation(patterns)[0] if patterns else None
    for name in names:
        renamed = in_memory(name, model, state, conversions)
        if renamed not in state or not state[renamed].is_floating_point():
            continue
        typed = state[renamed].dtype == torch.float32
        planned = {to for to, plan in plans.items() if plan and plan.search(renamed)}
        if typed and not planned:
            seen.typed.add(without_numbers(name))
        for to in TARGETS:
            seen.add(name, to, typed or to in planned)


PATTERNS = {
    "fp16": ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"),
    "bf16": ("_keep_in_fp32_modules_strict",),
}


def in_memory(name: str, model: PreTrainedModel, state: dict, conversions: list) -> str:
    """The name that the loader gives to a tensor of a checkpoint."""
    renamings = [step for step in conversions if isinstance(step, loading.WeightRenaming)]
    converters = [step for step in conversions if isinstance(step, loading.WeightConverter)]
    prefix = model.base_model_prefix
    renamed, _ = loading.rename_source_key(name, renamings, converters, prefix, state)
    if renamed not in state and name in state:
        renamed, _ = loading.rename_source_key(name, [], [], prefix, state)
    return renamed


def transformers_models() -> Iterator[tuple[str, Seen]]:
    """Each model type of transformers, with what its classes keep."""
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    for model_type, candidates in classes().items():
        seen = Seen()
        for cls in candidates:
            observe(cls, seen)
        yield model_type, seen


def diffusers_models() -> Iterator[tuple[str, list[str]]]:
    """Each model class of diffusers that keeps something, with its module names."""
    for package in (diffusers.models, diffusers.pipelines):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            with contextlib.suppress(Exception):
                importlib.import_module(module.name)
    subclasses = [ModelMixin]
    for cls in subclasses:
        subclasses += [sub for sub in cls.__subclasses__() if sub not in subclasses]
    for cls in sorted(subclasses, key=lambda cls: cls.__name__):
        if cls._keep_in_fp32_modules:
            yield cls.__name__, sorted(cls._keep_in_fp32_modules)
