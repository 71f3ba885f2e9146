"""Write the same random Llama as one PyTorch pickle and as one safetensors file, each with its
config, in folders of their own. A program of its own, because torch makes a process large."""

import json
import sys
from pathlib import Path

import torch
from inputs import llama, llama_shapes
from safetensors.torch import save_file


def main() -> None:
    """Write a Llama of so many megabytes (second argument) into a folder (first argument)."""
    folder = Path(sys.argv[1])
    config = llama(int(sys.argv[2]))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.02
        for name, shape in llama_shapes(config).items()
    }
    for name in ("pickle", "safetensors"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config, indent=2))
    torch.save(tensors, folder / "pickle" / "pytorch_model.bin")
    file = folder / "safetensors" / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
