"""Where a verification runs: a CPU, or a GPU."""

from recast.errors import UsageError
from recast.terminal import shown
from recast.verification import measure


def choose_device(device: str) -> str:
    """`cpu` or `cuda:N` for `auto`, `cpu`, `cuda` or `cuda:N`. Raises `UsageError` where there is
    no such device, or no torch."""
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            "verification requires torch, which is not installed",
            "pip install 'recast-weights[torch]'",
        ) from error
    kind, _, number = device.partition(":")
    known = device in ("auto", "cpu", "cuda") or (kind == "cuda" and number.isdecimal())
    if not known:
        raise UsageError(f"there is no device '{shown(device)}'", "use auto, cpu, cuda or cuda:N")
    available = torch.cuda.is_available()
    if device == "cpu" or (device == "auto" and not available):
        return "cpu"
    if not available:
        why = "sees none" if torch.version.cuda or torch.version.hip else "is built for CPUs only"
        raise UsageError(
            f"there is no GPU to use as '{device}': torch {torch.__version__} {why}",
            "use --device=cpu, or a machine with a GPU, its driver and a torch built for it",
        )
    index, count = int(number or torch.cuda.current_device()), torch.cuda.device_count()
    if index >= count:
        raise UsageError(
            f"there is no device '{device}': this machine has {count}",
            f"use cuda:0 to cuda:{count - 1}" if count > 1 else "use cuda:0",
        )
    return f"cuda:{index}"


def check_workspace(device: str) -> None:
    """Raises `VerificationError` unless `device` has the memory that comparing takes."""
    if device != "cpu":
        import torch

        measure.check_workspace(torch.cuda, device)
