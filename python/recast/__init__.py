"""recast changes the dtype of a model checkpoint on disk: exactly, fast, all or nothing.

    import recast

    plan = recast.plan("model", to="bf16", keep=["lm_head.*"])   # headers only; writes nothing
    report = recast.convert("model", "model-bf16", to="bf16")    # the whole checkpoint
    recast.verify("model", "model-bf16", device="cuda").passed   # every promise, on the GPU
    recast.inspect("model-bf16").gpu_memory["as_stored"]         # bytes on a GPU
    y = recast.cast(x, "bf16")                                   # one tensor, in memory

Why not load and save? Loading needs memory for the whole model, may drop what the model class
does not know, and a run that dies half way leaves something that looks like a model. recast
streams every tensor through one audited cast, rounds to nearest even once, and renames the result
into place when it is complete.

`convert` returns a `Report`: what was cast, kept and copied, and what it did to the values.
Whatever goes wrong is a `RecastError`; `recast.errors` draws the tree. The command `recast` has
the same options.
"""

from typing import TYPE_CHECKING, Any

from recast._core import Plan, __version__
from recast.api import convert, inspect, plan
from recast.array import cast
from recast.errors import (
    CastOverflowError,
    CheckError,
    HeaderError,
    IndexFileError,
    InputError,
    OutputError,
    PickleError,
    QuantizedError,
    RecastError,
    StorageError,
    UsageError,
    VerificationError,
)
from recast.inspection import Inspection
from recast.loading import load, load_into, tensors
from recast.report import Report

if TYPE_CHECKING:
    from recast.verification import Verification, verify

__all__ = [
    "CastOverflowError",
    "CheckError",
    "HeaderError",
    "IndexFileError",
    "InputError",
    "Inspection",
    "OutputError",
    "PickleError",
    "Plan",
    "QuantizedError",
    "RecastError",
    "Report",
    "StorageError",
    "UsageError",
    "Verification",
    "VerificationError",
    "__version__",
    "cast",
    "convert",
    "inspect",
    "load",
    "load_into",
    "plan",
    "tensors",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports what verifies when it is first used: every start of the command would wait for it."""
    if name in ("Verification", "verify"):
        from recast import verification

        return getattr(verification, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
