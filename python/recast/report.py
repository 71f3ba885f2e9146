"""What recast reports: as data, and in a few words, warnings first, readable without colour."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recast._core import Converted, Plan
from recast.errors import OutputError
from recast.gpu.predict import MemoryDict, predict
from recast.names import json_names
from recast.terminal import counted, first_of, grid, heading, marked, plain, render, size

SCHEMA_VERSION = 1
REPORT_NAME = "recast.json"
PLAN_FOUND = {
    "done": "already done, as far as lengths and headers tell; nothing would be written",
    "begun": "begun before; the same command without --dry-run continues",
}
# What is only of one run, and so not in `recast.json`.
RUN = (
    *("source", "dest", "seconds", "gpu_memory", "resumed_files", "already_done", "compared"),
    "verification",
)
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
COUNTS = ("to_inf", "to_zero", "nan", "inf")


def summary(plan: Plan, dest: str) -> dict[str, Any]:
    """What is known of a conversion before it runs: the part plan and report have in common."""
    facts: dict[str, Any] = json.loads(plan.summary())
    del facts["audit"], facts["schema_version"]
    for group in facts["kept"]:
        del group["exact_anyway"]
    return {"source": plan.source, "dest": dest, **facts, "gpu_memory": _gpu_memory(plan)}


def _gpu_memory(plan: Plan) -> MemoryDict:
    return predict(plan.tensor_bytes).to_dict()


def plan_json(plan: Plan, dest: str, found: str) -> str:
    """What `convert --dry-run --json` prints: the summary, and every file's exact size.

    `found` is what `look` says is there.
    """
    files = [picked(file, "path", "action", "source_bytes", "bytes") for file in plan.files]
    head = {"dry_run": True, "already_done": found == "done", "resumes": found == "begun"}
    return json_text({**head, **summary(plan, dest), "planned_files": files})


@dataclass(frozen=True)
class Report:
    """What a conversion did. `to_json()` is what `convert --json` prints: `recast.json`, and what
    is only of this run.

    Sizes are in bytes and `seconds` is from opening the source to the last rename.
    """

    source: str
    dest: str
    to: str
    files: int
    """Files in the result, those that describe the others aside."""
    tensors: dict[str, int]
    """How many were `cast`, `copied` (not of a dtype recast casts, or already right), `kept`."""
    parameters: int
    bytes_read: int
    bytes_written: int
    seconds: float
    audit: dict[str, int]
    """Values that became infinite or zero (`to_inf`, `to_zero`), `nan` and `inf` that the source
    had, and `inexact_tensors`: how many lost bits to rounding."""
    kept: list[dict[str, Any]] = field(repr=False)
    """`{reason, tensors, exact_anyway}`: the names of the tensors that kept their dtype, by reason,
    and those among them whose values the target holds exactly, so that a cast loses nothing."""
    gpu_memory: MemoryDict
    """`requested`, `allocated` and `reserved` by PyTorch once the result is loaded."""
    warnings: list[str]
    resumed_files: int = 0
    """Files that were staged before this run, by one that was interrupted or beside it."""
    already_done: bool = False
    """Whether this run found the result complete and did nothing; the rest is then the report of
    the run that made it."""
    compared: str | None = None
    """What was compared to be sure that the result is right, where it was there before."""
    verification: dict[str, Any] | None = None
    """What `Verification.to_dict` gives, when the result was verified before it was published."""
    schema_version: int = SCHEMA_VERSION
    _converted: Converted | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        plan: Plan,
        converted: Converted,
        dest: str,
        seconds: float,
        *,
        verification: dict[str, Any] | None,
    ) -> "Report":
        """The report on `plan`, of which `converted` came in `seconds`."""
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

    @property
    def tensor_audits(self) -> list[dict[str, Any]]:
        """The audit of each tensor that was cast, with `name`, `file`, and `max_abs`, its largest
        finite magnitude. Raises `OutputError` where it is read from a result that is not there any
        more."""
        audits: list[dict[str, Any]] = self._published()["audit"]["tensors"]
        return audits

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
                "convert again with overwrite, which replaces it",
            ) from error

    def to_json(self) -> str:
        """The report as one JSON object, ASCII only."""
        ours = {key: getattr(self, key) for key in RUN}
        made = self._converted.report() if self._converted else None
        if made is None:
            return json_text({**self._published(), **ours})
        # As text, because objects of a hundred thousand tensors take much more memory.
        theirs = NOT_ASCII.sub(lambda match: _encode(match[0])[1:-1], made.decode())
        first, _, rest = theirs.removeprefix("{\n").partition("\n")
        assert first == f'  "schema_version": {SCHEMA_VERSION},'
        return json_text(ours).removesuffix("\n}\n") + ",\n" + rest


def picked(thing: object, *names: str) -> dict[str, Any]:
    """Some attributes of an object of the core."""
    return {name: getattr(thing, name) for name in names}


def json_text(value: Mapping[str, Any]) -> str:
    """`value` as indented JSON, the version first; NaN and infinity, which it lacks, are errors."""
    return _indented({"schema_version": SCHEMA_VERSION, **value}, "\n") + "\n"


def _indented(value: Any, newline: str) -> str:
    """A list's items stand on a line each: of tensors there may be very many."""
    inner = newline + "  "
    if isinstance(value, Mapping) and value:
        members = (f"{inner}{_encode(key)}: {_indented(value[key], inner)}" for key in value)
        return f"{{{','.join(members)}{newline}}}"
    if isinstance(value, list) and value:
        return f"[{','.join(inner + _encode(item) for item in value)}{newline}]"
    return _encode(value)


