"""The judges of dequantized checkpoints: what others make of the same files, tensor by tensor."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy_kitchen
import ml_dtypes
import numpy as np
import torch
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.entrypoints.convert.converters import (
    CompressedTensorsDequantizer,
    FP8BlockDequantizer,
)
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from quantized_formats import swizzled, tensors_of
from quantized_models import Tensors, loaded
from recast.options import FloatName
from sources import NUMPY
from support import stored
from tensors import DTYPES
from torch.distributed.checkpoint.quantized_hf_storage import QuantizedHuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Values = dict[str, tuple[list[int], bytes]]
Judge = Callable[[Path, FloatName], Values]

READ: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "U8": np.uint8,
    "I8": np.int8,
    "I64": np.int64,
}
# What is no weight, in any of the schemes.
GONE = (
    r"(_scale_inv|weight_scale|weight_scale_2|weight_global_scale|\.scale|qscale_weight"
    r"|scale_weight|[_.]scales|input_scale|activation_scale|qscale_act|scale_input"
    r"|input_global_scale|[kv]_scale|comfy_quant|scaled_fp8)$"
)
TABLE = "embed.weight_scale"


def of_torch(tensors: Tensors) -> Values:
    return {
        name: (list(x.shape), x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, x in tensors.items()
    }


def found(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor below a directory: its dtype, its shape, its bytes."""
    every = {}
    for file in sorted(folder.rglob("*.safetensors")):
        every.update(stored(file))
    return every


# numpy and ml_dtypes


def arrays(folder: Path) -> Arrays:
    return {
        name: np.frombuffer(data, READ[dtype]).reshape(shape)
        for name, (dtype, shape, data) in found(folder).items()
    }


def number(scale: Array) -> Array:
    """A scale in fp32; plain bytes are exponents."""
    return scale.view(ml_dtypes.float8_e8m0fnu if scale.dtype == np.uint8 else scale.dtype).astype(
        np.float32
    )


def halves(packed: Array) -> Array:
    """Two numbers a byte, the low half first."""
    codes = packed.view(np.uint8)
    both = np.stack([codes & 15, codes >> 4], -1).view(ml_dtypes.float4_e2m1fn)
    return both.astype(np.float32).reshape(*packed.shape[:-1], -1)


def spread(scale: Array, shape: tuple[int, ...], block: tuple[int, int]) -> Array:
    """The scale of every element."""
    for axis, side in zip((-2, -1), block, strict=True):
        scale = np.repeat(scale, side, axis)
    return scale[..., : shape[-2], : shape[-1]]


Product = Callable[[str, Array, Arrays], Array | None]
"""The name of a tensor, the tensor, and all others: its values in fp32, where it is quantized."""


def by_numpy(product: Product, renamed: tuple[str, str] = ("$", "")) -> Judge:
    """The whole result: quantized tensors by `product`, all other floats cast."""

    @np.errstate(over="ignore")
    def judge(source: Path, to: FloatName) -> Values:
        every = arrays(source)
        values: Values = {}
        for name, x in every.items():
            if re.search(GONE, name):
                continue
            value = product(name, x, every)
            if value is None:
                assert x.dtype.itemsize > 1, f"{name} is quantized"
                value = x if x.dtype.kind in "iu" else x.astype(np.float32)
            else:
                assert value.dtype == np.float32
                name = re.sub(*renamed, name)
            if value.dtype == np.float32:
                value = value.astype(NUMPY[to])
            values[name] = (list(value.shape), np.ascontiguousarray(value).tobytes())
        return values

    return judge


def scaled(block: tuple[int, int] | None = None, *spellings: str) -> Judge:
    """fp8, or packed fp4, with a scale called by one of the spellings: for each block, or such
    that it broadcasts."""

    def product(name: str, codes: Array, every: Arrays) -> Array | None:
        stem = name.removesuffix("weight")
        names = [name + "_scale_inv", name + "_scale", *(stem + other for other in spellings)]
        scale = next((number(every[other]) for other in names if other in every), None)
        if scale is None:
            return None
        if codes.dtype in (np.int8, np.uint8):
            return spread(scale, (len(codes), 2 * codes.shape[1]), (1, 32)) * halves(codes)
        values: Array = codes.astype(np.float32)
        if scale.ndim == 4 and codes.ndim == 2:
            scale = scale[:, 0, :, 0]
        if block is not None:
            scale = spread(scale, values.shape, block)
        elif scale.size > 1:
            scale = scale.reshape(*scale.shape, *[1] * (codes.ndim - scale.ndim))
        return values * scale

    return by_numpy(product)


