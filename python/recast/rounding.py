"""One value, bit by bit: what a dtype holds of it, and what a cast keeps, drops and rounds."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from recast._core import DtypeInfo, cast_bytes
from recast.dtypes import CASTABLE
from recast.errors import UsageError
from recast.terminal import shown

Kind = Literal["normal", "subnormal", "zero", "infinite", "nan"]

DECIMAL = re.compile(r"([+-]?)((?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:[eE]([+-]?[0-9]+))?")
SPECIAL = re.compile(r"([+-]?)(inf|infinity|nan)", re.IGNORECASE)
HEX = re.compile(r"0[xX]([0-9a-fA-F]+)")
# No dtype here reaches 10^100 or down to 10^-100, so exponents beyond say nothing more.
FAR = 100
# An exact decimal longer than this is harder to read than a rounded one.
LONGEST_EXACT = 24


def smallest_exponent(dtype: DtypeInfo) -> int:
    """The exponent of the smallest normal number, and of all subnormal ones."""
    return 1 - dtype.bias


def _infinity(dtype: DtypeInfo) -> int:
    """The bits of positive infinity; what is above is NaN."""
    return ((1 << dtype.exponent_bits) - 1) << dtype.mantissa_bits


@dataclass(frozen=True)
class Value:
    """The bits of one value in one dtype."""

    dtype: DtypeInfo
    bits: int

    @property
    def negative(self) -> bool:
        """Whether the sign bit is set, also of zero and NaN."""
        return bool(self.bits >> (self.dtype.bits - 1))

    @property
    def fields(self) -> tuple[str, str, str]:
        """Sign, exponent and mantissa in binary."""
        text = f"{self.bits:0{self.dtype.bits}b}"
        return text[0], text[1 : 1 + self.dtype.exponent_bits], text[-self.dtype.mantissa_bits :]

    @property
    def hex(self) -> str:
        """The bits as `0x4048F5C3`."""
        return f"0x{self.bits:0{self.dtype.bits // 4}X}"

    @property
    def kind(self) -> Kind:
        """What sort of value the bits are."""
        magnitude = self.bits & ~(1 << (self.dtype.bits - 1))
        if magnitude >= _infinity(self.dtype):
            return "nan" if magnitude > _infinity(self.dtype) else "infinite"
        if magnitude >> self.dtype.mantissa_bits:
            return "normal"
        return "subnormal" if magnitude else "zero"

    @property
    def finite(self) -> bool:
        """Whether it is neither infinite nor NaN."""
        return self.kind not in ("infinite", "nan")

    @property
    def scaled(self) -> tuple[int, int]:
        """`(significand, exponent)` of the magnitude, a finite one: significand x 2^exponent."""
        stored = self.bits >> self.dtype.mantissa_bits & ((1 << self.dtype.exponent_bits) - 1)
        significand = self.bits & ((1 << self.dtype.mantissa_bits) - 1)
        if stored:
            significand |= 1 << self.dtype.mantissa_bits
        exponent = max(stored - self.dtype.bias, smallest_exponent(self.dtype))
        return significand, exponent - self.dtype.mantissa_bits

    @property
    def exponent(self) -> int:
        """The exponent of the leading 1 of a finite value; below all others for zero."""
        significand, scale = self.scaled
        return significand.bit_length() - 1 + scale

    @property
    def exact(self) -> Fraction:
        """The value, a finite one, without its sign's trace on zero."""
        significand, exponent = self.scaled
        return Fraction(-significand if self.negative else significand) * Fraction(2) ** exponent

    def __str__(self) -> str:
        if not self.finite:
            return ("-" if self.negative else "") + ("nan" if self.kind == "nan" else "inf")
        if self.kind == "zero":
            return "-0" if self.negative else "0"
        # A double holds every value of a castable dtype.
        exact = str(Decimal(float(self.exact))).replace("E", "e")
        return exact if len(exact) <= LONGEST_EXACT else f"~{float(self.exact):.17g}"


def parse(text: str, dtype: DtypeInfo) -> tuple[Value, Fraction | None]:
    """The value `text` says, rounded once to `dtype`, and the number it says exactly.

    `text` is a decimal number, `inf`, `nan`, or all bits of the dtype as `0x...`; only a decimal
    has an exact number. Raises `UsageError` for everything else.
    """
    text = text.strip()
    sign_bit = 1 << (dtype.bits - 1)
    if match := HEX.fullmatch(text):
        if len(match[1]) * 4 != dtype.bits:
            raise UsageError(*_wrong_width(text, dtype))
        return Value(dtype, int(match[1], 16)), None
    if match := SPECIAL.fullmatch(text):
        quiet = 1 << (dtype.mantissa_bits - 1) if match[2].lower() == "nan" else 0
        bits = _infinity(dtype) | quiet
        return Value(dtype, bits | sign_bit if match[1] == "-" else bits), None
    match = DECIMAL.fullmatch(text)
    if match is None:
        raise UsageError(
            f"'{shown(text)}' is not a number",
            "give a decimal such as 3.14 or -1e-8, inf, nan, or bits such as 0x4048F5C3",
        )
    magnitude = _magnitude(match[2], match[3] or "0")
    bits = _nearest(magnitude, dtype)
    if match[1] == "-":
        return Value(dtype, bits | sign_bit), -magnitude
    return Value(dtype, bits), magnitude


