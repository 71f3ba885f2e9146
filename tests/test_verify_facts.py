"""What `recast.verify` checks where `recast.json` says what was asked for."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recast
from support import fp32_bytes, header_of, raw_bytes, stored
from test_verify import BLOCK, SHARD, Plant, check, edited, result, source

__all__ = ["result", "source"]


def reported(change: Callable[[dict[str, Any]], object]) -> Plant:
    """Changes what the report says."""

    def plant(out: Path) -> None:
        report = json.loads((out / "recast.json").read_text())
        change(report)
        (out / "recast.json").write_text(json.dumps(report))

    return plant


def rewritten(**metadata: str) -> Plant:
    def plant(out: Path) -> None:
        rows = [(name, *row) for name, row in stored(out / SHARD).items()]
        (out / SHARD).write_bytes(raw_bytes(rows, metadata, pad_to=8))

    return plant


def audit_of(report: dict[str, Any], tensor: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = report["audit"]["tensors"]
    return next(row for row in rows if row["name"] == tensor)


OF_REPORTED: dict[str, tuple[Plant, str]] = {
    "changed metadata": (
        rewritten(format="np"),
        f"{SHARD} states format = np in its metadata, expected pt",
    ),
    "added metadata": (
        rewritten(format="pt", license="mine"),
        f"{SHARD} states license = mine in its metadata, expected nothing",
    ),
    "a header with spaces": (
        lambda out: (out / SHARD).write_bytes(
            raw_bytes(
                [(name, *row) for name, row in stored(out / SHARD).items()],
                {"format": "pt"},
                pad_to=64,
            )
        ),
        f"{SHARD} has ",
    ),
    "another number in a config": (
        edited("config.json", '"layers": 2', '"layers": 3'),
        "config.json states layers = 3, the source states 2",
    ),
    "another number deeper in a config": (
        edited("config.json", "[1, 2.5]", "[1, 2.25]"),
        "config.json states text_config.sizes[1] = 2.25, the source states 2.5",
    ),
    "a key more in a config": (
        edited("config.json", '{"model_type"', '{"auto_map": {"AutoModel": "x"}, "model_type"'),
        'config.json states auto_map.AutoModel = "x", the source states nothing',
    ),
    "other metadata of an index": (
        edited(f"{SHARD}.index.json", '"made_by": "x"', '"made_by": "y"'),
        f'{SHARD}.index.json states metadata.made_by = "y", the source states "x"',
    ),
    "an added file": (
        lambda out: (out / "modeling.py").write_text(""),
        "modeling.py is unexpected: the source has no such file",
    ),
    "a report with another target": (
        reported(lambda report: report["options"].update(to="fp16")),
        "recast.json is the report on another conversion",
    ),
    "a report without what was kept": (
        reported(lambda report: report["options"].update(keep=[])),
        "'keep' in model.safetensors is F32, expected BF16",
    ),
    "a report with more that was kept": (
        reported(lambda report: report["options"].update(keep=["keep", "special"])),
        "'special' in model.safetensors is BF16, expected F32",
    ),
    "a report of another run": (
        reported(lambda report: report.update(run="0" * 32)),
        "recast.json is the report on another conversion: not of this source with the options",
    ),
    "a report with another number of values": (
        reported(lambda report: report.update(parameters=5)),
        f"recast.json states parameters = 5, expected {15 * BLOCK + 13:,}",
    ),
    "a report with another number of tensors": (
        reported(lambda report: report["tensors"].update(cast=4)),
        "recast.json states tensors.cast = 4, expected 5",
    ),
    "a report that hides what was kept": (
        reported(lambda report: report.update(kept=[])),
        "recast.json states kept = [], expected ['keep']",
    ),
    "a report of a larger source": (
        reported(lambda report: report.update(bytes_read=5)),
        "recast.json states bytes_read = 5, expected ",
    ),
    "a report that hides rounding": (
        reported(lambda report: audit_of(report, "a").update(exact=True)),
        "recast.json states audit.tensors, a, exact = True, expected False",
    ),
    "a report that hides how much was rounded": (
        reported(lambda report: report["audit"].update(inexact_tensors=0)),
        "recast.json states audit.inexact_tensors = 0, expected 4",
    ),
    "a report with another size": (
        reported(lambda report: report.update(bytes_written=5)),
        "recast.json states bytes_written = 5, expected ",
    ),
    "a report with another size of a file": (
        reported(lambda report: report["published_files"][0].update(bytes=5)),
        f"recast.json states published_files, {SHARD} = 5, expected ",
    ),
    "a report that lacks a file": (
        reported(lambda report: report["published_files"].pop(0)),
        f"recast.json does not state published_files, {SHARD}, expected ",
    ),
    "a report that lacks a tensor": (
        reported(lambda report: report["audit"]["tensors"].pop(0)),
        "recast.json does not state audit.tensors, ",
    ),
    "a report that hides NaN": (
        reported(lambda report: audit_of(report, "special").update(nan=0)),
        "recast.json states audit.tensors, special, nan = 0, expected 2",
    ),
    "a report that hides what became zero": (
        reported(lambda report: audit_of(report, "special").update(to_zero=7)),
        "recast.json states audit.tensors, special, to_zero = 7, expected 1",
    ),
    "a report with another largest value": (
        reported(lambda report: audit_of(report, "scalar").update(max_abs=3.0)),
        "recast.json states audit.tensors, scalar, max_abs = 3.0, expected 3.14",
    ),
    "a report with another sum": (
        reported(lambda report: report["audit"].update(nan=3)),
        "recast.json states audit.nan = 3, expected 2",
    ),
    "a report with a row whose name is a list": (
        reported(lambda report: audit_of(report, "a").update(name=["a"])),
        "recast.json does not state audit.tensors, a",
    ),
    "a report with a row of no tensor": (
        reported(
            lambda report: report["audit"]["tensors"].append({"file": SHARD, "name": "ghost"})
        ),
        "recast.json states audit.tensors, ghost = a tensor that was cast, expected nothing",
    ),
    "a report that says that an added file has a source": (
        lambda out: (
            (out / "SHA256SUMS").write_text(""),
            reported(
                lambda report: report["published_files"].append(
                    {"path": "SHA256SUMS", "bytes": 1, "source": True}
                )
            )(out),
        ),
        "recast.json states published_files, SHA256SUMS = 1, expected 0",
    ),
    "a report with another source of a file": (
        reported(lambda report: report["published_files"][0]["source"].update(path="x")),
        f"recast.json states published_files, {SHARD}, source.path = x, expected {SHARD}",
    ),
    "a report with another size of a source": (
        reported(lambda report: report["published_files"][0]["source"].update(bytes=5)),
        f"recast.json states published_files, {SHARD}, source.bytes = 5, expected ",
    ),
    "a report on a file that is not there": (
        reported(lambda report: report["published_files"].append({"path": "x", "bytes": 5})),
        "recast.json states published_files, x = 5, expected nothing",
    ),
    "a report with another number of tensors that were kept": (
        reported(lambda report: report["tensors"].update(kept=2)),
        "recast.json states tensors.kept = 2, expected 1",
    ),
    "a report with a truth for a number": (
        reported(lambda report: report["tensors"].update(kept=True)),
        "recast.json states tensors.kept = True, expected 1",
    ),
    "a report with another number of tensors that were copied": (
        reported(lambda report: report["tensors"].update(copied=9)),
        "recast.json states tensors.copied = 9, expected ",
    ),
}


@pytest.mark.parametrize("fault", OF_REPORTED)
def test_what_is_known_from_the_report_is_checked_too(
    fault: str, source: Path, result: Path
) -> None:
    plant, says = OF_REPORTED[fault]
    plant(result)
    found = check(source, result, full=True)
    assert any(says in failure for failure in found.failures()), found.failures()


@pytest.mark.parametrize("names", ["ab", "ba"])
@pytest.mark.parametrize("to", ["fp32", "as-stored"])
def test_a_hash_goes_where_the_tensors_come_in_another_order(
    names: str, to: Any, tmp_path: Path
) -> None:
    before, out = tmp_path / "before", tmp_path / "out"
    before.mkdir()
    rows = [(name, "F32", [2], fp32_bytes(2, seed)) for seed, name in enumerate(names)]
    hashes = {"sshs_legacy_hash": "12345678", "sshs_model_hash": "none"}
    (before / SHARD).write_bytes(raw_bytes(rows, hashes, pad_to=8))
    recast.convert(before, out, to=to)
    assert ("sshs_legacy_hash" in metadata_of(out)) == (names == "ab")
    found = check(before, out, full=True)
    assert found.passed, found.failures()


def metadata_of(out: Path) -> dict[str, str]:
    found: dict[str, str] = header_of(out / SHARD)["__metadata__"]
    return found


def test_a_pattern_of_folders_goes_past_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    before, out = tmp_path / "before", tmp_path / "out"
    for folder in (b"vae", b"v\xe4"):
        path = before / os.fsdecode(folder)
        path.mkdir(parents=True)
        (path / SHARD).write_bytes(raw_bytes([("a", "F32", [2], fp32_bytes(2))], pad_to=8))
    recast.convert(before, out, to="bf16", keep=["vae/*", "re:^v\ufffd/none|^vae"])
    found = check(before, out, full=True)
    assert found.passed, found.failures()


def with_config(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / SHARD).write_bytes(raw_bytes([("a", "F32", [2], fp32_bytes(2))], pad_to=8))
    (folder / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        '[{"quantization_config": {"quant_method": "x"}}, {"dtype": "float32"}]',
        '{"a": [{"quantization_config": 1, "b": 2}], "dtype": "float32"}',
        '{"dtype": {"a": "float32", "transformers.js_config": "float32", "b": {"c": "float32"}}}',
        '{"transformers.js_config": {"dtype": "float32"}, "dtype": ["float32", ["float32"]]}',
    ],
)
@pytest.mark.parametrize("to", ["bf16", "fp32", "as-stored"])
def test_what_a_conversion_changes_in_lists_and_in_objects_is_expected(
    text: str, to: Any, tmp_path: Path
) -> None:
    before = with_config(tmp_path / "before", text)
    recast.convert(before, tmp_path / "out", to=to)
    found = check(before, tmp_path / "out", full=True)
    assert found.passed, found.failures()


@pytest.mark.parametrize(
    "hostile",
    [
        f'{{"{"k" * 1_000_000}": [{"1, " * 100_000}1]}}',
        "[" * 480 + "1, " * 100_000 + "1" + "]" * 480,
        f'{{"dtype": [{"0, " * 100_000}0]}}',
    ],
    ids=["a long key", "deep", "dtypes"],
)
def test_a_config_with_a_hundred_thousand_faults_is_no_burden(hostile: str, tmp_path: Path) -> None:
    before = with_config(tmp_path / "before", '{"a": 1}')
    recast.convert(before, tmp_path / "out", to="bf16")
    (tmp_path / "out" / "config.json").write_text(hostile)
    found = check(before, tmp_path / "out")
    assert len(found.failures()) == 21
    assert found.failures()[-1].startswith("config.json: ")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (('"other": 1', '"other": 2'), "states other = 2, the source states 1"),
        (('"float16"', '"int8"'), 'states metadata.dtype = "int8", the source states "float32"'),
        (
            (', "dtype": "float16"', ""),
            'does not state metadata.dtype, the source states "float32"',
        ),
        (('"weight_map": {', '"weight_map": [["a", 1]], "x": {'), "is not an index: TypeError"),
    ],
)
def test_an_index_states_nothing_else(edit: tuple[str, str], says: str, tmp_path: Path) -> None:
    before, out = with_config(tmp_path / "before", "{}"), tmp_path / "out"
    index = {"metadata": {"total_size": 8, "dtype": "float32"}, "weight_map": {"a": SHARD}}
    (before / f"{SHARD}.index.json").write_text(json.dumps({**index, "other": 1}))
    recast.convert(before, out, to="fp16")
    edited(f"{SHARD}.index.json", *edit)(out)
    (failure, *_) = check(before, out).failures()
    assert says in failure


@pytest.mark.parametrize("metadata", ["null", '"text"', "[1]", "3"])
def test_metadata_of_an_index_that_are_no_object_are_replaced(
    metadata: str, tmp_path: Path
) -> None:
    before, out = with_config(tmp_path / "before", "{}"), tmp_path / "out"
    text = f'{{"metadata": {metadata}, "weight_map": {{"a": "{SHARD}"}}}}'
    (before / f"{SHARD}.index.json").write_text(text)
    recast.convert(before, out, to="fp16")
    found = check(before, out)
    assert found.passed, found.failures()


@pytest.mark.parametrize(
    "name",
    ["params.json", "sentence_config.json", "optimizer\u00e9.safetensors", "x.p\u212al"],
)
def test_a_file_is_what_its_name_says(name: str, tmp_path: Path) -> None:
    before, out = with_config(tmp_path / "before", '{"dtype": "TORCH.float32"}'), tmp_path / "out"
    text = b'[{"dtype": "float32"}]'
    shard = raw_bytes([("b", "F32", [2], fp32_bytes(2))], pad_to=8)
    (before / name).write_bytes(shard if name.endswith(".safetensors") else text)
    recast.convert(before, out, to="bf16", sha256=True)
    found = check(before, out, full=True)
    assert found.passed, found.failures()


@pytest.mark.parametrize("report", [True, False])
def test_a_config_states_the_codes_that_are_carried(report: bool, tmp_path: Path) -> None:
    before, out = with_config(tmp_path / "before", '{"dtype": "float8_e4m3fn"}'), tmp_path / "out"
    rows = [("a", "F8_E4M3", [4], b"0123"), ("b", "F32", [2], fp32_bytes(2))]
    (before / SHARD).write_bytes(raw_bytes(rows, pad_to=8))
    recast.convert(before, out, to="bf16", skip_quantized=True)
    if not report:
        (out / "recast.json").unlink()
    found = check(before, out, full=True)
    assert found.passed, found.failures()


def test_a_report_with_an_endless_pattern_is_not_followed(source: Path, result: Path) -> None:
    reported(lambda report: report["options"].update(keep=["*" * 100_000]))(result)
    (problem, *_) = check(source, result).problems
    assert "it has a pattern of --keep of more than 4,096 characters" in problem.message
