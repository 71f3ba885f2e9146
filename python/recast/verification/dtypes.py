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
NOT_IN_TORCH = {"F6_E2M3", "F6_E3M2"}
"""Dtypes of a header that torch lacks, so that safetensors cannot hand tensors of them out."""


def torch_floats() -> "dict[str, torch.dtype]":
    """The floats as torch has them, by their names in a header."""
    import torch

    return {row.stored: getattr(torch, row.torch) for row in TABLE}


def named(name: str) -> FloatName:
    """The float that recast calls `name`."""
    return next(row.name for row in TABLE if row.name == name)


def stated(value: Any) -> FloatName | None:
    """The float that a value of a config or an index states, if it states one."""
    if not isinstance(value, str):
        return None
    word = value.lower().removeprefix("torch.")
    return next((row.name for row in TABLE if word in row.stated), None)
