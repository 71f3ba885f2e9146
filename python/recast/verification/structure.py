"""The structure of a result: the expected files, the expected tensors, and nothing else."""

import os
from collections.abc import Iterator
from pathlib import Path

from recast.verification import configs, hashes
from recast.verification.expectation import Expectation
from recast.verification.files import is_index, shards, walk
from recast.verification.header import Headers
from recast.verification.problems import Problem, problem


def differences(expected: Expectation, dest: Path, headers: Headers) -> Iterator[Problem]:
    """Everything in which the structure of `dest`, whose shards have `headers`, is not as
    expected."""
    planned = {file.path: file for file in expected.plan.files}
    for file, facts in planned.items():
        path = dest / file
        if not path.is_file():
            yield problem("file_missing", file)
        elif expected.exact and facts.action == "cast" and path.stat().st_size != facts.bytes:
            yield problem("file_size", file, found=path.stat().st_size, expected=facts.bytes)
    for file in sorted(set(shards(dest)) - planned.keys()):
        yield problem("file_unexpected", file)
    found = {file: headers[file] for file in headers if file in planned}
    yield from _tensors(expected, found)
    for file in found:
        yield from hashes.differences(dest / file, file)
    for file in walk(dest):
        if is_index(file):
            yield from configs.index_differences(expected, dest, file, headers)
        elif os.path.basename(file) == "config.json" and file in planned:
            yield from configs.config_differences(expected, dest, file)


def _tensors(expected: Expectation, headers: Headers) -> Iterator[Problem]:
    """In what the tensors of the expected files differ."""
    unexpected = {(file, name) for file, entries in headers.items() for name in entries}
    for tensor in expected.plan.tensors:
        if tensor.file not in headers:
            continue
        where = (tensor.file, tensor.name)
        unexpected.discard(where)
        entry = headers[tensor.file].get(tensor.name)
        if entry is None:
            yield problem("tensor_missing", *where)
            continue
        if entry.shape != tuple(tensor.shape):
            shape = list(entry.shape)
            yield problem("tensor_shape", *where, found=shape, expected=tensor.shape)
        kept = not expected.exact and entry.dtype == tensor.source_dtype
        if entry.dtype != tensor.dtype and not kept:
            yield problem("tensor_dtype", *where, found=entry.dtype, expected=tensor.dtype)
    for file, name in sorted(unexpected):
        yield problem("tensor_unexpected", file, name)
