"""The floats that are cast: the judge's own table, which shares nothing with what it judges."""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import torch

FloatName = Literal["fp32", "fp16", "bf16"]


class Float(NamedTuple):
    """A dtype under each of its names."""

    name: FloatName
    """What recast calls it."""
    stored: str
    """What a safetensors header calls it."""
    torch: str
    """The attribute of `torch` that it is."""
    stated: tuple[str, ...]
    """How a config or an index may state it, in lower case."""


TABLE = (
    Float("fp32", "F32", "float32", ("fp32", "f32", "float32", "float")),
    Float("fp16", "F16", "float16", ("fp16", "f16", "float16", "half")),
    Float("bf16", "BF16", "bfloat16", ("bf16", "bfloat16")),
)
FLOATS: dict[str, FloatName] = {row.stored: row.name for row in TABLE}
STORED: dict[FloatName, str] = {row.name: row.stored for row in TABLE}
SOURCES = {
    **{row.stored: row.torch for row in TABLE},
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
"""What is cast to a float: the attribute of `torch` that it is, by its name in a header."""
FP8 = {stored for stored in SOURCES if stored.startswith("F8_")}
NOT_IN_TORCH = {"F6_E2M3", "F6_E3M2"}
"""Dtypes of a header that torch lacks, so that safetensors cannot hand tensors of them out."""


def torch_floats() -> "dict[str, torch.dtype]":
    """What is cast, and to what, as torch has it, by its name in a header."""
    import torch

    return {stored: getattr(torch, name) for stored, name in SOURCES.items()}


def named(name: str) -> FloatName:
    """The float that recast calls `name`."""
    return next(row.name for row in TABLE if row.name == name)


def stated(value: Any, *, fp8: bool = False) -> str | None:
    """The float that a value of a config or an index states, if it states one that is cast; with
    `fp8`, the 8-bit ones are."""
    if not isinstance(value, str):
        return None
    word = value.removeprefix("torch.").lower()
    if word in ("float64", "double") or (fp8 and word.startswith("float8_")):
        return word
    return next((row.name for row in TABLE if word in row.stated), None)
