"""Every error names the file and the way out, has its exit code, and leaves nothing behind."""

import inspect
import json
import os
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import recast
import recast.errors
from recast import _core
from recast.options import OnOverflow
from support import (
    environment,
    fp32_bytes,
    raw_bytes,
    raw_header,
    recast_here,
    recast_process,
    tree,
)

SHARD = "model.safetensors"


@dataclass(frozen=True)
class Case:
    """How to spoil a good model, and what the error must then say."""

    name: str
    spoil: Callable[[Path], object]
    code: int
    exception: type[recast.RecastError]
    says: tuple[str, ...]
    source: str = "model"
    dest: str = "out"
    options: tuple[str, ...] = ("--to", "bf16")
    environment: dict[str, str] = field(default_factory=dict)


def header(entries: object, data: bytes = b"") -> Callable[[Path], object]:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return shard(len(text).to_bytes(8, "little") + text + data)


def shard(content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / "model" / SHARD).write_bytes(content)


def entry(start: int, end: int, *, dtype: str = "F32", shape: list[int] | None = None) -> object:
    shape = [(end - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def index(weight_map: object) -> Callable[[Path], object]:
    return text("shards.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def text(name: str, value: object) -> Callable[[Path], object]:
    content = value if isinstance(value, str) else json.dumps(value)
    return lambda root: (root / "model" / name).write_text(content)


def broken(name: str, spoil: Callable[[Path], object], *says: str) -> Case:
    return Case(name, spoil, 65, recast.HeaderError, (SHARD, *says))


def only_bin(root: Path) -> None:
    (root / "model" / SHARD).rename(root / "model" / "pytorch_model.bin")


def only_gguf(root: Path) -> None:
    (root / "model" / SHARD).rename(root / "model" / "model.gguf")


def occupied(root: Path) -> None:
    (root / "out").mkdir()
    (root / "out" / "notes.txt").write_text("mine")


def huge_values(root: Path) -> None:
    rows = [("big.weight", "F32", [2], struct.pack("<2f", 70000, 1))]
    (root / "model" / SHARD).write_bytes(raw_bytes(rows))


def quantized(root: Path) -> None:
    text("config.json", {"text_config": QUANTIZED_CONFIG})(root)
    rows = [("a.qweight", "I32", [1, 8], bytes(32)), ("a.scales", "F16", [1, 8], bytes(16))]
    (root / "model" / SHARD).write_bytes(raw_bytes(rows))


def lost_codes(root: Path) -> None:
    (root / "model" / SHARD).write_bytes(raw_bytes([("a.qzeros", "I32", [1, 1], bytes(4))]))


def directory_link(root: Path) -> None:
    (root / "elsewhere").mkdir()
    (root / "model" / "linked").symlink_to(root / "elsewhere")


GOOD = (json.dumps({"w": entry(0, 4)}).encode(), bytes(4))
TWICE = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
TWICE += b'"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
QUANTIZED_CONFIG = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
USAGE, INPUT, OUTPUT = recast.UsageError, recast.InputError, recast.OutputError
INDEX, QUANTIZED = recast.IndexFileError, recast.QuantizedError


def nothing(root: Path) -> None:
    """The model is good; the options are not."""


CASES = [
    Case("no such path", nothing, 65, INPUT, ("nowhere",), source="nowhere"),
    Case("no safetensors", lambda root: (root / "model" / SHARD).unlink(), 65, INPUT, ("model",)),
    Case("only other weights", only_gguf, 65, INPUT, ("model", "model.gguf")),
    Case("not a pickle", only_bin, 65, recast.PickleError, ("pytorch_model.bin", "torch.save")),
    Case("not empty", occupied, 73, OUTPUT, ("out", "empty")),
    Case("inside source", nothing, 73, OUTPUT, ("model/out", "inside"), dest="model/out"),
    Case("deep inside", nothing, 73, OUTPUT, ("inside",), dest="model/a/b/c"),
    Case("the source", nothing, 73, OUTPUT, ("model", "source"), dest="model"),
    Case("the source, roundabout", nothing, 73, OUTPUT, ("source",), dest="model/../model/."),
    Case(
        "the source by a link",
        lambda root: (root / "link").symlink_to(root / "model"),
        *(73, OUTPUT, ("link", "source")),
        dest="link",
    ),
    Case(
        "inside the source by a link",
        lambda root: (root / "link").symlink_to(root / "model"),
        *(73, OUTPUT, ("link/out", "inside")),
        dest="link/out",
    ),
    Case("a file", lambda root: (root / "out").write_text("x"), 73, OUTPUT, ("out", "directory")),
    Case("a file's name", nothing, 2, USAGE, ("out.safetensors",), dest="out.safetensors"),
    Case("missing shard", index({"w": "gone.safetensors"}), 65, INDEX, ("index", "gone", "'w'")),
    Case("missing tensor", index({"absent": SHARD}), 65, INDEX, ("index", SHARD, "'absent'")),
    Case("parent path", index({"w": "../x.safetensors"}), 65, INDEX, ("'w'", "../x.safetensors")),
    Case("absolute path", index({"w": "/etc/passwd"}), 65, INDEX, ("index", "'w'", "/etc/passwd")),
    Case("no weight map", text("m.safetensors.index.json", {}), 65, INPUT, ("m.safetens", "map")),
    Case("index not JSON", text("m.safetensors.index.json", "{"), 65, INPUT, ("m.safet", "JSON")),
    Case("config not JSON", text("config.json", "{]"), 65, INPUT, ("config.json", "JSON")),
    Case("quantized", quantized, 65, QUANTIZED, (SHARD, "GPTQ", "'gptq'", "a.qweight")),
    Case("scales without codes", lost_codes, 65, QUANTIZED, (SHARD, "codes", "a.qzeros")),
    Case("link to a directory", directory_link, 65, INPUT, ("linked", "link to a directory")),
    Case("pipe", lambda root: os.mkfifo(root / "model" / "pipe"), 65, INPUT, ("pipe", "special")),
    Case(
        "pipe for a shard",
        lambda root: os.mkfifo(root / "model" / "x.safetensors"),
        *(65, INPUT, ("x.safetensors", "special")),
    ),
    Case(
        "overflow",
        huge_values,
        1,
        recast.CastOverflowError,
        (SHARD, "big.weight", "--keep"),
        options=("--to", "fp16"),
    ),
    Case(
        "unmatched keep",
        nothing,
        2,
        USAGE,
        ("layer.wieght", "layer.weight"),
        options=("--to", "bf16", "--keep", "layer.wieght"),
    ),
    Case("bad glob", nothing, 2, USAGE, ("--keep", "["), options=("--to", "bf16", "--keep", "[")),
    Case("bad regex", nothing, 2, USAGE, ("re:(",), options=("--to", "bf16", "--keep", "re:(")),
    Case("bad dtype", nothing, 2, USAGE, ("fp7", "bf16"), options=("--to", "fp7")),
    Case(
        "unknown SIMD",
        nothing,
        2,
        USAGE,
        ("RECAST_SIMD", "mmx", "portable"),
        environment={"RECAST_SIMD": "mmx"},
    ),
    broken("empty file", shard(b""), "0 bytes"),
    broken("short file", shard(b"\x01\x02\x03"), "3 bytes"),
    broken("length beyond the file", shard((999).to_bytes(8, "little") + b"{}"), "999"),
    broken("length over the limit", shard(b"\xff" * 8 + b"{}"), "limit"),
    broken("length just over", shard((100_000_001).to_bytes(8, "little") + b"{}"), "limit"),
    broken("not JSON", header(b"{nope}"), "JSON"),
    broken("an array", header([]), "JSON"),
    broken("empty header", header(b""), "JSON"),
    broken("not UTF-8", header(b'{"\xff\xfe": 1}'), "UTF-8"),
    broken("overlap", header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "'b'", "overlap"),
    broken("hole", header({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "'b'", "hole"),
    broken("hole at the start", header({"a": entry(4, 8)}, bytes(8)), "'a'", "hole"),
    broken("trailing bytes", header({"a": entry(0, 4)}, bytes(5)), "bytes after"),
    broken("cut short", header({"a": entry(0, 4)}, bytes(3)), "cut short"),
    broken("wrong size", header({"a": entry(0, 4, shape=[2])}, bytes(4)), "'a'", "8 bytes"),
    broken("backwards", header({"a": entry(4, 0, shape=[1])}, bytes(4)), "'a'"),
    broken("duplicate", header(TWICE, bytes(8)), "'w'", "duplicate"),
    broken("huge shape", header({"a": entry(0, 4, shape=[1 << 40] * 3)}, bytes(4)), "'a'", "over"),
    broken("huge size", header({"a": entry(0, 4, shape=[1 << 60])}, bytes(4)), "'a'", "over"),
    broken("negative shape", header({"a": entry(0, 4, shape=[-1])}, bytes(4)), "JSON"),
    broken("half a byte", header({"a": entry(0, 2, dtype="F4", shape=[3])}, bytes(2)), "'a'"),
    broken("no dtype", header({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "dtype"),
    broken("metadata not text", header({"__metadata__": {"a": 1}}), "JSON"),
    broken("nested too deep", header(b'{"a":' * 9999 + b"}" * 9999), "JSON"),
]


@pytest.fixture
def root(model: Path, tmp_path: Path) -> Path:
    assert model == tmp_path / "model"
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_error_says_what_and_where_and_the_way_out_and_leaves_nothing(
    case: Case, root: Path
) -> None:
    case.spoil(root)
    before = tree(root)
    # The core looks at its variable once in a process.
    start = recast_process if case.environment else recast_here
    result = start(
        *("convert", case.source, case.dest, *case.options),
        cwd=root,
        env=environment(**case.environment),
    )
    assert result.returncode == case.code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    for words in case.says:
        assert words in result.stderr
    hints = [line for line in result.stderr.splitlines() if line.startswith("hint: ")]
    assert len(hints) == 1
    assert len(hints[0]) > len("hint: ")
    assert tree(root) == before


API_CASES = [case for case in CASES if not case.environment]


@pytest.mark.parametrize("case", API_CASES, ids=lambda case: case.name)
def test_the_api_raises_the_exception_the_tree_promises(
    case: Case, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.spoil(root)
    before = tree(root)
    monkeypatch.chdir(root)
    options: dict[str, Any] = dict(zip(case.options[::2], case.options[1::2], strict=True))
    keep = [options["--keep"]] if "--keep" in options else []
    with pytest.raises(recast.RecastError) as caught:
        recast.convert(case.source, case.dest, to=options["--to"], keep=keep)
    assert type(caught.value) is case.exception
    assert caught.value.exit_code == case.code
    assert caught.value.hint
    assert f"hint: {caught.value.hint}" in str(caught.value)
    assert tree(root) == before


def test_the_cases_are_broken_by_what_they_say_and_nothing_else(root: Path) -> None:
    (root / "model" / SHARD).write_bytes(raw_header({"w": entry(0, 4)}) + bytes(4))
    recast.convert(root / "model", root / "out", to="bf16")


def test_only_a_shard_is_opened_so_a_pipe_elsewhere_never_blocks(root: Path) -> None:
    os.mkfifo(root / "alone.safetensors")
    result = recast_here("inspect", root / "alone.safetensors")
    assert result.returncode == 65


def test_a_git_lfs_pointer_is_named_and_the_hint_fetches_the_weights(root: Path) -> None:
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4976698672\n"
    )
    (root / "model" / SHARD).write_text(pointer)
    with pytest.raises(recast.HeaderError) as caught:
        recast.convert(root / "model", root / "out", to="bf16")
    assert f"{SHARD}: is a Git LFS pointer" in caught.value.message
    assert "git lfs pull" in str(caught.value.hint)
    assert "hf download" in str(caught.value.hint)


def test_a_control_character_in_a_name_does_not_reach_the_terminal(root: Path) -> None:
    name = "evil\x1b[31m\r"
    entries = {name: entry(0, 4, shape=[2])}
    (root / "model" / SHARD).write_bytes(raw_header(entries) + bytes(4))
    result = recast_here("convert", root / "model", root / "out", "--to", "bf16")
    assert result.returncode == 65
    assert "\x1b" not in result.stderr
    assert "evil" in result.stderr


def test_an_overflow_names_the_worst_tensors_and_the_ways_out(root: Path) -> None:
    rows = [(f"t{n}", "F32", [9], struct.pack("<9f", *[1e6] * n, *[0] * (9 - n))) for n in range(9)]
    (root / "model" / SHARD).write_bytes(raw_bytes(rows))
    with pytest.raises(recast.CastOverflowError) as caught:
        recast.convert(root / "model", root / "out", to="fp16")
    assert "36 finite values in 8 tensors" in caught.value.message
    assert "t8 in model.safetensors: 8 of 9 values" in caught.value.message
    assert not (root / "out").exists()
    limits: dict[OnOverflow, float] = {"inf": float("inf"), "saturate": 65504.0}
    for policy, largest in limits.items():
        recast.convert(root / "model", root / policy, to="fp16", on_overflow=policy)
        data = (root / policy / SHARD).read_bytes()
        assert struct.unpack("<e", data[-2 * 9 : -2 * 9 + 2])[0] == largest


def test_a_full_disk_is_an_output_that_cannot_be_created(root: Path) -> None:
    """A file-size limit is the nearest thing to a full disk that needs no privilege."""
    import resource
    import signal

    rows = [("w", "F32", [100_000], fp32_bytes(100_000))]
    (root / "model" / SHARD).write_bytes(raw_bytes(rows))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    command = ("convert", root / "model", root / "out", "--to", "bf16")
    result = recast_process(*command, preexec_fn=limit)
    assert result.returncode in (73, 74), result.stderr
    assert SHARD in result.stderr
    assert not (root / "out" / "config.json").exists()
    assert not (root / "out").exists() or "the same command continues" in result.stderr
    assert recast_process(*command).returncode == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_destination_without_permission_is_named(root: Path) -> None:
    (root / "locked").mkdir(mode=0o500)
    result = recast_here("convert", root / "model", root / "locked" / "out", "--to", "bf16")
    assert result.returncode in (73, 74)
    assert "locked" in result.stderr


def test_every_exception_is_a_recast_error_with_an_exit_code_and_survives_pickling() -> None:
    classes = [
        value
        for value in vars(recast.errors).values()
        if inspect.isclass(value) and issubclass(value, BaseException)
    ]
    assert len(classes) > 5
    for exception in classes:
        assert issubclass(exception, recast.RecastError)
        assert exception.exit_code in (1, 2, 65, 73, 74)
        assert exception.__doc__
        assert getattr(recast, exception.__name__) is exception
        again = pickle.loads(pickle.dumps(exception("what", "way out")))
        assert (type(again), again.message, again.hint) == (exception, "what", "way out")
    assert issubclass(recast.UsageError, ValueError)


def test_every_class_the_core_names_is_an_exception_of_recast() -> None:
    kinds = {kind for kind, _, _ in _core.messages()} - {"warning", "finding", "note"}
    assert len(kinds) > 5
    for kind in kinds:
        assert issubclass(getattr(recast.errors, kind), recast.RecastError)


def test_the_tree_in_the_documentation_is_the_tree_there_is() -> None:
    assert recast.errors.__doc__
    drawn = set(re.findall(r"(\w+Error)\b", recast.errors.__doc__)) - {"ValueError"}
    assert drawn == {name for name in vars(recast.errors) if name.endswith("Error")}
