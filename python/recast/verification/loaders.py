"""Loading a result onto a device: with safetensors alone, or as a user does, with transformers.

A loader knows beforehand what it will allocate, and in which order.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recast import memory
from recast.errors import InputError, UsageError
from recast.terminal import first_of, shown, size
from recast.verification import sealed
from recast.verification.memory import Allocation
from recast.verification.structure import FLOATS, Entry, Headers, Key
from recast.verification.values import floats

if TYPE_CHECKING:
    import torch

# torch has no dtype for them, so safetensors cannot hand them out.
UNLOADABLE = {"F6_E2M3", "F6_E3M2"}
# A model may need this many times the bytes of its shards (for what it keeps in fp32, and tensors
# that no shard holds), and this much more: a config can ask for any size.
TIMES, MORE = 8, 1 << 30
# With which code a model computes, which does not change what is loaded: that of transformers.
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}


class LoadError(Exception):
    """The result cannot be loaded."""


class Safetensors:
    """Every tensor of every shard, in the order of the files and of their data."""

    def __init__(self, root: Path, headers: Headers, device: str) -> None:
        self.root, self.headers, self.device = root, headers, device
        self.tensors: dict[Key, torch.Tensor] = {}

    def predict(self) -> tuple[list[Allocation], memory.Memory]:
        """What loading will leave on a GPU: each tensor once, in order, and the total."""
        entries = [
            Allocation(f"'{name}' in {file}", entry.bytes)
            for file, entries in self.headers.items()
            for name, entry in entries.items()
            if entry.dtype not in UNLOADABLE
        ]
        return entries, memory.predict_here(entry.bytes for entry in entries)

    def load(self) -> "dict[Key, torch.Tensor]":
        """Loads the model onto the device; on a CPU the tensors are the mapped file.

        Raises `LoadError`.
        """
        import torch
        from safetensors import safe_open

        for file, entries in self.headers.items():
            try:
                with (
                    sealed.as_text(self.root / file) as path,
                    safe_open(path, "pt", device=self.device) as opened,
                ):
                    for name in (n for n, e in entries.items() if e.dtype not in UNLOADABLE):
                        self.tensors[file, name] = opened.get_tensor(name)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:
                # torch has its own limits for shapes, and its own exceptions for them.
                reason = shown(error)
                raise LoadError(f"safetensors cannot load {shown(file)}: {reason}") from error
        return self.tensors

    def allocations(self) -> list[Allocation]:
        """What was loaded, each tensor once."""
        return [
            Allocation(f"'{name}' in {file}", tensor.nbytes, tensor.data_ptr())
            for (file, name), tensor in self.tensors.items()
        ]

    def find(self, key: Key) -> "torch.Tensor | None":
        """A tensor of a shard as it was loaded; `None` where it cannot be found as it is."""
        return self.tensors.get(key)

    def notes(self) -> list[str]:
        """What should be known about the way it was loaded."""
        count = sum(e.dtype in UNLOADABLE for file in self.headers.values() for e in file.values())
        if not count:
            return []
        return [f"torch has no dtype for {count} tensors, which were compared as files only"]


class Transformers:
    """The model class that `config.json` names, by `from_pretrained` with a `device_map`."""

    def __init__(self, root: Path, headers: Headers, device: str) -> None:
        self.root, self.device = root, device
        # transformers loads the shards at the top, and no other.
        self.headers = {file: entries for file, entries in headers.items() if os.sep not in file}
        _need_transformers()
        if not (root / sealed.CONFIG).is_file():
            raise InputError(
                f"{shown(root)} has no config.json, so transformers does not know what model it is",
                "leave out --loader",
            )
        self.said = sealed.read_config(root, self.headers)
        with self._folder("transformers does not know the model") as path:
            self.config, self.model_class = _model_class(path, root, self.said)
        if device != "cpu":
            _need_accelerate()
        self.model: Any = None
        self.state: dict[str, torch.Tensor] = {}
        self.info: dict[str, Any] = {}

    def predict(self) -> tuple[list[Allocation], memory.Memory]:
        """The same, derived from the model built without memory, on the meta device.

        Raises `LoadError` where transformers cannot build it.
        """
        import torch

        tensors = [entry for entries in self.headers.values() for entry in entries.values()]
        with (
            self._folder("transformers cannot build the model"),
            sealed.few_parts(len(tensors)),
            torch.device("meta"),
        ):
            dtype = self.config.dtype or self._first_float()
            model = self.model_class._from_config(self.config, dtype=dtype, **PLAIN)
            entries, expected = foretell(model, dtype)
        stored = sum(entry.bytes for entry in tensors)
        if expected.requested > TIMES * stored + MORE:
            raise LoadError(
                f"config.json describes a model of {size(expected.requested)}, but the shards hold "
                f"{size(stored)}"
            )
        return entries, expected

    @contextmanager
    def _folder(self, failure: str) -> "Iterator[Path]":
        """The folder that transformers gets to see, while it is sealed off. What it raises becomes
        a `LoadError`: models raise whatever their code raises for a config that is wrong."""
        import torch

        try:
            with sealed.off(), sealed.folder(self.root, self.said, self.headers) as path:
                try:
                    yield path
                except (InputError, torch.cuda.OutOfMemoryError):
                    raise
                except Exception as error:
                    text = " ".join(str(error).split()) or repr(error)
                    reason = shown(text.replace(str(path), str(self.root)))
                    raise LoadError(f"{failure} in {shown(self.root)}: {reason}") from error
        except OSError as error:
            raise LoadError(
                f"cannot create a temporary folder for transformers: {shown(error)}"
            ) from error

    def _first_float(self) -> "torch.dtype":
        """What transformers takes for the model's dtype where the config does not state one."""
        names = (entry.dtype for entries in self.headers.values() for entry in entries.values())
        return floats()[next((name for name in names if name in FLOATS), "F32")]

    def load(self) -> Any:
        """The same, one tensor after the other."""
        # Without it, a pickle would do where no safetensors file has the name that is looked for.
        options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, **PLAIN}
        if self.device != "cpu":
            options["device_map"] = {"": self.device}
        # Threads allocate in an order that is another one each time, and `allocated` depends on it.
        before = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
        try:
            with self._folder("transformers cannot load the model") as path:
                self.model, self.info = self.model_class.from_pretrained(
                    path,
                    dtype="auto",
                    local_files_only=True,
                    output_loading_info=True,
                    **options,
                )
        finally:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
            if before is not None:
                os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = before
        self.state = self.model.state_dict()
        return self.model

    def allocations(self) -> list[Allocation]:
        """The same."""
        named = _once([*self.model.named_parameters(), *self.model.named_buffers()])
        return [Allocation(name, tensor.nbytes, tensor.data_ptr()) for name, tensor in named]

    def find(self, key: Key) -> "torch.Tensor | None":
        """The same."""
        file, name = key
        if file not in self.headers or name in _names(self.info.get("mismatched_keys", ())):
            return None
        found, entry = self.state.get(name), self.headers[file][name]
        if found is None or tuple(found.shape) != entry.shape:
            return None
        # What was narrowed cannot show all the bits that are stored.
        return None if self._is_narrowed(found, entry) else found

    def _is_narrowed(self, found: "torch.Tensor", entry: Entry) -> bool:
        """Whether a float was loaded in another dtype than it is stored in, and not in fp32."""
        dtypes = floats()
        as_stored = dtypes.get(entry.dtype, found.dtype)
        return found.dtype not in (as_stored, dtypes["F32"])

    def notes(self) -> list[str]:
        """The same."""
        texts = [f"loaded as {self.model_class.__name__}"]
        for key, what in (
            ("missing_keys", "not in the checkpoint, so newly initialised"),
            ("unexpected_keys", "in the checkpoint, but not in the model"),
            ("mismatched_keys", "of another shape in the model, so newly initialised"),
        ):
            texts += _note(what, _names(self.info.get(key, ())))
        narrowed = [
            name
            for entries in self.headers.values()
            for name, entry in entries.items()
            if name in self.state and self._is_narrowed(self.state[name], entry)
        ]
        texts += _note("cast once more by the loader, so compared as files", narrowed)
        return texts


