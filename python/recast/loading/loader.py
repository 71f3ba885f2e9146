"""Makes tensors of a plan in memory, or on a GPU."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING, Any

from recast import _core
from recast._core import DTYPES, Checkpoint
from recast.errors import CastOverflowError, InputError, UsageError
from recast.loading.wanted import BATCH, FILES, Sharding, Wanted, batches_of, wanted_of
from recast.options import Options, Path
from recast.terminal import first_of, plain

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {dtype.name: dtype.torch_name for dtype in DTYPES}


class Loader:
    """What is to be loaded, and how."""

    def __init__(
        self, source: Path, options: Options, device: Any, sharding: Sharding | None
    ) -> None:
        self.has_torch = find_spec("torch") is not None
        self.device = self._device(device)
        self.threads, self.stops = options.threads, options.on_overflow == "error"
        # Wherever the process goes while tensors are given out.
        checkpoint = Checkpoint.open(os.path.abspath(source), options.key)
        self.plan = checkpoint.plan(options)
        can_map = self.device is None or self.device.type != "cuda"
        self.sources = [
            os.path.join(self.plan.source, file.source)
            if os.path.isdir(self.plan.source)
            else self.plan.source
            for file in self.plan.files
        ]
        self.marks = {path: _marks(path) for path in self.sources}
        sources = self.sources if can_map else []
        self.wanted = list(wanted_of(self.plan, checkpoint, sharding, self.has_torch, sources))
        self.tied: dict[str, list[str]] = {}
        for name, kept in self.plan.tied:
            self.tied.setdefault(kept, []).append(name)
        names = [wanted.planned.name for wanted in self.wanted]
        names += [name for name, _ in self.plan.tied]
        if len(set(names)) < len(names):
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            raise InputError(
                f"{plain(self.plan.source)}: several tensors have the same name: {first_of(twice)}",
                "load one of the files, or one folder of a pipeline, such as its 'unet'",
            )

    def _device(self, device: Any) -> Any:
        if self.has_torch:
            import torch

            return torch.device(device)
        if str(device) != "cpu":
            raise UsageError(
                f"device is '{plain(str(device))}', and torch is not installed",
                "pip install torch",
            )
        return None

    def all(self) -> Iterator[tuple[str, Any]]:
        """Everything, made in as few steps as possible."""
        if self.device is not None and self.device.type != "cpu":
            yield from self.each()
            return
        for _, group in groupby(self.wanted, lambda wanted: wanted.file // FILES):
            wanted = list(group)
            made = self.made(wanted)
            yield from self._named(wanted, made)

    def each(self) -> Iterator[tuple[str, Any]]:
        """Batch by batch, the next one made while one is used."""
        staging = None
        if self.device is not None and self.device.type == "cuda":
            staging = _Staging(self)
        make = staging.made if staging else self.made
        with ThreadPoolExecutor(1) as pool:
            coming: list[tuple[list[Wanted], Future[list[Any]]]] = []
            for batch in [*batches_of(self.wanted), None]:
                before = coming.pop() if coming else None
                made = before[1].result() if before else []
                if batch is not None:
                    coming.append((batch, pool.submit(make, batch)))
                if before:
                    yield from self._named(before[0], made)
                del made, before

    def _named(self, wanted: list[Wanted], made: list[Any]) -> Iterator[tuple[str, Any]]:
        """Tensors by their names; those that are tied in a pickle are one under several."""
        for it, tensor in zip(wanted, made, strict=True):
            yield it.planned.name, tensor
            for name in self.tied.get(it.planned.name, ()):
                yield name, tensor

    def made(self, wanted: list[Wanted]) -> list[Any]:
        """These tensors."""
        made: list[Any] = [None if it.stored else self.empty(it) for it in wanted]
        requests = [
            (it.file, it.position, _bytes(tensor), it.slices, 0)
            for it, tensor in zip(wanted, made, strict=True)
            if tensor is not None
        ]
        self.fill([it for it in wanted if not it.stored], requests)
        files: dict[str, Any] = {}
        for at, it in enumerate(wanted):
            if it.stored:
                made[at] = self._mapped(it, files)
            if it.cut is not None:
                # A copy, so that the whole is given back.
                cut = made[at][it.cut]
                made[at] = cut.clone() if self.has_torch else cut.copy()
        if self.device is not None and self.device.type != "cpu":
            made = [tensor.to(self.device) for tensor in made]
        self.check(wanted)
        return made

    def check(self, wanted: list[Wanted]) -> None:
        """Raises `InputError` where a file of these tensors is not the one that was opened."""
        for path in {self.sources[it.file] for it in wanted}:
            if _marks(path) != self.marks[path]:
                raise InputError(
                    f"{plain(path)}: changed while it was being loaded",
                    "load again when nothing writes to the source",
                )

    def fill(self, wanted: list[Wanted], requests: list[Any]) -> None:
        """Makes what is requested of these tensors."""
        audits = _core.fill(self.plan, requests, threads=self.threads)
        if self.stops:
            over = [it for it, audit in zip(wanted, audits, strict=True) if audit.to_inf]
            if over:
                names = sorted({it.planned.name for it in over})
                raise CastOverflowError(
                    f"{plain(self.plan.source)}: values are beyond the range of {self.plan.to}: "
                    f"{first_of(names)}",
                    "give --on-overflow=inf or --on-overflow=saturate, or --keep PATTERN",
                )

    def empty(self, wanted: Wanted, device: Any = "cpu") -> Any:
        """Memory for one of them."""
        shape = tuple(wanted.planned.shape) if wanted.cut is not None else wanted.shape
        name = _TORCH_NAMES.get(wanted.planned.dtype)
        if name is None or wanted.planned.dtype == "F4":
            raise InputError(
                f"{plain(self.plan.source)}: tensor '{plain(wanted.planned.name)}' is of "
                f"{wanted.planned.dtype}, which cannot be loaded",
                "convert the checkpoint to another dtype",
            )
        if self.has_torch:
            import torch

            return torch.empty(shape, dtype=getattr(torch, name), device=device)
        import ml_dtypes  # noqa: F401, teaches numpy the names of its dtypes
        import numpy as np

        return np.empty(shape, name)

    def _mapped(self, wanted: Wanted, files: dict[str, Any]) -> Any:
        """A tensor as safetensors gives it; `files` are those that are open."""
        from safetensors import safe_open

        assert wanted.stored is not None
        if wanted.stored not in files:
            files[wanted.stored] = safe_open(wanted.stored, "pt" if self.has_torch else "numpy")
        file = files[wanted.stored]
        if wanted.slices is None:
            return file.get_tensor(wanted.planned.source_name)
        parts = tuple(slice(first, last) for first, last in wanted.slices)
        return file.get_slice(wanted.planned.source_name)[parts]


class _Staging:
    """Two buffers in pinned memory, of which one is filled while the other is copied to a GPU."""

    def __init__(self, loader: Loader) -> None:
        import torch

        self.loader = loader
        self.buffers = [torch.empty(BATCH, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self.copied: list[Any] = [None, None]
        self.turn = 0
        # Copies run in the order of the stream on which the tensors are used.
        self.stream = torch.cuda.current_stream(loader.device)

    def made(self, wanted: list[Wanted]) -> list[Any]:
        """These tensors on the GPU; copies to it may still be under way on its stream."""
        import torch

        made = []
        with torch.cuda.stream(self.stream):
            for it in wanted:
                if it.cut is not None:
                    made += self.loader.made([it])
                    continue
                tensor = self.loader.empty(it, self.loader.device)
                flat = tensor.reshape(-1).view(torch.uint8)
                for start in range(0, flat.numel(), BATCH):
                    self._copy(it, flat[start : start + BATCH], start)
                made.append(tensor)
        self.loader.check(wanted)
        return made

    def _copy(self, wanted: Wanted, target: "torch.Tensor", start: int) -> None:
        import torch

        buffer, copied = self.buffers[self.turn], self.copied[self.turn]
        if copied is not None:
            copied.synchronize()
        part = buffer[: target.numel()]
        request = (wanted.file, wanted.position, part.numpy(), wanted.slices, start)
        self.loader.fill([wanted], [request])
        target.copy_(part, non_blocking=True)
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        self.copied[self.turn] = event
        self.turn = 1 - self.turn


def _marks(path: str) -> tuple[int, ...] | None:
    """By what a file is told from another one that takes its place, or that it becomes."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _bytes(tensor: Any) -> Any:
    """The bytes of a contiguous tensor or array, as a flat array."""
    if hasattr(tensor, "numpy"):
        import torch

        return tensor.reshape(-1).view(torch.uint8).numpy()
    return tensor.reshape(-1).view("u1")
