"""What the configs and indexes of a result say of its tensors."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from recast.terminal import shown
from recast.verification import dtypes, labels
from recast.verification.files import MAX_CONFIG, MAX_INDEX, read_json
from recast.verification.header import Headers
from recast.verification.problems import LISTED, Kind, Problem, problem
from recast.verification.promise import Promise

FOREIGN = "transformers.js_config"
"""The settings of another library, whose `dtype` has values of its own."""

MISSING = object()
"""What stands for a value that is not there."""


class Value(NamedTuple):
    """What a config states under one key."""

    text: str
    """As JSON."""
    dtype: str | None
    """The float that it states, if it states one that is cast."""


def config_differences(promise: Promise, dest: Path, file: str) -> Iterator[Problem]:
    """In what a config does not state what it must: of dtypes the target, none of the quantization
    of weights that are dequantized, and of all else what the source's states."""
    try:
        config = read_json(dest / file, MAX_CONFIG)
    except (OSError, ValueError, RecursionError) as error:
        yield problem("config_invalid", file, reason=shown(error))
        return
    original = promise.source.json(file, MAX_CONFIG)
    # What is said of quantization goes where no weight is quantized.
    goes = promise.dequantizes or not (labels.is_stated(config) or promise.source.quantized)
    wrong = 0
    for kind, pair, found, expected in _differences(promise, config, original, goes):
        wrong += 1
        if wrong <= LISTED:
            yield problem(kind, file, key=pair.key(), found=found, expected=expected)
    if wrong > LISTED:
        yield problem("config_changes", file, count=f"{wrong - LISTED:,}")


def _differences(
    promise: Promise, config: Any, original: Any, goes: bool
) -> "Iterator[tuple[Kind, _Pair, str | None, str | None]]":
    """Every value in a config that holds no others and is not what it must be; `goes` says whether
    what is said of quantization is not looked at, but for where it must not be said."""
    # On a stack, and without paths: a config may come from anybody, and be deep, long, and full of
    # long names.
    todo = [_Pair(None, "", config, original)]
    while todo:
        pair = todo.pop()
        if goes:
            for key in labels.said(pair.found) if promise.dequantizes else ():
                yield "quantization_left", _Pair(pair, key, None, None), None, None
            pair = replace(pair, found=labels.rest(pair.found), before=labels.rest(pair.before))
        todo += reversed(list(pair.members()))
        own, was = pair.stated(pair.found, promise), pair.stated(pair.before, promise)
        found, expected = (each.text if each else None for each in (own, was))
        dtype, states = (each.dtype if each else None for each in (own, was))
        if (dtype or states) and not (promise.exact and was is None):
            allowed = promise.may_state(states)
            if allowed and dtype not in allowed:
                yield "config_dtype", pair, dtype, promise.to or states
        elif promise.exact and found != expected:
            yield "config_changed", pair, found, expected


