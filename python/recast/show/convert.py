"""What `convert` prints: warnings first, readable without color."""

from collections.abc import Mapping
from typing import Any

from recast.report import DryRun, Report
from recast.terminal import counted, first_of, grid, heading, marked, plain, render, size

FOUND = {
    "done": "already done, as far as lengths and headers tell; nothing would be written",
    "started": "started before; the same command without --dry-run continues",
}


def dry_run_text(run: DryRun) -> str:
    """The plan, and each file's size before and after."""
    facts = run.facts()
    files = [
        ("", f"{plain(file.path)}: {file.action}, {size(file.source_bytes)} -> {size(file.bytes)}")
        for file in run.plan.files
    ]
    rows = [*_plan_rows(facts), ("files", f"{len(files)}, in the order they are written"), *files]
    found = [FOUND[run.found]] if run.found in FOUND else []
    warnings = marked("warning", "bold yellow", facts["warnings"])
    return render(*found, *warnings, heading(f"plan: {_title(facts)}"), grid(rows))


def report_text(report: Report) -> str:
    """What was done."""
    facts = vars(report)
    rows = [*_plan_rows(facts), ("audit", _audit(report))]
    if (found := report.verification) is not None:
        values = f"{found['values_checked']:,} values"
        tensors = counted(found["tensors_checked"], "tensor")
        text = f"{values} in {tensors} on {found['device']}, in {found['seconds']:.2f} s"
        rows.append(("verified", text))
    if report.already_done:
        done = "already done; nothing was written"
        if report.completed:
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


def _plan_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts, gpu = facts["tensors"], facts["gpu_memory"]
    kept = f", {counts['kept']:,} kept" if counts["kept"] else ""
    made = f"{counts['dequantized']:,} dequantized, " if "dequantized" in counts else ""
    rows = [("tensors", f"{made}{counts['cast']:,} cast, {counts['copied']:,} copied{kept}")]
    if dropped := facts.get("dropped"):
        # With scales, there are also tensors that describe quantized activations.
        rows.append(("left out", plain(f"scales and the like: {first_of(dropped)}")))
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
    seconds = max(report.seconds, 1e-9)
    read, written = int(report.bytes_read / seconds), int(report.bytes_written / seconds)
    return f"{size(read)}/s read, {size(written)}/s written"


def _audit(report: Report) -> str:
    audit = report.audit
    counts = [
        (audit["to_inf"], "beyond the range"),
        (audit["to_zero"], "became zero"),
        (audit["nan"], "NaN in the source"),
        (audit["inf"], "infinite in the source"),
    ]
    parts = [f"{counted(count, 'value')} {what}" for count, what in counts if count]
    if codes := audit.get("nan_codes"):
        parts.append(f"{counted(codes, 'code')} NaN")
    if scales := audit.get("scales"):
        unusual = [(scales["nan"], "NaN"), (scales["inf"], "infinite")]
        unusual += [(scales["zero"], "zero"), (scales["negative"], "negative")]
        parts += [f"{counted(count, 'scale')} {what}" for count, what in unusual if count]
    inexact = audit["inexact_tensors"]
    if inexact:
        of = report.tensors["cast"] + report.tensors.get("dequantized", 0)
        made = "" if "dequantized" in report.tensors else "cast "
        parts.append(f"{inexact:,} of {of:,} {made}tensors were rounded")
    else:
        parts.append("every value is exact")
    return "; ".join(parts)


def _title(facts: Mapping[str, Any]) -> str:
    there = "" if facts["dest"] is None else f" -> {facts['dest']}"
    return f"{facts['source']}{there} in {facts['to']}"
