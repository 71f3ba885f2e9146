"""`recast bits`: the value, its bits and its rounding, judged by torch, numpy and decimal."""

import bisect
import functools
import json
import re
import struct
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recast.dtypes import CASTABLE
from recast.errors import UsageError
from recast.rounding import Cast, Value, parse, smallest_exponent
from support import on_terminal, on_terminal_here, recast_here
from tensors import DTYPES

ESCAPE = re.compile(r"\x1b\[[\d;]*m")
NUMPY: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
WIDTHS = {"fp32": 32, "fp16": 16, "bf16": 16}
EXACT = Context(prec=2000)


def as_json(*arguments: object) -> dict[str, Any]:
    result = recast_here("bits", "--json", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def tensor(bits: int, name: str) -> torch.Tensor:
    """One value in torch, made of its bits."""
    signed = bits - (1 << WIDTHS[name]) if bits >> (WIDTHS[name] - 1) else bits
    integers = torch.int32 if name == "fp32" else torch.int16
    return torch.tensor([signed], dtype=integers).view(DTYPES[name])


def bits_of(value: torch.Tensor, name: str) -> int:
    integers = torch.int32 if name == "fp32" else torch.int16
    return int(value.view(integers).item()) & ((1 << WIDTHS[name]) - 1)


# --- the article's walk, its two mistakes fixed --------------------------------------------------


def test_the_articles_first_mistake_is_fixed() -> None:
    walk = as_json("3.14")
    assert walk["formats"]["fp32"]["hex"] == "0x4048F5C3"
    assert walk["formats"]["fp32"]["sign"] == "0"
    assert walk["formats"]["fp32"]["exponent"] == "10000000"
    assert walk["formats"]["fp32"]["mantissa"] == "10010001111010111000011"
    half, brain = walk["casts"]
    # The article's text drops the 13 bits and would have 1001000111, which is 3.138671875; the
    # dropped bits are more than half of the last kept one, so it is 1001000ooo + 1.
    assert (half["kept"], half["dropped"]) == ("1001000111", "1010111000011")
    assert (half["rounding"], half["tie"], half["result"]) == ("up", False, "0x4248")
    assert walk["formats"]["fp16"]["mantissa"] == "1001001000"
    assert walk["formats"]["fp16"]["exponent"] == "10000"
    assert walk["formats"]["fp16"]["value"] == 3.140625
    assert (brain["kept"], brain["dropped"]) == ("1001000", "1111010111000011")
    assert (brain["rounding"], brain["result"]) == ("up", "0x4049")
    assert walk["formats"]["bf16"]["value"] == 3.140625
    # 3.140625 - 3.1400001049041748046875, and the distance of fp16 neighbors there is 2^-9.
    assert half["absolute_error"] == 0.0006248950958251953
    assert half["ulp_error"] == 0.0006248950958251953 * 512


def test_the_articles_second_mistake_is_fixed() -> None:
    # '0 01101 1010000000' is not 'about 3.14' but 2^-2 x 1.625.
    found = as_json("0x3680", "--from", "fp16")["formats"]["fp16"]
    assert (found["sign"], found["exponent"], found["mantissa"]) == ("0", "01101", "1010000000")
    assert found["value"] == 0.25 * 1.625 == 0.40625


def test_the_walk_is_plain_text_in_a_pipe() -> None:
    result = recast_here("bits", "3.14", "--to", "fp16")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.isascii()
    for line in (
        "3.14 in fp32 is 3.1400001049041748046875, off by 1.04904e-7",
        "  fp32  0 10000000 10010001111010111000011  0x4048F5C3  3.1400001049041748046875",
        "  fp16  0 10000    1001001000               0x4248      3.140625",
        "  exponent  10000000 is 128; 128 - 127 + 15 = 16, 10000",
        "  mantissa  1001000111|1010111000011  10 bits kept, 13 dropped",
        "  becomes   0 10000 1001001000 = 0x4248 = 3.140625",
    ):
        assert line in result.stdout.splitlines()


# --- what a decimal becomes ----------------------------------------------------------------------


@functools.cache
def all_values(name: str) -> tuple[list[Fraction], list[int]]:
    """Every finite value of a 16-bit dtype from 0 on, by numpy, and its bits."""
    codes = np.arange(1 << 15, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        values = codes.view(NUMPY[name]).astype(np.float64)
    finite = np.isfinite(values)
    return [Fraction(float(v)) for v in values[finite]], codes[finite].tolist()


def nearest_of_all(number: Fraction, name: str) -> int:
    """The bits of the value nearest to `number`, found by looking at all of them."""
    values, codes = all_values(name)
    high = bisect.bisect_right(values, number)
    # Behind the largest value the next would be as far away as the one before it.
    above = values[high] if high < len(values) else 2 * values[-1] - values[-2]
    below, code = number - values[high - 1], codes[high - 1]
    if below < above - number or (below == above - number and code % 2 == 0):
        return code
    return code + 1


decimals = st.one_of(
    st.from_regex(r"[0-9]{1,12}(\.[0-9]{1,30})?(e-?[0-9]{1,2})?", fullmatch=True),
    st.floats(min_value=0, allow_infinity=False, width=32).map(repr),
    st.floats(min_value=0, max_value=2**-13, width=32).map(repr),
)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@settings(max_examples=300, deadline=None)
@given(text=decimals)
# A tie but for its last digit: a double in between would lose it, and round to even, down.
@example(text="1.00048828125000000000000000000000001")
@example(text="1.00390625000000000000000000000000001")
@example(text="1.00048828125")
@example(text="65519.99999999999999999999999999")
@example(text="65520")
@example(text="2.98023223876953125e-8")
@example(text="2.98023223876953125000000000000000001e-8")
@example(text="3.3961775292304957e38")
def test_a_decimal_becomes_the_nearest_of_all_values(name: str, text: str) -> None:
    value, _ = parse(text, CASTABLE[name])
    expected = nearest_of_all(Fraction(text), name)
    assert value.bits == expected
    negative, _ = parse(f"-{text}", CASTABLE[name])
    assert negative.bits == expected | 0x8000


@settings(max_examples=500, deadline=None)
@given(text=decimals)
# Halfway between 1 and its neighbor, and just beyond.
@example(text="1.000000059604644775390625")
@example(text="1.00000005960464477539062500000000000001")
@example(text="3.4028235677973366e38")
@example(text="340282356779733661637539395458142568447")
@example(text="340282356779733661637539395458142568448")
@example(
    text="7.00649232162408535461864791644958065640130970938257885878534141944895541342930300743319094181060791015625e-46"
)
def test_a_decimal_in_fp32_has_no_nearer_neighbor(text: str) -> None:
    value, _ = parse(text, CASTABLE["fp32"])
    number = Fraction(text)
    if number >= Fraction(2) ** 128:
        assert value.hex == "0x7F800000"
        return
    below, here, above = (fp32_place(value.bits + step) for step in (-1, 0, 1))
    distance = abs(here - number)
    assert distance <= min(abs(below - number), abs(above - number))
    if distance in (abs(below - number), abs(above - number)):
        assert value.bits % 2 == 0


def fp32_place(bits: int) -> Fraction:
    """The value of `bits`; infinity counts as the next power of two."""
    if bits >= 0x7F800000:
        return Fraction(2) ** 128 + (bits - 0x7F800000)
    if bits < 0:
        return Fraction(-1)
    return Fraction(struct.unpack("<f", bits.to_bytes(4, "little"))[0])


@pytest.mark.parametrize(
    ("text", "hexadecimal"),
    [
        ("0", "0x00000000"),
        ("-0.0", "0x80000000"),
        ("+1.", "0x3F800000"),
        (".5", "0x3F000000"),
        ("1e39", "0x7F800000"),
        ("-1e99999999999999999999", "0xFF800000"),
        ("1e-99999999999999999999", "0x00000000"),
        ("-1e-200", "0x80000000"),
        ("0e999999999", "0x00000000"),
        ("1" + "0" * 5000 + "e-5000", "0x3F800000"),
        ("0." + "0" * 5000 + "1e5001", "0x3F800000"),
        ("1e000000000000001", "0x41200000"),
        ("inf", "0x7F800000"),
        ("-Infinity", "0xFF800000"),
        ("NaN", "0x7FC00000"),
        ("-nan", "0xFFC00000"),
        ("0x7f800001", "0x7F800001"),
        (" 2 ", "0x40000000"),
    ],
)
def test_every_way_to_write_a_value_is_parsed(text: str, hexadecimal: str) -> None:
    assert parse(text, CASTABLE["fp32"])[0].hex == hexadecimal


@pytest.mark.parametrize("text", ["-0.1", "-1e-8", "-inf", "-nan", "-0", "-.5"])
def test_negative_values_need_no_double_dash(text: str) -> None:
    assert as_json(text) == as_json("--", text)
    assert as_json(text)["formats"]["fp32"]["sign"] == "1"


# --- what a cast does ----------------------------------------------------------------------------


def check_cast(bits: int, source: str, target: str) -> None:
    value = Value(CASTABLE[source], bits)
    cast = Cast.of(value, CASTABLE[target])
    before = tensor(bits, source)
    after = before.to(DTYPES[target])
    if torch.isnan(before):
        assert (cast.rounding, cast.result.kind) == ("nan", "nan")
        return
    assert cast.result.bits == bits_of(after, target)
    check_steps(cast, before.double().item(), after.double().item())


def check_steps(cast: Cast, before: float, after: float) -> None:
    """Kept and dropped bits make up the value, the rounding the result, and the errors fit."""
    target = cast.result.dtype
    if before in (0, float("inf"), float("-inf")):
        assert (cast.kept, cast.dropped, cast.rounding) == ("", "", "exact")
        return
    magnitude = Fraction(abs(before))
    power = max(int(np.frexp(abs(before))[1]) - 1, smallest_exponent(target))
    ulp = Fraction(2) ** (power - target.mantissa_bits)
    whole = magnitude // ulp
    assert len(cast.kept) == target.mantissa_bits
    assert int(cast.kept, 2) == whole % (1 << target.mantissa_bits)
    rest = Fraction(int(cast.dropped or "0", 2), 1 << len(cast.dropped))
    assert (whole + rest) * ulp == magnitude
    difference = Fraction(abs(after)) - magnitude if np.isfinite(after) else Fraction(1)
    assert cast.rounding == ("exact" if difference == 0 else "up" if difference > 0 else "down")
    assert cast.tie == (rest == Fraction(1, 2))
    absolute, relative, ulps = cast.errors()
    if not np.isfinite(after):
        assert absolute is None
        return
    error = abs(EXACT.subtract(Decimal(after), Decimal(before)))
    assert absolute == float(error)
    assert relative == pytest.approx(float(error) / abs(before), rel=1e-12)
    assert ulps == pytest.approx(float(abs(difference) / ulp), rel=1e-12)


@pytest.mark.parametrize("source", ["fp16", "bf16"])
@pytest.mark.parametrize("target", list(CASTABLE))
def test_casts_from_16_bits_match_torch_and_their_steps(source: str, target: str) -> None:
    edges = [0x0000, 0x0001, 0x03FF, 0x0400, 0x7BFF, 0x7C00, 0x7C01, 0x007F, 0x0080, 0x7F7F, 0x7F80]
    for code in [*range(0, 1 << 15, 37), *edges]:
        check_cast(code, source, target)
        check_cast(code | 0x8000, source, target)


@pytest.mark.parametrize("target", ["fp16", "bf16"])
@settings(max_examples=500, deadline=None)
@given(bits=st.integers(0, 0xFFFFFFFF))
@example(bits=0x477FEFFF)  # just below 65520
@example(bits=0x477FF000)  # 65520, a tie that becomes infinite
@example(bits=0x477FE000)  # 65504
@example(bits=0x33000000)  # 2^-25, a tie that becomes zero
@example(bits=0x33000001)
@example(bits=0x387FC000)  # the largest fp16 subnormal
@example(bits=0x387FF000)  # a tie that becomes normal
@example(bits=0x3F801000)  # a tie that stays
@example(bits=0x3F803000)  # a tie that goes up
@example(bits=0x3F808000)
@example(bits=0x3F818000)
@example(bits=0x7F7F7FFF)  # the largest that bf16 keeps finite
@example(bits=0x7F7F8000)
@example(bits=0x7F7FFFFF)
@example(bits=0x00000001)
@example(bits=0x00008000)
@example(bits=0x00018000)
@example(bits=0x007FFFFF)
@example(bits=0x80000000)
@example(bits=0x7F800001)
def test_casts_from_fp32_match_torch_and_their_steps(target: str, bits: int) -> None:
    check_cast(bits, "fp32", target)


@pytest.mark.parametrize("name", list(CASTABLE))
def test_fields_and_kinds_match_numpy(name: str) -> None:
    info: Any = ml_dtypes.finfo(NUMPY[name])
    for value, kind in [
        (info.max, "normal"),
        (info.smallest_normal, "normal"),
        (info.smallest_subnormal, "subnormal"),
        (0, "zero"),
        (np.inf, "infinite"),
        (np.nan, "nan"),
    ]:
        array = np.array([value], NUMPY[name])
        bits = int(array.view(np.uint32 if name == "fp32" else np.uint16)[0])
        found = Value(CASTABLE[name], bits)
        assert found.kind == kind
        assert found.hex == f"0x{bits:0{WIDTHS[name] // 4}X}"
        assert int("".join(found.fields), 2) == bits
        if found.finite:
            assert float(found.exact) == float(array[0])


# --- the command ---------------------------------------------------------------------------------


def test_bits_json_keeps_the_contract() -> None:
    walk = as_json("1e39", "--from", "float32", "--to", "half")
    assert (walk["schema_version"], walk["input"], walk["from"]) == (1, "1e39", "fp32")
    assert walk["exact"] is False
    assert walk["formats"].keys() == {"fp32", "fp16"}
    assert walk["formats"]["fp16"] == {
        "hex": "0x7C00",
        "sign": "0",
        "exponent": "11111",
        "mantissa": "0000000000",
        "kind": "infinite",
        "value": None,
    }
    assert [row["to"] for row in as_json("0x3C00", "--from", "fp16")["casts"]] == ["fp32", "bf16"]
    assert as_json("0.5")["exact"] is True
    assert as_json("0x3F000000")["exact"] is True


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (["abc"], "'abc' is not a number", "give a decimal"),
        ([""], "'' is not a number", "give a decimal"),
        (["3,14"], "not a number", "give a decimal"),
        (["1e"], "not a number", "give a decimal"),
        (["0x"], "not a number", "give a decimal"),
        (["1_000"], "not a number", "give a decimal"),
        (["\u0663"], "not a number", "give a decimal"),
        (["0x4248"], "not 8 hexadecimal digits", "say --from fp16 or --from bf16"),
        (["0x4048F5C3", "--from", "bf16"], "not 4 hexadecimal digits", "say --from fp32"),
        (["0x123"], "not 8 hexadecimal digits", "give 8 digits"),
        (["1", "--from", "fp8"], "'fp8' is not a dtype", "use fp32, fp16 or bf16"),
        (["1", "--form", "fp16"], "unexpected extra argument", "--help"),
        ([], "Missing argument 'VALUE'", "--help"),
    ],
)
def test_an_invalid_value_is_exit_code_2(arguments: list[str], said: str, hint: str) -> None:
    result = recast_here("bits", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    error, last = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert last.startswith("hint: ")
    assert hint in last


def test_an_invalid_value_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        parse("1e5e5", CASTABLE["fp32"])


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("value", ["-0.1", "1e-40", "nan", "65520", "-1.1754942106924411e-38"])
def test_no_line_of_the_walk_is_wider_than_the_terminal(columns: int, value: str) -> None:
    drawn = on_terminal_here(["bits", value], columns=columns)
    assert max(len(line) for line in ESCAPE.sub("", drawn).splitlines()) <= columns


def test_the_walk_is_a_table_on_a_terminal_of_80_columns() -> None:
    drawn, _ = on_terminal(["bits", "-1.1754942106924411e-38"], stdout=True, COLUMNS="80")
    assert "s exponent mantissa" in drawn


def test_there_is_no_cast_to_the_same_dtype() -> None:
    assert as_json("3.14", "--from", "bf16", "--to", "bf16")["casts"] == []


def test_overflow_names_the_option_of_convert() -> None:
    assert "--on-overflow" in recast_here("bits", "65520", "--to", "fp16").stdout
    assert "--on-overflow" not in recast_here("bits", "inf", "--to", "fp16").stdout


def test_the_title_says_that_a_value_is_out_of_range() -> None:
    assert recast_here("bits", "1e39").stdout.startswith("1e39 in fp32 is beyond fp32: inf\n")
    assert recast_here("bits", "1e-99").stdout.startswith("1e-99 in fp32 is too small: 0\n")
    assert recast_here("bits", "0.5").stdout.startswith("0.5 is exact in fp32\n")
