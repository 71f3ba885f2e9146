"""The data of `recast bits`: a value in each dtype, and the casts between them."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from recast.dtypes import CASTABLE
from recast.json_text import json_text
from recast.rounding import Cast, Value, parse


@dataclass(frozen=True)
class Bits:
    """A value as one dtype holds it, and its casts to others."""

    input: str
    """What the user wrote."""
    value: Value
    """The bits that the source dtype holds of it."""
    number: Fraction | None
    """The number that a decimal input says, exactly; `None` for infinity, NaN and bits."""
    casts: list[Cast]

    @classmethod
    def of(cls, text: str, source: str, targets: list[str]) -> "Bits":
        """The value that `text` says in `source`, cast to each of `targets`, by short name.

        Raises `UsageError` for a `text` that is not a value.
        """
        value, number = parse(text, CASTABLE[source])
        return cls(text, value, number, [Cast.of(value, CASTABLE[name]) for name in targets])

    @property
    def exact(self) -> bool:
        """Whether the source dtype holds exactly what the user wrote."""
        return self.number is None or (self.value.finite and self.value.exact == self.number)

    @property
    def values(self) -> list[Value]:
        """The value in the source dtype, then what each cast makes of it."""
        return [self.value, *(cast.result for cast in self.casts)]

    def to_json(self) -> str:
        """What `bits --json` prints."""
        return json_text(
            {
                "input": self.input,
                "from": self.value.dtype.short_name,
                "exact": self.exact,
                "formats": {value.dtype.short_name: _fields(value) for value in self.values},
                "casts": [_steps(cast) for cast in self.casts],
            }
        )


def _fields(value: Value) -> dict[str, Any]:
    sign, exponent, mantissa = value.fields
    number = None
    if value.finite:
        number = -0.0 if value.kind == "zero" and value.negative else float(value.exact)
    return {
        "hex": value.hex,
        "sign": sign,
        "exponent": exponent,
        "mantissa": mantissa,
        "kind": value.kind,
        "value": number,
    }


def _steps(cast: Cast) -> dict[str, Any]:
    absolute, relative, ulps = cast.errors()
    return {
        "from": cast.source.dtype.short_name,
        "to": cast.result.dtype.short_name,
        "kept": cast.kept,
        "dropped": cast.dropped,
        "rounding": cast.rounding,
        "tie": cast.tie,
        "reason": cast.reason,
        "result": cast.result.hex,
        "absolute_error": absolute,
        "relative_error": relative,
        "ulp_error": ulps,
    }
