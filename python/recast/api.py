"""The API: `plan`, `convert` and `inspect`, in the order a run takes its steps."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from recast._core import Checkpoint, Plan, check_local
from recast.array import check_policy, float_name
from recast.dtypes import CASTABLE
from recast.errors import UsageError
from recast.gpu.device import visible_gpu
from recast.gpu.settings import read_settings
from recast.inspection import Inspection, by_dtype, exactness, gpu_memory, groups
from recast.report import Report
from recast.terminal import Progress

Path = str | os.PathLike[str]


def plan(source: Path, *, to: object, keep: Sequence[str] = (), auto_keep: bool = True) -> Plan:
    """What converting `source` will do, to the byte. Reads headers only and writes nothing.

    `source` is a `.safetensors` file or a directory that holds some. `to` is `"fp32"`, `"fp16"`,
    `"bf16"`, another usual spelling, or a numpy or torch dtype. Tensors whose name matches a
    pattern of `keep` (a glob; `re:` starts a regular expression; `vae/*` is a component) keep
    their dtype, and so do those that loaders need in fp32, unless `auto_keep` is false.

    Raises `UsageError` for options that make no sense or a source that is not a local path, and
    `InputError` for a source that cannot be converted.
    """
    return _plan(source, to, keep, auto_keep, "error")


def _plan(source: Path, to: object, keep: Sequence[str], auto_keep: bool, on_overflow: str) -> Plan:
    if isinstance(keep, str):
        raise UsageError("keep is a string", f"give a list of patterns: keep=[{keep!r}]")
    checkpoint = Checkpoint.open(os.fspath(source))
    return checkpoint.plan(float_name(to), list(keep), auto_keep, on_overflow)


def look(
    source: Path,
    dest: Path,
    *,
    to: object,
    keep: Sequence[str] = (),
    auto_keep: bool = True,
    on_overflow: str = "error",
    overwrite: bool = False,
    sha256: bool = False,
) -> tuple[Plan, str]:
    """The plan, and what `dest` holds of it: its result ("done", as far as lengths and headers
    tell), what an interrupted run left ("begun"), or nothing yet ("new"). Writes nothing.

    Raises what `plan` raises, `UsageError` for a `dest` that is a file's name, and `OutputError`
    where the destination is the source or holds something else.
    """
    planned = _plan(source, to, keep, auto_keep, on_overflow)
    _check_name(dest)
    options: dict[str, Any] = {"overwrite": overwrite, "sha256": sha256}
    return planned, planned.look(os.fspath(dest), on_overflow=on_overflow, **options)


def _check_name(dest: Path) -> None:
    check_local(os.fspath(dest), write=True)
    if os.fspath(dest).endswith(".safetensors"):
        raise UsageError(
            f"{os.fspath(dest)}: DEST is a directory; the converted file keeps its name",
            f"give '{os.path.splitext(os.fspath(dest))[0]}', for example",
        )


def convert(
    source: Path,
    dest: Path,
    *,
    to: object,
    keep: Sequence[str] = (),
    auto_keep: bool = True,
    on_overflow: str = "error",
    threads: int | None = None,
    io: str = "auto",
    sync: bool = True,
    overwrite: bool = False,
    sha256: bool = False,
    verify: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Converts the checkpoint `source` into the new directory `dest`: all of it, or nothing.

    `source`, `to`, `keep` and `auto_keep` are those of `plan`. Finite values beyond the target's
    range stop the run (`on_overflow="error"`), become infinite (`"inf"`) or the largest finite
    value (`"saturate"`). `threads` limits the worker threads. `io` is how the source is read:
    `"mmap"`, `"read"`, or `"auto"` to leave it to recast. `sync=False` does without fsync, so that
    a power cut can lose the result. `sha256` adds `SHA256SUMS`, which `sha256sum -c` reads.
    `verify` is a device (`"auto"`, `"cpu"`, `"cuda"`, `"cuda:N"`) on which every value of the
    result is checked before it is published; that requires torch. `progress(done, total)` is called
    with bytes, written and then compared, from this thread; what it raises stops the run.

    Nothing is visible in `dest` before every file is complete. The same call again continues a
    conversion that was interrupted. Where it is done, it compares the result and the source with
    the checksums in `recast.json` and returns that report, with `already_done` set. A `dest` that
    holds anything else is refused, unless `overwrite` allows to replace the model there once the
    new one is ready.

    Raises what `plan` raises, `OutputError` for the destination, `StorageError` when reading or
    writing fails, `CastOverflowError`, and `VerificationError`, which names the folder that a
    result which failed stays in.
    """
    check_policy(on_overflow, threads)
    started = time.perf_counter()
    device = None
    if verify is not None:
        # Only here, because every start of the command would wait for it.
        from recast.verification import publishing as verification

        device = verification.choose_device(verify)
    planned = _plan(source, to, keep, auto_keep, on_overflow)
    _check_name(dest)
    judge, judged, compared = None, [], 0
    if device is not None:
        verification.check_fit(device, planned.tensor_bytes)
        compared = sum(tensor.source_bytes for tensor in planned.tensors)

        def comparing(done: int, total: int) -> None:
            # After the writing, of which it must be known how much that was.
            if progress is not None:
                progress(planned.bytes_written + done, planned.bytes_written + total)

        def judge(staged: str) -> str | None:
            found = verification.verify_all(planned, staged, on_overflow, device, comparing)
            judged.append(found)
            return replace(found, dest=os.fspath(dest)).to_json() if found.passed else None

    def writing(done: int, total: int) -> None:
        # Once the result was compared, what is left to do does not take that back.
        assert progress is not None
        progress(done + (compared if judged else 0), total + compared)

    converted = planned.convert(
        os.fspath(dest),
        threads=threads,
        io=io,
        sync=sync,
        on_overflow=on_overflow,
        overwrite=overwrite,
        sha256=sha256,
        verify=judge,
        progress=None if progress is None else writing,
    )
    if converted.rejected is not None:
        raise verification.rejected(planned, judged[-1], converted.rejected)
    found = None if converted.verified is None else json.loads(converted.verified)
    if device is not None and converted.kind == "done":
        options = (planned, dest, on_overflow, device, progress)
        found = verification.verify_published(*options).to_dict()
    seconds = time.perf_counter() - started
    return Report.of(planned, converted, os.fspath(dest), seconds, verification=found)


