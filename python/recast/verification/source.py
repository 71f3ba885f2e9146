"""The source of a result, as verification sees it: its files by kind, and what is in them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from recast.errors import InputError
from recast.terminal import shown
from recast.verification import filenames, quantized, state
from recast.verification.dequantized import Dequantized
from recast.verification.files import MAX_CONFIG, MAX_INDEX, is_index, open_regular, read_json, walk
from recast.verification.header import Headers, Key, read_header, read_metadata
from recast.verification.labels import SIDECARS, Labels, read_labels
from recast.verification.pickles import Found, Pickles

STARTS = (b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc", b"\x80\x03\x8a\x0al\xfc")
"""How torch starts a file: a zip archive, or, before torch 1.6, a pickle of its magic number."""

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A source at `path`, a directory or a file; `key` is that of the state dict in its pickles.

    Files are named by their paths below the root, and those that hold tensors, and indexes, by
    those that their results have. Everything raises `InputError` where the source has changed since
    it was opened.
    """

    path: Path
    key: str | None

    @cached_property
    def root(self) -> Path:
        """The directory."""
        return self.path.parent if self.is_file else self.path

    @cached_property
    def is_file(self) -> bool:
        """Whether it is a single file."""
        return self.path.is_file()

    @cached_property
    def _files(self) -> list[str]:
        if self.is_file:
            return [self.path.name]
        found = self._read(lambda: list(walk(self.root)))
        return [file for file in found if file not in filenames.DESCRIBING]

    @cached_property
    def _pickles(self) -> set[str]:
        """Those that are pickles of weights."""
        if self.is_file:
            return {file for file in self._files if not filenames.is_shard(file)}
        return filenames.pickles(self._files, self._is_torch)

    def _is_torch(self, file: str) -> bool:
        with open_regular(self.root / file) as opened:
            return opened.read(8).startswith(STARTS)

    @cached_property
    def shards(self) -> dict[str, str]:
        """The files that hold tensors, by those that are made of them."""
        shards = {file: file for file in self._files if filenames.is_shard(file)}
        return shards | {filenames.result_of(file): file for file in self._pickles}

    @cached_property
    def indexes(self) -> dict[str, str]:
        """The same of the indexes of files that are there."""
        pickled = {os.path.dirname(file) for file in self._pickles}
        found = {}
        for file in self._files:
            folder = os.path.dirname(file)
            if is_index(file) and folder not in pickled:
                found[file] = file
            elif filenames.is_pickle_index(file) and folder in pickled:
                found[filenames.result_of(file)] = file
        return {made: file for made, file in found.items() if not self._is_stale(file)}

    def _is_stale(self, file: str) -> bool:
        """Whether an index is that of an earlier save: of a model that is in one file now."""
        folder, name = os.path.split(file)
        single = os.path.join(folder, "model.safetensors")
        if single not in self.shards or not name.startswith(("model.", "pytorch_model.")):
            return False
        shards = {
            os.path.normpath(os.path.join(folder, str(to))) for to in self._map(file).values()
        }
        return not shards <= set(self.shards.values())

    def _map(self, file: str) -> dict[str, Any]:
        return self._read(lambda: dict(self._json(file, MAX_INDEX)["weight_map"]))

    @cached_property
    def settings(self) -> set[str]:
        """The files that may state dtypes: configs, and what is like one."""
        named = {file for file in self._files if filenames.is_settings(file)}
        return {file for file in named if file.endswith("config.json") or self._is_json(file)}

    def _is_json(self, file: str) -> bool:
        try:
            read_json(self.root / file, MAX_CONFIG)
        except (OSError, ValueError, RecursionError):
            return False
        return True

    @cached_property
    def sidecars(self) -> set[str]:
        """The files that only say how weights are quantized."""
        return {file for file in self._files if os.path.basename(file) in SIDECARS}

    @cached_property
    def others(self) -> set[str]:
        """All other files, but for weights in formats that are not read, and for indexes of what is
        not there."""
        known = {*self.shards.values(), *self.settings, *self.sidecars}
        rest = {file for file in self._files if file not in known and not is_index(file)}
        return {file for file in rest if not filenames.is_other_weights(file)}

    def file(self, made: str) -> Path:
        """Where the file is that the result's file `made` is made of."""
        if self.is_file:
            return self.path
        return self.root / self.shards.get(made, self.indexes.get(made, made))

    def json(self, made: str, limit: int) -> Any:
        """The value in the JSON file that the result's file `made` is made of."""
        return self._json(self.indexes.get(made, made), limit)

    def _json(self, file: str, limit: int) -> Any:
        return self._read(lambda: read_json(self.root / file, limit))

    def metadata(self, made: str) -> dict[str, str]:
        """What the shard says beside its tensors that the result's file `made` is made of."""
        return self._read(lambda: read_metadata(self.file(made)))

    def configs(self, folder: str) -> list[Any]:
        """The configs in a folder and in those above it; of a file, the one beside it."""
        found = []
        while True:
            config = os.path.join(folder, "config.json")
            if config in self.settings or (self.is_file and (self.root / config).is_file()):
                found.append(self._json(config, MAX_CONFIG))
            if not folder:
                return found
            folder = os.path.dirname(folder)

    @cached_property
    def pickles(self) -> dict[str, Found]:
        """What torch finds in the pickles."""
        opened = Pickles()
        made = {made: file for made, file in self.shards.items() if file in self._pickles}
        return {file: opened.find(self.file(file), self.key) for file in sorted(made)}

    @cached_property
    def headers(self) -> Headers:
        """All tensors of all files."""
        headers: Headers = {file: {**found.entries} for file, found in self.pickles.items()}
        rest = [file for file in self.shards if file not in headers]
        return headers | self._read(lambda: {file: read_header(self.file(file)) for file in rest})

    @cached_property
    def quantized(self) -> dict[Key, Dequantized]:
        """The weights that can be dequantized, by file and name in a result that holds them so."""
        return quantized.find(self.headers, self.file, self._labels)

    @cached_property
    def state(self) -> set[Key]:
        """The tensors that are optimizer state."""
        return {
            (file, name)
            for file, entries in self.headers.items()
            for name in state.find(file, list(entries))
        }

    def _labels(self, folder: str) -> Labels:
        """What the source says of the weights in a folder; of a file, what is beside it says it."""
        return self._read(lambda: read_labels(self.root, folder))

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{shown(self.path)} changed during verification: {shown(error)}"
            ) from error
