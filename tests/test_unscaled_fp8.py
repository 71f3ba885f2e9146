"""fp8 without scales is refused until somebody says that it is plain and nothing denies it."""

import json
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from safetensors.torch import load_file, save_file
from sources import FP8, STORED_FP8, Tensors, by_torch, model
from support import recast_process, stored

SHARD = "model.safetensors"


def plain_fp8(name: str = "float8_e4m3fn") -> Tensors:
    """A state dict as people make them for diffusion models: matrices in fp8, the rest not."""
    return {
        "blocks.0.attn.weight": torch.randn(16, 16).to(getattr(torch, name)),
        "blocks.0.attn.bias": torch.randn(16).bfloat16(),
        "blocks.0.norm.weight": torch.randn(16),
    }


def test_plain_fp8_is_refused_until_somebody_says_that_it_is_plain(tmp_path: Path) -> None:
    source = model(tmp_path / "model", plain_fp8(), config={"model_type": "x"})
    run = recast_process("convert", source, tmp_path / "out", "--to", "fp16")
    assert run.returncode == 65
    assert "fp8 tensors without scales: blocks.0.attn.weight" in run.stderr
    assert "--unscaled-fp8" in run.stderr
    with pytest.raises(recast.QuantizedError) as caught:
        recast.plan(source, to="fp16")
    assert "unscaled_fp8=True" in (caught.value.hint or "")
    command = ("convert", source, tmp_path / "out", "--to", "fp16", "--unscaled-fp8")
    assert recast_process(*command, "--verify", "cpu").returncode == 0
    assert "already done" in recast_process(*command).stdout
    expected = by_torch(plain := load_file(source / SHARD), "fp16")
    for name, x in load_file(tmp_path / "out" / SHARD).items():
        assert torch.equal(x, expected[name])
    plan = recast.plan(source, to="fp16", unscaled_fp8=True)
    reasons = {tensor.name: tensor.reason for tensor in plan.tensors}
    assert reasons["blocks.0.attn.weight"] == "fp8_e4m3 to fp16"
    assert reasons["blocks.0.norm.weight"] == "fp32 to fp16"
    assert set(plain) == set(reasons)


