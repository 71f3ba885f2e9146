"""Weights of every shape: ragged blocks of any size, scales that broadcast, matrices of any size
that are transposed. The judge is numpy, which is slow and has no special cases."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from dequantized_pairs import MODELOPT, MXFP4, NVFP4
from dequantizers import Judge, blocks_and_scales, by_numpy, found, packed, scaled
from quantized_formats import FP8
from quantized_models import Tensors, block_config, lay
from recast.options import FloatName, Io

TARGETS: list[FloatName] = ["bf16", "fp16", "fp32"]


def codes(*shape: int) -> torch.Tensor:
    """fp8 of random bits, none of them NaN."""
    bits = torch.randint(0, 256, shape, dtype=torch.uint8)
    return torch.where(bits & 127 == 127, 0, bits).to(torch.uint8).view(FP8)


def same(
    folder: Path, tensors: Tensors, said: dict[str, Any] | None, judge: Judge, *to: FloatName
) -> None:
    config = {} if said is None else {"quantization_config": said}
    source = lay(folder / "in", tensors, config)
    for target in to or TARGETS:
        recast.convert(source, folder / target, to=target, sync=False)
        ours = {name: row[1:] for name, row in found(folder / target).items()}
        expected = judge(source, target)
        assert ours.keys() == expected.keys()
        for name in ours:
            assert ours[name] == expected[name], name


SHAPES = [(1, 1), (3, 5), (7, 33), (33, 7), (64, 64), (65, 129), (1, 300), (300, 1), (130, 260)]
BLOCKS = [(1, 32), (128, 128), (2, 3), (7, 1), (16, 40), (1, 1), (1000, 1000)]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("scale", ["float32", "bfloat16", "float16", "float8_e8m0fnu", "uint8"])
def test_blocks_of_any_size_may_be_ragged(
    block: tuple[int, int], scale: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tensors: Tensors = {}
    for at, shape in enumerate([*SHAPES, (2, 5, 70), (3, 130, 33)]):
        grid = [-(-size // side) for size, side in zip(shape[-2:], block, strict=True)]
        scales = torch.rand(*shape[:-2], *grid)
        if scale == "uint8":
            tensors[f"m{at}.weight_scale_inv"] = (scales * 20 + 110).to(torch.uint8)
        else:
            tensors[f"m{at}.weight_scale_inv"] = (scales + 0.01).to(getattr(torch, scale))
        tensors[f"m{at}.weight"] = codes(*shape)
    same(tmp_path, tensors, block_config(list(block)), scaled(block))


BROADCAST: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    *itertools.product([(6, 8)], [(), (1,), (1, 1), (6, 1), (6,), (1, 8), (6, 8)]),
    ((8, 8), (8,)),
    *itertools.product([(2, 6, 8)], [(), (1,), (2, 1, 1), (2, 6, 1), (2, 1, 8), (2,), (2, 6)]),
    ((4, 3, 2, 2), ()),
    ((4, 3, 2, 2), (4, 3, 1, 1)),
    ((4, 3, 2, 2), (4, 1, 1, 1)),
    ((4, 3, 2, 2), (4,)),
    ((0, 8), (0, 1)),
    ((9,), ()),
    ((0, 8), ()),
    ((1000, 77), (1000, 1)),
]


@pytest.mark.parametrize(("shape", "scale"), BROADCAST)
def test_a_scale_that_broadcasts_needs_no_config(
    shape: tuple[int, ...], scale: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tensors = {"m.weight": codes(*shape), "m.weight_scale": torch.rand(scale) + 0.01}
    same(tmp_path, tensors, None, scaled())


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        *itertools.product([(6, 8)], [(8,), (2,), (3, 1), (1, 4), (3, 4), (0,), (6, 8, 1)]),
        *itertools.product([(2, 6, 8)], [(6,), (6, 1), (3, 1, 1), (2, 3, 4)]),
    ],
)
def test_a_scale_that_does_not_broadcast_is_refused_without_a_config(
    shape: tuple[int, ...], scale: tuple[int, ...], tmp_path: Path
) -> None:
    tensors = {"m.weight": codes(*shape), "m.weight_scale": torch.rand(scale)}
    with pytest.raises(recast.RecastError, match=r"m\.weight"):
        recast.plan(lay(tmp_path / "in", tensors, {}), to="bf16")


# Experts, rows, and groups of 32 columns.
EXPERTS = [(1, 1, 1), (3, 5, 2), (2, 64, 3), (1, 129, 1), (4, 33, 5), (1, 1000, 2), (2, 96, 40)]


@pytest.mark.parametrize("spelling", ["_", "."])
@pytest.mark.parametrize("shape", EXPERTS)
def test_experts_of_any_shape_are_transposed(
    shape: tuple[int, int, int], spelling: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    name = f"model.layers.0.mlp.experts.down_proj{spelling}"
    tensors = {
        f"{name}blocks": torch.randint(0, 256, (*shape, 16), dtype=torch.uint8),
        f"{name}scales": torch.randint(100, 140, shape, dtype=torch.uint8),
    }
    judge = by_numpy(blocks_and_scales, ("[_.]blocks$", ""))
    same(tmp_path, tensors, {"quant_method": "mxfp4"}, judge)


MATRICES = [(1, 1), (3, 3), (65, 5), (2, 40), (128, 9)]


@pytest.mark.parametrize("shape", MATRICES)
def test_packed_matrices_of_any_shape_are_unpacked(shape: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows, groups = shape
    for name, block, said, whole in (
        ("weight_packed", 32, MXFP4, None),
        ("weight_packed", 16, NVFP4, "weight_global_scale"),
        ("weight", 16, MODELOPT, "weight_scale_2"),
    ):
        half = torch.randint(0, 256, (rows, groups * block // 2), dtype=torch.uint8)
        tensors = {f"m.{name}": half, "m.weight_scale": codes(rows, groups)}
        if whole is None:
            scales = torch.randint(100, 140, (rows, groups), dtype=torch.uint8)
            tensors["m.weight_scale"] = scales
        else:
            tensors[f"m.{whole}"] = torch.tensor([0.37])
        folder = tmp_path / f"{name}{block}"
        same(folder, tensors, said, packed(block, whole, name))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_bytes_do_not_depend_on_the_threads_nor_on_how_files_are_read(
    threads: int, tmp_path: Path
) -> None:
    """Weights large enough that they are made in pieces, whose edges are inside of blocks."""
    torch.manual_seed(0)
    tensors = {
        "a.weight": codes(1200, 1031),
        "a.weight_scale_inv": torch.rand(-(-1200 // 24), -(-1031 // 40)),
        "b.weight": codes(3, 700, 900),
        "b.weight_scale": torch.rand(3, 700, 1),
        "c.down_proj_blocks": torch.randint(0, 256, (2, 1100, 21, 16), dtype=torch.uint8),
        "c.down_proj_scales": torch.randint(100, 140, (2, 1100, 21), dtype=torch.uint8),
    }
    config = {"quantization_config": block_config([24, 40])}
    source = lay(tmp_path / "in", tensors, config)
    every = []
    ways: list[Io] = ["read", "mmap"]
    for at, io in enumerate(ways):
        out = tmp_path / f"out{at}"
        recast.convert(source, out, to="bf16", threads=threads, io=io, sync=False)
        every.append({name: row[1:] for name, row in found(out).items()})
    blocks = scaled((24, 40))
    alone = lay(tmp_path / "alone", {k: x for k, x in tensors.items() if k[0] == "a"}, config)
    rows = lay(tmp_path / "rows", {k: x for k, x in tensors.items() if k[0] == "b"}, {})
    experts = lay(tmp_path / "experts", {k: x for k, x in tensors.items() if k[0] == "c"}, {})
    expected = blocks(alone, "bf16") | scaled()(rows, "bf16")
    expected |= by_numpy(blocks_and_scales, ("[_.]blocks$", ""))(experts, "bf16")
    for ours in every:
        assert ours == expected
