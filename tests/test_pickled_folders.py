"""Which pickles of a directory are the model, and that nothing of it is lost without a word."""

import json
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from safetensors.torch import load_file, save_file

BIN, RESULT = "pytorch_model.bin", "model.safetensors"


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {"a.weight": torch.randn(4, 4), "b.weight": torch.randn(5)}


def converted(source: Path, out: Path, **options: Any) -> list[str]:
    recast.convert(source, out, to="as-stored", sync=False, **options)
    assert recast.verify(source, out, full=True).passed
    files = (path for path in out.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(out)) for path in files if path.name != "recast.json")


def test_an_index_of_safetensors_that_are_not_there_does_not_become_that_of_the_pickles(
    tmp_path: Path,
) -> None:
    """As after a download that leaves the safetensors out."""
    source = tmp_path / "model"
    source.mkdir()
    for number, (name, tensor) in enumerate(tensors().items(), 1):
        torch.save({name: tensor}, source / f"pytorch_model-0000{number}-of-00002.bin")
    for stem, ending in (("pytorch_model", "bin"), ("model", "safetensors")):
        weight_map = {
            name: f"{stem}-0000{number}-of-00002.{ending}"
            for number, name in enumerate(tensors(), 1)
        }
        index = {"metadata": {"from": ending, "total_size": 84}, "weight_map": weight_map}
        (source / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    out = tmp_path / "out"
    assert converted(source, out) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"from": "bin", "total_size": 84}
    assert set(index["weight_map"].values()) == set(converted(source, out)[:2])
    warnings = recast.plan(source, to="bf16").warnings
    assert any("left behind" in text and "model.safetensors.index" in text for text in warnings)


@pytest.mark.parametrize(
    ("top", "says"),
    [
        ({"model": tensors(), "head.weight": torch.ones(3)}, "beside it: 'head.weight'"),
        ({"weight": torch.ones(3), "net": tensors()}, "beside it: 'weight'"),
        ({"model": {"temp": torch.ones(1), "head": tensors()}}, "within 'head'"),
        ({**tensors(), "blocks": [torch.ones(2), torch.ones(2)]}, "within 'blocks'"),
        ({**tensors(), "deep": {"er": ({"x": torch.ones(2)},)}}, "within 'deep'"),
    ],
)
def test_no_tensor_that_may_be_of_the_model_is_left_out(
    top: dict[str, Any], says: str, tmp_path: Path
) -> None:
    torch.save(top, tmp_path / "it.pt")
    with pytest.raises(recast.PickleError, match=says):
        recast.convert(tmp_path / "it.pt", tmp_path / "out", to="bf16")
    with pytest.raises(recast.PickleError, match=says):
        recast.load(tmp_path / "it.pt")


def test_what_is_no_weight_may_stand_beside_a_state_dict(tmp_path: Path) -> None:
    top = {
        "model": {**tensors(), "layer._extra_state": {"scale": torch.ones(2)}},
        "step": torch.tensor(5),
        "rng_state": torch.zeros(16, dtype=torch.uint8),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(4, 4)}}},
    }
    torch.save(top, tmp_path / "it.pt")
    report = recast.convert(tmp_path / "it.pt", tmp_path / "out", to="as-stored", sync=False)
    assert load_file(tmp_path / "out" / "it.safetensors").keys() == tensors().keys()
    assert sorted(report.left_out) == [
        "layer._extra_state",
        "optimizer",
        "rng_state",
        "step",
    ]
    # Whoever names the state dict has decided about the rest.
    torch.save({**top, "other": torch.ones(3)}, tmp_path / "it.pt")
    recast.convert(tmp_path / "it.pt", tmp_path / "named", to="as-stored", key="model", sync=False)


def test_other_pickles_in_folders_below_a_model_stay_behind(tmp_path: Path) -> None:
    source = tmp_path / "model"
    for folder in ("eval", "global_step5"):
        (source / folder).mkdir(parents=True)
    torch.save(tensors(), source / BIN)
    torch.save({"accuracy": 0.5}, source / "eval" / "results.pt")
    torch.save(tensors(), source / "eval" / "embeddings.pt")
    torch.save({"state": 1}, source / "global_step5" / "zero_pp_rank_0_optim_states.pt")
    assert converted(source, tmp_path / "out") == [RESULT]
    assert any("embeddings.pt" in text for text in recast.plan(source, to="bf16").warnings)


def test_a_folder_that_is_called_as_a_result_is_in_the_way(tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / RESULT).mkdir(parents=True)
    (source / RESULT / "notes.txt").write_text("x")
    torch.save(tensors(), source / BIN)
    with pytest.raises(recast.PickleError, match="would both become"):
        recast.convert(source, tmp_path / "out", to="bf16")


def test_two_files_with_one_result_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for ending in ("pt", "ckpt"):
        torch.save(tensors(), tmp_path / "model" / f"x.{ending}")
    with pytest.raises(recast.PickleError, match=r"'x\.safetensors'"):
        recast.convert(tmp_path / "model", tmp_path / "out", to="bf16")


def test_a_key_makes_no_sense_for_safetensors(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "m.safetensors")
    with pytest.raises(recast.UsageError, match="chooses a state dict of a pickle"):
        recast.convert(tmp_path / "m.safetensors", tmp_path / "out", to="bf16", key="model")


def test_a_key_is_taken_whole_before_it_is_taken_for_a_path(tmp_path: Path) -> None:
    top = {"a": {"b": {"x": torch.ones(1)}}, "a.b": {"x": torch.zeros(1)}}
    torch.save(top, tmp_path / "it.pt")
    assert recast.load(tmp_path / "it.pt", key="a.b")["x"] == 0
