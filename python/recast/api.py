"""The API: `plan`, `convert` and `inspect`."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from recast import _core
from recast._core import Checkpoint, Plan, check_local
from recast.dtypes import CASTABLE
from recast.errors import UsageError, VerificationError
from recast.gpu.device import visible_gpu
from recast.gpu.settings import read_settings
from recast.inspection import Inspection, by_dtype, exactness, gpu_memory, groups, schemes
from recast.options import (
    AsStored,
    Device,
    Dtype,
    Io,
    OnOverflow,
    Options,
    Path,
    Progress,
    float_name,
)
from recast.report import DryRun, Report, VerificationDict

if TYPE_CHECKING:
    from recast.verification import Verification

T = TypeVar("T")
Step = Literal["converting", "comparing", "syncing", "verifying", "publishing"]
Steps = Callable[[Step, int, int], Any]
"""Called as `steps(step, done, total)`: what a run is doing, and how much of it is done, in
bytes."""


def plan(
    source: Path,
    *,
    to: Dtype | AsStored,
    key: str | None = None,
    keep: Sequence[str] = (),
    auto_keep: bool = True,
    skip_quantized: bool = False,
    unscaled_fp8: bool = False,
) -> Plan:
    """Returns what converting `source` will do, to the byte. Reads headers only, writes nothing.

    `source` is a `.safetensors` file, a file that torch.save wrote, or a directory that holds some.
    `to` is `"fp32"`, `"fp16"`, `"bf16"`, another usual spelling, or a numpy or torch dtype;
    `"as-stored"` changes the format alone. `key` is the name of the state dict in a pickle that
    holds several. Tensors whose name matches a
    pattern of `keep` (a glob; `re:` starts a regular expression; `vae/*` is a component) keep
    their dtype, and so do those that are fp32 on purpose, unless `auto_keep` is false. Codes
    with scales (fp8, MXFP8, MXFP4, NVFP4) become the values that they stand for. Weights that are
    quantized in another way are refused; with `skip_quantized`, all quantized weights are carried
    as they are. So are fp8 tensors without scales, unless `unscaled_fp8` says that they are plain
    values, which are cast.

    Raises `UsageError` for options that make no sense or a source that is not a local path, and
    `InputError` for a source that cannot be converted.
    """
    options = Options(
        to=to,
        key=key,
        keep=keep,
        auto_keep=auto_keep,
        skip_quantized=skip_quantized,
        unscaled_fp8=unscaled_fp8,
    )
    return _plan(source, options)


def _plan(source: Path, options: Options) -> Plan:
    return Checkpoint.open(os.fspath(source), options.key).plan(options)


def convert(
    source: Path,
    dest: Path,
    *,
    to: Dtype | AsStored,
    key: str | None = None,
    keep: Sequence[str] = (),
    auto_keep: bool = True,
    skip_quantized: bool = False,
    unscaled_fp8: bool = False,
    on_overflow: OnOverflow = "error",
    verify: Device | None = None,
    threads: int | None = None,
    io: Io = "auto",
    sync: bool = True,
    overwrite: bool = False,
    sha256: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Converts the checkpoint `source` into the new directory `dest`: all of it, or nothing.

    `source`, `to`, `key`, `keep`, `auto_keep`, `skip_quantized` and `unscaled_fp8` are those of
    `plan`. Finite values beyond the target's range stop the run (`on_overflow="error"`), become
    infinite (`"inf"`) or the largest finite value (`"saturate"`). `verify` is a device (`"auto"`,
    `"cpu"`, `"cuda"`, `"cuda:N"` or a `torch.device`) on which every value of the result is
    checked before it is published; that requires torch. `threads` limits the worker threads. `io`
    is how the source is read: `"mmap"`, `"read"`, or `"auto"` to leave it to recast. `sync=False`
    does without fsync: a power failure can then lose the result. `overwrite` replaces the model in
    `dest` once the new one is ready. `sha256` adds `SHA256SUMS`, which `sha256sum -c` reads.
    `progress(done, total)` is called with bytes, written and then compared, from this thread; what
    it raises stops the run.

    Nothing is visible in `dest` before every file is complete. The same call again continues a
    conversion that was interrupted. Where it is done, it compares the result and the source with
    the checksums in `recast.json` and returns that report, with `already_done` set. A `dest` that
    holds anything else is refused, unless it is a model and `overwrite` is set.

    Raises what `plan` raises, `OutputError` for the destination, `StorageError` when reading or
    writing fails, `CastOverflowError`, and `VerificationError`, which names the folder that keeps
    a result which failed.
    """
    options = Options(
        to=to,
        key=key,
        keep=keep,
        auto_keep=auto_keep,
        skip_quantized=skip_quantized,
        unscaled_fp8=unscaled_fp8,
        on_overflow=on_overflow,
        verify=verify,
        threads=threads,
        io=io,
        sync=sync,
        overwrite=overwrite,
        sha256=sha256,
    )
    if progress is None:
        return carry_out(source, dest, options)
    return carry_out(source, dest, options, lambda step, done, total: progress(done, total))


def look(source: Path, dest: Path | None, options: Options) -> DryRun:
    """What a conversion would do, and what `dest` holds of its result. Writes nothing.

    Raises what `plan` raises, `UsageError` for a `dest` that is a file's name, and `OutputError`
    where the destination is the source or holds something else.
    """
    planned = _plan(source, options)
    if dest is None:
        return DryRun(planned, None)
    _check_name(dest)
    return DryRun(planned, os.fspath(dest), _core.look(planned, os.fspath(dest), options))