def packed(block: int, whole: str | None = None, packed_name: str = "weight_packed") -> Judge:
    """NVFP4 and MXFP4 of compressed-tensors and ModelOpt."""

    def product(name: str, codes: Array, every: Arrays) -> Array | None:
        stem = name.removesuffix(packed_name)
        if not name.endswith(packed_name) or stem + "weight_scale" not in every:
            return None
        scale = number(every[stem + "weight_scale"])
        if whole == "weight_global_scale":
            scale = scale / every[stem + whole]
        elif whole is not None:
            scale = scale * every[stem + whole]
        return halves(codes) * np.repeat(scale, block, -1)

    return by_numpy(product, (packed_name + "$", "weight"))


def of_the_table(name: str, codes: Array, every: Arrays) -> Array | None:
    """Tensors with a scale that is called after what they are parts of."""
    return codes.astype(np.float32) * every[TABLE]


def blocks_and_scales(name: str, codes: Array, every: Arrays) -> Array | None:
    """gpt-oss: experts, each one transposed, as transformers has them; OpenAI's own are not."""
    if not name.endswith("blocks"):
        return None
    scale = number(every[name.removesuffix("blocks") + "scales"])
    values = (halves(codes) * scale[..., None]).reshape(*scale.shape[:2], -1)
    return values if name.endswith(".blocks") else np.swapaxes(values, 1, 2)


# others


def torch_reader(block: int) -> Judge:
    """`torch.distributed.checkpoint`, which reads block fp8; it wants an index."""

    def judge(source: Path, to: FloatName) -> Values:
        index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
        shapes = {name: shape for name, (_, shape, _) in found(source).items()}
        names = [name for name in index if f"{name}_scale_inv" in index]
        state = {name: torch.zeros(shapes[name], dtype=DTYPES[to]) for name in names}
        reader = QuantizedHuggingFaceStorageReader(
            str(source), target_dtype=DTYPES[to], block_size=block
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(state, storage_reader=reader, no_dist=True)
        return of_torch(state)

    return judge


def block_converter(block: tuple[int, int]) -> Judge:
    """compressed-tensors' converter of block fp8."""

    def judge(source: Path, to: FloatName) -> Values:
        tensors = tensors_of(source)
        names = {name for name in tensors if f"{name}_scale_inv" in tensors}
        converter = FP8BlockDequantizer.from_pretrained(
            source, weight_block_size=block, dtype=DTYPES[to]
        )
        done = converter.process(tensors)
        return of_torch({name: done[name] for name in names})

    return judge


def each_expert(block: tuple[int, int]) -> Judge:
    """The step of that converter for a matrix, done to each expert of a tensor."""

    def judge(source: Path, to: FloatName) -> Values:
        tensors = tensors_of(source)
        converter = FP8BlockDequantizer(weight_block_size=block, dtype=DTYPES[to])
        step = converter._create_dequantized_weight
        return of_torch(
            {
                name: torch.stack([*map(step, x, tensors[f"{name}_scale_inv"])])
                for name, x in tensors.items()
                if f"{name}_scale_inv" in tensors
            }
        )

    return judge


def blocks_of_modelopt(source: Path, to: FloatName) -> Values:
    """The step of compressed-tensors' converter, for scales of four dimensions."""
    tensors = tensors_of(source)
    step = FP8BlockDequantizer(dtype=DTYPES[to])._create_dequantized_weight
    scaled = {name: x for name, x in tensors.items() if f"{name}_scale" in tensors}
    return of_torch(
        {name: step(x, tensors[f"{name}_scale"][:, 0, :, 0]) for name, x in scaled.items()}
    )


def converter(source: Path, to: FloatName) -> Values:
    """compressed-tensors' converter of its own formats. It multiplies in the dtype of the scale,
    so it is given that in fp32, where both mean the same."""
    tensors = tensors_of(source)
    for name, x in tensors.items():
        if name.endswith("weight_scale") and x.dtype in (torch.bfloat16, torch.float16):
            tensors[name] = x.float()
    names = {
        re.sub("weight_packed$", "weight", name) for name in tensors if is_codes(name, tensors)
    }
    # It takes whatever is called a weight for a quantized one.
    plain = ["re:.*embed_tokens$", "re:.*norm$"]
    done = CompressedTensorsDequantizer(source, plain, DTYPES[to]).process(tensors)
    return of_torch({name: done[name] for name in names})


def is_codes(name: str, tensors: Tensors) -> bool:
    return name.removesuffix("_packed") + "_scale" in tensors


def nvfp4_of_compressed_tensors(source: Path, to: FloatName) -> Values:
    """Its own steps in fp32, because its decompressor ends in bf16 whatever the target."""
    tensors = tensors_of(source)
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16)
    values: Tensors = {}
    for name, x in tensors.items():
        if name.endswith("weight_packed"):
            stem = name.removesuffix("_packed")
            rows, columns = x.shape
            values[stem] = dequantize(
                unpack_fp4_from_uint8(x, rows, 2 * columns, torch.float32),
                tensors[f"{stem}_scale"].float(),
                args=args,
                global_scale=tensors[f"{stem}_global_scale"],
                dtype=torch.float32,
            ).to(DTYPES[to])
    return of_torch(values)


