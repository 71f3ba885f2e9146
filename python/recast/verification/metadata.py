"""What the metadata of a result's shards say: the source's, and what a conversion changes of it."""

from collections.abc import Iterator
from pathlib import Path

from recast.verification import labels
from recast.verification.hashes import DIGESTS
from recast.verification.header import read_header, read_metadata
from recast.verification.problems import Problem, problem
from recast.verification.promise import Promise

HASHES = {"sshs_legacy_hash", *DIGESTS}
"""Hashes of the tensors' bytes. Digests are made again; any other goes where the bytes change, or
come in another order."""


def differences(promise: Promise, path: Path, file: str) -> Iterator[Problem]:
    """In what the metadata of the shard at `path`, which is `file` below the root, differ from what
    they must be."""
    found = read_metadata(path)
    if promise.dequantizes:
        for key in sorted(labels.METADATA & found.keys()):
            yield problem("quantization_left", file, key=key)
    is_pickled = file in promise.source.pickles
    if not (promise.exact or is_pickled):
        # What another tool states besides is nobody's promise.
        return
    tied = promise.tied.get(file, {})
    before = {} if is_pickled else promise.source.metadata(file)
    # A tensor called "format" cannot be noted.
    wanted = {"format": "pt", **before, **{key: tied[key] for key in tied if key != "format"}}
    changes = _changes(promise, path, file)
    for key in sorted(wanted.keys() | found.keys()):
        value, expected = found.get(key), wanted.get(key)
        form = DIGESTS.get(key)
        if form and expected and form.fullmatch(expected):
            # Which digest it is, is checked against the bytes.
            expected = value if value and form.fullmatch(value) else "a digest of the tensors"
        elif key in HASHES and changes:
            expected = None
        elif key in labels.METADATA and (promise.dequantizes or value is None):
            # What is said of quantization goes where no weight is quantized.
            continue
        if value != expected:
            tensor = key if key in tied else None
            yield problem("metadata", file, tensor, key=key, found=value, expected=expected)


def _changes(promise: Promise, path: Path, file: str) -> bool:
    """Whether the bytes of a shard's tensors are not those of the source's, one after the other."""
    before, tensors = promise.source.headers[file], promise.tensors[file]
    if len(tensors) < len(before) or any(tensor.is_cast for tensor in tensors.values()):
        return True
    starts = [before[name].start for name in read_header(path) if name in before]
    return starts != sorted(starts)
