"""Hashes of the weights in a shard's metadata are those of the weights; the judge is hashlib."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import recast
import torch
from conftest import Run
from safetensors.torch import save_file

KOHYA, MODELSPEC = "sshs_model_hash", "modelspec.hash_sha256"


def parts(path: Path) -> tuple[dict[str, str], str]:
    """The metadata of a shard, and the SHA-256 digest of what follows its header."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    metadata: dict[str, str] = json.loads(data[8:end])["__metadata__"]
    return metadata, hashlib.sha256(data[end:]).hexdigest()


def lora(path: Path, size: int = 64, changes: dict[str, str] | None = None) -> Path:
    torch.manual_seed(0)
    up, down = torch.randn(size, size), torch.randn(size, size) * 1e5
    tensors = {"lora.up.weight": up, "lora.down.weight": down, "lora.alpha": torch.tensor(4.0)}
    save_file(tensors, path)
    old = hashlib.sha256(path.read_bytes()[-1000:]).hexdigest()
    stated = {KOHYA: old, MODELSPEC: f"0x{old}", "ss_network_dim": "4"} | (changes or {})
    save_file(tensors, path, metadata=stated)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"to": "bf16"},
        {"to": "fp16", "on_overflow": "saturate"},
        {"to": "fp32"},
        {"to": "bf16", "keep": ["*.up.*"], "threads": 1, "io": "mmap"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_hash_that_can_be_made_again_is_made_again(
    options: dict[str, str], tmp_path: Path, run: Run
) -> None:
    # Several pieces, so that the header waits for what others make.
    source, out = lora(tmp_path / "lora.safetensors", size=900), tmp_path / "out"
    report = recast.convert(source, out, **options)  # type: ignore[arg-type]
    metadata, digest = parts(out / source.name)
    assert metadata[KOHYA] == digest
    assert metadata[MODELSPEC] == f"0x{digest}"
    assert metadata["ss_network_dim"] == "4"
    assert not any("hashes" in warning for warning in report.warnings)
    assert recast.verify(source, out, full=True).passed
    run("verify", out, codes=(0,))
    assert recast.convert(source, out, **options).already_done  # type: ignore[arg-type]


def test_converting_twice_gives_the_same_hashes(tmp_path: Path) -> None:
    source = lora(tmp_path / "lora.safetensors")
    for name in ("one", "two"):
        recast.convert(source, tmp_path / name, to="bf16")
    for file in ("lora.safetensors", "recast.json"):
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert one == two


def test_a_hash_that_cannot_be_made_again_is_removed_with_a_warning(tmp_path: Path) -> None:
    changes = {"sshs_legacy_hash": "1234abcd", MODELSPEC: "unknown"}
    source = lora(tmp_path / "lora.safetensors", changes=changes)
    report = recast.convert(source, tmp_path / "out", to="bf16")
    metadata, digest = parts(tmp_path / "out" / source.name)
    assert metadata == {KOHYA: digest, "ss_network_dim": "4", "format": "pt"}
    assert report.warnings[:1] == [
        "the metadata had hashes of the weights, which are others now, so those that recast "
        "cannot make again are removed: lora.safetensors"
    ]


def test_verify_sees_a_hash_that_is_not_that_of_the_weights(tmp_path: Path) -> None:
    source, out = lora(tmp_path / "lora.safetensors"), tmp_path / "out"
    recast.convert(source, out, to="bf16")
    metadata, digest = parts(out / source.name)
    data = (out / source.name).read_bytes()
    (out / source.name).write_bytes(data.replace(metadata[KOHYA].encode(), b"0" * 64))
    found = recast.verify(source, out)
    assert [(problem.kind, problem.file) for problem in found.problems] == [
        ("hash", source.name)
    ] * 2
    assert digest in str(found.problems[0])


def test_a_note_where_a_hash_should_be_is_carried_where_nothing_changes(tmp_path: Path) -> None:
    source = tmp_path / "lora.safetensors"
    tensors = {"lora.up.weight": torch.ones(4, 4, dtype=torch.bfloat16)}
    save_file(tensors, source, metadata={MODELSPEC: "unknown", "format": "pt"})
    report = recast.convert(source, tmp_path / "out", to="bf16", verify="cpu")
    assert report.verification
    assert report.verification["passed"]
    metadata, _ = parts(tmp_path / "out" / source.name)
    assert metadata[MODELSPEC] == "unknown"


def test_a_damaged_header_beside_a_hash_is_seen(tmp_path: Path) -> None:
    source, out = lora(tmp_path / "lora.safetensors"), tmp_path / "out"
    recast.convert(source, out, to="bf16")
    data = (out / source.name).read_bytes()
    (out / source.name).write_bytes(data.replace(b'"ss_network_dim":"4"', b'"ss_network_dim":"5"'))
    with pytest.raises(recast.OutputError, match="was changed since recast wrote it"):
        recast.convert(source, out, to="bf16")
