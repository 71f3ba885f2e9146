"""Damaged files of a result are problems that `recast verify` reports: no crash, no waiting."""

import json
import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import recast
from recast.verification import files, header
from support import raw_bytes, raw_header, recast_here

SHARD = "model.safetensors"


@pytest.fixture
def result(model: Path, tmp_path: Path) -> Path:
    """What was made of `model`, to which an index is added first."""
    index = {"metadata": {"total_size": 24}, "weight_map": {"layer.weight": SHARD}}
    (model / f"{SHARD}.index.json").write_text(json.dumps(index))
    recast.convert(model, tmp_path / "out", to="bf16", sync=False)
    return tmp_path / "out"


def damaged(entry: dict[str, object], data: bytes) -> bytes:
    return raw_header({"__metadata__": {"format": "pt"}, "special": entry}) + data


def messages(printed: dict[str, Any]) -> list[str]:
    return [problem["message"] for problem in printed["problems"]]


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
def test_a_damaged_header_is_a_problem_and_not_a_crash(
    shard: bytes, model: Path, result: Path
) -> None:
    (result / SHARD).write_bytes(shard)
    problems = recast.verify(model, result, device="cpu", full=True).failures()
    assert any(f"{SHARD} is damaged: " in problem for problem in problems)


@pytest.mark.parametrize("name", ["config.json", f"{SHARD}.index.json", "recast.json"])
def test_deeply_nested_json_is_a_problem_and_not_a_crash(
    name: str, model: Path, result: Path
) -> None:
    (result / name).write_text("[" * 200_000)
    found = recast.verify(model, result, device="cpu", full=True)
    assert any(name in text for text in [*found.failures(), *found.notes])


@pytest.mark.parametrize("what", ["pipe", "device", "lost"])
def test_a_special_file_is_a_problem_and_never_opened(what: str, model: Path, result: Path) -> None:
    names = [SHARD, "config.json", f"{SHARD}.index.json", "recast.json"]
    for path in (result / name for name in names):
        path.unlink()
        if what == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/null" if what == "device" else "nowhere")
    found = json.loads(recast_here("verify", model, result, "--json").stdout)
    said = [*messages(found), *found["notes"]]
    for name in names:
        assert any(text.startswith(name) or f"no {name}" in text for text in said), said


INDEX = f"{SHARD}.index.json"
LIMIT = 100_000_000
GIB = 1 << 30


