"""20,000 damaged pickles: recast reads what torch reads, or refuses for a listed reason."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from mutated_pickles import MANY
from pickle_judge import NoModelError, model_of, opened
from support import environment, slow

BATCHES = 8

ARCHIVE = "An archive that is as torch.save writes it has one reading; miniz looks at less of it."
WHOLE = "torch ignores bytes that nothing claims."
PLAIN = "torch calls more than a tensor of plain numbers needs, and takes more for an argument."
SIZES = "torch reads what lies there, of the next entry, too, or leaves memory as it was."
STRICTER = {
    r"the zip archive (describes|does not say|has|is one of|does not end|states) ": ARCHIVE,
    r"its byte order is ": "torch swaps the bytes of big-endian files.",
    r"no \.safetensors file and no PyTorch pickle found": "torch takes any way to write a number.",
    r"(.*) (starts|is damaged: it does not start) with": "torch needs no PROTO.",
    r"(.*) is written in pickle protocol \d": "torch warns of other protocols, and reads on.",
    r"opcode PROTO at byte \d+ of .*": "torch takes it anywhere.",
    r"(.*) is damaged: (bytes follow|it ends with more than one value)": WHOLE,
    r"PICKLE is damaged: its checksum is another": "torch compares no checksums.",
    r"the list of storages is damaged: it is no list": "Any iterable will do for torch.",
    r"storage '\.\.\.' (has another length|is described twice|is not there|is not used)": SIZES,
    r"storage '\.\.\.' (is a part of another one, too|has two parts)": "torch takes the first.",
    r"tensor '\.\.\.' reaches beyond its storage": SIZES,
    r"its tensors repeat few values": "torch copies nothing before it is read.",
    r"it refers to something that is no storage": PLAIN,
    r"it calls (what it may only name|a function with what are no arguments)": PLAIN,
    r"it sets (a member of what is no dict|the state of what needs none)": PLAIN,
    r"it makes a (tensor|size|dict|parameter) ": PLAIN,
    r"it makes an object of a class that tensors do not need": PLAIN,
    r"it names '\.\.\.' at byte ": PLAIN,
}
"""Why recast refuses what torch reads."""

UNCALLED = "recast does not call what makes no tensor, so it does not see that torch could not."
UNREAD = "recast does not decode what names no tensor."
LOOSER = {
    r"TypeError: (device|complex|encode|set|torch\.Size|_get_layout)\(\)": UNCALLED,
    r"TypeError: Counter\.__init__\(\)": UNCALLED,
    r"TypeError: (set expected|string argument|encoding with|unhashable type|bytearray)": UNCALLED,
    r"ValueError: complex\(\) arg": UNCALLED,
    r"(LookupError: unknown encoding|Unicode(En|De)codeError): ?": UNREAD,
    r"RuntimeError: (Expected one of cpu|Invalid device|Device index|Device type)": UNCALLED,
    r"KeyError: ('\.\.\.'|\(|[a-z0N])": "It is no layout, and recast does not look one up.",
    r"RuntimeError: requires_grad must be a bool": "recast has no gradients.",
    r"TypeError: empty\(\): argument": "recast has no gradients.",
    r"TypeError: '\.\.\.' object cannot be interpreted as an integer": UNCALLED,
    r"ValueError: invalid literal for int\(\)": "recast reads no alignment.",
    r"TypeError: _make_subclass\(\)": "recast has no gradients.",
    r"RuntimeError: only Tensors of floating point": "recast has no gradients.",
    r"RuntimeError: storage has wrong byte size": "No tensor of the model has that storage.",
    r"RuntimeError: (Trying to resize|setStorage)": "That tensor is none of the model.",
    r"RuntimeError: (Expected hasRecord\(\"version|.*parse the version|.*with version)": (
        "recast reads no version: the other entries say what it must know."
    ),
}
"""Why torch refuses what recast reads."""


def unlisted(verdict: str, why: str) -> bool:
    listed = {"recast refuses": STRICTER, "torch refuses": LOOSER}.get(verdict)
    if listed is None:
        return verdict not in ("same", "both refuse")
    return not any(re.match(pattern, why) for pattern in listed)


@pytest.mark.parametrize("batch", [*slow(*range(1, BATCHES)), pytest.param(0)])
def test_a_damaged_pickle_is_read_as_torch_reads_it(batch: int, tmp_path: Path) -> None:
    # The first batch is a small one, for every run of the tests.
    count = MANY // (BATCHES - 1) + 1 if batch else 250
    first = MANY if not batch else (batch - 1) * count
    program = Path(__file__).with_name("mutated_pickles.py")
    done = subprocess.run(
        [sys.executable, program, str(first), str(count), tmp_path],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=environment(TORCH_FORCE_WEIGHTS_ONLY_LOAD="1", OMP_NUM_THREADS="1"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, (done.stderr[-2000:], [*tmp_path.iterdir()])
    assert list(tmp_path.iterdir()) == []
    rows = [
        (verdict, why, times, number) for verdict, why, times, number in json.loads(done.stdout)
    ]
    assert [row for row in rows if unlisted(*row[:2])] == []
    times: Counter[str] = Counter()
    for verdict, why, often, _ in rows:
        times[verdict] += often
        times[why] += often
    # Otherwise it would show nothing.
    assert times["both refuse"] > count // 4
    assert times["same"] > count // 20
    assert times["values"] > count // 100
    assert times["recast refuses"] > count // 50
    assert sum(row[2] for row in rows) == count


def test_the_judge_finds_a_model_only_where_there_is_one(tmp_path: Path) -> None:

    tensor, path = torch.ones(2), tmp_path / "model.pt"
    for model in ({"w": tensor}, {"state_dict": {"w": tensor}}, {"x": {"v": tensor}, "w": tensor}):
        torch.save(model, path)
        assert model_of(opened(path)).keys() == {"w"}
    nested = {"model": {"w": tensor}, "ema": {"w": tensor}}
    for nothing in ([tensor], tensor, {}, {"w": 1}, {"x": {"w": tensor}}, nested, {1: tensor}):
        torch.save(nothing, path)
        with pytest.raises(NoModelError):
            model_of(opened(path))
