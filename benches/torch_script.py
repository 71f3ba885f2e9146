"""A script that one could use instead of recast: load each shard with torch, cast it, save it."""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    """Convert SOURCE (first argument) to DEST in a torch dtype (third), shard by shard."""
    source, dest, dtype = Path(sys.argv[1]), Path(sys.argv[2]), getattr(torch, sys.argv[3])
    dest.mkdir()
    for file in sorted(source.iterdir()):
        if file.suffix == ".safetensors":
            tensors = {
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                for name, tensor in load_file(file).items()
            }
            save_file(tensors, dest / file.name, metadata={"format": "pt"})
        else:
            shutil.copy(file, dest)


if __name__ == "__main__":
    main()
