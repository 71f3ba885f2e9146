"""`verify`: a result against its source, in the order promise, structure, load, values."""

import os
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recast._core import Checkpoint, Plan, check_local
from recast.array import POLICIES
from recast.errors import InputError, UsageError, VerificationError
from recast.memory import predict_here, settings
from recast.report import REPORT_NAME
from recast.terminal import Progress, first_of, plain, shown
from recast.verification import memory, structure, values
from recast.verification.loaders import LoadError, Safetensors, Transformers
from recast.verification.result import Verification, abridged
from recast.verification.structure import FLOATS, Headers, Promise

if TYPE_CHECKING:
    import torch

SAMPLES = 64
"""Random blocks compared in each tensor unless asked otherwise."""
# The most patterns of `--keep` that are taken over from a report: each costs time and memory.
PATTERNS = 256
Loader = Safetensors | Transformers
LOADERS: dict[str, type[Loader]] = {"safetensors": Safetensors, "transformers": Transformers}


def verify(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    device: str = "auto",
    samples: int | None = None,
    full: bool = False,
    loader: str = "safetensors",
    seed: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Checks that `dest` is `source` in another dtype, and nothing else.

    `device` is `"cpu"`, `"cuda"`, `"cuda:N"`, or `"auto"` for a GPU where there is one. There the
    result is loaded, by `loader`: `"safetensors"`, or `"transformers"` for what a user of that
    library gets. Compared are the structure, the memory on a GPU to the byte, and values: in each
    tensor the first and last 4,096 and `samples` random blocks of as many (64 unless given), drawn
    from `seed`; or with `full` every one. `progress(done, total)` is called with bytes.

    What was promised is read from `dest`'s `recast.json`; without one, tensors may have kept their
    dtype or have been cast to one common dtype.

    Raises `UsageError` where the options make no sense or torch or the device is missing,
    `InputError` where the source cannot be read or `dest` holds no model, and `VerificationError`
    where the model does not fit the device. A result that is wrong is no exception: see `passed`.
    """
    started = time.perf_counter()
    if full and samples is not None:
        raise UsageError("full and samples exclude each other", "leave out one of them")
    if samples is not None and samples < 0:
        raise UsageError(f"samples is {samples}", "give the number of random blocks a tensor")
    if loader not in LOADERS:
        raise UsageError(
            f"there is no loader '{shown(loader)}'", f"use one of: {', '.join(LOADERS)}"
        )
    check_local(os.fspath(dest))
    device = choose_device(device)
    root = Path(dest)
    if not root.is_dir() or not structure.shards(root):
        raise InputError(
            f"{shown(root)} is not a directory that holds a .safetensors file",
            "give the directory that `recast convert` wrote",
        )
    blocks = None if full else SAMPLES if samples is None else samples
    seed = secrets.randbits(32) if seed is None else seed
    run = _Run(root, device, loader, blocks, seed, progress, started=started)
    return run.finish(run.find_promise(os.fspath(source)))


def verify_all(
    planned: Plan,
    root: str | os.PathLike[str],
    on_overflow: str,
    device: str,
    progress: Progress | None,
) -> Verification:
    """Compares every value of a result, with safetensors, on a device `choose_device` gave."""
    run = _Run(Path(root), device, progress=progress)
    return run.finish(Promise(planned, planned.to, on_overflow, exact=True))


def rejected(planned: Plan, found: Verification, folder: str) -> VerificationError:
    """The error for a result that failed before it was published, and is in `folder` now."""
    return VerificationError(
        f"the result failed verification and was not published; it is in {shown(folder)}:\n"
        f"{_failures(found)}",
        f"`recast verify {shown(planned.source)} {shown(folder)} --full` shows it again; "
        "the next run removes it",
    )


def verify_published(
    planned: Plan,
    dest: str | os.PathLike[str],
    on_overflow: str,
    device: str,
    progress: Progress | None,
) -> Verification:
    """The same for a result that is published. Raises `VerificationError` for one that fails."""
    found = verify_all(planned, dest, on_overflow, device, progress)
    if not found.passed:
        raise VerificationError(
            f"{shown(dest)} was published before, and failed verification:\n{_failures(found)}",
            "--overwrite makes it again",
        )
    return found


def _failures(found: Verification) -> str:
    return "\n".join(f"  {plain(text)}" for text in abridged(found.failures()))


def choose_device(device: str) -> str:
    """`cpu` or `cuda:N` for what the user calls it. Raises `UsageError` where it is not there."""
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            "to verify takes torch, which is not installed", "pip install 'recast-weights[torch]'"
        ) from error
    kind, _, number = device.partition(":")
    known = device in ("auto", "cpu", "cuda") or (kind == "cuda" and number.isdecimal())
    if not known:
        raise UsageError(f"there is no device '{shown(device)}'", "use auto, cpu, cuda or cuda:N")
    there = torch.cuda.is_available()
    if device == "cpu" or (device == "auto" and not there):
        return "cpu"
    if not there:
        why = "sees none" if torch.version.cuda or torch.version.hip else "is built for CPUs only"
        raise UsageError(
            f"there is no GPU to use as '{device}': torch {torch.__version__} {why}",
            "use --device cpu, or a machine with a GPU, its driver and a torch built for it",
        )
    index, count = int(number or torch.cuda.current_device()), torch.cuda.device_count()
    if index >= count:
        raise UsageError(
            f"there is no device '{device}': this machine has {count}",
            f"use cuda:0 to cuda:{count - 1}" if count > 1 else "use cuda:0",
        )
    return f"cuda:{index}"


def check_fit(device: str, sizes: list[int]) -> None:
    """Raises `VerificationError` unless tensors of `sizes` bytes fit on `device` for verifying."""
    if device == "cpu":
        return
    import torch

    memory.check_fit(torch.cuda, device, predict_here(sizes))


@dataclass
class _Run:
    """One verification, of the result below `root`."""

    root: Path
    device: str
    loader: str = "safetensors"
    samples: int | None = None
    seed: int = 0
    progress: Progress | None = None
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        self.problems: list[str] = []
        self.headers = structure.read_headers(self.root, self.problems)

    def find_promise(self, source: str) -> Promise:
        """What converting `source` promised, by the report in the result or else by its dtypes."""
        checkpoint = Checkpoint.open(source)
        try:
            asked, keep, auto_keep, on_overflow = _options(self.root / REPORT_NAME)
            plan = checkpoint.plan(asked, keep, auto_keep)
            return Promise(plan, plan.to, on_overflow, exact=True)
        except FileNotFoundError:
            why = f"there is no {REPORT_NAME}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            why = f"{REPORT_NAME} does not tell what was asked for ({shown(repr(error))})"
        before = {(tensor.file, tensor.name): tensor.dtype for tensor in checkpoint.tensors}
        after = {
            (file, name): entry.dtype
            for file, entries in self.headers.items()
            for name, entry in entries.items()
        }
        to = structure.infer_target(before, after)
        kept = [
            name
            for (file, name), dtype in before.items()
            if dtype in FLOATS and FLOATS[dtype] != to and after.get((file, name)) == dtype
        ]
        self.notes.append(f"{why}, so the target is taken to be what most tensors are: {to}")
        if kept:
            self.notes.append(f"not cast, which is taken to be intended: {first_of(kept)}")
        return Promise(checkpoint.plan(to or "fp32", [], False), to, "inf", exact=False)

    def finish(self, promise: Promise) -> Verification:
        """Checks that the result is what was promised."""
        import torch

        self.problems += structure.check(promise, self.root, self.headers)
        try:
            loader, found_memory = self._load()
            tensors, checked, mismatches = self._compare(promise, loader)
        except torch.cuda.OutOfMemoryError as error:
            raise VerificationError(
                f"{self.device} ran out of memory while the model was verified: {error}",
                "free memory there, choose another GPU with cuda:N, or verify on cpu",
            ) from error
        return Verification(
            source=promise.plan.source,
            dest=str(self.root),
            to=promise.to,
            device=self.device,
            loader=self.loader,
            samples=self.samples,
            seed=None if self.samples is None else self.seed,
            tensors_checked=tensors,
            values_checked=checked,
            mismatches=mismatches,
            problems=self.problems,
            notes=self.notes + settings()[1] + (loader.notes() if loader else []),
            memory=found_memory,
            seconds=time.perf_counter() - self.started,
        )

    def _load(self) -> tuple[Loader | None, dict[str, dict[str, int | None]] | None]:
        """The loader with the model it loaded, and the memory that takes against the prediction;
        nothing where what is wrong with the result stands in the way."""
        try:
            loader = LOADERS[self.loader](self.root, self.headers, self.device)
            return loader, self._measure(loader)
        except LoadError as error:
            self.problems.append(str(error))
        except InputError as error:
            if not self.problems:
                raise
            self.problems.append(error.message)
        return None, None

    def _measure(self, loader: Loader) -> dict[str, dict[str, int | None]]:
        """Loads the model and holds its memory against the prediction."""
        import torch

        predicted, expected = loader.predict()
        measured = None
        if self.device == "cpu":
            loader.load()
        else:
            memory.check_fit(torch.cuda, self.device, expected)
            options: dict[str, Any] = {"dtype": torch.uint8, "device": self.device}
            _, measured = memory.measure(
                torch.cuda, self.device, partial(torch.empty, **options), loader.load
            )
            self.problems += memory.explain(
                torch.cuda, expected, measured, predicted, loader.allocations()
            )
        return {
            name: {"expected": getattr(expected, name), "measured": getattr(measured, name, None)}
            for name in expected._fields
        }

    def _compare(
        self, promise: Promise, loader: Loader | None
    ) -> tuple[int, int, list[dict[str, Any]]]:
        """Compares the values; how many tensors and values, and the mismatches."""
        reader, files = values.Reader(self.device), values.Reader(self.device)
        work = []
        for file, entries in _sources(promise).items():
            for name, entry in entries.items():
                there = self.headers.get(file, {}).get(name)
                # What the structure has already said is wrong has no values to compare.
                if there and there.shape == entry.shape and _may_be(there.dtype, entry.dtype):
                    # The name of a file may be no text.
                    seed = f"{self.seed}/{file}/{name}".encode(errors="surrogateescape")
                    wanted = values.ranges(entry.elements, self.samples, random.Random(seed))
                    work.append((file, name, entry, there, wanted))
        total = sum(_bytes(entry, wanted) for *_, entry, _, wanted in work)
        done = checked = 0
        mismatches = []
        for file, name, entry, there, wanted in work:
            loaded = loader.find((file, name)) if loader else None
            if loaded is None:
                found = self._stored(files, file, there)
            else:
                found = partial(values.chosen, loaded.detach().reshape(-1))
            count, mismatch = values.compare(
                reader,
                promise.source_file(file),
                entry,
                there,
                found,
                wanted,
                promise.on_overflow,
            )
            checked += count
            done += _bytes(entry, wanted)
            if mismatch is not None:
                mismatches.append({"tensor": name, "file": file, **mismatch})
            if self.progress is not None:
                self.progress(done, total)
        return len(work), checked, mismatches

    def _stored(
        self, files: values.Reader, file: str, entry: structure.Entry
    ) -> Callable[[list[values.Range]], "torch.Tensor"]:
        """The elements of a tensor that is not loaded, from its file."""
        import torch

        dtype = values.floats().get(entry.dtype, torch.uint8)
        return lambda batch: files.read(self.root / file, entry, batch).view(dtype)


def _options(report: Path) -> tuple[str, list[str], bool, str]:
    """The options that a report says a result was made with: `to`, `keep`, `auto_keep` and
    `on_overflow`. Raises what reading raises, and `TypeError` or `ValueError` for what no
    conversion writes."""
    found = structure.read_json(report, structure.MAX_REPORT)["options"]
    to, keep, auto_keep = found["to"], found["keep"], found["auto_keep"]
    if not (isinstance(to, str) and isinstance(keep, list) and isinstance(auto_keep, bool)):
        raise TypeError("an option is of the wrong type")
    if len(keep) > PATTERNS:
        raise ValueError(f"more than {PATTERNS} patterns of --keep")
    if found["on_overflow"] not in POLICIES:
        raise ValueError("no such overflow policy")
    return to, keep, auto_keep, found["on_overflow"]


def _sources(promise: Promise) -> Headers:
    """The source's headers, of the shards that were promised."""
    files = [file.path for file in promise.plan.files if file.action == "cast"]
    try:
        return {file: structure.read_header(promise.source_file(file)) for file in files}
    except (OSError, ValueError) as error:
        raise InputError(f"{shown(promise.source)} changed meanwhile: {shown(error)}") from error


def _may_be(stored: str, source: str) -> bool:
    return stored == source or (stored in FLOATS and source in FLOATS)


def _bytes(entry: structure.Entry, wanted: list[values.Range]) -> int:
    """How many bytes of the source `wanted` is."""
    return entry.bytes * sum(end - start for start, end in wanted) // max(1, entry.elements)
