"""A plain checkpoint becomes the same bytes in every version of recast: their hashes are recorded.

The models are made of names, shapes and random bits alone, so no library's version changes them.
What recognizes quantized weights and tensors that are wide on purpose must find nothing in them.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import recast
from recast.options import FloatName
from support import Raw, raw_bytes

Shapes = dict[str, list[int]]
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}

# Zeros, subnormal numbers of each dtype, ties that go down and up, an infinity and a NaN.
EDGES = [0, 0x80000000, 1, 0x33000001, 0x387FE000, 0x3F808000, 0x3F818000]
EDGES += [0x3F801000, 0x3F803000, 0x7F800000, 0x7FC00000]


def values(name: str, dtype: str, count: int) -> bytes:
    """Bits that depend on the name only: PCG64 gives the same ones in every version of numpy."""
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count).astype(np.uint32)
    if dtype in ("I64", "U8"):
        return (bits % 97).astype("<i8" if dtype == "I64" else "u1").tobytes()
    if dtype == "F16":
        return (bits & 0xBFFF).astype("<u2").tobytes()
    # Magnitudes from 2**-16 to 1, which go beyond the normal numbers of fp16 on one side.
    floats = (bits & 0x807FFFFF) | ((bits >> 27) % 16 + 111 << 23)
    floats[: len(EDGES)] = EDGES[:count]
    return (floats.astype("<u4") if dtype == "F32" else (floats >> 16).astype("<u2")).tobytes()


def shard(shapes: Shapes, dtype: str = "F32", **dtypes: str) -> bytes:
    """A file of those tensors; a tensor whose name ends in a key of `dtypes` has that dtype."""
    rows: list[Raw] = []
    for name, shape in shapes.items():
        own = dtypes.get(name.rpartition(".")[2], dtype)
        data = values(name, own, int(np.prod(shape)))
        assert len(data) == int(np.prod(shape)) * WIDTHS[own]
        rows.append((name, own, shape, data))
    return raw_bytes(rows, {"format": "pt"}, pad_to=8)


def llama(layers: range) -> Shapes:
    shapes: Shapes = {}
    for layer in layers:
        at = f"model.layers.{layer}."
        shapes[at + "input_layernorm.weight"] = [32]
        shapes |= {f"{at}mlp.{name}_proj.weight": [48, 32] for name in ("gate", "up")}
        shapes[at + "mlp.down_proj.weight"] = [32, 48]
        shapes[at + "post_attention_layernorm.weight"] = [32]
        shapes |= {f"{at}self_attn.{name}_proj.weight": [16, 32] for name in ("k", "v")}
        shapes |= {f"{at}self_attn.{name}_proj.weight": [32, 32] for name in ("q", "o")}
    return shapes


LLAMA = {"model.embed_tokens.weight": [96, 32], "model.norm.weight": [32]}
GPT2 = {
    "transformer.wte.weight": [96, 32],
    "transformer.wpe.weight": [64, 32],
    "transformer.h.0.ln_1.weight": [32],
    "transformer.h.0.ln_1.bias": [32],
    "transformer.h.0.attn.bias": [1, 1, 64, 64],
    "transformer.h.0.attn.masked_bias": [],
    "transformer.h.0.attn.c_attn.weight": [32, 96],
    "transformer.h.0.attn.c_attn.bias": [96],
    "transformer.h.0.mlp.c_fc.weight": [32, 128],
    "transformer.ln_f.weight": [32],
}
BERT = {
    "embeddings.position_ids": [1, 64],
    "embeddings.word_embeddings.weight": [96, 32],
    "embeddings.LayerNorm.gamma": [32],
    "embeddings.LayerNorm.beta": [32],
    "encoder.layer.0.attention.self.query.weight": [32, 32],
    "encoder.layer.0.attention.self.query.bias": [32],
    "pooler.dense.weight": [32, 32],
}
UNET = {
    "conv_in.weight": [16, 4, 3, 3],
    "conv_in.bias": [16],
    "time_embedding.linear_1.weight": [64, 16],
    "down_blocks.0.resnets.0.norm1.weight": [16],
    "down_blocks.0.resnets.0.time_emb_proj.weight": [16, 64],
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": [16, 24],
    "mid_block.attentions.0.proj_in.weight": [16, 16, 1, 1],
    "conv_out.weight": [4, 16, 3, 3],
}
VAE = {
    "decoder.conv_in.weight": [16, 4, 3, 3],
    "decoder.mid_block.attentions.0.group_norm.weight": [16],
    "decoder.up_blocks.0.resnets.0.conv1.weight": [16, 16, 3, 3],
    "encoder.conv_norm_out.bias": [16],
    "quant_conv.weight": [8, 8, 1, 1],
    "post_quant_conv.weight": [4, 4, 1, 1],
}
CLIP = {
    "logit_scale": [],
    "text_model.embeddings.position_embedding.weight": [77, 32],
    "text_model.encoder.layers.0.layer_norm1.weight": [32],
    "visual_projection.weight": [24, 32],
}
LORA = {
    f"base_model.model.model.layers.{layer}.self_attn.{name}_proj.lora_{part}.weight": shape
    for layer in range(2)
    for name in ("q", "v")
    for part, shape in (("A", [8, 32]), ("B", [32, 8]))
}
VIT = {
    "vit.embeddings.cls_token": [1, 1, 32],
    "vit.encoder.layer.0.layer_scale1.lambda1": [32],
    "vit.encoder.layer.0.attention.attention.query.weight": [32, 32],
    "vit.relative_position_index": [4, 4],
    "classifier.weight": [10, 32],
}


def index(shards: dict[str, Shapes]) -> str:
    weight_map = {name: file for file, shapes in shards.items() for name in shapes}
    size = 4 * sum(int(np.prod(shape)) for shapes in shards.values() for shape in shapes.values())
    return json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=2)


def config(model_type: str, dtype: str = "float32") -> str:
    return json.dumps({"model_type": model_type, "dtype": dtype})


SHARDS: dict[str, Shapes] = {
    "model-00001-of-00003.safetensors": LLAMA,
    "model-00002-of-00003.safetensors": llama(range(2)),
    "model-00003-of-00003.safetensors": llama(range(2, 4)) | {"lm_head.weight": [96, 32]},
}
MIXED = ("F32", "BF16", "F16")
MODELS: dict[str, dict[str, bytes | str]] = {
    "llama": {
        "model.safetensors": shard(LLAMA | llama(range(2)) | {"lm_head.weight": [96, 32]}),
        "config.json": config("llama"),
    },
    "llama of shards": {
        **{file: shard(shapes) for file, shapes in SHARDS.items()},
        "model.safetensors.index.json": index(SHARDS),
        "config.json": config("llama"),
    },
    "llama in bf16": {
        "model.safetensors": shard(LLAMA | llama(range(2)), "BF16"),
        "config.json": config("llama", "bfloat16"),
    },
    "gpt2, tied": {
        "model.safetensors": shard(GPT2),
        "config.json": config("gpt2"),
    },
    "gpt2 in fp16": {
        "model.safetensors": shard(GPT2, "F16"),
        "config.json": config("gpt2", "float16"),
    },
    "bert": {
        "model.safetensors": shard(BERT, position_ids="I64"),
        "config.json": config("bert"),
    },
    "vit": {
        "model.safetensors": shard(VIT, relative_position_index="I64"),
        "config.json": config("vit"),
    },
    "pipeline": {
        "unet/diffusion_pytorch_model.safetensors": shard(UNET),
        "unet/config.json": json.dumps({"_class_name": "UNet2DConditionModel"}),
        "vae/diffusion_pytorch_model.safetensors": shard(VAE),
        "vae/config.json": json.dumps({"_class_name": "AutoencoderKL"}),
        "text_encoder/model.safetensors": shard(CLIP, "F16"),
        "text_encoder/config.json": config("clip", "float16"),
        "model_index.json": json.dumps({"_class_name": "StableDiffusionPipeline"}),
    },
    "adapter": {
        "adapter_model.safetensors": shard(LORA),
        "adapter_config.json": json.dumps({"peft_type": "LORA", "r": 8}),
    },
    "shards of three dtypes": {
        **{file: shard(SHARDS[file], dtype) for file, dtype in zip(SHARDS, MIXED, strict=True)},
        "model.safetensors.index.json": index(SHARDS),
        "config.json": config("llama"),
    },
    "no config": {"model.safetensors": shard(UNET | VAE | {"mask": [8]}, mask="U8")},
}
# Recorded before recast recognized anything but floats: other bytes are another result for users.
RECORDED: dict[str, dict[FloatName, str]] = {
    "llama": {
        "fp32": "21d7ca248db38066705a7a2f0998e19e2f216e0c5fbf3b5c4d7f716a9d7ea4dc",
        "fp16": "8bd06714ebccd311e7c945c61dfba1fed47c62c0948dc5c6fd5fbdf25491d2c1",
        "bf16": "82875e49bd813413dfccae33704250f542b2a02aabf7590c5ccdaccda83e8740",
    },
    "llama of shards": {
        "fp32": "3f8d8f05a64741bc0692b39d74566a10d1e5c3a7e9b4c00067c34943c5e5ee51",
        "fp16": "10f43c60627d4a68f29a0e0660a3f2e7dddc61da1b88c2c8d24c5c11ee7c66a1",
        "bf16": "c09551a49a922291b978bf3c20d0611f6ef19c475c3bb54be598a7939f8dd640",
    },
    "llama in bf16": {
        "fp32": "240152886cce09b9af3509b559ee7f8b193c7fe7948e7c64e276f770159f91df",
        "fp16": "54c96b27ca18193ebabab68958a473389d5e722765dae68427595d28cd13ecc9",
        "bf16": "ce476ba2c920eca2e03f848db07d80beb24efaf360a8429510b9c96ff1a1c4e3",
    },
    "gpt2, tied": {
        "fp32": "dd092249239cddf8247ef0f797b7bfb9af0580b21446e70af46e3af3150cb4ea",
        "fp16": "9e6a75e2b1c1b0e55e9ceb4680b3273f91ec8096524293499e4ee9ab546861fe",
        "bf16": "2471c346ed968ee3a0757357fc7ebe245099da1c4ebdcc1bd7e4e388e2fcf341",
    },
    "gpt2 in fp16": {
        "fp32": "ca42c1342a48d439193ed9604c5c90030f90d746e3e859aa1959c73c354efb15",
        "fp16": "3538d34f26930de4df0709ff628bfcc32346562abde928842de2608674f251d5",
        "bf16": "1a02042f6a3067039fb562b40afa99ce01fb80f5853d28cd117bf0a7b84fbdc7",
    },
    "bert": {
        "fp32": "3f15dc72e613e3739b1172a8f7acdf4c06f15727321a8c18229576ec4a55f8c2",
        "fp16": "1fcc2add268b6ca38cbe24fa6c2ecddafeed28a46b59e21b0d6820fee9a2a738",
        "bf16": "cb12407d2137bf3400ef836daa37d99b380df6c5594d0adb7e779e7a294ecbcb",
    },
    "vit": {
        "fp32": "c25b7f20e879a4bd14477b5b1e30bc0f92b0b976d9c49cada62dbddf5a25286e",
        "fp16": "dc286174e07e5d3822d93f7c6cde5d4f8843c440d6ff3ec8dcca91a0d5081545",
        "bf16": "8673dc3f27b3639aed445b2fcd3972f633c300045e2f146daec512a5c2c8e01d",
    },
    "pipeline": {
        "fp32": "e61a3e2793f7145c1af86c46a42f26fae0592fe5ee7123601758cf7a18ece067",
        "fp16": "07b7670d14f57617d49baf303c47a1da562925173b4087cda73eca0990aa30a1",
        "bf16": "e836c6395038aa768487d5843519a3f694f9645f178c035e135eb3a599ed4594",
    },
    "adapter": {
        "fp32": "8aea6d5cc9370cef52ef361875466b502326318ab972de6ad22887b8f5da3123",
        "fp16": "959bc703227533c1e091afa5c06ea0d11ee319b06ecf4a1db07f52190d7ef651",
        "bf16": "b466098922c5da9354f9cac56017d48663e91f8652f3e3970bf58f0d5cd16b71",
    },
    "shards of three dtypes": {
        "fp32": "8fffb691220b11d2bce0587e6122ba97ee8868f697b85d609d33f7d99e856b9b",
        "fp16": "815d70e3577c8dbac76a587eabccf6ab434941eed106e884d1a08ce1383393ac",
        "bf16": "b7d4305d8fd933753946a1e9f912d7710ce4f645bbe42530e5687de1eafe95f8",
    },
    "no config": {
        "fp32": "6888fdfda04d3247a741a8c2a44e1016281fe266432d96e134747bbb02f0a9ee",
        "fp16": "b850459027875b70444fbb652086c1ea6a2fa331dec3240342ca8461a329971c",
        "bf16": "8f3b266c325a1e446e20244c8a83aa080892b88b2378183c27a8dd9c0991ed83",
    },
}


def sums(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.safetensors")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        yield f"{digest}  {path.relative_to(folder).as_posix()}\n"


@pytest.mark.parametrize("to", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_a_plain_model_becomes_the_bytes_that_it_always_became(
    model: str, to: FloatName, tmp_path: Path
) -> None:
    for name, content in MODELS[model].items():
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    recast.convert(tmp_path / "in", tmp_path / "out", to=to, sync=False)
    found = "".join(sums(tmp_path / "out"))
    assert hashlib.sha256(found.encode()).hexdigest() == RECORDED[model][to], found
