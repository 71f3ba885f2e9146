"""What a result is expected to be: what converting the source was asked to make."""

import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from recast._core import Checkpoint, Plan
from recast.errors import InputError
from recast.options import POLICIES, AsStored, Options
from recast.report import REPORT_NAME
from recast.terminal import first_of, shown
from recast.verification import quantized
from recast.verification.dequantized import Dequantized
from recast.verification.dtypes import FLOATS, FP8, SOURCES, FloatName, named
from recast.verification.files import MAX_INDEX, MAX_REPORT, read_json
from recast.verification.header import Headers, Key, read_header
from recast.verification.labels import Labels, read_labels
from recast.verification.pickles import Found, Pickles, is_pickle

AS_STORED: AsStored = "as-stored"
"""The target that leaves every dtype as it is."""
# The most patterns of `--keep` that are taken from a report: each costs time and memory.
PATTERNS = 256


@dataclass(frozen=True)
class Expectation:
    """What a result must be. With `exact`, every dtype and size is known beforehand; without, a
    tensor may also have kept the source's dtype."""

    plan: Plan
    to: FloatName | None
    """The dtype that configs and indexes must state; `None` where there is no float, and where they
    must state what they stated."""
    on_overflow: str
    exact: bool

    @classmethod
    def of_plan(cls, plan: Plan, on_overflow: str) -> "Expectation":
        """That of a plan whose options are known."""
        to = None if plan.to == AS_STORED else named(plan.to)
        return cls(plan, to, on_overflow, exact=True)

    def may_state(self, before: str | None) -> set[str | None]:
        """The dtypes that something in a config or an index may state in the result, by that which
        it stated in the source; none where any will do."""
        allowed: set[str | None] = {self.to} if self.to else set()
        return allowed | {before} if self.plan.to == AS_STORED else allowed

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
        return quantized.find(self._everything, self.source_file, self._labels)

    @cached_property
    def dropped(self) -> set[Key]:
        """The source's tensors that only quantized weights need."""
        return quantized.dropped(self._everything, self.quantized if self.dequantizes else {})

    @cached_property
    def tied(self) -> dict[str, dict[str, str]]:
        """The tensors of pickles that are the same as others and not in the result, each with the
        one that is, by the result's file. Each quantized weight has its own codes and scales."""
        own = quantized.dropped(self._everything, self.quantized)
        for weight in self.quantized.values():
            own |= {part.key for part in (weight.codes, *weight.scales)}
        return {
            file: {
                name: kept
                for name, kept in found.tied.items()
                if not {(file, name), (file, kept)} & own
            }
            for file, found in self.pickles.items()
        }

    def notes(self, file: str) -> dict[str, str]:
        """What the metadata of the result's `file`, made of a pickle, must say of tied tensors."""
        return self.tied[file]

    @property
    def source(self) -> Path:
        """The source: a directory or a file."""
        return Path(self.plan.source)

    @cached_property
    def _sources(self) -> dict[str, str]:
        """The path of each file's source, below the root."""
        return {file.path: file.source for file in self.plan.files}

    def source_file(self, file: str) -> Path:
        """Where the source of the result's `file` is."""
        if self.source.is_file():
            return self.source
        return self.source / self._sources.get(file, file)

    @cached_property
    def pickles(self) -> dict[str, Found]:
        """What torch finds in the source's pickles, by the result's file."""
        wanted: dict[str, set[str]] = {}
        for tensor in self.plan.tensors:
            wanted.setdefault(tensor.file, set()).add(tensor.source_name)
        for file, name in self.plan.dropped:
            wanted.setdefault(file, set()).add(name)
        opened = Pickles()
        return {
            file: opened.find(self.source_file(file), self.plan.key, wanted.get(file, set()))
            for file in self._shards
            if is_pickle(self._sources[file])
        }

    @cached_property
    def _shards(self) -> list[str]:
        """The files of the result that hold tensors."""
        return [file.path for file in self.plan.files if file.action == "cast"]

    @cached_property
    def source_headers(self) -> Headers:
        """The tensors of the source, one of those that are the same, by the result's files."""
        return {
            file: {
                name: entry
                for name, entry in entries.items()
                if file not in self.tied or name not in self.tied[file]
            }
            for file, entries in self._everything.items()
        }

    @cached_property
    def _everything(self) -> Headers:
        """The same with all of them."""
        headers: Headers = {file: {**found.entries} for file, found in self.pickles.items()}
        files = [file for file in self._shards if file not in headers]
        try:
            return headers | {file: read_header(self.source_file(file)) for file in files}
        except (OSError, ValueError) as error:
            raise self._changed(error) from error

    def source_json(self, file: str, limit: int) -> Any:
        """The value in a JSON file of the source, which was valid when the plan was made."""
        try:
            return read_json(self.source_file(file), limit)
        except (OSError, ValueError, RecursionError) as error:
            raise self._changed(error) from error

    def weight_map(self, file: str) -> Any:
        """What an index must map to shards, by that of the source: not what is dropped or tied, and
        the dequantized weights by their names in the result."""
        folder = os.path.dirname(file)
        before = self._renamed(self.source_json(file, MAX_INDEX)["weight_map"], folder)
        if not self.dequantizes:
            return before
        names = {weight.codes.key: weight.name for weight in self.quantized.values()}
        keys = {name: (os.path.join(folder, shard), name) for name, shard in before.items()}
        return {
            names.get(key, key[1]): before[name]
            for name, key in keys.items()
            if key not in self.dropped
        }

    def _renamed(self, weight_map: Any, folder: str) -> Any:
        """What an index in a folder says of pickles, with the names of what is made of them, and
        without what is tied."""
        files = {self._sources[path]: path for path in self.pickles}
        renamed = {}
        for name, shard in weight_map.items():
            path = files.get(os.path.normpath(os.path.join(folder, shard)))
            if path is None:
                renamed[name] = shard
            elif name not in self.tied[path]:
                renamed[name] = os.path.join(os.path.dirname(shard), os.path.basename(path))
        return renamed

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
    checkpoint = None
    try:
        options = _options(root / REPORT_NAME)
        checkpoint = Checkpoint.open(source, options.key)
        return Expectation.of_plan(checkpoint.plan(options), options.on_overflow)
    except FileNotFoundError:
        why = f"there is no {REPORT_NAME}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"{REPORT_NAME} does not hold the options of a conversion ({shown(repr(error))})"
    checkpoint = checkpoint or Checkpoint.open(source)
    # With everything carried as it is, each tensor has the name that it has in the source.
    carried = Expectation(checkpoint.plan(Options(to=AS_STORED)), None, "inf", exact=False)
    before = {(tensor.file, tensor.name): tensor.dtype for tensor in carried.plan.tensors}
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
    if all(after.get(key, dtype) == dtype for key, dtype in before.items()):
        return replace(carried, to=target)
    made = {key for key in carried.quantized if after.get(key) in FLOATS}
    cast = {key for key, dtype in before.items() if dtype in FP8 and after.get(key) in FLOATS}
    options = Options(
        to=target or "fp32",
        auto_keep=False,
        skip_quantized=not made,
        unscaled_fp8=bool(cast - made),
    )
    return replace(carried, to=target, plan=checkpoint.plan(options))


def _options(report: Path) -> Options:
    """The options that a report says a result was made with. Raises what reading raises, and
    `TypeError` or `ValueError` for what no conversion writes."""
    found = read_json(report, MAX_REPORT)["options"]
    options = {name: found[name] for name in ("to", "keep", "auto_keep", "skip_quantized")}
    options["unscaled_fp8"] = found.get("unscaled_fp8", False)
    options["key"] = found.get("key")
    flags = (options["auto_keep"], options["skip_quantized"], options["unscaled_fp8"])
    is_key = isinstance(options["key"], str | None)
    if not (isinstance(options["to"], str) and isinstance(options["keep"], list) and is_key):
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
