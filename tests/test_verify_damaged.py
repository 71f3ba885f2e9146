"""What is wrong with a result's files is a finding of `recast verify`: no crash, no waiting."""

import json
import math
import os
from pathlib import Path

import pytest
import recast
from support import raw_header, recast_process

SHARD = "model.safetensors"


@pytest.fixture
def result(model: Path, tmp_path: Path) -> Path:
    """What was made of `model`, to which an index is added first."""
    index = {"metadata": {"total_size": 24}, "weight_map": {"layer.weight": SHARD}}
    (model / f"{SHARD}.index.json").write_text(json.dumps(index))
    recast.convert(model, tmp_path / "out", to="bf16", sync=False)
    return tmp_path / "out"


def damaged(header: dict[str, object], data: bytes) -> bytes:
    return raw_header({"__metadata__": {"format": "pt"}, "special": header}) + data


@pytest.mark.parametrize(
    "shard",
    [
        damaged({"dtype": "BF16", "shape": [8], "data_offsets": [0, 8]}, bytes(8)),
        damaged({"dtype": "BF16", "shape": [8], "data_offsets": [0, 18]}, bytes(18)),
        damaged({"dtype": ["BF16"], "shape": [8], "data_offsets": [0, 16]}, bytes(16)),
        damaged({"dtype": "BF16", "shape": [8], "data_offsets": [0.0, 16.0]}, bytes(16)),
        damaged({"dtype": "BF16", "shape": [math.inf], "data_offsets": [0, 16]}, bytes(16)),
        (400_000).to_bytes(8, "little") + b"[" * 200_000 + b"]" * 200_000,
    ],
    ids=["too short", "too long", "dtype", "offsets", "shape", "nested"],
)
def test_a_damaged_header_is_a_finding_and_not_a_crash(
    shard: bytes, model: Path, result: Path
) -> None:
    (result / SHARD).write_bytes(shard)
    problems = recast.verify(model, result, device="cpu", full=True).problems
    assert any(f"{SHARD} is damaged: " in problem for problem in problems)


@pytest.mark.parametrize("name", ["config.json", f"{SHARD}.index.json", "recast.json"])
def test_json_that_is_nested_without_end_is_a_finding_and_not_a_crash(
    name: str, model: Path, result: Path
) -> None:
    (result / name).write_text("[" * 200_000)
    found = recast.verify(model, result, device="cpu", full=True)
    assert any(name in text for text in [*found.problems, *found.notes])


@pytest.mark.parametrize("what", ["pipe", "device", "lost"])
def test_what_is_no_regular_file_is_a_finding_and_never_opened(
    what: str, model: Path, result: Path
) -> None:
    names = [SHARD, "config.json", f"{SHARD}.index.json", "recast.json"]
    for path in (result / name for name in names):
        path.unlink()
        if what == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/null" if what == "device" else "nowhere")
    found = json.loads(recast_process("verify", model, result, "--json").stdout)
    said = [*found["problems"], *found["notes"]]
    for name in names:
        assert any(text.startswith(name) or f"no {name}" in text for text in said), said
