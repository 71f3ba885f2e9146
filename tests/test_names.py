"""Names come from anybody: none forges a line or floods a terminal, and those of bytes are kept."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import recast
from conftest import Run
from recast._core import Checkpoint
from recast.options import Options
from recast.terminal import plain, shown
from support import environment, raw_bytes, raw_header, recast_here, recast_process, stored

SHARD, INDEX = "model.safetensors", "model.safetensors.index.json"
LINE = "hint: evil"
PLAIN = "layers.0.'größe' \\ 重み e\u0301 \U0001f600"
# What ends a line for one reader or another, turns a text around, or steers a terminal.
EVIL = f"w\n{LINE}\r{LINE}\x85{LINE}\u2028{LINE}\x0b{LINE}\x1c{LINE}\u202e\x1b[2J\x9b2J\u200f\x7f"
LONG = "n" * 1_000_000 + EVIL
NAMES = pytest.mark.parametrize("name", [EVIL, LONG], ids=["evil", "long"])


Readable = Callable[..., str]


@pytest.fixture
def readable(run: Run) -> Readable:
    """Runs the command: what it prints is a few lines of its own, all of them for printing."""

    def readable(*arguments: object, code: int, says: str = "w\\n") -> str:
        printed = run(*arguments, codes=(code,))
        assert all(character == "\n" or character.isprintable() for character in printed)
        assert not [line for line in printed.splitlines() if line.startswith(LINE)]
        assert says in printed
        assert len(printed) < 30_000
        return printed

    return readable


def tensors(path: Path, *names: str, dtype: str = "F32", value: float = 1.0) -> None:
    data = struct.pack("<d" if dtype == "C64" else "<f", value)
    path.write_bytes(raw_bytes([(name, dtype, [1], data) for name in names], {"format": "pt"}))


@NAMES
def test_no_tensor_forges_a_line_of_an_error(
    name: str, model: Path, tmp_path: Path, readable: Readable
) -> None:
    convert = ("convert", model, tmp_path / "out", "--to", "fp16")
    tensors(model / SHARD, *(f"{name}{number}" for number in range(9)), value=1e30)
    printed = readable(*convert, code=1)
    assert len(printed.splitlines()) == 1 + 5 + 1 + 1
    readable(*convert, "--keep", "nothing", code=2)
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}
    (model / SHARD).write_bytes(raw_header({name: entry}) + bytes(4))
    readable(*convert, code=65)
    readable("inspect", model, code=65)


@NAMES
def test_no_index_and_no_config_forges_a_line_of_an_error(
    name: str, model: Path, tmp_path: Path, readable: Readable
) -> None:
    convert = ("convert", model, tmp_path / "out", "--to", "bf16")
    for mapped in ({name: SHARD}, {"layer.weight": name}, {name: f"../{name}"}, {name: 5}):
        (model / INDEX).write_text(json.dumps({"weight_map": mapped}))
        readable(*convert, code=65)
    (model / INDEX).unlink()
    (model / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": name}}))
    codes = [("w.codes", "I32", [2, 2], bytes(16))]
    (model / SHARD).write_bytes(raw_bytes(codes, {"format": "pt"}))
    readable(*convert, code=65)


@NAMES
def test_no_tensor_forges_a_line_of_a_summary_or_a_warning(
    name: str, model: Path, tmp_path: Path, readable: Readable
) -> None:
    tensors(model / SHARD, name, "x")
    tensors(model / "complex.safetensors", *(f"{name}{n}" for n in range(9)), dtype="C64")
    options = ("--to", "bf16", "--keep", "w*" if name is EVIL else "n*")
    readable("convert", model, tmp_path / "out", *options, "--dry-run", code=0)
    readable("convert", model, tmp_path / "out", *options, code=0)
    readable("inspect", model, code=0)
    readable("verify", model, tmp_path / "out", "--device", "cpu", code=0, says="passed")


@NAMES
def test_no_tensor_and_no_index_forges_a_line_of_what_verification_finds(
    name: str, model: Path, tmp_path: Path, readable: Readable
) -> None:
    out = tmp_path / "out"
    (model / INDEX).write_text(json.dumps({"weight_map": {"layer.weight": SHARD}}))
    recast.convert(model, out, to="bf16", sync=False)
    verify = ("verify", model, out, "--device", "cpu")
    for index in (
        {"weight_map": {f"{name}{number}": name for number in range(9)}},
        {"weight_map": {"layer.weight": SHARD}, "metadata": {"total_size": name}},
        {name: 1},
    ):
        (out / INDEX).write_text(json.dumps(index))
        readable(*verify, code=1, says=INDEX)
    tensors(out / SHARD, name)
    readable(*verify, code=1)
    readable(*verify, "--loader", "transformers", code=1)
    entry = {"dtype": "BF16", "shape": [1], "data_offsets": [2, 4]}
    (out / SHARD).write_bytes(raw_header({name: entry}) + bytes(4))
    readable(*verify, code=1)
    (out / "recast.json").write_text(json.dumps({"options": {"to": name}}))
    readable(*verify, code=1)
    tensors(model / SHARD, name)
    (model / INDEX).unlink()
    recast.convert(model, tmp_path / "wrong", to="bf16", sync=False)
    data = (tmp_path / "wrong" / SHARD).read_bytes()
    (tmp_path / "wrong" / SHARD).write_bytes(data[:-1] + b"\x7f")
    readable("verify", model, tmp_path / "wrong", "--device", "cpu", code=1)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".fp32.safetensors", ".txt", ""])
def test_no_file_forges_a_line(
    suffix: str, model: Path, tmp_path: Path, readable: Readable
) -> None:
    file = EVIL[:80] + suffix
    (model / file).write_bytes((model / SHARD).read_bytes())
    convert = ("convert", model, tmp_path / "out", "--to", "bf16")
    says = "" if suffix in (".safetensors", ".txt", "") else "w\\n"
    readable(*convert, "--verify", "cpu", code=0, says=says)
    readable("inspect", model, code=0, says="")
    (tmp_path / "out" / file).unlink(missing_ok=True)
    if suffix != ".bin":
        readable("verify", model, tmp_path / "out", "--device", "cpu", code=1)
        readable(*convert, code=73)
    (model / file).write_bytes(b"no header")
    if suffix.endswith(".safetensors"):
        readable("inspect", model, code=65)
        readable(*convert, "--overwrite", code=65)


def test_no_directory_forges_a_line(model: Path, tmp_path: Path, readable: Readable) -> None:
    source, dest = model.rename(tmp_path / EVIL[:100]), tmp_path / f"d{EVIL[:100]}"
    readable("convert", source, dest, "--to", "bf16", code=0)
    readable("inspect", source, code=0)
    readable("verify", source, dest, "--device", "cpu", code=0)
    readable("verify", source, dest / "x", "--device", "cpu", code=65)
    readable("inspect", tmp_path / EVIL[1:100], code=65, says="\\n")
    readable("convert", source, dest, "--to", "fp16", code=73)


def test_what_the_command_line_says_forges_no_line(model: Path, readable: Readable) -> None:
    for arguments in (
        ["inspect", model, EVIL],
        ["inspect", f"--{EVIL}"],
        ["bits", EVIL],
        ["convert", model, "out", "--to", EVIL],
        ["convert", model, "out", "--to", "bf16", "--keep", f"re:({EVIL}"],
        ["verify", model, model, "--device", EVIL],
    ):
        readable(*arguments, code=2)


def test_a_name_is_shown_alike_by_the_core_and_by_the_package(model: Path) -> None:
    for name, expected in {
        EVIL: None,
        LONG: None,
        PLAIN: PLAIN,
        "\x00\t\xa0\xad\u2029\U000e0001": "\\x00\\t\\xa0\\xad\\u2029\\U000e0001",
    }.items():
        options = Options(to="bf16")
        object.__setattr__(options, "to", name)
        with pytest.raises(recast.UsageError) as caught:
            Checkpoint.open(os.fspath(model)).plan(options)
        assert caught.value.message == f"'{shown(name)}' is not a dtype recast casts to"
        assert expected is None or shown(name) == plain(name) == expected
    assert plain("caf\udce9\udcff") == "caf\\xe9\\xff"


STRANGE = os.fsdecode(b"caf\xe9-\xff")
STREAMS: dict[str, Callable[[], dict[str, str]]] = {
    "utf-8": environment,
    "ascii": lambda: environment(PYTHONIOENCODING="ascii"),
    "strict": lambda: environment(PYTHONIOENCODING="utf-8:strict"),
    "the C locale": lambda: environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
}


@pytest.fixture
def strange(model: Path, tmp_path: Path) -> Path:
    """A model in a directory, and with files, whose names are not UTF-8."""
    (model / f"{STRANGE}.txt").write_text("kept")
    (model / f"{STRANGE}.fp32.safetensors").write_bytes((model / SHARD).read_bytes())
    return model.rename(tmp_path / f"in-{STRANGE}")


def test_a_name_that_is_not_utf_8_is_one_path_from_end_to_end(
    strange: Path, tmp_path: Path, run: Run
) -> None:
    dest = tmp_path / f"out-{STRANGE}"
    command = ("convert", strange, dest, "--to", "bf16", "--verify", "cpu")
    done = recast_here(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert stored(dest / f"{STRANGE}.fp32.safetensors")["layer.weight"][0] == "BF16"
    report = json.loads((dest / "recast.json").read_text())
    shards = {SHARD, spelled(f"{STRANGE}.fp32.safetensors")}
    assert {row["file"] for row in report["audit"]["tensors"]} == shards
    assert "already done" in run(*command, codes=(0,))
    verify = ("verify", strange, dest, "--device", "cpu")
    run(*verify, codes=(0,))
    # The config is too small for transformers to build a model from it.
    assert "describes a model of" in run(*verify, "--loader", "transformers", codes=(1,))
    found = json.loads(run(*verify, "--json", codes=(0,)))
    assert (found["source"], found["dest"]) == (spelled(strange), spelled(dest))
    (dest / f"{STRANGE}.txt").unlink()
    assert "error: caf\\xe9-\\xff.txt is missing" in run(*verify, codes=(1,))


def spelled(path: str | Path) -> str:
    """A path that is not UTF-8, as JSON has it: its bytes, in hexadecimal."""
    return "\0" + os.fsencode(path).hex()


def test_json_spells_a_name_that_is_not_utf_8_in_one_way(
    strange: Path, tmp_path: Path, run: Run
) -> None:
    dest = tmp_path / f"out-{STRANGE}"
    shard, text = spelled(f"{STRANGE}.fp32.safetensors"), spelled(f"{STRANGE}.txt")
    convert = ("convert", strange, dest, "--to", "bf16", "--json")
    planned = json.loads(run(*convert, "--dry-run"))
    assert {shard, text} <= {file["path"] for file in planned["planned_files"]}
    report = json.loads(run(*convert, "--verify", "cpu"))
    assert {shard, text} <= {file["path"] for file in report["published_files"]}
    assert report["verification"]["dest"] == report["dest"] == planned["dest"] == spelled(dest)
    listed = json.loads(run("inspect", strange, "--tensors", "--json"))
    assert {SHARD, shard} == {tensor["file"] for tensor in listed["tensor_list"]}
    assert listed["path"] == report["source"] == spelled(strange)
    (dest / f"{STRANGE}.txt").unlink()
    data = bytearray((dest / f"{STRANGE}.fp32.safetensors").read_bytes())
    data[-1] ^= 1
    (dest / f"{STRANGE}.fp32.safetensors").write_bytes(data)
    found = json.loads(run("verify", strange, dest, "--device", "cpu", "--json"))
    assert [problem["file"] for problem in found["problems"]] == [text]
    assert [mismatch["file"] for mismatch in found["mismatches"]] == [shard]
    assert recast.verify(strange, dest, device="cpu").to_dict()["dest"] == spelled(dest)
    checked = json.loads(run("verify", dest, "--json"))
    assert {problem["file"] for problem in checked["problems"]} == {shard, text}


@pytest.mark.parametrize("streams", STREAMS)
def test_a_name_that_is_not_utf_8_is_printed_to_any_stream(
    streams: str, strange: Path, tmp_path: Path
) -> None:
    command = ("convert", strange, tmp_path / f"out-{STRANGE}", "--to", "bf16")
    for arguments, code, says in (
        ([*command, "--dry-run"], 0, "caf\\xe9-\\xff.fp32.safetensors"),
        (command, 0, "out-caf\\xe9-\\xff in bf16"),
        (["inspect", strange, "--tensors"], 0, "caf\\xe9-\\xff.fp32.safetensors"),
        ([*command, "--keep", "layer*"], 73, "caf\\xe9-\\xff: contains the result of another"),
        (["inspect", strange / "x"], 65, "caf\\xe9-\\xff/x: no such file"),
        (["inspect", strange, STRANGE], 2, "caf\\xe9-\\xff"),
    ):
        done = recast_process(*arguments, env=STREAMS[streams]())
        assert done.returncode == code, done.stderr
        assert says in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
