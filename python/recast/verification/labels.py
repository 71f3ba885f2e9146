"""What the files beside a source's shards say of how its weights are quantized.

The tensors decide what is quantized. The extents of blocks they cannot show: where a dimension is
no multiple of them, several extents give scales of the same shape.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from recast.verification.files import MAX_CONFIG, read_json

KEYS = {"quantization_config", "compression_config"}
"""What a config calls the description of how weights are quantized, at its top or deeper."""
METADATA = {"quantization_config", "quantization", "_quantization_metadata"}
"""The same in the metadata of a shard."""
SIDECARS = {
    "hf_quant_config.json",
    "quant_config.json",
    "quantization_config.json",
    "quantize_config.json",
    "quanto_qmap.json",
}
"""Files that hold such a description and nothing else."""
Block = tuple[int, int]


@dataclass(frozen=True)
class Labels:
    """What is said of the weights of one component."""

    said: list[dict[str, Any]] = field(default_factory=list)
    """The descriptions, of configs and of files of their own."""

    @property
    def modelopt(self) -> bool:
        """Whether NVIDIA ModelOpt is said to have written the weights."""
        producers = [each for said in self.said for each in _objects(said) if "name" in each]
        words = [said.get("quant_method") for said in self.said]
        words += [producer["name"] for producer in producers]
        return any(str(word).startswith("modelopt") for word in words)

    @property
    def rotated(self) -> bool:
        """Whether the weights are said to be rotated, so that they fit rotated inputs only."""
        return any(said.get("transform_config") for said in self.said)

    @cached_property
    def _anywhere(self) -> list[list[list[int]]]:
        """The blocks of the algorithms that each description states, of whatever layer."""
        found = []
        for said in self.said:
            each = [said, *_objects(said.get("quantized_layers"))]
            sizes = [size for one in each for size in _of_algorithm(one)]
            found.append([list(block) for block in {_extents(size) for size in sizes} if block])
        return found

    def blocks(self, module: str) -> list[Block]:
        """The rows and columns of the blocks that a module's weight may have: all that are stated,
        or only those of the group that names it."""
        sizes = [said.get("weight_block_size") for said in self.said]
        groups = [group for said in self.said for group in _objects(said.get("config_groups"))]
        for group in [group for group in groups if _names(group, module)] or groups:
            weights = group.get("weights")
            sizes += _of_algorithm(group)
            if isinstance(weights, dict):
                size = weights.get("block_structure")
                sizes.append([1, weights.get("group_size")] if size is None else size)
        for said, anywhere in zip(self.said, self._anywhere, strict=True):
            layers = said.get("quantized_layers")
            own = layers.get(module) if isinstance(layers, dict) else None
            sizes += list(_of_algorithm(own)) if isinstance(own, dict) else anywhere
        return sorted({block for size in sizes if (block := _extents(size))})


def read_labels(root: Path, folder: str) -> Labels:
    """What is said of the weights in a folder below `root`, by files in it and in those above."""
    said = list(descriptions(_read(root / folder / "config.json")))
    for name in sorted(SIDECARS):
        try:
            beside = _read(root / folder / name)
        except ValueError:
            # Whatever else is called so says nothing.
            continue
        if isinstance(beside, dict):
            inner = beside.get("quantization")
            said += [beside, *([inner] if isinstance(inner, dict) else [])]
    if folder:
        said += read_labels(root, os.path.dirname(folder)).said
    return Labels(said)


def is_stated(value: Any) -> bool:
    """Whether a config says, at its top or deeper, that weights are quantized."""
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, dict):
            if said(each):
                return True
            todo += each.values()
        elif isinstance(each, list):
            todo += each
    return False


def said(value: Any) -> list[str]:
    """The keys of a part of a config that say that weights are quantized."""
    members = value.items() if isinstance(value, dict) else ()
    return [key for key, inner in members if _says(key, inner)]


def rest(value: Any) -> Any:
    """A part of a config without these keys."""
    gone = said(value)
    return {key: value[key] for key in value if key not in gone} if gone else value


def _says(key: str, inner: Any) -> bool:
    return (key in KEYS and inner is not None) or (
        key == "quantization" and isinstance(inner, dict)
    )


def descriptions(value: Any) -> Iterator[dict[str, Any]]:
    """What a config says of quantization, at its top and deeper."""
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, dict):
            yield from (each[key] for key in each if key in KEYS and isinstance(each[key], dict))
            todo += reversed(each.values())
        elif isinstance(each, list):
            todo += reversed(each)


def _read(path: Path) -> Any:
    try:
        return read_json(path, MAX_CONFIG)
    except FileNotFoundError:
        return None


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects in an object."""
    inner = value.values() if isinstance(value, dict) else ()
    return [each for each in inner if isinstance(each, dict)]


def _names(group: dict[str, Any], module: str) -> bool:
    """Whether a group of compressed-tensors names a module, rather than a class of modules."""
    targets = group.get("targets")
    for target in targets if isinstance(targets, list) else ():
        if target == module:
            return True
        if isinstance(target, str) and target.startswith("re:"):
            try:
                if re.match(target[3:], module):
                    return True
            except re.error:
                continue
    return False


def _of_algorithm(said: dict[str, Any]) -> Iterator[list[Any]]:
    """The blocks of an algorithm: those its name stands for, and the groups stated beside it."""
    for key in ("quant_algo", "quant_method", "format"):
        name = str(said.get(key)).lower()
        if name.startswith("mxfp8"):
            yield [1, 32]
        elif name == "fp8_pb_wo":
            yield [128, 128]
    if "quant_algo" in said:
        yield [1, said.get("group_size")]


def _extents(value: Any) -> Block | None:
    """A pair of extents, as a list or as in `128x128`."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}x[0-9]{1,6}", value):
        value = json.loads(f"[{value.replace('x', ',')}]")
    if not isinstance(value, list) or len(value) != 2:
        return None
    if not all(type(extent) is int and extent > 0 for extent in value):
        return None
    return value[0], value[1]
