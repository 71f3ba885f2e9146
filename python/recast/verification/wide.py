"""Which tensors must stay wider than the target, by verify's own rules.

The names that the loaders of models keep in fp32 are data of those libraries; what is made of them,
and all other rules, share nothing with the conversion.
"""

import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from recast._core import keep_lists
from recast.verification.dtypes import FloatName
from recast.verification.header import Entry

BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}
"""The bits of the floats that may be kept; no 8-bit float is."""
FEW = 20
"""Where at most one element in so many is of 32 bits or more, these are meant to be."""

T5 = (".DenseReluDense.wo.",)
WAN = (".scale_shift_table.", ".time_embedder.", ".norm2.")
WAN_BY_ITS_AUTHORS = (".modulation.", ".time_embedding.", ".norm3.")
SCHEDULE = (
    *("alphas_cumprod.", ".alphas_cumprod_prev.", ".betas.", ".posterior_variance."),
    *(".posterior_log_variance_clipped.", ".posterior_mean_coef1.", ".posterior_mean_coef2."),
)


class Name(NamedTuple):
    """Pieces of names, each looked for in `.NAME.`."""

    pieces: tuple[str, ...]
    beside: tuple[str, ...] = ()
    """What other tensors of the component must have in their names, each of these one."""
    single: bool = False
    """Whether only single numbers are meant."""
    only_fp16: bool = False
    any_width: bool = False
    """Whether 16-bit tensors stay, too: their loader widens them."""


NAMES = (
    Name((".e_score_correction_bias.", ".expert_bias.", ".router_bias.")),
    Name((".ffn.gate.bias.",), beside=(".ffn.gate.weight.", ".ffn.experts.")),
    Name((".A_log.", ".A_logs.", ".dt_bias.", ".inv_freq.")),
    Name(("attn.sinks.", ".attn_sink.", ".attn_sinks.")),
    Name((".time_decay.", ".time_first.", ".time_faaaa."), (".time_decay.",), only_fp16=True),
    Name(SCHEDULE, beside=(".alphas_cumprod.",)),
    Name((".model_ema.decay.",), single=True),
    Name((".k_scale.", ".v_scale.", ".kv_scale."), single=True),
    Name(T5, beside=(".SelfAttention.q.",), only_fp16=True, any_width=True),
    Name(
        WAN,
        beside=(".condition_embedder.time_embedder.", ".scale_shift_table.", ".attn1.norm_q."),
        any_width=True,
    ),
    Name(
        WAN_BY_ITS_AUTHORS,
        beside=(".time_embedding.0.", ".time_projection.1.", ".head.modulation.", ".norm3."),
        any_width=True,
    ),
)
"""What names say of any model: routers, recurrent decays, attention sinks, rotary frequencies,
noise schedules, scales of caches, and the families T5 and Wan. Where each is known from is in the
documentation of dtypes."""


Tensors = list[tuple[str, Entry]]


def find(to: FloatName, configs: list[Any], tensors: Tensors, names: set[str]) -> set[str]:
    """The names of those `tensors` that stay as they are where a component is cast to `to`.

    `tensors` are the plain weights of the component, which may have several of a name, `names`
    those of all its tensors, and `configs` the configs of its folder and of those above it.
    """
    if to == "fp32":
        return set()
    floats = [(name, entry, BITS[entry.dtype]) for name, entry in tensors if entry.dtype in BITS]
    wide = {name: entry.elements for name, entry, bits in floats if bits >= 32}
    count = sum(entry.elements for _, entry, bits in floats if bits >= 32)
    is_meant = 0 < FEW * count <= sum(entry.elements for _, entry, _ in floats)
    found = set(wide) if is_meant else set()
    dotted = [f".{name}." for name in names]
    for name in _names(to, configs):
        if not all(any(piece in other for other in dotted) for piece in name.beside):
            continue
        any_piece = re.compile("|".join(map(re.escape, name.pieces)))
        for tensor, entry, bits in floats:
            meant = (bits >= 32 or name.any_width) and (entry.elements == 1 or not name.single)
            if meant and any_piece.search(f".{tensor}."):
                found.add(tensor)
    return found


def _names(to: FloatName, configs: list[Any]) -> Iterable[Name]:
    """All that holds for a target, and for what the configs call the model."""
    yield from (name for name in NAMES if to == "fp16" or not name.only_fp16)
    words = {
        key: {word for config in configs for word in _said(config, key)}
        for key in ("model_type", "_class_name")
    }
    for entry in _lists():
        own = words["model_type"] & set(entry.get("model_types", ()))
        own |= words["_class_name"] & set(entry.get("class_names", ()))
        if own and to in entry["targets"]:
            yield Name(tuple(entry["names"]), any_width=True)


@cache
def _lists() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(keep_lists())
    return found


def _said(value: Any, key: str) -> Iterable[str]:
    """Every string that a config has under a key, at its top and deeper."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        # The settings of another library.
        if name == "transformers.js_config":
            continue
        if name == key and isinstance(inner, str):
            yield inner
        yield from _said(inner, key)
    for inner in value if isinstance(value, list) else ():
        yield from _said(inner, key)
