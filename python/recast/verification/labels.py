"""What the files beside a source's shards say of how its weights are quantized.

The tensors decide what is quantized. The extents of blocks they cannot show: where a dimension is
no multiple of them, several extents give scales of the same shape.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
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
ALGORITHMS = {"MXFP8": (1, 32), "FP8_PB_WO": (128, 128)}
"""The blocks of ModelOpt's algorithms that have some."""

Block = tuple[int, int]


@dataclass(frozen=True)
class Labels:
    """What is said of the weights of one component."""

    described: list[dict[str, Any]] = field(default_factory=list)
    """The descriptions of its config."""
    modelopt: list[dict[str, Any]] = field(default_factory=list)
    """Those of NVIDIA ModelOpt, wherever they are."""

    def blocks(self, module: str) -> list[Block]:
        """The rows and columns of the blocks that a module's weight may have: all that are stated,
        or only those of the group that names it."""
        found = [
            block for said in self.described if (block := _extents(said.get("weight_block_size")))
        ]
        groups = [group for said in self.described for group in _objects(said.get("config_groups"))]
        named = [group for group in groups if _names(group, module)]
        for group in named or groups:
            found += _of_group(group)
        for said in self.modelopt:
            layers = said.get("quantized_layers")
            own = layers.get(module) if isinstance(layers, dict) else None
            each = [own] if isinstance(own, dict) else [said, *_objects(layers)]
            found += [ALGORITHMS[name] for name in map(_algorithm, each) if name in ALGORITHMS]
        return sorted(set(found))


def read_labels(root: Path, folder: str) -> Labels:
    """What is said of the weights in a folder below `root`: by the config in it, or else by that
    of the nearest folder above, and by ModelOpt's file beside that config."""
    while folder and not (root / folder / "config.json").is_file():
        folder = os.path.dirname(folder)
    described = list(descriptions(_read(root / folder / "config.json")))
    beside = _read(root / folder / "hf_quant_config.json")
    modelopt = [said for said in described if str(said.get("quant_method")).startswith("modelopt")]
    if isinstance(beside, dict):
        inner = beside.get("quantization")
        modelopt.append(inner if isinstance(inner, dict) else beside)
    return Labels(described, modelopt)


def stated(value: Any, at: str = "") -> Iterator[str]:
    """The keys of a config that say that weights are quantized, with the keys they are below."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        path = f"{at}.{key}" if at else key
        if (key in KEYS and inner is not None) or (
            key == "quantization" and isinstance(inner, dict)
        ):
            yield path
        else:
            yield from stated(inner, path)


def in_metadata(path: Path) -> list[str]:
    """The same of the metadata of a shard."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as shard:
        return sorted(METADATA & (shard.metadata() or {}).keys())


def descriptions(value: Any) -> Iterator[dict[str, Any]]:
    """What a config says of quantization, at its top and deeper."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key in KEYS and isinstance(inner, dict):
            yield inner
        yield from descriptions(inner)


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


def _of_group(group: dict[str, Any]) -> Iterator[Block]:
    """The blocks of a group of compressed-tensors."""
    weights = group.get("weights")
    if not isinstance(weights, dict):
        return
    own = _extents(weights.get("block_structure")) or _extents([1, weights.get("group_size")])
    if own:
        yield own


def _algorithm(said: dict[str, Any]) -> str:
    return str(said.get("quant_algo"))


def _extents(value: Any) -> Block | None:
    """A pair of extents, as a list or as in `128x128`."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}x[0-9]{1,6}", value):
        value = json.loads(f"[{value.replace('x', ',')}]")
    if not isinstance(value, list) or len(value) != 2:
        return None
    if not all(type(extent) is int and extent > 0 for extent in value):
        return None
    return value[0], value[1]
