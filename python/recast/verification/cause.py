"""Why nearly everything is wrong with a result: probably it was made from another source."""

from recast.verification.compare import Comparison
from recast.verification.header import Headers
from recast.verification.promise import Promise
from recast.verification.result import LikelyCause

# The share of wrong values from which a tensor differs throughout. A wrong way to cast does not
# reach it: even truncation gets about every second value right.
THROUGHOUT = 0.9


def likely_cause(promise: Promise, headers: Headers, compared: Comparison) -> LikelyCause | None:
    """The cause, where most tensors are unknown to the source, in other files, or all wrong."""
    placed = {
        (file, name, *tensor.shape)
        for file, tensors in promise.tensors.items()
        for name, tensor in tensors.items()
    }
    known = {tensor[1:] for tensor in placed}
    found = [
        (file, name, *entry.shape)
        for file, entries in headers.items()
        for name, entry in entries.items()
    ]
    unknown = sum(tensor[1:] not in known for tensor in found)
    if 2 * unknown > len(found):
        return LikelyCause("other_tensors", unknown, len(found))
    moved = sum(tensor not in placed and tensor[1:] in known for tensor in found)
    if 2 * moved > len(found):
        return LikelyCause("other_files", moved, len(found))
    wrong = sum(each.count >= THROUGHOUT * each.compared for each in compared.mismatches)
    if 2 * wrong > compared.tensors:
        return LikelyCause("other_values", wrong, compared.tensors)
    return None
