"""The examples do what they say, and what the documentation shows is what the command prints."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import environment, files, recast_process

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "llama2_7b_memory.py"


def shown(command: str) -> str:
    """What docs/cli.md shows below `$ command`."""
    lines = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").splitlines()
    start = lines.index(f"    $ {command}") + 1
    end = next(number for number in range(start, len(lines)) if not lines[number].strip())
    return "".join(f"{line.removeprefix('    ')}\n" for line in lines[start:end])


def test_the_llama_example_arrives_at_what_was_measured(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env=environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    table = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line}
    sixteen = "12.551277160644531 12.551277160644531 12.582542419433594 12.582542419433594"
    assert table["fp32"] == (
        ["25.102554321289062", "25.102554321289062", "25.165069580078125", "25.165069580078125"]
    )
    assert table["fp16"] == table["bf16"] == sixteen.split()
    assert "6,738,415,616 parameters" in result.stdout
    # (25.165069580078125 - 25.102554321289062) x 2^30 and its like, by hand.
    assert "67,125,248 bytes in fp32" in result.stdout
    assert "33,570,816 bytes in bf16" in result.stdout
    assert result.stdout.splitlines()[-1] == "ok: exact to the byte"
    assert files(tmp_path) == set()


def test_the_documented_inspection_is_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    from llama2_7b_memory import write_checkpoint

    (tmp_path / "model").mkdir()
    write_checkpoint(tmp_path / "model" / "model.safetensors")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'Some GPU, 22630, 24576'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    env = environment(PATH=f"{tmp_path}:/usr/bin:/bin")
    result = recast_process("inspect", "model", cwd=tmp_path, env=env)
    assert result.stdout == shown("recast inspect model")


def test_the_documented_walk_is_what_is_printed() -> None:
    command = "recast bits 3.14 --to fp16"
    assert recast_process(*command.split()[1:]).stdout == shown(command)
