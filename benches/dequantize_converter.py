"""compressed-tensors' own converter of block fp8, on the CPU, with its defaults."""

import sys

import torch
from compressed_tensors.entrypoints.convert import convert_checkpoint
from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer


def main() -> None:
    """Convert SOURCE (first argument) to DEST (second)."""
    source, dest = sys.argv[1:]
    converter = FP8BlockDequantizer.from_pretrained(
        source, weight_block_size=(128, 128), dtype=torch.bfloat16
    )
    convert_checkpoint(source, dest, converter, device="cpu")


if __name__ == "__main__":
    main()