def _encode(value: Any) -> str:
    text = _encode_utf8(value)
    # The sign of a string that is not UTF-8, or of a character that JSON writes as a pair.
    return _encode_utf8(json_names(value)) if "\\udc" in text else text


_encode_utf8 = json.JSONEncoder(allow_nan=False).encode


def plan_text(plan: Plan, dest: str, found: str) -> str:
    """What `convert --dry-run` prints: the plan, and each file's size before and after."""
    facts = summary(plan, dest)
    files = [
        ("", f"{plain(file.path)}: {file.action}, {size(file.source_bytes)} -> {size(file.bytes)}")
        for file in plan.files
    ]
    rows = [*_plan_rows(facts), ("files", f"{len(files)}, in the order they are written"), *files]
    there = [PLAN_FOUND[found]] if found in PLAN_FOUND else []
    warnings = marked("warning", "bold yellow", facts["warnings"])
    return render(*there, *warnings, heading(f"plan: {_title(facts)}"), grid(rows))


def report_text(report: Report) -> str:
    """What `convert` prints when it is done."""
    facts = vars(report)
    rows = [*_plan_rows(facts), ("audit", _audit(report))]
    if (found := report.verification) is not None:
        values = f"{found['values_checked']:,} values"
        tensors = counted(found["tensors_checked"], "tensor")
        text = f"{values} in {tensors} on {found['device']}, in {found['seconds']:.2f} s"
        rows.append(("verified", text))
    if report.already_done:
        done = "already done; nothing was written"
        if report._converted is not None and report._converted.completed:
            done = "the publication that had begun is complete"
        return render(f"{done} ({report.compared})", heading(_title(facts)), grid(rows))
    if report.resumed_files:
        rows.append(("resumed", f"{counted(report.resumed_files, 'file')} staged before"))
    seconds = f"{report.seconds:.2f}" if report.seconds >= 0.1 else f"{report.seconds:.3f}"
    # Verifying takes most of the time where it is done, so the rate would not be the conversion's.
    rate = "" if report.verification else f", {_rate(report)}"
    rows.append(("time", f"{seconds} s{rate}"))
    warnings = marked("warning", "bold yellow", report.warnings)
    return render(*warnings, heading(_title(facts)), grid(rows))


def _plan_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    counts, gpu = facts["tensors"], facts["gpu_memory"]
    kept = f", {counts['kept']:,} kept" if counts["kept"] else ""
    rows = [("tensors", f"{counts['cast']:,} cast, {counts['copied']:,} copied{kept}")]
    for group in facts["kept"]:
        names = group["tensors"]
        exact = len(group.get("exact_anyway", []))
        needless = f" ({exact:,} of {len(names):,} exact in {facts['to']} anyway)" if exact else ""
        rows.append(("kept", plain(f"{first_of(names)}: {group['reason']}{needless}")))
    rows.append(("size", f"{size(facts['bytes_read'])} -> {size(facts['bytes_written'])}"))
    on_gpu = f"{size(gpu['allocated'])} allocated, {size(gpu['reserved'])} reserved"
    rows.append(("on a GPU", f"{on_gpu} by PyTorch"))
    return rows


def _rate(report: Report) -> str:
    parts = []
    for count, what in ((report.bytes_read, "read"), (report.bytes_written, "written")):
        speed = count / max(report.seconds, 1e-9) / 1e6
        unit = f"{speed / 1000:.2f} GB/s" if speed >= 1000 else f"{speed:.0f} MB/s"
        parts.append(f"{unit} {what}")
    return ", ".join(parts)


def _audit(report: Report) -> str:
    audit = report.audit
    counts = [
        (audit["to_inf"], "beyond the range"),
        (audit["to_zero"], "became zero"),
        (audit["nan"], "NaN in the source"),
        (audit["inf"], "infinite in the source"),
    ]
    parts = [f"{counted(count, 'value')} {what}" for count, what in counts if count]
    inexact = audit["inexact_tensors"]
    if inexact:
        parts.append(f"{inexact:,} of {report.tensors['cast']:,} cast tensors were rounded")
    else:
        parts.append("every value is exact")
    return "; ".join(parts)


def _title(facts: dict[str, Any]) -> str:
    return f"{facts['source']} -> {facts['dest']} in {facts['to']}"
