"""The dtype table against safetensors, torch, numpy and ml_dtypes, which have their own."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from recast import _core
from recast.dtypes import CASTABLE, SOURCES
from recast.options import FloatName, Spelling

ROOT = Path(__file__).parents[1]
TABLE = {dtype.name: dtype for dtype in _core.DTYPES}
NUMPY: dict[str, Any] = {
    "F4": ml_dtypes.float4_e2m1fn,
    "F6_E2M3": ml_dtypes.float6_e2m3fn,
    "F6_E3M2": ml_dtypes.float6_e3m2fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}


def all_values(name: str) -> np.ndarray[Any, Any]:
    """Every value of a dtype of at most 16 bits, in the order of its codes, as binary64."""
    codes = np.arange(1 << TABLE[name].bits)
    with np.errstate(invalid="ignore"):
        values = codes.astype(f"u{max(TABLE[name].bits, 8) // 8}").view(NUMPY[name])
        return np.asarray(values, np.float64)


def test_the_floating_dtypes_are_those_of_ml_dtypes_and_numpy() -> None:
    assert {name for name, dtype in TABLE.items() if dtype.exponent_bits} == set(NUMPY)


@pytest.mark.parametrize("name", NUMPY)
def test_the_layout_matches_ml_dtypes(name: str) -> None:
    dtype, info = TABLE[name], ml_dtypes.finfo(NUMPY[name])
    assert (dtype.bits, dtype.mantissa_bits) == (info.bits, info.nmant)
    assert dtype.largest == float(info.max)
    signed = name != "F8_E8M0"
    assert dtype.bits == signed + dtype.exponent_bits + dtype.mantissa_bits
    # The stored exponent of 1 is the bias.
    one = np.array(1, NUMPY[name]).view(f"u{max(dtype.bits, 8) // 8}")
    assert int(one) == dtype.bias << dtype.mantissa_bits


@pytest.mark.parametrize("name", [name for name in NUMPY if TABLE[name].bits <= 16])
def test_special_and_largest_values_match_an_enumeration(name: str) -> None:
    values = all_values(name)
    assert TABLE[name].has_infinity == np.isinf(values).any()
    assert TABLE[name].has_nan == np.isnan(values).any()
    assert TABLE[name].largest == values[np.isfinite(values)].max()


@pytest.mark.parametrize("name", [name for name, dtype in TABLE.items() if dtype.torch_name])
def test_the_torch_name_is_the_dtype_that_safetensors_loads(name: str) -> None:
    dtype = TABLE[name]
    theirs: torch.dtype = getattr(torch, str(dtype.torch_name))
    assert isinstance(theirs, torch.dtype)
    # A byte holds two values of torch's 4-bit dtype.
    packed = 2 if name == "F4" else 1
    assert dtype.bits * packed == theirs.itemsize * 8
    if name in safetensors.torch._TYPES:
        assert safetensors.torch._TYPES[name] == theirs
    if dtype.exponent_bits and name != "F4":
        assert dtype.largest == torch.finfo(theirs).max
        assert 2.0**-dtype.mantissa_bits == torch.finfo(theirs).eps


def test_every_dtype_that_safetensors_loads_is_known() -> None:
    assert set(safetensors.torch._TYPES) <= set(TABLE)


@pytest.mark.parametrize("name", CASTABLE)
def test_every_spelling_means_its_dtype_whatever_its_case(name: str) -> None:
    dtype = CASTABLE[name]
    theirs = getattr(torch, str(dtype.torch_name))
    for spelling in dtype.spellings:
        for text in (spelling, spelling.upper(), f"torch.{spelling}"):
            assert _core.float_name(text) == name
        # Where torch has that name too, it means the same.
        assert getattr(torch, spelling, theirs) == theirs


def test_no_spelling_means_two_dtypes() -> None:
    spellings = [s.lower() for dtype in _core.DTYPES for s in {*map(str.lower, dtype.spellings)}]
    assert len(spellings) == len(set(spellings))


def test_only_castable_dtypes_are_targets() -> None:
    for dtype in _core.DTYPES:
        expected = dtype.short_name if dtype.castable else None
        assert {_core.float_name(spelling) for spelling in dtype.spellings} == {expected}


def test_what_is_cast_is_every_float_of_a_whole_number_of_bytes_but_scales() -> None:
    floats = {dtype.name for dtype in _core.DTYPES if dtype.exponent_bits and dtype.bits >= 8}
    sources = {dtype.name for dtype in SOURCES.values()}
    assert sources == {dtype.name for dtype in _core.DTYPES if dtype.is_source}
    assert sources == floats - {"F8_E8M0"}
    assert {dtype.name for dtype in CASTABLE.values()} < sources


def test_the_types_of_the_options_name_the_castable_dtypes() -> None:
    assert list(get_args(FloatName)) == list(CASTABLE)
    for spelling in get_args(Spelling):
        # torch has aliases of its own, such as torch.half.
        assert _core.float_name(spelling) in CASTABLE
    for dtype in CASTABLE.values():
        assert set(map(str.lower, dtype.spellings)) <= set(get_args(Spelling))


def test_the_schema_allows_the_castable_dtypes() -> None:
    common = json.loads((ROOT / "docs" / "schema" / "common.json").read_text())
    inspect = json.loads((ROOT / "docs" / "schema" / "inspect.json").read_text())
    assert common["$defs"]["float"]["enum"] == list(CASTABLE)
    assert list(inspect["properties"]["gpu_memory"]["properties"]) == ["as_stored", *CASTABLE]


def test_the_table_in_the_docs_matches_ml_dtypes() -> None:
    text = (ROOT / "docs" / "dtypes.md").read_text()
    lines = [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line[:1] == "|"]
    names, rows = lines[0][1:], {line[0]: line[1:] for line in lines[2:]}
    assert sorted(names) == sorted(CASTABLE)
    for at, name in enumerate(names):
        dtype = CASTABLE[name]
        info: Any = ml_dtypes.finfo(NUMPY[dtype.name])
        column = {what: cells[at] for what, cells in rows.items()}
        assert column.pop("bytes") == f"{np.dtype(NUMPY[dtype.name]).itemsize}"
        fields = f"1, {dtype.exponent_bits}, {dtype.mantissa_bits}"
        assert column.pop("bits: sign, exponent, mantissa") == fields
        error = column.pop("largest relative error of a rounded normal value")
        assert error == f"2^-{info.nmant + 1}"
        for what, value in {
            "largest finite value": info.max,
            "smallest normal value": info.smallest_normal,
            "smallest value above zero": info.smallest_subnormal,
        }.items():
            shown = column.pop(what)
            digits = len(re.sub(r"e.*|\.", "", shown))
            assert float(shown) == float(f"{float(value):.{digits - 1}e}"), what
        assert not column
