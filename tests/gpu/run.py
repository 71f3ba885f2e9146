"""Runs the GPU suite on a bare machine, and writes what it found as JSON and as a Markdown page.

    python3 tests/gpu/run.py --out results

The machine needs a GPU of 40 GB, 45 GiB of disk, and a Python with torch, transformers 5, pytest,
xxhash, and what recast requires (click, ml_dtypes, numpy, rich, safetensors). accelerate,
fastsafetensors and runai-model-streamer are used where they are there. recast is the wheel in
`dist/` (`make dist` builds it elsewhere).

All of it should take 5 to 6 minutes: 15 s to start, 15 s for casts, 40 s for verifying, 15 s for
fp8, 50 s for loading, 30 s for the host, and 165 s for Llama-2-7B, half of it to write and read
27 GB. What is left when the time has run out does not run; what was found until then is written
all the same.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import figures

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Quick and certain ones first, so that little is lost where the time runs out.
FILES = ("casts", "verify", "dequantized", "load", "host", "llama_2_7b")


def lay_out(site: Path, wheel: Path | None) -> None:
    """Unpacks a wheel as pip would, if one is given; in any case there is a command `recast`."""
    if wheel is not None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    command = site / "bin" / "recast"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m recast "$@"\n')
    command.chmod(0o755)


def environment(site: Path, lines: Path, dry: bool) -> dict[str, str]:
    """The environment of the tests; what they find goes to `lines`."""
    # Settings of the allocator would change what is predicted, and measured.
    hidden = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTEST_ADDOPTS")
    found = {name: value for name, value in os.environ.items() if name not in hidden}
    places = [str(site), str(HERE), *filter(None, [found.get("PYTHONPATH")])]
    return {
        **found,
        "PYTHONPATH": os.pathsep.join(places),
        "PATH": os.pathsep.join([str(site / "bin"), found["PATH"]]),
        "HF_HUB_OFFLINE": "1",
        "RECAST_GPU_RESULTS": str(lines),
        "RECAST_GPU_DRY": "1" if dry else "",
    }


def run(folder: Path, env: dict[str, str], seconds: float) -> int | None:
    """Runs the tests; their exit code, or `None` where they were stopped."""
    # What the project asks of pytest needs plugins that a bare machine may lack.
    options = ["-o", "addopts=", "-o", "timeout=0", "-W", "ignore::pytest.PytestConfigWarning"]
    options += ["-p", "figures", "-p", "no:cacheprovider", "-s", "-v"]
    # Models are removed when their test has ended: all of them do not fit on the disk.
    options += ["--basetemp", str(folder), "-o", "tmp_path_retention_policy=none"]
    files = [str(HERE / f"test_gpu_{name}.py") for name in FILES]
    command = [sys.executable, "-m", "pytest", *options, *files]
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    try:
        return process.wait(seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        # With all that they have started.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def main() -> int:
    """Unpacks, runs, writes; fails where a case does, and where the suite was stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out = os.environ.get("OUT") or "gpu-results"
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for the results")
    parser.add_argument("--minutes", type=float, default=8, help="limit for all cases")
    parser.add_argument("--wheel", type=Path, help="default: the newest in dist/")
    parser.add_argument("--installed", action="store_true", help="no wheel: what is installed")
    parser.add_argument("--dry", action="store_true", help="run on the CPU, with small sizes")
    given = parser.parse_args()
    built = sorted(ROOT.glob("dist/*.whl"), key=lambda path: path.stat().st_mtime)
    wheel = None if given.installed else given.wheel or (built[-1] if built else None)
    if wheel is None and not given.installed:
        parser.error("there is no wheel in dist/: build one with make dist")
    given.out.mkdir(parents=True, exist_ok=True)
    lines = given.out.resolve() / "results.jsonl"
    lines.write_text("")
    with tempfile.TemporaryDirectory(prefix="recast-gpu-") as folder:
        site = Path(folder) / "site"
        lay_out(site, wheel)
        env = environment(site, lines, given.dry)
        code = run(Path(folder) / "tests", env, 60 * given.minutes)
    found = figures.read(lines.read_text(encoding="utf-8").splitlines())
    notes = []
    if given.dry:
        notes.append("A dry run on a CPU, with small sizes: no figure means anything.")
    if code is None:
        notes.append("It was stopped before all cases had ended.")
    if not any(found.tables.values()):
        notes.append("Nothing was measured.")
        code = code or 1
    (given.out / "results.json").write_text(json.dumps(found._asdict(), indent=2) + "\n")
    (given.out / "results.md").write_text(figures.markdown(found, " ".join(notes)))
    print(f"written to {given.out}: results.json, results.md", *notes, sep="\n")
    return 1 if code is None else code


if __name__ == "__main__":
    sys.exit(main())
