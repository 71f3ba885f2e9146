"""The ways to save one quantized model, each as a library saves it and in its barest form: the
safetensors file alone, without a config, a sidecar or metadata. Each is dequantized, or refused by
name; none is cast.

Names, dtypes and shapes are those that the libraries write for a layer of 128 inputs and 64
outputs; the values are of no importance.
"""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import recast
from recast.options import FloatName
from support import raw_bytes, stored

Layer = dict[str, tuple[str, list[int]]]

BITS = {"F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "U8": 8, "I8": 8}
BITS |= {"I32": 32, "U32": 32, "I64": 64}
FP8 = "F8_E4M3"
GPTQ: Layer = {
    "m.qweight": ("I32", [16, 64]),
    "m.qzeros": ("I32", [1, 8]),
    "m.scales": ("F16", [1, 64]),
    "m.g_idx": ("I32", [128]),
    "m.bias": ("F16", [64]),
}
AWQ: Layer = {
    "m.qweight": ("I32", [128, 8]),
    "m.qzeros": ("I32", [1, 8]),
    "m.scales": ("F16", [1, 64]),
}
NVFP4: Layer = {
    "m.weight": ("U8", [64, 64]),
    "m.weight_scale": (FP8, [64, 8]),
    "m.weight_scale_2": ("F32", []),
    "m.input_scale": ("F32", []),
}
NF4: Layer = {
    "m.weight": ("U8", [4096, 1]),
    "m.weight.absmax": ("F32", [128]),
    "m.weight.quant_map": ("F32", [16]),
    "m.weight.quant_state.bitsandbytes__nf4": ("U8", [79]),
}
# The scheme, the tensors, and what stands beside them where the library writes a directory.
FORMS: dict[str, tuple[str, Layer, dict[str, Any]]] = {
    "GPTQ": (
        "GPTQ",
        GPTQ,
        {
            "config": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantize_config": {"bits": 4, "group_size": 128, "desc_act": False},
        },
    ),
    "GPTQ, AutoGPTQ's sidecar only": (
        "GPTQ",
        GPTQ,
        {"config": {}, "quantize_config": {"bits": 4, "group_size": 128}},
    ),
    "GPTQ, symmetric": (
        "GPTQ",
        {name: GPTQ[name] for name in ("m.qweight", "m.scales")},
        {"config": {"quantization_config": {"quant_method": "gptq", "sym": True}}},
    ),
    "AWQ": ("AWQ", AWQ, {"config": {"quantization_config": {"quant_method": "awq"}}}),
    "AWQ, llm-awq's sidecar only": (
        "AWQ",
        AWQ,
        {"config": {}, "quant_config": {"zero_point": True, "q_group_size": 128, "w_bit": 4}},
    ),
    "ModelOpt FP8": (
        "fp8",
        {
            "m.weight": (FP8, [64, 128]),
            "m.weight_scale": ("F32", []),
            "m.input_scale": ("F32", []),
            "m.k_scale": ("F32", []),
        },
        {"config": {}, "hf_quant_config": {"quantization": {"quant_algo": "FP8"}}},
    ),
    "ModelOpt NVFP4": (
        "ModelOpt NVFP4",
        NVFP4,
        {
            "config": {},
            "hf_quant_config": {
                "producer": {"name": "modelopt", "version": "0.29.0"},
                "quantization": {"quant_algo": "NVFP4", "group_size": 16},
            },
        },
    ),
    "ModelOpt NVFP4, weights only": (
        "ModelOpt NVFP4",
        {name: NVFP4[name] for name in NVFP4 if name != "m.input_scale"},
        {"config": {"quantization_config": {"quant_method": "modelopt"}}},
    ),
    "ModelOpt NVFP4, fused experts": (
        "ModelOpt NVFP4",
        {
            "experts.down_proj": ("U8", [4, 64, 64]),
            "experts.down_proj_weight_scale": (FP8, [4, 64, 8]),
            "experts.down_proj_weight_scale_2": ("F32", [4]),
            "experts.down_proj_input_scale": ("F32", [4]),
        },
        {"config": {"quantization_config": {"quant_method": "modelopt"}}},
    ),
    "compressed-tensors float-quantized": (
        "fp8",
        {"m.weight": (FP8, [64, 128]), "m.weight_scale": ("BF16", [64, 1])},
        {"config": {"quantization_config": {"format": "float-quantized"}}},
    ),
    "compressed-tensors int-quantized": (
        "int8",
        {"m.weight": ("I8", [64, 128]), "m.weight_scale": ("BF16", [64, 1])},
        {"config": {"compression_config": {"format": "int-quantized"}}},
    ),
    "compressed-tensors pack-quantized": (
        "compressed-tensors packed",
        {
            "m.weight_packed": ("I32", [64, 16]),
            "m.weight_scale": ("BF16", [64, 1]),
            "m.weight_shape": ("I64", [2]),
        },
        {"config": {"quantization_config": {"format": "pack-quantized"}}},
    ),
    "compressed-tensors nvfp4-pack-quantized": (
        "NVFP4",
        {
            "m.weight_packed": ("U8", [64, 64]),
            "m.weight_scale": (FP8, [64, 8]),
            "m.weight_global_scale": ("F32", [1]),
            "m.input_global_scale": ("F32", [1]),
        },
        {"config": {"quantization_config": {"format": "nvfp4-pack-quantized"}}},
    ),
    "compressed-tensors mxfp4-pack-quantized": (
        "compressed-tensors packed",
        {"m.weight_packed": ("U8", [64, 64]), "m.weight_scale": ("U8", [64, 4])},
        {"config": {"quantization_config": {"format": "mxfp4-pack-quantized"}}},
    ),
    "compressed-tensors mxfp8-quantized": (
        "fp8",
        {"m.weight": (FP8, [64, 128]), "m.weight_scale": ("U8", [64, 4])},
        {"config": {"quantization_config": {"format": "mxfp8-quantized"}}},
    ),
    "MLX": (
        "MLX",
        {
            "m.weight": ("U32", [64, 16]),
            "m.scales": ("BF16", [64, 2]),
            "m.biases": ("BF16", [64, 2]),
        },
        {"config": {"quantization": {"group_size": 64, "bits": 4}}},
    ),
    "MLX mxfp4": (
        "MLX",
        {"m.weight": ("U32", [64, 16]), "m.scales": ("U8", [64, 4])},
        {"config": {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}},
    ),
    "quanto int8": (
        "quanto",
        {
            "m.weight._data": ("I8", [64, 128]),
            "m.weight._scale": ("F32", [64, 1]),
            "m.input_scale": ("F32", []),
            "m.output_scale": ("F32", []),
        },
        {"config": {}, "quanto_qmap": {"m": {"weights": "qint8", "activations": "none"}}},
    ),
    "quanto int4": (
        "quanto",
        {
            "m.weight._data": ("U8", [32, 128]),
            "m.weight._scale": ("F32", [64, 1]),
            "m.weight._shift": ("F32", [64, 1]),
        },
        {"config": {"quantization_config": {"quant_method": "quanto"}}},
    ),
    "quanto fp8": (
        "quanto",
        {"m.weight._data": (FP8, [64, 128]), "m.weight._scale": ("F32", [64, 1])},
        {"config": {}, "quanto_qmap": {"m": {"weights": "qfloat8_e4m3fn"}}},
    ),
    "ComfyUI, old names": (
        "ComfyUI fp8",
        {
            "m.weight": (FP8, [64, 128]),
            "m.scale_weight": ("F32", []),
            "m.scale_input": ("F32", []),
            "scaled_fp8": (FP8, [2]),
        },
        {},
    ),
    "ComfyUI, old names, no marker": (
        "ComfyUI fp8",
        {"m.weight": ("F8_E5M2", [64, 128]), "m.scale_weight": ("F32", [1])},
        {},
    ),
    "ComfyUI, new names": (
        "fp8",
        {
            "m.weight": (FP8, [64, 128]),
            "m.weight_scale": ("F32", []),
            "m.comfy_quant": ("U8", [26]),
        },
        {},
    ),
    "ComfyUI, new names, no marker": (
        "fp8",
        {"m.weight": (FP8, [64, 128]), "m.weight_scale": ("F32", [])},
        {},
    ),
    "bitsandbytes nf4": (
        "bitsandbytes 4-bit",
        NF4,
        {"config": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}},
    ),
    "bitsandbytes nf4, double": (
        "bitsandbytes 4-bit",
        {
            **NF4,
            "m.weight.absmax": ("U8", [128]),
            "m.weight.nested_absmax": ("F32", [1]),
            "m.weight.nested_quant_map": ("F32", [256]),
        },
        {"config": {"quantization_config": {"quant_method": "bitsandbytes"}}},
    ),
    "bitsandbytes fp4 in bf16": (
        "bitsandbytes 4-bit",
        {
            "m.weight": ("BF16", [2048, 1]),
            "m.weight.absmax": ("F32", [128]),
            "m.weight.quant_map": ("F32", [16]),
            "m.weight.quant_state.bitsandbytes__fp4": ("U8", [79]),
        },
        {"config": {"quantization_config": {"quant_method": "bitsandbytes"}}},
    ),
    "bitsandbytes int8": (
        "bitsandbytes int8",
        {"m.weight": ("I8", [64, 128]), "m.SCB": ("F32", [64]), "m.weight_format": ("U8", [])},
        {"config": {"quantization_config": {"quant_method": "bitsandbytes"}}},
    ),
}
# What a marker in the file says, where it has one.
SAID = {"ComfyUI, new names": {"_quantization_metadata": json.dumps({"layers": {"m": {}}})}}
# What becomes plain values, by its tensors alone, and what only where a config says what it is.
KNOWN = {
    "ModelOpt FP8",
    "compressed-tensors float-quantized",
    "compressed-tensors nvfp4-pack-quantized",
    "ComfyUI, old names",
    "ComfyUI, old names, no marker",
    "ComfyUI, new names",
    "ComfyUI, new names, no marker",
}
LABELED = {
    "ModelOpt NVFP4",
    "ModelOpt NVFP4, weights only",
    "ModelOpt NVFP4, fused experts",
    "compressed-tensors mxfp4-pack-quantized",
    "compressed-tensors mxfp8-quantized",
}
PLAIN: Layer = {"embed.weight": ("F16", [256, 64]), "norm.weight": ("F32", [64])}

