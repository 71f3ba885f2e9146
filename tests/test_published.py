"""What `recast verify DEST` finds in a published result, with the checksums in recast.json."""

# mypy: disable-error-code="func-returns-value"

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import recast
from checksums import BLOCK, NOT_UTF8, REPORT, flip, report_of, segments
from support import environment, raw_bytes, recast_here, recast_process, tree


def problems(dest: Path) -> dict[str, str]:
    """What `recast verify DEST --json` finds: `{file: problem}`."""
    done = recast_here("verify", dest, "--json")
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["passed"] else 1)
    assert found["passed"] == (not found["problems"])
    assert found["files"] == len(report_of(dest)["published_files"])
    return {row["file"]: row["problem"] for row in found["problems"]}


def places(path: Path) -> set[int]:
    """A byte of the header, the first and last of every segment and block, and one between."""
    edges = segments(path)
    found = {8}
    for start, end in pairwise(edges):
        found |= {start, (start + end) // 2, end - 1}
        found |= {at + step for at in range(start + BLOCK, end, BLOCK) for step in (-1, 0)}
    return {at for at in found if 0 <= at < path.stat().st_size}


def test_a_result_as_it_was_left_passes(result: Path) -> None:
    done = recast_here("verify", result)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"passed: {result}, 8 files, ")
    assert problems(result) == {}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "large.txt", "block.txt"])
def test_a_flipped_bit_is_found_wherever_it_is(name: str, result: Path) -> None:
    from recast import published

    for at in sorted(places(result / name)):
        flip(result / name, at)
        found = published.check(result).problems
        assert [row["file"] for row in found] == [name], at
        # The header may no longer be one.
        allowed = (
            {"has other bytes", "is damaged"} if name.endswith("tensors") else {"has other bytes"}
        )
        assert found[0]["problem"] in allowed
        flip(result / name, at)
    assert published.check(result).passed


def replace_by_link(dest: Path, name: str) -> None:
    """The same bytes, but elsewhere: out of sight of those who list a model's files."""
    (dest / ".hidden").mkdir()
    (dest / name).rename(dest / ".hidden" / "file")
    (dest / name).symlink_to(".hidden/file")


def replace_folder(dest: Path, name: str) -> None:
    (dest / "vae").rename(dest / ".vae")
    (dest / "vae").symlink_to(".vae")


