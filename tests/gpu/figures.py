"""The figures of the GPU suite: their tables, how a case records a row, and the page they make.

It is also a plugin of pytest (`-p figures`), which records the machine and how each case ended.
Rows are appended to the file that `RECAST_GPU_RESULTS` names, so that none is lost where the suite
is stopped; without it, they are printed only. Nothing here imports more than the standard library
before a session starts.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("transformers", "safetensors", "accelerate", "numpy")
RIVALS = ("fastsafetensors", "runai-model-streamer")
UNFINISHED = "did not end"


class Table(NamedTuple):
    """A table of the page; `columns` are the names of a row's values, and their headings."""

    title: str
    says: str
    columns: dict[str, str]


TABLES = {
    "article": Table(
        "Memory of Llama-2-7B",
        "The model is loaded by `recast.load_into`, then cast by torch in place. Bytes are "
        "differences of `torch.cuda.memory_stats()`; expected are the parameters times the bytes "
        "of the dtype, and the two buffers of the rotary embedding. The peak is the most that was "
        "allocated during the step.",
        {
            "loaded": "loaded as",
            "step": "step",
            "requested_expected": "requested, expected",
            "requested": "measured",
            "allocated_expected": "allocated, expected",
            "allocated": "measured",
            "gib": "GiB",
            "peak": "peak",
            "reserved": "reserved",
            "seconds": "seconds",
        },
    ),
    "verified": Table(
        "Llama-2-7B converted and verified",
        "`recast convert` without waiting for the disk; `recast verify` with every value compared "
        "on the GPU, and with a sample.",
        {
            "to": "to",
            "convert": "convert, s",
            "full": "verify every value, s",
            "sample": "verify a sample, s",
            "values": "values compared",
            "wrong": "wrong",
            "requested": "requested, bytes",
            "allocated": "allocated, bytes",
        },
    ),
    "casts": Table(
        "Casts against torch's on the GPU",
        "NaN is compared by class, everything else bit by bit.",
        {"source": "from", "to": "to", "values": "inputs", "wrong": "wrong"},
    ),
    "models": Table(
        "Memory of models, predicted and measured",
        "Small models as transformers saves them, converted, and loaded by both loaders of "
        "`recast verify`. In bytes; what is reserved may differ.",
        {
            "model": "model",
            "to": "to",
            "loader": "loader",
            "requested_expected": "requested, predicted",
            "requested": "measured",
            "allocated_expected": "allocated, predicted",
            "allocated": "measured",
            "reserved_expected": "reserved, predicted",
            "reserved": "measured",
        },
    ),
    "loaded": Table(
        "recast.load onto the GPU",
        "An fp32 model in which every other tensor has all patterns of bits, against `load_file` "
        "and `.to()` on the GPU. Bytes are those of the tensors, and what was requested and "
        "allocated for them.",
        {
            "to": "to",
            "size": "bytes",
            "requested": "requested",
            "allocated": "allocated",
            "wrong": "wrong",
            "streamed": "wrong of recast.tensors",
        },
    ),
    "dequantized": Table(
        "Block fp8, dequantized",
        "Codes of fp8 with a scale for each block of 128 by 128, against codes times scales in "
        "torch on the GPU.",
        {
            "to": "to",
            "values": "values",
            "converted": "wrong when converted",
            "loaded": "wrong when loaded",
            "convert": "convert, s",
            "load": "recast.load, s",
            "verify": "verify, s",
        },
    ),
    "times": Table(
        "Time to load onto the GPU",
        "Both take turns with a warm page cache: medians of 3, after one that does not count. "
        "The others are `load_file` of safetensors, `from_pretrained(dtype=...)` of transformers, "
        "and two loaders for GPUs; all but transformers are followed by torch's `.to(dtype)`. "
        "Peaks are the most that PyTorch's allocator held.",
        {
            "source": "from",
            "to": "to",
            "size": "GB read",
            "rival": "beside",
            "ours": "recast.load, s",
            "theirs": "other, s",
            "times": "times faster",
            "our_peak": "peak GB, recast.load",
            "their_peak": "peak GB, other",
            "wrong": "values that differ",
        },
    ),
    "host_casts": Table(
        "Casts on the host",
        "GB/s read and written, medians of 5. The copy is torch's, of as many bytes in all.",
        {
            "source": "from",
            "to": "to",
            "threads": "threads",
            "recast": "recast.cast",
            "torch": "torch",
            "copy": "copy",
        },
    ),
    "host_conversion": Table(
        "A conversion on the host",
        "fp32 to bf16 in 16 files, without waiting for the disk, with a warm page cache: medians "
        "of 3. The floor is writing as many bytes into as many files from as many threads.",
        {
            "size": "GB read",
            "threads": "threads",
            "convert": "recast, s",
            "floor": "floor, s",
            "ratio": "recast / floor",
        },
    ),
}


