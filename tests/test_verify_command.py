"""`recast verify` and `convert --verify` as commands: what they print, what is never published."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from conftest import Save
from recast.verification import devices
from support import environment, recast_here, recast_process, slow, stored
from test_cli import assert_fits

SHARD = "model.safetensors"
VERIFY: dict[str, Any] = {
    "schema_version": int,
    "device": str,
    "loader": str,
    "tensors_checked": int,
    "values_checked": int,
    "values_total": int,
    "mismatches": list,
    "problems": list,
    "likely_cause": type(None),
    "memory": {name: {"expected": int} for name in ("requested", "allocated", "reserved")},
}
ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def out(model: Path, tmp_path: Path) -> Path:
    recast.convert(model, tmp_path / "out", to="bf16", sync=False)
    return tmp_path / "out"


def spoil(folder: Path, value: bytes = b"\x81\x3f") -> None:
    """Changes the second value, which is 1.0."""
    path = folder / SHARD
    data = bytearray(path.read_bytes())
    data[-10:-8] = value
    path.write_bytes(data)


def test_a_good_result_is_exit_code_0_and_says_so(model: Path, out: Path) -> None:
    result = recast_here("verify", model, out, "--device", "cpu")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("passed: ")
    assert "all 6 in 1 tensor\n" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_wrong_result_is_exit_code_1_and_errors_come_first(model: Path, out: Path) -> None:
    spoil(out)
    result = recast_process("verify", model, out, "--device", "cpu", "--full")
    assert (result.returncode, result.stderr) == (1, "")
    first, second = result.stdout.splitlines()[:2]
    assert first == (
        "error: layer.weight in model.safetensors, element 1: 1.0 (0x3F800000) became 0x3F81, "
        "expected 0x3F80"
    )
    assert second.startswith("FAILED: ")


@pytest.mark.parametrize("spoiled", [False, True])
def test_verify_json_keeps_the_contract(spoiled: bool, model: Path, out: Path) -> None:
    if spoiled:
        spoil(out)
    command = ("verify", model, out, "--device", "cpu", "--json", "--samples", 3, "--seed", 7)
    result = recast_here(*command)
    assert result.returncode == int(spoiled)
    printed = json.loads(result.stdout)
    assert_fits(printed, VERIFY)
    assert printed["passed"] is not spoiled
    assert (printed["device"], printed["loader"]) == ("cpu", "safetensors")
    assert (printed["samples"], printed["seed"], printed["values_checked"]) == (3, 7, 6)
    assert {row["measured"] for row in printed["memory"].values()} == {None}
    assert printed["memory"]["requested"]["expected"] == 12


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{model}", "{out}", "--device", "gpu"], 2, "no device 'gpu'"),
        (["{model}", "{out}", "--device", "cuda:x"], 2, "no device 'cuda:x'"),
        (["{model}", "{out}", "--samples", "-1"], 2, "samples"),
        (["{model}", "{out}", "--samples", "1", "--full"], 2, "exclude"),
        (["{model}", "{out}", "--loader", "pickle"], 2, "pickle"),
        (["{model}"], 2, "DEST"),
        (["{model}", "nowhere"], 65, "nowhere"),
        (["nowhere", "{out}"], 65, "nowhere"),
        (["{model}", "{model}/model.safetensors"], 65, "directory"),
    ],
)
def test_what_cannot_be_verified_is_an_error_that_says_why(
    arguments: list[str], code: int, says: str, model: Path, out: Path
) -> None:
    filled = [argument.format(model=model, out=out) for argument in arguments]
    result = recast_here("verify", *filled, "--device", "cpu", *filled[2:])
    assert (result.returncode, result.stdout) == (code, "")
    assert says in result.stderr


@ON_CPU
@pytest.mark.parametrize("device", ["cuda:3", *slow("cuda", "cuda:0")])
def test_a_missing_gpu_is_an_error_with_a_hint(
    device: str, model: Path, out: Path, tmp_path: Path
) -> None:
    result = recast_here("verify", model, out, "--device", device)
    assert (result.returncode, result.stdout) == (2, "")
    assert device in result.stderr
    assert "hint: use --device=cpu" in result.stderr
    dest = tmp_path / "other"
    result = recast_here("convert", model, dest, "--to", "bf16", "--verify", device)
    assert result.returncode == 2
    # Nothing was written.
    assert not dest.exists()


def test_an_unknown_gpu_is_an_error_that_names_the_existing_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert devices.choose_device("auto") == devices.choose_device("cuda") == "cuda:1"
    assert devices.choose_device("cuda:0") == "cuda:0"
    with pytest.raises(recast.UsageError, match=r"cuda:2.*has 2\nhint: use cuda:0 to cuda:1"):
        devices.choose_device("cuda:2")


@pytest.mark.parametrize("command", ["verify", "convert"])
def test_without_torch_the_error_says_what_to_install(
    command: str, model: Path, out: Path, tmp_path: Path
) -> None:
    arguments = {
        "verify": ["verify", str(model), str(out)],
        "convert": ["convert", str(model), str(tmp_path / "x"), "--to", "fp16", "--verify", "cpu"],
    }
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from recast.cli import main\n"
        f"sys.argv = ['recast', *{arguments[command]!r}]\n"
        "main()\n"
    )
    process = [sys.executable, "-c", code]
    result = subprocess.run(process, capture_output=True, text=True, env=environment(), check=False)
    assert result.returncode == 2
    assert "pip install 'recast-weights[torch]'" in result.stderr
    assert not (tmp_path / "x").exists()


def test_the_transformers_loader_needs_a_config(model: Path, tmp_path: Path) -> None:
    recast.convert(model / SHARD, tmp_path / "lone", to="bf16", sync=False)
    command = ("verify", model / SHARD, tmp_path / "lone", "--device", "cpu")
    result = recast_here(*command, "--loader", "transformers")
    assert result.returncode == 65
    assert "config.json" in result.stderr


@pytest.mark.parametrize("fault", ["cut", "config", "class"])
def test_what_transformers_cannot_load_fails_and_is_still_compared(
    fault: str, saved: Save, tmp_path: Path
) -> None:
    recast.convert(saved("t5", "fp32"), tmp_path / "out", to="bf16", sync=False)
    path = tmp_path / "out" / ("config.json" if fault != "cut" else SHARD)
    data = path.read_bytes()
    changed = {
        "cut": data[:-1],
        "config": data[1:],
        "class": data.replace(b'"d_model": 32', b'"d_model": "x"'),
    }
    assert changed[fault] != data
    path.write_bytes(changed[fault])
    command = ("verify", saved("t5", "fp32"), tmp_path / "out", "--device", "cpu", "--json")
    result = recast_here(*command, "--loader", "transformers")
    assert result.returncode == 1, result.stderr
    printed = json.loads(result.stdout)
    assert printed["problems"]
    assert printed["memory"] is None
    assert (printed["tensors_checked"] > 40) == (fault != "cut")


def test_the_transformers_loader_runs_quietly_and_names_the_class(
    saved: Save, tmp_path: Path
) -> None:
    recast.convert(saved("llama", "fp32"), tmp_path / "out", to="bf16", sync=False)
    command = ("verify", saved("llama", "fp32"), tmp_path / "out", "--loader", "transformers")
    result = recast_here(*command, "--device", "cpu")
    assert (result.returncode, result.stderr) == (0, "")
    assert "LlamaForCausalLM" in result.stdout


def test_the_transformers_loader_unpickles_nothing(saved: Save, tmp_path: Path) -> None:
    for name in ("source", "dest"):
        recast.convert(saved("t5", "fp32"), tmp_path / name, to="fp32", sync=False)
        (tmp_path / name / SHARD).rename(tmp_path / name / "other.safetensors")
    # What transformers loads where no safetensors file has the expected name.
    torch.save({}, tmp_path / "dest" / "pytorch_model.bin")
    (tmp_path / "dest" / "recast.json").unlink()
    found = recast.verify(
        tmp_path / "source", tmp_path / "dest", loader="transformers", device="cpu"
    )
    (problem,) = found.problems
    assert f"no file named {SHARD}" in problem.message


def test_the_transformers_loader_finds_a_wrong_value(saved: Save, tmp_path: Path) -> None:
    recast.convert(saved("t5", "fp32"), tmp_path / "out", to="bf16", sync=False)
    path = tmp_path / "out" / SHARD
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)
    found = recast.verify(
        saved("t5", "fp32"), tmp_path / "out", loader="transformers", device="cpu"
    )
    (mismatch,) = found.mismatches
    assert mismatch.count == 1


def test_a_wrong_bit_is_found_although_transformers_casts_it_away(
    saved: Save, tmp_path: Path
) -> None:
    keep = ["model.norm.weight"]
    recast.convert(saved("llama", "fp32"), tmp_path / "out", to="bf16", keep=keep, sync=False)
    options: dict[str, Any] = {"loader": "transformers", "device": "cpu"}
    found = recast.verify(saved("llama", "fp32"), tmp_path / "out", **options)
    assert found.passed, found.failures()
    assert "cast once more by the loader, so compared as files: model.norm.weight" in found.notes
    for path in (tmp_path / "out").glob("*.safetensors"):
        if "model.norm.weight" in stored(path):
            data = path.read_bytes()
            at = data.index(stored(path)["model.norm.weight"][2])
            # The lowest bit of a 1.0, which bf16 does not have.
            path.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    assert not recast.verify(saved("llama", "fp32"), tmp_path / "out", **options).passed