@contextmanager
def no_more_memory_than(size: int) -> Iterator[None]:
    """This process can map no more than `size` bytes in addition to what it has mapped."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("loader", ["safetensors", "transformers"])
@pytest.mark.parametrize(
    ("name", "start"),
    [
        (SHARD, (40 * GIB).to_bytes(8, "little")),
        (SHARD, (LIMIT + 1).to_bytes(8, "little")),
        (SHARD, LIMIT.to_bytes(8, "little")),
        (INDEX, b""),
        ("config.json", b""),
        ("recast.json", b""),
    ],
    ids=["header", "limit + 1", "limit", "index", "config", "report"],
)
def test_a_file_of_absurd_size_is_a_problem_and_not_read(
    name: str, start: bytes, loader: str, model: Path, result: Path
) -> None:
    command = ("verify", model, result, "--device", "cpu", "--json", "--loader", loader)
    # What it imports takes more.
    recast_here(*command)
    (result / name).write_bytes(start)
    os.truncate(result / name, 40 * GIB + len(start))
    # A file that transformers itself would read.
    (result / "generation_config.json").touch()
    os.truncate(result / "generation_config.json", 40 * GIB)
    with no_more_memory_than(2 * GIB):
        done = recast_here(*command)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    said = [text for text in [*messages(found), *found["notes"]] if text.startswith(name)]
    assert said
    assert max(map(len, said)) < 300
    assert not any("MemoryError" in text for text in [*messages(found), *found["notes"]])


def test_a_file_is_read_up_to_its_limit_and_no_further(
    model: Path, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.MAX_HEADER == files.MAX_INDEX == files.MAX_REPORT == LIMIT
    assert files.MAX_CONFIG == LIMIT // 10
    path = result / "config.json"
    size = path.stat().st_size
    assert files.read_json(path, size) == json.loads(path.read_text())
    reason = f"it has {size} bytes, and recast reads at most {size - 1} of such a file"
    with pytest.raises(ValueError, match=reason):
        files.read_json(path, size - 1)
    # A file that grows once it is open, or that has no length until it is read.
    empty = os.stat_result([*os.stat(path)[:6], 0, 0, 0, 0])
    monkeypatch.setattr(os, "fstat", lambda _: empty)
    assert files.read_json(path, size) == json.loads(path.read_text())
    with pytest.raises(ValueError, match=reason):
        files.read_json(path, size - 1)


def test_the_safetensors_library_reads_no_header_over_the_limit(
    model: Path, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(header, "compare_with_safetensors", lambda path, _: asked.append(path))
    for size in (LIMIT + 1, 40 * GIB, (1 << 64) - 1):
        (result / SHARD).write_bytes(size.to_bytes(8, "little"))
        os.truncate(result / SHARD, min(size + 8, 50 * GIB))
        _, damaged = header.read_headers(result)
        assert damaged == {
            SHARD: f"the header has {size} bytes, over the format's limit of {LIMIT}"
        }
    assert not asked


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"data_offsets": [0.0, 12.0]}, "not a number of 64 bits"),
        ({"data_offsets": [False, 12]}, "not a number of 64 bits"),
        ({"data_offsets": [0, 1 << 64]}, "not a number of 64 bits"),
        ({"shape": [True, 6]}, "not a number of 64 bits"),
        ({"shape": [2.0, 3]}, "not a number of 64 bits"),
        ({"shape": "23"}, "a shape not a list"),
        ({"dtype": ["BF16"]}, "a dtype is not a string, or a shape not a list"),
        ({"shape": [1 << 64]}, "not a number of 64 bits"),
    ],
)
def test_a_header_is_read_as_every_other_reader_reads_it(
    fields: dict[str, Any], reason: str, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By this reader alone, without what the library would refuse.
    monkeypatch.setattr(header, "compare_with_safetensors", lambda path, entries: None)
    entry = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12], **fields}
    (result / SHARD).write_bytes(raw_header({"layer.weight": entry}) + bytes(12))
    _, damaged = header.read_headers(result)
    assert damaged[SHARD].endswith(reason)


def test_a_duplicate_name_in_a_header_is_a_problem(model: Path, result: Path) -> None:
    data = (result / SHARD).read_bytes()
    text = data[8:].split(b"}}")[0] + b"}"
    name = b'"layer.weight":'
    twice = text + b"," + name + text.split(name)[1] + b"}"
    twice += b" " * (-len(twice) % 8)
    (result / SHARD).write_bytes(len(twice).to_bytes(8, "little") + twice + data[-12:])
    found = recast.verify(model, result, device="cpu")
    (problem,) = [text for text in found.failures() if "damaged" in text]
    assert "the header has 'layer.weight' more than once" in problem


@pytest.mark.parametrize(
    "options",
    [
        {"to": "int4"},
        {"to": 5},
        {"keep": "*"},
        {"keep": {"*": 1}},
        {"keep": [5]},
        {"keep": ["nothing that is there"]},
        {"keep": ["*"] * 257},
        {"auto_keep": "no"},
        {"auto_keep": None},
        {"on_overflow": "crash"},
        {"on_overflow": []},
    ],
    ids=lambda options: str(options)[:40],
)
def test_a_report_with_impossible_options_is_a_problem(
    options: dict[str, Any], model: Path, result: Path
) -> None:
    report = json.loads((result / "recast.json").read_text())
    report["options"].update(options)
    (result / "recast.json").write_text(json.dumps(report))
    found = recast.verify(model, result, device="cpu")
    (problem,) = found.problems
    assert problem.kind == "report_invalid"
    assert problem.message.startswith("recast.json does not say what was asked for: ")
    assert found.notes[0].startswith("recast.json does not say it, so the target is inferred")
    assert found.values_checked > 0


def test_an_index_that_loses_every_tensor_is_a_short_list(model: Path, result: Path) -> None:
    names = {f"w{number}": "elsewhere" for number in range(5000)}
    (result / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    found = recast.verify(model, result, device="cpu")
    assert len(found.problems) < 30
    assert f"{INDEX}: the same for 4,980 more tensors" in found.failures()


def test_a_shape_that_torch_cannot_have_is_a_problem(model: Path, result: Path) -> None:
    row = ("layer.weight", "BF16", [(1 << 64) - 1, 0], b"")
    (result / SHARD).write_bytes(raw_bytes([row]))
    found = recast.verify(model, result, device="cpu")
    assert any(text.startswith(f"safetensors cannot load {SHARD}: ") for text in found.failures())
