"""What can be wrong with a result, as data: each kind of problem once, with its sentence."""

from dataclasses import dataclass
from typing import Literal

from recast.terminal import shown

Kind = Literal[
    "file_missing",
    "file_size",
    "file_changed",
    "file_unreadable",
    "file_unexpected",
    "file_added",
    "shard_damaged",
    "tensor_missing",
    "tensor_unexpected",
    "tensor_tied",
    "tensor_copied",
    "tensors_copied",
    "tensor_shape",
    "tensor_dtype",
    "weight_unknown",
    "weight_left",
    "scale_left",
    "hash",
    "metadata",
    "report_invalid",
    "report_other",
    "report",
    "config_invalid",
    "config_changed",
    "config_changes",
    "config_dtype",
    "index_unexpected",
    "index_invalid",
    "index_shard",
    "index_shards",
    "index_map",
    "index_size",
    "index_dtype",
    "quantization_left",
    "sidecar_left",
    "load_failed",
    "memory_requested",
    "memory_allocated",
]
SENTENCES: dict[Kind, str] = {
    "file_missing": "{file} is missing",
    "file_size": "{file} has {found} bytes, expected {expected}",
    "file_changed": "{file} is not the source's: they differ from byte {at} on",
    "file_unreadable": "{file} cannot be compared with the source's: {reason}",
    "file_unexpected": "{file} is unexpected: the source has no such shard",
    "file_added": "{file} is unexpected: the source has no such file",
    "shard_damaged": "{file} is damaged: {reason}",
    "tensor_missing": "tensor '{tensor}' in {file} is missing",
    "tensor_unexpected": "tensor '{tensor}' in {file} is unexpected: the source does not have it",
    "tensor_tied": (
        "tensor '{tensor}' in {file} should be left out: in the source it is the same as '{kept}'"
    ),
    "tensor_copied": (
        "tensor '{tensor}' in {file} is a second copy: the source has it only in {other}"
    ),
    "tensors_copied": "{count} more tensors are second copies",
    "tensor_shape": "tensor '{tensor}' in {file} has shape {found}, expected {expected}",
    "tensor_dtype": "tensor '{tensor}' in {file} is {found}, expected {expected}",
    "weight_unknown": (
        "tensor '{tensor}' in {file} is dequantized, but the source has no codes and scales for it"
    ),
    "weight_left": (
        "tensor '{tensor}' in {file} should be dequantized, as other weights of the source are"
    ),
    "scale_left": "tensor '{tensor}' in {file} belongs to quantized weights, which are dequantized",
    "hash": "{file} states {key} = {found}, but the digest of its tensors is {expected}",
    "metadata": "{file} states {key} = {found} in its metadata, expected {expected}",
    "report_invalid": "{file} does not say what was asked for: {reason}",
    "report_other": (
        "{file} is the report on another conversion: not of this source with the options it states"
    ),
    "report": "{file} states {key} = {found}, expected {expected}",
    "config_invalid": "{file} is not JSON: {reason}",
    "config_changed": "{file} states {key} = {found}, the source states {expected}",
    "config_changes": "{file}: {count} more keys differ from the source's",
    "config_dtype": "{file} states {key} = {found}, expected {expected}",
    "index_unexpected": "{file} is unexpected: the source has no such index",
    "index_invalid": "{file} is not an index: {reason}",
    "index_shard": "{file} maps '{tensor}' to {shard}, which does not hold it",
    "index_shards": "{file}: the same for {count} more tensors",
    "index_map": "{file} does not map the same tensors to the same shards as the source's index",
    "index_size": "{file} states total_size = {found}, but its tensors have {expected} bytes",
    "index_dtype": "{file} states dtype = {found}, expected {expected}",
    "quantization_left": "{file} states {key}, but its weights are dequantized",
    "sidecar_left": "{file} describes quantized weights, which are dequantized",
    "load_failed": "{reason}",
    "memory_requested": "memory: requested is {found} bytes, {reason}",
    "memory_allocated": "memory: allocated is {found} bytes, {reason}",
}

LISTED = 20
"""More problems of one kind than this help nobody."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a result, values aside."""

    kind: Kind
    file: str | None
    """The file of the result that is wrong, by its path below the root."""
    tensor: str | None
    message: str
    """A sentence that names file and tensor."""


def problem(
    kind: Kind, file: str | None = None, tensor: str | None = None, **facts: object
) -> Problem:
    """A problem of that kind; `facts` complete its sentence. A `reason` must be fit to be shown
    as it is; all else may come from a file."""
    sentence = SENTENCES[kind]
    if "found" in facts and facts["found"] is None:
        sentence = sentence.replace("states {key} = {found}", "does not state {key}")
    if "expected" in facts and facts["expected"] is None:
        facts["expected"] = "nothing"
    facts |= {"file": file, "tensor": tensor}
    texts = {name: fact if name == "reason" else shown(fact) for name, fact in facts.items()}
    return Problem(kind, file, tensor, sentence.format_map(texts))
