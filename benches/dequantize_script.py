"""What the script that DeepSeek publishes with its models does, with the formula of its kernel in
torch, because the kernel needs a GPU: shard by shard, scales from wherever they are, two shards in
memory, a new index. Like that, it copies neither config nor tokenizer."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BLOCK = 128


def dequantize(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weight in bf16."""
    wide = scales.repeat_interleave(BLOCK, 0)[: codes.shape[0]]
    wide = wide.repeat_interleave(BLOCK, 1)[:, : codes.shape[1]]
    return (codes.float() * wide).bfloat16()


def main() -> None:
    """Convert SOURCE (first argument) to DEST (second)."""
    source, dest = Path(sys.argv[1]), Path(sys.argv[2])
    dest.mkdir()
    index = json.loads((source / "model.safetensors.index.json").read_text())
    weight_map: dict[str, str] = index["weight_map"]
    loaded: dict[str, dict[str, torch.Tensor]] = {}

    def get(name: str) -> torch.Tensor:
        file = weight_map[name]
        if file not in loaded:
            loaded[file] = load_file(source / file)
        return loaded[file][name]

    for path in sorted(source.glob("*.safetensors")):
        loaded[path.name] = load_file(path)
        made = {}
        for name, tensor in loaded[path.name].items():
            if name.endswith("_scale_inv"):
                continue
            if tensor.element_size() == 1:
                tensor = dequantize(tensor, get(f"{name}_scale_inv"))
            made[name] = tensor
        save_file(made, dest / path.name)
        while len(loaded) > 2:
            del loaded[next(iter(loaded))]
    kept = {name: file for name, file in weight_map.items() if not name.endswith("_scale_inv")}
    text = json.dumps({"metadata": {}, "weight_map": kept}, indent=2)
    (dest / "model.safetensors.index.json").write_text(text)


if __name__ == "__main__":
    main()
