"""What a conversion did, and what it would do, as data."""

import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict, cast

from recast import _core
from recast._core import Converted, Plan
from recast.errors import OutputError
from recast.gpu.predict import MemoryDict, predict
from recast.json_text import SCHEMA_VERSION, encode, json_text, picked
from recast.options import FloatName, Target
from recast.terminal import plain

REPORT_NAME = "recast.json"
# What is only of one run, and so not in `recast.json`.
RUN = (
    *("source", "dest", "seconds", "gpu_memory", "resumed_files", "already_done", "compared"),
    "verification",
)
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


class TensorCounts(TypedDict):
    """How many tensors were `cast`, `copied` (nothing to cast), `kept` (by a pattern or the
    built-in list), and, if any were, `dequantized`."""

    cast: int
    copied: int
    kept: int
    dequantized: NotRequired[int]


class ScaleCounts(TypedDict):
    """How many scales of quantized weights are NaN, infinite, zero, negative."""

    nan: int
    inf: int
    zero: int
    negative: int


class AuditCounts(TypedDict):
    """What the casts did: finite values that became infinite (`to_inf`) or zero (`to_zero`),
    `nan` and `inf` in the source, and how many tensors lost bits to rounding. If weights were
    dequantized, also how many of their codes are NaN, and what is unusual about their scales."""

    to_inf: int
    to_zero: int
    nan: int
    inf: int
    inexact_tensors: int
    nan_codes: NotRequired[int]
    scales: NotRequired[ScaleCounts]


class TensorAudit(TypedDict):
    """The same for one tensor, with its largest finite magnitude (`max_abs`)."""

    name: str
    file: str
    to_inf: int
    to_zero: int
    nan: int
    inf: int
    max_abs: float
    exact: bool
    nan_codes: NotRequired[int]
    scales: NotRequired[ScaleCounts]


class Kept(TypedDict):
    """Tensors that kept their dtype for one reason; `exact_anyway` are those among them that the
    cast would not have changed."""

    reason: str
    tensors: list[str]
    exact_anyway: list[str]


class MismatchDict(TypedDict):
    """The fields of `Mismatch`."""

    tensor: str
    file: str
    index: int
    source: str
    source_bits: str
    expected_bits: str
    found_bits: str
    count: int
    compared: int


class ProblemDict(TypedDict):
    """The fields of `Problem`."""

    kind: str
    file: str | None
    tensor: str | None
    message: str


class LikelyCauseDict(TypedDict):
    """The fields of `LikelyCause`."""

    cause: Literal["other_tensors", "other_files", "other_values"]
    tensors: int
    of: int


class MemoryFigureDict(TypedDict):
    """The fields of `MemoryFigure`."""

    expected: int
    measured: int | None


class MemoryCheckDict(TypedDict):
    """The fields of `MemoryCheck`."""

    requested: MemoryFigureDict
    allocated: MemoryFigureDict
    reserved: MemoryFigureDict


class VerificationDict(TypedDict):
    """The fields of `Verification`, and whether it `passed`: what `verify --json` prints."""

    schema_version: int
    source: str
    dest: str
    to: FloatName | None
    device: str
    loader: str
    samples: int | None
    seed: int | None
    tensors_checked: int
    values_checked: int
    values_total: int
    mismatches: list[MismatchDict]
    problems: list[ProblemDict]
    likely_cause: LikelyCauseDict | None
    notes: list[str]
    memory: MemoryCheckDict | None
    seconds: float
    passed: bool


@dataclass(frozen=True)
class DryRun:
    """What a conversion would do. `to_json()` is what `convert --dry-run --json` prints."""

    plan: Plan
    dest: str | None
    """`None` where only the plan was asked for."""
    found: Literal["done", "started", "new"] = "new"
    """What `dest` holds: the result, as far as lengths and headers tell, a run that was
    interrupted, or nothing yet."""

    def facts(self) -> dict[str, Any]:
        """The part that plan and report have in common."""
        facts: dict[str, Any] = json.loads(_core.summary(self.plan))
        del facts["audit"], facts["schema_version"]
        for group in facts["kept"]:
            del group["exact_anyway"]
        memory = _gpu_memory(self.plan)
        return {"source": self.plan.source, "dest": self.dest, **facts, "gpu_memory": memory}

    def to_json(self) -> str:
        """What is known, and every file's exact size, as one JSON object, ASCII only."""
        found = {"already_done": self.found == "done", "resumes": self.found == "started"}
        files = [
            picked(file, "path", "action", "source_bytes", "bytes") for file in self.plan.files
        ]
        return json_text({"dry_run": True, **found, **self.facts(), "planned_files": files})


