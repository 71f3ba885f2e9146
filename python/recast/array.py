"""`cast`: the same cast as a conversion, for one array or tensor in memory."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn, overload

from recast import _core
from recast._core import DtypeInfo
from recast.dtypes import CASTABLE, SOURCES, one_of
from recast.errors import CastOverflowError, UsageError
from recast.options import Dtype, OnOverflow, check_policy, float_name

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Bits = npt.NDArray[np.integer[Any]]

# Strided input is gathered in pieces of this many elements: at most 1 MiB, which stays in cache.
PIECE = 262_144


@overload
def cast(
    x: npt.NDArray[Any],
    to: Dtype,
    *,
    out: npt.NDArray[Any] | None = None,
    on_overflow: OnOverflow = "inf",
    threads: int | None = None,
) -> npt.NDArray[Any]: ...
@overload
def cast(
    x: torch.Tensor,
    to: Dtype,
    *,
    out: torch.Tensor | None = None,
    on_overflow: OnOverflow = "inf",
    threads: int | None = None,
) -> torch.Tensor: ...
def cast(
    x: Any,
    to: Dtype,
    *,
    out: Any = None,
    on_overflow: OnOverflow = "inf",
    threads: int | None = None,
) -> Any:
    """Casts an array or tensor of any shape; the result is the same kind, in the same shape.

    `x` is a numpy array or a CPU torch tensor of float64, float32, float16, bfloat16 or an 8-bit
    float (numpy's are those of `ml_dtypes`); it may have any strides and is not changed. `to` is a
    name such as `"bf16"` or a numpy or torch dtype: one of 32 or 16 bits. The result is always new
    memory, in C order, and does not require grad; it is `out`, when that is given: a writeable
    contiguous array or tensor of the right shape and dtype that shares no memory with `x`.

    Rounds to nearest even once, float64 to 16 bits twice, by way of float32, as torch does. Finite
    values beyond the target's range become infinite (`on_overflow="inf"`, what torch does), its
    largest finite value (`"saturate"`), or raise `CastOverflowError` (`"error"`; the content of
    `out` is then unspecified). `threads` limits the worker threads.

    Raises `UsageError` for any other kind, dtype or option.
    """
    import numpy as np

    target = CASTABLE[float_name(to)]
    check_policy(on_overflow, threads)
    source = _dtype_of(x)
    if out is None:
        result = _new(x, target)
    else:
        _check_out(out, x, target)
        result = out
    source_bits, result_bits = _bits(x, source), _bits(result, target)
    if out is not None and np.may_share_memory(source_bits, result_bits):
        raise UsageError("out shares memory with x", "give an out of its own memory")
    _cast_bits(source_bits, source, result_bits, target, on_overflow, threads, fresh=out is None)
    return result


def _is_tensor(x: object) -> bool:
    # A torch tensor cannot exist unless torch is loaded, so there is never a need to load it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _cast_bits(
    source: Bits,
    source_dtype: DtypeInfo,
    out: Bits,
    dtype: DtypeInfo,
    on_overflow: OnOverflow,
    threads: int | None,
    *,
    fresh: bool,
) -> None:
    """Casts the values whose bits `source` holds, in any strides, into contiguous `out`.

    `fresh` says that nothing was written there before.
    """
    import numpy as np

    if source_dtype == dtype:
        np.copyto(out, source, casting="no")
        return
    out_bytes = out.reshape(-1).view(np.uint8)
    pieces: Any = [source.reshape(-1)]
    if not source.flags.c_contiguous:
        # numpy's stub does not know `contig`, which makes every piece contiguous.
        options: Any = {
            "flags": ["external_loop", "buffered", "zerosize_ok"],
            "op_flags": [["readonly", "contig"]],
        }
        pieces = np.nditer(source, order="C", buffersize=PIECE, **options)
    done = overflows = 0
    largest = 0.0
    for piece in pieces:
        end = done + piece.size * out.itemsize
        audit = _core.cast_bytes(
            piece.view(np.uint8),
            source_dtype.short_name,
            out_bytes[done:end],
            dtype.short_name,
            fresh=fresh,
            threads=threads,
            on_overflow=on_overflow,
        )
        done = end
        overflows += audit.to_inf
        largest = max(largest, audit.max_abs)
    if overflows and on_overflow == "error":
        raise CastOverflowError(
            f"{overflows} of {source.size} values do not fit in {dtype.short_name}: the largest "
            f"magnitude is {largest:g}, the limit {dtype.largest:g}",
            "choose on_overflow='inf' or 'saturate'"
            + ("; bf16 has the range of fp32" if dtype.short_name == "fp16" else ""),
        )


def _dtype_of(x: Any) -> DtypeInfo:
    """The dtype of `x`; raises `UsageError` for what cannot be cast."""
    import numpy as np

    kind = "torch tensor"
    if not _is_tensor(x):
        kind = "numpy array"
        # A masked array would lose its mask without a word.
        if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray):
            _refuse(f"a {type(x).__module__}.{type(x).__qualname__}")
    elif x.device.type != "cpu":
        raise UsageError(
            f"x is on {x.device}; recast.cast works in host memory",
            "use x.to(dtype) on the device, or x.cpu() first",
        )
    elif str(x.layout) != "torch.strided":
        _refuse(f"a torch tensor of layout {x.layout}")
    name = str(x.dtype).removeprefix("torch.")
    return SOURCES[name] if name in SOURCES else _refuse(f"a {kind} of {x.dtype}")


def _new(x: Any, dtype: DtypeInfo) -> Any:
    """Memory for the result: like `x`, of `dtype`."""
    if _is_tensor(x):
        import torch

        return torch.empty(x.shape, dtype=getattr(torch, _long_name(dtype)), device="cpu")
    import ml_dtypes  # noqa: F401, teaches numpy the names of its dtypes
    import numpy as np

    return np.empty(x.shape, _long_name(dtype))


def _long_name(dtype: DtypeInfo) -> str:
    """What torch, numpy and ml_dtypes call it."""
    assert dtype.torch_name is not None
    return dtype.torch_name


def _check_out(out: Any, x: Any, dtype: DtypeInfo) -> None:
    """Raises `UsageError` unless `out` can hold the result of casting `x`."""
    import numpy as np

    if _is_tensor(x):
        same_kind = _is_tensor(out) and out.device.type == "cpu"
        usable = same_kind and out.is_contiguous() and not (out.requires_grad or out.is_neg())
    else:
        same_kind = isinstance(out, np.ndarray)
        usable = same_kind and out.flags.c_contiguous and out.flags.writeable
    if not same_kind:
        need = "a CPU torch tensor, as x is" if _is_tensor(x) else "a numpy array, as x is"
    elif out.shape != x.shape or _core.float_name(str(out.dtype)) != dtype.short_name:
        shapes = f"of shape {tuple(x.shape)}, not {out.dtype} {tuple(out.shape)}"
        need = f"{_long_name(dtype)} {shapes}"
    elif not usable:
        need = "contiguous and writeable, without requires_grad"
    else:
        return
    raise UsageError(f"out must be {need}", "omit out= to have it made")


def _bits(x: Any, dtype: DtypeInfo) -> Bits:
    """The bits of `x` as integers of the same width, strides and memory."""
    import numpy as np

    bits: Bits
    if _is_tensor(x):
        import torch

        # A lazily negated view holds its sign in a flag, which a view of the bits would miss.
        plain = x.detach().resolve_neg()
        bits = plain.view(getattr(torch, f"int{dtype.bits}")).numpy()
    else:
        # `asarray` drops subclasses such as matrix, whose reshape does not flatten.
        bits = np.asarray(x).view(f"i{dtype.bits // 8}")
    return bits


def _refuse(what: str) -> NoReturn:
    raise UsageError(
        f"cannot cast {what}",
        "recast.cast accepts numpy arrays and CPU torch tensors of " + one_of(SOURCES),
    )
