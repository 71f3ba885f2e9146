"""The audit, the overflow policies, and which tensors are kept."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recast
import torch
from recast.options import FloatName
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from sources import NUMPY, by_numpy
from support import raw_bytes

Router = Callable[[str], Path]

EDGES = [65504, 65519, 65519.996, 65520, 65536, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0000001, 2.0**-14]
EDGES += [3.3895314e38, 3.3961774e38, 3.4028235e38, 1e-40, 4.6e-41, 9.2e-41, 1e-45, 0.0, -0.0]
EDGES += [float("inf"), float("nan"), 1.0, 0.1]


def planted(count: int) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Tensors of random bits, of ordinary weights, and of both with edge values planted."""
    random = np.random.default_rng(11)
    for index in range(count):
        size = int(random.integers(0, 5000))
        if index % 3 == 0:
            x = random.integers(0, 1 << 32, size, dtype=np.uint32).view(np.float32).copy()
        elif index % 3 == 1:
            x = (random.standard_normal(size) * 0.02).astype(np.float32)
        else:
            exact = random.standard_normal(size).astype(NUMPY["bf16" if index % 2 else "fp16"])
            x = exact.astype(np.float32)
        if size and index % 4:
            places = random.integers(0, size, int(random.integers(1, 6)))
            signs = random.choice([-1, 1], places.size)
            x[places] = random.choice(EDGES, places.size).astype(np.float32) * signs
        yield f"t{index:04}", x


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_audit_counts_equal_numpys_on_1000_tensors(to: FloatName, tmp_path: Path) -> None:
    tensors = dict(planted(1000))
    save_numpy(tensors, tmp_path / "model.safetensors")
    report = recast.convert(
        tmp_path / "model.safetensors", tmp_path / "out", to=to, on_overflow="inf", sync=False
    )
    assert len(report.tensor_audits) == 1000
    for row in report.tensor_audits:
        expected = by_numpy(tensors[row["name"]], to)
        assert {key: value for key, value in row.items() if key in expected} == expected, row[
            "name"
        ]
    stored = json.loads((tmp_path / "out" / "recast.json").read_text())
    assert stored["audit"]["tensors"] == report.tensor_audits


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """Nine tensors, seven of which overflow fp16."""
    tensors = {f"w{n}": torch.full((100,), 0.5) for n in range(9)}
    for n in range(7):
        tensors[f"w{n}"][: n + 1] = 70_000.0 * (n + 1)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    return path


def test_overflow_stops_by_default_and_names_the_worst_tensors(
    overflowing: Path, tmp_path: Path
) -> None:
    with pytest.raises(recast.CastOverflowError) as caught:
        recast.convert(overflowing, tmp_path / "out", to="fp16")
    text = str(caught.value)
    assert "28 finite values in 7 tensors" in text
    assert text.index("w6 in model.safetensors: 7 of 100 values, max_abs 4.9e5") < text.index("w5 ")
    assert "and 2 more" in text
    for way_out in ("keep=", "inf", "saturate"):
        assert way_out in (caught.value.hint or "")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()


def test_overflow_can_become_infinite_or_saturate(overflowing: Path, tmp_path: Path) -> None:
    recast.convert(overflowing, tmp_path / "inf", to="fp16", on_overflow="inf")
    out = load_file(tmp_path / "inf" / "model.safetensors")
    assert np.isinf(out["w6"][:7]).all()
    assert (out["w6"][7:] == 0.5).all()
    recast.convert(overflowing, tmp_path / "sat", to="fp16", on_overflow="saturate")
    out = load_file(tmp_path / "sat" / "model.safetensors")
    assert (out["w6"][:7] == 65504).all()


def test_saturate_keeps_the_sign_and_the_sources_infinities(tmp_path: Path) -> None:
    x = torch.tensor([1e30, -1e30, float("inf"), -float("inf"), 65519.0, float("nan")])
    save_file({"x": x}, tmp_path / "m.safetensors")
    recast.convert(tmp_path / "m.safetensors", tmp_path / "o", to="fp16", on_overflow="saturate")
    out = load_file(tmp_path / "o" / "m.safetensors")["x"]
    assert out[:5].tolist() == [65504, -65504, np.inf, -np.inf, 65504]
    assert np.isnan(out[5])