def inspect(path: Path) -> Inspection:
    """What `path`, a `.safetensors` file or a directory that holds some, is made of.

    Gives parameters and bytes, by dtype and by part of the model, and the memory the model takes
    on a GPU as it is stored and in each dtype recast converts to, with the settings that
    `PYTORCH_CUDA_ALLOC_CONF` gives PyTorch's allocator. Reads headers only. Raises `InputError`.
    """
    # Only here, because every start of the command would wait for it.
    from concurrent.futures import ThreadPoolExecutor

    checkpoint = Checkpoint.open(os.fspath(path))
    tensors = checkpoint.tensors
    # The core plans without the interpreter's lock, so planning costs no time of its own.
    with ThreadPoolExecutor(1) as core:
        targets = CASTABLE if checkpoint.quantized is None else ()
        planned = {to: core.submit(_planned_sizes, checkpoint, to) for to in targets}
        dtypes = by_dtype(tensors)
        parts = groups(tensors)
        sizes = {"as_stored": [tensor.bytes for tensor in tensors]}
        sizes |= {to: found.result() for to, found in planned.items()}
    notes = exactness(checkpoint) + read_settings()[1]
    if checkpoint.quantized is not None:
        notes.append(
            f"the checkpoint is quantized ({checkpoint.quantized}): recast does not convert it, "
            "so its GPU memory is given as stored only"
        )
    return Inspection(
        path=checkpoint.path,
        files=checkpoint.shards,
        tensors=len(tensors),
        parameters=sum(row["parameters"] for row in dtypes.values()),
        bytes=sum(row["bytes"] for row in dtypes.values()),
        dtypes=dtypes,
        groups=parts,
        gpu_memory=gpu_memory(sizes),
        device=visible_gpu(),
        notes=notes,
        stored=tensors,
    )


def _planned_sizes(checkpoint: Checkpoint, to: str) -> list[int]:
    """The bytes of each tensor converted to `to`; the plan, which is large, is not kept."""
    return checkpoint.plan(to).tensor_bytes
