"""`verify`: a result against its source: promise, structure, load, values, report."""

import os
import secrets
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from recast._core import check_local
from recast.errors import InputError, UsageError, VerificationError
from recast.gpu.predict import Memory
from recast.gpu.settings import read_settings
from recast.options import Device, Options, Progress
from recast.report import REPORT_NAME
from recast.terminal import shown
from recast.verification import compare, facts, intent, measure, structure
from recast.verification.cause import likely_cause
from recast.verification.devices import choose_device
from recast.verification.files import shards
from recast.verification.header import read_headers
from recast.verification.intent import Asked
from recast.verification.loaders import LOADERS, Loader, LoaderName, LoadError
from recast.verification.problems import Problem, problem
from recast.verification.result import MemoryCheck, MemoryFigure, Verification

SAMPLES = 64
"""Random blocks compared in each tensor by default."""


def verify(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    device: Device = "auto",
    samples: int | None = None,
    full: bool = False,
    loader: LoaderName = "safetensors",
    seed: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Checks that `dest` is `source` in another dtype, and nothing else.

    `device` is `"cpu"`, `"cuda"`, `"cuda:N"`, or `"auto"` for a GPU where there is one. The result
    is loaded there by `loader`: `"safetensors"`, or `"transformers"` for what a user of that
    library gets. The structure is compared, the memory on a GPU to the byte, and values: in each
    tensor the first and last 4,096 and `samples` random blocks of as many (default: 64), drawn
    from `seed`; or with `full` every one. `progress(done, total)` is called with bytes.

    What was asked for is read from `dest`'s `recast.json`, and a damaged one is a problem; without
    one, each tensor may have kept its dtype or have been cast to one common dtype. The values of a
    model that does not fit on the GPU are compared all the same, and its memory is not measured.

    Raises `UsageError` where the options make no sense or torch or the device is missing,
    `InputError` where the source cannot be read or `dest` holds no model, and `VerificationError`
    where the device has no room to compare. A wrong result is not an exception: see `passed`.
    """
    started = time.perf_counter()
    if full and samples is not None:
        raise UsageError("full and samples exclude each other", "leave out one of them")
    if samples is not None and samples < 0:
        raise UsageError(f"samples is {samples}", "give the number of random blocks per tensor")
    if loader not in LOADERS:
        raise UsageError(
            f"there is no loader '{shown(loader)}'", f"use one of: {', '.join(LOADERS)}"
        )
    check_local(os.fspath(dest))
    chosen = choose_device(str(device))
    root = Path(dest)
    if not root.is_dir() or not shards(root):
        raise InputError(
            f"{shown(root)} is not a directory that holds a .safetensors file",
            "give the directory that `recast convert` wrote",
        )
    blocks = None if full else SAMPLES if samples is None else samples
    seed = secrets.randbits(32) if seed is None else seed
    run = _Run(root, chosen, loader, blocks, seed, progress, started=started)
    return run.finish(intent.find(os.fspath(source), root, run.headers, run.notes))


@dataclass
class _Run:
    """One verification, of the result below `root`."""

    root: Path
    device: str
    loader: LoaderName = "safetensors"
    samples: int | None = None
    seed: int = 0
    progress: Progress | None = None
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.headers, damaged = read_headers(self.root)
        self.notes: list[str] = []
        self.problems: list[Problem] = [
            problem("shard_damaged", file, reason=reason) for file, reason in damaged.items()
        ]

    def finish(self, asked: Asked) -> Verification:
        """Checks that the result is what was asked for."""
        import torch

        promise = asked.promise
        if asked.invalid is not None:
            self.problems.append(problem("report_invalid", REPORT_NAME, reason=asked.invalid))
        self.problems += facts.of_another_run(asked)
        self.problems += structure.differences(promise, self.root, self.headers)
        try:
            loader, memory = self._load()
            compared = compare.compare(
                promise,
                self.root,
                self.headers,
                loader,
                self.device,
                samples=self.samples,
                seed=self.seed,
                counts=self.samples is None and asked.report is not None,
                progress=self.progress,
            )
            if asked.report is not None and not (self.problems or compared.mismatches):
                counted = compared.tallies if self.samples is None else None
                self.problems += facts.differences(promise, asked.report, self.root, counted)
        except torch.cuda.OutOfMemoryError as error:
            raise VerificationError(
                f"{self.device} ran out of memory while the model was verified: {error}",
                "free memory there, choose another GPU with cuda:N, or verify on cpu",
            ) from error
        return Verification(
            source=str(promise.source.path),
            dest=str(self.root),
            to=promise.to,
            device=self.device,
            loader=self.loader,
            samples=self.samples,
            seed=None if self.samples is None else self.seed,
            tensors_checked=compared.tensors,
            values_checked=compared.values,
            values_total=compared.total,
            mismatches=compared.mismatches,
            problems=self.problems,
            likely_cause=likely_cause(promise, self.headers, compared),
            notes=self.notes + read_settings()[1] + (loader.notes() if loader else []),
            memory=memory,
            seconds=time.perf_counter() - self.started,
        )

    def _load(self) -> tuple[Loader | None, MemoryCheck | None]:
        """The loader with the model it loaded, and the memory of that; no loader where the model
        does not fit, and neither where a problem of the result prevents loading."""
        import torch

        try:
            loader = LOADERS[self.loader](self.root, self.headers, self.device)
            predicted, expected = loader.predict()
            if self.device == "cpu":
                loader.load()
                return loader, _memory(expected)
            reason = measure.too_large(torch.cuda, self.device, expected)
            if reason is not None:
                measure.check_workspace(torch.cuda, self.device)
                self.notes.append(f"{reason}; so its memory was not measured")
                return None, _memory(expected)
            options: dict[str, Any] = {"dtype": torch.uint8, "device": self.device}
            _, measured = measure.measure(
                torch.cuda, self.device, partial(torch.empty, **options), loader.load
            )
            self.problems += measure.explain(
                torch.cuda, expected, measured, predicted, loader.allocations()
            )
            return loader, _memory(expected, measured)
        except LoadError as error:
            self.problems.append(problem("load_failed", reason=error))
        except InputError as error:
            if not self.problems:
                raise
            self.problems.append(problem("load_failed", reason=error.message))
        return None, None


def _memory(expected: Memory, measured: Memory | None = None) -> MemoryCheck:
    """The counters as predicted, and as measured where they were."""
    return MemoryCheck(
        **{
            name: MemoryFigure(getattr(expected, name), getattr(measured, name, None))
            for name in expected._fields
        }
    )


def verify_all(
    source: str,
    root: str | os.PathLike[str],
    options: Options,
    device: str,
    progress: Progress | None,
) -> Verification:
    """Compares every value of a result that `options` make of `source`, a path that a plan gave,
    with safetensors, on a device that `choose_device` gave."""
    run = _Run(Path(root), device, progress=progress)
    return run.finish(Asked(intent.promised(source, options, run.headers), None, []))
