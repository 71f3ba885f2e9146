"""The command: what it prints where, and its exit codes."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
import recast
from recast import _core
from recast.commands import cli
from support import environment, files, on_terminal, raw_bytes, recast_here, recast_process, tree

ROOT = Path(__file__).parents[1]
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-9]|4[0-9]|9[0-7]|10[0-7])(?:;\d+)*m")

MEMORY = {"requested": int, "allocated": int, "reserved": int}
CONVERT: dict[str, Any] = {
    "schema_version": int,
    "source": str,
    "dest": str,
    "to": str,
    "files": int,
    "tensors": {"cast": int, "copied": int, "kept": int},
    "parameters": int,
    "bytes_read": int,
    "bytes_written": int,
    "seconds": float,
    "resumed_files": int,
    "compared": type(None),
    "options": {"to": str, "keep": list, "on_overflow": str},
    "published_files": list,
    "audit": {"to_inf": int, "to_zero": int, "nan": int, "inexact_tensors": int},
    "warnings": list,
    "verification": type(None),
}
INSPECT: dict[str, Any] = {
    "schema_version": int,
    "path": str,
    "files": int,
    "tensors": int,
    "parameters": int,
    "bytes": int,
    "dtypes": {"F32": {"tensors": int, "parameters": int, "bytes": int}},
    "groups": list,
    "gpu_memory": {"fp32": MEMORY, "fp16": MEMORY, "bf16": MEMORY, "as_stored": MEMORY},
    "device": (dict, type(None)),
}


def assert_fits(value: dict[str, Any], contract: dict[str, Any]) -> None:
    for key, expected in contract.items():
        assert key in value
        if isinstance(expected, dict):
            assert_fits(value[key], expected)
        else:
            assert isinstance(value[key], expected), key
            assert not isinstance(value[key], bool), key


def test_convert_prints_its_result_on_stdout_and_nothing_else(model: Path, tmp_path: Path) -> None:
    result = recast_process("convert", model, tmp_path / "out", "--to", "bf16")
    assert (result.returncode, result.stderr) == (0, "")
    assert "1 cast" in result.stdout
    assert "\x1b" not in result.stdout
    assert files(tmp_path / "out") == files(model) | {"recast.json"}


def test_convert_json_keeps_the_contract_and_holds_the_report_in_the_result(
    model: Path, tmp_path: Path
) -> None:
    result = recast_process("convert", model, tmp_path / "out", "--to", "bf16", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    printed = json.loads(result.stdout)
    assert_fits(printed, CONVERT)
    assert printed["schema_version"] == 1
    assert printed["to"] == "bf16"
    assert printed["parameters"] == 6
    assert printed["bytes_read"] == sum(path.stat().st_size for path in model.iterdir())
    report = json.loads((tmp_path / "out" / "recast.json").read_text())
    assert {key: printed[key] for key in report} == report
    ours = {"source", "dest", "seconds", "gpu_memory", "verification"}
    assert printed.keys() - report.keys() == ours | {"resumed_files", "already_done", "compared"}


def test_inspect_json_keeps_the_contract(model: Path) -> None:
    result = recast_process("inspect", model, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    printed = json.loads(result.stdout)
    assert_fits(printed, INSPECT)
    assert printed["dtypes"] == {"F32": {"tensors": 1, "parameters": 6, "bytes": 24}}
    assert printed["gpu_memory"]["bf16"]["requested"] == 12
    assert "tensor_list" not in printed


def test_inspect_lists_every_tensor_on_a_line_of_its_own(model: Path) -> None:
    result = recast_process("inspect", model, "--tensors")
    (line,) = result.stdout.splitlines()
    assert line.split() == ["layer.weight", "F32", "[2,3]", "24", "model.safetensors"]
    printed = json.loads(recast_process("inspect", model, "--tensors", "--json").stdout)
    assert printed["tensor_list"] == [
        {
            "name": "layer.weight",
            "dtype": "F32",
            "shape": [2, 3],
            "bytes": 24,
            "file": "model.safetensors",
        }
    ]


@pytest.mark.parametrize("options", [[], ["--json"], ["--quiet"]])
def test_a_dry_run_writes_nothing(options: list[str], model: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    result = recast_process(
        "convert", model, tmp_path / "out", "--to", "fp16", "--dry-run", *options
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert tree(tmp_path) == before
    assert bool(result.stdout) == ("--quiet" not in options)


def test_a_dry_run_predicts_the_run(model: Path, tmp_path: Path) -> None:
    command = ("convert", model, tmp_path / "out", "--to", "fp16", "--json")
    predicted = json.loads(recast_process(*command, "--dry-run").stdout)
    done = json.loads(recast_process(*command).stdout)
    assert predicted.pop("dry_run") is True
    assert predicted.pop("resumes") is False
    planned = {row["path"]: row["bytes"] for row in predicted.pop("planned_files")}
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    del sizes["recast.json"]
    assert planned == sizes
    assert predicted == {key: done[key] for key in predicted}


def test_a_dry_run_says_what_it_did_not_look_at(model: Path, tmp_path: Path) -> None:
    command = ("convert", model, tmp_path / "out", "--to", "bf16")
    recast_process(*command)
    printed = recast_process(*command, "--dry-run").stdout
    assert printed.startswith("already done, as far as lengths and headers tell; ")
    # A dry run reads no tensor data, so it cannot see this; the run can.
    data = bytearray((tmp_path / "out" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "out" / "model.safetensors").write_bytes(data)
    assert recast_process(*command, "--dry-run").stdout == printed
    again = recast_process(*command)
    assert again.returncode == 73
    assert "model.safetensors: is missing, or was changed since recast wrote it" in again.stderr


def test_a_dry_run_refuses_what_the_run_would_refuse(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("")
    result = recast_process("convert", model, tmp_path / "out", "--to", "bf16", "--dry-run")
    assert result.returncode == 73


def test_a_dry_run_needs_no_destination(model: Path, tmp_path: Path) -> None:
    command = ("convert", model, "--to", "bf16", "--dry-run")
    result = recast_process(*command, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"plan: {model} in bf16\n")
    alone = json.loads(recast_process(*command, "--json").stdout)
    whole = ("convert", model, tmp_path / "out", *command[2:])
    assert json.loads(recast_process(*whole, "--json").stdout) == {
        **alone,
        "dest": str(tmp_path / "out"),
    }


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["convert", "a", "b", "--tp", "bf16"], "--to"),
        (["convert", "a", "b", "--overwrit"], "--overwrite"),
        (["verify", "a", "b", "--sample", "1"], "--samples"),
        (["insp", "a"], "inspect"),
    ],
)
def test_a_slip_is_answered_with_the_nearest_name(arguments: list[str], nearest: str) -> None:
    first, *_ = recast_process(*arguments).stderr.splitlines()
    assert first.endswith(f"Did you mean '{nearest}'?")


def test_quiet_prints_nothing_but_errors(model: Path, tmp_path: Path) -> None:
    command = ("convert", model, tmp_path / "out", "--quiet", "--to")
    first, second = recast_process(*command, "bf16"), recast_process(*command, "bf16")
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    other = recast_process(*command, "fp16")
    assert (other.returncode, other.stdout) == (73, "")
    assert "--overwrite" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect", "{model}"], 0),
        (["--help"], 0),
        (["convert", "--help"], 0),
        ([], 2),
        (["nonsense"], 2),
        (["-h"], 0),
        (["convert", "-h"], 0),
        (["convert", "{model}"], 2),
        (["convert", "{model}", "--to", "bf16"], 2),
        (["verify"], 2),
        (["verify", "a", "b", "c"], 2),
        (["convert", "{model}", "out"], 2),
        (["convert", "{model}", "out", "--to", "fp8"], 2),
        (["convert", "{model}", "out", "--to", "bf16", "--threads", "0"], 2),
        (["convert", "{model}", "out", "--to", "bf16", "--on-overflow", "wrap"], 2),
        (["convert", "{model}", "out", "--to", "bf16", "--nonsense"], 2),
        (["inspect", "nowhere"], 65),
        (["convert", "{model}", "{model}", "--to", "bf16"], 73),
    ],
)
def test_exit_codes_and_streams(
    arguments: list[str], code: int, model: Path, tmp_path: Path
) -> None:
    filled = [argument.format(model=model) for argument in arguments]
    result = recast_process(*filled, cwd=tmp_path)
    assert result.returncode == code
    # Exactly one of the two has something to say.
    assert bool(result.stdout) == (code == 0)
    assert bool(result.stderr) == (code != 0)


def test_a_value_that_does_not_fit_is_exit_code_1(tmp_path: Path) -> None:
    rows = [("w", "F32", [1], b"\x00\x00\x7f\x7f")]
    (tmp_path / "model.safetensors").write_bytes(raw_bytes(rows))
    source, dest = tmp_path / "model.safetensors", tmp_path / "out"
    assert recast_process("convert", source, dest, "--to", "fp16").returncode == 1
    assert not dest.exists()


@pytest.mark.parametrize(
    ("spelling", "to"),
    [(word, "fp32") for word in ("fp32", "float32", "f32")]
    + [(word, "fp16") for word in ("fp16", "float16", "half", "f16", "FP16")]
    + [(word, "bf16") for word in ("bf16", "bfloat16", "torch.bfloat16")],
)
def test_every_spelling_of_a_dtype_is_understood(spelling: str, to: str, model: Path) -> None:
    result = recast_here("convert", model, "out", "--to", spelling, "--dry-run", "--json")
    assert json.loads(result.stdout)["to"] == to


@pytest.mark.parametrize("command", [["--version"], ["-m", "recast", "--version"]])
def test_the_version_is_the_packages(command: list[str]) -> None:
    script = str(Path(sys.executable).with_name("recast"))
    start = [sys.executable] if command[0] == "-m" else [script]
    result = subprocess.run([*start, *command], capture_output=True, text=True, check=True)
    simd, torch_version = _core.simd_level(), metadata.version("torch")
    expected = [["recast", recast.__version__], ["simd", simd], ["torch", torch_version]]
    assert [line.split() for line in result.stdout.splitlines()] == expected
    cargo = (ROOT / "Cargo.toml").read_text()
    assert f'version = "{recast.__version__}"' in cargo


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["inspect", "{model}"],
        ["convert", "{model}", "out", "--to", "bf16"],
        ["bits", "3.14"],
    ],
)
def test_no_command_imports_torch_or_transformers(
    arguments: list[str], model: Path, tmp_path: Path
) -> None:
    filled = [argument.format(model=model) for argument in arguments]
    code = (
        "import sys; from recast.cli import main\n"
        f"sys.argv = ['recast', *{filled!r}]\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=environment())


def test_progress_is_drawn_on_a_terminal_and_data_stays_plain(model: Path, tmp_path: Path) -> None:
    drawn, printed = on_terminal(["convert", str(model), str(tmp_path / "out"), "--to", "bf16"])
    assert "\x1b[" in drawn
    assert "\x1b" not in printed
    assert "1 cast" in printed


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_progress_is_not_drawn_when_not_wanted(option: str, model: Path, tmp_path: Path) -> None:
    command = ["convert", str(model), str(tmp_path / "out"), "--to", "bf16", option]
    assert on_terminal(command)[0] == ""


def test_no_color_is_respected_on_a_terminal(model: Path, tmp_path: Path) -> None:
    command = ["convert", str(model), "--to", "bf16"]
    colorful, _ = on_terminal([*command, str(tmp_path / "a")], stdout=True)
    plain, _ = on_terminal([*command, str(tmp_path / "b")], stdout=True, NO_COLOR="1")
    assert COLOR.search(colorful)
    assert not COLOR.search(plain)
    assert "1 cast" in plain


def test_inspect_needs_no_thread_of_its_own(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    usual = recast.inspect(model)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert recast.inspect(model) == usual


def test_a_reader_that_stops_early_is_no_error(model: Path) -> None:
    command = f"{sys.executable} -m recast inspect {model} | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def commands(group: click.Group, path: str = "recast") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    found = dict(commands(cli))
    assert len(found) >= 2
    for path, command in found.items():
        assert f"## {path}" in text
        section = text.split(f"## {path}")[1].split("\n## ")[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help
                assert all(f"`{name}" in section for name in parameter.opts), parameter.opts
            else:
                assert parameter.make_metavar(click.Context(command)) in text


def test_every_documented_option_exists() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    known = {name for _, command in commands(cli) for p in command.params for name in p.opts}
    assert set(re.findall(r"--[a-z][a-z0-9-]*", text)) <= known | {"--help", "--version"}


def test_every_documented_exit_code_is_one_an_exception_or_a_signal_has() -> None:
    text = (ROOT / "docs" / "cli.md").read_text().split("## Exit codes")[1].split("\n## ")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    errors = [value for value in vars(recast).values() if isinstance(value, type)]
    codes = {e.exit_code for e in errors if issubclass(e, recast.RecastError)}
    assert documented == codes | {0, 130, 143}
