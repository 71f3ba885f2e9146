"""The options of a conversion, defined once: the command, the API and the core share them.

A new option is a field of `Options`, from which the command makes its own, a keyword of
`recast.convert`, a row in docs/cli.md, and what the core does with it.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, get_args

from recast import _core
from recast.errors import UsageError
from recast.terminal import shown

Path = str | os.PathLike[str]
Progress = Callable[[int, int], Any]
"""Called as `progress(done, total)`, in bytes."""

FloatName = Literal["fp32", "fp16", "bf16"]
AsStored = Literal["as-stored"]
"""Where only the format changes."""
Target = FloatName | AsStored
OnOverflow = Literal["error", "inf", "saturate"]
Io = Literal["auto", "mmap", "read"]
# fmt: off
Spelling = Literal[
    "fp32", "float32", "f32", "float", "torch.float32", "torch.float",
    "fp16", "float16", "f16", "half", "torch.float16", "torch.half",
    "bf16", "bfloat16", "torch.bfloat16",
]
DeviceName = Literal[
    "auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4", "cuda:5", "cuda:6",
    "cuda:7", "cuda:8", "cuda:9", "cuda:10", "cuda:11", "cuda:12", "cuda:13", "cuda:14", "cuda:15",
]
# fmt: on


class DtypeObject(Protocol):
    """A dtype of numpy or torch, as neither has to be imported to say."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""


class DeviceObject(Protocol):
    """A `torch.device`."""

    @property
    def type(self) -> str:
        """`cpu` or `cuda`."""

    @property
    def index(self) -> Any:
        """The number of the GPU."""


Dtype = Spelling | DtypeObject | type
"""A dtype to cast to: by name, or numpy's or torch's own."""
Device = DeviceName | DeviceObject
"""Where a result is verified."""
MAX_THREADS = 1024
POLICIES: tuple[str, ...] = get_args(OnOverflow)


@dataclass(frozen=True)
class About:
    """What the command says of an option."""

    help: str
    metavar: str | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to convert to, and how. Raises `UsageError` for what makes no sense."""

    to: Annotated[
        Dtype | AsStored,
        About(
            "The dtype to cast to; float32, half, bfloat16 and the like work too. The last casts "
            "nothing: only the format changes.",
            "fp32|fp16|bf16|as-stored",
        ),
    ]
    key: Annotated[
        str | None,
        About("The state dict to take of a pickle that holds several.", "NAME"),
    ] = None
    keep: Annotated[
        Sequence[str],
        About(
            "Leave matching tensors as they are: a glob ('vae/*' is a component), or a regular "
            "expression after 're:'. Repeatable.",
            "PATTERN",
        ),
    ] = ()
    auto_keep: Annotated[bool, About("Also cast the tensors that are fp32 on purpose.")] = True
    skip_quantized: Annotated[
        bool, About("Carry quantized weights as they are, and cast the rest.")
    ] = False
    unscaled_fp8: Annotated[
        bool, About("Cast fp8 tensors without scales: they are the values, not codes.")
    ] = False
    on_overflow: Annotated[
        OnOverflow, About("What to do when finite values are beyond the target's range.")
    ] = "error"
    verify: Annotated[
        Device | None,
        About(
            "Check every value of the result on this device before publishing it; requires torch.",
            "auto|cpu|cuda[:N]",
        ),
    ] = None
    threads: Annotated[int | None, About("Worker threads; default: the CPUs, up to 32.", "N")] = (
        None
    )
    io: Annotated[
        Io, About("Read the source by positioned reads or through a memory map; auto reads.")
    ] = "auto"
    sync: Annotated[bool, About("Skip fsync: faster, but a power failure can lose the result.")] = (
        True
    )
    overwrite: Annotated[bool, About("Replace the model in DEST once the new one is ready.")] = (
        False
    )
    sha256: Annotated[bool, About("Add SHA256SUMS, which `sha256sum -c` reads, to the result.")] = (
        False
    )

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            raise UsageError("keep is a string", f"give a list of patterns: keep=[{self.keep!r}]")
        check_policy(self.on_overflow, self.threads)
        if self.io not in get_args(Io):
            raise UsageError(
                f"'{shown(self.io)}' is not a way to read files",
                f"use one of: {', '.join(get_args(Io))}",
            )
        # The core knows names and lists only.
        to: Target = "as-stored" if self.to == "as-stored" else float_name(self.to)
        self._set(to=to, keep=list(self.keep))
        self._set(verify=None if self.verify is None else str(self.verify))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


def float_name(to: object) -> FloatName:
    """`fp32`, `fp16` or `bf16`, for any of their spellings or a numpy or torch dtype.

    Raises `UsageError` for everything else.
    """
    # The builtin `float` is 64 bits wide; its name alone would pass for torch's `float`.
    is_scalar_type = isinstance(to, type) and to.__module__ != "builtins"
    name = _core.float_name(to.__name__ if is_scalar_type else str(to))  # type: ignore[attr-defined]
    if name is None:
        raise UsageError(
            f"'{shown(to)}' is not a dtype recast casts to",
            "use fp32, fp16 or bf16 (float32, float16 and bfloat16 mean the same)",
        )
    return name


def check_policy(on_overflow: str, threads: int | None) -> None:
    """Raises `UsageError` unless the two options every cast has make sense."""
    if on_overflow not in POLICIES:
        raise UsageError(
            f"on_overflow is '{shown(on_overflow)}'", f"use one of: {', '.join(POLICIES)}"
        )
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads is {threads}", f"use 1 to {MAX_THREADS}, or leave it out")
