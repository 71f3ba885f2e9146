"""A checkpoint is a tree: what becomes of each file in it, wherever it stands."""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from conftest import Save
from recast.options import FloatName
from safetensors.torch import load_file
from support import files, fp32_bytes, header_of, raw_bytes, recast_process, stored, tree


def convert(source: Path, dest: Path, to: FloatName = "bf16", **options: Any) -> recast.Report:
    """Converts, and holds the promise that a source is never written to."""
    root = source.parent if source.is_file() else source
    before = tree(root)
    report = recast.convert(source, dest, to=to, sync=False, **options)
    assert tree(root) == before
    assert "recast.json" in files(dest)
    assert ".recast" not in {path.name for path in dest.iterdir()}
    return report


def shard(path: Path, *names: str, metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(name, "F32", [4], fp32_bytes(4, seed)) for seed, name in enumerate(names)]
    path.write_bytes(raw_bytes(rows, metadata, pad_to=8))


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def dtypes(path: Path) -> set[str]:
    return {dtype for dtype, *_ in stored(path).values()}


def test_a_single_file_keeps_its_name_and_leaves_its_neighbors_alone(tmp_path: Path) -> None:
    shard(tmp_path / "in" / "weights.safetensors", "a")
    shard(tmp_path / "in" / "other.safetensors", "b")
    write_json(tmp_path / "in" / "config.json", {"dtype": "float32"})
    convert(tmp_path / "in" / "weights.safetensors", tmp_path / "out")
    assert files(tmp_path / "out") == {"weights.safetensors", "recast.json"}
    assert dtypes(tmp_path / "out" / "weights.safetensors") == {"BF16"}


def test_a_sharded_model_keeps_its_files_and_its_index_states_the_new_size(
    saved: Save, tmp_path: Path
) -> None:
    source = saved("llama", "fp32")
    convert(source, tmp_path / "out")
    assert files(tmp_path / "out") == files(source) | {"recast.json"}
    before = json.loads((source / "model.safetensors.index.json").read_text())
    after = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    weights = [load_file(path) for path in (tmp_path / "out").glob("*.safetensors")]
    total = sum(tensor.nbytes for shard in weights for tensor in shard.values())
    assert after["metadata"].pop("total_size") == total
    assert before["metadata"].pop("total_size") == 2 * total
    assert after == before


def test_everything_of_an_index_but_its_size_and_dtype_keeps_its_bytes(tmp_path: Path) -> None:
    text = (
        '{ "weight_map": {"b": "x.safetensors",\t"a": "x.safetensors"},\n'
        '   "metadata": {"note": "\\u00e9 1e-05", "total_size": 32, "dtype": "float32",'
        ' "total_parameters": 8.0}}'
    )
    shard(tmp_path / "in" / "x.safetensors", "a", "b")
    (tmp_path / "in" / "model.safetensors.index.json").write_text(text)
    convert(tmp_path / "in", tmp_path / "out", to="fp16")
    expected = text.replace('"total_size": 32', '"total_size": 16').replace("float32", "float16")
    assert (tmp_path / "out" / "model.safetensors.index.json").read_text() == expected


def test_a_hub_snapshot_is_read_through_its_links_and_left_untouched(
    saved: Save, tmp_path: Path
) -> None:
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in saved("llama", "fp32").iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (repository / "blobs" / digest).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{digest}")
    before = tree(repository)
    convert(snapshot, tmp_path / "out")
    assert tree(repository) == before
    assert all(path.is_file() and not path.is_symlink() for path in (tmp_path / "out").iterdir())
    convert(saved("llama", "fp32"), tmp_path / "plain")
    # The report too: it says what the source was, not where.
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")


def test_a_linked_single_file_keeps_the_links_name(tmp_path: Path) -> None:
    shard(tmp_path / "blobs" / "abc123.safetensors", "a")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.safetensors").symlink_to("../blobs/abc123.safetensors")
    convert(tmp_path / "in" / "model.safetensors", tmp_path / "out")
    assert files(tmp_path / "out") == {"model.safetensors", "recast.json"}


