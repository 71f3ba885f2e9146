"""Whatever a checkpoint holds, every command ends with an answer: no traceback, panic or hang."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recast
from conftest import Run, Save
from support import raw_bytes, raw_header, slow

SHARD, INDEX = "model.safetensors", "model.safetensors.index.json"
HUGE, WHOLE = 10**12, (1 << 64) - 1


@pytest.fixture
def source(model: Path) -> Path:
    (model / INDEX).write_text(
        json.dumps({"metadata": {"total_size": 24}, "weight_map": {"layer.weight": SHARD}})
    )
    return model


@pytest.fixture
def dest(source: Path, tmp_path: Path) -> Path:
    recast.convert(source, tmp_path / "out", to="bf16", sync=False)
    return tmp_path / "out"


GOOD: dict[str, Any] = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}


def header(**changes: Any) -> bytes:
    return raw_header({"layer.weight": {**GOOD, **changes}}) + bytes(12)


def text(value: str, data: int = 12) -> bytes:
    encoded = value.encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(data)


def length(value: int) -> bytes:
    return value.to_bytes(8, "little") + header()[8:]


ENTRY = json.dumps(GOOD)
WRONG: list[Any] = [None, True, -1, 0, 0.5, HUGE, WHOLE, 1 << 64, 10**4000, "", "x\n", "\ud800"]
WRONG += [[], [[]], [HUGE], ["x"], {}, {"": None}]
SHARDS: dict[str, bytes] = {
    "nothing": b"",
    "less than a length": b"\0\0\0",
    "no header": bytes(8),
    "a length of 2^64 - 1": length(WHOLE),
    "a length of 2^63": length(1 << 63),
    "a length over the limit": length(100_000_001),
    "a length that is not there": length(100_000_000),
    "no JSON": text("{nope}"),
    "a list": text("[]"),
    "a number": text("7"),
    "null": text("null"),
    "a string": text('"x"'),
    "not UTF-8": (2).to_bytes(8, "little") + b'"\xff',
    "deep": text("[" * 100_000),
    "a deep field": text('{"a":' + ENTRY[:-1] + ',"x":' + "[" * 50_000 + "]" * 50_000 + "}}"),
    "a deep entry": text('{"a":' * 50_000 + "1" + "}" * 50_000),
    "a number of 5000 digits": text('{"a":' + ENTRY.replace("12]", "1" * 5000 + "]") + "}"),
    "NaN": text('{"layer.weight":' + ENTRY.replace("12]", "NaN]") + "}"),
    "a name twice": text('{"layer.weight":' + ENTRY + ',"layer.weight":' + ENTRY + "}"),
    "a field twice": text('{"layer.weight":' + ENTRY[:-1] + ',"dtype":"F16"}}'),
    "half a surrogate": text('{"\\ud800":' + ENTRY + "}"),
    "metadata of numbers": raw_header({"__metadata__": {"a": 1}, "layer.weight": GOOD}) + bytes(12),
    "metadata alone": text('{"__metadata__":{}}', 0),
    "no tensor": text("{}", 0),
    "an entry that is null": text('{"layer.weight":null}'),
    "an entry that is a list": text('{"layer.weight":[]}'),
    "no dtype": text('{"layer.weight":{"shape":[],"data_offsets":[0,12]}}'),
    "a byte too many": header() + b"\0",
    "a byte too few": header()[:-1],
    "far away": header(data_offsets=[1 << 62, (1 << 62) + 12]),
    "backwards": header(data_offsets=[12, 0]),
    "offsets that are floats": header(data_offsets=[0.0, 12.0]),
    "offsets that are bools": header(data_offsets=[False, True]),
    "one offset": header(data_offsets=[12]),
    "three offsets": header(data_offsets=[0, 6, 12]),
    "offsets that are strings": header(data_offsets=["0", "12"]),
    "extents that are floats": header(shape=[2.0, 3.0]),
    "extents that are bools": header(shape=[True, 6]),
    "an extent below zero": header(shape=[-2, -3]),
    "extents that are strings": header(shape="23"),
    "a product that overflows": header(shape=[1 << 40] * 3),
    "a product that wraps": header(shape=[(1 << 63) + 3, 2]),
    **{
        f"nothing of {name}": header(shape=shape, data_offsets=[0, 0])[:-12]
        for name, shape in {
            "2^64 - 1": [WHOLE, 0],
            "2^64 - 1, turned around": [0, WHOLE],
            "2^63": [1 << 63, 0],
            "more than a number": [WHOLE, WHOLE, 0],
            "many extents": [0] * 10_000,
        }.items()
    },
    "many extents": header(shape=[2, 3] + [1] * 10_000),
    **{
        f"{dtype} {shape}": raw_header(
            {"layer.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
        )
        + bytes(size)
        for dtype, shape, size in [
            ("F4", [2], 1),
            ("F4", [3], 2),
            ("F4", [2, 4], 4),
            ("F4", [], 0),
            ("F4", [0], 0),
            ("F6_E2M3", [4], 3),
            ("F6_E3M2", [4], 3),
            ("F6_E3M2", [1], 1),
            ("F8_E8M0", [1], 1),
            ("F8_E4M3FNUZ", [2, 0], 0),
            ("C64", [1], 8),
            ("BOOL", [3], 3),
            ("X", [1], 1),
            ("X", [], 0),
            ("X", [0], 5),
            ("", [1], 1),
            ("bf16", [1], 2),
            ("F16\n", [1], 2),
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_of_anything_ends_with_an_answer(
    name: str, source: Path, dest: Path, tmp_path: Path, run: Run
) -> None:
    verify = ("verify", source, dest, "--device", "cpu", "--loader")
    (dest / SHARD).write_bytes(SHARDS[name])
    for loader in ("safetensors", "transformers"):
        run(*verify, loader, codes=(1, 65))
    run("inspect", dest)
    (source / INDEX).unlink()
    (source / SHARD).write_bytes(SHARDS[name])
    run("convert", source, tmp_path / "new", "--to", "fp16", "--verify", "cpu")
    for loader in ("safetensors", "transformers"):
        run(*verify, loader, codes=(1, 65))
    run("inspect", source, "--tensors")


def wrongs(document: Any, wrong: list[Any]) -> Iterator[Any]:
    """`document` with each of its values replaced by each of `wrong`, or left out."""
    yield from wrong
    for key in document if isinstance(document, dict) else range(len(document)):
        without = copy.copy(document)
        del without[key]
        yield without
        inner = document[key]
        for value in wrongs(inner, wrong) if isinstance(inner, dict | list) else wrong:
            changed = copy.copy(document)
            changed[key] = value
            yield changed


DEEP = '{"options":' * 50_000
TEXTS = ["", "{", "[" * 200_000, DEEP, "NaN", "1" * 5000, "\ufeff{}", "\0", "{}{}", '{"a":1,"a":2}']


# Of the wrong values in all places, a third for each test.
THIRDS = pytest.mark.parametrize("third", [0, *slow(1, 2)])


def shared(texts: list[str], third: int) -> list[str]:
    """A third of `texts` by chance, the same one every time."""
    mixed = random.Random(0).sample(texts, len(texts))
    return mixed[third::3]


@THIRDS
def test_a_report_of_anything_ends_with_an_answer(
    third: int, source: Path, dest: Path, run: Run
) -> None:
    report = json.loads((dest / "recast.json").read_text())
    # The rest is of no interest to anyone, and takes long.
    report = {
        key: report[key] for key in ("options", "published_files", "audit", "to", "schema_version")
    }
    report["published_files"] = report["published_files"][:1]
    report["options"]["keep"] = ["*"]
    texts = shared([json.dumps(wrong) for wrong in wrongs(report, WRONG)], third)
    many = copy.deepcopy(report)
    many["options"]["keep"] = ["re:x{1000}"] * 100_000
    for text in [*TEXTS, *texts, json.dumps(many)]:
        (dest / "recast.json").write_text(text)
        run("inspect", dest)
        run("verify", source, dest, "--device", "cpu", codes=(0, 1))


@THIRDS
def test_an_index_of_anything_ends_with_an_answer(
    third: int, source: Path, dest: Path, run: Run
) -> None:
    index = json.loads((dest / INDEX).read_text())
    many = {"metadata": {}, "weight_map": {f"w{number}": "x" for number in range(10_000)}}
    texts = shared([json.dumps(wrong) for wrong in wrongs(index, WRONG)], third)
    for text in [*TEXTS, *texts, json.dumps(many)]:
        (dest / INDEX).write_text(text)
        run("verify", source, dest, "--device", "cpu", codes=(0, 1))
        run("verify", source, dest, "--device", "cpu", "--json", codes=(0, 1))
        run("inspect", dest)


@THIRDS
def test_a_config_of_anything_ends_with_an_answer(
    third: int, saved: Save, tmp_path: Path, run: Run
) -> None:
    dest = tmp_path / "out"
    recast.convert(saved("llama", "fp32"), dest, to="bf16", sync=False)
    config = json.loads((dest / "config.json").read_text())
    wrong = [None, True, -1, 0.5, HUGE, 10**4000, "x\n", [], ["x"], [5], {}, {"": None}]
    texts = shared([json.dumps(wrong) for wrong in wrongs(config, wrong)], third)
    for text in [*TEXTS, *texts]:
        (dest / "config.json").write_text(text)
        run("verify", saved("llama", "fp32"), dest, "--device", "cpu", "--loader", "transformers")
    run("inspect", dest)


@pytest.mark.parametrize("loader", ["safetensors", "transformers"])
def test_a_tree_of_anything_ends_with_an_answer(
    loader: str, source: Path, dest: Path, run: Run
) -> None:
    verify = ("verify", source, dest, "--device", "cpu", "--loader", loader)
    for name in (SHARD, INDEX, "config.json", "recast.json"):
        data = (dest / name).read_bytes()
        (dest / name).unlink()
        run(*verify)
        (dest / name).mkdir()
        run(*verify)
        (dest / name / name).write_bytes(data)
        run(*verify)
        run("inspect", dest)
        (dest / name / name).unlink()
        (dest / name).rmdir()
        for target in ("nowhere", name, "/dev/null", "/proc/self/mem", "/proc/self/environ"):
            (dest / name).symlink_to(target)
            run(*verify)
            run("inspect", dest)
            (dest / name).unlink()
        (dest / name).write_bytes(data)
    rows = [("w", "U8", [1], b"x")]
    for folder in ("a", ".hidden", "b/c"):
        (dest / folder).mkdir(parents=True)
        (dest / folder / SHARD).write_bytes(raw_bytes(rows))
    (dest / "b" / "up").symlink_to("..")
    assert "is unexpected: " in run(*verify, codes=(1,))
