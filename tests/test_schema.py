"""docs/schema/ says what `--json` prints: every key of it, and no other."""

import contextlib
import copy
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints, is_typeddict

import pytest
from conftest import Run
from jsonschema import Draft202012Validator
from recast.report import VerificationDict
from referencing import Registry, Resource
from support import raw_bytes

ROOT = Path(__file__).parents[1]
SCHEMAS = {
    path.name: json.loads(path.read_text()) for path in (ROOT / "docs" / "schema").glob("*.json")
}
REGISTRY: Registry[Any] = Registry().with_resources(
    [(name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items()]
)
CONVERT = "convert model out --to fp16"
# What each schema describes: commands, of which the last one prints it.
OUTPUTS = {
    "convert.json": [
        [f"{CONVERT} --on-overflow inf --keep small --verify cpu"],
        [f"{CONVERT} --on-overflow inf --sha256"],
        [f"{CONVERT} --on-overflow inf", f"{CONVERT} --on-overflow inf"],
    ],
    "convert-dry-run.json": [
        [f"{CONVERT} --keep small --dry-run"],
        ["convert model out --to fp32 --dry-run"],
    ],
    "inspect.json": [["inspect model"], ["inspect quantized"]],
    "inspect-tensors.json": [["inspect model --tensors"]],
    "verify-published.json": [
        ["convert model out --to bf16 --quiet", "damage", "verify out"],
        ["convert model out --to bf16 --sha256", "verify out"],
    ],
    "verify.json": [
        ["convert model out --to bf16", "verify other out --device cpu --full"],
        ["convert model out --to bf16", "verify model out --device cpu"],
    ],
    "bits.json": [
        ["bits 3.14"],
        ["bits nan"],
        ["bits 0x8000 --from fp16"],
        ["bits 1e39 --to fp16"],
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, values in {"model": [1.0, 65520.0, 1e-30], "other": [1.0, 2.0, 3.0]}.items():
        (tmp_path / name).mkdir()
        rows = [("w", "F32", [3], struct.pack("<3f", *values)), ("small", "F32", [1], bytes(4))]
        rows += [("count", "I64", [], bytes(8))]
        (tmp_path / name / "model.safetensors").write_bytes(raw_bytes(rows))
    quantized = [("w.qweight", "I32", [1], bytes(4)), ("w.qzeros", "I32", [1], bytes(4))]
    quantized += [("w.scales", "F16", [1], bytes(2))]
    (tmp_path / "quantized").mkdir()
    (tmp_path / "quantized" / "model.safetensors").write_bytes(raw_bytes(quantized))
    (tmp_path / "quantized" / "config.json").write_text(
        '{"quantization_config": {"quant_method": "gptq"}}'
    )
    return tmp_path


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": name}, registry=REGISTRY)


def printed(session: list[str], folder: Path, run: Run) -> dict[str, Any]:
    with contextlib.chdir(folder):
        for command in session:
            if command == "damage":
                (folder / "out" / "model.safetensors").write_bytes(b"")
                continue
            result = run(*command.split(), "--json")
    parsed: dict[str, Any]
    # Nothing but the object, unless an error follows.
    parsed, end = json.JSONDecoder().raw_decode(result)
    assert result[end:].strip() == "" or result[end:].lstrip().startswith("error: ")
    return parsed


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value whose keys are names, not data."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from objects(part)
    elif isinstance(value, list):
        for part in value:
            yield from objects(part)


def test_every_schema_is_one_and_is_of_some_output() -> None:
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)
    assert set(SCHEMAS) == {"common.json", "recast.json", *OUTPUTS}


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_is_printed_fits_its_schema(name: str, folder: Path, run: Run) -> None:
    for session in OUTPUTS[name]:
        found = printed(session, folder, run)
        validator(name).validate(found)
        if (folder / "out").exists():
            (folder / "out").rename(folder / f"out-{len(list(folder.iterdir()))}")


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_key_more_or_less_does_not_fit(name: str, folder: Path, run: Run) -> None:
    found = printed(OUTPUTS[name][0], folder, run)
    check = validator(name)
    for number, place in enumerate(objects(found)):
        for key in [*place, "undocumented"]:
            changed = copy.deepcopy(found)
            there = list(objects(changed))[number]
            if key in there:
                del there[key]
            else:
                there[key] = "x"
            # A checkpoint may lack a dtype, and `bits --to` a format.
            if not (place is found.get("dtypes") or place is found.get("formats")):
                assert not check.is_valid(changed), (key, there)
            elif key == "undocumented":
                assert not check.is_valid(changed)


def test_the_report_in_the_result_fits_its_schema(folder: Path, run: Run) -> None:
    once, again = (printed([f"{CONVERT} --on-overflow inf"], folder, run) for _ in range(2))
    report = json.loads((folder / "out" / "recast.json").read_text())
    validator("recast.json").validate(report)
    for found in (once, again):
        assert {key: found[key] for key in report} == report
        assert not validator("recast.json").is_valid(found)
    differing = {key for key in once if once[key] != again[key]}
    assert {"already_done", "compared"} <= differing <= {"already_done", "compared", "seconds"}


def keys(kind: Any) -> Any:
    """The keys of a `TypedDict`, each with those of its own value; nothing for any other type."""
    if is_typeddict(kind):
        return {name: keys(inner) for name, inner in get_type_hints(kind).items()}
    return next(filter(None, map(keys, get_args(kind))), {})


def properties(schema: dict[str, Any], file: str) -> Any:
    """The same of a schema in `file`."""
    if "properties" in schema:
        return {name: properties(inner, file) for name, inner in schema["properties"].items()}
    if "$ref" in schema:
        other, _, name = schema["$ref"].partition("#/$defs/")
        return properties(SCHEMAS[other or file]["$defs"][name], other or file)
    inside = [*schema.get("anyOf", []), schema.get("items", {})]
    return next(filter(None, (properties(inner, file) for inner in inside if inner)), {})


def test_a_type_checker_knows_the_keys_of_a_verification() -> None:
    assert keys(VerificationDict) == properties(SCHEMAS["verify.json"], "verify.json")


def test_every_schema_is_named_where_its_command_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name in SCHEMAS.keys() - {"common.json"}:
        assert f"](schema/{name})" in text, name


def test_no_schema_allows_what_it_does_not_name() -> None:
    for name, schema in SCHEMAS.items():
        for place in objects(schema):
            if place.get("type") == "object":
                assert "additionalProperties" in place, (name, place)
                assert place["additionalProperties"] is not True
