"""The other thing one writes without recast: load the model with transformers and save it."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import LlamaForCausalLM


def main() -> None:
    """Convert SOURCE to DEST in the torch dtype named third, the whole model at once."""
    source, dest, dtype = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3])
    LlamaForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(dest)


if __name__ == "__main__":
    main()
