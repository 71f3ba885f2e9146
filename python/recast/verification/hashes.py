"""Hashes of its tensors that a shard states in its metadata, as tools for LoRAs do."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from recast.verification.files import open_regular
from recast.verification.header import read_metadata
from recast.verification.problems import Problem, problem

# kohya's sd-scripts (`addnet_hash_safetensors`), and ModelSpec. What is no digest states nothing.
DIGESTS = {
    "sshs_model_hash": re.compile(r"()([0-9a-f]{64})", re.IGNORECASE),
    "modelspec.hash_sha256": re.compile(r"(0x)([0-9a-f]{64})", re.IGNORECASE),
}


def differences(path: Path, file: str) -> Iterator[Problem]:
    """Where the metadata of the shard at `path`, which is `file` below the root, states another
    SHA-256 digest than that of the bytes after its header."""
    metadata = read_metadata(path)
    matches = {key: form.fullmatch(metadata.get(key, "")) for key, form in DIGESTS.items()}
    stated = {key: match for key, match in matches.items() if match}
    if not stated:
        return
    with open_regular(path) as data:
        data.seek(8 + int.from_bytes(data.read(8), "little"))
        hasher = hashlib.sha256()
        while piece := data.read(1 << 20):
            hasher.update(piece)
    digest = hasher.hexdigest()
    for key, match in stated.items():
        if match[2].lower() != digest:
            yield problem("hash", file, key=key, found=match[0], expected=match[1] + digest)
