"""The Rust core: open, plan, make, publish, and the casts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__version__: str
SIMD_VARIABLE: str

class DtypeInfo:
    """A row of the dtype table."""

    @property
    def name(self) -> str:
        """What safetensors headers call it: `F32`."""
    @property
    def short_name(self) -> str:
        """What recast calls it in text and options: `fp32`."""
    @property
    def torch_name(self) -> str | None:
        """What torch calls it, when it has it: `float32`."""
    @property
    def spellings(self) -> tuple[str, ...]:
        """Every name a user or a config file may give it."""
    @property
    def bits(self) -> int:
        """Bits per element."""
    @property
    def exponent_bits(self) -> int:
        """Those that store the exponent; like the next two, 0 for a dtype that is not floating."""
    @property
    def mantissa_bits(self) -> int:
        """Those that store the mantissa, without the leading 1 of a normal number."""
    @property
    def bias(self) -> int:
        """What is added to an exponent before it is stored."""
    @property
    def has_infinity(self) -> bool: ...
    @property
    def has_nan(self) -> bool: ...
    @property
    def largest(self) -> float | None:
        """The largest finite value, exactly, of a floating dtype."""
    @property
    def castable(self) -> bool:
        """Whether recast casts from it and to it."""

DTYPES: tuple[DtypeInfo, ...]
"""The dtype table, in the order in which safetensors sorts dtypes."""

class Tensor:
    """A tensor of a checkpoint, as its header describes it."""

    @property
    def file(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> list[int]: ...
    @property
    def elements(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class Checkpoint:
    """A checkpoint whose headers, indexes and configs were read and agree."""

    @staticmethod
    def open(path: str) -> Checkpoint: ...
    @property
    def path(self) -> str: ...
    @property
    def shards(self) -> int: ...
    @property
    def tensors(self) -> list[Tensor]: ...
    @property
    def quantized(self) -> str | None: ...
    @property
    def lossless(self) -> tuple[int, str] | None: ...
    def plan(
        self,
        to: str,
        keep: Sequence[str] = (),
        auto_keep: bool = True,
        on_overflow: str = "error",
    ) -> Plan: ...

class PlannedTensor:
    """What will become of one tensor. `action` is 'cast', 'copy' or 'keep'."""

    @property
    def file(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> list[int]: ...
    @property
    def elements(self) -> int: ...
    @property
    def source_dtype(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def source_bytes(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class PlannedFile:
    """What will become of one file. `action` is 'cast', 'edit' or 'copy'."""

    @property
    def path(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def source_bytes(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class Plan:
    """What a conversion will do, to the byte. Nothing is written by making one."""

    @property
    def source(self) -> str: ...
    @property
    def to(self) -> str: ...
    @property
    def tensors(self) -> list[PlannedTensor]: ...
    @property
    def files(self) -> list[PlannedFile]: ...
    @property
    def tensor_bytes(self) -> list[int]: ...
    @property
    def warnings(self) -> list[str]: ...
    @property
    def parameters(self) -> int: ...
    @property
    def bytes_read(self) -> int: ...
    @property
    def bytes_written(self) -> int: ...
    def summary(self) -> str: ...
    def look(
        self,
        dest: str,
        *,
        on_overflow: str = "error",
        overwrite: bool = False,
        sha256: bool = False,
    ) -> str: ...
    def convert(
        self,
        dest: str,
        *,
        threads: int | None = None,
        io: str = "auto",
        sync: bool = True,
        on_overflow: str = "error",
        overwrite: bool = False,
        sha256: bool = False,
        verify: Callable[[str], str | None] | None = None,
        progress: Callable[[int, int], Any] | None = None,
    ) -> Converted: ...

class Converted:
    """What came of a conversion."""

    @property
    def kind(self) -> str: ...
    def summary(self) -> str: ...
    def report(self) -> bytes | None: ...
    @property
    def resumed_files(self) -> int: ...
    @property
    def compared(self) -> str | None: ...
    @property
    def completed(self) -> bool: ...
    @property
    def verified(self) -> str | None: ...
    @property
    def rejected(self) -> str | None: ...

class Audit:
    """What the cast did to one tensor's values, or would have done to one that was kept."""

    @property
    def to_inf(self) -> int: ...
    @property
    def to_zero(self) -> int: ...
    @property
    def nan(self) -> int: ...
    @property
    def inf(self) -> int: ...
    @property
    def max_abs(self) -> float: ...
    @property
    def exact(self) -> bool: ...

def cast_bytes(
    source: npt.NDArray[np.uint8],
    source_dtype: str,
    out: npt.NDArray[np.uint8],
    dtype: str,
    *,
    threads: int | None = None,
    on_overflow: str = "inf",
) -> Audit: ...
def check_published(
    dest: str, *, threads: int | None = None, progress: Callable[[int, int], Any] | None = None
) -> tuple[int, int, list[tuple[str, str]]]: ...
def check_local(path: str, *, write: bool = False) -> None: ...
def float_name(name: str) -> str | None: ...
def nesting(text: bytes) -> int: ...
def messages() -> list[tuple[str, str, str | None]]:
    """All that the core may say of a failure: class, example, hint.

    The class is the name of an exception, or 'warning', 'finding' or 'note'.
    """

def simd_level() -> str: ...
