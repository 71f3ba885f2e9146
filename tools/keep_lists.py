"""Writes `src/recognize/libraries.json`: the tensors that transformers and diffusers keep in fp32.

    python tools/keep_lists.py           # after an update of transformers or diffusers
    python tools/keep_lists.py --check   # exits with 1 when the file is not what they say

A name in the file is looked for in `.NAME.`, where NAME is a tensor's name on disk: `.wo.` is a
whole part of it, `gate.weight` any piece. That is how transformers reads its own patterns
(core_model_loading.py searches for them anywhere in a name), and diffusers compares whole parts.
The names are those on disk, of the checkpoints that were published and of those that transformers
saves, so that no renaming is needed to use them.
"""

import argparse
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import observe
import transformers
from observe import Seen

FILE = Path(__file__).parent.parent / "src" / "recognize" / "libraries.json"

# Other model types of published checkpoints, whose code or configuration says what they are.
ALIASES = {
    # Both configurations name DeepseekV3ForCausalLM as the language model's class.
    "kimi_k2": "deepseek_v3",
    "kimi_k25": "deepseek_v3",
}

# Why, by a piece of the name; the first that fits.
REASONS = {
    r"e_score_correction_bias|expert_bias|router_bias|balancing_biases|gate\.bias": (
        "router bias: rounding it changes which experts are chosen",
        "one measured bias went from 238 distinct values to 8 and 98.5 % of tokens were routed "
        "differently (sgl-project/sglang#37133, vllm-project/vllm#50761)",
    ),
    r"(gate|router|classifier)[._](weight|global_scale)|\.gate\.$": (
        "router weight: the loader computes the routing in fp32",
        "",
    ),
    r"sink|softmax_offset": (
        "attention sinks: the loader adds them to fp32 attention scores",
        "",
    ),
    r"dt_bias": ("time-step bias of a recurrent layer: errors add up over the sequence", ""),
    r"A_log": (
        "logarithm of a recurrent decay: errors grow exponentially",
        "mlx-lm cast_predicate",
    ),
    r"time_decay|time_first": ("recurrent decay: the loader keeps it in fp32", ""),
    r"^\.?wo\.?$": (
        "the T5 family's output projection overflows fp16, so the loader keeps it in fp32",
        "",
    ),
    r"weights_proj": ("sparse-attention indexer: the loader keeps it in fp32", ""),
    r"norm": ("the loader keeps these norms in fp32", ""),
    r"hc_|_hc": ("hyper-connections: the loader mixes the residual streams in fp32", ""),
    r"time_emb|scale_shift_table|modulation": (
        "timestep modulation: the loader keeps it in fp32",
        "huggingface/diffusers#10992: in bf16 the model makes other videos",
    ),
}
OTHERWISE = ("the loader keeps it in fp32", "")

# Parts that say nothing about what a tensor is.
PLAIN = {"weight", "bias", "scale", "gamma", "beta", "base", "fn", "model", "layers", "#"}


def hits(pattern: str, name: str) -> bool:
    """Whether a tensor called `name` is one that `pattern` names."""
    return pattern in f".{name}."


def pieces(name: str) -> Iterator[str]:
    """Every run of parts of a name that is more than plain, without numbers."""
    for run in re.split(r"(?:^|\.)#(?=\.|$)", name):
        parts = [part for part in run.split(".") if part]
        for first in range(len(parts)):
            for last in range(first + 1, len(parts) + 1):
                if not set(parts[first:last]) <= PLAIN:
                    yield "." + ".".join(parts[first:last]) + "."


def patterns(kept: set[str], cast: set[str], declared: Iterable[str], failed: bool) -> set[str]:
    """The fewest patterns that hit all of `kept` and nothing of `cast`, the declared ones first."""
    chosen = {
        pattern
        for pattern in declared
        if re.fullmatch(r"[\w.]+", pattern)
        and not any(hits(pattern, name) for name in cast)
        and (failed or any(hits(pattern, name) for name in kept))
    }
    left = {name for name in kept if not any(hits(pattern, name) for pattern in chosen)}
    candidates = {piece for name in left for piece in pieces(name)}
    candidates = {p for p in candidates if not any(hits(p, name) for name in cast)}
    while left:
        # The one that hits most, of these the shortest.
        counts = {pattern: sum(hits(pattern, name) for name in left) for pattern in candidates}
        best = min(counts, key=lambda p, c=counts: (-c[p], p.count("."), p), default=None)
        if best is None or not counts[best]:
            raise SystemExit(f"error: no pattern tells these from cast tensors: {sorted(left)}")
        chosen.add(best)
        left = {name for name in left if not hits(best, name)}
    return chosen


