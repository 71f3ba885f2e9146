"""The CPU side of a machine with a GPU: casts and a conversion, by threads, beside their floor."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import recast
import torch
from figures import record
from on_gpu import (
    CORES,
    DEVICE,
    DRY,
    NEEDS_GPU,
    differences,
    medians,
    stored_bytes,
    torch_threads,
    write_model,
)
from recast.options import FloatName
from tensors import DTYPES

pytestmark = NEEDS_GPU

THREADS = [count for count in (1, 2, 4, 8, 16) if count <= CORES]
VALUES = 1 << (12 if DRY else 27)
SHARDS = 16
ROWS = 4 if DRY else 8192
PIECE = 1 << 20


@pytest.mark.parametrize(("source", "to"), [("fp32", "bf16"), ("bf16", "fp32"), ("fp16", "bf16")])
def test_the_speed_of_casts_on_the_host(source: str, to: FloatName) -> None:
    x = (torch.randn(VALUES, device=DEVICE) * 0.02).to(DTYPES[source]).cpu()
    y = torch.empty(VALUES, dtype=DTYPES[to])
    size = x.nbytes + y.nbytes
    copied = torch.empty(size // 8), torch.zeros(size // 8)
    for threads in THREADS:
        with torch_threads(threads):
            found = medians(
                {
                    "recast": lambda: recast.cast(x, to, out=y, threads=threads),  # noqa: B023
                    "torch": lambda: y.copy_(x),
                    "copy": lambda: copied[0].copy_(copied[1]),
                },
                5,
            )
        speeds = {name: size / seconds / 1e9 for name, seconds in found.items()}
        record("host_casts", source=source, to=to, threads=threads, **speeds)
    assert differences(recast.cast(x, to), y) == 0


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """2 GiB of fp32 in as many files as there are threads at most."""
    root = tmp_path_factory.mktemp("host")
    files = [{f"layer{number}.weight": [ROWS, 4096]} for number in range(SHARDS)]
    yield write_model(root / "model", files, {"model_type": "llama", "dtype": "float32"})
    shutil.rmtree(root)


def write(folder: Path, size: int, threads: int) -> None:
    """Writes so many bytes into each of as many files, some of them at a time."""
    folder.mkdir()
    piece = os.urandom(min(PIECE, size))

    def fill(number: int) -> None:
        with (folder / str(number)).open("wb", buffering=0) as file:
            for _ in range(size // len(piece)):
                file.write(piece)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(SHARDS)))


def test_the_time_of_a_conversion_on_the_host(shards: Path) -> None:
    out = shards.with_name("out")
    size = stored_bytes(shards)
    for threads in THREADS:
        found = medians(
            {
                "convert": lambda: recast.convert(
                    shards,
                    out,
                    to="bf16",
                    on_overflow="inf",
                    sync=False,
                    threads=threads,  # noqa: B023
                ),
                "floor": lambda: write(out, ROWS * 4096 * 2, threads),  # noqa: B023
            },
            3,
            lambda: shutil.rmtree(out, ignore_errors=True),
        )
        ratio = found["convert"] / found["floor"]
        record("host_conversion", size=size / 1e9, threads=threads, **found, ratio=ratio)
