"""Every kind of tensor that torch saves becomes, byte for byte, what safetensors' own writer writes
of what torch loads and casts; what safetensors cannot hold is refused."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from saved_by_torch import FORMATS, assert_written, load, save
from sources import FP8, Tensors
from support import slow

COUNT = 240


def numbers(*shape: int) -> torch.Tensor:
    """Values that no two places share, and that no 16 bits hold."""
    x = torch.randn(COUNT, generator=torch.Generator().manual_seed(0))
    size = torch.Size(shape).numel()
    return x.repeat(size // COUNT + 1)[:size].reshape(shape) if shape else x


def floats() -> Tensors:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    return {str(dtype): numbers().to(dtype) for dtype in kinds}


def integers() -> Tensors:
    kinds = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]
    return {str(dtype): torch.arange(100).to(dtype) for dtype in kinds}


def unsigned() -> Tensors:
    kinds = [torch.uint16, torch.uint32, torch.uint64]
    return {str(dtype): (torch.arange(100) * 97).to(dtype) for dtype in kinds}


def eights() -> Tensors:
    """All values of each, but for NaN, of which torch makes other ones at other places."""
    codes = torch.arange(256, dtype=torch.uint8)
    values = {name: codes.view(getattr(torch, name)) for name in FP8}
    return {name: x[~x.float().isnan()] for name, x in values.items()}


def beyond() -> Tensors:
    """What fp16, or also fp32, cannot hold."""
    wide = torch.tensor([1e300, -1e39, 1e-320, float("inf"), 0.1, -0.0, 7e4], dtype=torch.float64)
    return {"wide": wide, "single": wide.float()}


def empties() -> Tensors:
    return {"none": torch.zeros(0), "no rows": torch.zeros(3, 0, 2, dtype=torch.int64)}


def scalars() -> Tensors:
    return {"float": torch.tensor(0.1), "int": torch.tensor(7), "bool": torch.tensor(True)}


def views() -> Tensors:
    """Parts of one storage, which begin anywhere, with gaps, and of a storage with more in it."""
    base, table = numbers(), numbers(12, 20)
    return {
        "part": base[10:20],
        "rows": table[3:7],
        "columns": table[:, 2:5],
        "every second": base[::2],
        "steps": table[1::3, ::7],
        "last": base[-1:],
        "diagonal": table.diagonal(1),
        "bytes": torch.arange(99, dtype=torch.uint8)[5:90:3],
    }


def overlapping() -> Tensors:
    base = numbers()
    windows = numbers(60).unfold(0, 8, 3)
    return {
        "one": base[:100],
        "other": base[50:150],
        "shape": base[:100].view(10, 10),
        "w": windows,
    }


def orders() -> Tensors:
    """Storage in another order than that of the values."""
    x = numbers(2, 3, 4, 5)
    return {
        "transposed": numbers(12, 20).t(),
        "permuted": x.permute(3, 1, 0, 2),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "5-D": numbers(2, 2, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d),
        "column": numbers(12, 20).t()[:, :1],
        "half": numbers(12, 20).bfloat16().t(),
    }


def expanded() -> Tensors:
    return {
        "rows": numbers(1, 20).expand(50, 20),
        "columns": numbers(20, 1).expand(20, 50),
        "one": torch.tensor(3.5).expand(1000),
        "middle": numbers(4, 1, 5)[1:].expand(3, 7, 5),
    }


def large() -> Tensors:
    """More than a piece of work, in an order of its own."""
    x = torch.arange(1_300_000, dtype=torch.float32)
    return {"x": x.view(1000, 1300).t(), "y": x.view(13, 10, 10_000).permute(2, 0, 1)[1:]}


def parameters() -> Any:
    layer = torch.nn.Conv2d(3, 8, 2)
    frozen = torch.nn.Parameter(numbers(4, 6).t(), requires_grad=False)
    return {**layer.state_dict(keep_vars=True), "frozen": frozen}


def modules() -> Any:
    """A state dict as torch makes it, with its versions in an attribute."""
    layers = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5))
    return layers.state_dict()


def with_attributes() -> Tensors:
    """What torch saves with a state of its own."""
    tensor, parameter = numbers(3, 4), torch.nn.Parameter(numbers(4, 3))
    for each in (tensor, parameter):
        each.group = "a"  # type: ignore[attr-defined]
    return {"tensor": tensor, "parameter": parameter}


def names() -> Tensors:
    words = ("größe", "重み", "a b", "x/y", 'quoted"', "back\\slash", "\U0001f600", "a" * 300, "é")
    return {word: numbers(n + 1) for n, word in enumerate(words)}


def gradients() -> Tensors:
    return {"x": numbers(4, 4).requires_grad_(), "y": numbers(4)}


def mixed() -> Tensors:
    return {**floats(), **integers(), **scalars(), **empties(), "c": torch.tensor([1 + 2j])}


CASES: dict[str, Callable[[], Any]] = {
    case.__name__: case
    for case in (
        *(floats, integers, unsigned, eights, beyond, empties, scalars, views, overlapping),
        *(orders, expanded, large, parameters, modules, with_attributes, names, gradients, mixed),
    )
}
# What torch writes in the old format, too, but cannot read from it, so that nobody could judge it.
ONLY_WRITTEN = {"eights", "unsigned"}


def convert(file: Path, out: Path, to: Any, **options: Any) -> Any:
    """Nothing kept, nothing refused: what torch does."""
    if to != "as-stored":
        options |= {"unscaled_fp8": True, "on_overflow": "inf"}
    return recast.convert(file, out, to=to, auto_keep=False, sync=False, **options)


@pytest.mark.parametrize("to", ["as-stored", "bf16", *slow("fp16", "fp32")])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_state_dict_becomes_what_the_official_writer_writes(
    format: str, case: str, to: Any, tmp_path: Path
) -> None:
    tensors = CASES[case]()
    file = save(tensors, tmp_path / "it.pt", format)
    if format == "legacy" and case in ONLY_WRITTEN:
        with pytest.raises(AttributeError, match="UntypedStorage"):
            load(file)
        with pytest.raises(recast.PickleError, match="has no dtype"):
            convert(file, tmp_path / "out", to)
        return
    tensors = load(file)
    convert(file, tmp_path / "out", to)
    assert_written(tmp_path / "out" / "it.safetensors", tensors, to)


def test_every_bit_of_a_dtype_stays_where_only_the_format_changes(tmp_path: Path) -> None:
    """NaN, and exponents, which belong to codes."""
    codes = torch.arange(256, dtype=torch.uint8)
    names = [*FP8, "float8_e8m0fnu"]
    tensors = {name: codes.clone().view(getattr(torch, name)) for name in names}
    halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    tensors |= {"fp16": halves.view(torch.float16), "bf16": halves.clone().view(torch.bfloat16)}
    file = save(tensors, tmp_path / "it.pt")
    convert(file, tmp_path / "out", "as-stored")
    assert_written(tmp_path / "out" / "it.safetensors", load(file), "as-stored")


@pytest.mark.parametrize("format", FORMATS)
def test_the_order_of_the_dict_makes_no_difference(format: str, tmp_path: Path) -> None:
    tensors = mixed()
    ways = [list(tensors), list(tensors)[::-1]]
    for number, way in enumerate(ways):
        folder = tmp_path / str(number)
        file = save(OrderedDict((name, tensors[name]) for name in way), folder / "it.pt", format)
        convert(file, folder / "out", "bf16")
    first, second = ((tmp_path / n / "out/it.safetensors").read_bytes() for n in "01")
    assert first == second


@pytest.mark.parametrize("suffix", ["bin", "ckpt", "pt", "pth"])
def test_a_file_keeps_its_name_but_for_the_suffix(suffix: str, tmp_path: Path) -> None:
    file = save(floats(), tmp_path / f"a.b-1.{suffix}")
    convert(file, tmp_path / "out", "bf16")
    assert_written(tmp_path / "out" / "a.b-1.safetensors", load(file), "bf16")


# What torch loads, and safetensors has no place for; what the message must say.
UNFIT: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "complex128": (lambda: torch.tensor([1 + 2j], dtype=torch.complex128), "ComplexDouble|c.*128"),
    "conjugate": (lambda: torch.tensor([1 + 2j]).conj(), "conj"),
    "meta": (lambda: torch.empty(3, device="meta"), "meta"),
    "negative": (lambda: torch.tensor([1 + 2j]).conj().imag, "neg"),
    "quantized": (
        lambda: torch.quantize_per_tensor(numbers(4), 0.1, 0, torch.qint8),
        "_rebuild_qtensor|QInt8",
    ),
    "sparse": (lambda: torch.eye(3).to_sparse(), "sparse"),
}


@pytest.mark.filterwarnings("ignore:.*(deprecated|beta state):UserWarning")
@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("format", FORMATS)
def test_what_safetensors_cannot_hold_is_refused(format: str, name: str, tmp_path: Path) -> None:
    make, said = UNFIT[name]
    file = save({"weight": make(), "other": numbers(3)}, tmp_path / "it.pt", format)
    for to in ("as-stored", "bf16"):
        with pytest.raises(recast.PickleError, match=said):
            convert(file, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [0, ("a", 1), None, "\ud800", "__metadata__"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_name_that_safetensors_cannot_hold_is_refused(
    format: str, name: Any, tmp_path: Path
) -> None:
    file = save({"weight": numbers(4), name: numbers(3)}, tmp_path / "it.pt", format)
    with pytest.raises(recast.PickleError, match=r"it\.pt"):
        convert(file, tmp_path / "out", "as-stored")
    assert not (tmp_path / "out").exists()
