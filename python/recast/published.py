"""A published result against the checksums in its `recast.json`: needs neither source nor torch."""

import os
from dataclasses import dataclass

from recast._core import check_local, check_published
from recast.report import SCHEMA_VERSION, json_text
from recast.terminal import Progress, counted, marked, plain, render, size


@dataclass(frozen=True)
class Checked:
    """What the files of a result are. `to_json()` is what `verify DEST --json` prints."""

    dest: str
    files: int
    """Files that `recast.json` names."""
    bytes: int
    """Their bytes, all of which were read."""
    problems: list[dict[str, str]]
    """`{file, problem}` of each that is missing, damaged, or not part of the result."""
    schema_version: int = SCHEMA_VERSION

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> str:
        """The finding as one JSON object, ASCII only."""
        return json_text({**vars(self), "passed": self.passed})


def check(dest: str | os.PathLike[str], *, progress: Progress | None = None) -> Checked:
    """Reads all files of the result in `dest`, the directory that `convert` wrote, and compares
    them with the checksums in its `recast.json`. `progress(done, total)` is called with bytes.

    Raises `UsageError` for an address, `InputError` where there is no such report, and
    `StorageError` where a file cannot be read. A file that is wrong is no exception: see `passed`.
    """
    check_local(os.fspath(dest))
    files, total, damaged = check_published(os.fspath(dest), progress=progress)
    problems = [{"file": file, "problem": problem} for file, problem in damaged]
    return Checked(os.fspath(dest), files, total, problems)


def checked_text(checked: Checked) -> str:
    """What `verify DEST` prints."""
    from rich.text import Text

    texts = [f"{plain(each['file'])} {each['problem']}" for each in checked.problems]
    verdict, style = ("passed", "bold green") if checked.passed else ("FAILED", "bold red")
    compared = f"{counted(checked.files, 'file')}, {size(checked.bytes)}"
    title = f": {plain(checked.dest)}, {compared} compared with the checksums in recast.json"
    return render(*marked("error", "bold red", texts), Text.assemble((verdict, style), title))