def test_a_kept_tensor_does_not_overflow(overflowing: Path, tmp_path: Path) -> None:
    report = recast.convert(overflowing, tmp_path / "out", to="fp16", keep=["re:^w[0-6]$"])
    assert report.tensors == {"cast": 2, "copied": 0, "kept": 7}
    assert report.kept[0]["reason"] == "--keep re:^w[0-6]$"
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert out["w6"].dtype == np.float32
    assert out["w7"].dtype == np.float16


def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_names(
    overflowing: Path,
) -> None:
    with pytest.raises(recast.UsageError, match="w10") as caught:
        recast.plan(overflowing, to="fp16", keep=["w10"])
    assert "w1" in (caught.value.hint or "")


@pytest.fixture
def router(tmp_path: Path) -> Router:
    """A model whose type is on the built-in list, and one whose type is not."""

    def make(model_type: str) -> Path:
        model = tmp_path / model_type
        model.mkdir()
        tensors = {
            "model.layers.0.mlp.gate.weight": torch.randn(8, 4),
            "model.layers.0.mlp.gate.e_score_correction_bias": torch.full((8,), 0.5),
            "model.layers.0.mlp.gate_proj.weight": torch.randn(4, 4),
        }
        save_file(tensors, model / "model.safetensors")
        (model / "config.json").write_text(json.dumps({"model_type": model_type}))
        return model

    return make


def test_the_built_in_list_keeps_what_the_models_loader_keeps(router: Router) -> None:
    actions = {t.name: t.action for t in recast.plan(router("deepseek_v3"), to="bf16").tensors}
    assert actions == {
        "model.layers.0.mlp.gate.weight": "keep",
        "model.layers.0.mlp.gate.e_score_correction_bias": "keep",
        "model.layers.0.mlp.gate_proj.weight": "cast",
    }
    # Of a model without such a list, only the bias is told by its name.
    kept = [t.name for t in recast.plan(router("llama"), to="bf16").tensors if t.action == "keep"]
    assert kept == ["model.layers.0.mlp.gate.e_score_correction_bias"]
    cast_all = recast.plan(router("glm4_moe"), to="bf16", auto_keep=False)
    assert all(t.action == "cast" for t in cast_all.tensors)


def test_a_kept_tensor_that_is_exact_anyway_is_reported(router: Router, tmp_path: Path) -> None:
    report = recast.convert(router("deepseek_v3"), tmp_path / "out", to="bf16")
    exact = [name for group in report.kept for name in group["exact_anyway"]]
    assert exact == ["model.layers.0.mlp.gate.e_score_correction_bias"]


def test_inspect_says_when_a_conversion_lost_nothing(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3), "b": torch.full((2,), 0.5)}, tmp_path / "m.safetensors")
    recast.convert(tmp_path / "m.safetensors", tmp_path / "o", to="bf16")
    notes = recast.inspect(tmp_path / "o").notes
    assert any("all 2 cast tensors are exactly representable in bf16" in note for note in notes)


def test_a_report_has_a_line_for_each_tensor_and_a_short_repr(tmp_path: Path) -> None:
    tensors = [(f"w{number:03}", "F32", [1], bytes(4)) for number in range(1000)]
    (tmp_path / "model.safetensors").write_bytes(raw_bytes(tensors))
    report = recast.convert(tmp_path / "model.safetensors", tmp_path / "out", to="bf16")
    lines = (tmp_path / "out" / "recast.json").read_text().splitlines()
    rows = [json.loads(line.rstrip(",")) for line in lines if "max_abs" in line]
    assert [row["name"] for row in rows] == [name for name, *_ in tensors]
    assert rows == report.tensor_audits
    assert len(repr(report)) < 1000
