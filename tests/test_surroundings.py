"""What stands around a run - streams, names, links, limits - does not make it lie."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import recast
from recast import _core
from recast.options import Options
from support import (
    environment,
    files,
    fp32_bytes,
    raw_bytes,
    recast_here,
    recast_process,
    stored,
    tree,
)

SHARD = "model.safetensors"


def shell(command: str, model: Path, dest: Path) -> "subprocess.CompletedProcess[str]":
    """Runs `recast convert model dest --to bf16` with the redirections `command` ends in."""
    line = f'"{sys.executable}" -m recast convert "{model}" "{dest}" --to bf16 {command}'
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, env=environment()
    )


@pytest.mark.parametrize("redirection", ["2>&-", "<&-", "2>/dev/full", "2>&- <&-"])
def test_a_run_that_cannot_talk_still_converts(
    redirection: str, model: Path, tmp_path: Path
) -> None:
    result = shell(redirection, model, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert stored(tmp_path / "out" / SHARD)["layer.weight"][0] == "BF16"


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_a_result_that_cannot_be_printed_is_no_traceback(
    redirection: str, model: Path, tmp_path: Path
) -> None:
    result = shell(redirection, model, tmp_path / "out")
    assert "Traceback" not in result.stderr
    assert result.returncode in (0, 74)
    assert stored(tmp_path / "out" / SHARD)["layer.weight"][0] == "BF16"


def test_an_error_that_cannot_be_printed_keeps_its_exit_code(model: Path, tmp_path: Path) -> None:
    assert shell("2>/dev/full", tmp_path / "nowhere", tmp_path / "out").returncode == 65
    assert shell("2>&-", tmp_path / "nowhere", tmp_path / "out").returncode == 65


@pytest.mark.parametrize("threads", ["0", "-1", "1.5", "99999999999999999999"])
def test_a_number_of_threads_that_makes_no_sense_is_a_usage_error(
    threads: str, model: Path, tmp_path: Path
) -> None:
    result = recast_here("convert", model, tmp_path / "out", "--to", "bf16", "--threads", threads)
    assert "Traceback" not in result.stderr
    assert result.returncode == 2
    assert not (tmp_path / "out").exists()


def test_names_that_are_not_utf_8_are_carried(model: Path, tmp_path: Path) -> None:
    strange = os.fsdecode(b"n\xffame")
    (model / f"{strange}.txt").write_text("kept")
    (model / f"{strange}.safetensors").write_bytes((model / SHARD).read_bytes())
    source, dest = model.rename(tmp_path / f"in-{strange}"), tmp_path / f"out-{strange}"
    result = recast_here("convert", source, dest, "--to", "bf16", "--json")
    assert result.returncode == 0, result.stderr
    assert (dest / f"{strange}.txt").read_text() == "kept"
    assert stored(dest / f"{strange}.safetensors")["layer.weight"][0] == "BF16"


@pytest.mark.parametrize("name", [SHARD.replace("model", "extra"), "vocab.txt", "config.json"])
def test_a_link_that_leads_nowhere_is_bad_input_with_a_way_out(
    name: str, model: Path, tmp_path: Path
) -> None:
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("../blobs/never-downloaded")
    result = recast_here("convert", model, tmp_path / "out", "--to", "bf16")
    assert name in result.stderr
    assert result.returncode == 65
    assert "hint: " in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_circle_is_bad_input_with_a_way_out(model: Path, tmp_path: Path) -> None:
    (model / "circle").symlink_to("circle")
    result = recast_here("convert", model, tmp_path / "out", "--to", "bf16")
    assert "circle" in result.stderr
    assert result.returncode == 65
    assert "hint: " in result.stderr


@pytest.mark.parametrize("dest", ["dangling", "dangling/deep", "", "x" * 300])
def test_a_destination_that_cannot_be_made_is_refused_with_a_way_out(
    dest: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    before = tree(tmp_path)
    result = recast_here("convert", model, dest, "--to", "bf16", cwd=tmp_path)
    assert result.returncode == 73
    assert "hint: " in result.stderr
    assert tree(tmp_path) == before


def test_a_source_file_called_like_the_staging_folder_leaves_nothing(
    model: Path, tmp_path: Path
) -> None:
    (model / ".recast").write_text("a file of that name")
    result = recast_here("convert", model, tmp_path / "out", "--to", "bf16")
    if result.returncode == 0:
        assert (tmp_path / "out" / ".recast").read_text() == "a file of that name"
    else:
        assert ".recast" in result.stderr
        assert not (tmp_path / "out").exists()


def test_a_signal_after_publication_does_not_deny_it(model: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    code = (
        "import os, signal, sys, recast.show.convert, recast.cli\n"
        "recast.show.convert.report_text = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        f"sys.argv = ['recast', 'convert', {str(model)!r}, {str(dest)!r}, '--to', 'bf16']\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "recast.cli.main()\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert stored(dest / SHARD)["layer.weight"][0] == "BF16"
    assert result.returncode in (0, 130)
    assert "nothing was published" not in result.stderr


def test_whenever_a_signal_comes_the_result_is_whole_or_not_there(tmp_path: Path) -> None:
    """At random moments, start-up, publication and the last print included."""
    source, dest = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(20):
        rows = [("w", "F32", [50_000], fp32_bytes(50_000, number))]
        (source / f"{number}.safetensors").write_bytes(raw_bytes(rows))
    (source / "config.json").write_text("{}")
    command = [sys.executable, "-m", "recast", "convert", str(source), str(dest), "--to", "bf16"]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env=environment())
    usual = time.monotonic() - started
    whole = {path.name: path.read_bytes() for path in dest.iterdir() if path.name != "recast.json"}
    choose = random.Random(0)
    # Before the command has its handlers and after it has returned, Python has its own, which
    # make the exit status the signal itself.
    outcomes = set()
    for _ in range(25):
        shutil.rmtree(dest, ignore_errors=True)
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        time.sleep(choose.uniform(0.1, 1.1) * usual)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=30)
        outcomes.add(process.returncode)
        found = {path.name for path in dest.iterdir()} if dest.exists() else set()
        if found:
            if "config.json" in found:
                assert found - {"recast.json", ".recast"} == set(whole)
                assert all((dest / name).read_bytes() == whole[name] for name in whole)
                assert "nothing was published" not in complaint
            if ".recast" in found:
                # Where Python itself was still in charge, nobody could say so.
                assert process.returncode != 130 or "the same command" in complaint
                subprocess.run(command, check=True, capture_output=True, env=environment())
                assert {path.name for path in dest.iterdir()} == {"recast.json", *whole}
        else:
            # 1 is what Python makes of a signal in its own start-up.
            assert process.returncode in (130, -signal.SIGINT, 1)
    assert 130 in outcomes


def test_a_destination_never_leads_back_to_the_source(model: Path, tmp_path: Path) -> None:
    """Not by '..' behind a directory that does not exist, nor from inside the staging folder."""
    before = tree(model)
    result = recast_here("convert", model, f"typo/../{model.name}", "--to", "bf16", cwd=tmp_path)
    assert result.returncode == 73
    assert "hint: " in result.stderr
    assert tree(model) == before
    assert not (tmp_path / "typo").exists()

    left = tmp_path / "out" / ".recast" / "rejected-0" / "0.0" / "new"
    left.parent.mkdir(parents=True)
    model.rename(left)
    for source in (left, left / SHARD):
        result = recast_here("convert", source, tmp_path / "out", "--to", "bf16")
        assert result.returncode == 73, source
        assert tree(left) == before


def test_a_source_written_after_planning_is_converted_as_it_is(model: Path, tmp_path: Path) -> None:
    """A plan is of headers, configs and indexes: while these are as they were, it holds; a source
    whose header is another one is refused."""
    planned = recast.plan(model, to="bf16")
    path = model / SHARD
    data = path.read_bytes()
    path.write_bytes(data[:-4] + b"\0\0\0\0")
    options = Options(to="bf16")
    _core.convert(planned, str(tmp_path / "out"), options)
    recast.convert(model, tmp_path / "fresh", to="bf16")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    # The same length, inode and tensors of the same size, but another name.
    path.write_bytes(data.replace(b"layer.weight", b"layer.WEIGHT"))
    with pytest.raises(recast.InputError, match="changed while") as caught:
        _core.convert(planned, str(tmp_path / "other"), options)
    assert SHARD in str(caught.value)
    assert caught.value.exit_code == 65
    assert not (tmp_path / "other").exists()


def test_threads_end_with_the_call(tmp_path: Path) -> None:
    """Also with a call that a callback stops, at any moment."""
    source = tmp_path / "in"
    source.mkdir()
    for number in range(8):
        rows = [("w", "F32", [200_000], fp32_bytes(200_000, number))]
        (source / f"{number}.safetensors").write_bytes(raw_bytes(rows))
    tasks = Path("/proc/self/task")
    recast.convert(source, tmp_path / "warm", to="bf16", sync=False)
    before = sorted(task.name for task in tasks.iterdir())
    for calls in range(12):
        left = iter(range(calls))

        def stop(done: int, total: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise RuntimeError("enough")

        for number in range(50):
            dest = tmp_path / f"out-{calls}-{number}"
            try:
                recast.convert(source, dest, to="bf16", threads=4, progress=stop)
            except RuntimeError:
                break
        else:
            raise AssertionError("never stopped")
        # What the system still counts just after a thread was waited for.
        time.sleep(0.01)
        assert sorted(task.name for task in tasks.iterdir()) == before


@pytest.mark.parametrize(
    ("limit", "options"), [(64, ()), (32, ()), (256, ("--threads", "256")), (64, ("--io", "mmap"))]
)
def test_few_descriptors_are_enough(
    limit: int, options: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    """Of 300 small shards, no more are open at once than the process may open."""
    for number in range(300):
        (model / f"m-{number}.safetensors").write_bytes((model / SHARD).read_bytes())
    result = recast_process(
        *("convert", model, tmp_path / "out", "--to", "bf16", "--no-sync", *options),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )
    assert result.returncode == 0, result.stderr
    assert files(model) < files(tmp_path / "out")


def test_a_header_with_very_many_metadata_keys_does_not_hang(model: Path) -> None:
    keys = ",".join(f'"k{number}":""' for number in range(300_000))
    header = f'{{"__metadata__":{{{keys}}}}}'.encode()
    (model / SHARD).write_bytes(len(header).to_bytes(8, "little") + header)
    started = time.monotonic()
    recast.inspect(model)
    assert time.monotonic() - started < 30
