"""What a conversion was asked for: by the report in its result, or else inferred from dtypes."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from recast._core import Checkpoint
from recast.errors import RecastError
from recast.options import POLICIES, OnOverflow, Options
from recast.report import REPORT_NAME
from recast.terminal import first_of, shown
from recast.verification.dtypes import FLOATS, FP8, SOURCES, STORED, FloatName, named
from recast.verification.files import MAX_REPORT, read_json
from recast.verification.header import Headers, Key
from recast.verification.promise import AS_STORED, Promise
from recast.verification.source import Source

# The most patterns of `--keep` that are taken from a report: each costs time and memory.
PATTERNS = 256
# The most characters of one.
LONGEST = 4096


@dataclass(frozen=True)
class Asked:
    """What was asked for, and what follows from it."""

    promise: Promise
    report: dict[str, Any] | None
    """What the report in the result says, where there is one."""
    runs: list[str]
    """What a run of that conversion is called, as the report has to call it."""
    invalid: str | None = None
    """Why the report that is there does not say what was asked for."""


def promised(path: str, options: Options, headers: Headers) -> Promise:
    """What converting the source at `path`, which was opened before, with `options` must make, of
    which `headers` are found."""
    to = None if options.to == AS_STORED else named(str(options.to))
    return Promise(Source(Path(path), options.key), options, to, exact=True, made=headers)


def find(source: str, root: Path, headers: Headers, notes: list[str]) -> Asked:
    """What was asked for where the result below `root` was made of `source`: by its report, or else
    inferred from the dtypes in its `headers`, of which `notes` then tell.

    Raises `InputError` where the source cannot be converted so.
    """
    checkpoint, invalid = None, None
    try:
        report = read_json(root / REPORT_NAME, MAX_REPORT)
        options = _options(report)
        checkpoint = Checkpoint.open(source, options.key)
        # Of the plan nothing is used but that there is one, and its name.
        plan = checkpoint.plan(options)
        return Asked(promised(plan.source, options, headers), report, plan.runs)
    except FileNotFoundError:
        why = f"there is no {REPORT_NAME}"
    except (OSError, TypeError, ValueError, RecursionError) as error:
        invalid = error.message if isinstance(error, RecastError) else shown(error)
        why = f"{REPORT_NAME} does not say it"
    checkpoint = checkpoint or Checkpoint.open(source)
    opened = Source(Path(checkpoint.path), None)
    options, to = _inferred(opened, headers, why, notes)
    checkpoint.plan(options)
    return Asked(Promise(opened, options, to, exact=False, made=headers), None, [], invalid)


def _options(report: Any) -> Options:
    """The options that a report says a result was made with. Raises what reading raises, and
    `ValueError` for what no conversion writes."""
    found = report.get("options") if isinstance(report, dict) else None
    if not isinstance(found, dict):
        raise ValueError("it has no options")
    options: dict[str, Any] = {name: found.get(name) for name in ("to", "key", "keep")}
    flags: dict[str, Any] = {name: found.get(name) for name in ("auto_keep", "skip_quantized")}
    flags["unscaled_fp8"] = found.get("unscaled_fp8", False)
    keep, policy = options["keep"], found.get("on_overflow")
    of_type = {
        "to": _is_text(options["to"]),
        "key": options["key"] is None or _is_text(options["key"]),
        "keep": isinstance(keep, list) and all(map(_is_text, keep)),
        "on_overflow": isinstance(policy, str) and policy in POLICIES,
        **{name: isinstance(flag, bool) for name, flag in flags.items()},
    }
    for name, is_right in of_type.items():
        if not is_right:
            raise ValueError(f"its option {name} is none of a conversion")
    if len(keep) > PATTERNS:
        raise ValueError(f"it has more than {PATTERNS} patterns of --keep")
    if any(len(pattern) > LONGEST for pattern in keep):
        raise ValueError(f"it has a pattern of --keep of more than {LONGEST:,} characters")
    return Options(**options, **flags, on_overflow=cast(OnOverflow, policy))


def _is_text(value: Any) -> bool:
    """Whether a value is a string that has a spelling in UTF-8, which half a character has not."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _inferred(
    source: Source, headers: Headers, why: str, notes: list[str]
) -> tuple[Options, FloatName | None]:
    """The options by which a source most likely became a result with these `headers`, and the
    dtype that it was cast to, if it has any floats."""
    # With everything carried as it is, each tensor has the name that it has in the source.
    carried = Promise(source, Options(to=AS_STORED), None, exact=False, made=headers)
    before = _dtypes(carried.headers)
    after = _dtypes(headers)
    target = _target(before, after)
    stored = STORED[target] if target else None
    kept = [
        name
        for (file, name), dtype in before.items()
        if dtype in SOURCES and dtype != stored and after.get((file, name)) == dtype
    ]
    notes.append(f"{why}, so the target is inferred to be the dtype of most tensors: {target}")
    if kept:
        notes.append(f"not cast, which is assumed to be intended: {first_of(kept)}")
    # Their codes may be called otherwise, so that no tensor has another dtype than before.
    made = {key for key in source.quantized if after.get(key) in FLOATS}
    if not made and all(after.get(key, dtype) == dtype for key, dtype in before.items()):
        return Options(to=AS_STORED), target
    cast = {key for key, dtype in before.items() if dtype in FP8 and after.get(key) in FLOATS}
    options = Options(
        to=target or "fp32",
        auto_keep=False,
        skip_quantized=not made,
        unscaled_fp8=bool(cast - made),
    )
    return options, target


def _dtypes(headers: Headers) -> dict[Key, str]:
    return {(file, name): entry.dtype for file in headers for name, entry in headers[file].items()}


def _target(before: dict[Key, str], after: dict[Key, str]) -> FloatName | None:
    """The dtype that tensors were cast to, by majority, of the dtypes of source and result.

    Where no tensor was cast it is the dtype most floats have; `None` where there is no float.
    """
    floats = {key: dtype for key, dtype in after.items() if dtype in FLOATS}
    cast = [dtype for key, dtype in floats.items() if before.get(key) in SOURCES.keys() - {dtype}]
    ranked = Counter(cast or floats.values()).most_common(1)
    return FLOATS[ranked[0][0]] if ranked else None
