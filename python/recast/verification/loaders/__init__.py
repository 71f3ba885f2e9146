"""Ways to load a result, by name. A new one is a file here, and its name and class below."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from recast.verification.header import Headers
from recast.verification.loaders.protocol import Loader, LoadError
from recast.verification.loaders.safetensors import Safetensors
from recast.verification.loaders.transformers import Transformers

LoaderName = Literal["safetensors", "transformers"]
LOADERS: dict[LoaderName, Callable[[Path, Headers, str], Loader]] = {
    "safetensors": Safetensors,
    "transformers": Transformers,
}

__all__ = ["LOADERS", "LoadError", "Loader", "LoaderName"]
