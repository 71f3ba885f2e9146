"""Values and dtypes of torch. What needs no torch is in support.py."""

import torch

# The workers share the cores.
torch.set_num_threads(1)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def floats(count: int, seed: int = 0) -> torch.Tensor:
    """`count` fp32 values that fit every target."""
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))
