"""`verify`: a result against its source, in the order promise, structure, load, values."""

import json
import os
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recast._core import Checkpoint, Plan, Staged
from recast.errors import InputError, UsageError, VerificationError
from recast.memory import predict, settings
from recast.report import REPORT_NAME
from recast.verification import memory, structure, values
from recast.verification.loaders import Loader, LoadError, Safetensors, Transformers
from recast.verification.result import Verification, shown
from recast.verification.structure import FLOATS, Headers, Key, Promise

if TYPE_CHECKING:
    import torch

SAMPLES = 64
"""Random blocks compared in each tensor unless asked otherwise."""
LOADERS: dict[str, Callable[[Path, Headers, str], Loader]] = {
    "safetensors": Safetensors,
    "transformers": Transformers,
}

Progress = Callable[[int, int], Any]


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
        raise UsageError(f"there is no loader '{loader}'", f"use one of: {', '.join(LOADERS)}")
    device = choose_device(device)
    root = Path(dest)
    if not root.is_dir() or not structure.shards(root):
        raise InputError(
            f"{root} is not a directory that holds a .safetensors file",
            "give the directory that `recast convert` wrote",
        )
    problems: list[str] = []
    headers = structure.read_headers(root, problems)
    promise, notes = _find_promise(os.fspath(source), root, headers)
    run = _Run(promise, root, headers, device, problems, notes)
    blocks = None if full else SAMPLES if samples is None else samples
    seed = secrets.randbits(32) if seed is None else seed
    return run.finish(started, LOADERS[loader], loader, blocks, seed, progress)


def verify_staged(
    planned: Plan, staged: Staged, dest: str | os.PathLike[str], on_overflow: str, device: str
) -> Verification:
    """Compares every value of a staged model, with safetensors, on a device `choose_device` gave.

    Raises `VerificationError` for one that fails, which is then given up: its files stay in the
    folder that the message names, and no run publishes them.
    """
    found = _verify_all(planned, Path(staged.path), on_overflow, device)
    if not found.passed:
        rejected = staged.reject()
        raise VerificationError(
            f"the result failed verification and was not published; it is in {rejected}:\n"
            f"{_failures(found)}",
            f"`recast verify {planned.source} {rejected} --full` shows it again; "
            "the next run removes it",
        )
    return replace(found, dest=os.fspath(dest))


def verify_published(
    planned: Plan, dest: str | os.PathLike[str], on_overflow: str, device: str
) -> Verification:
    """The same for a result that is published already. Raises `VerificationError`."""
    found = _verify_all(planned, Path(dest), on_overflow, device)
    if not found.passed:
        raise VerificationError(
            f"{os.fspath(dest)} was published before, and failed verification:\n{_failures(found)}",
            "--overwrite makes it again",
        )
    return found


def _verify_all(planned: Plan, root: Path, on_overflow: str, device: str) -> Verification:
    started, problems = time.perf_counter(), list[str]()
    headers = structure.read_headers(root, problems)
    promise = Promise(planned, planned.to, on_overflow, exact=True)
    run = _Run(promise, root, headers, device, problems, [])
    return run.finish(started, Safetensors, "safetensors", None, 0, None)


def _failures(found: Verification) -> str:
    return "\n".join(f"  {text}" for text in shown(found.failures()))


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
        raise UsageError(f"there is no device '{device}'", "use auto, cpu, cuda or cuda:N")
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

    memory.check_fit(torch.cuda, device, predict(sizes, **settings()[0]._asdict()))


def _find_promise(source: str, root: Path, headers: Headers) -> tuple[Promise, list[str]]:
    """What converting `source` promised, by the report in the result or else by its dtypes."""
    checkpoint = Checkpoint.open(source)
    try:
        report = json.loads((root / REPORT_NAME).read_text(encoding="utf-8"))
        options = report["identity"]["options"]
        keep, auto_keep = list(options["keep"]), bool(options["auto_keep"])
        plan = checkpoint.plan(options["to"], keep, auto_keep)
        return Promise(plan, plan.to, str(options["on_overflow"]), exact=True), []
    except FileNotFoundError:
        why = f"there is no {REPORT_NAME}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{REPORT_NAME} does not tell what was asked for ({error!r})"
    before = {(tensor.file, tensor.name): tensor.dtype for tensor in checkpoint.tensors}
    to = structure.infer_target(before, headers)
    kept = [
        name
        for (file, name), dtype in before.items()
        if dtype in FLOATS and FLOATS[dtype] != to and _dtype(headers, (file, name)) == dtype
    ]
    notes = [f"{why}, so the target is taken to be what most tensors are: {to}"]
    if kept:
        more = f" and {len(kept) - 1:,} more" if len(kept) > 1 else ""
        notes.append(f"not cast, which is taken to be intended: {kept[0]}{more}")
    plan = checkpoint.plan(to or "fp32", [], False)
    return Promise(plan, to, "inf", exact=False), notes


def _dtype(headers: Headers, key: Key) -> str | None:
    entry = headers.get(key[0], {}).get(key[1])
    return None if entry is None else entry.dtype


