"""Hashes of its tensors that a shard states in its metadata, as tools for LoRAs do."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from recast.terminal import shown
from recast.verification.files import open_regular
from recast.verification.problems import Problem, problem

# What stands before the digits: kohya's sd-scripts (`addnet_hash_safetensors`), and ModelSpec.
PREFIXES = {"sshs_model_hash": "", "modelspec.hash_sha256": "0x"}


def differences(path: Path, file: str) -> Iterator[Problem]:
    """Where the metadata of the shard at `path`, which is `file` below the root, states another
    SHA-256 digest than that of the bytes after its header."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as shard:
        metadata = shard.metadata() or {}
    stated = {key: metadata[key] for key in PREFIXES if key in metadata}
    if not stated:
        return
    with open_regular(path) as data:
        data.seek(8 + int.from_bytes(data.read(8), "little"))
        hasher = hashlib.sha256()
        while piece := data.read(1 << 20):
            hasher.update(piece)
    digest = hasher.hexdigest()
    for key, found in stated.items():
        expected = PREFIXES[key] + digest
        if found.lower() != expected:
            yield problem("hash", file, key=key, found=shown(found), expected=expected)