def _wrong_width(text: str, dtype: DtypeInfo) -> tuple[str, str]:
    digits = dtype.bits // 4
    fitting = [name for name, other in CASTABLE.items() if other.bits // 4 == len(text) - 2]
    hint = f"say --from {' or --from '.join(fitting)}" if fitting else f"give {digits} digits"
    return f"{shown(text)} is not {digits} hexadecimal digits, as {dtype.short_name} has", hint


def _magnitude(digits: str, exponent: str) -> Fraction:
    """`digits` x 10^`exponent`, exactly; far out of range just as far as it has to be."""
    number = Decimal(digits)
    if not number:
        return Fraction(0)
    sign = -1 if exponent.startswith("-") else 1
    # Python refuses to read integers of thousands of digits, and ten are too many already.
    power = sign * int(exponent.lstrip("+-").lstrip("0")[:10] or "0")
    if abs(number.adjusted() + power) > FAR:
        return Fraction(10) ** (FAR if number.adjusted() + power > 0 else -FAR)
    return Fraction(number) * Fraction(10) ** power


def _nearest(magnitude: Fraction, dtype: DtypeInfo) -> int:
    """The bits nearest to `magnitude`, ties to even, rounded once: no double comes in between."""
    if magnitude == 0:
        return 0
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    exponent = max(exponent, smallest_exponent(dtype))
    # `round` of a fraction goes to the nearest integer, and from the middle to the even one.
    significand = round(magnitude / Fraction(2) ** (exponent - dtype.mantissa_bits))
    # The leading 1 of a normal number, and a carry out of the mantissa, add to the exponent.
    bits = significand + ((exponent + dtype.bias - 1) << dtype.mantissa_bits)
    return min(bits, _infinity(dtype))


def cast(value: Value, dtype: DtypeInfo) -> Value:
    """`value` in another dtype, by the code that casts checkpoints."""
    import numpy as np

    if dtype == value.dtype:
        return value
    source = np.frombuffer(value.bits.to_bytes(value.dtype.bits // 8, "little"), np.uint8)
    result = np.zeros(dtype.bits // 8, np.uint8)
    cast_bytes(source, value.dtype.short_name, result, dtype.short_name)
    return Value(dtype, int.from_bytes(result.tobytes(), "little"))


@dataclass(frozen=True)
class Cast:
    """What a cast keeps and drops of a value, and what that makes of it."""

    source: Value
    result: Value
    kept: str
    """The bits of the target's mantissa before rounding; empty for what is not finite."""
    dropped: str
    """The bits behind them."""
    rounding: Literal["exact", "down", "up", "nan"]
    """Which way the magnitude went."""
    reason: str
    """Why, in a sentence."""

    @classmethod
    def of(cls, source: Value, dtype: DtypeInfo) -> "Cast":
        """The cast of `source` to `dtype`."""
        result = cast(source, dtype)
        if source.kind == "nan":
            reason = "NaN stays NaN: sign and upper mantissa bits kept, the quiet bit set"
            return cls(source, result, "", "", "nan", reason)
        if source.kind in ("infinite", "zero"):
            reason = f"{'zero' if source.kind == 'zero' else 'infinity'} keeps its sign"
            return cls(source, result, "", "", "exact", reason)
        significand, scale = source.scaled
        exponent = source.exponent
        shift = max(exponent, smallest_exponent(dtype)) - dtype.mantissa_bits - scale
        kept = significand >> shift if shift > 0 else significand << -shift
        dropped = f"{significand & ((1 << shift) - 1):0{shift}b}" if shift > 0 else ""
        mantissa = f"{kept & ((1 << dtype.mantissa_bits) - 1):0{dtype.mantissa_bits}b}"
        rounding, reason = _rule(mantissa, dropped)
        if exponent > dtype.bias:
            rounding = "up"
            reason = (
                f"2^{exponent} is beyond 2^{dtype.bias}, the largest exponent of {dtype.short_name}"
            )
        elif not result.finite:
            reason += f", beyond the largest {dtype.short_name}"
        return cls(source, result, mantissa, dropped, rounding, reason)

    @property
    def ulp(self) -> int:
        """The distance of neighbors in the target where the source is, as a power of two."""
        target = self.result.dtype
        return max(self.source.exponent, smallest_exponent(target)) - target.mantissa_bits

    def errors(self) -> tuple[float | None, float | None, float | None]:
        """|result - source|: as it is, of the source, and in units of `ulp`.

        `None` where one of them is not finite, and for a share of zero.
        """
        if not (self.source.finite and self.result.finite):
            return None, None, None
        whole = abs(self.source.exact)
        error = abs(self.result.exact - self.source.exact)
        return float(error), float(error / whole) if whole else None, float(error / 2**self.ulp)

    @property
    def tie(self) -> bool:
        """Whether the source is in the middle between two values of the target."""
        return _is_tie(self.dropped)


def _is_tie(dropped: str) -> bool:
    return dropped.startswith("1") and "1" not in dropped[1:]


def _rule(mantissa: str, dropped: str) -> tuple[Literal["exact", "down", "up"], str]:
    """Which way round to nearest, ties to even goes, and why."""
    if "1" not in dropped:
        return "exact", "no bit that is 1 is dropped: exact"
    half = f"half of the last kept bit ({short('1' + '0' * (len(dropped) - 1))})"
    if dropped[0] == "0":
        return "down", f"the dropped bits are less than {half}: they go"
    carry = ", which carries into the exponent" if "0" not in mantissa else ""
    up = f"the kept bits go up by 1{carry}"
    if not _is_tie(dropped):
        return "up", f"the dropped bits are more than {half}: {up}"
    if mantissa[-1] == "0":
        return "down", f"a tie: exactly {half}; the last kept bit is 0, even, and stays"
    return "up", f"a tie: exactly {half}; the last kept bit is 1, odd: {up}"


def short(bits: str) -> str:
    """`bits`, the middle left out where there are too many to read."""
    return bits if len(bits) <= 32 else f"{bits[:8]}...{bits[-12:]}"
