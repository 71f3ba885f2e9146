"""What stands around dequantized weights: names, index, configs, the report, and the plan."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from dequantizers import GONE, found, scaled
from quantized_formats import FP8, comfy, compressed, fused_experts, modelopt, scheme, shared_scale
from quantized_models import (
    Tensors,
    block_config,
    deepseek_v4,
    fbgemm,
    fine_grained,
    gpt_oss,
    lay,
    mistral,
    mistral_native,
    ragged,
)
from recast.options import FloatName
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import STORED, files, header_of, recast_here, stored, tree

INDEX = "model.safetensors.index.json"


def json_of(path: Path) -> Any:
    return json.loads(path.read_text())


def converted(source: Path, to: FloatName = "bf16", **options: Any) -> Path:
    out = source.with_name("out")
    recast.convert(source, out, to=to, sync=False, **options)
    return out


@pytest.mark.parametrize("to", ["bf16", "fp32"])
def test_the_index_names_what_is_there_and_its_size(to: FloatName, tmp_path: Path) -> None:
    source = ragged(tmp_path / "in")
    out = converted(source, to)
    before, after = json_of(source / INDEX), json_of(out / INDEX)
    weights = {
        name: file
        for name, file in before["weight_map"].items()
        if not name.endswith("weight_scale_inv")
    }
    assert after["weight_map"] == weights
    # Nothing else has changed, its order neither.
    assert list(after["weight_map"]) == list(weights)
    assert after["metadata"] == {"total_size": sum(len(data) for *_, data in found(out).values())}
    assert {name: set(stored(out / name)) for name in set(weights.values())} == {
        file: {name for name in weights if weights[name] == file} for file in set(weights.values())
    }


RENAMED: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "gpt-oss": (gpt_oss, "_blocks", ""),
    "NVFP4": (partial(compressed, chosen=scheme("NVFP4")), "weight_packed", "weight"),
    "MXFP4": (partial(compressed, chosen=scheme("MXFP4")), "weight_packed", "weight"),
}


@pytest.mark.parametrize("name", RENAMED)
def test_a_weight_that_has_another_name_stands_in_the_shard_of_its_codes(
    name: str, tmp_path: Path
) -> None:
    write, ending, instead = RENAMED[name]
    source = write(tmp_path / "in")
    out = converted(source)
    before, after = json_of(source / INDEX)["weight_map"], json_of(out / INDEX)["weight_map"]
    codes = {key: file for key, file in before.items() if key.endswith(ending)}
    assert codes
    for key, file in codes.items():
        result = key.removesuffix(ending) + instead
        assert after.pop(result) == file
        assert result in stored(out / file)
        assert key not in after
    assert set(after) <= set(before)


def test_a_shard_from_which_everything_went_stays_and_is_empty(tmp_path: Path) -> None:
    source = fine_grained(tmp_path / "in")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    scales = {name: x for name, x in tensors.items() if name.endswith("scale_inv")}
    rest = {name: x for name, x in tensors.items() if name not in scales}
    save_file(rest, source / "weights.safetensors", {"format": "pt"})
    save_file(scales, source / "scales.safetensors", {"format": "pt"})
    where = dict.fromkeys(rest, "weights.safetensors") | dict.fromkeys(scales, "scales.safetensors")
    (source / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    out = converted(source)
    assert header_of(out / "scales.safetensors") == {"__metadata__": {"format": "pt"}}
    with safe_open(out / "scales.safetensors", "pt") as file:
        assert list(file.keys()) == []
    assert set(json_of(out / INDEX)["weight_map"]) == set(rest)
    assert set(stored(out / "weights.safetensors")) == set(rest)


def test_the_config_speaks_of_quantization_no_more_and_keeps_its_order(tmp_path: Path) -> None:
    source = fine_grained(tmp_path / "in", shards=2)
    said = json_of(source / "config.json")
    nested = block_config([64, 32])
    said = {
        "compression_config": nested,
        **said,
        "text_config": {"a": 1, "quantization_config": nested, "dtype": "bfloat16"},
    }
    (source / "config.json").write_text(json.dumps(said))
    out = converted(source, "fp16")
    expected = {
        key: value
        for key, value in said.items()
        if key not in ("quantization_config", "compression_config")
    }
    expected |= {"dtype": "float16", "text_config": {"a": 1, "dtype": "float16"}}
    assert json_of(out / "config.json") == expected
    assert list(json_of(out / "config.json")) == list(expected)


def test_a_sidecar_and_metadata_of_quantization_go_and_others_stay(tmp_path: Path) -> None:
    source = modelopt(tmp_path / "in", "FP8")
    (source / "notes.json").write_text('{"quantization": "is in a text of its own"}')
    out = converted(source)
    assert files(out) >= files(source) - {"hf_quant_config.json"}
    assert not (out / "hf_quant_config.json").exists()
    scaled_file = comfy(tmp_path / "comfy", "metadata") / "diffusion.safetensors"
    recast.convert(scaled_file, tmp_path / "one", to="fp16", sync=False)
    result = header_of(tmp_path / "one" / "diffusion.safetensors")
    assert result["__metadata__"] == {"modelspec.title": "small", "format": "pt"}


@pytest.mark.parametrize(
    "write",
    [ragged, mistral_native, gpt_oss, partial(comfy, spelling="layers"), shared_scale],
)
def test_the_report_lists_what_went_and_counts_what_was_dequantized(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = write(tmp_path / "in")
    report = recast.convert(source, tmp_path / "out", to="bf16", sync=False)
    before, after = found(source), found(tmp_path / "out")
    codes = {"F8_E4M3", "F8_E5M2", "U8", "I8"}
    gone = [name for name in before if re.search(GONE, name)]
    dequantized = [name for name in before if before[name][0] in codes and name not in gone]
    written = json_of(tmp_path / "out" / "recast.json")
    assert sorted(written["dropped"]) == sorted(gone)
    assert written["dropped"] == report.dropped
    assert written["tensors"] == report.tensors
    assert report.tensors["dequantized"] == len(dequantized)
    assert sum(written["tensors"].values()) == len(after)
    assert report.parameters == sum(torch.Size(shape).numel() for _, shape, _ in after.values())


def test_a_report_of_no_quantized_weight_says_nothing_of_it(model: Path, tmp_path: Path) -> None:
    recast.convert(model, tmp_path / "out", to="bf16", sync=False)
    written = json_of(tmp_path / "out" / "recast.json")
    assert "dropped" not in written
    assert "dequantized" not in written["tensors"]
    assert not {"nan_codes", "scales"} & written["audit"].keys()


def test_the_plan_has_the_exact_bytes_and_what_they_come_from(tmp_path: Path) -> None:
    source = gpt_oss(tmp_path / "in")
    plan = recast.plan(source, to="bf16")
    recast.convert(source, tmp_path / "out", to="bf16", sync=False)
    before, after = found(source), found(tmp_path / "out")
    assert [tensor.name for tensor in plan.tensors] == list(after) or {
        tensor.name for tensor in plan.tensors
    } == set(after)
    for tensor in plan.tensors:
        dtype, shape, data = after[tensor.name]
        assert (STORED[plan.to], list(tensor.shape)) == (dtype, shape)
        assert (tensor.bytes, tensor.elements) == (len(data), len(data) // 2)
        assert tensor.dtype == dtype
        if tensor.action == "dequantize":
            assert tensor.source_name == tensor.name + "_blocks"
            kind, _, codes = before[tensor.source_name]
            assert (tensor.source_dtype, tensor.source_bytes) == (kind, len(codes))
    assert sum(tensor.action == "dequantize" for tensor in plan.tensors) == 4
    where = json_of(source / INDEX)["weight_map"]
    gone = {(where[name], name) for name in before if name.endswith("_scales")}
    assert {(Path(file).name, name) for file, name in plan.dropped} == gone
    sizes = {file.path: file.bytes for file in plan.files}
    for path, size in sizes.items():
        assert (tmp_path / "out" / path).stat().st_size == size


def test_nothing_is_written_on_a_dry_run_and_a_rerun_finds_its_result(tmp_path: Path) -> None:
    source = fine_grained(tmp_path / "in", shards=2)
    dry = recast_here("convert", source, tmp_path / "out", "--to", "bf16", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    assert not (tmp_path / "out").exists()
    before = tree(source)
    recast.convert(source, tmp_path / "out", to="bf16", sync=False)
    assert tree(source) == before
    assert recast.convert(source, tmp_path / "out", to="bf16", sync=False).already_done
    published = recast_here("verify", tmp_path / "out")
    assert published.returncode == 0, published.stderr


def test_quantized_weights_can_still_be_carried_as_they_are(tmp_path: Path) -> None:
    source = fine_grained(tmp_path / "in", shards=2)
    out = converted(source, "fp16", skip_quantized=True)
    before, after = found(source), found(out)
    assert before.keys() == after.keys()
    for name, (dtype, shape, data) in before.items():
        if "proj" in name:
            assert after[name] == (dtype, shape, data)
    assert json_of(out / "config.json")["quantization_config"]


@pytest.mark.parametrize("part", ["weight", "weight_scale_inv", "activation_scale"])
def test_a_pattern_may_not_keep_a_part_of_what_is_dequantized(part: str, tmp_path: Path) -> None:
    source = mistral(tmp_path / "in")
    name = f"model.layers.0.mlp.up_proj.{part}"
    run = recast_here("convert", source, tmp_path / "out", "--to", "bf16", "--keep", name)
    assert run.returncode in (2, 65), run.stderr
    assert name in run.stderr
    assert not (tmp_path / "out").exists()


def test_a_pattern_keeps_what_is_not_quantized(tmp_path: Path) -> None:
    out = converted(fine_grained(tmp_path / "in"), "fp16", keep=["lm_head.*"])
    assert {name: dtype for name, (dtype, *_) in found(out).items() if dtype != "F16"} == {
        "lm_head.weight": "BF16"
    }


def test_schemes_may_be_mixed_in_one_checkpoint(tmp_path: Path) -> None:
    """As in published ones that have NVFP4 experts, whole-tensor fp8 and block fp8."""
    parts = {
        "a": fused_experts(tmp_path / "a"),
        "b": gpt_oss(tmp_path / "b"),
        "c": comfy(tmp_path / "c", "old"),
        "d": compressed(tmp_path / "d", scheme("NVFP4")),
    }
    together: Tensors = {}
    alone: dict[str, Any] = {}
    for prefix, folder in parts.items():
        recast.convert(folder, tmp_path / f"{prefix}-out", to="fp32", sync=False)
        for file in folder.glob("*.safetensors"):
            together |= {f"{prefix}.{name}": x for name, x in load_file(file).items()}
        results = found(tmp_path / f"{prefix}-out")
        alone |= {f"{prefix}.{name}": row for name, row in results.items()}
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 32]}}
    out = converted(lay(tmp_path / "in", together, config, shards=3), "fp32")
    assert found(out) == alone


def test_each_of_two_files_with_the_same_names_has_its_own_scales(tmp_path: Path) -> None:
    codes = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).to(FP8)
    (tmp_path / "in").mkdir()
    for at, file in enumerate(("one", "two")):
        tensors = {"m.weight": codes, "m.weight_scale": torch.tensor(0.37 + at)}
        save_file(tensors, tmp_path / "in" / f"{file}.safetensors")
    out = converted(tmp_path / "in", "fp32")
    for at, file in enumerate(("one", "two")):
        result = load_file(out / f"{file}.safetensors")["m.weight"]
        assert torch.equal(result, codes.float() * torch.tensor(0.37 + at))


def test_a_plain_copy_beside_is_cast_and_one_without_scales_is_refused(tmp_path: Path) -> None:
    """A folder may hold the same model in several dtypes, each in a file of its own."""
    codes = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).to(FP8)
    source = tmp_path / "in"
    source.mkdir()
    scaled = {"m.weight": codes, "m.scale_weight": torch.tensor(0.37)}
    save_file(scaled, source / "fp8_scaled.safetensors")
    save_file({"m.weight": codes.double()}, source / "fp64.safetensors")
    out = converted(source, "fp32", verify="cpu")
    assert torch.equal(load_file(out / "fp64.safetensors")["m.weight"], codes.float())
    result = load_file(out / "fp8_scaled.safetensors")["m.weight"]
    assert torch.equal(result, codes.float() * torch.tensor(0.37))
    save_file({"m.weight": codes}, source / "fp8.safetensors")
    with pytest.raises(recast.QuantizedError, match=r"fp8\.safetensors.*'m\.weight'"):
        recast.plan(source, to="bf16")


def test_each_component_of_a_pipeline_has_its_own_scales(tmp_path: Path) -> None:
    for name, block in (("transformer", (64, 64)), ("text_encoder", (32, 32))):
        fine_grained(tmp_path / "in" / name, block=block, shards=2)
    (tmp_path / "in" / "model_index.json").write_text("{}")
    out = converted(tmp_path / "in")
    for name, block in (("transformer", (64, 64)), ("text_encoder", (32, 32))):
        expected = scaled(block)(tmp_path / "in" / name, "bf16")
        ours = {key: row[1:] for key, row in found(out / name).items()}
        assert ours == expected


SCHEMES: dict[str, tuple[Callable[[Path], Path], dict[str, int]]] = {
    "fine": (fine_grained, {"fp8, a scale for each block of 64 x 32": 14}),
    "mistral": (mistral, {"fp8, a scale for each tensor": 14}),
    "fbgemm": (fbgemm, {"fp8, a scale for each row": 14}),
    "gpt-oss": (gpt_oss, {"MXFP4": 4}),
    "deepseek_v4": (
        deepseek_v4,
        {"MXFP4 (packed experts)": 36, "fp8, a scale for each block of 32 x 16": 24},
    ),
    "NVFP4": (
        partial(compressed, chosen=scheme("NVFP4")),
        {"NVFP4 (compressed-tensors)": 14},
    ),
    "ModelOpt": (partial(modelopt, algorithm="NVFP4"), {"NVFP4 (ModelOpt)": 14}),
    "MXFP8": (partial(fine_grained, block=(1, 32), scale="uint8"), {"MXFP8": 14}),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_inspect_names_the_schemes_and_knows_the_memory(name: str, tmp_path: Path) -> None:
    write, schemes = SCHEMES[name]
    source = write(tmp_path / "in")
    facts = json.loads(recast_here("inspect", source, "--json").stdout)
    assert {row["name"]: row["weights"] for row in facts["schemes"]} == schemes
    assert [row["problem"] for row in facts["schemes"]] == [None] * len(schemes)
    text = recast_here("inspect", source).stdout
    for scheme_name in schemes:
        (line,) = [row for row in text.splitlines() if row.strip().startswith(scheme_name + " ")]
        assert "dequantized by convert" in line
    for to in ("bf16", "fp32"):
        recast.convert(source, tmp_path / to, to=to, sync=False)
        size = sum(len(data) for *_, data in found(tmp_path / to).values())
        assert facts["gpu_memory"][to]["requested"] == size


def test_inspect_says_why_a_weight_cannot_be_dequantized(tmp_path: Path) -> None:
    source = fine_grained(tmp_path / "in")
    (source / "config.json").write_text("{}")
    facts = json.loads(recast_here("inspect", source, "--json").stdout)
    (row,) = facts["schemes"]
    assert row["weights"] == 14
    assert "no config states their size" in row["problem"]
    assert "no config states their size" in recast_here("inspect", source).stdout
    assert facts["gpu_memory"].keys() == {"as_stored"}
