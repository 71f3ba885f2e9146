"""Every supported way to quantize a checkpoint: who writes it, and who else can read it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from dequantizers import (
    Judge,
    block_converter,
    blocks_and_scales,
    blocks_of_modelopt,
    by_numpy,
    comfy_in_fp32,
    converter,
    each_expert,
    moe_packed,
    nvfp4_of_compressed_tensors,
    of_the_table,
    of_transformers,
    operation,
    packed,
    scaled,
    torch_reader,
    whole_scales,
)
from quantized_formats import (
    comfy,
    compressed,
    fused_experts,
    modelopt,
    scheme,
    shared_scale,
)
from quantized_models import (
    auto_fp8,
    deepseek_v4,
    fbgemm,
    fine_grained,
    gpt_oss,
    mistral,
    mistral_native,
    ragged,
)


@dataclass(frozen=True)
class Case:
    """How it is written, and its judges; the first one knows the whole result."""

    write: Callable[[Path], object]
    judges: tuple[Judge, ...]


def of_blocks(write: Callable[[Path], object], side: int, *others: Judge) -> Case:
    square = (side, side)
    return Case(write, (scaled(square), block_converter(square), *others))


SMALL = scaled((64, 32), "scale")
FLOATS = scaled(None, "qscale_weight", "scale_weight")
GPT_OSS = by_numpy(blocks_and_scales, ("[_.]blocks$", ""))
CASES: dict[str, Case] = {
    "block fp8, Qwen3": Case(
        fine_grained, (SMALL, block_converter((64, 32)), of_transformers, operation)
    ),
    "block fp8, DeepSeek-V3, shards": Case(
        partial(fine_grained, kind="deepseek_v3", shards=3), (SMALL, block_converter((64, 32)))
    ),
    "block fp8, square, shards": of_blocks(
        partial(fine_grained, block=(64, 64), shards=4),
        64,
        torch_reader(64),
        of_transformers,
    ),
    "block fp8, ragged, shards": of_blocks(ragged, 40, torch_reader(40)),
    "block fp8, ragged, large blocks": of_blocks(
        partial(ragged, kind="qwen3", side=80, shards=2), 80, torch_reader(80)
    ),
    **{
        f"block fp8, scales in {scale}": of_blocks(
            partial(fine_grained, block=(64, 64), scale=scale, shards=2),
            64,
            torch_reader(64),
            operation,
        )
        for scale in ("bfloat16", "float16")
    },
    "block fp8, scales in E8M0": of_blocks(
        partial(fine_grained, block=(64, 64), scale="float8_e8m0fnu"),
        64,
        operation,
    ),
    "MXFP8": Case(
        partial(fine_grained, block=(1, 32), scale="uint8"), (scaled((1, 32)), operation)
    ),
    "fused experts": Case(fused_experts, (scaled((64, 32)), each_expert((64, 32)))),
    "DeepSeek-V4": Case(deepseek_v4, (scaled((32, 16), "scale"), operation)),
    "Mistral": Case(mistral, (FLOATS, of_transformers, whole_scales)),
    "Mistral, native names": Case(mistral_native, (FLOATS, whole_scales)),
    "AutoFP8": Case(auto_fp8, (FLOATS, whole_scales)),
    "fbgemm": Case(fbgemm, (FLOATS, whole_scales)),
    "one scale for several": Case(shared_scale, (by_numpy(of_the_table), whole_scales)),
    "compressed-tensors, a tensor": Case(
        partial(compressed, chosen=scheme("FP8")), (FLOATS, converter)
    ),
    "compressed-tensors, a row": Case(
        partial(compressed, chosen=scheme("FP8_DYNAMIC"), dtype=torch.float16),
        (FLOATS, converter, whole_scales),
    ),
    "compressed-tensors, a row, fp32": Case(
        partial(compressed, chosen=scheme("FP8_DYNAMIC"), dtype=torch.float32),
        (FLOATS, converter, whole_scales),
    ),
    "compressed-tensors, groups": Case(
        partial(compressed, chosen=scheme("FP8", strategy="group", group_size=64)),
        (scaled((1, 64)), converter),
    ),
    "compressed-tensors, blocks": Case(
        partial(compressed, chosen=scheme("FP8_BLOCK", block_structure=[64, 80])),
        (scaled((64, 80)), converter),
    ),
    "compressed-tensors, NVFP4": Case(
        partial(compressed, chosen=scheme("NVFP4")),
        (packed(16, "weight_global_scale"), nvfp4_of_compressed_tensors),
    ),
    "compressed-tensors, NVFP4, weights only": Case(
        partial(compressed, chosen=scheme("NVFP4A16"), dtype=torch.float32),
        (packed(16, "weight_global_scale"), nvfp4_of_compressed_tensors),
    ),
    "compressed-tensors, MXFP4": Case(
        partial(compressed, chosen=scheme("MXFP4")), (packed(32), converter)
    ),
    "compressed-tensors, MXFP8": Case(
        partial(compressed, chosen=scheme("MXFP8")), (scaled((1, 32)), converter)
    ),
    "gpt-oss": Case(gpt_oss, (GPT_OSS, moe_packed, of_transformers)),
    "gpt-oss, OpenAI's names": Case(partial(gpt_oss, spelling="."), (GPT_OSS, moe_packed)),
    **{
        f"ComfyUI, {spelling}": Case(partial(comfy, spelling=spelling), (FLOATS, comfy_in_fp32))
        for spelling in ("old", "layers", "metadata", "unmarked")
    },
    "ComfyUI, e5m2": Case(
        partial(comfy, spelling="old", dtype=torch.float8_e5m2, source=torch.float32),
        (FLOATS, comfy_in_fp32),
    ),
    "ModelOpt, FP8": Case(partial(modelopt, algorithm="FP8"), (FLOATS, whole_scales)),
    "ModelOpt, FP8 a row": Case(
        partial(modelopt, algorithm="FP8_PER_CHANNEL_PER_TOKEN"), (FLOATS, whole_scales)
    ),
    "ModelOpt, FP8 in blocks": Case(
        partial(modelopt, algorithm="FP8_PB_WO"), (scaled((128, 128)), blocks_of_modelopt)
    ),
    "ModelOpt, NVFP4": Case(
        partial(modelopt, algorithm="NVFP4"),
        (packed(16, "weight_scale_2", "weight"), comfy_in_fp32),
    ),
    "ModelOpt, NVFP4, in the config": Case(
        partial(modelopt, algorithm="NVFP4", in_config=True),
        (packed(16, "weight_scale_2", "weight"), comfy_in_fp32),
    ),
}
