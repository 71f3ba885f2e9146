"""What a verification found, as data."""

from dataclasses import asdict, dataclass, field
from typing import Literal, cast

from recast.json_text import SCHEMA_VERSION, json_text
from recast.names import json_names
from recast.report import VerificationDict
from recast.terminal import shown
from recast.verification.dtypes import FloatName
from recast.verification.loaders import LoaderName
from recast.verification.problems import Problem

MISMATCH = (
    "{tensor} in {file}, element {index:,}: {source} ({source_bits}) became {found_bits}, "
    "expected {expected_bits}"
)


@dataclass(frozen=True)
class Mismatch:
    """The first wrong value of a tensor, and how many there are."""

    tensor: str
    file: str
    index: int
    """Which element it is, in C order."""
    source: str
    """Its value in the source; `bytes` for what is not a float. Of a dequantized weight it is the
    exact product of code and scale, in fp64, and so are the bits."""
    source_bits: str
    expected_bits: str
    found_bits: str
    count: int
    """How many of the compared values of the tensor are wrong."""
    compared: int
    """How many values of the tensor were compared."""

    @property
    def message(self) -> str:
        """The mismatch as a sentence."""
        names = {"tensor": shown(self.tensor), "file": shown(self.file)}
        others = self.count - 1
        more = f"; {others:,} more in this tensor" if others else ""
        return MISMATCH.format_map({**vars(self), **names}) + more


@dataclass(frozen=True)
class MemoryFigure:
    """Bytes by one of PyTorch's counters."""

    expected: int
    measured: int | None
    """`None` on a CPU, and on a GPU that the model does not fit on."""


@dataclass(frozen=True)
class MemoryCheck:
    """The memory of the loaded result: predicted, and on a GPU measured."""

    requested: MemoryFigure
    allocated: MemoryFigure
    reserved: MemoryFigure


@dataclass(frozen=True)
class LikelyCause:
    """Why nearly everything is wrong."""

    cause: Literal["other_tensors", "other_files", "other_values"]
    """`other_tensors`: the source has no tensors of these names and shapes. `other_files`: it has
    them in other files. `other_values`: nearly every value is wrong."""
    tensors: int
    """How many tensors of the result this is true of, more than half."""
    of: int
    """How many tensors the result has; for `other_values`, how many were compared."""


@dataclass(frozen=True)
class Verification:
    """What a verification found. `to_json()` is what `verify --json` prints."""

    source: str
    dest: str
    to: FloatName | None
    """The dtype the source was cast to; `None` where no tensor is a float, and for `as-stored`."""
    device: str
    """Where the values were compared: `cpu`, `cuda:0`."""
    loader: LoaderName
    samples: int | None
    """Random blocks compared in each tensor; `None` when every value was."""
    seed: int | None
    """What the random blocks were drawn from; `None` when every value was compared."""
    tensors_checked: int
    values_checked: int
    values_total: int
    """How many values the tensors have that were compared."""
    mismatches: list[Mismatch]
    """The first wrong value of each tensor that has one."""
    problems: list[Problem]
    """What else is wrong: with the structure, the configs, the indexes, the memory."""
    likely_cause: LikelyCause | None
    """Set where nearly everything is wrong, most likely because the result was made from another
    source."""
    notes: list[str]
    """What is not wrong but should be known."""
    memory: MemoryCheck | None
    """`None` where the model could not be loaded."""
    seconds: float
    schema_version: int = field(default=SCHEMA_VERSION, repr=False)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.mismatches or self.problems)

    def to_dict(self) -> VerificationDict:
        """The verification as JSON values: what a report holds under `verification`."""
        values = {"schema_version": SCHEMA_VERSION, **asdict(self), "passed": self.passed}
        return cast(VerificationDict, json_names(values))

    def to_json(self) -> str:
        """The verification as one JSON object, ASCII only."""
        return json_text(self.to_dict())

    def failures(self) -> list[str]:
        """A sentence on each thing that is wrong, problems before values."""
        return [
            *(problem.message for problem in self.problems),
            *(mismatch.message for mismatch in self.mismatches),
        ]