def test_a_pipeline_of_many_checkpoints_is_converted_in_all_its_folders(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_json(source / "model_index.json", {"_class_name": "Pipe", "dtype": "not ours"})
    write_json(source / "scheduler" / "scheduler_config.json", {"dtype": "float32"})
    for folder, name in {"unet": "diffusion_pytorch_model", "text_encoder": "model"}.items():
        parts = [f"{name}-0000{part}-of-00002.safetensors" for part in (1, 2)]
        shard(source / folder / parts[0], "a", "b")
        shard(source / folder / parts[1], "c")
        write_json(
            source / folder / f"{name}.safetensors.index.json",
            {
                "metadata": {"total_size": 48},
                "weight_map": dict(zip("abc", parts[:1] * 2 + parts[1:], strict=True)),
            },
        )
        write_json(source / folder / "config.json", {"torch_dtype": "float32"})
    shard(source / "vae" / "diffusion_pytorch_model.safetensors", "a")
    write_json(source / "vae" / "config.json", {"sample_size": 8})
    report = convert(source, tmp_path / "out")
    out = tmp_path / "out"
    assert files(out) == files(source) | {"recast.json"}
    assert report.tensors == {"cast": 7, "copied": 0, "kept": 0}
    assert all(dtypes(path) == {"BF16"} for path in out.rglob("*.safetensors"))
    for index in out.rglob("*.index.json"):
        assert json.loads(index.read_text())["metadata"] == {"total_size": 24}
    for folder in ("unet", "text_encoder"):
        config = json.loads((out / folder / "config.json").read_text())
        assert config == {"torch_dtype": "bfloat16"}
    for same in ("model_index.json", "scheduler/scheduler_config.json", "vae/config.json"):
        assert (out / same).read_bytes() == (source / same).read_bytes()


def test_an_adapter_is_converted_and_its_config_is_copied(tmp_path: Path) -> None:
    shard(tmp_path / "in" / "adapter_model.safetensors", "lora_A.weight", "lora_B.weight")
    write_json(tmp_path / "in" / "adapter_config.json", {"peft_type": "LORA", "r": 8})
    convert(tmp_path / "in", tmp_path / "out", to="fp16")
    out = tmp_path / "out"
    assert files(out) == {"adapter_model.safetensors", "adapter_config.json", "recast.json"}
    assert dtypes(out / "adapter_model.safetensors") == {"F16"}
    config = (tmp_path / "in" / "adapter_config.json").read_bytes()
    assert (out / "adapter_config.json").read_bytes() == config


ODD = ["model.safetensors-00001-of-00003.safetensors", "weights v2 (final).safetensors"]
ODD += ["größe.safetensors", "A.b.c.safetensors"]


def test_shards_of_any_name_are_found_by_the_index(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for number, name in enumerate(ODD):
        shard(source / name, f"tensor.{number}")
    write_json(
        source / "model.safetensors.index.json",
        {
            "metadata": {"total_size": 64},
            "weight_map": {f"tensor.{n}": name for n, name in enumerate(ODD)},
        },
    )
    convert(source, tmp_path / "out")
    assert files(tmp_path / "out") == files(source) | {"recast.json"}
    assert all(dtypes(tmp_path / "out" / name) == {"BF16"} for name in ODD)


def test_a_variant_and_its_index_are_converted(tmp_path: Path) -> None:
    source = tmp_path / "in"
    parts = [f"model.fp16-0000{part}-of-00002.safetensors" for part in (1, 2)]
    shard(source / parts[0], "a")
    shard(source / parts[1], "b")
    weight_map = {"a": parts[0], "b": parts[1]}
    index = "model.safetensors.index.fp16.json"
    write_json(source / index, {"metadata": {"total_size": 32}, "weight_map": weight_map})
    report = convert(source, tmp_path / "out", to="bf16")
    after = json.loads((tmp_path / "out" / index).read_text())
    assert after == {"metadata": {"total_size": 16}, "weight_map": weight_map}
    assert any(parts[0] in warning for warning in report.warnings)


def test_tensors_the_index_does_not_name_are_converted_but_not_counted(tmp_path: Path) -> None:
    shard(tmp_path / "in" / "model.safetensors", "named", "extra")
    write_json(
        tmp_path / "in" / "model.safetensors.index.json",
        {"metadata": {"total_size": 16}, "weight_map": {"named": "model.safetensors"}},
    )
    convert(tmp_path / "in", tmp_path / "out")
    after = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert after["metadata"]["total_size"] == 8
    assert set(stored(tmp_path / "out" / "model.safetensors")) == {"named", "extra"}


def test_dtypes_recast_does_not_know_are_carried_byte_for_byte(tmp_path: Path) -> None:
    rows = [
        ("four bits", "F4", [3, 2], b"\x12\x34\x56"),
        ("six bits", "F6_E2M3", [4], b"\xff\x00\x7f"),
        ("scale", "F8_E8M0", [5], b"\x7f\x80\xff\x00\x01"),
        ("new", "F99_NEW", [7], b"any length"),
        ("weight", "F32", [4], fp32_bytes(4)),
        ("complex", "C64", [1], b"\x01\x02\x03\x04\x05\x06\x07\x08"),
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.safetensors").write_bytes(raw_bytes(rows))
    convert(tmp_path / "in" / "model.safetensors", tmp_path / "out", skip_quantized=True)
    after = stored(tmp_path / "out" / "model.safetensors")
    assert after.pop("weight")[0] == "BF16"
    assert after == {
        name: (dtype, shape, data) for name, dtype, shape, data in rows if name != "weight"
    }


def test_tensors_on_the_keep_list_and_kept_by_the_user_are_carried(tmp_path: Path) -> None:
    shard(tmp_path / "in" / "model.safetensors", "mlp.gate.weight", "lm_head.weight", "q.weight")
    write_json(tmp_path / "in" / "config.json", {"model_type": "deepseek_v3"})
    report = convert(tmp_path / "in", tmp_path / "out", keep=["lm_head.*"])
    after = stored(tmp_path / "out" / "model.safetensors")
    assert {name: row[0] for name, row in after.items()} == {
        "mlp.gate.weight": "F32",
        "lm_head.weight": "F32",
        "q.weight": "BF16",
    }
    before = stored(tmp_path / "in" / "model.safetensors")
    assert all(after[name] == before[name] for name in ("mlp.gate.weight", "lm_head.weight"))
    assert report.tensors == {"cast": 1, "copied": 0, "kept": 2}


CONFIG = (
    '{\n\t"z": 1e-05, "torch_dtype" : "float32", "a": [1,2 , 3],\r\n'
    '  "dtype": "float32",\n  "vocab": {"dtype": 7, "float32": "float32"},\n'
    '  "text_config": {"dtype": "float16", "deep": {"torch_dtype": "torch.float32"}},\n'
    '  "note": "\\u00e9 float32", "vision_config": {"dtype": null, "torch_dtype": "auto"}}  \n\n'
)


def test_a_config_changes_where_it_states_a_dtype_and_nowhere_else(tmp_path: Path) -> None:
    shard(tmp_path / "in" / "model.safetensors", "a")
    (tmp_path / "in" / "config.json").write_bytes(CONFIG.encode())
    convert(tmp_path / "in", tmp_path / "out")
    expected = CONFIG
    for old in ('"torch_dtype" : "float32"', '"dtype": "float32"', '"dtype": "float16"'):
        assert CONFIG.count(old) == 1
        expected = expected.replace(old, old.replace("float", "bfloat").replace("32", "16"))
    expected = expected.replace("torch.float32", "torch.bfloat16")
    assert (tmp_path / "out" / "config.json").read_bytes() == expected.encode()


def test_weights_in_other_formats_are_left_behind_and_named(tmp_path: Path) -> None:
    shard(tmp_path / "in" / "model.safetensors", "a")
    other = ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "consolidated.00.pth"]
    for number, name in enumerate(other):
        report_source = tmp_path / "in" / name
        report_source.write_bytes(bytes([number]))
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    report = convert(tmp_path / "in", tmp_path / "out")
    assert files(tmp_path / "out") == {"model.safetensors", "tokenizer.json", "recast.json"}
    assert all(any(name in warning for warning in report.warnings) for name in other)


def test_hidden_files_are_copied_and_hidden_folders_are_not(tmp_path: Path) -> None:
    source = tmp_path / "in"
    shard(source / "model.safetensors", "a")
    (source / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    for folder in (".git", ".cache/huggingface"):
        (source / folder).mkdir(parents=True)
        (source / folder / "file").write_text("x")
        shard(source / folder / "model.safetensors", "hidden")
    convert(source, tmp_path / "out")
    assert files(tmp_path / "out") == {"model.safetensors", ".gitattributes", "recast.json"}


def test_everything_else_is_copied_byte_for_byte(tmp_path: Path) -> None:
    source = tmp_path / "in"
    shard(source / "model.safetensors", "a")
    others = {"README.md": b"# model\r\n", "tokenizer.model": bytes(range(256)) * 9, "empty": b""}
    others |= {"code/modeling.py": b"pass\n", "generation_config.json": b'{"dtype": "float32"}'}
    for name, data in others.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(data)
    convert(source, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in others} == others


def test_a_converted_model_can_be_converted_again_and_gets_a_new_report(
    model: Path, tmp_path: Path
) -> None:
    convert(model, tmp_path / "half", to="bf16")
    convert(tmp_path / "half", tmp_path / "full", to="fp32")
    assert files(tmp_path / "full") == files(tmp_path / "half")
    assert json.loads((tmp_path / "full" / "recast.json").read_text())["to"] == "fp32"
    # Small integers survive bf16, so the round trip is the original file.
    original = (model / "model.safetensors").read_bytes()
    assert (tmp_path / "full" / "model.safetensors").read_bytes() == original


def test_the_plan_states_the_size_of_every_file_exactly(saved: Save, tmp_path: Path) -> None:
    source = saved("llama", "fp32")
    planned = recast.plan(source, to="fp16")
    convert(source, tmp_path / "out", to="fp16")
    sizes = {file.path: file.bytes for file in planned.files}
    found = {name: (tmp_path / "out" / name).stat().st_size for name in files(tmp_path / "out")}
    del found["recast.json"]
    assert sizes == found
    assert planned.bytes_written == sum(found.values())
    assert planned.bytes_read == sum(path.stat().st_size for path in source.iterdir())
    assert f"bytes_written={planned.bytes_written})" in repr(planned)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027])
def test_modes_follow_the_umask(mask: int, model: Path, tmp_path: Path) -> None:
    (model / "code").mkdir()
    (model / "code" / "run.py").write_text("pass\n")
    # Of a source's mode nothing counts but that a script, and no weights, may be executed.
    os.chmod(model / "model.safetensors", 0o700)
    os.chmod(model / "code" / "run.py", 0o755)
    dest = tmp_path / "new" / "out"
    result = recast_process("convert", model, dest, "--to", "bf16", umask=mask)
    assert result.returncode == 0, result.stderr
    modes = {
        path: stat.S_IMODE(path.stat().st_mode) for path in [dest, dest.parent, *dest.rglob("*")]
    }
    every = {path for path in modes if path.is_dir() or path.name == "run.py"}
    assert modes == {path: (0o777 if path in every else 0o666) & ~mask for path in modes}


@pytest.mark.parametrize("name", ["", "trash-1", "new-1/1", "rejected-1/1/new"])
def test_an_empty_destination_is_used_and_what_runs_left_there_is_removed(
    name: str, model: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    (dest / ".recast" / name).mkdir(parents=True)
    if name:
        (dest / ".recast" / name / "model.safetensors").write_bytes(b"half a model")
    convert(model, dest)
    assert set(tree(dest)) == {"model.safetensors", "config.json", "recast.json"}


@pytest.mark.parametrize("name", ["staged", "run-1", f"run-{'0' * 32}.x", "journal.json"])
def test_a_staging_folder_that_this_version_does_not_know_is_left_alone(
    name: str, model: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    (dest / ".recast" / name).mkdir(parents=True)
    (dest / ".recast" / name / "model.safetensors").write_bytes(b"half a model")
    before = tree(dest)
    for overwrite in (False, True):
        with pytest.raises(recast.OutputError, match="is not something that recast creates there"):
            convert(model, dest, overwrite=overwrite)
    assert tree(dest) == before


def test_the_report_in_the_result_audits_every_tensor_that_was_cast(tmp_path: Path) -> None:
    values = torch.tensor([1.0, 1e-40, 70000.0, float("inf"), float("nan"), -2.5])
    rows = [("w", "F32", [6], values.numpy().tobytes()), ("i", "I8", [1], b"\x05")]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.safetensors").write_bytes(raw_bytes(rows))
    convert(tmp_path / "in" / "model.safetensors", tmp_path / "out", to="fp16", on_overflow="inf")
    report = json.loads((tmp_path / "out" / "recast.json").read_text())
    (row,) = report["audit"]["tensors"]
    assert row["max_abs"] == pytest.approx(70000)
    assert {key: row[key] for key in ("name", "to_inf", "to_zero", "nan", "inf", "exact")} == {
        "name": "w",
        "to_inf": 1,
        "to_zero": 1,
        "nan": 1,
        "inf": 1,
        "exact": False,
    }
    assert header_of(tmp_path / "out" / "model.safetensors")["w"]["dtype"] == "F16"