class _Run:
    """One verification, of the result below `root`."""

    def __init__(
        self,
        promise: Promise,
        root: Path,
        headers: Headers,
        device: str,
        problems: list[str],
        notes: list[str],
    ) -> None:
        self.promise, self.root, self.headers, self.device = promise, root, headers, device
        self.problems, self.notes = problems, notes

    def finish(
        self,
        started: float,
        loader_class: Callable[[Path, Headers, str], Loader],
        loader_name: str,
        samples: int | None,
        seed: int,
        progress: Progress | None,
    ) -> Verification:
        """Does all of it."""
        import torch

        self.problems += structure.check(self.promise, self.root, self.headers)
        try:
            loader = self._loader(loader_class)
            found_memory = loader and self._load(loader)
            tensors, checked, mismatches = self._compare(loader, samples, seed, progress)
        except torch.OutOfMemoryError as error:
            raise VerificationError(
                f"{self.device} ran out of memory while the model was verified: {error}",
                "free memory there, choose another GPU with cuda:N, or verify on cpu",
            ) from error
        return Verification(
            source=self.promise.plan.source,
            dest=str(self.root),
            to=self.promise.to,
            device=self.device,
            loader=loader_name,
            samples=samples,
            seed=None if samples is None else seed,
            tensors_checked=tensors,
            values_checked=checked,
            mismatches=mismatches,
            problems=self.problems,
            notes=self.notes + settings()[1] + (loader.notes() if loader and found_memory else []),
            memory=found_memory or None,
            seconds=time.perf_counter() - started,
        )

    def _loader(self, loader_class: Callable[[Path, Headers, str], Loader]) -> Loader | None:
        """The loader; `None` where what is wrong with the result stands in its way."""
        try:
            return loader_class(self.root, self.headers, self.device)
        except LoadError as error:
            self.problems.append(str(error))
        except InputError as error:
            if not self.problems:
                raise
            self.problems.append(error.message)
        return None

    def _load(self, loader: Loader) -> dict[str, dict[str, int | None]] | None:
        """Loads the model and holds its memory against the prediction; `None` where it cannot."""
        import torch

        measured = None
        try:
            predicted, expected = loader.predict()
            if self.device == "cpu":
                loader.load()
            else:
                memory.check_fit(torch.cuda, self.device, expected)
                options: dict[str, Any] = {"dtype": torch.uint8, "device": self.device}
                _, measured = memory.measure(
                    torch.cuda, self.device, partial(torch.empty, **options), loader.load
                )
        except LoadError as error:
            self.problems.append(str(error))
            return None
        if measured is not None:
            self.problems += memory.explain(
                torch.cuda, expected, measured, predicted, loader.allocations()
            )
        return {
            name: {"expected": getattr(expected, name), "measured": getattr(measured, name, None)}
            for name in ("requested", "allocated", "reserved")
        }

    def _compare(
        self, loader: Loader | None, samples: int | None, seed: int, progress: Progress | None
    ) -> tuple[int, int, list[dict[str, Any]]]:
        """Compares the values; how many tensors and values, and the mismatches."""
        reader, files = values.Reader(self.device), values.Reader(self.device)
        work = []
        for file, entries in self._sources().items():
            for name, entry in entries.items():
                there = self.headers.get(file, {}).get(name)
                # What the structure has already said is wrong has no values to compare.
                if there and there.shape == entry.shape and self._may_be(there.dtype, entry.dtype):
                    chance = random.Random(f"{seed}/{file}/{name}")
                    work.append((file, name, entry, values.ranges(entry.elements, samples, chance)))
        total = sum(_bytes(entry, wanted) for _, _, entry, wanted in work)
        done = checked = 0
        mismatches = []
        for file, name, entry, wanted in work:
            there = self.headers[file][name]
            count, mismatch = values.compare(
                reader,
                self.promise.source_file(file),
                entry,
                self._found(loader.find((file, name)) if loader else None, files, (file, name)),
                wanted,
                stored=there.dtype,
                on_overflow=self.promise.on_overflow,
            )
            checked += count
            done += _bytes(entry, wanted)
            if mismatch is not None:
                mismatches.append({"tensor": name, "file": file, **mismatch})
            if progress is not None:
                progress(done, total)
        return len(work), checked, mismatches

    def _sources(self) -> Headers:
        """The source's headers, of the shards that were promised."""
        files = [file.path for file in self.promise.plan.files if file.action == "cast"]
        try:
            return {f: structure.read_header(self.promise.source_file(f)) for f in files}
        except ValueError as error:
            raise InputError(f"{self.promise.source} changed meanwhile: {error}") from error

    def _may_be(self, stored: str, source: str) -> bool:
        return stored == source or (stored in FLOATS and source in FLOATS)

    def _found(
        self, loaded: "torch.Tensor | None", files: values.Reader, key: Key
    ) -> Callable[[int, int], "torch.Tensor"]:
        """The elements of a tensor: from the device, or from the file where it is not loaded."""
        import torch

        if loaded is not None:
            flat = loaded.detach().reshape(-1)
            return lambda start, end: flat[start:end]
        entry, path = self.headers[key[0]][key[1]], self.root / key[0]
        width, rest = divmod(entry.bytes, max(1, entry.elements))
        dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        dtype = dtypes.get(entry.dtype, torch.uint8)

        def read(start: int, end: int) -> "torch.Tensor":
            # The buffer is used again for the next range.
            return files.read(path, entry, [(start, end)], 1 if rest else width).clone().view(dtype)

        return read


def _bytes(entry: structure.Entry, wanted: list[values.Range]) -> int:
    """How many bytes of the source `wanted` is."""
    return entry.bytes * sum(end - start for start, end in wanted) // max(1, entry.elements)
