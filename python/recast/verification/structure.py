"""The structure of a result: the promised files, the promised tensors, and nothing else."""

import os
from collections.abc import Iterator
from pathlib import Path

from recast.verification import configs, copies, hashes, labels, metadata
from recast.verification.dtypes import FLOATS
from recast.verification.filenames import DESCRIBING, is_shard
from recast.verification.files import is_index, shards, walk
from recast.verification.header import Headers, Key, plain_size, read_metadata
from recast.verification.problems import LISTED, Kind, Problem, problem
from recast.verification.promise import CODES, Promise


def differences(promise: Promise, dest: Path, headers: Headers) -> Iterator[Problem]:
    """Everything in which the structure of `dest`, whose shards have `headers`, is not as
    promised."""
    source = promise.source
    needed = {*source.shards, *source.indexes, *source.settings, *source.others}
    # Where no weight is quantized, what is said of quantization may be left behind.
    carried = bool(source.quantized) and not promise.dequantizes
    needed |= source.sidecars if carried else set()
    for file in sorted(needed):
        if not (dest / file).is_file():
            yield problem("file_missing", file)
    for file in sorted(set(shards(dest)) - source.shards.keys()):
        yield problem("file_unexpected", file)
    yield from _tensors(promise, headers)
    for file in headers.keys() & source.shards.keys():
        yield from hashes.differences(dest / file, file)
        yield from metadata.differences(promise, dest / file, file)
        size = plain_size(headers[file], read_metadata(dest / file))
        if promise.exact and (dest / file).stat().st_size != size:
            found = (dest / file).stat().st_size
            yield problem("file_size", file, found=found, expected=size)
    for file in walk(dest):
        if promise.dequantizes and os.path.basename(file) in labels.SIDECARS:
            yield problem("sidecar_left", file)
        elif is_index(file):
            yield from configs.index_differences(promise, dest, file, headers)
        elif file in source.settings:
            yield from configs.config_differences(promise, dest, file)
        elif file in source.others | source.sidecars:
            yield from copies.differences(source.file(file), dest / file, file)
        elif _is_added(promise, file):
            yield problem("file_added", file)


def _is_added(promise: Promise, file: str) -> bool:
    """Whether a file is none of the source's, so that a conversion has not put it there."""
    is_hidden = os.path.basename(file).startswith(".")
    return promise.exact and not (is_hidden or file in DESCRIBING or is_shard(file))


def _tensors(promise: Promise, headers: Headers) -> Iterator[Problem]:
    """In what the tensors of a result differ."""
    for file, promised in promise.tensors.items():
        # What is missing or damaged has been said of the file.
        for name, tensor in promised.items() if file in headers else ():
            entry = headers[file].get(name)
            if entry is None:
                yield problem("tensor_missing", file, name)
                continue
            if entry.shape != tensor.shape:
                expected = list(tensor.shape)
                yield problem(
                    "tensor_shape", file, name, found=list(entry.shape), expected=expected
                )
            if entry.dtype not in tensor.dtypes:
                # Codes of which it is not known what they stand for.
                is_unknown = tensor.source.dtype in CODES and entry.dtype in FLOATS
                kind: Kind = "weight_unknown" if is_unknown else "tensor_dtype"
                yield problem(kind, file, name, found=entry.dtype, expected=tensor.dtypes[0])
    extra = [
        (file, name)
        for file in headers
        for name in headers[file].keys() - promise.tensors.get(file, {}).keys()
    ]
    yield from _extra(promise, headers, sorted(extra))


def _extra(promise: Promise, headers: Headers, extra: list[Key]) -> Iterator[Problem]:
    """What the tensors are that a result should not have."""
    homes = {
        (os.path.dirname(file), name): file
        for file, promised in promise.tensors.items()
        for name in promised
    }
    codes = {(os.path.dirname(file), name): (file, name) for file, name in promise.codes}
    gone = {(os.path.dirname(file), name) for file, name in promise.dropped}
    copied = 0
    for file, name in extra:
        key = (os.path.dirname(file), name)
        if name in promise.tied.get(file, {}):
            yield problem("tensor_tied", file, name, kept=promise.tied[file][name])
        elif key in codes and promise.codes[codes[key]].name not in headers[file]:
            yield problem("weight_left", file, name)
        elif key in gone:
            yield problem("scale_left", file, name)
        elif key in homes and name in headers.get(homes[key], {}):
            copied += 1
            if copied <= LISTED:
                yield problem("tensor_copied", file, name, other=homes[key])
        elif file in promise.tensors:
            yield problem("tensor_unexpected", file, name)
    if copied > LISTED:
        yield problem("tensors_copied", count=f"{copied - LISTED:,}")
