"""The engine: the same bytes however it runs, in memory that does not grow with the model."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import recast
import torch
from recast.options import Io
from safetensors.torch import save_file


def tree_hash(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "recast.json"
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards to cast, to copy and of both, with pieces of every kind."""
    folder = tmp_path_factory.mktemp("engine")
    torch.manual_seed(0)
    big = torch.randint(0, 1 << 40, (1_300_003,))  # 10.4 MB: copied inside the kernel, in pieces
    save_file({f"w{n}": torch.randn(700, 999) for n in range(3)}, folder / "cast.safetensors")
    save_file({"ids": big, "mask": big[:100_001] > 5}, folder / "copy.safetensors")
    mixed = {f"tiny{n:04}": torch.randn(n % 7) for n in range(3000)}
    mixed |= {"ids": big[:200_001], "w": torch.randn(600_001), "done": torch.ones(5).bfloat16()}
    save_file(mixed, folder / "mixed.safetensors")
    (folder / "tokenizer.bin.txt").write_bytes(os.urandom(3_000_001))
    (folder / "empty.txt").write_bytes(b"")
    (folder / "config.json").write_text('{"dtype": "float32"}')
    return folder


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one thread writes, its shards judged by torch."""
    out = tmp_path_factory.mktemp("expected") / "out"
    recast.convert(model, out, to="bf16", threads=1, io="read")
    from safetensors.torch import load_file

    for shard in ("cast", "copy", "mixed"):
        before = load_file(model / f"{shard}.safetensors")
        after = load_file(out / f"{shard}.safetensors")
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            cast = tensor.bfloat16() if tensor.is_floating_point() else tensor
            assert torch.equal(after[name], cast), name
    return tree_hash(out)


@pytest.mark.parametrize("io", ["auto", "mmap", "read"])
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("sync", [True, False])
def test_the_output_does_not_depend_on_threads_io_or_sync(
    io: Io, threads: int, sync: bool, model: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    recast.convert(model, tmp_path / "out", to="bf16", threads=threads, io=io, sync=sync)
    assert tree_hash(tmp_path / "out") == expected


def test_keeping_tensors_does_not_depend_on_threads_or_io(model: Path, tmp_path: Path) -> None:
    ways: list[tuple[Io, int]] = [("read", 1), ("mmap", 3)]
    for number, (io, threads) in enumerate(ways):
        out = tmp_path / str(number)
        recast.convert(model, out, to="bf16", keep=["w", "tiny1*"], threads=threads, io=io)
    assert tree_hash(tmp_path / "0") == tree_hash(tmp_path / "1")


@pytest.mark.parametrize("io", ["mmap", "read"])
def test_memory_does_not_grow_with_the_model(io: Io, tmp_path: Path) -> None:
    peaks = []
    for megabytes in (64, 768):
        path = tmp_path / f"{megabytes}.safetensors"
        elements = megabytes << 18
        header = b'{"w":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (
            elements,
            4 * elements,
        )
        header += b" " * (-len(header) % 8)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 4 * elements)
        command = [sys.executable, "-m", "recast", "convert", str(path), str(tmp_path / "out")]
        command += ["--to", "bf16", "--no-sync", "--io", io, "--quiet"]
        # By way of a small process: a child's peak starts with the size of the one it forks from.
        script = (
            "import resource, subprocess, sys\n"
            "subprocess.run(sys.argv[1:], check=True)\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        )
        peak = subprocess.run(
            [sys.executable, "-c", script, *command], check=True, capture_output=True
        )
        peaks.append(int(peak.stdout) / 1024)
        subprocess.run(["rm", "-r", str(tmp_path / "out")], check=True)
    assert peaks[1] < peaks[0] + 48
    assert peaks[1] < 256
