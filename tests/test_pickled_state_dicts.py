"""Where the state dict is in what people save: at the top, or in what they wrap around it. The
result is the state dict, what is left out is named, and between two models nobody guesses."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from saved_by_torch import FORMATS, assert_written, load, save
from support import recast_here


def convert(file: Path, out: Path, **options: Any) -> Any:
    return recast.convert(file, out, to="bf16", auto_keep=False, sync=False, **options)


def state() -> Any:
    return torch.nn.Linear(4, 5).state_dict()


def optimizer() -> Any:
    layer = torch.nn.Linear(4, 5)
    made = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(4)).sum().backward()
    made.step()
    return made.state_dict()


def lightning() -> Any:
    """As Lightning writes checkpoints."""
    return {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.ones(())}},
        "optimizer_states": [optimizer()],
        "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.001]}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 4, "lr": 0.001, "betas": (0.9, 0.999), "name": None},
    }


def inert() -> Any:
    """What torch takes besides tensors and plain values."""
    return {
        "device": torch.device("cuda:1"),
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "bytes": b"\x00\xff",
        "buffer": bytearray(b"\x00\xff"),
        "complex": 1 + 2j,
        "counter": Counter("abca"),
        "large": 1 << 200,
        "layout": torch.strided,
        "set": {1, 2},
        "text": "größe",
    }


# What was saved, the key that is found, and what is said to be left out.
WRAPPED: dict[str, tuple[Callable[[], Any], list[str], list[str]]] = {
    "lightning": (
        lightning,
        ["state_dict"],
        [key for key in lightning() if key != "state_dict"],
    ),
    "model_state_dict": (
        lambda: {"model_state_dict": state(), "optimizer_state_dict": optimizer(), "epoch": 9},
        ["model_state_dict"],
        ["epoch", "optimizer_state_dict"],
    ),
    "nested twice": (
        lambda: {"model": {"state_dict": state(), "model_args": {"width": 4}}, "history": [1.5]},
        ["model", "state_dict"],
        ["history", "model_args"],
    ),
    "inert": (lambda: {"state_dict": state(), **inert()}, ["state_dict"], list(inert())),
    "inert, inside": (lambda: {**state(), **inert()}, [], list(inert())),
    "params_ema": (lambda: {"params_ema": state()}, ["params_ema"], []),
    "with settings": (
        lambda: {**state(), "version": 3, "config": {"width": 4}, "names": ["a", "b"]},
        [],
        ["config", "names", "version"],
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("format", FORMATS)
def test_the_model_is_found_and_the_rest_is_named(format: str, name: str, tmp_path: Path) -> None:
    make, keys, left = WRAPPED[name]
    file = save(make(), tmp_path / "it.ckpt", format)
    report = convert(file, tmp_path / "out", verify="cpu")
    found = load(file)
    for key in keys:
        found = found[key]
    tensors = {name: x for name, x in found.items() if isinstance(x, torch.Tensor)}
    assert_written(tmp_path / "out" / "it.safetensors", tensors, "bf16")
    said = [warning for warning in report.warnings if warning.startswith("left out")]
    assert len(said) == bool(left)
    if left:
        assert "no tensors of the model" in said[0]
        assert all(key in said[0] for key in left[:4])
        assert (f"and {len(left) - 4} more" in said[0]) == (len(left) > 4)


@pytest.mark.parametrize("format", FORMATS)
def test_two_models_in_a_file_are_asked_for(format: str, tmp_path: Path) -> None:
    both = {"model": state(), "ema": {name: x * 2 for name, x in state().items()}}
    file = save({**both, "step": 3}, tmp_path / "it.pt", format)
    run = recast_here("convert", file, tmp_path / "out", "--to", "bf16")
    assert run.returncode == 65, run.stderr
    for said in (str(file), "model", "ema", "--key"):
        assert said in run.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(recast.PickleError, match=r"key="):
        recast.plan(file, to="bf16")
    for key, tensors in both.items():
        convert(file, tmp_path / key, key=key, verify="cpu")
        assert_written(tmp_path / key / "it.safetensors", tensors, "bf16")


def test_a_model_inside_of_another_dict_can_be_asked_for(tmp_path: Path) -> None:
    both = {name: {"state_dict": state(), "width": 4} for name in ("model", "ema")}
    file = save(both, tmp_path / "it.pt")
    with pytest.raises(recast.PickleError, match=r"model\.state_dict.*ema\.state_dict"):
        recast.plan(file, to="bf16")
    for number, key in enumerate(("model.state_dict", "ema.state_dict", "ema")):
        out = tmp_path / str(number)
        convert(file, out, key=key, verify="cpu")
        tensors = both[key.partition(".")[0]]["state_dict"]
        assert_written(out / "it.safetensors", tensors, "bf16")


def test_a_key_that_is_no_usual_one_can_be_asked_for(tmp_path: Path) -> None:
    file = save({"encoder": state(), "decoder": state()}, tmp_path / "it.pt")
    with pytest.raises(recast.PickleError):
        recast.plan(file, to="bf16")
    convert(file, tmp_path / "out", key="decoder")
    assert_written(tmp_path / "out" / "it.safetensors", load(file)["decoder"], "bf16")
    with pytest.raises(recast.PickleError, match="middle"):
        recast.plan(file, to="bf16", key="middle")


@pytest.mark.parametrize("value", [torch.ones(3), [torch.ones(3)], {"epoch": 3}, {}, 7, None])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_state_dict_is_refused(format: str, value: Any, tmp_path: Path) -> None:
    file = save(value, tmp_path / "it.pt", format)
    with pytest.raises(recast.PickleError, match=r"it\.pt"):
        recast.plan(file, to="bf16")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_of_other_protocols_that_is_read_which_torch_reads(protocol: int, tmp_path: Path) -> None:
    file = tmp_path / "it.pt"
    torch.save(state(), file, pickle_protocol=protocol)
    if protocol == 3:
        convert(file, tmp_path / "out")
        with pytest.warns(UserWarning, match="protocol 3"):
            assert_written(tmp_path / "out" / "it.safetensors", load(file), "bf16")
        return
    with pytest.raises(recast.PickleError, match=f"protocol {protocol}"):
        recast.plan(file, to="bf16")
