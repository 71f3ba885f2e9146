"""The command, the API, the core and the documentation have the same options."""

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import recast
from click.testing import CliRunner
from recast import api
from recast.commands import cli
from recast.options import Options
from support import recast_here

ROOT = Path(__file__).parents[1]
NAMES = [field.name for field in fields(Options)]
# A value of each option that is not its default, as the command and as the API has it.
GIVEN: dict[str, tuple[list[str], Any]] = {
    "to": (["--to", "half"], "fp16"),
    "key": (["--key", "ema"], "ema"),
    "keep": (["--keep", "a.*", "--keep", "re:b"], ["a.*", "re:b"]),
    "auto_keep": (["--no-auto-keep"], False),
    "skip_quantized": (["--skip-quantized"], True),
    "unscaled_fp8": (["--unscaled-fp8"], True),
    "on_overflow": (["--on-overflow", "saturate"], "saturate"),
    "verify": (["--verify", "cuda:1"], "cuda:1"),
    "threads": (["--threads", "3"], 3),
    "io": (["--io", "mmap"], "mmap"),
    "sync": (["--no-sync"], False),
    "overwrite": (["--overwrite"], True),
    "sha256": (["--sha256"], True),
}


class Stop(Exception):
    """Ends a call once it has its options."""


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The options that conversions were asked for; none of them runs."""
    found: list[Options] = []

    def carry_out(source: object, dest: object, options: Options, steps: object = None) -> None:
        found.append(options)
        raise Stop

    monkeypatch.setattr(api, "carry_out", carry_out)
    return found


def by_command(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["convert", "in", "out", *arguments])
    assert isinstance(result.exception, Stop), result.output


def by_api(**options: Any) -> None:
    with pytest.raises(Stop):
        recast.convert("in", "out", **options)


@pytest.mark.parametrize("name", NAMES)
def test_an_option_means_the_same_everywhere(name: str, carried: list[Options]) -> None:
    arguments, value = GIVEN[name]
    base: dict[str, Any] = {} if name == "to" else {"to": "bf16"}
    by_command([*arguments, *(["--to", "bf16"] if base else [])])
    by_api(**base, **{name: value})
    assert carried == [Options(**base, **{name: value})] * 2
    assert name == "to" or carried[0] != Options(to="bf16")


def test_the_defaults_are_the_same_everywhere(carried: list[Options]) -> None:
    by_command(["--to", "bf16"])
    by_api(to="bf16")
    assert carried == [Options(to="bf16")] * 2


@pytest.mark.parametrize(("function", "extra"), [(recast.convert, {"progress"}), (recast.plan, {})])
def test_a_keyword_has_the_type_and_default_of_the_option(function: Any, extra: Any) -> None:
    hints = {name: get_args(kind)[0] for name, kind in _hints().items()}
    keywords = inspect.signature(function).parameters.values()
    found = {each.name: each for each in keywords if each.kind is each.KEYWORD_ONLY}
    if function is recast.convert:
        assert [*found][:-1] == NAMES
    for name in found.keys() - extra:
        (option,) = (field for field in fields(Options) if field.name == name)
        default = inspect.Parameter.empty if option.default is MISSING else option.default
        assert (found[name].annotation, found[name].default) == (hints[name], default)
    assert recast.convert.__doc__
    assert all(f"`{name}" in recast.convert.__doc__ for name in NAMES)


def _hints() -> dict[str, Any]:
    return get_type_hints(Options, include_extras=True)


def test_each_option_has_a_row_in_the_documentation() -> None:
    section = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").split("## recast convert")[1]
    rows = re.findall(r"^\| `(--[a-z0-9-]+)", section.split("\n## ")[0], re.MULTILINE)
    for arguments, _ in GIVEN.values():
        assert arguments[0] in rows


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"to": "fp8"}, "'fp8' is not a dtype recast casts to"),
        ({"keep": "lm_head.*"}, "keep is a string"),
        ({"on_overflow": "wrap"}, "on_overflow is 'wrap'"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 1025}, "threads is 1025"),
        ({"io": "fast"}, "'fast' is not a way to read files"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(option: dict[str, Any], message: str) -> None:
    with pytest.raises(recast.UsageError) as caught:
        Options(**{"to": "bf16", **option})
    assert caught.value.message == message
    assert caught.value.hint


def test_an_error_speaks_of_options_as_the_caller_has_them(model: Path, tmp_path: Path) -> None:
    recast.convert(model, tmp_path / "out", to="bf16", sync=False)
    with pytest.raises(recast.OutputError) as caught:
        recast.convert(model, tmp_path / "out", to="fp16", sync=False)
    assert "\n  to: bf16 there, fp16 here\n" in str(caught.value)
    assert "or overwrite=True to replace it" in str(caught.value)
    assert "--" not in str(caught.value)
    said = recast_here("convert", model, tmp_path / "out", "--to", "fp16").stderr
    assert "\n  --to: bf16 there, fp16 here\n" in said
    assert "or --overwrite to replace it" in said


@pytest.mark.parametrize(
    ("command", "python"),
    [
        ("--keep 'a b.*' matches no tensor", "keep=['a b.*'] matches no tensor"),
        ("with --keep PATTERN, or", "with keep=[PATTERN], or"),
        ("--on-overflow=inf or another", "on_overflow='inf' or another"),
        ("or give --threads 1", "or give threads=1"),
        ("--no-sync does without", "sync=False does without"),
        ("leave out --loader", "leave out loader"),
        ("use --device=cpu, or", "use device='cpu', or"),
        ("  --on-overflow: error there", "  on_overflow: error there"),
        ("`recast verify a b --full` shows it", "`recast verify a b --full` shows it"),
        ("/data/--overwrite/x: not found", "/data/--overwrite/x: not found"),
    ],
)
def test_a_message_has_two_spellings(command: str, python: str) -> None:
    error = recast.RecastError(command, command)
    assert (error.message, error.hint) == (python, python)
    assert error.args == (command, command)
