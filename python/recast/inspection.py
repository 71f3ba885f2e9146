"""What `inspect` finds: dtypes, where the bytes are, and the memory they take on a GPU."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from recast._core import Checkpoint, Tensor
from recast.gpu.device import Gpu
from recast.gpu.predict import MemoryDict, predict_here
from recast.json_text import SCHEMA_VERSION, json_text
from recast.report import REPORT_NAME

NUMBER = re.compile(r"\.([0-9]{1,9})\.")
# The first that fits names a part of a layer, so norms inside attention count as norms.
PARTS = {
    "norm": re.compile(r"norm|(?:^|[._])ln(?:$|[._\d])", re.IGNORECASE),
    "experts": re.compile(r"experts?(?:$|[._\d])", re.IGNORECASE),
    "attention": re.compile(r"att(?:n|ention)", re.IGNORECASE),
    "mlp": re.compile(r"mlp|ffn|feed_?forward|dense_?relu_?dense", re.IGNORECASE),
}


class Amount(TypedDict):
    """How much of a model something is."""

    tensors: int
    parameters: int
    """Elements."""
    bytes: int
    """Tensor data."""


class Group(Amount):
    """A part of a model."""

    name: str
    """A module, or the same part of every layer of a stack: `model.layers.0-31 mlp`."""


class Scheme(TypedDict):
    """Weights that are quantized in one way."""

    name: str
    """What people call it."""
    weights: int
    """How many weights; of a scheme that recast does not know, tensors."""
    bytes: int
    """Codes and scales."""
    problem: str | None
    """Why `convert` does not dequantize them, or the first of them, if it does not."""


class TensorDict(TypedDict):
    """A tensor, as its header describes it."""

    name: str
    dtype: str
    """What safetensors calls it."""
    shape: list[int]
    bytes: int
    file: str
    """The shard that holds it, relative to the checkpoint."""


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is made of. `to_json()` is what `inspect --json` prints.

    Sizes are in bytes.
    """

    path: str
    files: int
    """Shards: files that hold tensors. This, and what follows, counts those that are loaded."""
    not_loaded: list[str]
    """Shards that transformers, diffusers and peft do not take unless they are asked to, because
    they find others first: copies, variants, and models in folders below that no pipeline lists."""
    tensors: int
    parameters: int
    """Elements of all tensors."""
    bytes: int
    """Tensor data, without headers."""
    dtypes: Mapping[str, Amount]
    """By safetensors' name of the dtype."""
    groups: list[Group]
    """By part of the model, largest first."""
    schemes: list[Scheme]
    """How weights are quantized; empty where none is."""
    gpu_memory: Mapping[str, MemoryDict]
    """The memory as stored (`as_stored`) and in each dtype recast converts to (`fp32`, `fp16`,
    `bf16`), the built-in keep list and the allocator's settings in the environment respected. A
    checkpoint with quantized weights that recast does not dequantize has only `as_stored`."""
    device: Gpu | None
    """The GPU that programs see first, when there is one."""
    notes: list[str]
    stored: list[Tensor] = field(repr=False, compare=False)
    """Every tensor, as its header describes it, those of files that are not loaded too."""
    schema_version: int = SCHEMA_VERSION

    @property
    def tensor_list(self) -> list[TensorDict]:
        """Every tensor, in the order of the files."""
        return [
            TensorDict(
                name=tensor.name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                bytes=tensor.bytes,
                file=tensor.file,
            )
            for tensor in self.stored
        ]

    def to_json(self, *, tensor_list: bool = False) -> str:
        """The inspection as one JSON object, ASCII only, with `tensor_list` when asked for."""
        fields = dict(vars(self))
        del fields["stored"]
        if tensor_list:
            fields["tensor_list"] = self.tensor_list
        return json_text(fields)


def by_dtype(tensors: Iterable[Tensor]) -> dict[str, Amount]:
    """How much of a model each dtype is, by safetensors' name of it, in the order of `tensors`."""
    dtypes: dict[str, Amount] = {}
    for tensor in tensors:
        row = dtypes.setdefault(tensor.dtype, Amount(tensors=0, parameters=0, bytes=0))
        row["tensors"] += 1
        row["parameters"] += tensor.elements
        row["bytes"] += tensor.bytes
    return dtypes


