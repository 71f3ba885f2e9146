"""What can go wrong, as one tree; the number is the exit code of the command.

RecastError
├── UsageError (also ValueError)     2   options that make no sense
├── InputError                      65   the source cannot be converted as it is
│   ├── HeaderError                      a safetensors header breaks the format's rules
│   ├── PickleError                      a file of torch.save that recast does not read
│   ├── IndexFileError                   an index and its shards do not agree
│   └── QuantizedError                   packed tensors, which a cast would break
├── OutputError                     73   the destination cannot be created
├── StorageError                    74   reading or writing failed
└── CheckError                       1   the result is not what was asked for
    ├── CastOverflowError                finite values would become infinite
    └── VerificationError                the result failed, or the GPU has no room to compare
"""

import re
from typing import ClassVar

# An option in a message, as the command spells it, and its value: `--keep 'x'`, `--threads 1`,
# `--on-overflow=inf`, or a word in capitals. One without a value is a flag.
_OPTION = re.compile(
    r"(?<![^\s(])--(?P<no>no-)?(?P<name>[a-z][a-z0-9-]*)"
    r"(?:=(?P<word>[\w:]+)|[ =](?P<value>'.*?'(?=[\s:;,]|$)|[A-Z]+\b|\d+\b)|(?P<colon>(?=:)))?"
)
_COMMAND = re.compile(r"(`[^`]*`)")


class RecastError(Exception):
    """Everything recast raises on purpose.

    `message` says what happened and to which file and tensor; `hint` says the way out, where
    there is one; both name options as Python has them. `str()` gives both, the hint on a line of
    its own. `args` has both with the options of the command.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        # Both go into `args`, so that the exception survives pickling between processes.
        super().__init__(message, hint)
        self.message = in_python(message)
        self.hint = None if hint is None else in_python(hint)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


def in_python(text: str) -> str:
    """`text` with options as keywords: `--overwrite` is `overwrite=True`. Commands stay."""
    parts = _COMMAND.split(text)
    parts[::2] = [_OPTION.sub(_keyword, part) for part in parts[::2]]
    return "".join(parts)


def _keyword(option: re.Match[str]) -> str:
    name, value = option["name"].replace("-", "_"), option["value"]
    if option["word"] is not None:
        value = repr(option["word"])
    elif option["colon"] is not None or option.string[: option.start()].endswith("leave out "):
        return name
    elif value is None:
        value = str(not option["no"])
    elif name == "keep":
        value = f"[{value}]"
    return f"{name}={value}"


class UsageError(RecastError, ValueError):
    """An option or an argument that makes no sense."""

    exit_code = 2


class InputError(RecastError):
    """The source is missing, damaged, or not something recast converts."""

    exit_code = 65


class HeaderError(InputError):
    """A safetensors header breaks the format's rules."""


class PickleError(InputError):
    """A file of torch.save is damaged, or needs more than tensors; nothing of it was run."""


class IndexFileError(InputError):
    """An index names a shard or a tensor that is not there, or that lies outside the model."""


class QuantizedError(InputError):
    """The checkpoint holds packed tensors and scales, which a cast would break."""


class OutputError(RecastError):
    """The destination cannot be created: it exists, is the source, or has no room."""

    exit_code = 73


class StorageError(RecastError):
    """The operating system failed to read or write."""

    exit_code = 74


class CheckError(RecastError):
    """The conversion ran, and its result is not what was asked for."""


class CastOverflowError(CheckError):
    """Finite values are beyond the range of the target dtype."""


class VerificationError(CheckError):
    """The result failed its verification before it was published, or could not be loaded."""
