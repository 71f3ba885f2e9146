"""`recast.verify` of dequantized weights: a good result passes, every planted fault is found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from conftest import build
from judged import FP8, codes, packed, scales
from quantized_models import gpt_oss
from recast.options import FloatName
from recast.verification import quantized
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import recast_here

Tensors = dict[str, torch.Tensor]
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
SCALES = {"a.weight_scale_inv", "b.weight_scale_inv", "c.weight_scale", "d.weight_scale"}
SCALES |= {"d.weight_global_scale", "e.w_scales", "c.input_scale", "c.k_scale"}
VALUES = 2 * 192 * 70 + 8 * 70 + 8 * 64 + 2 * 64 * 64 + 64


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Weights of several schemes in two shards, the scales of one in the other shard."""
    torch.manual_seed(0)
    path = tmp_path / "model"
    path.mkdir()
    finite = torch.randn(192, 70).to(FP8)
    first = {"a.weight": finite, "b.weight": torch.randn(192, 70).to(FP8)}
    first |= {"b.weight_scale_inv": scales(2, 3).bfloat16(), "norm.weight": torch.rand(64)}
    second = {"a.weight_scale_inv": scales(2, 3), "c.weight": torch.randn(8, 70).to(FP8)}
    second |= {"c.weight_scale": scales(8, 1), "c.input_scale": scales(1), "c.k_scale": scales(1)}
    second |= {"d.weight_packed": packed(8, 32), "d.weight_scale": torch.rand(8, 4).to(FP8)}
    second |= {"d.weight_global_scale": torch.tensor([300.0]), "e.w_blocks": packed(2, 64, 2, 16)}
    second |= {"e.w_scales": torch.randint(115, 125, (2, 64, 2), dtype=torch.uint8)}
    shards = {FIRST: first, SECOND: second}
    for file, tensors in shards.items():
        save_file(tensors, path / file, {"format": "pt"})
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    said = {"quant_method": "fp8", "weight_block_size": [128, 32], "dtype": "float32"}
    config = {"model_type": "x", "dtype": "float32", "text_config": {"quantization_config": said}}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def result(source: Path, tmp_path: Path) -> Path:
    recast.convert(source, tmp_path / "out", to="bf16", sync=False)
    return tmp_path / "out"


def check(source: Path, dest: Path, **options: Any) -> recast.Verification:
    return recast.verify(source, dest, device="cpu", **{"full": True, **options})


@pytest.mark.parametrize("to", ["bf16", "fp16", "fp32"])
def test_a_good_result_passes(to: FloatName, source: Path, tmp_path: Path) -> None:
    recast.convert(source, tmp_path / "out", to=to, verify="cpu", sync=False)
    for options in ({}, {"full": False, "samples": 0}, {"full": False}):
        found = check(source, tmp_path / "out", **options)
        assert found.passed, found.failures()
        assert (found.tensors_checked, found.values_total) == (6, VALUES)
        left_out = 2 * (192 * 70 - 2 * 4096) if options.get("samples") == 0 else 0
        assert found.values_checked == VALUES - left_out
        assert found.notes == []


