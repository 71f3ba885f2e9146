"""What the documentation shows is what happens: its blocks run, and it leaves no message out."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
import recast
from blocks import FENCE, GPU, ROOT, RUN, Block, blocks, pages, run
from messages import Message, general, of_the_core, of_the_package, of_verification
from recast import _core
from support import recast_here

pytestmark = [pytest.mark.docs, pytest.mark.torch]

TUTORIAL = ROOT / "docs" / "tutorial.md"
TROUBLE = ROOT / "docs" / "troubleshooting.md"
NOT_RUN = {
    "docs/index.md": 1,
    "docs/loading.md": 3,
    "docs/memory.md": 1,
    "docs/pipelines.md": 1,
    "docs/pickles.md": 1,
    "docs/quantized.md": 1,
    "README.md": 3,
}
# Messages that are nearly all names; too little to tell an entry by.
SHORT = (["stopped"], ["--keep"], ["cannot"])
MESSAGES = [*of_the_package(), *of_verification()]
NAMES = [str(page.relative_to(ROOT)) for page in pages()]


def prepare(name: str, folder: Path) -> Path:
    """Puts into `folder` what a page takes for granted; gives where its tools are.

    The tutorial begins with nothing. docs/cli.md shows Llama-2-7B on a machine with a GPU, all
    other pages the tutorial's model on one without.
    """
    tools = folder.parent / "tools"
    tools.mkdir()
    gpu = f"echo '{GPU}, Some GPU, 22630, 24576'" if name == "docs/cli.md" else "exit 9"
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
    assert not re.findall(
        r"^(?: {4}|\t)(?:\$ |recast |pip |make |import ).*", outside, re.MULTILINE
    )


def sections() -> dict[str, list[str]]:
    """The messages on the troubleshooting page, below the heading that they stand under."""
    found: dict[str, list[str]] = {}
    for part in TROUBLE.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading = part.splitlines()[0]
        cells = re.findall(r"^\| (`.*?`) \| ", part, re.MULTILINE)
        found[heading] = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    return found


def entries(start: str) -> list[str]:
    """The messages listed below the heading that begins with `start`."""
    (rows,) = (rows for heading, rows in sections().items() if heading.startswith(start))
    return rows


@pytest.mark.parametrize(
    "message",
    [message for message in MESSAGES if message.words],
    ids=lambda message: f"{message.origin}: {' '.join(message.words)}",
)
def test_every_message_of_the_package_has_an_entry_where_it_belongs(message: Message) -> None:
    for heading in message.headings:
        assert any(message.is_in(entry) for entry in entries(heading)), (heading, message.words)


@pytest.mark.parametrize("heading", sorted({heading for heading, _, _ in of_the_core()}))
def test_every_message_of_the_core_has_an_entry_where_it_belongs(heading: str) -> None:
    rows = {general(row) for row in entries(heading)}
    texts = {text for where, text, _ in of_the_core() if where == heading}
    assert texts <= rows, sorted(texts - rows)


def test_every_error_of_the_core_says_the_way_out_where_there_is_one() -> None:
    errors = [row for row in of_the_core() if row[0].startswith("Exit code ")]
    without = {text for _, text, hint in errors if not hint}
    assert without == {
        "REASON",
        "PATH: cannot ACTION: REASON",
        "stopped",
        "the staged files were made from another state of the source",
    }
    assert all(text and text == text.strip() for _, text, _ in of_the_core())


def test_the_lists_of_messages_are_not_empty() -> None:
    assert len(of_the_core()) > 100
    assert len(of_the_package()) > 25
    assert len(of_verification()) > 15


def test_no_entry_is_of_a_message_that_no_longer_exists() -> None:
    # Of click, and of bits.
    known = re.compile(
        r"No such |Missing |Option |Invalid value|Got unexpected|.*hexadecimal digits"
    )
    core = {text for _, text, _ in of_the_core()}
    for heading, rows in sections().items():
        assert rows
        for row in rows:
            meant = [m for m in MESSAGES if len("".join(m.words)) > 8 and m.is_in(row)]
            short = [m for m in MESSAGES if m.words in SHORT and m.is_in(row)]
            assert general(row) in core or meant or short or known.match(row), (heading, row)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["convert", "model"],
        ["convert", "model", "out"],
        ["convert", "model", "out", "--to"],
        ["convert", "model", "out", "--nonsense"],
        ["convert", "model", "out", "more", "--to", "bf16"],
        ["convert", "model", "out", "--to", "bf16", "--threads", "0"],
        ["bits", "0x1"],
    ],
)
def test_what_click_says_has_an_entry(arguments: list[str]) -> None:
    result = recast_here(*arguments)
    assert result.returncode == 2
    said = result.stderr.splitlines()[0].removeprefix("error: ")
    starts = [re.split(r"'?NAME|TEXT|NUMBER", entry)[0] for entry in entries("Exit code 2:")]
    assert any(said.startswith(start) for start in starts if start) or "hexadecimal" in said


def keys_of(command: str) -> set[str]:
    """The keys that the tables below a command's heading in docs/cli.md name first in a row."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text.split(f"## recast {command}")[1].split("\n## ")[0]
    table = section.split("| key | |\n|---|---|\n")[1].split("\n\n")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


def test_every_json_key_is_documented_and_every_documented_one_there(
    model: Path, tmp_path: Path
) -> None:
    commands: dict[str, list[str | Path]] = {
        "convert": [model, tmp_path / "out", "--to", "bf16"],
        "inspect": [model, "--tensors"],
        "bits": ["3.14"],
        "verify": [model, tmp_path / "out", "--device", "cpu"],
    }
    for command, arguments in commands.items():
        result = recast_here(command, *arguments, "--json")
        assert set(json.loads(result.stdout)) == keys_of(command), command


def test_every_variable_that_is_read_is_documented() -> None:
    read = set()
    for path in (ROOT / "python" / "recast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                read |= set(re.findall(r"^(?:[A-Z]{2,}_[A-Z0-9_]+|LANG)$", node.value))
    # A lint keeps every other one out of the core (clippy.toml).
    read.add(_core.SIMD_VARIABLE)
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").split("## Environment")[1]
    documented = set(re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE))
    names = {name for cell in documented for name in re.findall(r"`(\w+)`", cell)}
    # rich reads the one, click the other.
    assert names == read | {"NO_COLOR", "_RECAST_COMPLETE"}


def test_the_exit_codes_in_the_tree_are_those_of_the_exceptions() -> None:
    assert recast.errors.__doc__
    rows = re.findall(r"(\w+Error)\b(?: \(also ValueError\))? +(\d+) ", recast.errors.__doc__)
    assert len(rows) == 5
    for name, code in rows:
        assert getattr(recast.errors, name).exit_code == int(code)


def test_every_page_is_in_the_navigation_and_every_link_leads_to_a_file() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1]
    navigation = navigation.split("\n\n")[0]
    docs = ROOT / "docs"
    named = set(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))
    assert named == {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    for page in pages():
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_documentation_names_no_machine() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"/(?:root|home|tmp|work)/", text), page.name
