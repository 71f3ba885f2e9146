"""Whether a published result still has the checksums in its `recast.json`: neither source nor torch
is required."""

import os
from dataclasses import asdict, dataclass
from typing import Literal, TypedDict, cast

from recast._core import check_local, check_published
from recast.json_text import SCHEMA_VERSION, json_text
from recast.options import Path, Progress


class FileProblem(TypedDict):
    """A file of a result that is not as `recast.json` says."""

    file: str
    problem: Literal[
        "is missing",
        "is damaged",
        "is a link",
        "has another length",
        "has other bytes",
        "is not part of the result",
    ]


@dataclass(frozen=True)
class PublishedCheck:
    """Whether the files of a result are intact. `to_json()` is what `verify DEST --json` prints."""

    dest: str
    files: int
    """Files that `recast.json` names."""
    bytes: int
    """Their bytes, all of which were read."""
    problems: list[FileProblem]
    schema_version: int = SCHEMA_VERSION

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> str:
        """The check as one JSON object, ASCII only."""
        return json_text({**asdict(self), "passed": self.passed})


def check(dest: Path, *, progress: Progress | None = None) -> PublishedCheck:
    """Reads all files of the result in `dest`, the directory that `convert` wrote, and compares
    them with the checksums in its `recast.json`. `progress(done, total)` is called with bytes.

    Raises `UsageError` for an address, `InputError` where there is no such report, and
    `StorageError` where a file cannot be read. A wrong file is not an exception: see `passed`.
    """
    check_local(os.fspath(dest))
    files, total, damaged = check_published(os.fspath(dest), progress=progress)
    problems = [cast(FileProblem, {"file": file, "problem": text}) for file, text in damaged]
    return PublishedCheck(os.fspath(dest), files, total, problems)
