"""What recast reports: as data, and in a few words, warnings first, readable without colour."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recast import memory
from recast._core import Plan, PlannedTensor, Staged
from recast.errors import OutputError
from recast.terminal import counted, first_of, grid, heading, marked, plain, render, size

SCHEMA_VERSION = 1
REPORT_NAME = "recast.json"
PLAN_FOUND = {
    "done": "already done; nothing would be written",
    "begun": "begun before; the same command without --dry-run continues",
}
COUNTS = ("to_inf", "to_zero", "nan", "inf")


def summary(plan: Plan, tensors: list[PlannedTensor], dest: str) -> dict[str, Any]:
    """What is known of a conversion before it runs: the part plan and report have in common.

    `tensors` are the plan's, which makes them anew whenever it is asked.
    """
    actions = Counter(tensor.action for tensor in tensors)
    kept: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.action == "keep":
            kept.setdefault(tensor.reason, []).append(tensor.name)
    return {
        "source": plan.source,
        "dest": dest,
        "to": plan.to,
        "files": len(plan.files),
        "tensors": {
            "cast": actions["cast"],
            "copied": actions["copy"],
            "kept": actions["keep"],
        },
        "parameters": plan.parameters,
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "kept": [{"reason": reason, "tensors": names} for reason, names in kept.items()],
        "gpu_memory": memory.predict(plan.tensor_bytes)._asdict(),
        "warnings": list(plan.warnings),
    }


def plan_json(plan: Plan, dest: str, found: str) -> str:
    """What `convert --dry-run --json` prints: the summary, and every file's exact size.

    `found` is what `check_destination` says is there.
    """
    files = [picked(file, "path", "action", "source_bytes", "bytes") for file in plan.files]
    head = {"dry_run": True, "already_done": found == "done", "resumes": found == "begun"}
    return json_text({**head, **summary(plan, plan.tensors, dest), "planned_files": files})


@dataclass(frozen=True)
class Report:
    """What a conversion did. `to_json()` is what `convert --json` prints and `recast.json` holds.

    Sizes are in bytes and `seconds` is from opening the source to the last rename.
    """

    source: str
    dest: str
    to: str
    files: int
    """Files in the result, `recast.json` aside."""
    tensors: dict[str, int]
    """How many were `cast`, `copied` (not of a dtype recast casts, or already right), `kept`."""
    parameters: int
    bytes_read: int
    bytes_written: int
    seconds: float
    audit: dict[str, int]
    """Values that became infinite or zero (`to_inf`, `to_zero`), `nan` and `inf` that the source
    had, and `inexact_tensors`: how many lost bits to rounding."""
    tensor_audits: list[dict[str, Any]] = field(repr=False)
    """The same for each tensor that was cast, with `max_abs`, its largest finite magnitude."""
    kept: list[dict[str, Any]] = field(repr=False)
    """`{reason, tensors, exact_anyway}`: the names of the tensors that kept their dtype, by reason,
    and those among them whose values the target holds exactly, so that a cast loses nothing."""
    gpu_memory: dict[str, int]
    """`requested`, `allocated` and `reserved` by PyTorch once the result is loaded."""
    warnings: list[str]
    identity: dict[str, Any] = field(repr=False)
    """What the run is: the source's files as they were and the options that decide about the
    result. The same run again is recognised by it."""
    resumed_files: int = 0
    """Files that an interrupted run before this one had staged."""
    already_done: bool = False
    """Whether this run found the result complete and did nothing; the rest is then the report of
    the run that made it."""
    verification: dict[str, Any] | None = None
    """What `Verification.to_dict` gives, when the result was verified before it was published."""
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def of(
        cls,
        plan: Plan,
        staged: Staged,
        dest: str,
        seconds: float,
        *,
        verification: dict[str, Any] | None,
    ) -> "Report":
        """The report on `plan`, carried out as `staged` in `seconds`."""
        tensors = plan.tensors
        facts = summary(plan, tensors, dest)
        audits: list[dict[str, Any]] = []
        needless = set()
        for audit in staged.audits:
            tensor = tensors[audit.tensor]
            # The core examines kept tensors too; what would have become of them is no result.
            if tensor.action == "cast":
                found = picked(audit, *COUNTS, "max_abs", "exact")
                audits.append({"name": tensor.name, "file": tensor.file, **found})
            elif audit.exact:
                needless.add(tensor.name)
        for group in facts["kept"]:
            group["exact_anyway"] = [name for name in group["tensors"] if name in needless]
        totals = {key: sum(audit[key] for audit in audits) for key in COUNTS}
        totals["inexact_tensors"] = sum(audit["exact"] is False for audit in audits)
        return cls(
            **facts,
            seconds=seconds,
            audit=totals,
            tensor_audits=audits,
            identity=json.loads(staged.identity),
            resumed_files=staged.resumed_files,
            verification=verification,
        )

    @classmethod
    def read(cls, dest: str) -> "Report":
        """The report that the finished conversion in `dest` left. Raises `OutputError`."""
        path = os.path.join(dest, REPORT_NAME)
        try:
            with open(path, encoding="ascii") as file:
                fields = json.load(file)
            fields["tensor_audits"] = fields["audit"].pop("tensors")
            return cls(**{**fields, "dest": dest, "already_done": True})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{path}: is missing or not as recast left it",
                "convert again with --overwrite, which replaces it",
            ) from error

    def to_json(self) -> str:
        """The report as one JSON object, ASCII only."""
        fields = {**vars(self), "audit": {**self.audit, "tensors": self.tensor_audits}}
        del fields["tensor_audits"]
        return json_text(fields)


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


_encode = json.JSONEncoder(allow_nan=False).encode


def plan_text(plan: Plan, dest: str, found: str) -> str:
    """What `convert --dry-run` prints: the plan, and each file's size before and after."""
    facts = summary(plan, plan.tensors, dest)
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
        return render("already done; nothing was written", heading(_title(facts)), grid(rows))
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
        parts.append(f"{inexact:,} of {len(report.tensor_audits):,} cast tensors were rounded")
    else:
        parts.append("every value is exact")
    return "; ".join(parts)


def _title(facts: dict[str, Any]) -> str:
    return f"{facts['source']} -> {facts['dest']} in {facts['to']}"
