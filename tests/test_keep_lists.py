"""What loaders keep in fp32 is kept, by whatever name it has on disk.

The judge is the loader, on a small model of random values (`tests/sweep.py`, which does the same
for every class there is). Here: one class of each model type, or class of diffusers, on the list.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import sweep
import transformers

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

ROOT = Path(__file__).parent.parent
LIST = json.loads((ROOT / "src" / "recognize" / "libraries.json").read_text())
WRITTEN_FOR = {entry["source"].split()[1] for entry in LIST}
INSTALLED = {".".join(lib.__version__.split(".")[:2]) for lib in (transformers, diffusers)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.torch,
    pytest.mark.skipif(
        WRITTEN_FOR != INSTALLED,
        reason=f"the list is of {sorted(WRITTEN_FOR)}, installed are {sorted(INSTALLED)}",
    ),
]

OWNERS = sorted(
    {
        owner
        for entry in LIST
        for key in ("model_types", "class_names")
        for owner in entry.get(key, [])
    }
)
# The names of published checkpoints whose code is not part of transformers.
ALIASES = {"kimi_k2", "kimi_k25"}
# Those of which no class can be made small, with the reason.
LEFT_OUT = {
    "AutoencoderKLMiniMaxH3": "its widths are part of the class",
    "AutoencoderKLMiniMaxH3Audio": "its widths are part of the class",
    "CosmosControlNetModel": "the defaults have no learnable position embedding",
    "Krea2Transformer2DModel": "the rotary dimensions must add up to the width of a head",
    "RFD4ProteinaAutoencoder": "has no defaults",
    "RFD4ProteinaTransformer": "its widths are part of the class",
    "WanAnimateTransformer3DModel": "its channels must fit each other",
    "WanVACETransformer3DModel": "its layers are named by number",
    "apertus1p5": "its parts must fit each other",
    "deepseek_ocr2": "transformers cannot build it from its defaults",
    "deepseek_ocr2_text": "transformers cannot build it from its defaults",
    "dots3_note": "its layers are named by number",
    "dots3_note_text": "its layers are named by number",
    "ernie4_5_vl_moe": "its parts must fit each other",
    "ernie4_5_vl_moe_text": "its parts must fit each other",
    "esmfold2": "its rotary dimensions must fit the width of a head",
    "hy_v4_vl": "its rotary sections must fit the width of a head",
    "hy_v4_vl_text": "its rotary sections must fit the width of a head",
    "inkling_mm_model": "needs scipy",
    "moshi": "its parts must fit each other",
    "muse_spark": "more than 50 million parameters",
    "qwen2_5_omni": "more than 50 million parameters",
    "zamba": "shares layers by number",
}


def jobs(owner: str) -> list[Callable[[Path], sweep.Result]]:
    """What judges `owner`, the classes with most in them first."""
    classes = sweep.diffusers_classes()
    if owner in classes:
        return [lambda work: sweep.of_diffusers(classes[owner], work)]
    names = [name for model_type, name in sweep.families() if model_type == owner]
    names.sort(key=lambda name: "For" not in name)
    return [partial(sweep.of_transformers, name) for name in names]


@pytest.mark.parametrize("owner", [owner for owner in OWNERS if owner not in ALIASES])
def test_what_a_loader_keeps_is_kept(owner: str, tmp_path: Path) -> None:
    reasons = []
    for number, job in enumerate(jobs(owner)):
        work = tmp_path / str(number)
        work.mkdir()
        try:
            result = job(work)
        except sweep.LeftOut as reason:
            reasons.append(str(reason))
            continue
        assert result.wrong == []
        if sum(result.kept.values()):
            assert owner not in LEFT_OUT
            return
        reasons.append("keeps nothing")
    assert owner in LEFT_OUT, reasons


def test_the_list_is_what_the_installed_libraries_keep() -> None:
    """Minutes: it builds every class of both, without data."""
    command = [sys.executable, "tools/keep_lists.py", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
