"""Which tensors of a source make up a quantized weight, found by verify's own rules."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from recast.verification.dequantized import E8M0, Dequantized, Part, Scale
from recast.verification.dtypes import FP8
from recast.verification.header import Entry, Headers, Key
from recast.verification.labels import Block, Labels

FLOATS = {"F64", "F32", "F16", "BF16"}
MX, NV = 32, 16
"""How many fp4 values share a scale, by the definition of the formats."""
SUFFIXES = ("_scale_inv", "_scale", "_weight_scale")
"""What the scale of fp8 codes has after their name."""
OF_WEIGHT = (".scale", ".qscale_weight", ".scale_weight")
"""What it has in place of their `.weight`."""
OTHER = ("_zero_point", "_g_idx", "_scale_2")
"""What fp8 codes have beside them that need more than a scale."""
ACTIVATIONS = (
    *("input_scale", "input_global_scale", "input_zero_point", "scale_input", "qscale_act"),
    *("output_scale", "output_global_scale", "output_zero_point"),
    *("activation_scale", "act_scale"),
)
"""The last word of what a layer has for quantized activations."""
CACHES = ("q_scale", "k_scale", "v_scale", "kv_scale", "prob_scale")
"""The same for a quantized cache; norms of queries and keys are called so, too."""
MARKERS = ("comfy_quant", "scaled_fp8")
"""The same of what only says that a layer, or a file, is quantized."""


def find(
    headers: Headers, source: Callable[[str], Path], labels: Callable[[str], Labels]
) -> dict[Key, Dequantized]:
    """The weights that can be dequantized, by their file and their name in the result. `source`
    says where a file is, `labels` what is said of the weights in a folder."""
    found = {}
    for folder in sorted({os.path.dirname(file) for file in headers}):
        own = {file: headers[file] for file in headers if os.path.dirname(file) == folder}
        for weight in _Component(own, source, labels(folder)).weights():
            found[weight.codes.key[0], weight.name] = weight
    return found


def dropped(headers: Headers, found: dict[Key, Dequantized]) -> set[Key]:
    """The tensors of the source that must not be in the result under any name."""
    gone = {scale.key for weight in found.values() for scale in weight.scales}
    layers = {
        (os.path.dirname(file), name.removesuffix(".weight"))
        for weight in found.values()
        for file, name in (weight.codes.key, (weight.codes.key[0], weight.name))
    }
    folders = {folder for folder, _ in layers}
    for file, entries in headers.items():
        folder = os.path.dirname(file)
        for name, entry in entries.items() if folder in folders else ():
            layer = _before(name, ACTIVATIONS)
            if (
                (layer is not None and (folder, layer.removesuffix(".weight")) in layers)
                or (_before(name, CACHES) is not None and entry.elements == 1)
                or _before(name, MARKERS) is not None
            ):
                gone.add((file, name))
    return gone


def _before(name: str, words: tuple[str, ...]) -> str | None:
    """What stands before one of `words`, if a name ends with it."""
    for word in words:
        if name == word:
            return ""
        if name.endswith((f".{word}", f"_{word}")):
            return name[: -len(word) - 1]
    return None


class _Component:
    """The tensors of the shards in one folder, by name."""

    def __init__(self, headers: Headers, source: Callable[[str], Path], labels: Labels) -> None:
        self.headers, self.source, self.labels = headers, source, labels
        self.files: dict[str, list[str]] = {}
        for file, entries in headers.items():
            for name in entries:
                self.files.setdefault(name, []).append(file)

    def weights(self) -> Iterator[Dequantized]:
        scales: set[Key] = set()
        if self.labels.rotated:
            return
        # Packed codes first, because fp8 tensors may be their scales.
        for rule in (_gpt_oss, _packed, _modelopt, _deepseek_v4, _fp8):
            for file, entries in self.headers.items():
                for name, entry in entries.items():
                    key = (file, name)
                    if key in scales or self.has(name.rpartition(".")[0] + ".pre_quant_scale"):
                        continue
                    weight = rule(self, Part(key, self.source(file), entry))
                    if weight is not None:
                        scales |= {scale.key for scale in weight.scales}
                        yield weight

    def has(self, name: str) -> bool:
        return name in self.files

    def part(self, name: str, near: Part, dtypes: set[str]) -> Part | None:
        """The tensor of that name, if its dtype is one of those: that in the file of `near`, or
        else in the one other that has it. A file with another copy of `near` has its own."""
        files = [
            file
            for file in self.files.get(name, [])
            if file == near.key[0] or near.key[1] not in self.headers[file]
        ]
        file = near.key[0] if near.key[0] in files else files[0] if len(files) == 1 else None
        if file is None or self.headers[file][name].dtype not in dtypes:
            return None
        return Part((file, name), self.source(file), self.headers[file][name])


def _gpt_oss(component: _Component, codes: Part) -> Dequantized | None:
    for blocks, scales in (("_blocks", "_scales"), (".blocks", ".scales")):
        name, shape = codes.key[1].removesuffix(blocks), codes.entry.shape
        scale = component.part(name + scales, codes, E8M0)
        is_packed = codes.entry.dtype == "U8" and len(shape) >= 3 and shape[-1] == MX // 2
        if name == codes.key[1] or scale is None or not is_packed:
            continue
        *outer, rows, groups, _ = shape
        own = _scale(scale, (*outer, rows, groups * MX), [(1, MX)])
        if own is not None and scale.entry.shape == shape[:-1]:
            if blocks == ".blocks":
                # OpenAI's own code takes them as they are.
                return Dequantized(name, (*outer, rows, groups * MX), codes, own)
            turned = (*outer, groups * MX, rows)
            return Dequantized(name, turned, codes, own, transposed=True)
    return None


def _packed(component: _Component, codes: Part) -> Dequantized | None:
    """compressed-tensors' NVFP4 and MXFP4."""
    name = codes.key[1].removesuffix("_packed")
    if name == codes.key[1] or codes.entry.dtype != "U8" or not codes.entry.shape:
        return None
    shape = _unpacked(codes.entry)
    if component.has(f"{name}_global_scale"):
        return _nvfp4(component, codes, name, f"{name}_global_scale", divides=True)
    scale = component.part(f"{name}_scale", codes, E8M0)
    own = _scale(scale, shape, [(1, MX)])
    return Dequantized(name, shape, codes, own) if own else None


