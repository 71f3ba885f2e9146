"""A script that one could use instead of recast: load a pickle with torch as its documentation
says, mapped and without trusting it, cast it, save it as safetensors."""

import shutil
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file


def main() -> None:
    """Convert SOURCE (first argument) to DEST in bf16, and print the seconds this took."""
    source, dest = Path(sys.argv[1]), Path(sys.argv[2])
    start = time.perf_counter()
    dest.mkdir()
    shutil.copy(source / "config.json", dest)
    stored = torch.load(source / "pytorch_model.bin", weights_only=True, mmap=True)
    tensors = {name: tensor.bfloat16() for name, tensor in stored.items()}
    save_file(tensors, dest / "model.safetensors", metadata={"format": "pt"})
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