def of_transformers() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Pattern, model type, targets and source of everything that transformers keeps."""
    version = ".".join(transformers.__version__.split(".")[:2])
    found: dict[str, list[tuple[str, tuple[str, ...], str]]] = {}
    incomplete: dict[str, set[str]] = {}
    for model_type, seen in observe.transformers_models():
        found[model_type] = [
            (pattern, targets, f"transformers {version} {attribute}")
            for pattern, targets, attribute in rows(model_type, seen)
        ]
        if seen.failed:
            incomplete[model_type] = seen.parts
    # What could not be built as a whole keeps at least what its parts keep.
    for model_type, parts in incomplete.items():
        found[model_type] += [row for part in sorted(parts) for row in found.get(part, [])]
    for model_type, of in ALIASES.items():
        found[model_type] = found[of]
    for model_type, listed in found.items():
        for pattern, targets, source in listed:
            yield pattern, model_type, targets, source


def rows(model_type: str, seen: Seen) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Pattern, targets and attribute of what one model type keeps."""
    for cls, failure in seen.failed.items():
        print(f"{model_type}: {cls} was not built: {failure}", file=sys.stderr)
    both: set[str] = set()
    for targets in (("bf16", "fp16"), ("fp16",)):
        to = targets[0]
        kept = {name for name in seen.kept[to] if not any(hits(p, name) for p in both)}
        cast = seen.cast[to] - seen.kept[to]
        new = patterns(kept, cast, seen.declared[to] - both, bool(seen.failed)) - both
        for pattern in sorted(new):
            hit = {name for name in seen.kept[to] if hits(pattern, name)}
            if hit and hit <= seen.typed:
                source = "parameters created in float32"
            else:
                source = "_keep_in_fp32_modules" + "_strict" * (to == "bf16")
            yield pattern, tuple(sorted(targets)), source
        both |= new


def of_diffusers() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Pattern, class, targets and source of everything that diffusers keeps."""
    version = ".".join(diffusers.__version__.split(".")[:2])
    for cls, names in observe.diffusers_models():
        for name in names:
            # A pattern with a dot equals no part of a name, so it keeps nothing.
            if "." not in name:
                source = f"diffusers {version} _keep_in_fp32_modules"
                yield f".{name}.", cls, ("bf16", "fp16"), source


def listing() -> str:
    """The file: an entry a line, sorted."""
    types: dict[tuple[str, str, tuple[str, ...], str], set[str]] = defaultdict(set)
    for key, found in (("model_types", of_transformers()), ("class_names", of_diffusers())):
        for pattern, owner, targets, source in found:
            types[key, pattern, targets, source].add(owner)
    merged: dict[tuple[str, tuple[str, ...], tuple[str, ...], str, str], set[str]] = defaultdict(
        set
    )
    for (key, pattern, targets, source), owners in types.items():
        reasons = (value for regex, value in REASONS.items() if re.search(regex, pattern))
        reason, more = next(reasons, OTHERWISE)
        source = f"{source}; {more}" if more else source
        merged[key, tuple(sorted(owners)), targets, reason, source].add(pattern)
    entries = [
        {
            "names": sorted(names),
            "targets": list(targets),
            key: list(owners),
            "reason": reason,
            "source": source,
        }
        for (key, owners, targets, reason, source), names in merged.items()
    ]
    entries.sort(key=lambda entry: (entry["names"], json.dumps(entry)))
    return "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n"


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if it differs")
    check = parser.parse_args().check
    text = listing()
    if not check:
        FILE.write_text(text)
        return 0
    if text == FILE.read_text():
        return 0
    print(f"error: {FILE} is not what the installed libraries keep", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