def _modelopt(component: _Component, codes: Part) -> Dequantized | None:
    """ModelOpt's NVFP4, which without a label may be ComfyUI's, whose scales lie otherwise."""
    name = codes.key[1]
    if codes.entry.dtype != "U8" or not codes.entry.shape or not component.labels.modelopt:
        return None
    whole = name if component.has(f"{name}_scale_2") else f"{name}_weight"
    return _nvfp4(component, codes, name, f"{whole}_scale_2", divides=False)


def _nvfp4(
    component: _Component, codes: Part, name: str, second: str, *, divides: bool
) -> Dequantized | None:
    shape = _unpacked(codes.entry)
    # What scales a scale is called like it, with a few letters more.
    own_name = second.removesuffix("_2").replace("_global_scale", "_scale")
    scale = component.part(own_name, codes, {"F8_E4M3"})
    whole = component.part(second, codes, {"F32"})
    own = _scale(scale, shape, [(1, NV)])
    above = _scale(whole, shape, [])
    if own is None or above is None:
        return None
    return Dequantized(name, shape, codes, own, above, divides=divides)


def _deepseek_v4(component: _Component, codes: Part) -> Dequantized | None:
    name = codes.key[1]
    if codes.entry.dtype != "I8" or not name.endswith(".weight"):
        return None
    scale = component.part(name.removesuffix("weight") + "scale", codes, {"F8_E8M0"})
    own = _scale(scale, _unpacked(codes.entry), [(1, MX)])
    return Dequantized(name, _unpacked(codes.entry), codes, own) if own else None


def _fp8(component: _Component, codes: Part) -> Dequantized | None:
    name, shape = codes.key[1], codes.entry.shape
    if codes.entry.dtype not in FP8 or any(component.has(name + other) for other in OTHER):
        return None
    layer, _, last = name.rpartition(".")
    names = [name + suffix for suffix in SUFFIXES]
    names += [layer + suffix for suffix in OF_WEIGHT if last == "weight"]
    own = [part for each in names if (part := component.part(each, codes, FLOATS | E8M0))]
    blocks = component.labels.blocks(layer if last == "weight" else name)
    scale = _scale(own[0], shape, blocks) if own else _shared(component, codes)
    return Dequantized(name, shape, codes, scale) if scale else None


def _shared(component: _Component, codes: Part) -> Scale | None:
    """The one scale of all fp8 tensors below it, such as of a table cut into many."""
    layer = codes.key[1]
    while layer:
        layer = layer.rpartition(".")[0]
        if component.has(f"{layer}.weight_scale"):
            scale = component.part(f"{layer}.weight_scale", codes, FLOATS)
            is_one = scale is not None and scale.entry.elements == 1
            return _scale(scale, codes.entry.shape, []) if is_one else None
    return None


def _unpacked(codes: Entry) -> tuple[int, ...]:
    """The shape of what codes of two to a byte stand for."""
    return *codes.shape[:-1], 2 * codes.shape[-1]


def _scale(part: Part | None, shape: tuple[int, ...], blocks: list[Block]) -> Scale | None:
    """Scales of a weight of that shape: one for all, or for whole dimensions, or else for each
    block of the one size of `blocks` that fits."""
    if part is None:
        return None
    own = part.entry.shape
    if part.entry.elements == 1:
        return Scale(part.key, part.path, part.entry, tuple(max(1, extent) for extent in shape))
    if 0 < len(own) < len(shape) and own == shape[: len(own)]:
        # One for each row, or for each matrix of a stack.
        own += (1,) * (len(shape) - len(own))
    if len(own) == len(shape) and all(
        count in (1, extent) for count, extent in zip(own, shape, strict=True)
    ):
        sizes = zip(own, shape, strict=True)
        whole = tuple(1 if count == extent else max(1, extent) for count, extent in sizes)
        return Scale(part.key, part.path, part.entry, whole)
    if len(shape) < 2:
        return None
    *outer, height, width = shape
    fitting = set()
    for rows, columns in blocks:
        grid = (*outer, -(-height // rows), -(-width // columns))
        # ModelOpt leaves the extents inside the blocks as ones.
        if part.entry.shape in (grid, (*outer, grid[-2], 1, grid[-1], 1)):
            fitting.add((max(1, min(rows, height)), max(1, min(columns, width))))
    if len(fitting) != 1:
        return None
    return Scale(part.key, part.path, part.entry, (*(1 for _ in outer), *fitting.pop()))