def record(table: str, **row: Any) -> None:
    """Records a row of a table, with all its columns, for the case that is running."""
    assert row.keys() == TABLES[table].columns.keys(), f"not the columns of {table}: {[*row]}"
    print(f"\n{table}: " + ", ".join(f"{name} {shown(value)}" for name, value in row.items()))
    case = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    _append({"table": table, "case": case, "row": row})


def _append(line: Mapping[str, Any]) -> None:
    path = os.environ.get("RECAST_GPU_RESULTS")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def machine() -> dict[str, str]:
    """What the figures were measured on, and with."""
    import recast
    import torch
    from recast._core import simd_level

    facts = {"date": time.strftime("%Y-%m-%d"), "GPU": "none"}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["GPU"] = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
        facts["driver"] = _driver()
        facts["CUDA"] = str(torch.version.cuda)
    facts["CPU"] = f"{_cpu()}, {len(os.sched_getaffinity(0))} threads"
    facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    facts["system"] = f"{platform.system()} {platform.release()}"
    facts["Python"], facts["torch"] = platform.python_version(), torch.__version__
    facts["recast"] = f"{recast.__version__}, {simd_level()}"
    return facts | {name: _version(name) for name in (*PACKAGES, *RIVALS)}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.partition("\n")[0]


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((it.partition(": ")[2] for it in lines if it.startswith("model name")), "unknown")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


# The plugin.


def pytest_sessionstart() -> None:
    _append({"machine": machine()})


def pytest_runtest_logstart(nodeid: str) -> None:
    _append({"ended": nodeid, "outcome": UNFINISHED, "seconds": None, "reason": ""})


_parts: dict[str, list[Any]] = {}


def pytest_runtest_logreport(report: Any) -> None:
    parts = _parts.setdefault(report.nodeid, [])
    parts.append(report)
    if report.when != "teardown":
        return
    outcomes = [it.outcome for it in parts]
    outcome = next((it for it in ("failed", "skipped") if it in outcomes), "passed")
    reasons = [_reason(it) for it in parts if it.outcome != "passed"]
    seconds = round(sum(it.duration for it in parts), 2)
    line = {"outcome": outcome, "seconds": seconds, "reason": "\n".join(reasons)}
    _append({"ended": report.nodeid, **line})


def _reason(report: Any) -> str:
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(report.longreprtext)[-4000:]


# The page.


class Found(NamedTuple):
    """All that was recorded."""

    machine: dict[str, str]
    tables: dict[str, list[dict[str, Any]]]
    cases: dict[str, dict[str, Any]]


def read(lines: Iterable[str]) -> Found:
    """What was recorded; of a case that ended, its end."""
    found = Found({}, {name: [] for name in TABLES}, {})
    for text in lines:
        line = json.loads(text)
        if "machine" in line:
            found.machine.update(line["machine"])
        elif "table" in line:
            found.tables[line["table"]].append({"case": line["case"], **line["row"]})
        else:
            found.cases[line.pop("ended")] = line
    return found


def markdown(found: Found, note: str = "") -> str:
    """The page; a note says what is missing."""
    lines = ["# Measured on a GPU", "", *([note, ""] if note else [])]
    lines += _rows({"fact": "", "value": ""}, [*map(_fact, found.machine.items())])
    for name, table in TABLES.items():
        lines += ["", f"## {table.title}", "", table.says, ""]
        rows = found.tables[name]
        lines += _rows(table.columns, rows) if rows else ["Not measured."]
    lines += ["", "## Cases", ""]
    cases = [
        {"case": name.rpartition("/")[2], **case, "reason": _short(case["reason"])}
        for name, case in found.cases.items()
    ]
    lines += _rows({name: name for name in ("case", "outcome", "seconds", "reason")}, cases)
    return "\n".join(lines) + "\n"


def _short(reason: str) -> str:
    """The line of a failure that says what went wrong; all of it is in the JSON."""
    lines = reason.splitlines() or [""]
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    return (errors[0] if errors else lines[-1])[:200]


def _fact(fact: tuple[str, str]) -> dict[str, Any]:
    return dict(zip(("fact", "value"), fact, strict=True))


def _rows(columns: dict[str, str], rows: list[dict[str, Any]]) -> list[str]:
    is_number = [rows and all(isinstance(row[it], int | float) for row in rows) for it in columns]
    lines = [
        "| " + " | ".join(columns.values()) + " |",
        "|" + "|".join("--:" if right else "---" for right in is_number) + "|",
    ]
    for row in rows:
        cells = [shown(row[name]).replace("|", "\\|") for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def shown(value: Any) -> str:
    """A value as the page has it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3f}" if value < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