Write = Callable[[Path, str], Path]


def shard(layer: Layer, metadata: dict[str, str] | None = None) -> bytes:
    rows = [
        (name, dtype, shape, bytes(prod(shape) * BITS[dtype] // 8))
        for name, (dtype, shape) in layer.items()
    ]
    return raw_bytes(rows, metadata)


def as_the_library_does(folder: Path, form: str) -> Path:
    _, layer, beside = FORMS[form]
    metadata = {"format": "pt", **SAID.get(form, {})}
    (folder / "model.safetensors").write_bytes(shard(layer | PLAIN, metadata))
    for name, value in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def only_the_file(folder: Path, form: str) -> Path:
    file = folder / "weights.safetensors"
    file.write_bytes(shard(FORMS[form][1] | PLAIN))
    return file


def nothing_but_the_layer(folder: Path, form: str) -> Path:
    file = folder / "weights.safetensors"
    file.write_bytes(shard(FORMS[form][1]))
    return file


def every_tensor_in_a_shard_of_its_own(folder: Path, form: str) -> Path:
    for number, (name, tensor) in enumerate((FORMS[form][1] | PLAIN).items()):
        (folder / f"part-{number}.safetensors").write_bytes(shard({name: tensor}))
    return folder


WAYS: list[Write] = [
    as_the_library_does,
    only_the_file,
    nothing_but_the_layer,
    every_tensor_in_a_shard_of_its_own,
]


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("form", sorted(KNOWN | LABELED))
def test_a_model_of_a_known_scheme_is_dequantized_if_nothing_is_left_open(
    form: str, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    source, out = write(tmp_path / "in", form), tmp_path / "out"
    if form in LABELED and write is not as_the_library_does:
        with pytest.raises(recast.QuantizedError, match=r"cannot dequantize '.*' \(.*config"):
            recast.convert(source, out, to="bf16", sync=False)
        assert not out.exists()
        assert any(scheme["problem"] for scheme in recast.inspect(source).schemes)
        return
    (scheme,) = recast.inspect(source).schemes
    assert (scheme["weights"], scheme["problem"]) == (1, None)
    report = recast.convert(source, out, to="bf16", sync=False)
    assert report.tensors.get("dequantized") == 1
    result = {
        name: value for file in out.glob("*.safetensors") for name, value in stored(file).items()
    }
    plain = {} if write is nothing_but_the_layer else PLAIN
    weight = "experts.down_proj" if "experts" in form else "m.weight"
    shape = [4, 64, 128] if "experts" in form else [64, 128]
    found = {name: (dtype, shape) for name, (dtype, shape, _) in result.items()}
    expected = {
        name: ("BF16" if dtype == "F16" else dtype, shape) for name, (dtype, shape) in plain.items()
    }
    assert found == {weight: ("BF16", shape), **expected}
    assert sorted(report.dropped) == sorted(
        FORMS[form][1].keys() - {"m.weight", "experts.down_proj", "m.weight_packed"}
    )
    said = (out / "config.json").read_text() if (out / "config.json").exists() else ""
    assert "quant" not in said + "".join(path.name for path in out.iterdir())


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("form", sorted(FORMS.keys() - KNOWN - LABELED))
def test_a_quantized_model_is_refused_by_name_however_it_was_saved(
    form: str, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    source = write(tmp_path / "in", form)
    targets: list[FloatName] = ["fp32", "fp16", "bf16"]
    for to in targets:
        # After the scheme stands what files say, if any does.
        with pytest.raises(recast.QuantizedError, match=rf"weights \({FORMS[form][0]}[;)]"):
            recast.convert(source, tmp_path / "out", to=to, sync=False)
    assert not (tmp_path / "out").exists()
    assert f"is quantized ({FORMS[form][0]}" in "\n".join(recast.inspect(source).notes)


@pytest.mark.parametrize("write", WAYS[:2])
@pytest.mark.parametrize("form", FORMS)
def test_a_quantized_model_that_is_carried_loses_nothing_and_says_so(
    form: str, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    source = write(tmp_path / "in", form)
    report = recast.convert(source, tmp_path / "out", to="bf16", skip_quantized=True, sync=False)
    assert any("quantized weights" in warning for warning in report.warnings)
    file = source if source.is_file() else source / "model.safetensors"
    before, after = stored(file), stored(tmp_path / "out" / file.name)
    own = [name for name in FORMS[form][1] if name != "m.bias"]
    assert {name: after[name] for name in own} == {name: before[name] for name in own}