def foretell(model: Any, dtype: "torch.dtype") -> tuple[list[Allocation], memory.Memory]:
    """What loading allocates for `model`, which is on the meta device, in `dtype`.

    Each parameter once however many names it has, in the order transformers 5 reads them; the
    modules that it keeps in fp32; then the buffers that no checkpoint holds.
    """
    import re

    from transformers.core_model_loading import dot_natural_key

    keep = "|".join(f"(?:{name})" for name in model._get_dtype_plan(dtype)).replace("*", ".*")
    transient = {name for name, _ in model.named_non_persistent_buffers()}
    named = _once([*model.named_parameters(), *model.named_buffers()])
    stored = sorted(
        (pair for pair in named if pair[0] not in transient),
        key=lambda pair: dot_natural_key(pair[0]),
    )
    entries = []
    for name, tensor in stored:
        kept = keep and re.search(keep, name)
        entries.append(Allocation(name, tensor.numel() * 4 if kept else tensor.nbytes))
    entries += [Allocation(name, tensor.nbytes) for name, tensor in named if name in transient]
    # transformers asks for halves of two bytes, and for the tensors as they are before a widening.
    warm_up = sum(tensor.nbytes for _, tensor in stored) // 2 * 2
    return entries, memory.predict_here((entry.bytes for entry in entries), warm_up=warm_up)


def _once(named: "Sequence[tuple[str, torch.Tensor]]") -> "list[tuple[str, torch.Tensor]]":
    """Tied tensors under their first name only."""
    seen: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in named:
        seen.setdefault(id(tensor), (name, tensor))
    return list(seen.values())


def _note(what: str, names: list[str]) -> list[str]:
    return [f"{what}: {first_of(names)}"] if names else []


def _names(keys: Any) -> list[str]:
    return sorted(key if isinstance(key, str) else key[0] for key in keys)


def _need_transformers() -> None:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "the loader 'transformers' needs transformers, which is not installed",
            "pip install 'transformers>=5', or leave out --loader",
        ) from error
    if int(transformers.__version__.split(".")[0]) < 5:
        raise UsageError(
            f"the loader 'transformers' needs version 5, {transformers.__version__} is installed",
            "pip install 'transformers>=5', or leave out --loader",
        )


def _model_class(path: Path, root: Path, said: dict[str, Any]) -> tuple[Any, Any]:
    """The config and the class that a user of transformers would load `root` with, of which the
    config says `said`; transformers sees it at `path`."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(
        path, local_files_only=True, trust_remote_code=False
    )
    for name in said.get("architectures") or []:
        found = getattr(transformers, name, None)
        # Names of all kinds are found there, and only these are models.
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return config, found
    try:
        found = transformers.AutoModel._model_mapping[type(config)]
    except KeyError as error:
        raise InputError(
            f"transformers has no model class for {shown(root)}", "leave out --loader"
        ) from error
    return config, found[0] if isinstance(found, tuple) else found


def _need_accelerate() -> None:
    from importlib.util import find_spec

    if find_spec("accelerate") is None:
        raise UsageError(
            "transformers loads onto a GPU with the help of accelerate, which is not installed",
            "pip install accelerate, or leave out --loader",
        )
