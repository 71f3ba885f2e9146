"""What transformers can see of a result, and what it cannot do while it loads it.

A config decides which code of transformers runs, and can ask for more: kernels from the Hub, code
beside the weights, another model. So transformers is shown a folder of its own, which holds what
the config says of the model, the shards that were checked, and nothing else. While it works, it
can reach neither the network nor the kernels of the Hub.
"""

import functools
import importlib
import json
import os
import re
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recast.errors import InputError
from recast.terminal import shown
from recast.verification.files import MAX_CONFIG, MAX_INDEX, read_json
from recast.verification.header import Headers

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
# The key of a config that names a file of weights.
WEIGHTS = "transformers_weights"
# Keys that do not describe the model, but choose the code that runs: kernels of attention and
# experts, modules beside the weights, patches of classes, other files; and attributes of
# transformers' own config classes, by which a config could rename its keys.
STEERING = {
    "attn_implementation",
    "experts_implementation",
    "attribute_map",
    "auto_map",
    "configuration_files",
    "custom_pipelines",
    "distributed_config",
    "fusion_config",
    "kernel_config",
    "sub_configs",
    "sub_configs_defaults",
    "use_kernels",
    WEIGHTS,
}
# Keys of checkpoints that only other packages can load.
QUANTIZED = {"quantization_config", "compression_config"}
# Keys of numbers that transformers makes lists from before it builds a model.
REPEATS = re.compile(r"layer|block|depth|label")
MAX_REPEATS = 1 << 21
# The most modules and parameters of a model: a fixed number, and more for each stored tensor.
PARTS, PARTS_EACH = 10_000, 20
HINT = "leave out --loader"


def read_config(root: Path, headers: Headers) -> dict[str, Any]:
    """What the config in `root` says of the model: without the keys that choose code, and without
    the one that names a file of weights unless it is in `headers`.

    Raises `InputError` for a config that no model can have.
    """
    called = shown(root / CONFIG)
    try:
        config = read_json(root / CONFIG, MAX_CONFIG)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{called}: is not a valid config: {shown(error)}", HINT) from error
    if not isinstance(config, dict):
        raise InputError(f"{called}: the config is not an object", HINT)
    names = config.get("architectures", [])
    if not isinstance(names, list | None) or not all(isinstance(name, str) for name in names or []):
        raise InputError(f"{called}: architectures is not a list of names: {shown(names)}", HINT)
    if not isinstance(name := config.get("model_type"), str | None):
        raise InputError(f"{called}: model_type is not a name: {shown(name)}", HINT)
    try:
        described = {key: _cleaned(called, key, value) for key, value in _describing(config)}
    except RecursionError as error:
        raise InputError(f"{called}: is nested too deeply", HINT) from error
    weights = config.get(WEIGHTS)
    if isinstance(weights, str) and weights in headers:
        return {**described, WEIGHTS: weights}
    return described


