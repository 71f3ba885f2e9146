"""`recast.verify` of results that were made of PyTorch's pickles: a good one passes, and every
planted fault is found and named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from pickled import BLOCK, TARGETS, TIED, State, as_made, rewrite, save, state
from safetensors.torch import load_file, save_file
from support import recast_here

SHARD = "model.safetensors"
INDEX = f"{SHARD}.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
VALUES = 2 * 5 * BLOCK + 64 * 192 + 4 * 5 * 9 + 40 + 16 + 33 + 7 + 6 + 1 + 16 * 8
Change = Callable[[State, dict[str, str]], object]


def training(model: State) -> dict[str, Any]:
    """What a training script saves: the model among other things."""
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(5)}}
    return {"model": model, "optimizer": {"state": moments, "param_groups": [{"lr": 0.1}]}, "it": 3}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model's directory, the state dict nested, in the format since torch 1.6."""
    return save(tmp_path / "model" / "pytorch_model.bin", training(state())).parent


@pytest.fixture
def result(source: Path, tmp_path: Path) -> Path:
    recast.convert(source, tmp_path / "out", to="bf16", sync=False)
    return tmp_path / "out"


def check(source: Path, dest: Path, **options: Any) -> recast.Verification:
    return recast.verify(source, dest, device="cpu", **{"full": True, **options})


def said(found: recast.Verification) -> str:
    assert not found.passed
    return "\n".join(found.failures())


