"""Loading as a user of transformers does: with the model class that `config.json` names.

Transformers is shown a sealed folder only, because a config of anybody's decides what it runs.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recast.errors import InputError, UsageError
from recast.gpu.predict import Memory, predict_here
from recast.terminal import first_of, shown, size
from recast.verification.dtypes import FLOATS, torch_floats
from recast.verification.header import Entry, Headers, Key
from recast.verification.loaders import sealed
from recast.verification.loaders.protocol import LoadError
from recast.verification.measure import Allocation

if TYPE_CHECKING:
    import torch

# A model may need this many times the bytes of its shards (for what it keeps in fp32, and tensors
# that no shard holds), and this much more: a config can ask for any size.
TIMES, MORE = 8, 1 << 30
# The plain implementations of transformers: which one computes does not change what is loaded.
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}


class Transformers:
    """The model class that `config.json` names, by `from_pretrained` with a `device_map`."""

    def __init__(self, root: Path, headers: Headers, device: str) -> None:
        self.root, self.device = root, device
        # transformers loads the shards at the top, and no other.
        self.headers = {file: entries for file, entries in headers.items() if os.sep not in file}
        _require_transformers()
        if not (root / sealed.CONFIG).is_file():
            raise InputError(
                f"{shown(root)} has no config.json, so transformers does not know what model it is",
                "leave out --loader",
            )
        self.described = sealed.read_config(root, self.headers)
        with self._folder("transformers does not know the model") as path:
            self.config, self.model_class = _model_class(path, root, self.described)
        if device != "cpu":
            _require_accelerate()
        self.model: Any = None
        self.state: dict[str, torch.Tensor] = {}
        self.info: dict[str, Any] = {}

    def predict(self) -> tuple[list[Allocation], Memory]:
        """What the model holds when it is built without memory, on the meta device."""
        import torch

        tensors = [entry for entries in self.headers.values() for entry in entries.values()]
        with (
            self._folder("transformers cannot build the model"),
            sealed.few_parts(len(tensors)),
            torch.device("meta"),
        ):
            dtype = self.config.dtype or self._first_float()
            model = self.model_class._from_config(self.config, dtype=dtype, **PLAIN)
            entries, expected = predict(model, dtype)
        stored = sum(entry.bytes for entry in tensors)
        if expected.requested > TIMES * stored + MORE:
            raise LoadError(
                f"config.json describes a model of {size(expected.requested)}, but the shards hold "
                f"{size(stored)}"
            )
        return entries, expected

    @contextmanager
    def _folder(self, failure: str) -> "Iterator[Path]":
        """The folder that is shown to transformers, while it is sealed off. Its exceptions become
        a `LoadError`: the code of a model can raise anything for a wrong config."""
        import torch

        try:
            with sealed.off(), sealed.folder(self.root, self.described, self.headers) as path:
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
        """The dtype that transformers assumes where the config does not state one."""
        names = (entry.dtype for entries in self.headers.values() for entry in entries.values())
        return torch_floats()[next((name for name in names if name in FLOATS), "F32")]

    def load(self) -> Any:
        """Only from safetensors files, by one thread."""
        # Without it, a pickle is loaded where no safetensors file has the expected name.
        options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, **PLAIN}
        if self.device != "cpu":
            options["device_map"] = {"": self.device}
        # Threads allocate in a different order each time, and `allocated` depends on the order.
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
        """The parameters and buffers of the model."""
        named = _once([*self.model.named_parameters(), *self.model.named_buffers()])
        return [Allocation(name, tensor.nbytes, tensor.data_ptr()) for name, tensor in named]

    def find(self, key: Key) -> "torch.Tensor | None":
        """The tensor of the same name, unless the model has it in another shape or a narrower
        dtype."""
        file, name = key
        if file not in self.headers or name in _names(self.info.get("mismatched_keys", ())):
            return None
        found, entry = self.state.get(name), self.headers[file][name]
        if found is None or tuple(found.shape) != entry.shape:
            return None
        # A narrowed tensor lacks bits that are stored.
        return None if self._is_narrowed(found, entry) else found

    def _is_narrowed(self, found: "torch.Tensor", entry: Entry) -> bool:
        """Whether a float was loaded in another dtype than it is stored in, and not in fp32."""
        dtypes = torch_floats()
        as_stored = dtypes.get(entry.dtype, found.dtype)
        return found.dtype not in (as_stored, dtypes["F32"])

    def notes(self) -> list[str]:
        """The model class, and the tensors that it does not have as they are stored."""
        texts = [f"loaded as {self.model_class.__name__}"]
        for key, what in (
            ("missing_keys", "not in the checkpoint, so newly initialized"),
            ("unexpected_keys", "in the checkpoint, but not in the model"),
            ("mismatched_keys", "of another shape in the model, so newly initialized"),
        ):
            texts += _note(what, _names(self.info.get(key, ())))
        narrowed = [
            name
            for entries in self.headers.values()
            for name, entry in entries.items()
            if name in self.state and self._is_narrowed(self.state[name], entry)
        ]
        texts += _note("cast once more by the loader, so compared as files", narrowed)
        texts += _note("cast by the loader, which renames them", self._narrowed_under_other_names())
        return texts

    def _narrowed_under_other_names(self) -> list[str]:
        """The fp32 tensors that the model has by other names, and none of it is fp32."""
        stored = {name for entries in self.headers.values() for name in entries}
        others = [tensor for name, tensor in self.state.items() if name not in stored]
        if any(tensor.dtype == torch_floats()["F32"] for tensor in others) or not others:
            return []
        return [
            name
            for entries in self.headers.values()
            for name, entry in entries.items()
            if entry.dtype == "F32" and name not in self.state
        ]


def predict(model: Any, dtype: "torch.dtype") -> tuple[list[Allocation], Memory]:
    """What loading allocates for `model`, which is on the meta device, in `dtype`.

    Each parameter once, however many names it has, in the order in which transformers 5 reads
    them, the modules that it keeps in fp32 included; then the buffers that no checkpoint holds.
    """
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
    # transformers asks for 16-bit values, and for the tensors' sizes before they are widened.
    warm_up = sum(tensor.nbytes for _, tensor in stored) // 2 * 2
    return entries, predict_here((entry.bytes for entry in entries), warm_up=warm_up)


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


def _require_transformers() -> None:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "the loader 'transformers' requires transformers, which is not installed",
            "pip install 'transformers>=5', or leave out --loader",
        ) from error
    if int(transformers.__version__.split(".")[0]) < 5:
        raise UsageError(
            f"the loader 'transformers' requires version 5, not {transformers.__version__}",
            "pip install 'transformers>=5', or leave out --loader",
        )


def _model_class(path: Path, root: Path, described: dict[str, Any]) -> tuple[Any, Any]:
    """The config, and the class with which a user of transformers would load `root`: `described`
    is what its config says of the model, and `path` where transformers sees it."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(
        path, local_files_only=True, trust_remote_code=False
    )
    for name in described.get("architectures") or []:
        found = getattr(transformers, name, None)
        # transformers exports names of all kinds; only these are models.
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return config, found
    try:
        found = transformers.AutoModel._model_mapping[type(config)]
    except KeyError as error:
        raise InputError(
            f"transformers has no model class for {shown(root)}", "leave out --loader"
        ) from error
    return config, found[0] if isinstance(found, tuple) else found


def _require_accelerate() -> None:
    from importlib.util import find_spec

    if find_spec("accelerate") is None:
        raise UsageError(
            "transformers requires accelerate to load onto a GPU, and it is not installed",
            "pip install accelerate, or leave out --loader",
        )
