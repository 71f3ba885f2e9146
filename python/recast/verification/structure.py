"""The structure of a result: the expected files, the expected tensors, and nothing else."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from recast.verification import configs, hashes, labels
from recast.verification.expectation import Expectation
from recast.verification.files import is_index, shards, walk
from recast.verification.header import Headers
from recast.verification.problems import Problem, problem

if TYPE_CHECKING:
    from recast._core import PlannedTensor


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
    yield from _weights(expected, found)
    yield from _pickled(expected, dest, found)
    for file in found:
        yield from hashes.differences(dest / file, file)
        for key in labels.in_metadata(dest / file) if expected.dequantizes else ():
            yield problem("quantization_left", file, key=key)
    for file in walk(dest):
        if expected.dequantizes and os.path.basename(file) in labels.SIDECARS:
            yield problem("sidecar_left", file)
        elif is_index(file):
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
        kept = kept and tensor.action != "dequantize"
        if entry.dtype != tensor.dtype and not kept:
            yield problem("tensor_dtype", *where, found=entry.dtype, expected=tensor.dtype)
    for file, name in sorted(unexpected):
        tied = expected.tied.get(file, {})
        if name in tied:
            yield problem("tensor_tied", file, name, kept=tied[name])
        else:
            yield problem("tensor_unexpected", file, name)


def _pickled(expected: Expectation, dest: Path, headers: Headers) -> Iterator[Problem]:
    """In what the plan differs from what torch finds in pickles, and what the shards made of them
    state of tied tensors."""
    planned: dict[str, dict[str, PlannedTensor]] = {file: {} for file in expected.pickles}
    for tensor in expected.plan.tensors:
        if tensor.file in planned:
            planned[tensor.file][tensor.source_name] = tensor
    for file, pickle in expected.pickles.items():
        for name, tensor in planned[file].items():
            entry = pickle.entries.get(name)
            if name in expected.tied[file]:
                yield problem("tensor_tied", file, name, kept=expected.tied[file][name])
            elif entry is None:
                yield problem("tensor_unknown", file, name)
            elif entry.dtype != tensor.source_dtype:
                found = tensor.source_dtype
                yield problem("tensor_dtype", file, name, found=found, expected=entry.dtype)
            elif tensor.action != "dequantize" and entry.shape != tuple(tensor.shape):
                shape = list(entry.shape)
                yield problem("tensor_shape", file, name, found=tensor.shape, expected=shape)
        # Of dequantized weights it is known above which of their parts must be there.
        for name in () if expected.dequantizes else expected.source_headers[file]:
            if name not in planned[file]:
                yield problem("tensor_missing", file, name)
        if file in headers:
            yield from _metadata(dest / file, file, expected.notes(file))


def _metadata(path: Path, file: str, tied: dict[str, str]) -> Iterator[Problem]:
    """In what the metadata of a shard differ from those that loaders need."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as shard:
        metadata = shard.metadata() or {}
    # A tensor called "format" cannot be noted.
    wanted = {**tied, "format": "pt"}
    for key in sorted(wanted.keys() | metadata.keys()):
        found, expected = metadata.get(key), wanted.get(key)
        if found != expected:
            tensor = key if key in tied else None
            yield problem("metadata", file, tensor, key=key, found=found, expected=expected)


def _weights(expected: Expectation, headers: Headers) -> Iterator[Problem]:
    """In what the plan differs from what verification finds of quantized weights, and what of them
    the expected files still hold."""
    planned = {(tensor.file, tensor.name): tensor for tensor in expected.plan.tensors}
    weights = expected.quantized
    for key, tensor in planned.items():
        if tensor.action != "dequantize":
            continue
        weight = weights.get(key)
        if weight is None:
            yield problem("weight_unknown", *key)
        elif weight.shape != tuple(tensor.shape):
            shape = list(tensor.shape)
            yield problem("tensor_shape", *key, found=shape, expected=list(weight.shape))
    if not expected.dequantizes:
        # Codes and scales are of use only as they are.
        for weight in weights.values():
            for part in (weight.codes, *weight.scales):
                found = headers.get(part.key[0], {}).get(part.key[1])
                if found is not None and found.dtype != part.entry.dtype:
                    dtype = part.entry.dtype
                    yield problem("tensor_dtype", *part.key, found=found.dtype, expected=dtype)
        return
    for key, weight in weights.items():
        if key not in planned or planned[key].action != "dequantize":
            yield problem("weight_left", *weight.codes.key)
    codes = {weight.codes.key for weight in weights.values()}
    for file, entries in expected.source_headers.items():
        for name in entries:
            key = (file, name)
            if key in expected.dropped:
                if name in headers.get(file, {}):
                    yield problem("scale_left", *key)
            elif key not in planned and key not in codes:
                yield problem("tensor_missing", *key)
