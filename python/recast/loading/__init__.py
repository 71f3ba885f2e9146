"""`load`, `tensors` and `load_into`: the tensors of a checkpoint in memory, in any dtype.

Nothing is written. What is cast or dequantized is made by the core, straight into its place; what
stays as it is stored in a safetensors file is what the safetensors library maps of it.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from recast.loading.loader import Loader
from recast.loading.wanted import Sharding
from recast.options import AsStored, Dtype, OnOverflow, Options, Path

if TYPE_CHECKING:
    import torch


class Incompatible(NamedTuple):
    """What `load_into` found to be different."""

    missing: list[str]
    """Parameters and buffers of the module that the checkpoint does not have."""
    unexpected: list[str]
    """Tensors of the checkpoint that the module does not have."""


def load(
    source: Path,
    to: Dtype | AsStored | None = None,
    *,
    device: Any = "cpu",
    key: str | None = None,
    keep: Sequence[str] = (),
    auto_keep: bool = True,
    skip_quantized: bool = False,
    unscaled_fp8: bool = False,
    on_overflow: OnOverflow = "error",
    threads: int | None = None,
    sharding: Sharding | None = None,
) -> dict[str, Any]:
    """The tensors of a checkpoint by their names: torch's, or numpy's where torch is missing.

    `source`, `key`, `keep`, `auto_keep`, `skip_quantized` and `unscaled_fp8` are those of `plan`,
    and the values those that `convert` writes: `to` is a dtype, or `None` for tensors as they are
    stored. `device` is torch's; tensors for a GPU are copied there while the next ones are read.
    `on_overflow` is what becomes of finite values that `to` cannot hold: an error, `"inf"` or
    `"saturate"`. `sharding(name, shape)` gives slices of the tensor that is wanted, or `None` for
    all of it. Of tensors in safetensors files, only that part is read, as far as the disk allows;
    of quantized weights and of strided tensors in pickles, only rows are cut before they are made.

    On the CPU, tensors that stay as they are stored in safetensors files are mapped, as
    `safetensors.torch.load_file` maps them, and others are new memory. Beside the result, memory
    is a few MiB for each thread, and for a GPU twice 64 MiB.

    Tied tensors of a pickle are one tensor under two names. Raises what `plan` raises,
    `CastOverflowError`, `StorageError` where reading fails, and `InputError` where two tensors have
    the same name, as in a pipeline of several models.
    """
    options = Options(
        to="as-stored" if to is None else to,
        key=key,
        keep=keep,
        auto_keep=auto_keep,
        skip_quantized=skip_quantized,
        unscaled_fp8=unscaled_fp8,
        on_overflow=on_overflow,
        threads=threads,
    )
    return dict(Loader(source, options, device, sharding).all())


def tensors(
    source: Path,
    to: Dtype | AsStored | None = None,
    *,
    device: Any = "cpu",
    key: str | None = None,
    keep: Sequence[str] = (),
    auto_keep: bool = True,
    skip_quantized: bool = False,
    unscaled_fp8: bool = False,
    on_overflow: OnOverflow = "error",
    threads: int | None = None,
    sharding: Sharding | None = None,
) -> Iterator[tuple[str, Any]]:
    """The same as `load`, one name and tensor after the other, as vLLM's `load_weights` takes them.

    They come file by file. About 64 MiB of them are made at a time, while the ones before are used.
    """
    options = Options(
        to="as-stored" if to is None else to,
        key=key,
        keep=keep,
        auto_keep=auto_keep,
        skip_quantized=skip_quantized,
        unscaled_fp8=unscaled_fp8,
        on_overflow=on_overflow,
        threads=threads,
    )
    return Loader(source, options, device, sharding).each()


def load_into(
    module: "torch.nn.Module",
    source: Path,
    to: Dtype | AsStored | None = None,
    *,
    device: Any = "cpu",
    key: str | None = None,
    keep: Sequence[str] = (),
    auto_keep: bool = True,
    skip_quantized: bool = False,
    unscaled_fp8: bool = False,
    on_overflow: OnOverflow = "error",
    threads: int | None = None,
) -> Incompatible:
    """Loads the tensors of a checkpoint into a `torch.nn.Module`, in place.

    Its parameters and buffers of the same names become the loaded tensors, of the dtype that these
    have, as by `module.load_state_dict(load(...), strict=False, assign=True)`; the options are
    those of `load`. What is tied in the module stays tied. On the meta device, a module takes no
    memory before; elsewhere, what it holds is freed once everything is loaded.

    Gives what was missing and unexpected; raises `RuntimeError`, as torch does, where a shape is
    another.
    """
    found = load(
        source,
        to,
        device=device,
        key=key,
        keep=keep,
        auto_keep=auto_keep,
        skip_quantized=skip_quantized,
        unscaled_fp8=unscaled_fp8,
        on_overflow=on_overflow,
        threads=threads,
    )
    same: dict[int, list[str]] = {}
    for name, value in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        same.setdefault(id(value), []).append(name)
    differs = module.load_state_dict(found, strict=False, assign=True)
    missing = set(differs.missing_keys)
    for names in same.values():
        loaded = [name for name in names if name in found]
        if loaded and len(names) > 1:
            owner, _, last = loaded[0].rpartition(".")
            value = getattr(module.get_submodule(owner), last)
            for name in names:
                owner, _, last = name.rpartition(".")
                setattr(module.get_submodule(owner), last, value)
            missing -= set(names)
    return Incompatible(sorted(missing), sorted(differs.unexpected_keys))
