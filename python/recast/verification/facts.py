"""What the report in a result states, against what source and result are."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recast._core import RECIPE_FORMAT
from recast.names import json_names
from recast.report import REPORT_NAME
from recast.verification.files import walk
from recast.verification.header import Key
from recast.verification.intent import Asked
from recast.verification.problems import LISTED, Problem, problem
from recast.verification.promise import AS_STORED, Promise
from recast.verification.tally import Tally

COUNTS = ("to_inf", "to_zero", "nan", "inf")
"""What is counted of each tensor that was cast, and of all of them."""

SHOWN = 200
"""Characters that are shown of what is stated."""


def of_another_run(asked: Asked) -> Iterator[Problem]:
    """Whether the report in a result is that of a conversion of another source, or with other
    options than it states."""
    if asked.report is None:
        return
    # What says that it is of another format cannot be told from one that was changed.
    if (found := asked.report.get("format")) != RECIPE_FORMAT or isinstance(found, bool):
        yield _stated("format", found, RECIPE_FORMAT)
    if asked.report.get("run") not in asked.runs:
        yield problem("report_other", REPORT_NAME)


def differences(
    promise: Promise, report: dict[str, Any], dest: Path, counted: dict[Key, Tally] | None
) -> Iterator[Problem]:
    """In what the report of the good result in `dest` is wrong. `counted` is what was counted of
    the values that were cast, where all were compared."""
    there = {json_names(file): file for file in walk(dest) if file != REPORT_NAME}
    rows = [row for row in _list(report, "published_files") if isinstance(row, dict)]
    stated = {str(row.get("path")): row for row in rows}
    sizes = {file: (dest / there[file]).stat().st_size for file in there}
    for file in sorted(stated.keys() - there.keys()):
        yield _stated(f"published_files, {file}", stated[file].get("bytes"), None)
    for file, size in sizes.items():
        # Hidden files are of whoever looks after the folder.
        is_hidden = file.rpartition("/")[2].startswith(".")
        found = stated[file].get("bytes") if file in stated else None
        if found != size and not (found is None and is_hidden):
            yield _stated(f"published_files, {file}", found, size)
    sources = promise.source
    planned = {*sources.shards, *sources.indexes, *sources.settings, *sources.sidecars}
    planned |= sources.others
    made = sorted(planned & set(there.values()))
    for file in made:
        path, row = sources.file(file), stated.get(json_names(file), {}).get("source")
        row = row if isinstance(row, dict) else {}
        origin = json_names(os.path.relpath(path, sources.root)), path.stat().st_size
        for key, value in zip(("path", "bytes"), origin, strict=True):
            if (found := row.get(key)) != value:
                yield _stated(f"published_files, {file}, source.{key}", found, value)
    read = sum(promise.source.file(file).stat().st_size for file in made)
    written = sum(sizes[json_names(file)] for file in made)
    tensors = [tensor for file in promise.tensors.values() for tensor in file.values()]
    wanted: dict[str, Any] = {
        "to": AS_STORED if promise.is_as_stored else promise.to,
        "files": len(made),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "bytes_read": read,
        "bytes_written": written,
    }
    names = {"dropped": _list(report, "dropped")}
    expected = {"dropped": [name for _, name in promise.dropped]}
    if all(len(tensor.dtypes) == 1 for tensor in tensors):
        weights = sum(tensor.is_dequantized for tensor in tensors)
        wanted["tensors.cast"] = sum(tensor.is_cast for tensor in tensors) - weights
        wanted["tensors.dequantized"] = weights or None
        wanted["tensors.kept"] = len(promise.kept)
        cast = sum(tensor.is_cast for tensor in tensors)
        wanted["tensors.copied"] = len(tensors) - cast - len(promise.kept)
        groups = [group for group in _list(report, "kept") if isinstance(group, dict)]
        names["kept"] = [name for group in groups for name in _list(group, "tensors")]
        expected["kept"] = promise.kept
    for key, value in wanted.items():
        found = _at(report, key)
        # To Python, `True` is 1.
        if found != value or isinstance(found, bool):
            yield _stated(key, found, value)
    for key in names:
        if sorted(map(str, names[key])) != sorted(expected[key]):
            yield _stated(key, sorted(map(str, names[key])), sorted(expected[key]))
    yield from _audits(promise, report, counted)


def _stated(key: str, found: object, expected: object) -> Problem:
    return problem("report", REPORT_NAME, key=key, found=_short(found), expected=_short(expected))


def _short(value: object) -> str | None:
    if value is None:
        return None
    text = f"{value:,}" if type(value) is int else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _at(report: Any, key: str) -> Any:
    """What is at the path of a key; nothing where there is no such path."""
    for part in key.split("."):
        report = report.get(part) if isinstance(report, dict) else None
    return report


def _list(report: dict[str, Any], key: str) -> list[Any]:
    found = report.get(key)
    return found if isinstance(found, list) else []


def _audits(
    promise: Promise, report: dict[str, Any], counted: dict[Key, Tally] | None
) -> Iterator[Problem]:
    """In what the audit is not of the tensors that were cast, or not what was counted."""
    audit = report.get("audit")
    audit = audit if isinstance(audit, dict) else {}
    rows = [row for row in _list(audit, "tensors") if isinstance(row, dict)]
    stated = {(str(row.get("file")), str(row.get("name"))): row for row in rows}
    cast = {
        (json_names(file), name): (file, name)
        for file, tensors in promise.tensors.items()
        for name, tensor in tensors.items()
        if tensor.is_cast and len(tensor.dtypes) == 1
    }
    each = [tensor for file in promise.tensors.values() for tensor in file.values()]
    is_known = all(len(tensor.dtypes) == 1 for tensor in each)
    sums = dict.fromkeys(COUNTS, 0)
    sums["inexact_tensors"] = sum(row.get("exact") is False for row in stated.values())
    wrong = 0
    for key, own in cast.items():
        row = stated.get(key, {})
        numbers = counted.get(own) if counted is not None else None
        names = (*COUNTS, "max_abs", "exact") if numbers else ()
        fields = {name: getattr(numbers, name) for name in names}
        fields = {name: value for name, value in fields.items() if value is not None}
        for name, value in fields.items():
            if row.get(name) != value:
                wrong += 1
                if wrong <= LISTED:
                    yield _stated(f"audit.tensors, {own[1]}, {name}", row.get(name), value)
        if not row and not fields:
            wrong += 1
            if wrong <= LISTED:
                yield _stated(f"audit.tensors, {own[1]}", None, "a tensor that was cast")
    extra = stated.keys() - cast.keys() if is_known else set()
    for _, name in sorted(extra)[:LISTED]:
        yield _stated(f"audit.tensors, {name}", "a tensor that was cast", None)
    for row in stated.values():
        for name in COUNTS:
            sums[name] += row[name] if type(row.get(name)) is int else 0
    for name, total in sums.items():
        found = audit.get(name)
        if found != total or isinstance(found, bool):
            yield _stated(f"audit.{name}", found, total)
