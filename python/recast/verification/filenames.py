"""What the names of a source's files say they are, by verify's own rules."""

import os
import re
from collections.abc import Callable

DESCRIBING = {"recast.json", "SHA256SUMS"}
"""What recast adds at the top of a result, and what a source has of an earlier one."""
PICKLE = re.compile(r"(.+?)\.(bin|pt|pth|ckpt|pt\.tar|pth\.tar)", re.DOTALL)
LOADED = re.compile(r"((diffusion_)?pytorch_model|adapter_model).*\.bin", re.DOTALL)
"""What transformers, diffusers and peft look for."""
PART = re.compile(r"consolidated\.\+?[0-9]+\.pth")
"""A part of a model cut by rows or columns, of which there must be only one."""
TRAINING = re.compile(
    r"(training_args\.|optimizer|scheduler|scaler\.|rng_state|random_states_|sampler).*"
    r"|.*optim_states.*",
    re.DOTALL,
)
"""What trainers write beside weights."""
NO_WEIGHTS = "spk_dict.pt"
"""The voices of Qwen2.5-Omni."""
SETTINGS = re.compile(r"config\.json|params\.json|sentence_(.*_)?config\.json", re.DOTALL)
"""What may state a dtype: configs, Mistral's, those of sentence-transformers."""
SUFFIX = (
    r"\.(bin|pth|pt|pth\.tar|pt\.tar|ckpt|distcp|pkl|pickle|h5|keras|tflite|msgpack|pb|onnx"
    r"|onnx_data|onnx\.data|gguf|ggml|ot|pdparams|nemo|npz|safetensors|part)"
)
OTHER_WEIGHTS = re.compile(
    rf".*{SUFFIX}|.*\.(onnx|onnx_data|ckpt)(\.data-|\.index|\.meta|_).*|.*{SUFFIX}\.index.*\.json",
    re.DOTALL | re.IGNORECASE | re.ASCII,
)
"""Weights in other formats, of which a result has none, and their indexes."""

Reads = Callable[[str], bool]
"""Whether a file, by its path, starts as torch starts a file."""


def is_shard(file: str) -> bool:
    """Whether a file is called like one of safetensors."""
    return file.endswith(".safetensors")


def is_settings(file: str) -> bool:
    """Whether a file may state the dtype of weights."""
    return SETTINGS.fullmatch(os.path.basename(file)) is not None


def is_pickle_index(file: str) -> bool:
    """Whether a file name is that of an index of pickles."""
    name = os.path.basename(file)
    return name.endswith(".json") and ".bin.index." in name


def is_other_weights(file: str) -> bool:
    """Whether a file that is neither a shard nor a pickle that is read holds weights, or is an
    index of such files."""
    name = os.path.basename(file)
    return name != NO_WEIGHTS and OTHER_WEIGHTS.fullmatch(name) is not None


def pickles(files: list[str], reads: Reads) -> set[str]:
    """Those of a source's files that are pickles of weights: in a folder without safetensors, those
    that loaders look for, or, where no folder has these and none has safetensors, any others."""
    safe = {os.path.dirname(file) for file in files if is_shard(file)}
    folders: dict[str, list[str]] = {}
    for file in files:
        name, folder = os.path.basename(file), os.path.dirname(file)
        if PICKLE.fullmatch(name) and name != NO_WEIGHTS and folder not in safe:
            folders.setdefault(folder, []).append(file)
    named = [file for own in folders.values() for file in own if _matches(LOADED, file)]
    found: set[str] = set()
    for own in folders.values():
        loaded = [file for file in own if _matches(LOADED, file)]
        parts = [file for file in own if _matches(PART, file)]
        others = [file for file in own if not _matches(TRAINING, file)]
        found |= set(loaded if safe or named else loaded or parts or others)
    return {f for f in found if _matches(LOADED, f) or _matches(PART, f) or reads(f)}


def result_of(file: str) -> str:
    """What becomes of a pickle, or of an index of some: the name that loaders look for."""
    folder, name = os.path.split(file)
    stem, index, rest = name.partition(".bin.index.")
    if not index:
        match = PICKLE.fullmatch(name)
        stem, rest = match[1] if match else name, ""
    if stem.startswith("pytorch_model"):
        stem = stem.removeprefix("pytorch_")
    return os.path.join(folder, f"{stem}.safetensors" + (f".index.{rest}" if index else ""))


def _matches(pattern: re.Pattern[str], file: str) -> bool:
    return pattern.fullmatch(os.path.basename(file)) is not None
