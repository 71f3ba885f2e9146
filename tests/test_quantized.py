"""Quantized weights are known by their tensors: refused by name, or carried byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import recast_here

Tensors = dict[str, torch.Tensor]


def plain() -> Tensors:
    """What is not quantized in a quantized checkpoint."""
    return {"model.norm.weight": torch.rand(8), "lm_head.weight": torch.randn(8, 8)}


def codes(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randint(0, 100, shape).to(dtype)


FP8 = torch.float8_e4m3fn
SCHEMES: dict[str, Tensors] = {
    "GPTQ": {
        "m.qweight": codes(torch.int32, 16, 64),
        "m.qzeros": codes(torch.int32, 1, 8),
        "m.scales": torch.rand(1, 64).half(),
        "m.g_idx": codes(torch.int32, 128),
    },
    "AWQ": {
        "m.qweight": codes(torch.int32, 128, 8),
        "m.qzeros": codes(torch.int32, 1, 8),
        "m.scales": torch.rand(1, 64).half(),
    },
    "ModelOpt NVFP4": {
        "m.weight": codes(torch.uint8, 8, 8),
        "m.weight_scale": torch.rand(8, 1).to(FP8),
        "m.weight_scale_2": torch.tensor(0.01),
        "m.input_scale": torch.tensor(0.0123),
    },
    "compressed-tensors packed": {
        "m.weight_packed": codes(torch.int32, 8, 8),
        "m.weight_scale": torch.rand(8, 1).bfloat16(),
        "m.weight_shape": torch.tensor([8, 64]),
    },
    "MLX": {
        "m.weight": codes(torch.uint32, 64, 16),
        "m.scales": torch.rand(64, 2).half(),
        "m.biases": torch.rand(64, 2).half(),
    },
    "quanto": {
        "m.weight._data": codes(torch.int8, 8, 8),
        "m.weight._scale": torch.rand(8, 1),
    },
    "ComfyUI fp8": {
        "m.weight": torch.randn(8, 8).to(FP8),
        "m.scale_weight": torch.tensor(0.01),
        "scaled_fp8": torch.zeros(2).to(FP8),
    },
    "fp8": {"m.weight": torch.randn(8, 8).to(FP8), "m.weight_scale": torch.tensor(0.01)},
    "bitsandbytes 4-bit": {
        "m.weight": codes(torch.uint8, 2048, 1),
        "m.weight.absmax": torch.rand(64),
        "m.weight.quant_map": torch.rand(16),
        "m.weight.quant_state.bitsandbytes__nf4": codes(torch.uint8, 80),
    },
}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def save(
    folder: Path, tensors: Tensors, metadata: dict[str, str] | None = None, **jsons: Any
) -> Path:
    """A directory with a shard and JSON files."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata=metadata or {"format": "pt"})
    for name, value in jsons.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("to", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "scheme", sorted(SCHEMES.keys() - {"fp8", "ComfyUI fp8", "ModelOpt NVFP4"})
)
def test_quantized_weights_are_refused_by_name_without_any_config(
    scheme: str, to: str, tmp_path: Path
) -> None:
    source = save(tmp_path / "model", SCHEMES[scheme] | plain())
    result = recast_here("convert", source, tmp_path / "out", "--to", to)
    assert result.returncode == 65, result.stderr
    assert f"quantized weights ({scheme})" in result.stderr
    assert next(iter(sorted(SCHEMES[scheme]))) in result.stderr
    assert "--skip-quantized" in result.stderr
    assert not (tmp_path / "out").exists()
    assert f"({scheme})" in "\n".join(recast.inspect(source).notes)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_skip_quantized_carries_them_and_casts_the_rest(scheme: str, tmp_path: Path) -> None:
    said = {"torch_dtype": "float32", "quantization_config": {"quant_method": "x"}}
    source = save(tmp_path / "model", SCHEMES[scheme] | plain(), config=said)
    report = recast.convert(source, tmp_path / "out", to="bf16", skip_quantized=True)
    assert any(f"quantized weights ({scheme})" in text for text in report.warnings)
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        expected = tensor.bfloat16() if name in plain() else tensor
        assert after[name].dtype == expected.dtype, name
        assert torch.equal(bits(after[name]), bits(expected)), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {**said, "torch_dtype": "bfloat16"}
    assert recast.verify(source, tmp_path / "out", device="cpu").passed
    assert recast.convert(source, tmp_path / "out", to="bf16", skip_quantized=True).already_done


