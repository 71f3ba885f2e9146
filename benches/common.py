"""What the benchmarks share: run a program, take turns, name the machine, write the docs."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECAST = str(Path(sysconfig.get_path("scripts")) / "recast")
CPUS = len(os.sched_getaffinity(0))
MIB = 1 << 20


@dataclass
class Run:
    """What one run took; `clock` is the program's own time, `anon` its anonymous memory."""

    wall: float
    clock: float | None
    rss: int
    anon: int = 0


def rss_anon(pid: int) -> int:
    """The anonymous memory of a process in bytes; 0 once it has exited."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(one.split()[1]) << 10 for one in lines if one.startswith("RssAnon")), 0)


def run(
    command: list[str],
    clock: str = "",
    sample: bool = False,
    enter: Callable[[], None] = lambda: None,
) -> Run:
    """Run a command from start to exit; `clock` is how it reports its own seconds: json or print.

    A function is always called before exec, so that the child is forked: after a vfork, as after
    posix_spawn, its peak RSS would start at that of this interpreter.
    """
    anon = 0
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        os.sync()
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, preexec_fn=enter)
        try:
            if sample:
                while not (done := os.wait4(process.pid, os.WNOHANG))[0]:
                    anon = max(anon, rss_anon(process.pid))
                    time.sleep(0.002)
            else:
                done = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(done[1])
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace")
            sys.exit(f"error: {' '.join(command)}: exit code {process.returncode}\n{said}")
        output.seek(0)
        seconds = None
        if clock == "json":
            seconds = json.load(output)["seconds"]
        elif clock == "print":
            seconds = float(output.read())
    return Run(wall, seconds, done[2].ru_maxrss << 10, anon)


@dataclass
class Contestant:
    """A command, and its counted runs."""

    name: str
    command: list[str]
    clock: str = ""
    kind: str = "other"
    runs: list[Run] = field(default_factory=list)

    def median(self, what: str) -> float:
        """The median of one field of the runs."""
        return statistics.median(getattr(one, what) for one in self.runs)

    def seconds(self) -> float:
        """The median by the program's own clock, or of the whole process if it has none."""
        return self.median("clock" if self.clock else "wall")


def order(count: int, number: int) -> list[int]:
    """The order of round `number`: nobody follows the same neighbor more than twice in `count`."""
    zigzag = [n // 2 if n % 2 == 0 else count - 1 - n // 2 for n in range(count)]
    return [(n + number) % count for n in zigzag]


def take_turns(
    contestants: list[Contestant],
    rounds: int,
    dest: Path,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Run all contestants in turn, `rounds` times, and remove what they write."""
    for number in range(rounds):
        for index in order(len(contestants), number):
            one = contestants[index]
            print(f"round {number + 1} of {rounds}: {one.name}", file=sys.stderr)
            before()
            one.runs.append(run(one.command, one.clock))
            remove(dest)


def remove(path: Path) -> None:
    """Remove a folder or a file, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def convert(source: Path, dest: Path, *options: str, to: str = "bf16") -> list[str]:
    """The command `recast convert`."""
    return [RECAST, "convert", str(source), str(dest), "--to", to, "--json", *options]


def idle_anon() -> int:
    """The anonymous memory of an interpreter that has imported recast and does nothing."""
    command = [sys.executable, "-c", "import recast, sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return rss_anon(process.pid)


def peak_anon(command: list[str], dest: Path) -> int:
    """The peak anonymous memory of a conversion, in a separate run that is not timed."""
    peak = run(command, sample=True).anon
    remove(dest)
    return peak


def build(name: str) -> str:
    """The compiled benches/NAME.rs."""
    command = ["cargo", "bench", "--bench", name, "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    messages = (json.loads(line) for line in lines.splitlines())
    return next(m["executable"] for m in messages if m.get("executable"))


def memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def commit(tree: Path) -> str:
    """The commit that is checked out in `tree`."""
    command = ["git", "describe", "--always", "--dirty"]
    said = subprocess.run(command, cwd=tree, capture_output=True, text=True).stdout.strip()
    return said or "unknown"


def machine(*packages: str) -> str:
    """The machine, the versions and the commit that the numbers belong to."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    versions = [f"{name} {version(name)}" for name in packages]
    return (
        f"{processor}, {CPUS} CPUs, {memory() / 2**30:.0f} GiB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, {', '.join(versions)}, "
        f"commit {commit(ROOT)}"
    )


def need_space(folder: Path, nbytes: float) -> bool:
    """Whether `folder` has space for this much and a little more; prints a line if not."""
    free = shutil.disk_usage(folder).free
    if free < nbytes + (1 << 30):
        print(f"{nbytes / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free", file=sys.stderr)
        return False
    return True


def publish(lines: list[str], page: Path | None, name: str, chart: str = "") -> None:
    """Print the tables. If there is a page, they replace the text between its markers
    `NAME begin` and `NAME end`, and the chart is written beside it."""
    text = "\n".join(lines)
    print(text)
    if page is None:
        return
    begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
    old = page.read_text(encoding="utf-8")
    head, tail = old.split(begin)[0], old.split(end)[1]
    page.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")
    if chart:
        page.with_name(f"{name}.svg").write_text(chart, encoding="utf-8")