def test_the_report_notes_the_option_where_it_made_a_difference(tmp_path: Path) -> None:
    source = model(tmp_path / "model", plain_fp8())
    recast.convert(source, tmp_path / "out", to="bf16", unscaled_fp8=True)
    report = json.loads((tmp_path / "out" / "recast.json").read_text())
    assert report["options"]["unscaled_fp8"] is True
    with pytest.raises(recast.OutputError) as caught:
        recast.convert(source, tmp_path / "out", to="bf16", skip_quantized=True)
    assert "unscaled_fp8: given there, not given here" in caught.value.message
    floats = model(tmp_path / "floats", {"w": torch.randn(4)})
    recast.convert(floats, tmp_path / "with", to="bf16", unscaled_fp8=True)
    recast.convert(floats, tmp_path / "without", to="bf16")
    for name in (SHARD, "recast.json"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert (
        "unscaled_fp8" not in json.loads((tmp_path / "with" / "recast.json").read_text())["options"]
    )


INPUT_SCALE = "blocks.0.attn.input_scale"
SAID: dict[str, tuple[Tensors, dict[str, Any]]] = {
    "a config": ({}, {"config": {"quantization_config": {"quant_method": "fp8"}}}),
    "a sidecar": ({}, {"hf_quant_config": {"producer": {}}}),
    "a scaled weight": (
        {"m.weight": torch.randn(8, 8).to(torch.float8_e4m3fn), "m.weight_scale": torch.rand(1)},
        {},
    ),
    "a scale without codes": ({"m.weight_scale_inv": torch.rand(1, 1)}, {}),
    "integers": ({"m.weight": torch.zeros(8, 8, dtype=torch.int32)}, {}),
    "the scale of an input": ({INPUT_SCALE: torch.rand(1)}, {}),
    "a marker": ({"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}, {}),
}


@pytest.mark.parametrize("what", SAID)
def test_fp8_is_never_plain_where_anything_else_says_quantized(what: str, tmp_path: Path) -> None:
    tensors, jsons = SAID[what]
    source = model(tmp_path / "model", plain_fp8() | tensors, **jsons)
    with pytest.raises(recast.QuantizedError):
        recast.plan(source, to="bf16", unscaled_fp8=True)
    out = tmp_path / "out"
    recast.convert(source, out, to="bf16", unscaled_fp8=True, skip_quantized=True)
    before, after = load_file(source / SHARD), load_file(out / SHARD)
    for name, x in after.items():
        if x.dtype == torch.float8_e4m3fn:
            assert torch.equal(x.view(torch.uint8), before[name].view(torch.uint8))
    assert after["blocks.0.attn.weight"].dtype == torch.float8_e4m3fn
    assert after["blocks.0.norm.weight"].dtype == torch.bfloat16
    assert INPUT_SCALE not in after or after[INPUT_SCALE].dtype == torch.float32
    assert recast.verify(source, out, device="cpu").passed
    assert recast.inspect(source).gpu_memory.keys() == {"as_stored"}


def test_a_label_that_contradicts_the_option_is_named(tmp_path: Path) -> None:
    said = {"quantization_config": {"quant_method": "fp8"}}
    source = model(tmp_path / "model", plain_fp8(), config=said)
    with pytest.raises(recast.QuantizedError, match=r"without their scales.*method 'fp8'"):
        recast.plan(source, to="bf16", unscaled_fp8=True)


def test_one_component_may_be_plain_fp8_beside_a_quantized_one(tmp_path: Path) -> None:
    model(tmp_path / "in" / "transformer", plain_fp8("float8_e5m2"))
    scaled = {
        "m.weight": torch.randn(8, 8).to(torch.float8_e4m3fn),
        "m.weight_scale": torch.rand(1),
    }
    model(tmp_path / "in" / "text_encoder", scaled | {"norm.weight": torch.rand(8)})
    (tmp_path / "in" / "model_index.json").write_text("{}")
    plan = recast.plan(tmp_path / "in", to="bf16", unscaled_fp8=True)
    assert {tensor.name: tensor.action for tensor in plan.tensors} == {
        "blocks.0.attn.weight": "cast",
        "blocks.0.attn.bias": "copy",
        "blocks.0.norm.weight": "cast",
        "m.weight": "dequantize",
        "norm.weight": "cast",
    }
    with pytest.raises(recast.QuantizedError, match="fp8 tensors without scales"):
        recast.plan(tmp_path / "in", to="bf16")
    plan = recast.plan(tmp_path / "in", to="bf16", unscaled_fp8=True, skip_quantized=True)
    assert {tensor.name: tensor.action for tensor in plan.tensors} == {
        "blocks.0.attn.weight": "cast",
        "blocks.0.attn.bias": "copy",
        "blocks.0.norm.weight": "cast",
        "m.weight": "copy",
        "m.weight_scale": "copy",
        "norm.weight": "cast",
    }


def test_a_config_states_fp8_only_as_long_as_it_is_there(tmp_path: Path) -> None:
    stated = {"torch_dtype": "float8_e4m3fn", "text_config": {"dtype": "torch.float8_e4m3fn"}}
    source = model(tmp_path / "model", plain_fp8(), config=stated)
    recast.convert(source, tmp_path / "cast", to="bf16", unscaled_fp8=True)
    config = tmp_path / "cast" / "config.json"
    expected = {"torch_dtype": "bfloat16", "text_config": {"dtype": "torch.bfloat16"}}
    assert json.loads(config.read_text()) == expected
    assert recast.verify(source, tmp_path / "cast", device="cpu").passed
    config.write_text(json.dumps(stated))
    found = recast.verify(source, tmp_path / "cast", device="cpu")
    assert "config.json states torch_dtype = float8_e4m3fn" in "\n".join(found.failures())
    recast.convert(source, tmp_path / "carried", to="bf16", skip_quantized=True)
    assert json.loads((tmp_path / "carried" / "config.json").read_text()) == stated
    assert recast.verify(source, tmp_path / "carried", device="cpu").passed


def test_a_pattern_keeps_doubles_and_plain_fp8_as_they_are(tmp_path: Path) -> None:
    tensors = plain_fp8() | {"wide": torch.randn(4).double()}
    source = model(tmp_path / "model", tensors)
    options: dict[str, Any] = {"keep": ["wide", "*attn.weight"], "unscaled_fp8": True}
    report = recast.convert(source, tmp_path / "out", to="bf16", **options)
    assert report.tensors == {"cast": 1, "copied": 1, "kept": 2}
    after = stored(tmp_path / "out" / SHARD)
    assert (after["wide"][0], after["blocks.0.attn.weight"][0]) == ("F64", "F8_E4M3")
    assert recast.verify(source, tmp_path / "out", device="cpu").passed


def test_what_is_inspected_is_what_would_be_converted(tmp_path: Path) -> None:
    source = model(tmp_path / "model", plain_fp8() | {"wide": torch.randn(4).double()})
    found = recast.inspect(source)
    assert any("--unscaled-fp8" in note for note in found.notes)
    assert not any("is quantized" in note for note in found.notes)
    assert found.gpu_memory["bf16"]["requested"] == 2 * (256 + 16 + 16 + 4)
    doubles = recast.inspect(model(tmp_path / "doubles", {"w": torch.randn(4).double()}))
    assert doubles.notes == []
    assert doubles.gpu_memory["fp32"]["requested"] == 16


@pytest.mark.parametrize("name", FP8)
def test_the_name_of_a_file_that_says_fp8_is_noticed(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"flux-fp8_{name}.safetensors"
    save_file({"w": torch.randn(4, 4).to(getattr(torch, name))}, path)
    plan = recast.plan(path, to="bf16", unscaled_fp8=True)
    (warning,) = [text for text in plan.warnings if text.startswith("named after another dtype")]
    assert warning.endswith(path.name)
    (tensor,) = plan.tensors
    assert tensor.source_dtype == STORED_FP8[name]


def test_no_dtype_is_carried_without_a_word(tmp_path: Path) -> None:
    rows = {"w": torch.randn(4).bfloat16(), "c": torch.randn(4).to(torch.complex64)}
    source = model(tmp_path / "model", rows | {"positions": torch.arange(3)})
    warnings = recast.plan(source, to="bf16").warnings
    assert "carried in a dtype that recast does not cast: c (C64)" in warnings
    assert not any("all floating tensors" in text for text in warnings)
