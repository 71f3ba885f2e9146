"""What the tests of pickles as a source share: state dicts with every kind of view."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]
BLOCK = 4096
"""As many values as verification compares at each end of a tensor."""
TARGETS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TIED = {"lm_head.weight": "embed.weight"}
"""What a result leaves out of `state`, and what it is the same as."""


def state(seed: int = 1) -> State:
    """Tensors of two blocks and more, of several dtypes, and every kind of view; two are tied."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    embed = torch.nn.Parameter(normal(16, 8))
    return {
        "a": normal(5, BLOCK),
        "b": normal(5, BLOCK),
        "strided": normal(64, 192).t(),
        "channels": normal(4, 5, 3, 3).to(memory_format=torch.channels_last),
        "expanded": normal(8, 1).expand(8, 5),
        "view": normal(40)[4:20],
        "half": normal(33).half(),
        "ids": torch.arange(7),
        "mask": torch.arange(6).reshape(2, 3) % 2 == 0,
        "scalar": normal(),
        "none": torch.empty(0, 7),
        "embed.weight": embed,
        "lm_head.weight": embed,
    }


def as_made(tensors: State, to: str) -> State:
    """What a conversion makes of tensors, by torch's own cast."""
    cast = {name: tensor.detach() for name, tensor in tensors.items() if name not in TIED}
    if to in TARGETS:
        for name, tensor in cast.items():
            cast[name] = tensor.to(TARGETS[to]) if tensor.is_floating_point() else tensor
    return {name: tensor.contiguous().clone() for name, tensor in cast.items()}


def save(path: Path, value: Any, *, legacy: bool = False) -> Path:
    """A pickle, in the format of torch since 1.6 or the one before, with a config beside it."""
    path.parent.mkdir(exist_ok=True)
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    config = {"model_type": "x", "dtype": "float32", "text_config": {"torch_dtype": "float32"}}
    (path.parent / "config.json").write_text(json.dumps(config))
    return path


def rewrite(path: Path, change: Any) -> None:
    """Writes a shard again, after `change(tensors, metadata)`."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    with safe_open(path, "pt") as opened:
        metadata = dict(opened.metadata() or {})
    change(tensors, metadata)
    save_file(tensors, path, metadata or None)
