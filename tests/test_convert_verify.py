"""`convert --verify`: what is published is right, and what is wrong is never published."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from conftest import Save
from recast.options import Options
from recast.verification import publishing, values
from support import environment, raw_bytes, recast_here, stored, tree
from test_cli import assert_fits
from test_verify_command import SHARD, VERIFY, spoil


def test_convert_verify_publishes_what_passes_and_reports_it(model: Path, tmp_path: Path) -> None:
    command = ("convert", model, tmp_path / "out", "--to", "bf16", "--verify", "cpu", "--json")
    result = recast_here(*command)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)["verification"]
    assert_fits(found, VERIFY)
    assert found["passed"] is True
    assert found["samples"] is None
    assert found["values_checked"] == 6
    published = json.loads((tmp_path / "out" / "recast.json").read_text())
    assert published.items() <= json.loads(result.stdout).items()
    assert recast_here("verify", model, tmp_path / "out").returncode == 0
    text = recast_here("convert", model, tmp_path / "b", "--to", "bf16", "--verify", "cpu")
    assert "verified  6 values in 1 tensor on cpu" in text.stdout


def test_progress_goes_on_while_the_result_is_compared(saved: Save, tmp_path: Path) -> None:
    source = saved("llama", "fp32")
    weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    seen: list[tuple[int, int]] = []
    report = recast.convert(
        source, tmp_path / "out", to="bf16", verify="cpu", progress=lambda *now: seen.append(now)
    )
    # One total throughout: what is written, and then the source's tensors that are compared.
    (total,) = {total for _, total in seen}
    assert report.bytes_written < total < report.bytes_written + weights
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert any(report.bytes_written < done < total for done, _ in seen)


def between_stage_and_verify(
    monkeypatch: pytest.MonkeyPatch, happen: Callable[[Path], object]
) -> None:
    verify_all = publishing.verify_all

    def spoiled(planned: Any, staged: str, *options: Any) -> recast.Verification:
        happen(Path(staged))
        return verify_all(planned, staged, *options)

    monkeypatch.setattr(publishing, "verify_all", spoiled)


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
    (rejected,) = (dest / ".recast").glob("rejected-*/*/new")
    assert str(rejected) in caught.value.message
    assert not hasattr(caught.value, "__notes__")
    assert [path.name for path in dest.iterdir()] == [".recast"]
    assert [path.name for path in (dest / ".recast").iterdir()] == [rejected.parts[-3]]
    assert stored(rejected / SHARD)["layer.weight"][0] == "BF16"
    assert not recast.verify(model, rejected, device="cpu", full=True).passed
    # The next run is not affected.
    monkeypatch.undo()
    recast.convert(model, dest, to="bf16", verify="cpu", sync=False)
    assert not (dest / ".recast").exists()


def test_a_failed_verification_is_exit_code_1(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, recast.cli\n"
        "from recast.verification import publishing\n"
        "real = publishing.verify_all\n"
        "def spoiled(planned, staged, *options):\n"
        f"    path = pathlib.Path(staged) / {SHARD!r}\n"
        "    data = bytearray(path.read_bytes()); data[-1] ^= 1; path.write_bytes(data)\n"
        "    return real(planned, staged, *options)\n"
        "publishing.verify_all = spoiled\n"
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
    assert str(tmp_path / "out" / ".recast" / "rejected-") in result.stderr
    assert "layer.weight in model.safetensors, element 5" in result.stderr
    assert "hint: " in result.stderr


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_a_stopped_verification_publishes_nothing_and_can_be_resumed(
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


def test_out_of_memory_while_verifying_says_how_to_continue(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: object, **options: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(values, "compare", exhausted)
    with pytest.raises(recast.VerificationError, match="out of memory") as caught:
        recast.convert(model, tmp_path / "out", to="bf16", verify="cpu", sync=False)
    assert "the same command continues" in caught.value.__notes__[0]
    monkeypatch.undo()
    assert recast.convert(model, tmp_path / "out", to="bf16", verify="cpu", sync=False).verification


def test_a_published_result_is_verified_where_it_is(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    recast.convert(model, out, to="bf16", sync=False)
    report = recast.convert(model, out, to="bf16", verify="cpu", sync=False)
    assert report.already_done
    assert report.verification is not None
    assert report.verification["values_checked"] == 6
    before = tree(out)
    # A result that recast made wrong, and described as it made it.
    compare = publishing.verify_all

    def wrong(source: str, dest: Any, options: Options, *rest: Any) -> recast.Verification:
        return compare(source, dest, replace(options, keep=["layer.weight"]), *rest)

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "verify_all", wrong)
        with pytest.raises(recast.VerificationError, match="published before, and failed"):
            recast.convert(model, out, to="bf16", verify="cpu", sync=False)
    assert tree(out) == before
    # A changed result is not even compared.
    spoil(out)
    before = tree(out)
    with pytest.raises(recast.OutputError, match="missing, or was changed since recast wrote it"):
        recast.convert(model, out, to="bf16", verify="cpu", sync=False)
    assert tree(out) == before


def test_a_stopped_publication_is_verified_once_it_is_complete(model: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if (dest / ".recast" / "publish").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        recast.convert(model, dest, to="bf16", sync=False, progress=stop)
    assert "publication has begun; the same command completes it" in caught.value.__notes__
    assert not (dest / "config.json").exists()
    report = recast.convert(model, dest, to="bf16", verify="cpu", sync=False)
    assert report.verification is not None
    assert report.verification["passed"]
    assert recast.verify(model, dest, device="cpu", full=True).passed


def test_the_options_of_the_conversion_decide_what_is_expected(tmp_path: Path) -> None:
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
