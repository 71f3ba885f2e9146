"""What the configs and indexes of a result say of its tensors."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recast.terminal import shown
from recast.verification import dtypes, labels
from recast.verification.expectation import Expectation
from recast.verification.files import MAX_CONFIG, MAX_INDEX, read_json
from recast.verification.header import Headers
from recast.verification.problems import Problem, problem

# More problems than this of one index help nobody.
LISTED = 20


def config_differences(expected: Expectation, dest: Path, file: str) -> Iterator[Problem]:
    """The dtypes that a config states, and those that it no longer states, unless they are the
    target's."""
    try:
        config = read_json(dest / file, MAX_CONFIG)
        stated = _stated(config, expected.casts_fp8)
    except (OSError, ValueError, RecursionError) as error:
        yield problem("config_invalid", file, reason=shown(error))
        return
    if expected.dequantizes:
        for key in labels.stated(config):
            yield problem("quantization_left", file, key=key)
    original = expected.source_json(file, MAX_CONFIG)
    before = _stated(original, expected.casts_fp8)
    if expected.dequantizes:
        gone = tuple(f"{key}." for key in labels.stated(original))
        before = {key: dtype for key, dtype in before.items() if not key.startswith(gone)}
    for key in sorted(before.keys() | stated.keys()):
        dtype, allowed = stated.get(key), expected.may_state(before.get(key))
        if allowed and dtype not in allowed:
            wanted = expected.to or before.get(key)
            yield problem("config_dtype", file, key=key, found=dtype, expected=wanted)


def _stated(value: Any, fp8: bool, at: str = "") -> dict[str, str]:
    """Every float dtype that a config states, by the path of its key."""
    found: dict[str, str] = {}
    for key, inner in value.items() if isinstance(value, dict) else ():
        path = f"{at}.{key}" if at else key
        if isinstance(inner, dict):
            found.update(_stated(inner, fp8, path))
        elif key in ("dtype", "torch_dtype") and (name := dtypes.stated(inner, fp8=fp8)):
            found[path] = name
    return found


def index_differences(
    expected: Expectation, dest: Path, file: str, headers: Headers
) -> Iterator[Problem]:
    """Where an index disagrees with the shards beside it, or with the source's index."""
    if not expected.source_file(file).is_file() or expected.source.is_file():
        yield problem("index_unexpected", file)
        return
    try:
        index = read_json(dest / file, MAX_INDEX)
        weight_map, metadata = dict(index["weight_map"]), dict(index.get("metadata") or {})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        yield problem("index_invalid", file, reason=shown(repr(error)))
        return
    folder = os.path.dirname(file)
    same = weight_map == expected.weight_map(file)
    held: set[tuple[str, str]] = set()
    lost, total = 0, 0
    for name, shard in weight_map.items():
        path = os.path.join(folder, str(shard))
        entry = headers.get(path, {}).get(name)
        if entry is not None:
            total += entry.bytes
            continue
        held = held or {(tensor.file, tensor.name) for tensor in expected.plan.tensors}
        if same and path in headers and (path, name) not in held:
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
    before = (expected.source_json(file, MAX_INDEX).get("metadata") or {}).get("dtype")
    dtype, stated = (
        dtypes.stated(each, fp8=expected.casts_fp8) for each in (metadata.get("dtype"), before)
    )
    allowed = expected.may_state(stated)
    if allowed and dtype not in (None, *allowed):
        yield problem("index_dtype", file, found=dtype, expected=expected.to or stated)
