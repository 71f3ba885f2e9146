"""What verification says a dequantized weight must be: judged by torch's reader, and by loops."""

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judged import (
    BLOCKS,
    E8M0,
    FP8,
    TARGETS,
    agrees,
    codes,
    found,
    fp4,
    gone,
    loop,
    number,
    packed,
    products,
    save,
    scales,
)
from recast.verification import dequantized, values
from recast.verification.dequantized import Products
from recast.verification.header import Entry
from support import raw_header


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("to", TARGETS)
def test_block_fp8_is_what_torchs_reader_makes_of_it(to: str, tmp_path: Path) -> None:
    dcp: Any = importlib.import_module("torch.distributed.checkpoint")
    shapes = {"a": (256, 256), "ragged": (576, 192), "both": (192, 300), "wide": (1, 130)}
    grids = {name: [-(-extent // 128) for extent in shape] for name, shape in shapes.items()}
    weights = {f"{name}.weight": torch.randn(shape).to(FP8) for name, shape in shapes.items()}
    # In the other shard, as DeepSeek publishes some.
    beside = {f"{name}.weight_scale_inv": scales(*grid) for name, grid in grids.items()}
    where = dict.fromkeys(weights, "model-0.safetensors")
    where |= dict.fromkeys(beside, "model-1.safetensors")
    root = save(tmp_path / "model", weights, beside, config=BLOCKS)
    index = {"metadata": {}, "weight_map": where}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    theirs = {
        f"{name}.weight": torch.zeros(shape, dtype=TARGETS[to]) for name, shape in shapes.items()
    }
    reader = dcp.QuantizedHuggingFaceStorageReader(
        str(root), target_dtype=TARGETS[to], block_size=128
    )
    dcp.load(theirs, storage_reader=reader, no_dist=True)
    ours = found(root)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        made = values.cast(products(ours[name]), TARGETS[to], "error")
        assert torch.equal(made.view(torch.uint8), expected.view(torch.uint8)), name
    assert gone(root) == beside.keys()


SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], Callable[..., tuple[int, ...]]]] = {
    "one": ((6, 10), (), lambda r, c: ()),
    "one in a list": ((6, 10), (1,), lambda r, c: (0,)),
    "one in a matrix": ((6, 10), (1, 1), lambda r, c: (0, 0)),
    "rows": ((6, 10), (6,), lambda r, c: (r,)),
    "rows of one": ((6, 10), (6, 1), lambda r, c: (r, 0)),
    "columns": ((6, 10), (1, 10), lambda r, c: (0, c)),
    "each": ((6, 10), (6, 10), lambda r, c: (r, c)),
    "a square's rows": ((6, 6), (6,), lambda r, c: (r,)),
    "experts' columns": ((3, 4, 6), (3, 1, 6), lambda e, r, c: (e, 0, c)),
    "experts' rows": ((3, 4, 6), (3, 4, 1), lambda e, r, c: (e, r, 0)),
    "experts' rows, flat": ((3, 4, 6), (3, 4), lambda e, r, c: (e, r)),
    "experts": ((3, 4, 6), (3,), lambda e, r, c: (e,)),
    "a convolution's channels": ((3, 4, 2, 2), (3, 1, 1, 1), lambda o, i, h, w: (o, 0, 0, 0)),
    "inner channels": ((3, 4, 2, 2), (1, 4, 1, 1), lambda o, i, h, w: (0, i, 0, 0)),
    "a vector": ((7,), (1,), lambda r: (0,)),
    "a scalar": ((), (), lambda: ()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of", SHAPES)
def test_scales_of_whole_dimensions_need_no_config(
    of: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    shape, own, index = SHAPES[of]
    weight, scale = codes(*shape), scales(*own).to(dtype)
    root = save(tmp_path / "model", {"m.weight": weight, "m.weight_scale": scale})
    expected = loop(shape, lambda *at: (number(weight, *at), number(scale, *index(*at))))
    assert agrees(found(root)["m.weight"], expected)


@pytest.mark.parametrize("spelling", [("_blocks", "_scales"), (".blocks", ".scales")])
def test_gpt_oss_is_as_the_library_has_it_that_spells_it_so(
    spelling: tuple[str, str], tmp_path: Path
) -> None:
    experts, rows, groups = 2, 6, 3
    blocks = packed(experts, rows, groups, 16)
    exponents = torch.randint(0, 255, (experts, rows, groups), dtype=torch.uint8)
    exponents[1, 2, 1], exponents[0, 0, 0] = 255, 0
    name = "mlp.experts.down_proj"
    root = save(
        tmp_path / "model",
        {name + spelling[0]: blocks, name + "_bias": scales(experts, 6)},
        {name + spelling[1]: exponents},
    )
    flat = blocks.reshape(experts, rows, groups * 16)
    expected = loop(
        (experts, rows, 32 * groups),
        lambda e, r, c: (fp4(flat, e, r, c), number(exponents, e, r, c // 32)),
    )
    if spelling[0] == "_blocks":
        # transformers multiplies from the other side than OpenAI's own code.
        expected = np.ascontiguousarray(expected.transpose(0, 2, 1))
    assert np.isnan(expected).any()
    assert agrees(found(root)[name], expected)
    assert gone(root) == {name + spelling[1]}


def test_gpt_oss_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = packed(2, 6, 3, 16)
    exponents = torch.randint(100, 140, (2, 6, 3), dtype=torch.uint8)
    root = save(tmp_path / "model", {"e.w_blocks": blocks, "e.w_scales": exponents})
    made = values.cast(products(found(root)["e.w"]), torch.bfloat16, "error")
    theirs = convert_moe_packed_tensors(blocks, exponents, dtype=torch.bfloat16)
    assert made.shape == theirs.shape
    assert torch.equal(made.view(torch.int16), theirs.contiguous().view(torch.int16))


@pytest.mark.parametrize("scheme", ["compressed-tensors", "modelopt", "modelopt, fused"])
def test_each_nvfp4_has_its_own_formula(scheme: str, tmp_path: Path) -> None:
    rows, columns = 9, 64
    four, eight = packed(rows, columns // 2), codes(rows, columns // 16)
    whole = torch.tensor([3.7e-3])
    divides = scheme == "compressed-tensors"
    tensors = {
        "m.weight_packed" if divides else "m.weight": four,
        "m.weight_scale": eight,
        "m.weight_global_scale" if divides else "m.weight_scale_2": whole,
        "m.input_global_scale" if divides else "m.input_scale": scales(1),
    }
    if scheme == "modelopt, fused":
        names = {"m.weight": "m.w", "m.weight_scale": "m.w_weight_scale"}
        names |= {"m.weight_scale_2": "m.w_weight_scale_2", "m.input_scale": "m.w_input_scale"}
        tensors = {names[name]: tensor for name, tensor in tensors.items()}
    said = {} if divides else {"producer": {"name": "modelopt"}, "quantization": {}}
    root = save(tmp_path / "model", tensors, hf_quant_config=said)

    def scale(row: int, column: int) -> np.float32:
        one, all_ = number(eight, row, column // 16), number(whole, 0)
        return np.float32(one / all_ if divides else one * all_)

    expected = loop((rows, columns), lambda r, c: (fp4(four, r, c), scale(r, c)))
    name = "m.w" if scheme == "modelopt, fused" else "m.weight"
    assert agrees(found(root)[name], expected)
    assert gone(root) == tensors.keys() - {name, "m.weight_packed"}


@pytest.mark.parametrize("kind", ["compressed-tensors", "DeepSeek-V4"])
def test_packed_fp4_of_matrices(kind: str, tmp_path: Path) -> None:
    rows, columns = 5, 96
    four = packed(rows, columns // 2)
    exponents = torch.randint(90, 256, (rows, columns // 32), dtype=torch.uint8)
    tensors = {"m.weight_packed": four, "m.weight_scale": exponents}
    if kind == "DeepSeek-V4":
        tensors = {"m.weight": four.view(torch.int8), "m.scale": exponents.view(E8M0)}
    root = save(tmp_path / "model", tensors)
    expected = loop((rows, columns), lambda r, c: (fp4(four, r, c), number(exponents, r, c // 32)))
    assert agrees(found(root)["m.weight"], expected)
    assert len(gone(root)) == 1


@pytest.mark.parametrize("limits", [{}, {"PIECE": 64, "PAGE": 1}, {"PIECE": 7, "WHOLE": 0}])
@pytest.mark.parametrize("transposed", [True, False])
def test_any_ranges_are_those_of_the_whole(
    transposed: bool, limits: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, exponents = packed(3, 10, 2, 16), torch.randint(90, 150, (3, 10, 2), dtype=torch.uint8)
    tensors = {"m.w_blocks": blocks, "m.w_scales": exponents}
    if not transposed:
        tensors = {"m.w": codes(3, 10, 64), "m.w_scale_inv": scales(3, 3, 3)}
    said = {"quantization_config": {"weight_block_size": [4, 30]}}
    weight = found(save(tmp_path / "model", tensors, config=said))["m.w"]
    whole = products(weight).reshape(-1)
    for name, limit in limits.items():
        monkeypatch.setattr(dequantized, name, limit)
    read = Products(weight, values.Reader("cpu"))
    draw = torch.Generator().manual_seed(1)
    for _ in range(40):
        cuts = sorted(set(torch.randint(0, len(whole) + 1, (6,), generator=draw).tolist()))
        wanted = list(zip(cuts[::2], cuts[1::2], strict=False))
        expected = torch.cat([whole[start:end] for start, end in wanted] or [whole[:0]])
        assert torch.equal(read(wanted).view(torch.int64), expected.view(torch.int64))
    for at in range(0, len(whole), 13):
        assert torch.equal(
            read([(at, at + 1)]).view(torch.int64), whole[at : at + 1].view(torch.int64)
        )


def test_all_exponents_are_powers_of_two_and_the_last_is_nan(tmp_path: Path) -> None:
    exponents = torch.arange(256, dtype=torch.uint8).view(256, 1)
    tensors = {"m.weight": torch.ones(256, 1).to(FP8), "m.weight_scale": exponents}
    made = products(found(save(tmp_path / "model", tensors))["m.weight"]).reshape(-1).tolist()
    assert made[:255] == [2.0 ** (code - 127) for code in range(255)]
    assert math.isnan(made[255])


@pytest.mark.parametrize("to", ["bf16", "fp16"])
def test_torch_rounds_fp64_through_fp32(to: str) -> None:
    # Values that fp32 has, halfway between two of the target, and a little to either side.
    lost = {"bf16": 16, "fp16": 13}[to]
    ties = (torch.randint(0x38800000, 0x47000000, (1 << 14,)) >> lost << lost) | 1 << lost - 1
    exact = ties.int().view(torch.float32).double()
    for off in (2.0**-26, -(2.0**-26), 2.0**-40, -(2.0**-40)):
        x = exact * (1 + off)
        assert (x != exact).all()
        expected = exact.float().to(TARGETS[to])
        for part in (slice(None), slice(3, None, 7), slice(1)):
            assert torch.equal(x[part].to(TARGETS[to]), expected[part])


class CountingReader(values.Reader):
    """Counts the bytes that it reads."""

    bytes = 0

    def read(self, path: Path, entry: Entry, wanted: list[values.Range]) -> torch.Tensor:
        self.bytes += sum(end - start for start, end in wanted) * entry.width
        return super().read(path, entry, wanted)


@pytest.mark.parametrize("kind", ["block", "group", "experts"])
def test_a_sample_of_a_huge_weight_reads_little(kind: str, tmp_path: Path) -> None:
    # 100 GB of zeros, and one code of 1.0 with a scale of 2.0, that nothing is stored for.
    shape, one, of, scale_at = {
        "block": ([1 << 19, 200_000], 0x38, [1 << 12, 1563], 3 * 1563 + 1),
        "group": ([1 << 19, 200_000], 0x38, [1 << 19, 6250], 390 * 6250 + 7),
        "experts": ([1 << 10, 1 << 18, 25, 16], 0x22, [1 << 10, 1 << 18, 25], 390 * 25),
    }[kind]
    dtype, exponent = ("U8", "U8") if kind == "experts" else ("F8_E4M3", "F8_E8M0")
    sizes = [math.prod(shape), math.prod(of)]
    names = ("w_blocks", "w_scales") if kind == "experts" else ("w", "w_scale")
    ends = [(0, sizes[0]), (sizes[0], sum(sizes))]
    header = {
        names[0]: {"dtype": dtype, "shape": shape, "data_offsets": ends[0]},
        names[1]: {"dtype": exponent, "shape": of, "data_offsets": ends[1]},
    }
    path = tmp_path / "model.safetensors"
    row = 400 if kind == "experts" else 200_000
    with path.open("wb") as file:
        start = file.write(raw_header(header))
        file.truncate(start + sum(sizes))
        file.seek(start + 390 * row + (0 if kind == "experts" else 230))
        file.write(bytes([one]))
        file.seek(start + sizes[0] + scale_at)
        file.write(bytes([128]))
    block = [128, 128] if kind == "block" else [1, 32]
    said = {"quantization_config": {"weight_block_size": block}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    weight = found(tmp_path)["w"]
    reader = CountingReader("cpu")
    read = Products(weight, reader)
    at = 390 if kind == "experts" else 390 * 200_000 + 230
    assert read([(at, at + 1)]).tolist() == [2.0]
    if kind == "experts":
        # Both codes of a byte, in the first two columns, which are rows of the result.
        assert read([(at + (1 << 18), at + (1 << 18) + 1)]).tolist() == [2.0]
    last = math.prod(weight.shape)
    assert read([(at - 10, at), (at + 1, at + 4096), (last - 4096, last)]).count_nonzero() == 0
    assert reader.bytes < 10 << 20
