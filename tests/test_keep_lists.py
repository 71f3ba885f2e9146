"""What loaders keep in fp32 is kept, by whatever name it has on disk.

The judge is the loader, on a small model of random values (`tests/sweep.py`, which does the same
for every class there is). Here: one class of each model type, or class of diffusers, on the list.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import small_models
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
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of the libraries, about themselves
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
LEFT_OUT = {"qwen2_5_omni": "its class also loads a file that no model saves"}


def jobs(owner: str) -> list[sweep.Job]:
    """What judges `owner`, the classes with most in them first."""
    classes = small_models.diffusers_classes()
    if owner in classes:
        return [partial(sweep.of_diffusers, classes[owner])]
    classes = small_models.classes_of(owner)
    names = sorted(classes, key=lambda name: "For" not in name)
    return [partial(sweep.of_transformers, classes[name]) for name in names]


@pytest.mark.parametrize("owner", [owner for owner in OWNERS if owner not in ALIASES])
def test_what_a_loader_keeps_is_kept(owner: str, tmp_path: Path) -> None:
    reasons = []
    for number, job in enumerate(jobs(owner)):
        work = tmp_path / str(number)
        work.mkdir()
        try:
            result = job(work)
        except small_models.LeftOut as reason:
            reasons.append(str(reason))
            continue
        assert result.wrong == []
        if sum(result.kept.values()):
            assert owner not in LEFT_OUT
            return
        reasons.append("keeps nothing")
    assert owner in LEFT_OUT, reasons


@pytest.mark.timeout(900)
def test_the_list_is_what_the_installed_libraries_keep() -> None:
    """Minutes: it builds every class of both, without data."""
    command = [sys.executable, "tools/keep_lists.py", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.timeout(900)
def test_a_part_of_all_classes_gives_results_that_load_as_their_sources() -> None:
    """All of them are `make test-sweep`."""
    command = [sys.executable, "tests/sweep.py", "--part", "1/16"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr
    assert int(run.stdout.splitlines()[-1].split()[0]) > 80