@dataclass(frozen=True)
class Report:
    """What a conversion did. `to_json()` is what `convert --json` prints: `recast.json`, and what
    is only of this run.

    Sizes are in bytes and `seconds` is from opening the source to the last rename.
    """

    source: str
    dest: str
    to: Target
    files: int
    """Files in the result, those that describe the others aside."""
    tensors: TensorCounts
    parameters: int
    """Elements of all tensors."""
    bytes_read: int
    bytes_written: int
    seconds: float
    audit: AuditCounts
    kept: list[Kept] = field(repr=False)
    gpu_memory: MemoryDict = field(repr=False)
    """What the result takes on a GPU once it is loaded with PyTorch, without the files that
    loaders do not take unless they are asked to."""
    warnings: list[str] = field(repr=False)
    dropped: list[str] = field(default_factory=list[str], repr=False)
    """Tensors of the source that are not in the result, because they belong to weights that were
    dequantized: scales, and what describes quantized activations."""
    left_out: list[str] = field(default_factory=list[str], repr=False)
    """What the pickles of the source hold that is no tensor of the model, such as an optimizer."""
    resumed_files: int = 0
    """Files that were staged before this run, by one that was interrupted or beside it."""
    already_done: bool = False
    """Whether this run found the result complete and did nothing; the rest is then the report of
    the run that made it."""
    compared: str | None = None
    """What was compared to be sure that the result is right, where it was there before."""
    verification: VerificationDict | None = field(default=None, repr=False)
    """What `Verification.to_dict` gives, when the result was verified before it was published."""
    schema_version: int = field(default=SCHEMA_VERSION, repr=False)
    _converted: Converted | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        plan: Plan,
        converted: Converted,
        dest: str,
        seconds: float,
        *,
        verification: VerificationDict | None,
    ) -> "Report":
        """The report on `plan`, which `converted` carried out in `seconds`."""
        facts = json.loads(converted.summary())
        return cls(
            **facts,
            source=plan.source,
            dest=dest,
            seconds=seconds,
            gpu_memory=_gpu_memory(plan),
            resumed_files=converted.resumed_files,
            already_done=converted.kind == "done",
            compared=converted.compared,
            verification=verification,
            _converted=converted,
        )

    def __str__(self) -> str:
        done = "already done" if self.already_done else f"done in {self.seconds:.2f} s"
        counts = ", ".join(f"{count:,} {what}" for what, count in self.tensors.items() if count)
        return plain(
            f"{self.source} -> {self.dest} in {self.to}: {done}; tensors: {counts or 'none'}; "
            f"{self.bytes_read:,} -> {self.bytes_written:,} bytes"
        )

    @property
    def completed(self) -> bool:
        """Whether this run did nothing but complete a publication that had begun."""
        return self._converted is not None and self._converted.completed

    @property
    def tensor_audits(self) -> list[TensorAudit]:
        """The audit of each tensor that was cast. Raises `OutputError` where it is read from a
        result that is not there any more."""
        return cast(list[TensorAudit], self._published()["audit"]["tensors"])

    def _published(self) -> dict[str, Any]:
        """What `recast.json` holds: of this run, or read from the result that was there."""
        path = os.path.join(self.dest, REPORT_NAME)
        try:
            text = self._converted.report() if self._converted else None
            if text is None:
                with open(path, "rb") as file:
                    text = file.read()
            published: dict[str, Any] = json.loads(text)
            published["audit"]["tensors"]
            return published
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise OutputError(
                f"{plain(path)}: is missing, or was changed since recast wrote it",
                "convert again with --overwrite, which replaces it",
            ) from error

    def to_json(self) -> str:
        """The report as one JSON object, ASCII only."""
        ours = {key: getattr(self, key) for key in RUN}
        made = self._converted.report() if self._converted else None
        if made is None:
            return json_text({**self._published(), **ours})
        # As text, because objects of a hundred thousand tensors take much more memory; and with as
        # few copies as possible.
        start = f'{{\n  "schema_version": {SCHEMA_VERSION},\n'.encode()
        assert made.startswith(start)
        theirs = str(memoryview(made)[len(start) :], "utf-8")
        del made
        theirs = NOT_ASCII.sub(lambda match: encode(match[0])[1:-1], theirs)
        return json_text(ours).removesuffix("\n}\n") + ",\n" + theirs


def _gpu_memory(plan: Plan) -> MemoryDict:
    return predict(plan.loaded_tensor_bytes).to_dict()
