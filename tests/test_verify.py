"""`recast.verify`: a good result passes, and every planted fault is found and named."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from conftest import Save
from recast.options import FloatName, OnOverflow
from recast.verification import values
from recast.verification.loaders.safetensors import Safetensors
from recast.verification.result import Mismatch
from support import files, raw_bytes, stored
from tensors import floats

Plant = Callable[[Path], object]
SHARD = "model.safetensors"
BLOCK = 4096


def rewrite(path: Path, change: Callable[[dict[str, list[Any]]], object]) -> None:
    """Writes a shard again, its tensors changed and still in order, without any library."""
    tensors: dict[str, list[Any]] = {name: list(row) for name, row in stored(path).items()}
    change(tensors)
    rows = [(name, dtype, shape, data) for name, (dtype, shape, data) in tensors.items()]
    path.write_bytes(raw_bytes(rows, {"format": "pt"}, pad_to=8))


def flip(path: Path, name: str, element: int, bit: int) -> None:
    """Flips one bit of an element of 16 bits."""

    def change(tensors: dict[str, list[Any]]) -> None:
        data = bytearray(tensors[name][2])
        data[2 * element + bit // 8] ^= 1 << bit % 8
        tensors[name][2] = bytes(data)

    rewrite(path, change)


def put(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def bits(*patterns: int) -> bytes:
    return struct.pack(f"<{len(patterns)}I", *patterns)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """fp32 tensors of every kind, of two blocks and more, with an index and a config."""
    path = tmp_path / "model"
    path.mkdir()
    random = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(5 * BLOCK, generator=random) for name in ("a", "b", "keep")}
    special = bits(0x7FC00001, 0xFFC00000, 0x7F800000, 0xFF800000, 0x80000000, 0, 1, 0x3F800000)
    rows = [(name, "F32", [5, BLOCK], data.numpy().tobytes()) for name, data in weights.items()]
    rows += [("special", "F32", [8], special), ("scalar", "F32", [], bits(0x40490FDB))]
    rows += [("ids", "I64", [4], bytes(range(32))), ("none", "F32", [0, 7], b"")]
    (path / SHARD).write_bytes(raw_bytes(rows, {"format": "pt"}, pad_to=8))
    facts = {"total_size": 5, "made_by": "x"}
    index = {"metadata": facts, "weight_map": {row[0]: SHARD for row in rows}}
    (path / f"{SHARD}.index.json").write_text(json.dumps(index))
    parts = {"torch_dtype": "float32", "sizes": [1, 2.5]}
    config = {"model_type": "x", "dtype": "float32", "layers": 2, "text_config": parts}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text('{"words": ["the"]}'[:17])
    return path


@pytest.fixture
def result(source: Path, tmp_path: Path) -> Path:
    """`source`, converted to bf16 with one tensor kept."""
    recast.convert(source, tmp_path / "out", to="bf16", keep=["keep"], sync=False)
    return tmp_path / "out"


def check(source: Path, dest: Path, **options: Any) -> recast.Verification:
    return recast.verify(source, dest, device="cpu", **options)


@pytest.mark.parametrize("options", [{"full": True}, {}, {"samples": 0}])
def test_a_good_result_passes(options: dict[str, Any], source: Path, result: Path) -> None:
    found = check(source, result, **options)
    assert found.passed, found.failures()
    assert (found.tensors_checked, found.notes) == (7, [])
    every = 3 * 5 * BLOCK + 8 + 1 + 4
    assert found.values_checked == (3 * 2 * BLOCK + 13 if options == {"samples": 0} else every)


@pytest.mark.parametrize("to", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_transformers_saved_and_recast_converted_passes(
    dtype: str, kind: str, to: FloatName, saved: Save, tmp_path: Path
) -> None:
    recast.convert(saved(kind, dtype), tmp_path / "out", to=to, sync=False)
    for options in ({"full": True}, {"loader": "transformers"}):
        found = check(saved(kind, dtype), tmp_path / "out", **options)
        assert found.passed, found.failures()
        assert found.memory is not None
        figures = (found.memory.requested, found.memory.allocated, found.memory.reserved)
        assert all(figure.measured is None for figure in figures)


def test_what_torch_cast_and_saved_passes_without_a_report(source: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    out = tmp_path / "out"
    out.mkdir()
    weights = load_file(source / SHARD)
    cast = {n: t.half() if t.is_floating_point() and n != "keep" else t for n, t in weights.items()}
    save_file(cast, out / SHARD, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in cast.values())
    put_index = json.loads((source / f"{SHARD}.index.json").read_text())
    put_index["metadata"]["total_size"] = total
    (out / f"{SHARD}.index.json").write_text(json.dumps(put_index))
    (out / "config.json").write_text(
        (source / "config.json").read_text().replace("float32", "float16")
    )
    (out / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    found = check(source, out, full=True)
    assert found.passed, found.failures()
    assert found.to == "fp16"
    assert any("keep" in note for note in found.notes)


def truncate(out: Path) -> None:
    """Casts again, by dropping the low half instead of rounding."""
    truth = stored(out.parent / "model" / SHARD)

    def change(tensors: dict[str, list[Any]]) -> None:
        for name in ("a", "b"):
            data = truth[name][2]
            tensors[name][2] = b"".join(data[at + 2 : at + 4] for at in range(0, len(data), 4))

    rewrite(out / SHARD, change)


def swap(out: Path) -> None:
    def change(tensors: dict[str, list[Any]]) -> None:
        tensors["a"][2], tensors["b"][2] = tensors["b"][2], tensors["a"][2]

    rewrite(out / SHARD, change)


def special(element: int, pattern: int) -> Plant:
    """Puts 16 bits into an element of the tensor of special values."""

    def plant(out: Path) -> None:
        def change(tensors: dict[str, list[Any]]) -> None:
            data = bytearray(tensors["special"][2])
            data[2 * element : 2 * element + 2] = struct.pack("<H", pattern)
            tensors["special"][2] = bytes(data)

        rewrite(out / SHARD, change)

    return plant


def tensor(name: str, place: int, value: object) -> Plant:
    def change(tensors: dict[str, list[Any]]) -> None:
        assert tensors[name][place] != value
        tensors[name][place] = value

    return lambda out: rewrite(out / SHARD, change)


def edited(name: str, old: str, new: str) -> Plant:
    return lambda out: put(out / name, old, new)


def fp16_instead(out: Path) -> None:
    def change(tensors: dict[str, list[Any]]) -> None:
        data = torch.frombuffer(bytearray(tensors["a"][2]), dtype=torch.bfloat16)
        tensors["a"][0], tensors["a"][2] = "F16", data.half().numpy().tobytes()

    rewrite(out / SHARD, change)


FAULTS: dict[str, tuple[Plant, str]] = {
    "a flipped bit in the first value": (lambda out: flip(out / SHARD, "a", 0, 0), "a in"),
    "a flipped bit in the middle": (lambda out: flip(out / SHARD, "b", 3 * BLOCK + 7, 3), "12,295"),
    "a flipped sign in the last value": (
        lambda out: flip(out / SHARD, "a", 5 * BLOCK - 1, 15),
        "a",
    ),
    "a flipped bit of a scalar": (lambda out: flip(out / SHARD, "scalar", 0, 8), "scalar"),
    "a truncating cast": (truncate, "more in this tensor"),
    "a swapped pair": (swap, "b in"),
    "NaN became infinite": (special(0, 0x7F80), "special"),
    "infinite became NaN": (special(2, 0x7FC0), "special"),
    "infinite lost its sign": (special(3, 0x7F80), "special"),
    "minus zero became zero": (special(4, 0), "0x8000"),
    "a subnormal was flushed": (special(7, 0), "special"),
    "an integer changed": (tensor("ids", 2, bytes(32)), "ids"),
    "a kept value changed": (tensor("keep", 2, bytes(5 * BLOCK * 4)), "keep"),
    "another shape": (tensor("a", 1, [BLOCK, 5]), "shape"),
    "another dtype": (fp16_instead, "F16"),
    "a dropped tensor": (lambda out: rewrite(out / SHARD, lambda t: t.pop("b")), "'b'"),
    "an extra tensor": (
        lambda out: rewrite(out / SHARD, lambda t: t.update(c=["U8", [1], b"x"])),
        "'c'",
    ),
    "a cut file": (lambda out: (out / SHARD).write_bytes((out / SHARD).read_bytes()[:-1]), SHARD),
    "a wrong config dtype": (edited("config.json", '"dtype": "bfloat', '"dtype": "float'), "dtype"),
    "a wrong nested dtype": (
        edited("config.json", 'torch_dtype": "bfloat16', 'torch_dtype": "float32'),
        "text_config.torch_dtype",
    ),
    "a config without dtype": (edited("config.json", '"dtype"', '"old"'), "dtype"),
    "a config that is not JSON": (edited("config.json", "{", "["), "config.json"),
    "a wrong total_size": (edited(f"{SHARD}.index.json", '_size": ', '_size": 1'), "total_size"),
    "a wrong shard in the index": (edited(f"{SHARD}.index.json", f'"a": "{SHARD}', '"a": "x'), "x"),
    "a tensor not in the index": (
        edited(f"{SHARD}.index.json", f', "b": "{SHARD}"', ""),
        "same shards",
    ),
    "a stale shard": (
        lambda out: (out / "old.safetensors").write_bytes((out / SHARD).read_bytes()),
        "old.safetensors",
    ),
    "a stale index": (
        lambda out: (out / "old.safetensors.index.json").write_text("{}"),
        "old.safetensors.index.json",
    ),
    "a missing file": (lambda out: (out / "tokenizer.json").unlink(), "tokenizer.json"),
    "a tampered tokenizer": (
        edited("tokenizer.json", "the", "thx"),
        "tokenizer.json is not the source's: they differ from byte 14 on",
    ),
    "a longer tokenizer": (
        lambda out: (out / "tokenizer.json").write_text("{} "),
        "tokenizer.json has 3 bytes, expected 17",
    ),
    "a tensor twice, with other values": (
        lambda out: (out / "model-2.safetensors").write_bytes(
            raw_bytes([("b", "BF16", [5, BLOCK], bytes(10 * BLOCK))], {"format": "pt"}, pad_to=8)
        ),
        f"tensor 'b' in model-2.safetensors is a second copy: the source has it only in {SHARD}",
    ),
}


@pytest.mark.parametrize("report", [True, False], ids=["report", "inferred"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_full_verification_finds_and_names_every_planted_fault(
    fault: str, report: bool, source: Path, result: Path
) -> None:
    plant, says = FAULTS[fault]
    plant(result)
    if not report:
        (result / "recast.json").unlink()
    found = check(source, result, full=True)
    assert not found.passed
    assert any(says in failure for failure in found.failures()), found.failures()
    printed = json.loads(found.to_json())
    assert printed["passed"] is False
    assert printed["mismatches"] or printed["problems"]


def test_a_mismatch_names_tensor_index_source_value_and_bits(source: Path, result: Path) -> None:
    special(7, 0x3F81)(result)
    (mismatch,) = check(source, result, full=True).mismatches
    assert mismatch == Mismatch(
        tensor="special",
        file=SHARD,
        index=7,
        source="1.0",
        source_bits="0x3F800000",
        expected_bits="0x3F80",
        found_bits="0x3F81",
        count=1,
        compared=8,
    )


@pytest.mark.parametrize("pattern", [0x7FC0, 0xFFFF, 0x7F81])
def test_nan_may_have_any_payload(pattern: int, source: Path, result: Path) -> None:
    special(1, pattern)(result)
    assert check(source, result, full=True).passed


@pytest.mark.parametrize("at", [0, BLOCK - 1, 4 * BLOCK, 5 * BLOCK - 1])
def test_both_ends_of_every_tensor_are_always_compared(at: int, source: Path, result: Path) -> None:
    flip(result / SHARD, "a", at, 0)
    assert not check(source, result, samples=0).passed


def test_sampling_finds_a_wrong_value_as_often_as_documented(tmp_path: Path) -> None:
    blocks, samples, tries = 40, 10, 200
    elements = (blocks + 2) * BLOCK
    (tmp_path / "source.safetensors").write_bytes(
        raw_bytes([("w", "F32", [elements], bytes(4 * elements))], {"format": "pt"}, pad_to=8)
    )
    recast.convert(tmp_path / "source.safetensors", tmp_path / "out", to="bf16", sync=False)
    positions = torch.randint(BLOCK, elements - BLOCK, (tries,), generator=torch.Generator())
    path = tmp_path / "out" / "source.safetensors"
    data = path.read_bytes()
    start, hits = len(data) - 2 * elements, 0
    for seed, position in enumerate(positions.tolist()):
        wrong = bytearray(data)
        wrong[start + 2 * position] ^= 1
        path.write_bytes(wrong)
        found = check(tmp_path / "source.safetensors", tmp_path / "out", samples=samples, seed=seed)
        assert found.values_checked == (samples + 2) * BLOCK
        hits += not found.passed
    chance = samples / blocks
    deviation = (tries * chance * (1 - chance)) ** 0.5
    assert abs(hits - tries * chance) < 4 * deviation


def test_a_seed_draws_the_same_blocks_again(source: Path, result: Path) -> None:
    flip(result / SHARD, "a", 2 * BLOCK + 5, 0)
    verdicts = [
        [check(source, result, samples=1, seed=seed).passed for seed in range(12)] for _ in range(2)
    ]
    assert verdicts[0] == verdicts[1]
    assert set(verdicts[0]) == {True, False}


@pytest.mark.parametrize("elements", [1, BLOCK, 2 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK - 1, 9 * BLOCK])
@pytest.mark.parametrize("samples", [None, 0, 1, 5, 99])
def test_what_is_compared_never_overlaps_and_lies_inside(
    elements: int, samples: int | None
) -> None:
    import random

    chosen = values.ranges(elements, samples, random.Random(elements))
    seen = [index for start, end in chosen for index in range(start, end)]
    assert seen == sorted(set(seen))
    assert set(seen) <= set(range(elements))
    assert {0, elements - 1} <= set(seen)
    if samples is None or samples == 99:
        assert len(seen) == elements
    again = [piece for batch in values.batches(chosen, 1000) for piece in batch]
    assert [index for start, end in again for index in range(start, end)] == seen


@pytest.mark.parametrize(
    ("dtype", "data"), [("F32", bits(0x47C35000, 0xFF800000)), ("BF16", b"\xc4\x47\x80\xff")]
)
def test_saturation_is_expected_where_it_was_asked_for(
    dtype: str, data: bytes, tmp_path: Path
) -> None:
    source = tmp_path / SHARD
    source.write_bytes(raw_bytes([("w", dtype, [2], data)], {"format": "pt"}, pad_to=8))
    largest: dict[OnOverflow, bytes] = {"saturate": b"\xff\x7b", "inf": b"\x00\x7c"}
    for policy, first in largest.items():
        recast.convert(source, tmp_path / policy, to="fp16", on_overflow=policy, sync=False)
        assert stored(tmp_path / policy / SHARD)["w"][2] == first + b"\x00\xfc"
        assert check(source, tmp_path / policy).passed
    (tmp_path / "saturate" / SHARD).write_bytes((tmp_path / "inf" / SHARD).read_bytes())
    assert not check(source, tmp_path / "saturate").passed


def test_tensors_torch_cannot_hold_are_compared_as_files(tmp_path: Path) -> None:
    rows = [("six", "F6_E2M3", [4], b"abc"), ("four", "F4", [4], b"de"), ("w", "F32", [1], bits(0))]
    (tmp_path / SHARD).write_bytes(raw_bytes(rows, {"format": "pt"}, pad_to=8))
    recast.convert(tmp_path / SHARD, tmp_path / "out", to="bf16", skip_quantized=True, sync=False)
    found = check(tmp_path / SHARD, tmp_path / "out")
    assert found.passed, found.failures()
    assert found.values_checked == 9
    for name, spoiled in (("six", b"abd"), ("four", b"df")):
        before = (tmp_path / "out" / SHARD).read_bytes()
        tensor(name, 2, spoiled)(tmp_path / "out")
        assert not check(tmp_path / SHARD, tmp_path / "out").passed
        (tmp_path / "out" / SHARD).write_bytes(before)


def test_a_tensor_that_is_not_loaded_is_compared_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "CHUNK", 4096)
    monkeypatch.setattr(Safetensors, "find", lambda self, key: None)
    half = floats(5000).half()
    row = ("w", "F16", [5000], half.numpy().tobytes())
    (tmp_path / SHARD).write_bytes(raw_bytes([row], {"format": "pt"}, pad_to=8))
    recast.convert(tmp_path / SHARD, tmp_path / "out", to="fp32", sync=False)
    found = check(tmp_path / SHARD, tmp_path / "out")
    assert found.passed, found.failures()
    assert found.values_checked == 5000


def test_verifying_changes_nothing(source: Path, result: Path) -> None:
    before = {path: path.read_bytes() for path in result.iterdir()}
    names = files(source)
    check(source, result, full=True)
    assert {path: path.read_bytes() for path in result.iterdir()} == before
    assert files(source) == names