def whole_scales(source: Path, to: FloatName) -> Values:
    """compressed-tensors' own step for one scale a matrix or a row, in fp32."""
    tensors = tensors_of(source)
    values: Tensors = {}
    for name, x in tensors.items():
        stem = name.removesuffix("weight")
        names = (name + "_scale_inv", name + "_scale", stem + "qscale_weight", TABLE)
        scale = next((tensors[other].float() for other in names if other in tensors), None)
        if scale is not None and x.itemsize == 1:
            strategy = "tensor" if scale.numel() == 1 else "channel"
            args = QuantizationArgs(num_bits=8, type="float", strategy=strategy)
            scale = scale.reshape(-1, 1) if scale.numel() > 1 else scale
            values[name] = dequantize(x, scale, args=args).to(DTYPES[to])
    return of_torch(values)


def of_transformers(source: Path, to: FloatName) -> Values:
    """All parameters of the model that transformers makes of it."""
    said = json.loads((source / "config.json").read_text())["quantization_config"]
    kinds = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
    given = {key: value for key, value in said.items() if key not in ("quant_method", "fmt")}
    quantization = kinds[said["quant_method"]](**given, dequantize=True)
    state = loaded(source, to, quantization).state_dict()
    # Some models keep their norms in fp32 beside fp16: those are cast once more.
    return of_torch({name: x if "proj" in name else x.to(DTYPES[to]) for name, x in state.items()})


def operation(source: Path, to: FloatName) -> Values:
    """The step of transformers that dequantizes, without a model."""
    tensors = tensors_of(source)
    step = Fp8Dequantize(None)
    values: Tensors = {}
    for name, x in tensors.items():
        names = (f"{name}_scale_inv", name.removesuffix("weight") + "scale")
        scale = next((tensors[other] for other in names if other in tensors), None)
        if scale is not None:
            values[name] = step._dequantize_one(x, scale, DTYPES[to])
    return of_torch(values)


def moe_packed(source: Path, to: FloatName) -> Values:
    """The step of transformers that dequantizes and transposes the experts of gpt-oss."""
    tensors = tensors_of(source)
    values: Tensors = {}
    for name, x in tensors.items():
        if name.endswith("blocks"):
            scales = tensors[name.removesuffix("blocks") + "scales"]
            value = convert_moe_packed_tensors(x, scales, dtype=DTYPES[to])
            if name.endswith(".blocks"):
                value = value.transpose(1, 2)
            values[name[: -len("_blocks")]] = value
    return of_torch(values)


def comfy_in_fp32(source: Path, to: FloatName) -> Values:
    """comfy-kitchen at fp32, where it multiplies what it should."""
    tensors = tensors_of(source)
    values: Tensors = {}
    for name, x in tensors.items():
        names = (f"{name}_scale", name.removesuffix("weight") + "scale_weight")
        scale = next((tensors[other] for other in names if other in tensors), None)
        second = tensors.get(f"{name}_scale_2")
        if scale is None:
            continue
        if second is None:
            value = comfy_kitchen.dequantize_per_tensor_fp8(x, scale, torch.float32)
        else:
            value = comfy_kitchen.dequantize_nvfp4(
                x, second, swizzled(scale), torch.float32, hi_first=False
            )
        values[name] = value.to(DTYPES[to])
    return of_torch(values)
