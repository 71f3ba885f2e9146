"""Load SOURCE in a dtype, or as it is stored, with one of two programs, and print the seconds;
with one argument more, a byte of each page is looked at."""

import sys
import time
from pathlib import Path

import recast
import torch
from safetensors.torch import load_file


def main() -> None:
    """Load once; `stored` for the dtype leaves it as it is."""
    program, source, to, *touch = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    dtype = None if to == "stored" else getattr(torch, to)
    # What both need once.
    torch.zeros(1 << 20).to(torch.bfloat16)
    start = time.perf_counter()
    if program == "recast":
        tensors = recast.load(source, dtype)
    else:
        tensors = {
            name: tensor if dtype is None else tensor.to(dtype)
            for file in sorted(source.glob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }
    if touch:
        for tensor in tensors.values():
            tensor.view(torch.uint8).reshape(-1)[::4096].sum()
    seconds = time.perf_counter() - start
    assert all(dtype in (None, tensor.dtype) for tensor in tensors.values())
    print(seconds)


if __name__ == "__main__":
    main()
