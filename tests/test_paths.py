"""An index names shards beside itself or below, and whatever else it says is refused unopened."""

import json
from pathlib import Path

import pytest
import recast
from hostile import CANARY, INDEX, SHARD, refused, unopened


def test_the_watch_sees_what_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(pytest.fail.Exception), unopened(tmp_path / "file"):
        (tmp_path / "file").read_bytes()


@pytest.fixture
def canary(model: Path) -> Path:
    """A valid shard outside the model, with the tensor that the index asks for."""
    path = model.parent / "canary.safetensors"
    path.write_bytes(CANARY)
    return path


LEAVES = [
    "../canary.safetensors",
    "./../canary.safetensors",
    "sub/../../canary.safetensors",
    "../model/model.safetensors",
    "../../canary.safetensors",
    "..",
    ".",
    "",
    "/",
    "{root}/canary.safetensors",
    "//{root}/canary.safetensors",
    "{root}/model/model.safetensors",
    "/proc/self/root{root}/canary.safetensors",
    "/proc/self/environ",
    "/dev/zero",
    "/dev/stdin",
    "./model.safetensors",
    "model.safetensors/",
    "model.safetensors/.",
    "sub/../model.safetensors",
    "..\\canary.safetensors",
    "..\\..\\canary.safetensors",
    "\\canary.safetensors",
    "sub\\..\\..\\canary.safetensors",
    "\\\\host\\share\\canary.safetensors",
    "\\\\?\\C:\\canary.safetensors",
    "\\\\.\\PhysicalDrive0",
    "C:\\canary.safetensors",
    "C:/canary.safetensors",
    "C:canary.safetensors",
    "model.safetensors:stream",
    "model.safetensors\0",
    "\0",
    "model.safetensors\0../../canary.safetensors",
    "../canary.safetensors\0model.safetensors",
    "file://{root}/canary.safetensors",
    "https://example.com/canary.safetensors",
    "s3://bucket/canary.safetensors",
    "{{root}}/../canary.safetensors",
]

NAMES_NOTHING = [
    "...",
    "\u2025canary.safetensors",
    "..%2fcanary.safetensors",
    "%2e%2e%2fcanary.safetensors",
    "..\uff0fcanary.safetensors",
    "..\u2215canary.safetensors",
    "..\u29f5canary.safetensors",
    "~canary.safetensors",
    "~/canary.safetensors",
    "$PWD",
    "$(touch canary)",
    "`touch canary`",
    "*.safetensors",
    "model.safetensors*",
    "{{model}}.safetensors",
    " model.safetensors",
    "model.safetensors ",
    "model.safetensors.",
    "model.safetensors\n",
    "MODEL.SAFETENSORS",
    "model.safetensor\u017f",
    "\u202emodel.safetensors",
    "NUL",
    "con.safetensors",
    "-rf",
    "sub",
    "config.json",
    "notes.txt",
    INDEX,
    "x" * 5000 + ".safetensors",
]

PAYLOADS = [(name, "is not a path below the index's directory") for name in LEAVES]
PAYLOADS += [(name, "there is no file") for name in NAMES_NOTHING]


@pytest.mark.parametrize(("payload", "says"), PAYLOADS)
def test_an_index_leads_nowhere_but_to_a_shard_beside_it_or_below(
    payload: str, says: str, model: Path, canary: Path
) -> None:
    (model / "sub").mkdir()
    for inside in ("sub/model.safetensors", "sub/canary.safetensors", "notes.txt"):
        (model / inside).write_bytes(CANARY)
    shard = payload.replace("{root}", str(model.parent)).replace("{{", "{").replace("}}", "}")
    mapped = {"layer.weight": SHARD, "w": shard}
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": mapped}))
    with unopened(canary):
        refused(model, recast.IndexFileError, INDEX, "'w'", says)


def test_there_are_more_than_forty_payloads() -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) > 40


def test_the_index_the_payloads_are_put_into_is_good(model: Path) -> None:
    (model / INDEX).write_text(json.dumps({"weight_map": {"layer.weight": SHARD}}))
    recast.convert(model, model.parent / "out", to="bf16")


def test_the_canary_is_a_good_shard(tmp_path: Path) -> None:
    (tmp_path / "canary.safetensors").write_bytes(CANARY)
    assert recast.inspect(tmp_path / "canary.safetensors").parameters == 1
