"""Runs that are stopped, continued or repeated, where a shard's values come from two files."""

import json
from pathlib import Path

import numpy as np
import pytest
from changes import OTHER, SAME
from dequantizers import found, scaled
from interrupted import KIB, MIB, assert_whole, content, convert, killed_midway, reported, stats
from quantized_models import block_config
from support import raw_bytes, recast_here

SCALES = "scales-1.safetensors"


def quantized(path: Path, last: int = 128 * KIB) -> Path:
    """Shards of codes, each with its scales in another shard."""
    path.mkdir()
    draw = np.random.default_rng(0)
    where: dict[str, str] = {}
    for layer, size in enumerate([128 * KIB] * 3 + [last], 1):
        codes, rows = draw.integers(0, 0x7F, size, dtype=np.uint8), size // 512
        row = (f"layers.{layer}.weight", "F8_E4M3", [rows, 512], codes.tobytes())
        name = f"model-{layer}.safetensors"
        (path / name).write_bytes(raw_bytes([row], {"format": "pt"}, pad_to=8))
        grid = draw.random((-(-rows // 128), 4), np.float32) / 100
        scale = (f"layers.{layer}.weight_scale_inv", "F32", list(grid.shape), grid.tobytes())
        (path / f"scales-{layer}.safetensors").write_bytes(raw_bytes([scale], {"format": "pt"}))
        where |= {row[0]: name, scale[0]: f"scales-{layer}.safetensors"}
    index = {"metadata": {}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"quantization_config": block_config([128, 128])}
    (path / "config.json").write_text(json.dumps(config))
    return path


def slow(path: Path) -> Path:
    """The same, and the last one takes long."""
    return quantized(path, 24 * MIB)


def assert_right(source: Path, dest: Path) -> None:
    ours = {name: row[1:] for name, row in found(dest).items()}
    assert ours == scaled((128, 128))(source, "bf16")


@pytest.mark.parametrize("change", OTHER)
def test_values_of_other_scales_are_never_mixed_with_what_was_staged(
    change: str, tmp_path: Path
) -> None:
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    name = next(name for name in killed_midway(source, dest) if name.startswith("model-"))
    OTHER[change](source / name.replace("model", "scales"))
    assert reported(source, dest)["resumed_files"] == 0
    assert_right(source, dest)
    reported(source, tmp_path / "clean")
    assert_whole(dest, content(tmp_path / "clean"))


@pytest.mark.parametrize("change", SAME)
def test_a_stopped_run_continues_where_the_scales_are_the_same(change: str, tmp_path: Path) -> None:
    source, dest = slow(tmp_path / "in"), tmp_path / "out"
    names = killed_midway(source, dest)
    for path in source.glob("scales-*"):
        SAME[change](path)
        path.parent.with_suffix(".link").unlink(missing_ok=True)
    assert reported(source, dest)["resumed_files"] == len(names)
    assert_right(source, dest)
    assert reported(source, dest)["already_done"]


@pytest.mark.parametrize("file", [SCALES, "model-1.safetensors"])
@pytest.mark.parametrize("change", OTHER)
def test_a_result_of_other_scales_or_codes_is_not_called_done(
    change: str, file: str, tmp_path: Path
) -> None:
    source, dest = quantized(tmp_path / "in"), tmp_path / "out"
    reported(source, dest)
    OTHER[change](source / file)
    before = stats(dest)
    run = convert(source, dest)
    assert run.returncode == 73, run.stdout
    assert stats(dest) == before
    assert convert(source, dest, "--overwrite").returncode == 0
    assert_right(source, dest)


@pytest.mark.parametrize("file", [SCALES, "model-1.safetensors", "model-4.safetensors"])
def test_a_flipped_bit_in_a_dequantized_result_is_found(file: str, tmp_path: Path) -> None:
    source, dest = quantized(tmp_path / "in"), tmp_path / "out"
    reported(source, dest)
    data = bytearray((dest / file).read_bytes())
    data[-1] ^= 1
    (dest / file).write_bytes(data)
    checked = recast_here("verify", dest)
    assert checked.returncode == 1
    assert file in checked.stdout + checked.stderr
    assert convert(source, dest).returncode == 73


def test_the_report_has_checksums_of_all_files_of_the_source(tmp_path: Path) -> None:
    """Also of one from which nothing but scales went into another's result."""
    source, dest = quantized(tmp_path / "in"), tmp_path / "out"
    reported(source, dest)
    text = (dest / "recast.json").read_text()
    for path in source.iterdir():
        assert f'"{path.name}"' in text
