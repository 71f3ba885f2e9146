"""The dtype table of the core, `src/dtype.rs`, by name. Python keeps no such data of its own."""

from collections.abc import Iterable

from recast._core import DTYPES, DtypeInfo

# Sorting is stable: those of one width stay in the order of the table.
_WIDEST_FIRST = sorted(DTYPES, key=lambda dtype: -dtype.bits)
CASTABLE: dict[str, DtypeInfo] = {
    dtype.short_name: dtype for dtype in _WIDEST_FIRST if dtype.castable
}
"""The dtypes recast casts from and to, by short name."""
SOURCES: dict[str, DtypeInfo] = {
    str(dtype.torch_name): dtype for dtype in _WIDEST_FIRST if dtype.is_source
}
"""The dtypes recast casts from, by the name that torch, numpy and ml_dtypes give them."""


def one_of(names: Iterable[str]) -> str:
    """`names` as a message lists a choice: `fp32, fp16 or bf16`."""
    *others, last = names
    return f"{', '.join(others)} or {last}"
