"""What `recast bits` prints: the value in each dtype, and the casts step by step."""

from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

from recast.bits import Bits
from recast.rounding import Cast, Value, short, smallest_exponent
from recast.terminal import grid, heading, render, width

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def bits_text(bits: Bits) -> str:
    """`bits` as a table of its fields, and each cast in steps."""
    source = bits.value.dtype.short_name
    title = _title(bits.input.strip(), bits.value, bits.number)
    parts: list[RenderableType] = [heading(title), _table(bits.values)]
    for cast in bits.casts:
        parts += [heading(f"{source} -> {cast.result.dtype.short_name}"), grid(_walk(cast))]
    return render(*parts)


def _title(text: str, value: Value, number: Fraction | None) -> str:
    name = value.dtype.short_name
    if number is None or not value.finite:
        beyond = "" if number is None else f"beyond {name}: "
        return f"{text} in {name} is {beyond}{value}"
    if value.exact == number:
        return f"{text} is exact in {name}"
    if value.kind == "zero":
        return f"{text} in {name} is too small: {value}"
    off = abs(value.exact - number)
    # Decimal has exponents that a double lacks.
    shown = Decimal(off.numerator) / Decimal(off.denominator)
    return f"{text} in {name} is {value}, off by {shown:.6g}"


def _table(values: list[Value]) -> "Text":
    """The values with their bits, one a line; a block each where that is too wide."""
    from rich.text import Text

    lines = [(v.dtype.short_name, *v.fields, v.hex, str(v)) for v in values]
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    widths[2] = max(widths[2], len("exponent"))
    styles = ("", "magenta", "green", "cyan", "", "")
    wide = sum(widths) + len("  " * 4 + " " * 2) <= width()
    gaps = ["  ", "  ", " ", " ", "  ", "  "]
    if not wide:
        labels = ("sign", "exponent", "mantissa", "hex", "value")
        gaps = ["  ", *(f"\n    {label:9}" for label in labels)]
    table = Text()
    if wide:
        table.append(f"{'':{widths[0] + 4}}s {'exponent':{widths[2]}} mantissa\n")
    for number, line in enumerate(lines):
        table.append("\n" if number else "")
        for gap, part, size, style in zip(gaps, line, widths, styles, strict=True):
            table.append(gap).append(part.ljust(size) if wide else part, style=style)
    return table


def _walk(cast: Cast) -> list[tuple[str, str]]:
    """The cast in steps, as labels and sentences."""
    sign, exponent, mantissa = cast.result.fields
    becomes = f"{sign} {exponent} {mantissa} = {cast.result.hex} = {cast.result}"
    if not cast.kept:
        return [("rule", cast.reason), ("becomes", becomes)]
    count = len(cast.kept)
    bits = f"{cast.kept}|{short(cast.dropped)}" if cast.dropped else cast.kept
    amount = (
        f"{count} bits kept, {len(cast.dropped)} dropped" if cast.dropped else "nothing dropped"
    )
    steps = [("mantissa", f"{bits}  {amount}"), ("rule", cast.reason), ("becomes", becomes)]
    if step := _exponent_step(cast):
        steps.insert(0, ("exponent", step))
    if not cast.result.finite:
        steps.append(("convert", "stops at such a value unless --on-overflow says otherwise"))
    return [*steps, ("error", _error(cast))]


def _exponent_step(cast: Cast) -> str | None:
    """How the exponent moves to the target's bias; `None` where it does not fit there."""
    source, target = cast.source.dtype, cast.result.dtype
    exponent, smallest = cast.source.exponent, smallest_exponent(target)
    if exponent > target.bias:
        return None
    if exponent < smallest:
        if cast.source.kind == "subnormal" and source.bias == target.bias:
            return "subnormal in both"
        return (
            f"2^{exponent} is below 2^{smallest}, the smallest normal {target.short_name}: "
            f"{0:0{target.exponent_bits}b}, and the leading 1 moves into the mantissa"
        )
    stored = exponent + target.bias
    field = f"{stored:0{target.exponent_bits}b}"
    if source.bias == target.bias and cast.source.kind == "normal":
        return f"{field}, the same in both"
    if cast.source.kind == "subnormal":
        return f"2^{exponent}: {exponent} + {target.bias} = {stored}, {field}"
    before = exponent + source.bias
    return (
        f"{cast.source.fields[1]} is {before}; {before} - {source.bias} + {target.bias} = "
        f"{stored}, {field}"
    )


def _error(cast: Cast) -> str:
    absolute, relative, ulps = cast.errors()
    if absolute is None:
        return "infinite"
    if absolute == 0:
        return "none"
    return f"{absolute:.6g} absolute, {relative:.6g} relative, {ulps:.6g} ulp of 2^{cast.ulp}"