@dataclass(frozen=True)
class _Pair:
    """A value of a config and that of the source's in the same place."""

    above: "_Pair | None"
    name: str | int
    """Its key or number in what is above it."""
    found: Any
    before: Any
    is_foreign: bool = False
    """Whether it is a setting of another library."""

    def members(self) -> "Iterator[_Pair]":
        """What the values hold, in the order of their names."""
        is_foreign = self.is_foreign or self.name == FOREIGN
        own, was = (each if isinstance(each, dict) else {} for each in (self.found, self.before))
        for key in sorted(own.keys() | was.keys()):
            values = own.get(key, MISSING), was.get(key, MISSING)
            yield _Pair(self, key, *values, is_foreign=is_foreign)
        items = (each if isinstance(each, list) else [] for each in (self.found, self.before))
        for number, values in enumerate(zip_longest(*items, fillvalue=MISSING)):
            yield _Pair(self, number, *values, is_foreign=is_foreign)

    def stated(self, value: Any, promise: Promise) -> Value | None:
        """What one of the values states, if it is there and holds no others."""
        if value is MISSING or (isinstance(value, dict | list) and value):
            return None
        # Also one of several, by their names or in a list.
        is_one = self.above is not None and self.above.is_of_dtypes and isinstance(value, str)
        is_dtype = self.is_of_dtypes or is_one
        dtype = dtypes.stated(value, fp8=promise.casts_fp8) if is_dtype else None
        return Value(json.dumps(value), dtype)

    def key(self) -> str:
        """The names of all that it is below, and its own."""
        names: list[str] = []
        pair: _Pair | None = self
        while pair is not None and pair.above is not None:
            dot = "." if pair.above.above else ""
            names.append(f"[{pair.name}]" if isinstance(pair.name, int) else f"{dot}{pair.name}")
            pair = pair.above
        return "".join(reversed(names))

    @property
    def is_of_dtypes(self) -> bool:
        """Whether it is under a key that is one for dtypes."""
        return self.name in ("dtype", "torch_dtype") and not self.is_foreign


def index_differences(
    promise: Promise, dest: Path, file: str, headers: Headers
) -> Iterator[Problem]:
    """Where an index disagrees with the shards beside it, or with the source's index."""
    if file not in promise.source.indexes:
        yield problem("index_unexpected", file)
        return
    try:
        index = read_json(dest / file, MAX_INDEX)
        weight_map, metadata = index["weight_map"], index.get("metadata") or {}
        if not (isinstance(weight_map, dict) and isinstance(metadata, dict)):
            raise TypeError("its map or its metadata are no object")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        yield problem("index_invalid", file, reason=shown(repr(error)))
        return
    folder = os.path.dirname(file)
    same = weight_map == promise.weight_map(file)
    lost, total = 0, 0
    for name, shard in weight_map.items():
        path = os.path.join(folder, str(shard))
        entry = headers.get(path, {}).get(name)
        if entry is not None:
            total += entry.bytes
            continue
        if same and path in headers and name not in promise.tensors.get(path, {}):
            # It was not there before: loaders make it of another tensor.
            continue
        lost += 1
        if lost <= LISTED:
            yield problem("index_shard", file, name, shard=shard)
    if lost > LISTED:
        yield problem("index_shards", file, count=f"{lost - LISTED:,}")
    if not same:
        yield problem("index_map", file)
    size = metadata.get("total_size")
    if same and not lost and size != total:
        yield problem("index_size", file, found=size, expected=total)
    original = promise.source.json(file, MAX_INDEX)
    # What is no object says nothing, and is replaced.
    before = original.get("metadata")
    before = before if isinstance(before, dict) else {}
    dtype, stated = (
        dtypes.stated(each.get("dtype"), fp8=promise.casts_fp8) for each in (metadata, before)
    )
    allowed = promise.may_state(stated)
    if allowed and dtype not in (None, *allowed):
        yield problem("index_dtype", file, found=dtype, expected=promise.to or stated)
    if not promise.exact:
        return
    aside = {"total_size", "dtype"} if dtype else {"total_size"}
    yield from _changes(file, "metadata.", metadata, before, aside)
    yield from _changes(file, "", index, original, {"metadata", "weight_map"})


def _changes(
    file: str, at: str, found: dict[str, Any], before: dict[str, Any], aside: set[str]
) -> Iterator[Problem]:
    """The members of an index, but for those `aside`, that are not what they were."""
    changed = 0
    for key in sorted((before.keys() | found.keys()) - aside):
        texts = [json.dumps(each[key]) if key in each else None for each in (found, before)]
        if texts[0] != texts[1]:
            changed += 1
            if changed <= LISTED:
                yield problem(
                    "config_changed", file, key=f"{at}{key}", found=texts[0], expected=texts[1]
                )
    if changed > LISTED:
        yield problem("config_changes", file, count=f"{changed - LISTED:,}")
