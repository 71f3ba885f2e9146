"""A converted file is, byte for byte, the one the official writer makes of torch's casts."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import recast
import torch
from conftest import Save
from recast.options import FloatName
from safetensors.torch import load_file, save_file
from support import STORED, header_of, raw_bytes, stored
from tensors import DTYPES, floats

PAIRS = list(itertools.product(DTYPES, DTYPES))
Tensors = dict[str, torch.Tensor]


def cast_by_torch(
    tensors: Tensors, to: FloatName, kept: Callable[[str], bool] | None = None
) -> Tensors:
    def one(name: str, tensor: torch.Tensor) -> torch.Tensor:
        castable = (*DTYPES.values(), torch.float64)
        if tensor.dtype not in castable or (kept and kept(name)):
            return tensor
        return tensor.to(DTYPES[to])

    return {name: one(name, tensor) for name, tensor in tensors.items()}


def assert_official(converted: Path, tensors: Tensors, judge: Path) -> None:
    """`converted` is what `save_file` writes for `tensors`."""
    save_file(tensors, judge, {"format": "pt"})
    assert converted.read_bytes() == judge.read_bytes()


@pytest.mark.parametrize(("source", "to"), PAIRS)
@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_a_model_saved_by_transformers_becomes_the_official_writers_file(
    kind: str, source: str, to: FloatName, saved: Save, tmp_path: Path
) -> None:
    original = saved(kind, source)
    recast.convert(original, tmp_path / "out", to=to, sync=False)
    shards = sorted(original.glob("*.safetensors"))
    assert len(shards) > 1 if kind == "llama" else len(shards) == 1
    for shard in shards:
        # transformers, too, keeps these of the T5 family in the dtype they have.
        kept = (lambda name: ".wo." in name) if (kind, to) == ("t5", "fp16") else None
        expected = cast_by_torch(load_file(shard), to, kept)
        assert_official(tmp_path / "out" / shard.name, expected, tmp_path / "judge")


@pytest.mark.parametrize(("source", "to"), PAIRS)
def test_without_the_keep_list_every_float_of_a_t5_is_cast(
    source: str, to: FloatName, saved: Save, tmp_path: Path
) -> None:
    original = saved("t5", source)
    report = recast.convert(original, tmp_path / "out", to=to, auto_keep=False, sync=False)
    assert report.tensors["kept"] == 0
    expected = cast_by_torch(load_file(original / "model.safetensors"), to)
    assert_official(tmp_path / "out" / "model.safetensors", expected, tmp_path / "judge")


def test_a_bert_has_a_buffer_of_integers_and_a_t5_an_output_projection(saved: Save) -> None:
    bert = load_file(saved("bert", "fp32") / "model.safetensors")
    assert bert["embeddings.position_ids"].dtype == torch.int64
    t5 = load_file(saved("t5", "fp32") / "model.safetensors")
    assert any(".wo." in name for name in t5)
    assert "lm_head.weight" not in t5


def hard_values(source: str) -> torch.Tensor:
    """Every value a 16-bit source has, NaN aside; for fp32 those at the edges, and random bits."""
    if source == "fp32":
        bits = np.random.default_rng(0).integers(0, 1 << 32, 60_000, dtype=np.uint32)
        edges = np.array([0, 1, 0x33000000, 0x33000001, 0x387FC000, 0x38800000], np.uint32)
        high = np.array([0x477FEFFF, 0x477FF000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF], np.uint32)
        ties = np.arange(0x3F800000, 0x3F840000, 0x800, dtype=np.uint32)
        subnormal = np.arange(0, 0x00900000, 4097, dtype=np.uint32)
        half = np.concatenate([bits, edges, high, np.array([0x7F800000], np.uint32)])
        half = np.concatenate([half, ties, ties + 1, ties - 1, subnormal])
        wide = np.concatenate([half, half | np.uint32(1 << 31)]).view(np.float32)
        return torch.from_numpy(wide[~np.isnan(wide)])
    values = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.int16))
    values = values.view(DTYPES[source])
    return values[~values.isnan()].clone()


@pytest.mark.parametrize(("source", "to"), PAIRS)
def test_every_hard_value_is_rounded_as_torch_rounds_it(
    source: str, to: FloatName, tmp_path: Path
) -> None:
    tensors = {"hard": hard_values(source)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    recast.convert(
        tmp_path / "model.safetensors", tmp_path / "out", to=to, on_overflow="inf", sync=False
    )
    expected = cast_by_torch(tensors, to)
    assert_official(tmp_path / "out" / "model.safetensors", expected, tmp_path / "judge")


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_every_hard_value_is_rounded_as_numpy_and_ml_dtypes_round_it(
    to: FloatName, tmp_path: Path
) -> None:
    values = hard_values("fp32")
    save_file({"hard": values}, tmp_path / "model.safetensors")
    recast.convert(
        tmp_path / "model.safetensors", tmp_path / "out", to=to, on_overflow="inf", sync=False
    )
    dtype = np.float16 if to == "fp16" else ml_dtypes.bfloat16
    with np.errstate(over="ignore"):
        expected = values.numpy().astype(dtype).tobytes()
    assert stored(tmp_path / "out" / "model.safetensors")["hard"][2] == expected


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_bytes_do_not_depend_on_the_number_of_threads(threads: int, tmp_path: Path) -> None:
    # More than a piece of 1 MiB, and not a whole number of them.
    tensors = {"a": floats(700_001), "b": floats(300_003, 1), "c": floats(1, 2)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    recast.convert(
        tmp_path / "model.safetensors", tmp_path / "out", to="bf16", threads=threads, sync=False
    )
    expected = cast_by_torch(tensors, "bf16")
    assert_official(tmp_path / "out" / "model.safetensors", expected, tmp_path / "judge")


@pytest.mark.parametrize("to", DTYPES)
def test_a_file_of_every_dtype_changes_only_its_floats(to: FloatName, tmp_path: Path) -> None:
    names = "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 uint16 uint32 uint64 "
    names += "bool complex64 float8_e4m3fn float8_e5m2"
    tensors = {name: (floats(15) * 9).to(getattr(torch, name)) for name in names.split()}
    # Values that recast must not so much as look at.
    tensors["complex64"] = torch.tensor([3e38j, complex("nan"), 1 + 2**-20])
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    # What is fp8 without a scale is refused otherwise.
    options: dict[str, Any] = {"to": to, "sync": False, "skip_quantized": True}
    recast.convert(tmp_path / "model.safetensors", tmp_path / "out", **options)
    expected = cast_by_torch(tensors, to)
    assert_official(tmp_path / "out" / "model.safetensors", expected, tmp_path / "judge")


@pytest.mark.parametrize("to", DTYPES)
def test_empty_tensors_and_scalars_keep_their_shape(to: FloatName, tmp_path: Path) -> None:
    shapes = [(0,), (0, 3), (3, 0), (2, 0, 5), (), (1,), (1, 1, 1)]
    tensors = {
        f"{name} {shape}": torch.full(shape, 0.1, dtype=dtype)
        for shape in shapes
        for name, dtype in DTYPES.items()
    }
    tensors |= {f"int {shape}": torch.zeros(shape, dtype=torch.int64) for shape in shapes}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    recast.convert(tmp_path / "model.safetensors", tmp_path / "out", to=to, sync=False)
    expected = cast_by_torch(tensors, to)
    assert_official(tmp_path / "out" / "model.safetensors", expected, tmp_path / "judge")


def test_a_file_without_tensors_is_converted(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors", {"format": "pt"})
    recast.convert(tmp_path / "model.safetensors", tmp_path / "out", to="bf16", sync=False)
    assert_official(tmp_path / "out" / "model.safetensors", {}, tmp_path / "judge")


STRANGE = ['"quoted"', "back\\slash", "größe 重み \U0001f600", "tab\tnewline\n", "\x01\x1f\x7f\x80"]
STRANGE += ["", " ", "a/../b", "{}", "a\u2028b", "__metadata", "x" * 5000]


@pytest.mark.parametrize("to", ["fp16", "fp32"])
def test_strange_tensor_names_are_written_as_the_official_writer_does(
    to: FloatName, tmp_path: Path
) -> None:
    tensors = {name: floats(3, seed) for seed, name in enumerate(STRANGE)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    recast.convert(tmp_path / "model.safetensors", tmp_path / "out", to=to, sync=False)
    expected = cast_by_torch(tensors, to)
    assert_official(tmp_path / "out" / "model.safetensors", expected, tmp_path / "judge")


@pytest.mark.parametrize(("source", "to"), PAIRS)
@pytest.mark.parametrize("shift", [1, 3, 5, 7])
def test_tensors_may_start_at_any_byte(
    source: str, to: FloatName, shift: int, tmp_path: Path
) -> None:
    values = floats(1001).to(DTYPES[source])
    data = values.view(torch.uint8).numpy().tobytes()
    flags = torch.ones(shift, dtype=torch.bool)
    rows = [
        ("flags", "BOOL", [shift], flags.numpy().tobytes()),
        ("weight", STORED[source], [7, 143], data),
        ("bytes", "U8", [1], b"\x07"),
        ("again", STORED[source], [1001], data),
    ]
    written = raw_bytes(rows, {"format": "pt"}, pad_to=2 if shift == 3 else 1)
    (tmp_path / "model.safetensors").write_bytes(written)
    recast.convert(tmp_path / "model.safetensors", tmp_path / "out", to=to, sync=False)
    tensors = {
        "flags": flags,
        "weight": values.reshape(7, 143),
        "bytes": torch.tensor([7], dtype=torch.uint8),
        "again": values.clone(),
    }
    expected = cast_by_torch(tensors, to)
    assert_official(tmp_path / "out" / "model.safetensors", expected, tmp_path / "judge")


@pytest.mark.parametrize("spaces", [0, 1, 2, 3])
def test_a_header_of_any_length_is_read(spaces: int, tmp_path: Path) -> None:
    values = floats(33)
    rows = [("w" * (1 + spaces), "F32", [33], values.numpy().tobytes())]
    (tmp_path / "model.safetensors").write_bytes(raw_bytes(rows))
    recast.convert(tmp_path / "model.safetensors", tmp_path / "out", to="fp16", sync=False)
    expected = {"w" * (1 + spaces): values.half()}
    assert_official(tmp_path / "out" / "model.safetensors", expected, tmp_path / "judge")


def test_tensors_in_any_order_come_out_in_the_official_one(tmp_path: Path) -> None:
    tensors = {name: floats(5, seed) for seed, name in enumerate(["zebra", "ant", "mule"])}
    tensors["count"] = torch.tensor(3)
    rows = [
        ("ant", "F32", [5], tensors["ant"].numpy().tobytes()),
        ("zebra", "F32", [5], tensors["zebra"].numpy().tobytes()),
        ("count", "I64", [], tensors["count"].numpy().tobytes()),
        ("mule", "F32", [5], tensors["mule"].numpy().tobytes()),
    ]
    (tmp_path / "model.safetensors").write_bytes(raw_bytes(rows))
    recast.convert(tmp_path / "model.safetensors", tmp_path / "out", to="bf16", sync=False)
    expected = cast_by_torch(tensors, "bf16")
    assert_official(tmp_path / "out" / "model.safetensors", expected, tmp_path / "judge")


def test_a_header_in_another_order_than_the_data_is_read(tmp_path: Path) -> None:
    first, second = floats(4, 0), floats(4, 1)
    text = json.dumps(
        {
            "second": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]},
            "first": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        }
    ).encode()
    data = first.numpy().tobytes() + second.numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    recast.convert(tmp_path / "model.safetensors", tmp_path / "out", to="fp16", sync=False)
    expected = {"first": first.half(), "second": second.half()}
    assert_official(tmp_path / "out" / "model.safetensors", expected, tmp_path / "judge")


ORDERED = {"z": "1", "a": 'ö "quoted" \\ \n', "m": "", "license": "MIT"}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, {"format": "pt"}),
        ({}, {"format": "pt"}),
        ({"format": "pt"}, {"format": "pt"}),
        ({"format": "mlx"}, {"format": "mlx"}),
        (ORDERED, {**ORDERED, "format": "pt"}),
        ({"z": "1", "format": "np", "a": "2"}, {"z": "1", "format": "np", "a": "2"}),
    ],
)
def test_metadata_keeps_its_order_and_gets_a_format_only_where_it_has_none(
    metadata: dict[str, str] | None, expected: dict[str, str], tmp_path: Path
) -> None:
    rows = [("w", "F32", [2], floats(2).numpy().tobytes())]
    (tmp_path / "model.safetensors").write_bytes(raw_bytes(rows, metadata))
    recast.convert(tmp_path / "model.safetensors", tmp_path / "out", to="bf16", sync=False)
    header = header_of(tmp_path / "out" / "model.safetensors")
    assert next(iter(header)) == "__metadata__"
    assert list(header["__metadata__"].items()) == list(expected.items())