def swap(dest: Path, name: str) -> None:
    """Two blocks change places: a sum that does not heed the order would not see it."""
    data = bytearray((dest / "large.txt").read_bytes())
    data[0], data[BLOCK] = 1, 2
    (dest / "large.txt").write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path, str], Any], str, dict[str, str]]] = {
    "missing": (
        lambda d, n: (d / n).unlink(),
        "model.safetensors",
        {"model.safetensors": "is missing"},
    ),
    "missing text": (lambda d, n: (d / n).unlink(), "large.txt", {"large.txt": "is missing"}),
    "a missing folder": (
        lambda d, n: shutil.rmtree(d / n),
        "vae",
        {"vae/none.safetensors": "is missing", "vae/config.json": "is missing"},
    ),
    "extra": (lambda d, n: (d / n).write_text(""), "more", {"more": "is not part of the result"}),
    "extra below": (
        lambda d, n: (d / n).write_bytes(raw_bytes([])),
        "vae/x.safetensors",
        {"vae/x.safetensors": "is not part of the result"},
    ),
    "cut short": (
        lambda d, n: os.truncate(d / n, 100_000),
        "model.safetensors",
        {"model.safetensors": "has another length"},
    ),
    "emptied": (
        lambda d, n: os.truncate(d / n, 0),
        "config.json",
        {"config.json": "has another length"},
    ),
    "grown": (
        lambda d, n: (d / n).write_bytes((d / n).read_bytes() + b"\0"),
        "model.safetensors",
        {"model.safetensors": "has another length"},
    ),
    "grown from nothing": (
        lambda d, n: (d / n).write_text("x"),
        "empty.txt",
        {"empty.txt": "has another length"},
    ),
    "a link": (replace_by_link, "model.safetensors", {"model.safetensors": "is a link"}),
    "a linked folder": (
        replace_folder,
        "vae",
        {
            "vae": "is not part of the result",
            "vae/config.json": "is a link",
            "vae/none.safetensors": "is a link",
        },
    ),
    "a file in the place of a folder": (
        lambda d, n: (shutil.rmtree(d / n), (d / n).write_text("")),
        "vae",
        {
            "vae": "is not part of the result",
            "vae/config.json": "is missing",
            "vae/none.safetensors": "is missing",
        },
    ),
    "a link to nothing": (
        lambda d, n: ((d / n).unlink(), (d / n).symlink_to("nowhere")),
        "config.json",
        {"config.json": "is a link"},
    ),
    "a pipe": (
        lambda d, n: ((d / n).unlink(), os.mkfifo(d / n)),
        "large.txt",
        {"large.txt": "is damaged"},
    ),
    "a folder": (
        lambda d, n: ((d / n).unlink(), (d / n).mkdir()),
        "config.json",
        {"config.json": "is damaged"},
    ),
    "swapped": (swap, "large.txt", {"large.txt": "has other bytes"}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_with_a_file_is_named(name: str, result: Path) -> None:
    damage, file, expected = DAMAGE[name]
    damage(result, file)
    assert problems(result) == expected
    done = recast_here("verify", result)
    assert done.returncode == 1
    for path, problem in expected.items():
        assert f"error: {path} {problem}\n" in done.stdout
    assert "FAILED" in done.stdout


def test_a_name_that_is_not_utf8_is_found_and_printed(result: Path) -> None:
    flip(result / NOT_UTF8, 0)
    done = recast_here("verify", result)
    assert done.returncode == 1
    assert "has other bytes" in done.stdout
    assert "caf" in done.stdout


def test_every_problem_is_named_and_not_only_the_first(result: Path) -> None:
    for name in ("model.safetensors", "large.txt", "config.json"):
        flip(result / name, 20)
    assert set(problems(result)) == {"model.safetensors", "large.txt", "config.json"}


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        report = json.loads(path.read_bytes())
        change(report)
        path.write_text(json.dumps(report))

    return edit


def of_a_file(key: str, value: Any) -> Callable[[Path], None]:
    return edited(lambda report: report["published_files"][0].__setitem__(key, value))


REFUSED: dict[str, Callable[[Path], Any]] = {
    "none": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "no JSON": lambda path: path.write_text("{"),
    "not UTF-8": lambda path: path.write_bytes(b'{"\xff": 1}'),
    "a list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "of another format": edited(lambda report: report.update(format=2)),
    "without a format": edited(lambda report: report.pop("format")),
    "of 0.1 before this one": edited(lambda report: report.pop("published_files")),
    "files as text": edited(lambda report: report.update(published_files="all")),
    "a file as text": edited(lambda report: report.update(published_files=["model.safetensors"])),
    "an absolute path": of_a_file("path", "/etc/passwd"),
    "a path that goes up": of_a_file("path", "../source/model.safetensors"),
    "a path that goes up inside": of_a_file("path", "vae/../../source/model.safetensors"),
    "a hidden absolute path": of_a_file("path", "\0" + b"/etc/passwd".hex()),
    "no hexadecimal": of_a_file("path", "\0xyz"),
    "an empty path": of_a_file("path", ""),
    "a number as path": of_a_file("path", 7),
    "a negative length": of_a_file("bytes", -1),
    "a length with a point": of_a_file("bytes", 1.5),
    "an enormous length": of_a_file("bytes", 1 << 64),
    "a short checksum": of_a_file("xxh3_128", "ab"),
    "a checksum of no digits": of_a_file("xxh3_128", "g" * 32),
    "no checksum": of_a_file("xxh3_128", None),
    "a link": lambda path: (path.rename(path.with_name(".r")), path.symlink_to(".r")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_report_that_cannot_be_read_is_an_error_of_the_input(name: str, result: Path) -> None:
    REFUSED[name](result / REPORT)
    done = recast_here("verify", result)
    assert (done.returncode, done.stdout) == (65, "")
    first, hint = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert first.endswith("recast.json: no conversion report that recast can read")
    assert hint.startswith("hint: ")


TAMPERED: dict[str, tuple[Callable[[Path], Any], dict[str, str]]] = {
    "another checksum": (of_a_file("xxh3_128", "0" * 32), {"model.safetensors": "has other bytes"}),
    "another length": (of_a_file("bytes", 1), {"model.safetensors": "has another length"}),
    "the longest length": (
        of_a_file("bytes", (1 << 64) - 1),
        {"model.safetensors": "has another length"},
    ),
    "a file that is nowhere": (
        of_a_file("path", "gone"),
        {"gone": "is missing", "model.safetensors": "is not part of the result"},
    ),
    "a file left out": (
        edited(lambda report: report["published_files"].pop(0)),
        {"model.safetensors": "is not part of the result"},
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_report_that_was_tampered_with_is_a_finding(name: str, result: Path) -> None:
    tamper, expected = TAMPERED[name]
    tamper(result / REPORT)
    assert problems(result) == expected


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), Path.touch])
def test_what_is_no_result_is_refused(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "out")
    done = recast_here("verify", tmp_path / "out")
    assert done.returncode in (65, 73)
    assert (done.stdout, done.stderr.startswith("error: ")) == ("", True)


@pytest.mark.parametrize(
    "option",
    [
        ["--full"],
        ["--samples", "3"],
        ["--device", "cpu"],
        ["--seed", "1"],
        ["--loader", "transformers"],
    ],
)
def test_options_that_need_a_source_are_refused_without_one(
    option: list[str], result: Path
) -> None:
    done = recast_here("verify", result, *option)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {option[0]} needs a source" in done.stderr


def test_neither_source_nor_torch_is_needed(result: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "source")
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for module in ("torch", "numpy", "safetensors", "transformers"):
        (stubs / f"{module}.py").write_text(
            f"raise ImportError('{module} is not to be imported')\n"
        )
    path = os.pathsep.join([str(stubs), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = recast_process("verify", result, env=environment(PYTHONPATH=path))
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_is_written_and_a_result_that_may_only_be_read_is_enough(result: Path) -> None:
    before = tree(result)
    folders = [result, result / "vae"]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert problems(result) == {}
        assert tree(result) == before
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_checking_takes_memory_that_does_not_grow_with_the_files(tmp_path: Path) -> None:
    elements = 50_000_000
    rows = [("w", "F32", [elements], bytes(4 * elements))]
    (tmp_path / "model.safetensors").write_bytes(raw_bytes(rows))
    recast.convert(tmp_path / "model.safetensors", tmp_path / "out", to="bf16", sync=False)
    code = (
        "import resource, sys; from recast import published\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert published.check(sys.argv[1]).passed\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert int(done.stdout) < 32 << 10
