"""What people see: a short summary, plain text in a pipe, and any terminal, however narrow."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import recast
from conftest import Save
from recast import api
from recast.options import Options
from rich.cells import cell_len
from support import environment, on_terminal, on_terminal_here, raw_bytes, recast_here

ROOT = Path(__file__).parents[1]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-9]|4[0-9]|9[0-7]|10[0-7])(?:;\d+)*m")
COMMANDS = {
    "convert": ["convert", "{model}", "{out}", "--to", "bf16", "--keep", "*norm*"],
    "dry run": ["convert", "{model}", "{out}", "--to", "fp16", "--dry-run"],
    "inspect": ["inspect", "{model}"],
    "verify": ["verify", "{model}", "{converted}", "--device", "cpu", "--seed", "0"],
    "bits": ["bits", "3.14"],
}


@pytest.fixture(scope="module")
def converted(saved: Save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "out"
    assert recast_here("convert", saved("llama", "fp32"), out, "--to", "bf16").returncode == 0
    return out


def filled(command: str, saved: Save, converted: Path, out: Path) -> list[str]:
    places = {"model": saved("llama", "fp32"), "converted": converted, "out": out}
    return [word.format(**places) for word in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [24, 40, 80, 200])
def test_no_line_is_longer_than_the_terminal_is_wide(
    columns: int, command: str, saved: Save, converted: Path, tmp_path: Path
) -> None:
    words = filled(command, saved, converted, tmp_path / "out")
    if columns == 24:
        drawn, _ = on_terminal(words, stdout=True, columns=columns)
    else:
        drawn = on_terminal_here(words, columns=columns)
    lines = [ESCAPE.sub("", line) for line in re.split(r"\r\n|\r|\n", drawn)]
    assert max(map(cell_len, lines)) <= columns, drawn
    # Folded, not cut.
    assert "…" not in drawn


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [24, 80])
def test_a_terminal_that_has_only_ascii_gets_only_ascii(
    columns: int, command: str, saved: Save, converted: Path, tmp_path: Path
) -> None:
    words = filled(command, saved, converted, tmp_path / "out")
    assert on_terminal_here(words, columns=columns, LC_ALL="C").isascii()


@pytest.mark.parametrize("command", COMMANDS)
def test_there_is_no_color_where_nobody_wants_it(
    command: str, saved: Save, converted: Path, tmp_path: Path
) -> None:
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        words = filled(command, saved, converted, tmp_path / value)
        changes: dict[str, Any] = {name: value}
        assert not COLOR.search(on_terminal_here(words, **changes))
    piped = recast_here(*filled(command, saved, converted, tmp_path / "piped"))
    assert not set("\x1b\r") & set(piped.stdout + piped.stderr)


ERRORS = {
    "usage": ["convert", "{model}", "{out}", "--tp", "bf16"],
    "input": ["inspect", "{model}/nowhere"],
    "output": ["convert", "{model}", "{converted}", "--to", "fp16", "--quiet"],
}


@pytest.mark.parametrize("command", ERRORS)
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_an_error_is_broken_between_words_and_its_first_word_is_in_color(
    columns: int, command: str, saved: Save, converted: Path, tmp_path: Path
) -> None:
    places = {"model": saved("llama", "fp32"), "converted": converted, "out": tmp_path / "out"}
    words = [word.format(**places) for word in ERRORS[command]]
    piped = recast_here(*words)
    code = piped.returncode
    drawn, _ = on_terminal(words, columns=columns, code=code)
    plain = on_terminal_here(words, columns=columns, code=code, NO_COLOR="1")
    assert re.match(rf"{COLOR.pattern}error:", drawn)
    assert not COLOR.search(plain)
    lines = ESCAPE.sub("", plain).split("\n")
    # A path may be longer than the terminal is wide; a terminal breaks it.
    assert all(cell_len(line) <= columns or " " not in line.strip() for line in lines)
    assert " ".join(lines).split() == piped.stderr.split()


@pytest.mark.parametrize("command", ["", "convert", "inspect", "verify", "bits"])
@pytest.mark.parametrize("columns", [80, 120])
def test_help_is_broken_between_words(columns: int, command: str) -> None:
    drawn, _ = on_terminal([*command.split(), "-h"], stdout=True, columns=columns)
    assert max(map(len, drawn.splitlines())) <= columns
    wide = on_terminal_here([*command.split(), "-h"], columns=100)
    assert drawn.split() == wide.split()


def test_the_summary_says_what_was_done_and_kept_and_why(model: Path, tmp_path: Path) -> None:
    rows = [(f"norm.{number}.weight", "F32", [1], bytes(4)) for number in range(3)]
    rows.append(("layer.weight", "F32", [1], bytes(4)))
    (model / "model.safetensors").write_bytes(raw_bytes(rows))
    result = recast_here("convert", model, tmp_path / "out", "--to", "bf16", "--keep", "norm.*")
    warning, title, *lines = result.stdout.splitlines()
    assert warning.startswith("warning: kept in the result, but transformers casts them to bf16")
    assert title == f"{model} -> {tmp_path / 'out'} in bf16"
    found = dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in lines)
    assert found["tensors"] == "1 cast, 0 copied, 3 kept"
    assert found["kept"].startswith("norm.0.weight and 2 more: --keep norm.*")
    assert re.fullmatch(r"\d+ B -> \d+ B", found["size"])
    assert found["on a GPU"] == "2.00 KiB allocated, 2.00 MiB reserved by PyTorch"
    assert found["audit"] == "every value is exact"
    assert re.fullmatch(
        r"[\d.]+ s, [\d.]+ [GMK]?i?B/s read, [\d.]+ [GMK]?i?B/s written", found["time"]
    )
    assert list(found) == ["tensors", "kept", "size", "on a GPU", "audit", "time"]


def test_warnings_come_first_and_grouped_never_a_wall(model: Path, tmp_path: Path) -> None:
    carried = [(f"complex.{number}", "C64", [1], bytes(8)) for number in range(500)]
    (model / "fp32.safetensors").write_bytes(raw_bytes([*carried, ("w", "F32", [1], bytes(4))]))
    for number in range(1000):
        (model / f"pytorch_model-{number}.bin").write_bytes(b"")
    command = ["convert", model, tmp_path / "out", "--to", "bf16"]
    for extra in (["--dry-run"], []):
        lines = recast_here(*command, *extra).stdout.splitlines()
        starts = [line.startswith("warning: ") for line in lines]
        assert starts[:5] == [True, True, True, True, False]
        assert sum(starts) == 4
        assert max(map(len, lines[:4])) < 300
        assert "more" in lines[0]


def test_a_warning_is_about_a_tensor_whatever_it_is_called(tmp_path: Path) -> None:
    rows = [("", "C64", [1], bytes(8)), ("w", "F32", [1], bytes(4))]
    (tmp_path / "model.safetensors").write_bytes(raw_bytes(rows))
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    (warning,) = recast.plan(tmp_path, to="bf16").warnings
    assert "(C64)" in warning


def test_progress_needs_no_more_columns_than_there_are(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_bytes([("w", "F32", [4_000_000], bytes(16_000_000))]))
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    # No size and no speed where there is no room; how fast it is says nothing about the unit.
    for columns, (shown, missing) in {24: ("%", ["MB", "iB", "B/s"]), 100: ("MiB", [])}.items():
        command = ["convert", str(path), str(tmp_path / str(columns)), "--to", "bf16"]
        drawn, printed = on_terminal(command, columns=columns, LC_ALL="C")
        assert drawn.isascii()
        assert shown in drawn
        assert not any(text in drawn for text in missing)
        # Not "0/? bytes", before anything is known of how much there is to do.
        assert "?" not in re.sub(ESCAPE, "", drawn)
        assert printed.count("\n") == 6


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documented_completion_is_a_script_for_the_shell(shell: str) -> None:
    documented = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert f"_RECAST_COMPLETE={shell}_source recast" in documented
    env = environment(_RECAST_COMPLETE=f"{shell}_source")
    command = Path(sys.executable).with_name("recast")
    result = subprocess.run([command], env=env, capture_output=True, text=True, check=True)
    assert f"_RECAST_COMPLETE={shell}_complete" in result.stdout


def test_completion_knows_commands_and_options() -> None:
    command = Path(sys.executable).with_name("recast")
    for words, expected in {
        "recast co": "plain,convert",
        "recast convert --ov": "--overwrite",
    }.items():
        count = str(len(words.split()) - 1)
        env = environment(_RECAST_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count)
        result = subprocess.run([command], env=env, capture_output=True, text=True, check=True)
        assert expected in result.stdout


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (Options(to="bf16"), ["converting", "syncing"]),
        (Options(to="bf16", sync=False), ["converting", "publishing"]),
        (Options(to="bf16", verify="cpu"), ["converting", "syncing", "verifying", "publishing"]),
    ],
)
def test_the_bar_says_what_the_run_is_doing(
    options: Options, steps: list[str], model: Path, tmp_path: Path
) -> None:
    found: list[str] = []

    def bar(step: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        if found[-1:] != [step]:
            found.append(step)

    api.carry_out(model, tmp_path / "out", options, bar)
    assert found == steps
    found.clear()
    api.carry_out(model, tmp_path / "out", options, bar)
    assert found[0] == "comparing"


def test_a_report_prints_as_one_short_line(model: Path, tmp_path: Path) -> None:
    report = recast.convert(model, tmp_path / "out", to="bf16")
    assert str(report).startswith(f"{model} -> {tmp_path / 'out'} in bf16: done in ")
    assert str(report).endswith(
        f"; tensors: 1 cast; {report.bytes_read:,} -> {report.bytes_written:,} bytes"
    )
