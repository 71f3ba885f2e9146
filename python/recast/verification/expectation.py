"""What a result is expected to be: what converting the source was asked to make."""

import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from recast._core import Checkpoint, Plan
from recast.errors import InputError
from recast.options import POLICIES, Options
from recast.report import REPORT_NAME
from recast.terminal import first_of, shown
from recast.verification import quantized
from recast.verification.dequantized import Dequantized
from recast.verification.dtypes import FLOATS, FP8, SOURCES, FloatName, named
from recast.verification.files import MAX_INDEX, MAX_REPORT, read_json
from recast.verification.header import Headers, Key, read_header
from recast.verification.labels import Labels, read_labels

# The most patterns of `--keep` that are taken from a report: each costs time and memory.
PATTERNS = 256


@dataclass(frozen=True)
class Expectation:
    """What a result must be. With `exact`, every dtype and size is known beforehand; without, a
    tensor may also have kept the source's dtype."""

    plan: Plan
    to: FloatName | None
    """The dtype that configs and indexes must state; `None` where there is no float."""
    on_overflow: str
    exact: bool

    @classmethod
    def of_plan(cls, plan: Plan, on_overflow: str) -> "Expectation":
        """That of a plan whose options are known."""
        to = None if plan.to == "as-stored" else named(plan.to)
        return cls(plan, to, on_overflow, exact=True)

    @cached_property
    def casts_fp8(self) -> bool:
        """Whether 8-bit floats are cast, so that nothing may state that they are there."""
        return self.dequantizes or any(
            t.action == "cast" and t.source_dtype in FP8 for t in self.plan.tensors
        )

    @cached_property
    def dequantizes(self) -> bool:
        """Whether quantized weights are dequantized, and not carried as they are."""
        return any(tensor.action == "dequantize" for tensor in self.plan.tensors)

    @cached_property
    def quantized(self) -> dict[Key, Dequantized]:
        """The source's quantized weights as verification finds them, by file and name in a result
        that holds them dequantized."""
        return quantized.find(self.source_headers, self.source_file, self._labels)

    @cached_property
    def dropped(self) -> set[Key]:
        """The source's tensors that only quantized weights need."""
        found = self.quantized if self.dequantizes else {}
        return quantized.dropped(self.source_headers, found)

    @property
    def source(self) -> Path:
        """The source: a directory or a file."""
        return Path(self.plan.source)

    def source_file(self, file: str) -> Path:
        """Where the source of the result's `file` is."""
        return self.source if self.source.is_file() else self.source / file

    @cached_property
    def source_headers(self) -> Headers:
        """The headers of the source's shards."""
        files = [file.path for file in self.plan.files if file.action == "cast"]
        try:
            return {file: read_header(self.source_file(file)) for file in files}
        except (OSError, ValueError) as error:
            raise self._changed(error) from error

    def source_json(self, file: str, limit: int) -> Any:
        """The value in a JSON file of the source, which was valid when the plan was made."""
        try:
            return read_json(self.source_file(file), limit)
        except (OSError, ValueError, RecursionError) as error:
            raise self._changed(error) from error

    def weight_map(self, file: str) -> Any:
        """What an index must map to shards, by that of the source: not what is dropped, and the
        dequantized weights by their names in the result."""
        before = self.source_json(file, MAX_INDEX)["weight_map"]
        if not self.dequantizes:
            return before
        folder = os.path.dirname(file)
        names = {weight.codes.key: weight.name for weight in self.quantized.values()}
        keys = {name: (os.path.join(folder, shard), name) for name, shard in before.items()}
        return {
            names.get(key, key[1]): before[name]
            for name, key in keys.items()
            if key not in self.dropped
        }

    def _labels(self, folder: str) -> Labels:
        """What the source says of the weights in a folder; of a file, what is beside it says it."""
        root = self.source.parent if self.source.is_file() else self.source
        try:
            return read_labels(root, folder)
        except (OSError, ValueError, RecursionError) as error:
            raise self._changed(error) from error

    def _changed(self, error: Exception) -> InputError:
        return InputError(f"{shown(self.source)} changed during verification: {shown(error)}")


def find(source: str, root: Path, headers: Headers, notes: list[str]) -> Expectation:
    """What converting `source` was expected to make of it, by the report in the result below
    `root`, or else inferred from the dtypes in its `headers`, of which `notes` then tell."""
    checkpoint = Checkpoint.open(source)
    try:
        options = _options(root / REPORT_NAME)
        return Expectation.of_plan(checkpoint.plan(options), options.on_overflow)
    except FileNotFoundError:
        why = f"there is no {REPORT_NAME}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"{REPORT_NAME} does not hold the options of a conversion ({shown(repr(error))})"
    before = {(tensor.file, tensor.name): tensor.dtype for tensor in checkpoint.tensors}
    after = {(file, name): entry.dtype for file in headers for name, entry in headers[file].items()}
    target = _inferred(before, after)
    kept = [
        name
        for (file, name), dtype in before.items()
        if dtype in SOURCES and FLOATS.get(dtype) != target and after.get((file, name)) == dtype
    ]
    notes.append(f"{why}, so the target is inferred to be the dtype of most tensors: {target}")
    if kept:
        notes.append(f"not cast, which is assumed to be intended: {first_of(kept)}")
    options = Options(to=target or "fp32", auto_keep=False, skip_quantized=True)
    carried = Expectation(checkpoint.plan(options), target, "inf", exact=False)
    made = {key for key in carried.quantized if after.get(key) in FLOATS}
    cast = {key for key, dtype in before.items() if dtype in FP8 and after.get(key) in FLOATS}
    options = replace(options, skip_quantized=not made, unscaled_fp8=bool(cast - made))
    return replace(carried, plan=checkpoint.plan(options))


def _options(report: Path) -> Options:
    """The options that a report says a result was made with. Raises what reading raises, and
    `TypeError` or `ValueError` for what no conversion writes."""
    found = read_json(report, MAX_REPORT)["options"]
    options = {name: found[name] for name in ("to", "keep", "auto_keep", "skip_quantized")}
    options["unscaled_fp8"] = found.get("unscaled_fp8", False)
    flags = (options["auto_keep"], options["skip_quantized"], options["unscaled_fp8"])
    if not isinstance(options["to"], str) or not isinstance(options["keep"], list):
        raise TypeError("an option is of the wrong type")
    if not all(isinstance(flag, bool) for flag in flags):
        raise TypeError("an option is of the wrong type")
    if len(options["keep"]) > PATTERNS:
        raise ValueError(f"more than {PATTERNS} patterns of --keep")
    if found["on_overflow"] not in POLICIES:
        raise ValueError("no such overflow policy")
    return Options(**options, on_overflow=found["on_overflow"])


def _inferred(before: dict[Key, str], after: dict[Key, str]) -> FloatName | None:
    """The dtype that tensors were cast to, by majority, of the dtypes of source and result.

    Where no tensor was cast it is the dtype most floats have; `None` where there is no float.
    """
    floats = {key: dtype for key, dtype in after.items() if dtype in FLOATS}
    cast = [dtype for key, dtype in floats.items() if before.get(key) in SOURCES.keys() - {dtype}]
    ranked = Counter(cast or floats.values()).most_common(1)
    return FLOATS[ranked[0][0]] if ranked else None
