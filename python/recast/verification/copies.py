"""Files of a source that a conversion carries as they are."""

import os
from collections.abc import Iterator
from pathlib import Path

from recast.terminal import shown
from recast.verification.files import open_regular
from recast.verification.problems import Problem, problem

PIECE = 1 << 20


def differences(before: Path, after: Path, file: str) -> Iterator[Problem]:
    """Where the file at `after`, which is `file` below the root of a result, is not the one at
    `before`, byte for byte."""
    try:
        with open_regular(before) as source, open_regular(after) as copy:
            sizes = [os.fstat(each.fileno()).st_size for each in (source, copy)]
            if sizes[0] != sizes[1]:
                yield problem("file_size", file, found=f"{sizes[1]:,}", expected=f"{sizes[0]:,}")
                return
            at = 0
            while piece := source.read(PIECE):
                other = copy.read(len(piece))
                if piece != other:
                    pairs = zip(piece, other, strict=False)
                    same = next((n for n, (a, b) in enumerate(pairs) if a != b), len(other))
                    yield problem("file_changed", file, at=f"{at + same:,}")
                    return
                at += len(piece)
    except (OSError, ValueError) as error:
        yield problem("file_unreadable", file, reason=shown(error))
