"""What recast reports: as data, and in a few words, warnings first, readable without colour."""

import io
import json
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recast import memory
from recast._core import Checkpoint, Plan, Staged

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA_VERSION = 1
REPORT_NAME = "recast.json"
# A CUDA context takes about this much, and no counter of PyTorch's shows it.
CONTEXT = 512 << 20


def summary(plan: Plan, dest: str) -> dict[str, Any]:
    """What is known of a conversion before it runs: the part plan and report have in common."""
    counts = {"cast": 0, "copied": 0, "kept": 0}
    kept: dict[str, list[str]] = {}
    tensors = plan.tensors
    for tensor in tensors:
        counts[{"cast": "cast", "copy": "copied", "keep": "kept"}[tensor.action]] += 1
        if tensor.action == "keep":
            kept.setdefault(tensor.reason, []).append(tensor.name)
    return {
        "source": plan.source,
        "dest": dest,
        "to": plan.to,
        "files": len(plan.files),
        "tensors": counts,
        "parameters": plan.parameters,
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "kept": [{"reason": reason, "tensors": names} for reason, names in kept.items()],
        "gpu_memory": memory.predict(tensor.bytes for tensor in tensors)._asdict(),
        "warnings": list(plan.warnings),
    }


def plan_json(plan: Plan, dest: str) -> dict[str, Any]:
    """The object `convert --dry-run --json` prints: the summary, and every file's exact size."""
    files = [
        {
            "path": file.path,
            "action": file.action,
            "source_bytes": file.source_bytes,
            "bytes": file.bytes,
        }
        for file in plan.files
    ]
    head = {"schema_version": SCHEMA_VERSION, "dry_run": True}
    return {**head, **summary(plan, dest), "planned_files": files}


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
    tensor_audits: list[dict[str, Any]]
    """The same for each tensor that was cast, with `max_abs`, its largest finite magnitude."""
    kept: list[dict[str, Any]]
    """`{reason, tensors, exact_anyway}`: the names of the tensors that kept their dtype, by reason,
    and those among them whose values the target holds exactly, so that a cast loses nothing."""
    gpu_memory: dict[str, int]
    """`requested`, `allocated` and `reserved` by PyTorch once the result is loaded."""
    warnings: list[str]
    identity: dict[str, Any]
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
        facts = summary(plan, dest)
        needless = {
            tensors[audit.tensor].name
            for audit in staged.audits
            if tensors[audit.tensor].action == "keep" and audit.exact
        }
        for group in facts["kept"]:
            group["exact_anyway"] = [name for name in group["tensors"] if name in needless]
        audits: list[dict[str, Any]] = [
            {
                "name": tensors[audit.tensor].name,
                "file": tensors[audit.tensor].file,
                "to_inf": audit.to_inf,
                "to_zero": audit.to_zero,
                "nan": audit.nan,
                "inf": audit.inf,
                "max_abs": audit.max_abs,
                "exact": audit.exact,
            }
            for audit in staged.audits
            # The core examines kept tensors too; what would have become of them is no result.
            if tensors[audit.tensor].action == "cast"
        ]
        totals = {
            key: sum(audit[key] for audit in audits) for key in ("to_inf", "to_zero", "nan", "inf")
        }
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
        """The report that the finished conversion in `dest` left."""
        with open(os.path.join(dest, REPORT_NAME), encoding="ascii") as file:
            fields = json.load(file)
        fields["tensor_audits"] = fields["audit"].pop("tensors")
        return cls(**{**fields, "dest": dest, "already_done": True})

    def to_json(self) -> str:
        """The report as one JSON object, ASCII only."""
        fields = dict(vars(self))
        fields["audit"] = {**self.audit, "tensors": fields.pop("tensor_audits")}
        return json_text({"schema_version": fields.pop("schema_version"), **fields})


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is made of. `to_json()` is what `inspect --json` prints.

    Sizes are in bytes; `dtypes` has safetensors' names as keys.
    """

    path: str
    files: int
    """Shards: files that hold tensors."""
    tensors: int
    parameters: int
    """Elements of all tensors."""
    bytes: int
    """Tensor data, without headers."""
    dtypes: dict[str, dict[str, int]]
    """`{dtype: {tensors, parameters, bytes}}`."""
    gpu_memory: dict[str, dict[str, int]]
    """`{as_stored|fp32|fp16|bf16: {requested, allocated, reserved}}`, the built-in keep list
    respected. A quantised checkpoint has only `as_stored`."""
    device: dict[str, Any] | None
    """`{name, free, total}` of the first GPU, when there is one."""
    notes: list[str]
    tensor_list: list[dict[str, Any]] = field(repr=False)
    """`{name, dtype, shape, bytes, file}` of every tensor."""
    schema_version: int = SCHEMA_VERSION

    def to_json(self, *, tensor_list: bool = False) -> str:
        """The inspection as one JSON object, ASCII only, with `tensor_list` when asked for."""
        fields = dict(vars(self))
        if not tensor_list:
            del fields["tensor_list"]
        return json_text({"schema_version": fields.pop("schema_version"), **fields})


def json_text(value: dict[str, Any]) -> str:
    """`value` as indented JSON without NaN or infinity, which JSON does not have."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def exactness(checkpoint: Checkpoint) -> list[str]:
    """A sentence on what the conversion that made `checkpoint` kept of the values.

    Empty where there is no `recast.json`, or where it is not about the tensors that are there.
    """
    path = os.path.join(checkpoint.path, REPORT_NAME)
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8") as file:
        try:
            report = json.load(file)
        except ValueError as error:
            return [f"{REPORT_NAME} is not valid JSON: {error}"]
    audit = report.get("audit") if isinstance(report, dict) else None
    audits = audit.get("tensors") if isinstance(audit, dict) else None
    if not isinstance(audits, list) or not all(isinstance(row, dict) for row in audits):
        return []
    stored = {(tensor.file, tensor.name) for tensor in checkpoint.tensors}
    audited = {(str(row.get("file")), str(row.get("name"))) for row in audits}
    if not audits or not audited <= stored or not all(row.get("exact") is True for row in audits):
        return []
    return [
        f"converted without loss: all {len(audits)} cast tensors are exactly representable "
        f"in {report.get('to')}"
    ]


