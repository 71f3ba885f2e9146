"""What the configs and indexes of a result say of its tensors."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from recast.terminal import shown
from recast.verification import dtypes, labels
from recast.verification.files import MAX_CONFIG, MAX_INDEX, read_json
from recast.verification.header import Headers
from recast.verification.problems import LISTED, Problem, problem
from recast.verification.promise import Promise

FOREIGN = "transformers.js_config"
"""The settings of another library, whose `dtype` has values of its own."""


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
        said = [*labels.stated(config)]
    except (OSError, ValueError, RecursionError) as error:
        yield problem("config_invalid", file, reason=shown(error))
        return
    for key in said if promise.dequantizes else ():
        yield problem("quantization_left", file, key=key)
    original = promise.source.json(file, MAX_CONFIG)
    # What is said of quantization goes where no weight is quantized; where it must, that is above.
    if promise.dequantizes or not (said or promise.source.quantized):
        config, original = labels.without(config), labels.without(original)
    stated, before = (dict(_stated(each, promise.casts_fp8)) for each in (config, original))
    for key in sorted(before.keys() | stated.keys()):
        own, was = stated.get(key), before.get(key)
        found, expected = (each.text if each else None for each in (own, was))
        dtype, states = (each.dtype if each else None for each in (own, was))
        if (dtype or states) and not (promise.exact and was is None):
            allowed = promise.may_state(states)
            if allowed and dtype not in allowed:
                wanted = promise.to or states
                yield problem("config_dtype", file, key=key, found=dtype, expected=wanted)
        elif promise.exact and found != expected:
            yield problem("config_changed", file, key=key, found=found, expected=expected)


def _stated(
    value: Any, fp8: bool, at: str = "", *, is_dtype: bool = False
) -> Iterator[tuple[str, Value]]:
    """Every value in a config that holds no others, by the path of its key; `is_dtype` says that it
    is below a key that is one for dtypes."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            path = f"{at}.{key}" if at else key
            below = is_dtype and not isinstance(inner, dict | list)
            own = key in ("dtype", "torch_dtype") or below
            if key == FOREIGN:
                yield path, Value(json.dumps(inner, sort_keys=True), None)
            else:
                yield from _stated(inner, fp8, path, is_dtype=own)
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            below = is_dtype and not isinstance(inner, dict | list)
            yield from _stated(inner, fp8, f"{at}[{number}]", is_dtype=below)
    else:
        dtype = dtypes.stated(value, fp8=fp8) if is_dtype else None
        yield at, Value(json.dumps(value), dtype)


def index_differences(
    promise: Promise, dest: Path, file: str, headers: Headers
) -> Iterator[Problem]:
    """Where an index disagrees with the shards beside it, or with the source's index."""
    if file not in promise.source.indexes:
        yield problem("index_unexpected", file)
        return
    try:
        index = read_json(dest / file, MAX_INDEX)
        weight_map, metadata = dict(index["weight_map"]), dict(index.get("metadata") or {})
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
    before = promise.source.json(file, MAX_INDEX).get("metadata") or {}
    dtype, stated = (
        dtypes.stated(each.get("dtype"), fp8=promise.casts_fp8) for each in (metadata, before)
    )
    allowed = promise.may_state(stated)
    if allowed and dtype not in (None, *allowed):
        yield problem("index_dtype", file, found=dtype, expected=promise.to or stated)
    for key in sorted((before.keys() | metadata.keys()) - {"total_size", "dtype"}):
        texts = [json.dumps(each[key]) if key in each else None for each in (metadata, before)]
        if promise.exact and texts[0] != texts[1]:
            found, expected = texts
            yield problem(
                "config_changed", file, key=f"metadata.{key}", found=found, expected=expected
            )