def schemes(checkpoint: Checkpoint) -> list[Scheme]:
    """How the weights of `checkpoint` are quantized."""
    return [
        Scheme(name=name, weights=weights, bytes=bytes_, problem=problem)
        for name, weights, bytes_, problem in checkpoint.schemes
    ]


def gpu_memory(sizes: Mapping[str, list[int]]) -> dict[str, MemoryDict]:
    """What tensors of each list of `sizes`, in bytes, take on a GPU."""
    found: dict[str, MemoryDict] = {}
    for name, wanted in sizes.items():
        # fp16 and bf16 nearly always take the same, and so does the dtype the model is stored in.
        same = next((other for other in found if sizes[other] == wanted), None)
        found[name] = found[same].copy() if same else predict_here(wanted).to_dict()
    return found


def groups(tensors: Iterable[Tensor]) -> list[Group]:
    """The parts of a model, largest first.

    A name such as `model.layers.7.self_attn.q_proj.weight` has a stack (`model.layers`), the
    number of a layer, and a part of it; one group is the same part of all layers of a stack.
    A name without a number belongs to the module its first two words name.
    """
    # By what surrounds the number of a layer: far fewer names than tensors have to be understood.
    places: dict[tuple[str, str | None], tuple[list[int], set[str]]] = {}
    for tensor in tensors:
        # With a dot in front a number at the very beginning looks like any other.
        name = f".{tensor.name}"
        match = NUMBER.search(name)
        place = (name[: match.start()], name[match.end() :]) if match else (name, None)
        entry = places.get(place)
        if entry is None:
            entry = places[place] = ([0, 0, 0], set())
        row = entry[0]
        row[0] += 1
        row[1] += tensor.elements
        row[2] += tensor.bytes
        if match:
            entry[1].add(match[1])
    parts: dict[tuple[str, str | None], tuple[list[int], set[int]]] = {}
    for (before, rest), (row, numbers) in places.items():
        key = (_module(before[1:]), None) if rest is None else (before[1:], _part(rest))
        total, layers = parts.setdefault(key, ([0, 0, 0], set()))
        total[:] = map(sum, zip(total, row, strict=True))
        layers.update(map(int, numbers))
    named = ((_name(*key, layers), total) for key, (total, layers) in parts.items())
    return [
        Group(name=name, tensors=total[0], parameters=total[1], bytes=total[2])
        for name, total in sorted(named, key=lambda item: (-item[1][2], item[0]))
    ]


def _name(stack: str, part: str | None, numbers: set[int]) -> str:
    if part is None:
        return stack
    first, last = min(numbers), max(numbers)
    span = f"{first}-{last}" if last > first else f"{first}"
    if len(numbers) < last - first + 1:
        span += f" ({len(numbers)} of them)"
    return " ".join(word for word in (f"{stack}.{span}".lstrip("."), part) if word)


def _module(name: str) -> str:
    return ".".join(name.split(".")[:-1][:2]) or name


def _part(rest: str) -> str:
    """The part of a layer that `rest`, a name from behind its number, belongs to."""
    for part, pattern in PARTS.items():
        if pattern.search(rest):
            return part
    words = rest.split(".")[:-1]
    # Containers such as `layer.0.` say where a module is, not what it is.
    while len(words) > 2 and words[1].isdecimal():
        words = words[2:]
    return words[0] if words else ""


def exactness(checkpoint: Checkpoint) -> list[str]:
    """A sentence on what the conversion that made `checkpoint` kept of the values.

    Empty where there is no `recast.json` that may be read, or where it is not about the tensors
    that are there.
    """
    try:
        found = checkpoint.lossless
    except ValueError as error:
        return [f"{REPORT_NAME} is not valid JSON: {error}"]
    if found is None:
        return []
    count, to = found
    return [f"converted without loss: all {count} cast tensors are exactly representable in {to}"]
