"""What a verification found: as data, and in a few words, what is wrong first."""

from dataclasses import dataclass
from typing import Any

from recast.report import SCHEMA_VERSION, json_text
from recast.terminal import counted, grid, marked, plain, render, shown, size

# More lines than this help nobody on a terminal; `to_json()` has all of them.
SHOWN = 20


@dataclass(frozen=True)
class Verification:
    """What a verification found. `to_json()` is what `verify --json` prints."""

    source: str
    dest: str
    to: str | None
    """The dtype the source was cast to; `None` where no tensor is a float."""
    device: str
    """Where the values were compared: `cpu`, `cuda:0`."""
    loader: str
    samples: int | None
    """Random blocks compared in each tensor; `None` when every value was."""
    seed: int | None
    """What the random blocks were drawn from; `None` when every value was compared."""
    tensors_checked: int
    values_checked: int
    mismatches: list[dict[str, Any]]
    """The first value that is wrong in each tensor that has one: `{tensor, file, index, source,
    source_bits, expected_bits, found_bits, count}`. `index` is in C order, `count` how many of the
    compared values are wrong."""
    problems: list[str]
    """What else is wrong: with the structure, the configs, the indexes, the memory."""
    notes: list[str]
    """What is not wrong but should be known."""
    memory: dict[str, dict[str, int | None]] | None
    """`{requested|allocated|reserved: {expected, measured}}` in bytes by PyTorch; `measured` is
    `None` on a CPU, and all of it is where the model could not be loaded."""
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.mismatches or self.problems)

    def to_dict(self) -> dict[str, Any]:
        """The verification as JSON values: what a report holds under `verification`."""
        return {"schema_version": SCHEMA_VERSION, **vars(self), "passed": self.passed}

    def to_json(self) -> str:
        """The verification as one JSON object, ASCII only."""
        return json_text(self.to_dict())

    def failures(self) -> list[str]:
        """A sentence on each thing that is wrong, problems before values."""
        return [*self.problems, *map(mismatch_text, self.mismatches)]


def mismatch_text(found: dict[str, Any]) -> str:
    """A mismatch as a sentence."""
    others = found["count"] - 1
    more = f"; {others:,} more in this tensor" if others else ""
    return (
        f"{shown(found['tensor'])} in {shown(found['file'])}, element {found['index']:,}: "
        f"{found['source']} ({found['source_bits']}) became {found['found_bits']}, "
        f"expected {found['expected_bits']}{more}"
    )


def abridged(failures: list[str]) -> list[str]:
    """As many of `failures` as help, and how many more there are."""
    rest = len(failures) - SHOWN
    return failures[:SHOWN] + ([f"and {rest:,} more; --json lists all"] if rest > 0 else [])


def values_text(found: Verification) -> str:
    """How many values were compared, and how they were chosen."""
    text = f"{found.values_checked:,} in {counted(found.tensors_checked, 'tensor')}"
    if found.samples is None:
        return f"{text}: all of them"
    return f"{text}: both ends and up to {found.samples} random blocks of each (seed {found.seed})"


def verification_text(found: Verification) -> str:
    """What `verify` prints."""
    from rich.text import Text

    target = f" in {found.to}" if found.to else ""
    verdict, style = ("passed", "bold green") if found.passed else ("FAILED", "bold red")
    title = plain(f": {found.source} -> {found.dest}{target}, {found.loader} on {found.device}")
    rows = [("values", values_text(found))]
    for name, bytes_ in (found.memory or {}).items():
        expected, measured = bytes_["expected"] or 0, bytes_["measured"]
        if measured is None:
            text = f"{size(expected)} predicted on a GPU"
        else:
            same = ", the same to the byte" if measured == expected else ""
            text = f"{size(expected)} predicted, {size(measured)} measured{same}"
        rows.append((name, text))
    rows.append(("time", f"{found.seconds:.2f} s"))
    lines = marked("error", "bold red", abridged(found.failures()))
    lines += marked("note", "bold yellow", found.notes)
    return render(*lines, Text.assemble((verdict, style), title), grid(rows))