def test_one_quantized_component_is_no_reason_to_refuse_the_others(tmp_path: Path) -> None:
    root = tmp_path / "pipeline"
    save(root / "unet", plain())
    save(root / "text_encoder", SCHEMES["bitsandbytes 4-bit"] | plain())
    (root / "model_index.json").write_text("{}")
    with pytest.raises(recast.QuantizedError, match="text_encoder"):
        recast.plan(root, to="fp16")
    plan = recast.plan(root, to="fp16", skip_quantized=True)
    found = {(Path(t.file).parent.name, t.name): t.action for t in plan.tensors}
    assert found["unet", "lm_head.weight"] == "cast"
    assert found["text_encoder", "lm_head.weight"] == "cast"
    assert found["text_encoder", "m.weight.absmax"] == "copy"


LABELS: dict[str, dict[str, Any]] = {
    "quantization_config": {"config": {"quantization_config": {"quant_method": "fp8"}, "a": 1}},
    "nested": {"config": {"text_config": {"quantization_config": {}, "b": 2}, "a": 1}},
    "compression_config": {"config": {"compression_config": {"format": "x"}, "a": 1}},
    "MLX": {"config": {"a": 1, "quantization": {"group_size": 64, "bits": 4}}},
    "quantize_config.json": {"config": {"a": 1}, "quantize_config": {"bits": 4}},
    "hf_quant_config.json": {"config": {"a": 1}, "hf_quant_config": {"producer": {}}},
}


@pytest.mark.parametrize("name", LABELS)
def test_a_leftover_label_is_removed_with_a_warning(name: str, tmp_path: Path) -> None:
    source = save(tmp_path / "model", plain(), **LABELS[name])
    report = recast.convert(source, tmp_path / "out", to="bf16")
    (warning,) = [text for text in report.warnings if "no weight is quantized" in text]
    assert (name if name.endswith(".json") else "config.json") in warning
    texts = {path.name: path.read_text() for path in (tmp_path / "out").glob("*config.json")}
    assert set(texts) == {"config.json"}
    assert "quant" not in texts["config.json"]
    assert "compression" not in texts["config.json"]
    assert json.loads(texts["config.json"])["a"] == 1
    assert recast.verify(source, tmp_path / "out", device="cpu").passed


def test_a_leftover_label_in_metadata_is_removed_and_the_rest_stays(tmp_path: Path) -> None:
    said = {"format": "pt", "quantization_config": "{}", "author": "a"}
    source = save(tmp_path / "model", plain(), said)
    recast.convert(source, tmp_path / "out", to="bf16")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "author": "a"}


def test_a_label_beside_integers_of_no_known_scheme_is_refused(tmp_path: Path) -> None:
    said = {"quantization_config": {"quant_method": "new"}}
    source = save(tmp_path / "model", {"m.data": codes(torch.int16, 8, 8)} | plain(), config=said)
    with pytest.raises(recast.QuantizedError, match=r"method 'new'.*m\.data") as caught:
        recast.plan(source, to="bf16")
    assert "config.json" in caught.value.message
    assert "method 'new'" in "\n".join(recast.inspect(source).notes)
    recast.convert(source, tmp_path / "out", to="bf16", skip_quantized=True)
    assert recast.verify(source, tmp_path / "out", device="cpu").passed


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"m.weight": torch.randn(8, 8).to(FP8)}, "fp8 tensors without scales: m.weight"),
        (
            {"m.weight": torch.randn(8, 8).bfloat16(), "m.weight_scale_inv": torch.rand(1, 1)},
            "without their codes: m.weight_scale_inv",
        ),
        ({"m.weight": codes(torch.int32, 8, 8)}, "without their scales: m.weight"),
    ],
)
def test_codes_and_scales_that_miss_each_other_are_named(
    tensors: Tensors, what: str, tmp_path: Path
) -> None:
    source = save(tmp_path / "model", tensors | plain())
    with pytest.raises(recast.QuantizedError, match=what):
        recast.plan(source, to="fp16")
    plan = recast.plan(source, to="fp16", skip_quantized=True)
    assert {tensor.name for tensor in plan.tensors if tensor.action == "cast"} >= set(plain())


def test_a_parameter_that_is_called_a_scale_is_cast(tmp_path: Path) -> None:
    names = ["logit_scale", "block.layer_scale", "norm.scale", "m.weight_scale", "m.input_scale"]
    tensors = {name: torch.rand(3) for name in names} | {"m.weight": torch.randn(4, 4)}
    source = save(tmp_path / "model", tensors)
    plan = recast.plan(source, to="bf16")
    assert {tensor.action for tensor in plan.tensors} == {"cast"}


def test_no_sentence_says_that_floats_of_other_dtypes_were_cast(tmp_path: Path) -> None:
    source = save(tmp_path / "model", {"w": torch.randn(4, 4).to(torch.complex64)})
    warnings = recast.plan(source, to="fp32").warnings
    assert "carried in a dtype that recast does not cast: w (C64)" in warnings
    assert not any("all floating tensors are" in text for text in warnings)
