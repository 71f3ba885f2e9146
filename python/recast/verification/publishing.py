"""Verification as a part of a conversion: before a result is published, or where it already is."""

import os

from recast._core import Plan
from recast.errors import VerificationError
from recast.options import Options, Progress
from recast.terminal import plain, shown
from recast.verification import devices
from recast.verification.devices import choose_device
from recast.verification.pickles import check_torch, is_pickle
from recast.verification.result import Verification
from recast.verification.run import verify_all

__all__ = ["check", "choose_device", "rejected", "verify_all", "verify_published"]

# More lines than this help nobody in an error.
LISTED = 20


def check(planned: Plan, device: str) -> None:
    """Raises `VerificationError` where `device` has no room for comparing, and `UsageError` where
    this torch must not open the source of `planned`."""
    if any(file.action == "cast" and is_pickle(file.source) for file in planned.files):
        check_torch()
    devices.check_workspace(device)


def rejected(planned: Plan, found: Verification, folder: str) -> VerificationError:
    """The error for a result that failed before it was published, and is in `folder` now."""
    return VerificationError(
        f"the result failed verification and was not published; it is in {shown(folder)}:\n"
        f"{_failures(found)}",
        f"`recast verify {shown(planned.source)} {shown(folder)} --full` shows it again; "
        "the next run removes it",
    )


def verify_published(
    source: str,
    dest: str | os.PathLike[str],
    options: Options,
    device: str,
    progress: Progress | None,
) -> Verification:
    """Like `verify_all`, for a published result. Raises `VerificationError` for a wrong one."""
    found = verify_all(source, dest, options, device, progress)
    if not found.passed:
        raise VerificationError(
            f"{shown(dest)} was published before, and failed verification:\n{_failures(found)}",
            "--overwrite makes it again",
        )
    return found


def _failures(found: Verification) -> str:
    failures = found.failures()
    lines = [plain(text) for text in failures[:LISTED]]
    if len(failures) > LISTED:
        lines.append(f"and {len(failures) - LISTED:,} more")
    return "\n".join(f"  {line}" for line in lines)
