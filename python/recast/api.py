"""The API: `plan`, `convert` and `inspect`, in the order a run takes its steps."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from recast import memory
from recast._core import STAGING, Checkpoint, Plan
from recast.array import check_policy, float_name
from recast.errors import InputError, OutputError, UsageError
from recast.inspection import Inspection, exactness, groups
from recast.report import Report
from recast.terminal import Progress

Path = str | os.PathLike[str]


def plan(source: Path, *, to: object, keep: Sequence[str] = (), auto_keep: bool = True) -> Plan:
    """What converting `source` will do, to the byte. Reads headers only and writes nothing.

    `source` is a `.safetensors` file or a directory that holds some. `to` is `"fp32"`, `"fp16"`,
    `"bf16"`, another usual spelling, or a numpy or torch dtype. Tensors whose name matches a
    pattern of `keep` (a glob; `re:` starts a regular expression) keep their dtype, and so do
    those that loaders need in fp32, unless `auto_keep` is false.

    Raises `UsageError` for options that make no sense and `InputError` for a source that cannot
    be converted.
    """
    if isinstance(keep, str):
        raise UsageError("keep is a string", f"give a list of patterns: keep=[{keep!r}]")
    return Checkpoint.open(os.fspath(source)).plan(float_name(to), list(keep), auto_keep)


def check_destination(
    planned: Plan, dest: Path, *, on_overflow: str = "error", overwrite: bool = False
) -> str:
    """What `dest` holds of `planned`: its result ("done"), what an interrupted run left ("begun"),
    or nothing yet ("new").

    Raises `UsageError` for a name that is a file's, and `OutputError` where the destination is
    the source or holds something else.
    """
    if os.fspath(dest).endswith(".safetensors"):
        raise UsageError(
            f"{os.fspath(dest)}: DEST is a directory; the converted file keeps its name",
            f"give '{os.path.splitext(os.fspath(dest))[0]}', for example",
        )
    return planned.check_destination(os.fspath(dest), on_overflow=on_overflow, overwrite=overwrite)


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
    verify: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Converts the checkpoint `source` into the new directory `dest`: all of it, or nothing.

    `source`, `to`, `keep` and `auto_keep` are those of `plan`. Finite values beyond the target's
    range stop the run (`on_overflow="error"`), become infinite (`"inf"`) or the largest finite
    value (`"saturate"`). `threads` limits the worker threads. `io` is how the source is read:
    `"mmap"`, `"read"`, or `"auto"` to leave it to recast. `sync=False` does without fsync, so that
    a power cut can lose the result. `verify` is a device (`"auto"`, `"cpu"`, `"cuda"`, `"cuda:N"`)
    on which every value of the result is checked before it is published; that takes torch.
    `progress(done, total)` is called with bytes, written and then compared, from this thread; what
    it raises stops the run.

    Nothing is visible in `dest` before every file is complete. The same call again continues a
    conversion that was interrupted, and returns the report of one that is done, with
    `already_done` set. A `dest` that holds anything else is refused, unless `overwrite` allows to
    replace the model there once the new one is ready.

    Raises what `plan` raises, `OutputError` for the destination, `StorageError` when reading or
    writing fails, `CastOverflowError`, and `VerificationError`, which names the folder that a
    result which failed stays in.
    """
    check_policy(on_overflow, threads)
    started = time.perf_counter()
    device = None
    if verify is not None:
        # Only here, because every start of the command would wait for it.
        from recast.verification import run as verification

        device = verification.choose_device(verify)
    staged, found, compared = None, None, 0
    try:
        planned = plan(source, to=to, keep=keep, auto_keep=auto_keep)
        check_destination(planned, dest, on_overflow=on_overflow, overwrite=overwrite)
        if device is not None:
            verification.check_fit(device, planned.tensor_bytes)
            compared = sum(tensor.source_bytes for tensor in planned.tensors)
        staged = planned.stage(
            os.fspath(dest),
            threads=threads,
            io=io,
            sync=sync,
            on_overflow=on_overflow,
            overwrite=overwrite,
            progress=_part(progress, 0, compared),
        )
        if staged is None:
            report = Report.read(os.fspath(dest))
            if device is not None:
                found = verification.verify_published(planned, dest, on_overflow, device, progress)
                report = replace(report, verification=found.to_dict())
            return report
        comparing = _part(progress, planned.bytes_written, 0)
        if device is not None and not staged.publishing:
            found = verification.verify_staged(
                planned, staged, dest, on_overflow, device, comparing
            )
        staged.publish()
        if device is not None and found is None:
            # An earlier run was stopped while it published, so the files were in two places.
            found = verification.verify_published(planned, dest, on_overflow, device, comparing)
        report = Report.of(
            planned,
            staged,
            os.fspath(dest),
            time.perf_counter() - started,
            verification=None if found is None else found.to_dict(),
        )
        staged.finish(report.to_json())
    except InputError:
        # The source changed, so what is staged is of no use to anyone.
        if staged is not None:
            staged.discard()
        raise
    except BaseException as error:
        # An interrupt counts too, and must say truthfully what it leaves behind.
        left = os.path.join(dest, STAGING, "staged")
        if staged is not None:
            staged.leave()
        if staged is not None and staged.published:
            error.add_note(f"{os.fspath(dest)} was published; the same command leaves its report")
        elif os.path.exists(left) and not isinstance(error, OutputError):
            error.add_note("the model is not published; the same command continues")
        elif not isinstance(error, Exception):
            error.add_note("nothing was published")
        raise
    return report


def _part(progress: Progress | None, before: int, after: int) -> Progress | None:
    """`progress` for a part of the work, with so many bytes to be done before it and after it."""
    if progress is None:
        return None
    return lambda done, total: progress(before + done, before + total + after)


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
        targets = ("fp32", "fp16", "bf16") if checkpoint.quantized is None else ()
        planned = {to: core.submit(_planned_sizes, checkpoint, to) for to in targets}
        dtypes: dict[str, dict[str, int]] = {}
        for tensor in tensors:
            row = dtypes.setdefault(tensor.dtype, {"tensors": 0, "parameters": 0, "bytes": 0})
            row["tensors"] += 1
            row["parameters"] += tensor.elements
            row["bytes"] += tensor.bytes
        parts = groups(tensors)
        sizes = {"as_stored": [tensor.bytes for tensor in tensors]}
        sizes |= {to: found.result() for to, found in planned.items()}
    gpu_memory: dict[str, dict[str, int]] = {}
    for name, wanted in sizes.items():
        # fp16 and bf16 nearly always take the same, and so does the dtype the model is stored in.
        same = next((other for other in gpu_memory if sizes[other] == wanted), None)
        found = gpu_memory[same] if same else memory.predict_here(wanted)._asdict()
        gpu_memory[name] = dict(found)
    notes = exactness(checkpoint) + memory.settings()[1]
    if checkpoint.quantized is not None:
        notes.append(
            f"the checkpoint is quantised ({checkpoint.quantized}): recast does not convert it, "
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
        gpu_memory=gpu_memory,
        device=memory.device(),
        notes=notes,
        stored=tensors,
    )


def _planned_sizes(checkpoint: Checkpoint, to: str) -> list[int]:
    """The bytes of each tensor converted to `to`; the plan, which is large, is not kept."""
    return checkpoint.plan(to).tensor_bytes
