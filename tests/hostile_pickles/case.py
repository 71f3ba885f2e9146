"""What a hostile file is: a valid one with one thing wrong, and what must be said about it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pickle_bytes import call, dict_of, integer, named, persistent, tensor, text, zipped

CANARY = "canary"
"""The file that every payload creates where it runs."""

TOUCH = f"touch {CANARY}"


@dataclass(frozen=True)
class Hostile:
    """A file, and what the refusal must say beside the file's name."""

    name: str
    data: bytes | Callable[[], bytes]
    """Or what makes it, where it is large."""
    says: tuple[str, ...]
    torch: str = ""
    """Why torch.load(weights_only=True) opens it all the same."""
    foreign: bool = False
    """Whether recast does not take it for a file of torch.save at all."""
    executes: bool = False
    """Whether an unpickler that obeys would create the canary."""

    def content(self) -> bytes:
        return self.data if isinstance(self.data, bytes) else self.data()


def bad(
    name: str, data: bytes | Callable[[], bytes], *says: str, torch: str = "", **options: Any
) -> Hostile:
    return Hostile(name, data, says, torch, **options)


def beside(value: bytes) -> bytes:
    """A state dict of today's format with one tensor, and `value` beside it."""
    return zipped(dict_of({"w": tensor(), "x": value}))


def instead(value: bytes) -> bytes:
    """A state dict of today's format that holds `value` where its one tensor should be, and one
    tensor more, so that it is never refused for having none."""
    return zipped(dict_of({"v": tensor(), "w": value}))


def shell(function: str | bytes = "posix.system") -> bytes:
    """A call that creates the canary."""
    return call(function, text(TOUCH))


def located(location: bytes, count: bytes | None = None) -> bytes:
    """A storage that lay there."""
    kind = named("torch.FloatStorage")
    return persistent(text("storage"), kind, text("0"), location, count or integer(6))