def _describing(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The members of a config that describe the model. Keys that begin with `_` are transformers'
    own, except `__float__`, under which it writes infinity."""
    for key, value in fields.items():
        if key == "__float__" or not (key.startswith("_") or key in STEERING):
            yield key, value


def _cleaned(called: str, key: str, value: Any) -> Any:
    if key in QUANTIZED and value is not None:
        raise InputError(
            f"{called}: has a {key}, which requires code that recast does not run", HINT
        )
    if isinstance(value, int) and value > MAX_REPEATS and REPEATS.search(key):
        raise InputError(f"{called}: {shown(key)} is {value}, more than any model has", HINT)
    if isinstance(value, dict):
        return {name: _cleaned(called, name, inner) for name, inner in _describing(value)}
    if isinstance(value, list):
        return [_cleaned(called, key, inner) for inner in value]
    return value


@contextmanager
def folder(root: Path, config: dict[str, Any], headers: Headers) -> Iterator[Path]:
    """A temporary folder with `config`, links to the shards in `headers`, which are at the top of
    `root`, and the index beside them, unless it names other files."""
    with TemporaryDirectory(prefix="recast-") as name:
        path = Path(name)
        (path / CONFIG).write_text(json.dumps(config), encoding="ascii")
        for file in headers:
            (path / file).symlink_to((root / file).absolute())
        if (index := _index(root / INDEX, headers)) is not None:
            (path / INDEX).write_text(json.dumps(index), encoding="ascii")
        yield path


def _index(path: Path, headers: Headers) -> dict[str, Any] | None:
    """What an index says of the files in `headers`; `None` where there is no index, or where it
    names other files, which is a problem of its own."""
    try:
        weight_map = dict(read_json(path, MAX_INDEX)["weight_map"])
        if all(shard in headers for shard in weight_map.values()):
            return {"metadata": {}, "weight_map": weight_map}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """`path`, or a link to it where it is not UTF-8, as safetensors requires for torch."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with TemporaryDirectory(prefix="recast-") as name:
            link = Path(name) / "link"
            link.symlink_to(path.absolute())
            yield link
        return
    yield path


_lock = threading.Lock()
# How many times each thread is sealed off, and what is replaced while one is.
_inside: dict[int, int] = {}
_replaced: list[tuple[Any, str, Any]] = []


@contextmanager
def off() -> Iterator[None]:
    """Keeps this thread off the network and off the kernels of the Hub, and silences transformers,
    whose warnings would print names of the checkpoint unescaped."""
    from transformers.utils import logging

    importlib.import_module("transformers.integrations.hub_kernels")
    thread = threading.get_ident()
    with _lock:
        if not _inside:
            _replace()
        _inside[thread] = _inside.get(thread, 0) + 1
    bars: Any = logging
    drawn, verbosity = bars.is_progress_bar_enabled(), bars.get_verbosity()
    bars.disable_progress_bar()
    bars.set_verbosity(bars.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        bars.set_verbosity(verbosity)
        if drawn:
            bars.enable_progress_bar()
        with _lock:
            _inside[thread] -= 1
            if not _inside[thread]:
                del _inside[thread]
            while not _inside and _replaced:
                owner, name, before = _replaced.pop()
                if before is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, before)


def _replace() -> None:
    """Guards the functions that open connections, and those that load kernels."""
    places: list[tuple[Any, str]] = [
        *((socket.socket, name) for name in ("connect", "connect_ex", "sendto")),
        *((socket, name) for name in ("getaddrinfo", "gethostbyname")),
        (sys.modules["transformers.integrations.hub_kernels"], "get_kernel_hub"),
    ]
    if (kernels := sys.modules.get("kernels")) is not None:
        names = ("get_kernel", "get_local_kernel", "get_locked_kernel", "load_kernel")
        places += [(kernels, name) for name in names]
    for owner, name in places:
        # The methods of a socket are inherited; everything else is in its owner or does not exist.
        if owner is socket.socket or name in vars(owner):
            _replaced.append((owner, name, vars(owner).get(name)))
            setattr(owner, name, _guarded(getattr(owner, name)))


def _guarded(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, except for threads that are sealed off."""

    @functools.wraps(call)
    def guard(*arguments: Any, **options: Any) -> Any:
        if threading.get_ident() in _inside:
            # An `OSError`, as for a broken network, and the one after which transformers continues
            # without a kernel.
            raise FileNotFoundError("recast keeps transformers off the network and off kernels")
        return call(*arguments, **options)

    return guard


@contextmanager
def few_parts(tensors: int) -> Iterator[None]:
    """Stops this thread from building a model of far more parts than `tensors` can fill."""
    from torch.nn.modules import module as hooks

    thread, limit, seen = threading.get_ident(), PARTS + PARTS_EACH * tensors, 0

    def count(*_: Any) -> None:
        nonlocal seen
        if threading.get_ident() == thread:
            seen += 1
            if seen > limit:
                more = f"more than {limit:,} modules and parameters"
                raise ValueError(f"it has {more}, but the shards hold {tensors:,} tensors")

    handles = [
        hooks.register_module_module_registration_hook(count),
        hooks.register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
