"""Optimizer state beside weights, which no conversion rounds, by verify's own rules."""

import os
import re

FILE = re.compile(r"optim(izer)?([\W\d_].*)?", re.IGNORECASE | re.DOTALL)
"""What a file of nothing else is called."""
MOMENTS = {
    *("exp_avg", "exp_avg_sq", "exp_avg_sq_col", "exp_avg_sq_row", "max_exp_avg_sq", "exp_inf"),
    *("momentum_buffer", "square_avg", "grad_avg", "acc_delta", "sum_of_squares", "mu_product"),
    *("row_var", "col_var", "exp_avg_slow"),
}
"""What optimizers of torch and transformers keep of a parameter."""
BESIDE = {"step", "sum", "ax", "eta", "mu", "RMS"}
"""What they keep beside that."""
WHOLE = (
    {"step", "sum"},
    {"step", "variance"},
    {"step", "prev", "step_size"},
    {"step", "eta", "mu", "ax"},
)
"""What they keep of a parameter without moments, all of it."""


def find(file: str, names: list[str]) -> set[str]:
    """Those of a file's tensors that are optimizer state."""
    if FILE.fullmatch(os.path.splitext(os.path.basename(file))[0]):
        return set(names)
    parameters: dict[str, set[str]] = {}
    for name in names:
        parameter, last = _split(name)
        parameters.setdefault(parameter, set()).add(last)
    found = set()
    for name in names:
        parameter, last = _split(name)
        held = parameters[parameter] if parameter else set()
        known = held & MOMENTS | (held & BESIDE if held & MOMENTS else set())
        for whole in WHOLE:
            known |= whole if whole <= held else set()
        if last in known:
            found.add(name)
    return found


def _split(name: str) -> tuple[str, str]:
    """A name in front of its last part, and that; nothing in front of a name of one part."""
    at = max(name.rfind("."), name.rfind("/"))
    return (name[: at + 1], name[at + 1 :])
