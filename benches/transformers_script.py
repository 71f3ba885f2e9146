"""Another script that one could use instead of recast: load and save with transformers."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import LlamaForCausalLM


def main() -> None:
    """Convert SOURCE (first argument) to DEST in a torch dtype (third), all at once."""
    source, dest, dtype = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3])
    LlamaForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(dest)


if __name__ == "__main__":
    main()
