"""JSON as recast prints it, and the version of its objects."""

import json
from collections.abc import Mapping
from typing import Any

from recast.names import json_names

SCHEMA_VERSION = 1
_encode_utf8 = json.JSONEncoder(allow_nan=False).encode


def json_text(value: Mapping[str, Any]) -> str:
    """`value` as indented JSON, the version first; NaN and infinity, which it lacks, are errors."""
    return _indented({"schema_version": SCHEMA_VERSION, **value}, "\n") + "\n"


def encode(value: Any) -> str:
    """`value` as JSON on one line, ASCII only."""
    text = _encode_utf8(value)
    # The sign of a string that is not UTF-8, or of a character that JSON writes as a pair.
    return _encode_utf8(json_names(value)) if "\\udc" in text else text


def _indented(value: Any, newline: str) -> str:
    """Each item of a list gets a line: of tensors there may be very many."""
    inner = newline + "  "
    if isinstance(value, Mapping) and value:
        members = (f"{inner}{encode(key)}: {_indented(value[key], inner)}" for key in value)
        return f"{{{','.join(members)}{newline}}}"
    if isinstance(value, list) and value:
        return f"[{','.join(inner + encode(item) for item in value)}{newline}]"
    return encode(value)


def picked(thing: object, *names: str) -> dict[str, Any]:
    """Some attributes of an object of the core."""
    return {name: getattr(thing, name) for name in names}
