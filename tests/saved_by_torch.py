"""State dicts that torch saves, in both of its formats, and what recast must make of them.

The judge is safetensors' own writer, of what torch loads and casts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sources import Tensors
from tensors import DTYPES

FORMATS = ["zip", "legacy"]
NO_NOTES: Mapping[str, str] = {}


def save(value: object, path: Path, format: str = "zip") -> Path:
    """Writes a value as torch does now, or as it did before version 1.6."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path, _use_new_zipfile_serialization=format == "zip")
    return path


def load(path: Path) -> Any:
    """What torch loads of a file, without trusting it."""
    return torch.load(path, weights_only=True, map_location="cpu")


def cast(x: torch.Tensor, to: str) -> torch.Tensor:
    """A tensor as torch casts it: all but integers, complex numbers and exponents."""
    floating = x.is_floating_point() and x.dtype != torch.float8_e8m0fnu
    return x.to(DTYPES[to]) if floating and to != "as-stored" else x


def parts(file: Path) -> tuple[dict[str, str], list[tuple[str, Any]], bytes]:
    """The metadata of a safetensors file, its entries in order, and its data."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    return header.pop("__metadata__", {}), list(header.items()), data[end:]


def assert_written(
    file: Path, tensors: Tensors, to: str, notes: Mapping[str, str] = NO_NOTES
) -> None:
    """`file` has the bytes that the official writer makes of torch's cast.

    `notes` says which tensors are not written, because they are the same as others: what
    metadata must say.
    """
    # Copies, because the writer refuses tensors that share their storage.
    copies = {
        name: cast(x.detach(), to).contiguous().clone()
        for name, x in tensors.items()
        if name not in notes
    }
    expected = file.with_name("expected")
    save_file(copies, expected, {"format": "pt"})
    if notes:
        # Of more than one key, the order in the official writer's metadata is random.
        metadata, entries, data = parts(file)
        assert metadata == {"format": "pt", **notes}
        assert (entries, data) == parts(expected)[1:]
    else:
        assert file.read_bytes() == expected.read_bytes()
    expected.unlink()


def save_shards(folder: Path, tensors: Tensors, most: int, stem: str = "pytorch_model") -> None:
    """Shards of at most so many bytes and their index, as `save_pretrained` wrote them before
    version 5 of transformers: what shares its storage is in one shard, and counts once."""
    shards: list[Tensors] = [{}]
    sizes = [0]
    places: dict[int, int] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        if storage not in places:
            if shards[-1] and sizes[-1] + tensor.nbytes > most:
                shards.append({})
                sizes.append(0)
            places[storage] = len(shards) - 1
            sizes[-1] += tensor.nbytes
        shards[places[storage]][name] = tensor
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.bin"
        save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / f"{stem}.bin.index.json").write_text(text)
