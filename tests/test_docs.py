"""What the documentation shows is what happens: its blocks run, and it leaves no message out."""

import ast
import json
import os
import re
import sys
from pathlib import Path

import pytest
import recast
from blocks import FENCE, ROOT, RUN, Block, blocks, pages, run
from support import recast_process

TUTORIAL = ROOT / "docs" / "tutorial.md"
TROUBLE = ROOT / "docs" / "troubleshooting.md"
NOT_RUN = {"docs/memory.md": 1, "docs/pipelines.md": 1, "docs/tutorial.md": 1, "README.md": 2}
NAMES = [str(page.relative_to(ROOT)) for page in pages()]


def prepare(name: str, folder: Path) -> Path:
    """Puts into `folder` what a page takes for granted; gives where its tools are.

    The tutorial begins with nothing. docs/cli.md shows Llama-2-7B on a machine with a GPU, all
    other pages the tutorial's model on one without.
    """
    tools = folder.parent / "tools"
    tools.mkdir()
    gpu = "echo 'Some GPU, 22630, 24576'" if name == "docs/cli.md" else "exit 9"
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{gpu}\n")
    (tools / "nvidia-smi").chmod(0o755)
    if name == "docs/cli.md":
        sys.path.insert(0, str(ROOT / "examples"))
        from llama2_7b_memory import write_checkpoint

        (folder / "model").mkdir()
        write_checkpoint(folder / "model" / "model.safetensors")
    elif name != "docs/tutorial.md":
        (folder / "examples").symlink_to(ROOT / "examples")
        script = next(block for block in blocks(TUTORIAL) if block.title == "make_model.py")
        run(script, folder, tools)
        run(Block(name, 0, "bash", "", "python make_model.py"), folder, tools)
    return tools


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(ROOT / name)])
def test_the_blocks_of_a_page_do_what_they_show(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    tools = prepare(name, folder)
    for block in blocks(ROOT / name):
        if block.language in RUN and block.not_run is None:
            run(block, folder, tools)


def test_what_is_not_run_says_so_and_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    left_out = [block for page in pages() for block in blocks(page) if block.not_run is not None]
    with capsys.disabled():
        for block in left_out:
            sys.stdout.write(f"\n{block.page}:{block.line} is not run here: {block.not_run}")
    counts = {name: [block.page for block in left_out].count(name) for name in NAMES}
    assert {name: count for name, count in counts.items() if count} == NOT_RUN
    assert all(block.not_run for block in left_out)


@pytest.mark.parametrize("name", NAMES)
def test_no_command_hides_in_a_block_that_is_not_run(name: str) -> None:
    page = ROOT / name
    assert {block.language for block in blocks(page)} <= RUN | {"text", "yaml", "json"}
    outside = FENCE.sub("", page.read_text(encoding="utf-8"))
    assert "```" not in outside
    assert not re.findall(r"^(?: {4}|\t)(?:\$ |recast |pip |make |import ).*", outside, re.MULTILINE)
