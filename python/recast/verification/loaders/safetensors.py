"""Loading with the safetensors library alone: what most programs do with a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING

from recast.gpu.predict import Memory, predict_here
from recast.terminal import shown
from recast.verification.dtypes import NOT_IN_TORCH
from recast.verification.header import Headers, Key
from recast.verification.loaders.protocol import LoadError
from recast.verification.loaders.sealed import utf8_path
from recast.verification.measure import Allocation

if TYPE_CHECKING:
    import torch


class Safetensors:
    """Every tensor of every shard, in the order of the files and of their data."""

    def __init__(self, root: Path, headers: Headers, device: str) -> None:
        self.root, self.headers, self.device = root, headers, device
        self.tensors: dict[Key, torch.Tensor] = {}

    def predict(self) -> tuple[list[Allocation], Memory]:
        """One allocation for each tensor, in the order of loading."""
        entries = [
            Allocation(f"'{name}' in {file}", entry.bytes)
            for file, entries in self.headers.items()
            for name, entry in entries.items()
            if entry.dtype not in NOT_IN_TORCH
        ]
        return entries, predict_here(entry.bytes for entry in entries)

    def load(self) -> "dict[Key, torch.Tensor]":
        """On a CPU the tensors are the mapped file."""
        import torch
        from safetensors import safe_open

        for file, entries in self.headers.items():
            try:
                with (
                    utf8_path(self.root / file) as path,
                    safe_open(path, "pt", device=self.device) as opened,
                ):
                    for name in (n for n, e in entries.items() if e.dtype not in NOT_IN_TORCH):
                        self.tensors[file, name] = opened.get_tensor(name)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:
                # torch has its own limits for shapes, and its own exceptions for them.
                reason = shown(error)
                raise LoadError(f"safetensors cannot load {shown(file)}: {reason}") from error
        return self.tensors

    def allocations(self) -> list[Allocation]:
        """The tensors as they were loaded."""
        return [
            Allocation(f"'{name}' in {file}", tensor.nbytes, tensor.data_ptr())
            for (file, name), tensor in self.tensors.items()
        ]

    def find(self, key: Key) -> "torch.Tensor | None":
        """The tensor, unless torch has no dtype for it."""
        return self.tensors.get(key)

    def notes(self) -> list[str]:
        """How many tensors were not loaded."""
        dtypes = [entry.dtype for file in self.headers.values() for entry in file.values()]
        if not (count := sum(dtype in NOT_IN_TORCH for dtype in dtypes)):
            return []
        return [f"torch has no dtype for {count} tensors, which were compared as files only"]