@pytest.mark.parametrize("to", ["bf16", "fp16", "fp32", "as-stored"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
def test_a_good_result_passes(nested: bool, legacy: bool, to: Any, tmp_path: Path) -> None:
    top = training(state()) if nested else state()
    source = save(tmp_path / "model" / "pytorch_model.bin", top, legacy=legacy).parent
    recast.convert(source, tmp_path / "out", to=to, verify="cpu", sync=False)
    for options in ({}, {"full": False}, {"full": False, "samples": 0}):
        found = check(source, tmp_path / "out", **options)
        assert found.passed, found.failures()
        assert (found.tensors_checked, found.values_total) == (12, VALUES)
        assert found.to == (None if to == "as-stored" else to)
        assert found.notes == []
    (tmp_path / "out" / "recast.json").unlink()
    found = check(source, tmp_path / "out")
    assert found.passed, found.failures()
    assert (found.values_checked, found.to) == (VALUES, "fp32" if to == "as-stored" else to)


@pytest.mark.parametrize("to", ["bf16", "fp16", "as-stored"])
@pytest.mark.parametrize("name", ["model.pt", "weights.pth", "last.ckpt", "pytorch_model.bin"])
def test_a_single_file_that_torch_cast_and_saved_passes(name: str, to: str, tmp_path: Path) -> None:
    save(tmp_path / "model" / name, state(), legacy=name == "weights.pth")
    (tmp_path / "out").mkdir()
    shard = tmp_path / "out" / name.replace("pytorch_", "")
    save_file(as_made(state(), to), shard.with_suffix(".safetensors"), {"format": "pt", **TIED})
    found = check(tmp_path / "model" / name, tmp_path / "out")
    assert found.passed, found.failures()
    assert found.values_checked == VALUES


def put(tensors: State, **changed: torch.Tensor) -> None:
    """Puts values, cast to what is there, into tensors of the same shape."""
    for name, values in changed.items():
        assert values.shape == tensors[name].shape
        assert not torch.equal(values.to(tensors[name].dtype), tensors[name])
        tensors[name] = values.to(tensors[name].dtype).contiguous()


def one_value(tensors: State, metadata: dict[str, str]) -> None:
    tensors["b"][3, 7] *= 2


def truncated(tensors: State, metadata: dict[str, str]) -> None:
    cut = state()["a"].view(torch.int32) >> 16 << 16
    put(tensors, a=cut.view(torch.float32))


def storage_order(tensors: State, metadata: dict[str, str]) -> None:
    put(tensors, strided=state()["strided"].t().reshape(192, 64))


def channels_last(tensors: State, metadata: dict[str, str]) -> None:
    put(tensors, channels=state()["channels"].permute(0, 2, 3, 1).reshape(4, 5, 3, 3))


def without_offset(tensors: State, metadata: dict[str, str]) -> None:
    put(tensors, view=state()["view"].as_strided((16,), (1,), 0))


def expanded_along(tensors: State, metadata: dict[str, str]) -> None:
    put(tensors, expanded=state()["expanded"].t().reshape(8, 5))


def wrong_tied(tensors: State, metadata: dict[str, str]) -> None:
    tensors["lm_head.weight"] = tensors.pop("embed.weight") + 1
    del metadata["lm_head.weight"]
    metadata["embed.weight"] = "lm_head.weight"


def both_tied(tensors: State, metadata: dict[str, str]) -> None:
    tensors["lm_head.weight"] = tensors["embed.weight"].clone()


def other_key(tensors: State, metadata: dict[str, str]) -> None:
    tensors.clear()
    tensors.update(as_made(state(2), "bf16"))


def swapped(tensors: State, metadata: dict[str, str]) -> None:
    tensors["a"], tensors["b"] = tensors["b"], tensors["a"]


def noted(name: str, kept: str | None) -> Change:
    def change(tensors: State, metadata: dict[str, str]) -> None:
        metadata.pop(name, None)
        metadata |= {name: kept} if kept else {}

    return change


NOTE = f"{SHARD} states lm_head.weight = "
FAULTS: dict[str, tuple[Change, list[str]]] = {
    "one value": (one_value, [f"b in {SHARD}, element 12,295:"]),
    "a truncating cast": (truncated, [f"a in {SHARD}, element", "more in this tensor"]),
    "a strided tensor in storage order": (storage_order, [f"strided in {SHARD}, element 1:"]),
    "channels last": (channels_last, [f"channels in {SHARD}, element 1:"]),
    "a view without its offset": (without_offset, [f"view in {SHARD}, element 0:"]),
    "expanded along the wrong dimension": (expanded_along, [f"expanded in {SHARD}, element 1:"]),
    "a changed integer": (lambda t, _: t["ids"].add_(1), [f"ids in {SHARD}, element 0:"]),
    "a changed bool": (lambda t, _: t["mask"].logical_not_(), [f"mask in {SHARD}, element 0:"]),
    "a tied tensor under the other name": (
        wrong_tied,
        [
            f"'embed.weight' in {SHARD} is missing",
            "'lm_head.weight' in model.safetensors should be left out: in the source it is the "
            "same as 'embed.weight'",
            f"{SHARD} does not state lm_head.weight in its metadata, expected embed.weight",
        ],
    ),
    "a tied tensor twice": (both_tied, [f"'lm_head.weight' in {SHARD} should be left out"]),
    "a tensor of the optimizer": (
        lambda t, _: t.update(exp_avg=torch.ones(5)),
        [f"'exp_avg' in {SHARD} is unexpected: the source does not have it"],
    ),
    "a tensor left out": (lambda t, _: t.pop("ids"), [f"'ids' in {SHARD} is missing"]),
    "an empty tensor left out": (lambda t, _: t.pop("none"), [f"'none' in {SHARD} is missing"]),
    "another state dict": (other_key, [f"{name} in {SHARD}" for name in ("a", "b", "scalar")]),
    "a missing note": (
        noted("lm_head.weight", None),
        [f"{SHARD} does not state lm_head.weight in its metadata"],
    ),
    "a wrong note": (noted("lm_head.weight", "b"), [f"{NOTE}b in its metadata"]),
    "a note on a tensor that is there": (
        noted("a", "b"),
        [f"{SHARD} states a = b in its metadata, expected nothing"],
    ),
    "no format": (noted("format", None), [f"{SHARD} does not state format in its metadata"]),
    "another format": (noted("format", "np"), ["format = np in its metadata, expected pt"]),
    "another dtype": (
        lambda t, _: t.update(a=t["a"].half()),
        [f"'a' in {SHARD} is F16, expected BF16"],
    ),
    "another dtype of integers": (
        lambda t, _: t.update(ids=t["ids"].int()),
        [f"'ids' in {SHARD} is I32, expected I64"],
    ),
    "another shape": (
        lambda t, _: t.update(strided=t["strided"].reshape(64, 192)),
        [f"'strided' in {SHARD} has shape [64, 192], expected [192, 64]"],
    ),
    "two swapped tensors": (swapped, [f"a in {SHARD}", f"b in {SHARD}"]),
}


@pytest.mark.parametrize("report", [True, False], ids=["report", "inferred"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_full_verification_finds_and_names_every_planted_fault(
    fault: str, report: bool, source: Path, result: Path
) -> None:
    change, says = FAULTS[fault]
    rewrite(result / SHARD, change)
    if not report:
        (result / "recast.json").unlink()
    failures = said(check(source, result))
    for text in says:
        assert text in failures


def test_a_fault_of_a_tied_tensor_is_counted_once(source: Path, result: Path) -> None:
    rewrite(result / SHARD, wrong_tied)
    kinds = [problem.kind for problem in check(source, result).problems]
    assert sorted(kinds) == ["metadata", "metadata", "tensor_missing", "tensor_tied"]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_the_state_dict_that_was_asked_for_is_expected(legacy: bool, tmp_path: Path) -> None:
    top = {"model": state(), "ema": state(2), "step": 7}
    source = save(tmp_path / "both.pt", top, legacy=legacy)
    for key in ("model", "ema"):
        recast.convert(source, tmp_path / key, to="bf16", key=key, verify="cpu", sync=False)
        assert check(source, tmp_path / key).passed
    shard = "both.safetensors"
    (tmp_path / "model" / shard).write_bytes((tmp_path / "ema" / shard).read_bytes())
    failures = said(check(source, tmp_path / "model"))
    assert f"a in {shard}, element 0:" in failures
    report = json.loads((tmp_path / "model" / "recast.json").read_text())
    (tmp_path / "model" / "recast.json").unlink()
    # Which of them it was cannot be known.
    with pytest.raises(recast.PickleError, match="ema"):
        check(source, tmp_path / "model")
    report["options"]["key"] = ["model"]
    (tmp_path / "model" / "recast.json").write_text(json.dumps(report))
    with pytest.raises(recast.PickleError, match="ema"):
        check(source, tmp_path / "model")


def sharded(path: Path) -> Path:
    """A model in two pickles, with the index that transformers wrote for such."""
    whole = state()
    shards = {FIRST: {name: whole[name] for name in ("a", "b", "strided")}}
    shards[SECOND] = {name: tensor for name, tensor in whole.items() if name not in shards[FIRST]}
    weight_map: dict[str, str] = {}
    for file, tensors in shards.items():
        name = f"pytorch_{file}".replace(".safetensors", ".bin")
        save(path / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    # Tied tensors counted twice, as transformers did.
    total = sum(tensor.nbytes for tensor in whole.values())
    metadata = {"total_size": total, "dtype": "float32"}
    index = {"metadata": metadata, "weight_map": weight_map}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return path


INDEX_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a name that was removed": (
        lambda index: index["weight_map"].update({"lm_head.weight": SECOND}),
        f"{INDEX} maps 'lm_head.weight' to {SECOND}, which does not hold it",
    ),
    "a shard's old name": (
        lambda index: index["weight_map"].update(a="pytorch_model-00001-of-00002.bin"),
        f"{INDEX} maps 'a' to pytorch_model-00001-of-00002.bin, which does not hold it",
    ),
    "a name too few": (
        lambda index: index["weight_map"].pop("b"),
        f"{INDEX} does not map the same tensors to the same shards",
    ),
    "another dtype": (
        lambda index: index["metadata"].update(dtype="float16"),
        f"{INDEX} states dtype = fp16, expected ",
    ),
    "another total size": (
        lambda index: index["metadata"].update(total_size=5),
        f"{INDEX} states total_size = 5, but its tensors have ",
    ),
}


@pytest.mark.parametrize("to", ["bf16", "as-stored"])
@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_an_index_must_fit_the_new_shards(fault: str, to: Any, tmp_path: Path) -> None:
    source = sharded(tmp_path / "model")
    recast.convert(source, tmp_path / "out", to=to, verify="cpu", sync=False)
    found = check(source, tmp_path / "out")
    assert found.passed, found.failures()
    assert (found.tensors_checked, found.values_checked) == (12, VALUES)
    spoil, says = INDEX_FAULTS[fault]
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    spoil(index)
    (tmp_path / "out" / INDEX).write_text(json.dumps(index))
    assert says in said(check(source, tmp_path / "out"))
    (tmp_path / "out" / "recast.json").unlink()
    assert says in said(check(source, tmp_path / "out"))


def test_tensors_in_each_others_shards_are_named(tmp_path: Path) -> None:
    source = sharded(tmp_path / "model")
    recast.convert(source, tmp_path / "out", to="bf16", sync=False)
    moved = load_file(tmp_path / "out" / FIRST)["b"]
    rewrite(tmp_path / "out" / FIRST, lambda tensors, _: tensors.pop("b"))
    rewrite(tmp_path / "out" / SECOND, lambda tensors, _: tensors.update(b=moved))
    failures = said(check(source, tmp_path / "out"))
    assert f"'b' in {FIRST} is missing" in failures
    assert f"'b' in {SECOND} is unexpected" in failures


@pytest.mark.parametrize("report", [True, False], ids=["report", "inferred"])
def test_as_stored_leaves_dtypes_and_what_configs_state(
    report: bool, source: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "out", tmp_path / "out" / "config.json"
    # What no tensor has, which is none of this conversion's business.
    said_before = (source / "config.json").read_text()
    said_before = said_before.replace('"torch_dtype": "float32"', '"torch_dtype": "bfloat16"')
    (source / "config.json").write_text(said_before)
    recast.convert(source, out, to="as-stored", sync=False)
    if not report:
        (out / "recast.json").unlink()
    before = config.read_text()
    config.write_text(before.replace('"bfloat16"', '"float16"'))
    failures = said(check(source, out))
    assert "config.json states text_config.torch_dtype = fp16, expected " in failures
    config.write_text(before)
    assert check(source, out).passed
    if report:
        rewrite(out / SHARD, lambda tensors, _: tensors.update(half=tensors["half"].float()))
        assert f"'half' in {SHARD} is F32, expected F16" in said(check(source, out))


def test_as_stored_verifies_safetensors_too(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file(as_made(state(), "as-stored"), tmp_path / "model" / SHARD, {"format": "pt"})
    recast.convert(tmp_path / "model", tmp_path / "out", to="as-stored", verify="cpu", sync=False)
    found = check(tmp_path / "model", tmp_path / "out")
    assert found.passed, found.failures()
    assert (found.values_checked, found.to) == (VALUES, None)
    rewrite(tmp_path / "out" / SHARD, one_value)
    assert f"b in {SHARD}, element 12,295:" in said(check(tmp_path / "model", tmp_path / "out"))


def test_saturation_is_expected_where_it_was_asked_for(tmp_path: Path) -> None:
    source = save(tmp_path / "model.pt", {"w": torch.tensor([1e5, -torch.inf, 1.0])})
    options: dict[str, Any] = {"to": "fp16", "on_overflow": "saturate", "sync": False}
    recast.convert(source, tmp_path / "out", **options)
    assert check(source, tmp_path / "out").passed
    rewrite(tmp_path / "out" / SHARD, lambda tensors, _: tensors["w"][0].fill_(torch.inf))
    assert f"w in {SHARD}, element 0: 100000.0" in said(check(source, tmp_path / "out"))


def test_the_command_prints_the_problems(source: Path, result: Path) -> None:
    rewrite(result / SHARD, noted("lm_head.weight", None))
    done = recast_here("verify", source, result, "--device", "cpu", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    problems = {each["kind"]: each["tensor"] for each in json.loads(done.stdout)["problems"]}
    assert problems == {"metadata": "lm_head.weight"}


@pytest.mark.parametrize("to", TARGETS)
def test_quantized_weights_of_a_pickle_are_found(to: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    codes, scale = torch.randn(192, 70).to(torch.float8_e4m3fn), torch.rand(2, 3) + 0.5
    held = {"a.weight": codes, "a.weight_scale_inv": scale, "norm.weight": torch.rand(64)}
    source = save(tmp_path / "model" / "pytorch_model.bin", held).parent
    said_of = {"quant_method": "fp8", "weight_block_size": [128, 32]}
    (source / "config.json").write_text(json.dumps({"quantization_config": said_of}))
    recast.convert(source, tmp_path / "out", to=to, verify="cpu", sync=False)
    found = check(source, tmp_path / "out")
    assert found.passed, found.failures()
    assert found.values_checked == 192 * 70 + 64
    made = load_file(tmp_path / "out" / SHARD)["a.weight"]
    blocks = scale.repeat_interleave(128, 0)[:192].repeat_interleave(32, 1)[:, :70]
    assert torch.equal(made, (codes.float() * blocks).to(TARGETS[to]))
    rewrite(tmp_path / "out" / SHARD, lambda tensors, _: tensors["a.weight"][130, 40].mul_(2))
    assert f"a.weight in {SHARD}, element 9,140:" in said(check(source, tmp_path / "out"))


@pytest.mark.parametrize("key", [None, "model", "model.state_dict"])
def test_a_state_dict_below_two_names_is_found(tmp_path: Path, key: str | None) -> None:
    top = {"model": {"state_dict": state(), "args": {"depth": 2}}, "optimizer": {"state": {}}}
    source = save(tmp_path / "model" / "net.pt", top).parent
    recast.convert(source, tmp_path / "out", to="bf16", key=key, sync=False)
    assert recast.verify(source, tmp_path / "out", full=True).passed
