"""What a verification reports: how much was compared, and the likely cause of a total mismatch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import recast
import torch
from conftest import build
from recast import commands
from recast.verification.loaders import LOADERS, LoaderName
from recast.verification.problems import SENTENCES, Kind
from safetensors.torch import load_file, save_file
from support import raw_bytes, recast_here
from tensors import floats

SHARD = "model.safetensors"
SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "schema" / "verify.json").read_text())


def verify_lines(source: Path, dest: Path, *options: object, code: int) -> list[str]:
    done = recast_here("verify", source, dest, "--device", "cpu", *options)
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout.splitlines()


def converted(kind: str, seed: int, root: Path) -> tuple[Path, Path]:
    """A model of random weights, and what recast makes of it."""
    model = build(kind)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            # Norms of ones, as in every model.
            weight.copy_(torch.randn(weight.shape, generator=random) if weight.dim() > 1 else 1)
    model.save_pretrained(root / "model")
    recast.convert(root / "model", root / "out", to="bf16", sync=False)
    return root / "model", root / "out"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--full"], "all 400,003 in 2 tensors"),
        (["--samples", 200], "all 400,003 in 2 tensors"),
        (
            ["--samples", 1, "--seed", 7],
            "12,291 of 400,003 in 2 tensors: both ends of each, and up to 1 random block between "
            "them (seed 7)",
        ),
        (
            ["--samples", 0, "--seed", 7],
            "8,195 of 400,003 in 2 tensors: both ends of each, and up to 0 random blocks between "
            "them (seed 7)",
        ),
    ],
)
def test_the_report_says_what_was_compared(
    options: list[object], says: str, tmp_path: Path
) -> None:
    weights = {"large": floats(400_000), "small": floats(3)}
    rows = [(name, "F32", [len(w)], w.numpy().tobytes()) for name, w in weights.items()]
    (tmp_path / SHARD).write_bytes(raw_bytes(rows, {"format": "pt"}, pad_to=8))
    recast.convert(tmp_path / SHARD, tmp_path / "out", to="bf16", sync=False)
    lines = verify_lines(tmp_path / SHARD, tmp_path / "out", *options, code=0)
    assert lines[1] == f"  values     {says}"


def test_nothing_compared_is_reported_as_such(model: Path, tmp_path: Path) -> None:
    recast.convert(model, tmp_path / "out", to="bf16", sync=False)
    (tmp_path / "out" / SHARD).rename(tmp_path / "out" / "other.safetensors")
    lines = verify_lines(model, tmp_path / "out", "--full", code=1)
    assert "  values     none: no tensor could be compared" in lines


@pytest.mark.parametrize("options", [[], ["--full"]])
def test_another_model_of_the_same_shape_is_named_in_a_few_lines(
    options: list[str], tmp_path: Path
) -> None:
    source, _ = converted("llama", 1, tmp_path / "a")
    _, out = converted("llama", 2, tmp_path / "b")
    errors = [line for line in verify_lines(source, out, *options, code=1) if ": " in line][:4]
    assert errors[0] == (
        f"error: {out} does not look like a conversion of {source}: 16 of the 21 compared tensors "
        "differ in nearly every value"
    )
    assert errors[2] == "error: and 15 more; --json lists all"
    assert errors[3] == f"hint: check that {out} was converted from {source}"
    cause = recast.verify(source, out, device="cpu").likely_cause
    assert cause is not None
    assert (cause.cause, cause.tensors, cause.of) == ("other_values", 16, 21)


def test_a_model_of_another_architecture_is_named_in_a_few_lines(tmp_path: Path) -> None:
    source, _ = converted("t5", 1, tmp_path / "a")
    _, out = converted("llama", 2, tmp_path / "b")
    lines = verify_lines(source, out, code=1)
    assert lines[0] == (
        f"error: {out} does not look like a conversion of {source}, which lacks 21 of its 21 "
        "tensors (by name and shape)"
    )
    assert len([line for line in lines if line.startswith(("error", "hint"))]) < 8


def test_a_resharded_result_is_named_as_such(tmp_path: Path) -> None:
    source, out = converted("llama", 1, tmp_path)
    weights = load_file(out / SHARD)
    (out / SHARD).unlink()
    for part in (0, 1):
        names = sorted(weights)[part::2]
        path = out / f"model-{part + 1:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in names}, path, {"format": "pt"})
    cause = recast.verify(source, out, device="cpu").likely_cause
    assert cause is not None
    assert (cause.cause, cause.tensors, cause.of) == ("other_files", 21, 21)


def truncated(out: Path) -> None:
    """Every value as a cast that does not round would have it."""
    weights = load_file(out.parent / "model" / SHARD)
    cut = {name: (w.view(torch.int32) >> 16).to(torch.int16) for name, w in weights.items()}
    save_file(
        {name: w.view(torch.bfloat16) for name, w in cut.items()}, out / SHARD, {"format": "pt"}
    )


@pytest.mark.parametrize(
    "spoil",
    [
        truncated,
        lambda out: (out / SHARD).write_bytes((out / SHARD).read_bytes()[:-1]),
        lambda out: (out / "config.json").unlink(),
    ],
    ids=["a wrong cast", "a damaged shard", "a missing config"],
)
def test_a_fault_of_the_conversion_is_not_blamed_on_the_source(
    spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    source, out = converted("llama", 1, tmp_path)
    spoil(out)
    found = recast.verify(source, out, device="cpu", full=True)
    assert not found.passed
    assert found.likely_cause is None


def test_every_kind_of_problem_has_a_sentence_and_is_in_the_schema() -> None:
    kinds = SCHEMA["properties"]["problems"]["items"]["properties"]["kind"]["enum"]
    assert list(get_args(Kind)) == list(SENTENCES) == kinds


def test_every_loader_has_the_same_name_everywhere() -> None:
    (option,) = (each for each in commands.verify.params if each.name == "loader")
    choices = list(option.type.choices)  # type: ignore[attr-defined]
    assert list(get_args(LoaderName)) == list(LOADERS) == choices
    assert choices == SCHEMA["properties"]["loader"]["enum"]
