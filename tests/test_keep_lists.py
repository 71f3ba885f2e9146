"""What loaders keep in fp32 is kept, by whatever name it has on disk.

The judge is the loader, on a small model of random values (`tests/sweep.py`, which does the same
for every class there is). Here: one class of each model type, or class of diffusers, on the list.
"""

import json
import subprocess
import sys
from collections.abc import Callable
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
LEFT_OUT: dict[str, str] = {}


def jobs(owner: str) -> list[Callable[[Path], sweep.Result]]:
    """What judges `owner`, the classes with most in them first."""
    classes = sweep.diffusers_classes()
    if owner in classes:
        return [lambda work: sweep.of_diffusers(classes[owner], work)]
    names = [name for model_type, name in sweep.families() if model_type == owner]
    names.sort(key=lambda name: "For" not in name)
    return [lambda work, name=name: sweep.of_transformers(name, work) for name in names]


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
