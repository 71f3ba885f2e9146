"""How much GPU memory Llama-2-7B takes in each dtype, from headers alone, exact to the byte.

A well-known article multiplies the parameters by the bytes of the dtype, then measures somewhat
more with `torch.cuda.memory_allocated()`, and attributes the difference to overhead. That is wrong:
transformers 4.32, which the article used, keeps the rotary embedding of each layer in buffers that
no checkpoint stores. This script writes a checkpoint of the same shapes whose data is a hole, asks
recast for its GPU memory, adds those buffers, and gets exactly the measured figures.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import recast
from recast.dtypes import CASTABLE
from recast.gpu.predict import predict

GIB = 1 << 30
LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 32, 4096, 11008, 32000
POSITIONS, HEAD = 2048, 128
PARAMETERS = 6_738_415_616
# In GiB, copied from the article.
EXPECTED = {"fp32": 25.102554321289062, "fp16": 12.551277160644531, "bf16": 12.551277160644531}
MEASURED = {"fp32": 25.165069580078125, "fp16": 12.582542419433594, "bf16": 12.582542419433594}


def shapes() -> dict[str, list[int]]:
    """Every weight of Llama-2-7B."""
    layer = {
        **{f"self_attn.{name}_proj": [HIDDEN, HIDDEN] for name in "qkvo"},
        **{f"mlp.{name}_proj": [INTERMEDIATE, HIDDEN] for name in ("gate", "up")},
        "mlp.down_proj": [HIDDEN, INTERMEDIATE],
        **{f"{name}_layernorm": [HIDDEN] for name in ("input", "post_attention")},
    }
    return {
        "model.embed_tokens.weight": [VOCABULARY, HIDDEN],
        **{
            f"model.layers.{number}.{name}.weight": shape
            for number in range(LAYERS)
            for name, shape in layer.items()
        },
        "model.norm.weight": [HIDDEN],
        "lm_head.weight": [VOCABULARY, HIDDEN],
    }


def write_checkpoint(path: Path) -> None:
    """A safetensors file of fp16 weights: a real header, and a hole of 12.6 GiB for the data."""
    header, end = {}, 0
    for name, shape in shapes().items():
        start, end = end, end + 2 * count(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)


def count(shape: list[int]) -> int:
    """Elements of a tensor."""
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def rotary_buffers(width: int) -> list[int]:
    """The sizes of the buffers: cos, sin and 64 inverse frequencies (fp32) for each layer."""
    table = POSITIONS * HEAD * width
    return [table, table, HEAD // 2 * 4] * LAYERS


def main() -> int:
    """Write, inspect, compare."""
    with tempfile.TemporaryDirectory(prefix="recast-llama-") as folder:
        path = Path(folder) / "model.safetensors"
        write_checkpoint(path)
        model = recast.inspect(path)

    print(f"Llama-2-7B: {model.parameters:,} parameters in {model.tensors} tensors; sizes in GiB")
    print()
    print("      expected            predicted           with rotary         measured")
    right = model.parameters == PARAMETERS
    rotary = {}
    for dtype in EXPECTED:
        width = CASTABLE[dtype].bits // 8
        weights = [count(shape) * width for shape in shapes().values()]
        loaded = predict(weights + rotary_buffers(width)).allocated
        predicted = model.gpu_memory[dtype]["allocated"]
        rotary[dtype] = loaded - predicted
        row = (EXPECTED[dtype], predicted / GIB, loaded / GIB, MEASURED[dtype])
        print(dtype, *(f"{value!r:<18}" for value in row), sep="  ")
        right &= row[0] == row[1] and row[2] == row[3]
    print()
    print("expected     parameters x bytes, as the article says")
    print("predicted    what recast inspect says that PyTorch will allocate")
    print("with rotary  the same and 32 layers x (cos + sin of 2048 x 128, and 64 frequencies):")
    for dtype, size in rotary.items():
        print(f"             {size:,} bytes in {dtype}")
    print("measured     by the article, on a GPU")
    print()
    print("ok: exact to the byte" if right else "FAIL: the figures differ")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
