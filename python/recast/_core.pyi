"""The Rust core: open, plan, make, publish, and the casts."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from recast.options import FloatName, Options, Target

__version__: str
SIMD_VARIABLE: str
RECIPE_FORMAT: int
"""What a report has as `format`: it changes only where the bytes of a result would."""

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
    @property
    def is_source(self) -> bool:
        """Whether recast casts from it."""

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
    def open(path: str, key: str | None = None) -> Checkpoint: ...
    @property
    def path(self) -> str: ...
    @property
    def shards(self) -> int: ...
    @property
    def tensors(self) -> list[Tensor]: ...
    @property
    def not_loaded(self) -> list[str]: ...
    @property
    def quantized(self) -> str | None:
        """How weights are quantized that are not dequantized, not counting fp8 without scales,
        which may be plain."""
    @property
    def schemes(self) -> list[tuple[str, int, int, str | None]]:
        """The quantized weights of each scheme, with their number, their bytes, and why they are
        not dequantized where they are not."""
    @property
    def has_unscaled_fp8(self) -> bool:
        """Whether there are fp8 tensors without scales."""
    @property
    def lossless(self) -> tuple[int, str] | None: ...
    def plan(self, options: Options) -> Plan: ...

class PlannedTensor:
    """What will become of one tensor."""

    @property
    def file(self) -> str:
        """The shard that holds it, relative to the destination."""
    @property
    def name(self) -> str:
        """What it is called in the result."""
    @property
    def shape(self) -> list[int]:
        """That in the result."""
    @property
    def elements(self) -> int:
        """The product of `shape`."""
    @property
    def source_name(self) -> str:
        """What it, or the codes that it is made of, is called in the source."""
    @property
    def source_dtype(self) -> str:
        """What safetensors calls its dtype in the source, such as `F32`."""
    @property
    def dtype(self) -> str:
        """What safetensors calls its dtype in the result."""
    @property
    def action(self) -> Literal["cast", "dequantize", "copy", "keep"]:
        """`cast`; `dequantize` where codes become the values that they stand for with their scales;
        `copy` where there is nothing to cast; `keep` where a pattern or the built-in list keeps its
        dtype."""
    @property
    def reason(self) -> str:
        """Why, in words."""
    @property
    def source_bytes(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class PlannedFile:
    """What will become of one file."""

    @property
    def path(self) -> str:
        """Relative to the destination."""
    @property
    def source(self) -> str:
        """What it is made of, relative to the source; of a source that is a file, its name."""
    @property
    def action(self) -> Literal["cast", "edit", "copy"]:
        """`cast` for a shard, `edit` for a config or an index, `copy` for everything else."""
    @property
    def source_bytes(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class Plan:
    """What a conversion will do, to the byte. Making one writes nothing."""

    @property
    def source(self) -> str:
        """The file or directory that will be converted."""
    @property
    def to(self) -> Target:
        """`fp32`, `fp16`, `bf16` or `as-stored`."""
    @property
    def key(self) -> str | None:
        """The key of the state dict in pickles, where it was given."""
    @property
    def runs(self) -> list[str]:
        """The names of the runs that carry it out, under each policy for values that overflow, with
        and without a file of sums."""
    @property
    def tensors(self) -> list[PlannedTensor]:
        """Every tensor, shard by shard."""
    @property
    def dropped(self) -> list[tuple[str, str]]:
        """The tensors of the source that are not in the result, because they belong to weights that
        are dequantized: the shard and the name of each."""
    @property
    def tied(self) -> list[tuple[str, str]]:
        """The tensors of pickles that are the memory of another one, each with that."""
    @property
    def files(self) -> list[PlannedFile]:
        """Every file of the result but its report, in the order they are written."""
    @property
    def tensor_bytes(self) -> list[int]:
        """The bytes of each tensor in the result, in the order of `tensors`."""
    @property
    def loaded_tensor_bytes(self) -> list[int]:
        """The same without those of shards that loaders do not take unless they are asked to."""
    @property
    def warnings(self) -> list[str]:
        """What is legal and should be known, as text."""
    @property
    def parameters(self) -> int:
        """The elements of all tensors."""
    @property
    def bytes_read(self) -> int:
        """The bytes of the files that will be read."""
    @property
    def bytes_written(self) -> int:
        """The bytes of the files that will be written."""

class Converted:
    """What a conversion did."""

    @property
    def kind(self) -> Literal["made", "done", "rejected"]: ...
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
    fresh: bool = True,
    threads: int | None = None,
    on_overflow: str = "inf",
) -> Audit: ...
def fill(
    plan: Plan,
    wanted: list[tuple[int, int, npt.NDArray[np.uint8], list[tuple[int, int]] | None, int]],
    *,
    threads: int | None = None,
) -> list[Audit]: ...
def can_cut(plan: Plan, file: int, position: int, slices: list[tuple[int, int]]) -> bool: ...
def summary(plan: Plan) -> str: ...
def look(plan: Plan, dest: str, options: Options) -> Literal["done", "started", "new"]: ...
def convert(
    plan: Plan,
    dest: str,
    options: Options,
    *,
    verify: Callable[[str], str | None] | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Converted: ...
def check_published(
    dest: str, *, threads: int | None = None, progress: Callable[[int, int], Any] | None = None
) -> tuple[int, int, list[tuple[str, str]]]: ...
def check_local(path: str, *, write: bool = False) -> None: ...
def float_name(name: str) -> FloatName | None: ...
def nesting(text: bytes) -> int: ...
def matching(pattern: str, names: list[str]) -> list[bool]:
    """Which of `names` a pattern of `--keep` matches, without any component."""

def keep_lists() -> str:
    """What the loaders of models keep in fp32, as JSON."""

def messages() -> list[tuple[str, str, str | None]]:
    """All that the core may say of a failure: class, example, hint.

    The class is the name of an exception, or 'warning', 'finding' or 'note'.
    """

def simd_level() -> str: ...