def plain(text: str) -> str:
    """`text` with control characters escaped: a tensor's name must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: int) -> str:
    """A number of bytes in binary units: `12.55 GiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def plan_text(plan: Plan, dest: str) -> str:
    """What `convert --dry-run` prints: the plan, and each file's size before and after."""
    facts = summary(plan, dest)
    files = [
        ("", f"{plain(file.path)}: {file.action}, {size(file.source_bytes)} -> {size(file.bytes)}")
        for file in plan.files
    ]
    rows = [*_plan_rows(facts), ("files", f"{len(files)}, in the order they are written"), *files]
    return _text(*_warnings(facts["warnings"]), _title(facts, "plan: "), _rows(rows))


def report_text(report: Report) -> str:
    """What `convert` prints when it is done."""
    facts = vars(report)
    seconds = max(report.seconds, 1e-9)
    rows = [
        *_plan_rows(facts),
        ("audit", _audit(report)),
    ]
    if (found := report.verification) is not None:
        values = f"{found['values_checked']:,} values"
        tensors = _count(found["tensors_checked"], "tensor")
        text = f"{values} in {tensors} on {found['device']}, in {found['seconds']:.2f} s"
        rows.append(("verified", text))
    if report.already_done:
        return _text("already done; nothing was written", _title(facts), _rows(rows))
    if report.resumed_files:
        rows.append(("resumed", f"{_count(report.resumed_files, 'file')} staged before"))
    rows.append(
        (
            "time",
            f"{report.seconds:.2f} s, {report.bytes_read / seconds / 1e9:.2f} GB/s read, "
            f"{report.bytes_written / seconds / 1e9:.2f} GB/s written",
        )
    )
    return _text(*_warnings(report.warnings), _title(facts), _rows(rows))


def inspection_text(inspection: Inspection) -> str:
    """What `inspect` prints."""
    rows = [
        ("shards", f"{inspection.files:,}"),
        ("tensors", f"{inspection.tensors:,}"),
        ("parameters", f"{inspection.parameters:,}"),
        ("size", f"{size(inspection.bytes)} ({inspection.bytes:,} bytes)"),
    ]
    rows += [
        (plain(name), f"{size(row['bytes'])} in {_count(row['tensors'], 'tensor')}")
        for name, row in inspection.dtypes.items()
    ]
    gpu = inspection.device
    if gpu is None:
        title = "GPU memory (PyTorch)"
    else:
        title = f"GPU memory (PyTorch), on {plain(gpu['name'])} with {size(gpu['free'])} free"
    needs = [
        (
            name.replace("_", " "),
            f"{size(need['allocated'])} allocated, {size(need['reserved'])} reserved"
            + (f": {_fit(need['reserved'], gpu['free'])}" if gpu else ""),
        )
        for name, need in inspection.gpu_memory.items()
    ]
    notes = [f"note: {plain(note)}" for note in inspection.notes]
    return _text(plain(inspection.path), _rows(rows), title, _rows(needs), *notes)


def tensors_text(inspection: Inspection) -> str:
    """What `inspect --tensors` prints: a tensor a line, never folded, so that grep finds it."""
    lines = [
        (
            plain(tensor["name"]),
            plain(tensor["dtype"]),
            "[" + ",".join(str(extent) for extent in tensor["shape"]) + "]",
            str(tensor["bytes"]),
            plain(tensor["file"]),
        )
        for tensor in inspection.tensor_list
    ]
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(4)]
    return "".join(
        "  ".join(part.ljust(width) for part, width in zip(line[:4], widths, strict=True))
        + f"  {line[4]}\n"
        for line in lines
    )


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _fit(need: int, free: int) -> str:
    if need + CONTEXT <= free:
        return "fits"
    return "a tight fit" if need <= free else "does not fit"


def _plan_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    counts, gpu = facts["tensors"], facts["gpu_memory"]
    rows = [("tensors", f"{counts['cast']:,} cast, {counts['copied']:,} copied")]
    for group in facts["kept"]:
        names = group["tensors"]
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        exact = len(group.get("exact_anyway", []))
        needless = f" ({exact:,} of {len(names):,} exact in {facts['to']} anyway)" if exact else ""
        rows.append(("kept", plain(f"{names[0]}{more}: {group['reason']}{needless}")))
    rows.append(("size", f"{size(facts['bytes_read'])} -> {size(facts['bytes_written'])}"))
    on_gpu = f"{size(gpu['allocated'])} allocated, {size(gpu['reserved'])} reserved"
    rows.append(("on a GPU", f"{on_gpu} by PyTorch"))
    return rows


def _audit(report: Report) -> str:
    audit = report.audit
    counts = [
        (audit["to_inf"], "beyond the range"),
        (audit["to_zero"], "became zero"),
        (audit["nan"], "NaN in the source"),
        (audit["inf"], "infinite in the source"),
    ]
    parts = [f"{_count(count, 'value')} {what}" for count, what in counts if count]
    inexact = audit["inexact_tensors"]
    if inexact:
        parts.append(f"{inexact:,} of {len(report.tensor_audits):,} cast tensors were rounded")
    else:
        parts.append("every value is exact")
    return "; ".join(parts)


def _warnings(warnings: list[str]) -> list["RenderableType"]:
    from rich.text import Text

    return [Text.assemble(("warning: ", "bold yellow"), plain(text)) for text in warnings]


def _title(facts: dict[str, Any], prefix: str = "") -> "RenderableType":
    from rich.text import Text

    return Text(
        plain(f"{prefix}{facts['source']} -> {facts['dest']} in {facts['to']}"), style="bold"
    )


def _rows(rows: list[tuple[str, str]]) -> "RenderableType":
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(f"  {label}", value)
    return grid


def _text(*parts: "RenderableType") -> str:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=terminal,
        # A pipe has no width; lines are only ever folded for a terminal.
        width=None if terminal else 10_000,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        console.print(part)
    return "".join(f"{line.rstrip(' ')}\n" for line in text.getvalue().split("\n")[:-1])
