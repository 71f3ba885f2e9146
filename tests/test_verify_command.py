"""`recast verify` and `convert --verify` as commands: what they print, what is never published."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from conftest import Save
from recast.verification import run
from support import environment, raw_bytes, recast_process, stored, tree
from test_cli import assert_fits

SHARD = "model.safetensors"
VERIFY: dict[str, Any] = {
    "schema_version": int,
    "device": str,
    "loader": str,
    "tensors_checked": int,
    "values_checked": int,
    "mismatches": list,
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
    result = recast_process("verify", model, out, "--device", "cpu")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("passed: ")
    assert "seed" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_wrong_result_is_exit_code_1_and_what_is_wrong_comes_first(
    model: Path, out: Path
) -> None:
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
    result = recast_process(*command)
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
def test_what_cannot_be_verified_is_said_so(
    arguments: list[str], code: int, says: str, model: Path, out: Path
) -> None:
    filled = [argument.format(model=model, out=out) for argument in arguments]
    result = recast_process("verify", *filled, "--device", "cpu", *filled[2:])
    assert (result.returncode, result.stdout) == (code, "")
    assert says in result.stderr


@ON_CPU
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do(
    device: str, model: Path, out: Path, tmp_path: Path
) -> None:
    result = recast_process("verify", model, out, "--device", device)
    assert (result.returncode, result.stdout) == (2, "")
    assert device in result.stderr
    assert "hint: use --device cpu" in result.stderr
    dest = tmp_path / "other"
    result = recast_process("convert", model, dest, "--to", "bf16", "--verify", device)
    assert result.returncode == 2
    # It is known before anything is written.
    assert not dest.exists()


def test_an_unknown_gpu_is_an_error_that_names_those_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert run.choose_device("auto") == run.choose_device("cuda") == "cuda:1"
    assert run.choose_device("cuda:0") == "cuda:0"
    with pytest.raises(recast.UsageError, match=r"cuda:2.*has 2\nhint: use cuda:0 to cuda:1"):
        run.choose_device("cuda:2")


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
    result = recast_process(*command, "--loader", "transformers")
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
    result = recast_process(*command, "--loader", "transformers")
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
    result = recast_process(*command, "--device", "cpu")
    assert (result.returncode, result.stderr) == (0, "")
    assert "LlamaForCausalLM" in result.stdout


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
    assert mismatch["count"] == 1


def test_the_transformers_loader_hides_no_wrong_bit_of_what_it_casts_once_more(
    saved: Save, tmp_path: Path
) -> None:
    keep = ["model.norm.weight"]
    recast.convert(saved("llama", "fp32"), tmp_path / "out", to="bf16", keep=keep, sync=False)
    options = {"loader": "transformers", "device": "cpu"}
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


def test_convert_verify_publishes_what_passes_and_reports_it(model: Path, tmp_path: Path) -> None:
    command = ("convert", model, tmp_path / "out", "--to", "bf16", "--verify", "cpu", "--json")
    result = recast_process(*command)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)["verification"]
    assert_fits(found, VERIFY)
    assert found["passed"] is True
    assert found["samples"] is None
    assert found["values_checked"] == 6
    assert result.stdout == (tmp_path / "out" / "recast.json").read_text()
    assert recast_process("verify", model, tmp_path / "out").returncode == 0
    text = recast_process("convert", model, tmp_path / "b", "--to", "bf16", "--verify", "cpu")
    assert "verified  6 values in 1 tensor on cpu" in text.stdout


def test_progress_goes_on_while_the_result_is_compared(saved: Save, tmp_path: Path) -> None:
    source = saved("llama", "fp32")
    weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    seen: list[tuple[int, int]] = []
    report = recast.convert(
        source, tmp_path / "out", to="bf16", verify="cpu", progress=lambda *now: seen.append(now)
    )
    # One total all the time: what is written, and then the source's tensors that are compared.
    (total,) = {total for _, total in seen}
    assert report.bytes_written < total < report.bytes_written + weights
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert any(report.bytes_written < done < total for done, _ in seen)


def between_stage_and_verify(
    monkeypatch: pytest.MonkeyPatch, happen: Callable[[Path], object]
) -> None:
    verify_staged = run.verify_staged

    def spoiled(planned: Any, staged: Any, *options: Any) -> recast.Verification:
        happen(Path(staged.path))
        return verify_staged(planned, staged, *options)

    monkeypatch.setattr(run, "verify_staged", spoiled)


def unlink_config(staged: Path) -> None:
    (staged / "config.json").unlink()


@pytest.mark.parametrize("fault", [spoil, unlink_config])
def test_a_model_that_fails_verification_is_never_published(
    fault: Callable[[Path], object], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "out"
    between_stage_and_verify(monkeypatch, fault)
    with pytest.raises(recast.VerificationError) as caught:
        recast.convert(model, dest, to="bf16", verify="cpu", sync=False)
    assert caught.value.exit_code == 1
    # What failed is kept where the error says, and nothing else is there.
    rejected = dest / ".recast" / "rejected"
    assert str(rejected) in caught.value.message
    assert not hasattr(caught.value, "__notes__")
    assert [path.name for path in dest.iterdir()] == [".recast"]
    left = {path.name for path in (dest / ".recast").iterdir()}
    assert {name for name in left if not name.startswith("lock.")} == {"rejected"}
    assert stored(rejected / SHARD)["layer.weight"][0] == "BF16"
    assert not recast.verify(model, rejected, device="cpu", full=True).passed
    # And it does not stand in the way of the next run.
    monkeypatch.undo()
    recast.convert(model, dest, to="bf16", verify="cpu", sync=False)
    assert not (dest / ".recast").exists()


def test_the_command_exits_with_1_when_the_verification_fails(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, recast.cli\n"
        "from recast.verification import run\n"
        "real = run.verify_staged\n"
        "def spoiled(planned, staged, *options):\n"
        f"    path = pathlib.Path(staged.path) / {SHARD!r}\n"
        "    data = bytearray(path.read_bytes()); data[-1] ^= 1; path.write_bytes(data)\n"
        "    return real(planned, staged, *options)\n"
        "run.verify_staged = spoiled\n"
        f"sys.argv = ['recast', 'convert', {str(model)!r}, {str(tmp_path / 'out')!r},\n"
        "            '--to', 'bf16', '--verify', 'cpu']\n"
        "recast.cli.main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert str(tmp_path / "out" / ".recast" / "rejected") in result.stderr
    assert "layer.weight in model.safetensors, element 5" in result.stderr
    assert "hint: " in result.stderr


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_a_verification_that_is_stopped_publishes_nothing_and_can_be_gone_on_with(
    stop: type[BaseException], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(path: Path) -> None:
        raise stop

    dest = tmp_path / "out"
    between_stage_and_verify(monkeypatch, stopped)
    with pytest.raises(stop):
        recast.convert(model, dest, to="bf16", verify="cpu", sync=False)
    assert [path.name for path in dest.iterdir()] == [".recast"]
    monkeypatch.undo()
    report = recast.convert(model, dest, to="bf16", verify="cpu", sync=False)
    assert report.verification is not None
    assert report.verification["dest"] == str(dest)


def test_a_verification_that_runs_out_of_memory_says_that_the_command_continues(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: object, **options: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run.values, "compare", exhausted)
    with pytest.raises(recast.VerificationError, match="out of memory") as caught:
        recast.convert(model, tmp_path / "out", to="bf16", verify="cpu", sync=False)
    assert "the same command continues" in caught.value.__notes__[0]
    monkeypatch.undo()
    assert recast.convert(model, tmp_path / "out", to="bf16", verify="cpu", sync=False).verification


def test_a_result_that_is_done_already_is_verified_where_it_is(
    model: Path, out: Path, tmp_path: Path
) -> None:
    report = recast.convert(model, out, to="bf16", verify="cpu", sync=False)
    assert report.already_done
    assert report.verification is not None
    assert report.verification["values_checked"] == 6
    spoil(out)
    before = tree(out)
    with pytest.raises(recast.VerificationError, match=r"published before[^$]*element 1"):
        recast.convert(model, out, to="bf16", verify="cpu", sync=False)
    assert tree(out) == before


def test_a_publication_that_was_stopped_is_verified_once_it_is_whole(
    model: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    planned = recast.plan(model, to="bf16")
    (tmp_path / "out").mkdir()
    staged = planned.stage(str(dest), sync=False)
    assert staged is not None
    # A directory in the place of a file stops the renames, as a kill would.
    (dest / "config.json").mkdir()
    with pytest.raises(recast.StorageError):
        staged.publish()
    assert staged.publishing
    staged.leave()
    (dest / "config.json").rmdir()
    report = recast.convert(model, dest, to="bf16", verify="cpu", sync=False)
    assert report.resumed_files
    assert report.verification is not None
    assert report.verification["passed"]
    assert recast.verify(model, dest, device="cpu", full=True).passed


def test_what_verification_expects_follows_the_options_of_the_conversion(tmp_path: Path) -> None:
    rows = [("w", "F32", [1], b"\x00\x00\x7f\x7f"), ("lm_head.w", "F32", [1], b"\x00\x00\x80\x3f")]
    (tmp_path / SHARD).write_bytes(raw_bytes(rows))
    recast.convert(
        tmp_path / SHARD,
        tmp_path / "out",
        to="fp16",
        on_overflow="saturate",
        keep=["lm_head.*"],
        verify="cpu",
        sync=False,
    )
    assert recast.verify(tmp_path / SHARD, tmp_path / "out", device="cpu", full=True).passed
