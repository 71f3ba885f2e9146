"""Names of files in JSON: spelled everywhere as in `recast.json`."""

import os
from collections.abc import Mapping
from typing import Any


def json_names(value: Any) -> Any:
    """`value` with each string that is not UTF-8, which only the name of a file can be, as U+0000
    and its bytes in hexadecimal."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "\0" + os.fsencode(value).hex()
    elif isinstance(value, Mapping):
        return {key: json_names(inner) for key, inner in value.items()}
    elif isinstance(value, list):
        return [json_names(inner) for inner in value]
    return value
