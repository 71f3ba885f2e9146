"""What `inspect` shows: where the bytes are, what they take on a GPU, on any terminal."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import recast
from conftest import Save, build
from recast.show.inspect import inspection_text
from support import (
    environment,
    on_terminal,
    on_terminal_here,
    raw_bytes,
    recast_here,
    recast_process,
)

KIB, MIB = 1 << 10, 1 << 20
ESCAPE = re.compile(r"\x1b\[[\d;]*m")
ROW = '{"file": "model.safetensors", "name": "layer.weight", "exact": true}'
COLOR = re.compile(r"\x1b\[[\d;]*3\d")


def write(path: Path, names: list[str], elements: int = 1) -> Path:
    """A checkpoint of fp32 tensors of `elements` each."""
    rows = [(name, "F32", [elements], b"\0" * 4 * elements) for name in names]
    path.write_bytes(raw_bytes(rows))
    return path


@pytest.fixture
def gpu(tmp_path: Path) -> Any:
    """`gpu(mebibytes)`: an environment whose `nvidia-smi` has that much free memory, and a
    second GPU with next to none."""

    def fake(free: int) -> dict[str, str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        gpus = [f"GPU-a1, Some GPU, {free}, 1024", "GPU-a2, Another, with commas, 7, 8"]
        (folder / "nvidia-smi").write_text("#!/bin/sh\n" + "".join(f"echo '{g}'\n" for g in gpus))
        (folder / "nvidia-smi").chmod(0o755)
        return {"PATH": f"{folder}:/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "0"}

    return fake


def test_the_parts_of_a_llama_are_its_layers_and_modules(saved: Save) -> None:
    weights = build("llama").state_dict()
    expected = {
        "model.embed_tokens": r"model\.embed_tokens\.",
        "model.layers.0-1 attention": r"self_attn",
        "model.layers.0-1 mlp": r"\.mlp\.",
        "model.layers.0-1 norm": r"_layernorm",
        "model.norm": r"model\.norm\.",
        "lm_head": r"lm_head",
    }
    found = {row["name"]: row for row in recast.inspect(saved("llama", "fp32")).groups}
    assert found.keys() == expected.keys()
    for name, pattern in expected.items():
        tensors = [tensor for key, tensor in weights.items() if re.search(pattern, key)]
        assert found[name] == {
            "name": name,
            "tensors": len(tensors),
            "parameters": sum(tensor.numel() for tensor in tensors),
            "bytes": sum(tensor.nbytes for tensor in tensors),
        }


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_parts_add_up_and_the_largest_comes_first(kind: str, saved: Save) -> None:
    inspection = recast.inspect(saved(kind, "bf16"))
    for key in ("tensors", "parameters", "bytes"):
        assert sum(row[key] for row in inspection.groups) == getattr(inspection, key)
    sizes = [row["bytes"] for row in inspection.groups]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["transformer.h.0.attn.c_attn.weight", "transformer.h.1.attn.bias"], "0-1 attention"),
        (["transformer.h.3.ln_1.weight"], "3 norm"),
        (["model.layers.5.self_attn.q_norm.weight"], "5 norm"),
        (
            ["model.layers.0.mlp.experts.17.w1.weight", "model.layers.1.mlp.experts.w"],
            "0-1 experts",
        ),
        (
            ["model.layers.3.mlp.gate.weight", "model.layers.9.mlp.gate.weight"],
            "3-9 (2 of them) mlp",
        ),
        (["encoder.block.0.layer.1.DenseReluDense.wi.weight"], "0 mlp"),
        (["down_blocks.0.resnets.1.conv1.weight"], "0 conv1"),
        (["encoder.layer.0.intermediate.dense.weight"], "0 intermediate"),
        (["features.0.weight", "features.10.weight"], "0-10 (2 of them)"),
        (["0.weight", "1.weight"], "0-1"),
        (["vision.patch.proj.conv.weight", "vision.patch.bias"], "vision.patch"),
        (["scale"], "scale"),
        # A number too long to be one of a layer is a word like any other.
        (["w." + "9" * 5000 + ".weight"], "w." + "9" * 5000),
    ],
)
def test_parts_are_recognized_by_names_of_any_family(
    names: list[str], part: str, tmp_path: Path
) -> None:
    (row,) = recast.inspect(write(tmp_path / "model.safetensors", names)).groups
    assert (row["name"].endswith(part), row["tensors"]) == (True, len(names))


@pytest.mark.parametrize(
    ("report", "says"),
    [
        ("{", ["recast.json is not valid JSON"]),
        ("[" * 200_000, ["recast.json is not valid JSON"]),
        ("[]", []),
        ("5", []),
        ('{"to": "bf16", "audit": 5}', []),
        ('{"to": "bf16", "audit": {"tensors": 5}}', []),
        ('{"to": "bf16", "audit": {"tensors": []}}', []),
        ('{"to": "bf16", "audit": {"tensors": [7]}}', []),
        ('{"to": "int4", "audit": {"tensors": [' + ROW + "]}}", []),
        ('{"to": "bf16", "audit": {"tensors": [' + ROW.replace("true", "1") + "]}}", []),
        ('{"to": "bf16", "audit": {"tensors": [' + ROW.replace("true", "false") + "]}}", []),
        ('{"to": "bf16", "audit": {"tensors": [' + ROW + "]}}", ["without loss: all 1 cast"]),
        ('{"x": "\\udcff", "to": "bf16", "audit": {"tensors": [' + ROW + "]}}", ["without loss"]),
        ('{"to": "bf16", "audit": {"tensors": [{"file": [], "name": {}, "exact": true}]}}', []),
        ('{"to": "bf16", "audit": {"tensors": [{"file": "x", "name": "y", "exact": true}]}}', []),
    ],
)
def test_a_damaged_or_foreign_report_claims_nothing(
    report: str, says: list[str], model: Path
) -> None:
    (model / "recast.json").write_text(report)
    notes = recast.inspect(model).notes
    assert [said in note for said, note in zip(says, notes, strict=True)] == [True] * len(says)


@pytest.mark.parametrize(
    "row", ["[]", '{"file": "", "name": "", "exact": true}'], ids=["lists", "rows"]
)
def test_a_huge_report_is_read_in_bounded_memory(row: str, model: Path) -> None:
    rows = ",".join([row] * (99_900_000 // (len(row) + 1)))
    (model / "recast.json").write_text(f'{{"to": "bf16", "audit": {{"tensors": [{rows}]}}}}')
    code = (
        "import sys, recast\n"
        "assert recast.inspect(sys.argv[1]).notes == []\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "print(next(line for line in lines if line.startswith('VmHWM')).split()[1])\n"
    )
    command = [sys.executable, "-c", code, str(model)]
    peak = int(subprocess.run(command, check=True, capture_output=True).stdout) << 10
    assert peak < 400 * MIB


def test_a_report_that_is_not_a_file_or_too_large_is_not_read(model: Path) -> None:
    expected = recast_here("inspect", model).stdout
    (model / "recast.json").symlink_to("/dev/null")
    assert recast_here("inspect", model).stdout == expected
    (model / "recast.json").unlink()
    os.mkfifo(model / "recast.json")
    assert recast_here("inspect", model).stdout == expected
    (model / "recast.json").unlink()
    (model / "recast.json").touch()
    os.truncate(model / "recast.json", 1 << 40)
    assert recast_here("inspect", model).stdout == expected


def test_a_link_to_a_report_is_followed_only_within_its_cache(model: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "1", tmp_path / "hub" / "blobs"
    recast.convert(model, snapshot, to="bf16", sync=False)
    report = (snapshot / "recast.json").read_text()
    blobs.mkdir()
    for folder, notes in ((tmp_path, 0), (blobs, 1), (snapshot, 1)):
        (folder / "report").write_text(report)
        (snapshot / "recast.json").unlink()
        (snapshot / "recast.json").symlink_to(folder / "report")
        assert len(recast.inspect(snapshot).notes) == notes, folder


def test_a_module_and_a_stack_of_the_same_name_are_two_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", ["x.weight", "x.0.weight", "x.1.weight"])
    found = {row["name"]: row["tensors"] for row in recast.inspect(path).groups}
    assert found == {"x.0-1": 2, "x": 1}


def test_a_picture_of_many_parts_sums_up_the_rest(tmp_path: Path) -> None:
    names = [f"part{number}.weight" for number in range(300)]
    path = write(tmp_path / "model.safetensors", names)
    result = recast_here("inspect", path)
    assert len(result.stdout.splitlines()) < 40
    assert "288 smaller parts" in result.stdout
    assert len(json.loads(recast_here("inspect", path, "--json").stdout)["groups"]) == 300


def test_a_bar_is_as_long_as_its_share(tmp_path: Path) -> None:
    rows = [("a.w", "F32", [3], b"\0" * 12), ("b.w", "F16", [2], b"\0" * 4)]
    (tmp_path / "model.safetensors").write_bytes(raw_bytes(rows))
    result = recast_here("inspect", tmp_path / "model.safetensors")
    bars = {line.split()[0]: line.split()[-1] for line in result.stdout.splitlines() if "█" in line}
    # A whole bar is 24 columns: three quarters are 18, one quarter 6.
    assert bars == {"F32,": "█" * 18, "F16,": "█" * 6, "a": "█" * 18, "b": "█" * 6}


@pytest.mark.parametrize("columns", [24, 40, 60, 80, 200])
@pytest.mark.parametrize("free", [None, 2, 100_000])
def test_no_line_is_wider_than_the_terminal(
    columns: int, free: int | None, saved: Save, gpu: Any
) -> None:
    changes = {} if free is None else gpu(free)
    drawn = on_terminal_here(["inspect", str(saved("bert", "fp32"))], columns=columns, **changes)
    lines = ESCAPE.sub("", drawn).splitlines()
    assert max(len(line) for line in lines) <= columns
    words = " ".join(" ".join(lines).split())
    assert all(word in words for word in ("requested", "allocated", "reserved", "bf16"))


@pytest.mark.parametrize(
    "changes",
    [
        {"LANG": "C"},
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
def test_the_picture_is_ascii_where_the_encoding_is(changes: dict[str, str], saved: Save) -> None:
    env = environment(**changes)
    del env["PYTHONUTF8"]
    result = recast_process("inspect", saved("llama", "fp32"), env=env)
    assert result.returncode == 0
    assert result.stdout.isascii()
    assert "#" * 24 in result.stdout


def test_color_is_for_terminals_and_respects_no_color(saved: Save) -> None:
    command = ["inspect", str(saved("llama", "fp32"))]
    assert COLOR.search(on_terminal(command, stdout=True)[0])
    assert not COLOR.search(on_terminal_here(command, NO_COLOR="1"))
    assert "\x1b" not in recast_here(*command).stdout


def test_a_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", ["\x1b[2Jevil.weight", "[red]x[/].weight"])
    result = recast_here("inspect", path)
    assert "\x1b" not in result.stdout
    assert "\\x1b[2Jevil" in result.stdout
    assert "[red]x[/]" in result.stdout


@pytest.mark.parametrize(
    ("free", "verdict"),
    [
        # The model reserves one small segment, 2 MiB; a CUDA context takes about 512 MiB.
        (514, "fits"),
        (513, "tight: 511.00 MiB to spare"),
        (2, "tight: 0 B to spare"),
        (1, "does not fit: 1.00 MiB short"),
    ],
)
def test_inspect_says_whether_it_fits_here(free: int, verdict: str, model: Path, gpu: Any) -> None:
    env = {**environment(), **gpu(free)}
    printed = recast_here("inspect", model, env=env).stdout
    lines = [line for line in printed.splitlines() if "2.00 MiB" in line and "24 B" in line]
    assert "on Some GPU with" in printed
    assert len(lines) == 2
    assert all(line.endswith(f"2.00 MiB  {verdict}") for line in lines)
    device = json.loads(recast_here("inspect", model, "--json", env=env).stdout)["device"]
    assert device == {"name": "Some GPU", "free": free * MIB, "total": 1024 * MIB}


def test_gpu_memory_is_that_of_the_allocators_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", ["w"], elements=11 * MIB // 4)
    default = json.loads(recast_here("inspect", path, "--json").stdout)
    env = environment(PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")
    changed = json.loads(recast_here("inspect", path, "--json", env=env).stdout)
    # 11 MiB: a segment of 12, not split; or two blocks of a page of 20.
    assert list(default["gpu_memory"]["as_stored"].values()) == [11 * MIB, 12 * MIB, 12 * MIB]
    assert list(changed["gpu_memory"]["as_stored"].values()) == [11 * MIB, 11 * MIB, 20 * MIB]
    assert default["notes"] == []
    assert changed["notes"] == [
        "GPU memory is for PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    ]


def test_every_dtype_has_requested_allocated_and_reserved(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", ["w"], elements=11 * MIB // 4)
    lines = [line.split("  ") for line in recast_here("inspect", path).stdout.splitlines()]
    table = {line[1].strip(): " ".join(line[2:]).split() for line in lines if len(line) > 3}
    assert table["as stored"] == table["fp32"] == ["11.00", "MiB", "12.00", "MiB", "12.00", "MiB"]
    # 5.5 MiB is split off a segment of 20.
    assert table["fp16"] == table["bf16"] == ["5.50", "MiB", "5.50", "MiB", "20.00", "MiB"]


def test_an_empty_checkpoint_is_drawn_too(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", [])
    text = inspection_text(recast.inspect(path))
    assert "0 B (0 bytes)" in text


def test_inspect_without_a_gpu_says_so(model: Path) -> None:
    env = {**environment(), "PATH": "/nowhere"}
    result = recast_here("inspect", model, env=env)
    assert result.returncode == 0
    assert "no GPU found here" in result.stdout


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        (None, "Some GPU"),
        ("0,1", "Some GPU"),
        ("1,0", "Another, with commas"),
        (" 1 ", "Another, with commas"),
        ("GPU-a2", "Another, with commas"),
        ("GPU-a1,GPU-a2", "Some GPU"),
        ("GPU-a", None),  # The start of two: CUDA takes it for neither.
        ("GPU-b", None),
        ("2", None),
        ("-1", None),
        ("-1,0", None),
        ("", None),
    ],
)
def test_the_gpu_is_the_first_visible_one(
    visible: str | None, name: str | None, gpu: Any, model: Path
) -> None:
    env = {**environment(), **gpu(20), "CUDA_VISIBLE_DEVICES": visible or ""}
    if visible is None:
        del env["CUDA_VISIBLE_DEVICES"]
    device = json.loads(recast_here("inspect", model, "--json", env=env).stdout)["device"]
    assert (device and device["name"]) == name
    text = recast_here("inspect", model, env=env).stdout
    assert ("no GPU found" in text) == (name is None)
