"""The GPU that is there, as `nvidia-smi` describes it; nothing here imports torch."""

import os
from typing import TypedDict

from recast.gpu.settings import MIB


class Gpu(TypedDict):
    """A GPU and its memory, in bytes."""

    name: str
    free: int
    total: int


def visible_gpu() -> Gpu | None:
    """The GPU that programs see first.

    `None` without `nvidia-smi`, where it reports no GPU that has memory of its own, and where
    `CUDA_VISIBLE_DEVICES` hides all of them.
    """
    import shutil
    import subprocess

    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = ["--query-gpu=uuid,name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            [command, *query], capture_output=True, text=True, timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        # A driver that hangs must not keep anyone from reading a checkpoint's header.
        return None
    line = _visible(answer.stdout.splitlines()) if answer.returncode == 0 else None
    if line is None:
        return None
    name, free, total = (part.strip() for part in line.partition(",")[2].rsplit(",", 2))
    if not (free.isdigit() and total.isdigit()):
        return None
    return {"name": name, "free": int(free) * MIB, "total": int(total) * MIB}


def _visible(gpus: list[str]) -> str | None:
    """The GPU that `CUDA_VISIBLE_DEVICES` puts first, by its number or the start of its UUID."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.isdecimal():
        chosen = gpus[int(first) :][:1]
    else:
        # Also what is meant to hide them all, empty or -1: no UUID begins with it.
        chosen = [line for line in gpus if first and line.startswith(first)]
    return chosen[0] if len(chosen) == 1 else None
