"""The settings of PyTorch's allocator, as the environment gives them."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

MIB = 1 << 20
LARGE_SEGMENT = 20 * MIB
LARGE_SEGMENT_BELOW = 10 * MIB

# PyTorch 2.15 reads the first that is set, even to nothing; the old name goes first.
VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
UNCACHED = "PYTORCH_NO_CUDA_MEMORY_CACHING"
# `roundup_power2_divisions` has one entry for sizes from 1, 2, 4 ... MiB on; the last is 32 GiB.
INTERVALS = 16


class Settings(NamedTuple):
    """Options of the allocator that change how much memory a load takes."""

    expandable_segments: bool = False
    """One segment for each pool, which grows by pages, instead of many of fixed size."""
    roundup_power2_divisions: tuple[int, ...] = ()
    """Into how many steps the range from a power of two to the next is divided, one entry for the
    sizes from 1, 2, 4 ... MiB on; sizes are rounded up to a step. 0 and 1 mean no such rounding."""
    large_segment: int = LARGE_SEGMENT
    """Bytes of a segment for blocks of 1 to 10 MiB, and of a page of an expandable segment."""


def read_settings(environ: Mapping[str, str] = os.environ) -> tuple[Settings, list[str]]:
    """The allocator's settings in the environment, and sentences on what they mean here.

    Settings that PyTorch would refuse count as none, with a sentence that says so.
    """
    found = Settings()
    notes: list[str] = []
    variable = next((name for name in VARIABLES if name in environ), None)
    if variable is not None:
        text = environ[variable]
        try:
            found, unknown = _parse(text)
        except ValueError as error:
            notes.append(
                f"{variable}={text} is not valid ({error}): GPU memory is for the defaults"
            )
        else:
            if found != Settings():
                notes.append(f"GPU memory is for {variable}={text}")
            notes += [f"{variable}: {option} is not modeled" for option in unknown]
    if UNCACHED in environ:
        notes.append(f"{UNCACHED} is set, which GPU memory here does not model")
    return found, notes


def _parse(text: str) -> tuple[Settings, list[str]]:
    """Settings from `key:value,key:[a:b,c:d]`, and the options in it that `predict` lacks."""
    found = Settings()
    unknown: list[str] = []
    # A comma inside brackets separates the parts of a value.
    for entry in re.split(r",(?![^\[]*\])", re.sub(r"\s", "", text)):
        key, _, value = entry.partition(":")
        if key == "expandable_segments":
            if value not in ("True", "False"):
                raise ValueError(f"{key} must be True or False")
            found = found._replace(expandable_segments=value == "True")
        elif key == "roundup_power2_divisions":
            found = found._replace(roundup_power2_divisions=_divisions(value))
        elif key == "large_segment_size_mb":
            if _number(value) * MIB <= LARGE_SEGMENT_BELOW:
                raise ValueError(f"{key} must be more than {LARGE_SEGMENT_BELOW // MIB}")
            found = found._replace(large_segment=_number(value) * MIB)
        elif key == "max_split_size_mb" or (key == "backend" and value != "native"):
            unknown.append(entry)
    return found, unknown


def _divisions(value: str) -> tuple[int, ...]:
    """One entry for each interval, from `8` or from `[64:8,256:4,>:1]` with bounds in MiB."""
    if not value.startswith("["):
        return (_power_of_two(value),) * INTERVALS
    if not value.endswith("]"):
        raise ValueError("']' is missing")
    table = [0] * INTERVALS
    last: int | None = None
    for bound, _, text in (part.partition(":") for part in value[1:-1].split(",") if part):
        steps = 0 if text == "0" else _power_of_two(text)
        if bound == ">":
            # What PyTorch does: the interval of the last bound keeps its own entry.
            after = (last or 0) + 1
            table[after:] = [steps] * (INTERVALS - after)
            continue
        index = min(_power_of_two(bound).bit_length() - 1, INTERVALS - 1)
        if last is None:
            table[:index] = [steps] * index
        table[index] = steps
        last = index
    return tuple(table)


def _power_of_two(text: str) -> int:
    value = _number(text)
    if value == 0 or value & (value - 1):
        raise ValueError(f"{text} is not a power of two")
    return value


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"'{text}' is not a number")
    return int(text)
