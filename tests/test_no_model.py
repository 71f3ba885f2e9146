"""What is in a checkpoint and is no value of the model: it is carried or named, never cast."""

import json
from pathlib import Path

import pytest
import recast
import torch
from safetensors.torch import load_file, save_file


def test_optimizer_state_of_torch_is_carried(tmp_path: Path) -> None:
    source, out = tmp_path / "model", tmp_path / "out"
    source.mkdir()
    module = torch.nn.Linear(16, 16)
    optimizer = torch.optim.AdamW(module.parameters())
    for _ in range(3):
        module(torch.randn(4, 16)).sum().backward()
        optimizer.step()
    state = {
        f"state.{number}.{name}": value.clone() + (12345 if name == "step" else 0)
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    assert {name.rpartition(".")[2] for name in state} == {"step", "exp_avg", "exp_avg_sq"}
    save_file(dict(module.state_dict()), source / "model.safetensors", {"format": "pt"})
    save_file(state, source / "training.safetensors")
    save_file({"anything": torch.ones(2)}, source / "optimizer.safetensors")

    report = recast.convert(source, out, to="bf16")
    assert load_file(out / "model.safetensors")["weight"].dtype == torch.bfloat16
    carried = load_file(out / "training.safetensors")
    assert all(torch.equal(carried[name], state[name]) for name in state)
    assert all(carried[name].dtype == state[name].dtype for name in state)
    assert load_file(out / "optimizer.safetensors")["anything"].dtype == torch.float32
    assert any("because they are optimizer state" in warning for warning in report.warnings)
    assert recast.verify(source, out).passed


OPTIMIZERS = ["Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "ASGD"]
OPTIMIZERS += ["NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimizer_of_torch_is_carried(name: str, tmp_path: Path) -> None:
    module = torch.nn.Linear(16, 16)
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    optimizer = getattr(torch.optim, name)(module.parameters(), lr=0.1, **options)
    module(torch.randn(4, 16)).sum().backward()
    optimizer.step()
    state = {
        f"state.{number}.{key}": value.clone()
        for number, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
        if torch.is_tensor(value)
    }
    assert state
    source = tmp_path / "training.safetensors"
    save_file({**state, "layer.weight": torch.randn(4, 4)}, source)
    recast.convert(source, tmp_path / "out", to="bf16")
    found = load_file(tmp_path / "out" / source.name)
    assert found.pop("layer.weight").dtype == torch.bfloat16
    assert {key: value.dtype for key, value in found.items()} == {
        key: value.dtype for key, value in state.items()
    }


def test_a_parameter_called_step_is_a_parameter(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    save_file({"sampler.step": torch.rand(4), "sampler.mu": torch.rand(4)}, source)
    recast.convert(source, tmp_path / "out", to="bf16")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_tensors_that_zero_3_left_empty_are_named(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.empty(0), "b.weight": torch.rand(4, 4)}, source)
    plan = recast.plan(source, to="bf16")
    assert [warning for warning in plan.warnings if "ZeRO-3" in warning] == [
        "have no values, as when DeepSpeed ZeRO-3 saves weights that were not gathered: a.weight"
    ]


def test_what_mistral_says_of_quantization_goes_where_no_weight_is_quantized(
    tmp_path: Path,
) -> None:
    source, out = tmp_path / "model", tmp_path / "out"
    source.mkdir()
    save_file({"layers.0.wq.weight": torch.rand(4, 4)}, source / "consolidated.safetensors")
    params = '{"dim": 4, "quantization": {"qformat_weight": "fp8_e4m3"}, "n_layers": 1}'
    (source / "params.json").write_text(params)
    report = recast.convert(source, out, to="bf16")
    assert json.loads((out / "params.json").read_text()) == {"dim": 4, "n_layers": 1}
    assert any("params.json" in warning for warning in report.warnings)
    # What is no JSON is no config.
    (source / "params.json").write_text("{")
    recast.convert(source, out, to="bf16", overwrite=True)
    assert (out / "params.json").read_text() == "{"