@pytest.mark.parametrize("file", ["config", "hf_quant_config"])
def test_what_is_said_beside_a_single_file_counts(file: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model"
    path.mkdir()
    tensors = {"a.weight": torch.randn(130, 70).to(FP8), "a.weight_scale_inv": scales(3, 3)}
    save_file(tensors, path / "weights.safetensors")
    said = {"quant_algo": "none", "weight_block_size": [64, 32]}
    key = "quantization_config" if file == "config" else "quantization"
    (path / f"{file}.json").write_text(json.dumps({key: said}))
    source = path / "weights.safetensors"
    recast.convert(source, tmp_path / "out", to="bf16", verify="cpu", sync=False)
    found = check(source, tmp_path / "out")
    assert found.passed, found.failures()


def test_what_another_tool_dequantized_passes_without_a_report(source: Path, result: Path) -> None:
    (result / "recast.json").unlink()
    found = check(source, result)
    assert found.passed, found.failures()
    assert found.to == "bf16"


def test_packed_codes_are_dequantized_to_the_dtype_of_the_rest_without_a_report(
    tmp_path: Path,
) -> None:
    path = gpt_oss(tmp_path / "source")
    recast.convert(path, tmp_path / "out", to="bf16", on_overflow="inf", sync=False)
    (tmp_path / "out" / "recast.json").unlink()
    found = check(path, tmp_path / "out")
    assert found.passed, found.failures()


def test_what_carries_quantized_weights_passes(source: Path, tmp_path: Path) -> None:
    recast.convert(source, tmp_path / "out", to="bf16", skip_quantized=True, sync=False)
    found = check(source, tmp_path / "out")
    assert found.passed, found.failures()
    cast_scale(tmp_path / "out")
    assert kinds(check(source, tmp_path / "out")) >= {"tensor_dtype"}


def kinds(found: recast.Verification) -> set[str]:
    return {problem.kind for problem in found.problems}


def rewrite(path: Path, change: Callable[[Tensors], object], **metadata: str) -> None:
    """Writes a shard again with its tensors changed."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt", **metadata})


def cast_scale(out: Path) -> None:
    name = "a.weight_scale_inv"
    rewrite(out / SECOND, lambda tensors: tensors.update({name: tensors[name].bfloat16()}))


def made_of_another(change: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    """A result of a source that was changed, as a faulty conversion would make it."""

    def make(source: Path, out: Path) -> None:
        other = source.with_name("other")
        shutil.copytree(source, other)
        change(other)
        recast.convert(other, out, to="bf16", overwrite=True, sync=False)

    return make


def swap_scales(path: Path) -> None:
    one, two = load_file(path / FIRST), load_file(path / SECOND)
    names = ("b.weight_scale_inv", "a.weight_scale_inv")
    one[names[0]], two[names[1]] = two[names[1]].clone(), one[names[0]].clone()
    save_file(one, path / FIRST, {"format": "pt"})
    save_file(two, path / SECOND, {"format": "pt"})


def other_block(path: Path) -> None:
    text = (path / "config.json").read_text()
    assert "[128, 32]" in text
    (path / "config.json").write_text(text.replace("[128, 32]", "[96, 32]"))


def one_scale(path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["a.weight_scale_inv"][1, 2] *= 2

    rewrite(path / SECOND, change)


def second_scale(path: Path) -> None:
    rewrite(path / SECOND, lambda tensors: tensors["d.weight_global_scale"].mul_(1.5))


def changed(name: str, change: Callable[[torch.Tensor], object]) -> Callable[[Path, Path], None]:
    file = FIRST if name[0] in "abn" else SECOND
    return lambda source, out: rewrite(out / file, lambda tensors: change(tensors[name]))


def flip(element: int, bit: int) -> Callable[[torch.Tensor], object]:
    def change(tensor: torch.Tensor) -> None:
        tensor.view(torch.int16).view(-1)[element] ^= 1 << bit

    return change


VALUE_FAULTS: dict[str, tuple[Callable[[Path, Path], None], set[str]]] = {
    "scales of two weights exchanged": (made_of_another(swap_scales), {"a.weight", "b.weight"}),
    "another block of the same grid": (made_of_another(other_block), {"a.weight", "b.weight"}),
    "one scale of six": (made_of_another(one_scale), {"a.weight"}),
    "another second scale": (made_of_another(second_scale), {"d.weight"}),
    "a flipped bit": (changed("b.weight", flip(5000, 0)), {"b.weight"}),
    "a flipped bit of fp4": (changed("d.weight", flip(511, 3)), {"d.weight"}),
    "experts that are not transposed": (
        changed("e.w", lambda tensor: tensor.copy_(tensor.mT.clone())),
        {"e.w"},
    ),
    "experts exchanged": (changed("e.w", lambda t: t.copy_(t.flip(0))), {"e.w"}),
    "a weight that is not dequantized": (
        changed("c.weight", lambda tensor: tensor.div_(0.01)),
        {"c.weight"},
    ),
}


@pytest.mark.parametrize("report", [True, False], ids=["report", "inferred"])
@pytest.mark.parametrize("fault", VALUE_FAULTS)
def test_wrong_values_are_found_in_their_tensors(
    fault: str, report: bool, source: Path, result: Path
) -> None:
    plant, tensors = VALUE_FAULTS[fault]
    plant(source, result)
    if not report:
        (result / "recast.json").unlink()
    found = check(source, result)
    assert {mismatch.tensor for mismatch in found.mismatches} == tensors
    # What blocks the source states is a part of it, so the run was that of another one.
    assert kinds(found) <= {"report_other"}


def add(file: str, tensors: Tensors) -> Callable[[Path], None]:
    return lambda out: rewrite(out / file, lambda held: held.update(tensors))


def in_json(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    def plant(out: Path) -> None:
        value = json.loads((out / name).read_text())
        change(value)
        (out / name).write_text(json.dumps(value))

    return plant


def old_name(out: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["d.weight_packed"] = tensors.pop("d.weight")

    rewrite(out / SECOND, change)


SAID = {"quantization_config": {"quant_method": "fp8"}}
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a scale is left": (add(SECOND, {"c.weight_scale": scales(8, 1)}), "scale_left"),
    "an activation's scale is left": (add(SECOND, {"c.input_scale": scales(1)}), "scale_left"),
    "codes under their old name": (old_name, "tensor_missing"),
    "codes beside the weight": (
        add(SECOND, {"d.weight_packed": packed(8, 32)}),
        "tensor_unexpected",
    ),
    "a weight is missing": (
        lambda out: rewrite(out / FIRST, lambda tensors: tensors.pop("a.weight")),
        "tensor_missing",
    ),
    "the codes as they were": (add(SECOND, {"c.weight": codes(8, 70)}), "tensor_dtype"),
    "half a weight": (add(SECOND, {"d.weight": torch.zeros(8, 32).bfloat16()}), "tensor_shape"),
    "a scale is in the index": (
        in_json(INDEX, lambda index: index["weight_map"].update({"c.weight_scale": SECOND})),
        "index_map",
    ),
    "an old name is in the index": (
        in_json(INDEX, lambda index: index["weight_map"].update({"e.w_blocks": SECOND})),
        "index_map",
    ),
    "a new name is not in the index": (
        in_json(INDEX, lambda index: index["weight_map"].pop("e.w")),
        "index_map",
    ),
    "the size of the codes": (
        in_json(INDEX, lambda index: index["metadata"].update(total_size=5)),
        "index_size",
    ),
    "a config says so": (in_json("config.json", lambda v: v.update(SAID)), "quantization_left"),
    "a nested config says so": (
        in_json("config.json", lambda v: v["text_config"].update(SAID)),
        "quantization_left",
    ),
    "a sidecar is left": (
        lambda out: shutil.copy(out / "config.json", out / "hf_quant_config.json"),
        "sidecar_left",
    ),
    "metadata are left": (
        lambda out: rewrite(out / FIRST, lambda tensors: None, _quantization_metadata="{}"),
        "quantization_left",
    ),
}


@pytest.mark.parametrize("report", [True, False], ids=["report", "inferred"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_left_or_lost_is_found(
    fault: str, report: bool, source: Path, result: Path
) -> None:
    plant, kind = FAULTS[fault]
    plant(result)
    if not report:
        (result / "recast.json").unlink()
    found = check(source, result)
    assert kind in kinds(found), found.failures()


def test_what_verification_does_not_find_itself_is_a_problem(
    source: Path, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = quantized.find

    def fewer(*arguments: Any) -> Any:
        return {key: found for key, found in real(*arguments).items() if key[1] != "c.weight"}

    monkeypatch.setattr(quantized, "find", fewer)
    found = check(source, result)
    assert kinds(found) == {"weight_unknown", "tensor_missing", "index_map"}
    tensors = {problem.tensor for problem in found.problems}
    assert tensors == {"c.weight", "c.weight_scale", "c.input_scale", None}


@pytest.mark.parametrize("policy", ["inf", "saturate"])
def test_overflow_is_judged_by_the_policy(policy: Any, source: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["c.weight_scale"][:2] = torch.tensor([[1e6], [3e38]])
        tensors["c.weight_scale"][2] = torch.inf
        tensors["c.weight"].view(torch.uint8)[:3, :5] = torch.tensor([0x7E, 0xFE, 0x7F, 0, 0x80])

    rewrite(source / SECOND, change)
    for to in ("fp16", "fp32"):
        out = tmp_path / f"{policy}-{to}"
        recast.convert(source, out, to=to, on_overflow=policy, verify="cpu", sync=False)
        found = check(source, out)
        assert found.passed, found.failures()
        with safe_open(out / SECOND, "pt") as shard:
            made = shard.get_tensor("c.weight")
        largest = torch.finfo(made.dtype).max if policy == "saturate" else torch.inf
        assert made[1, :2].tolist() == [largest, -largest]
        assert made[2, :2].tolist() == [torch.inf, -torch.inf]
        assert made[:3, 2].isnan().all()
        other = "inf" if policy == "saturate" else "saturate"
        report = json.loads((out / "recast.json").read_text())
        report["options"]["on_overflow"] = other
        (out / "recast.json").write_text(json.dumps(report))
        assert {m.tensor for m in check(source, out).mismatches} == {"c.weight"}


def test_the_command_names_what_is_wrong(source: Path, result: Path) -> None:
    assert recast_here("verify", source, result, "--device", "cpu").returncode == 0
    add(SECOND, {"c.weight_scale": scales(8, 1)})(result)
    done = recast_here("verify", source, result, "--device", "cpu")
    assert done.returncode == 1
    assert "tensor 'c.weight_scale'" in done.stdout
    assert "which are dequantized" in done.stdout


def test_what_transformers_loads_of_it_passes(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "model")
    held = load_file(tmp_path / "model" / "model.safetensors")
    for name in [name for name, weight in held.items() if name.endswith("proj.weight")]:
        rows, columns = held[name].shape
        held[f"{name}_scale_inv"] = scales(-(-rows // 20), -(-columns // 20)).abs()
        held[name] = held[name].to(FP8)
    save_file(held, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    said = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [20, 20]}}
    in_json("config.json", lambda config: config.update(said))(tmp_path / "model")
    recast.convert(tmp_path / "model", tmp_path / "out", to="bf16", sync=False)
    found = check(tmp_path / "model", tmp_path / "out", loader="transformers")
    assert found.passed, found.failures()
    assert found.values_checked == sum(weight.numel() for weight in model.parameters())