def carry_out(source: Path, dest: Path, options: Options, steps: Steps | None = None) -> Report:
    """What `convert` does, for options that were checked."""
    started = time.perf_counter()
    judge = None if options.verify is None else _Judge(options, dest, steps)
    planned = _plan(source, options)
    _check_name(dest)
    compared = judge.check(planned) if judge else 0

    def writing(done: int, total: int) -> None:
        assert steps is not None
        step: Step = "converting"
        if total > planned.bytes_written:
            step = "comparing"
        elif judge and judge.found:
            # What is left to do does not take back that the result was compared.
            step, done = "publishing", done + compared
        elif done == total:
            step = "syncing" if options.sync else "publishing"
        steps(step, done, total + compared)

    converted = _core.convert(
        planned,
        os.fspath(dest),
        options,
        verify=judge,
        progress=None if steps is None else writing,
    )
    found: VerificationDict | None = None
    if converted.verified is not None:
        found = json.loads(converted.verified)
    if judge is not None and converted.rejected is not None:
        raise judge.rejected(converted.rejected)
    if judge is not None and converted.kind == "done":
        found = judge.published()
    seconds = time.perf_counter() - started
    return Report.of(planned, converted, os.fspath(dest), seconds, verification=found)


class _Judge:
    """Verifies what a conversion staged, before it is published."""

    def __init__(self, options: Options, dest: Path, steps: Steps | None) -> None:
        # Only here, because every start of the command would wait for it.
        from recast.verification import publishing

        self._verification = publishing
        self._device = publishing.choose_device(str(options.verify))
        self._options, self._dest, self._steps = options, dest, steps
        self.found: Verification | None = None

    def check(self, planned: Plan) -> int:
        """Raises `VerificationError` unless the result of `planned` can be verified here; gives
        the bytes that this compares."""
        self._plan = planned
        self._verification.check(planned, self._device)
        return sum(tensor.source_bytes for tensor in planned.tensors)

    def __call__(self, staged: str) -> str | None:
        """What was found in the folder `staged`, as JSON; `None` where it is wrong."""
        self.found = self._verification.verify_all(
            self._plan.source, staged, self._options, self._device, self._progress()
        )
        found = replace(self.found, dest=os.fspath(self._dest))
        return found.to_json() if found.passed else None

    def rejected(self, folder: str) -> VerificationError:
        """The error for a result that failed, and is in `folder` now."""
        assert self.found is not None
        return self._verification.rejected(self._plan, self.found, folder)

    def published(self) -> VerificationDict:
        """What was found in a result that was published before."""
        return self._verification.verify_published(
            self._plan.source, self._dest, self._options, self._device, self._progress()
        ).to_dict()

    def _progress(self) -> Progress | None:
        if (steps := self._steps) is None:
            return None
        # After the writing, of which it must be known how much that was.
        written = self._plan.bytes_written
        return lambda done, total: steps("verifying", written + done, written + total)


def _check_name(dest: Path) -> None:
    check_local(os.fspath(dest), write=True)
    if os.fspath(dest).endswith(".safetensors"):
        raise UsageError(
            f"{os.fspath(dest)}: DEST is a directory; the converted file keeps its name",
            f"give '{os.path.splitext(os.fspath(dest))[0]}', for example",
        )


def inspect(path: Path, *, key: str | None = None) -> Inspection:
    """What `path`, a `.safetensors` file, one that torch.save wrote, or a directory, is made of.
    `key` is the name of the state dict in a pickle that holds several.

    Gives parameters and bytes, by dtype and by part of the model, and the memory the model takes
    on a GPU as it is stored and in each dtype recast converts to, with the settings that
    `PYTORCH_CUDA_ALLOC_CONF` gives PyTorch's allocator. Reads headers only. Raises `InputError`.
    """
    checkpoint = Checkpoint.open(os.fspath(path), key)
    left = checkpoint.not_loaded
    stored = checkpoint.tensors
    tensors = [tensor for tensor in stored if tensor.file not in left] if left else stored
    # The core plans without the interpreter's lock, so planning costs no time of its own.
    with _in_background(partial(_planned_sizes, checkpoint)) as planned:
        dtypes = by_dtype(tensors)
        parts = groups(tensors)
        sizes = {"as_stored": [tensor.bytes for tensor in tensors]}
        sizes |= planned()
    notes = exactness(checkpoint) + read_settings()[1]
    if checkpoint.quantized is not None:
        notes.append(
            f"the checkpoint is quantized ({checkpoint.quantized}): recast does not dequantize it, "
            "so its GPU memory is given as stored only"
        )
    elif checkpoint.has_unscaled_fp8:
        notes.append(
            "fp8 tensors have no scales: recast takes them for plain values only with "
            "--unscaled-fp8, and the GPU memory is given for that"
        )
    return Inspection(
        path=checkpoint.path,
        files=checkpoint.shards - len(left),
        not_loaded=left,
        tensors=len(tensors),
        parameters=sum(row["parameters"] for row in dtypes.values()),
        bytes=sum(row["bytes"] for row in dtypes.values()),
        dtypes=dtypes,
        groups=parts,
        schemes=schemes(checkpoint),
        gpu_memory=gpu_memory(sizes),
        device=visible_gpu(),
        notes=notes,
        stored=stored,
    )


def _planned_sizes(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """The bytes of each tensor in each dtype; the plans, which are large, are not kept."""
    if checkpoint.quantized is not None:
        return {}
    options = {to: Options(to=float_name(to), unscaled_fp8=True) for to in CASTABLE}
    return {to: checkpoint.plan(each).loaded_tensor_bytes for to, each in options.items()}


@contextmanager
def _in_background(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Starts `work` on a thread, and gives what waits for its result. Where the system has no
    thread left, that does the work itself."""
    # Only here, because every start of the command would wait for it.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        result = work
        with suppress(RuntimeError):
            result = partial(pool.submit(work).result, None)
        yield result
