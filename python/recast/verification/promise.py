"""What a result must be, worked out from the source and from what was asked for.

Nothing here looks at the plan that made the result: which tensors are cast, which stay wide, which
files become what is decided again, by verify's own rules.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from recast._core import matching
from recast.options import AsStored, Options
from recast.verification import quantized, wide
from recast.verification.dequantized import Dequantized
from recast.verification.dtypes import FP8, SOURCES, STORED, FloatName
from recast.verification.files import MAX_INDEX
from recast.verification.header import Entry, Headers, Key
from recast.verification.source import Source

AS_STORED: AsStored = "as-stored"
"""The target that leaves every dtype as it is."""
SCALES = ("scale", "zero", "absmax", "codebook", "quant", "lut")
"""What the last word of a name has in it that goes with codes of an unknown scheme."""
CODES = {"I8", "U8", "I16", "U16", "I32", "U32", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", *FP8}
"""The dtypes of such codes."""

ALWAYS_CODES = {"F8_E8M0", *FP8}
"""Of these, those of which nothing else is made, and what nothing tells from them."""


class Promised(NamedTuple):
    """A tensor of the result."""

    dtypes: tuple[str, ...]
    """Those it may have, by their names in a header, the likeliest first."""
    shape: tuple[int, ...]
    source: Entry
    """What it, or the codes that it is made of, is in the source."""
    is_dequantized: bool = False

    @property
    def is_cast(self) -> bool:
        """Whether its values become others."""
        return self.is_dequantized or self.dtypes[0] != self.source.dtype


@dataclass(frozen=True)
class Promise:
    """What a result must be. With `exact` it is known what was asked for; without, a tensor may
    also have kept the source's dtype, and what else configs say is nobody's promise."""

    source: Source
    intent: Options
    to: FloatName | None
    """The dtype that configs and indexes must state; `None` where there is no float, and where they
    must state what they stated."""
    exact: bool
    made: Headers
    """The tensors of the result, for what is left to whoever makes it."""

    @property
    def is_as_stored(self) -> bool:
        """Whether nothing is cast."""
        return self.intent.to == AS_STORED

    def may_state(self, before: str | None) -> set[str | None]:
        """The dtypes that something in a config or an index may state in the result, by that which
        it stated in the source; none where any will do."""
        allowed: set[str | None] = {self.to} if self.to else set()
        return allowed | {before} if self.is_as_stored else allowed

    @cached_property
    def dequantizes(self) -> bool:
        """Whether quantized weights are dequantized, and not carried as they are."""
        skips = self.is_as_stored or self.intent.skip_quantized
        return not skips and bool(self.source.quantized)

    @cached_property
    def casts_fp8(self) -> bool:
        """Whether 8-bit floats are cast, so that nothing may state that they are there."""
        if not self.exact:
            return self.dequantizes or self.intent.unscaled_fp8
        each = (promised for file in self.tensors.values() for promised in file.values())
        return self.dequantizes or any(
            promised.source.dtype in FP8 and promised.is_cast for promised in each
        )

    @cached_property
    def dropped(self) -> set[Key]:
        """The source's tensors that only quantized weights need."""
        weights = self.source.quantized if self.dequantizes else {}
        return quantized.dropped(self.source.headers, weights)

    @cached_property
    def _own(self) -> set[Key]:
        """The tensors of quantized weights, each of which has its own codes and scales."""
        own = quantized.dropped(self.source.headers, self.source.quantized)
        for weight in self.source.quantized.values():
            own |= {part.key for part in (weight.codes, *weight.scales)}
        return own

    @cached_property
    def tied(self) -> dict[str, dict[str, str]]:
        """The tensors of pickles that are the same as others and not in the result, each with the
        one that is, by the result's file."""
        return {
            file: {
                name: kept
                for name, kept in found.tied.items()
                if self._is_left_out(file, name, kept)
            }
            for file, found in self.source.pickles.items()
        }

    def _is_left_out(self, file: str, name: str, kept: str) -> bool:
        """Whether a tensor of a pickle that is the same as another is not in the result: not where
        it is of a quantized weight, and where that is not known, as the result has it."""
        entries = self.source.pickles[file].entries
        if {(file, name), (file, kept)} & self._own or entries[name].dtype in ALWAYS_CODES:
            return False
        carries = self.is_as_stored or self.intent.skip_quantized
        may_be = carries and any(entry.dtype in CODES for entry in entries.values())
        return not (may_be and name in self.made.get(file, {}))

    @cached_property
    def headers(self) -> Headers:
        """The tensors of the source, one of those that are the same."""
        return {
            file: {
                name: entry
                for name, entry in entries.items()
                if file not in self.tied or name not in self.tied[file]
            }
            for file, entries in self.source.headers.items()
        }

    @cached_property
    def codes(self) -> dict[Key, Dequantized]:
        """The weights that are dequantized, by their codes."""
        weights = self.source.quantized.values() if self.dequantizes else ()
        return {weight.codes.key: weight for weight in weights}

    @cached_property
    def tensors(self) -> dict[str, dict[str, Promised]]:
        """The tensors of the result, by file and name."""
        stays = self._staying
        made: dict[str, dict[str, Promised]] = {}
        for file, entries in self.headers.items():
            made[file] = {}
            for name, entry in entries.items():
                key = (file, name)
                if (weight := self.codes.get(key)) is not None:
                    to: tuple[str, ...] = (STORED[self._target],)
                    made[file][weight.name] = Promised(to, weight.shape, entry, is_dequantized=True)
                elif key not in self.dropped:
                    to = self._dtypes(key, entry, stays)
                    made[file][name] = Promised(to, entry.shape, entry)
        return made

    @cached_property
    def kept(self) -> list[str]:
        """The names of the tensors that could be cast and stay: not those of quantized weights,
        and no optimizer state."""
        stays = self._staying - self.source.state - self._carried
        could = SOURCES.keys() - {STORED[self._target]}
        return [name for file, name in stays if self.headers[file][name].dtype in could]

    @property
    def _target(self) -> FloatName:
        return self.to or "fp32"

    def _dtypes(self, key: Key, entry: Entry, stays: set[Key]) -> tuple[str, ...]:
        """Those that a tensor may have which is not dequantized."""
        own = entry.dtype
        if self.is_as_stored or own not in SOURCES or self.to is None:
            return (own,)
        target = STORED[self._target]
        if not self.exact:
            return target, own
        if key in stays or key in self._carried:
            return (own,)
        if own in FP8:
            # Without scales it is what the option says, unless a label says that it is quantized.
            return (target, own) if self.intent.unscaled_fp8 else (own,)
        return (target, own) if self._may_be_carried(key) else (target,)

    @cached_property
    def _carried(self) -> set[Key]:
        """The tensors of quantized weights that are carried."""
        if self.dequantizes:
            return set()
        keys = ((file, name) for file, entries in self.headers.items() for name in entries)
        scales = {key for key in keys if self._is_near_codes(key) and _is_scale(key[1])}
        return self._own | scales

    def _may_be_carried(self, key: Key) -> bool:
        """Whether a tensor may be of a quantized weight of a scheme that is not known here."""
        may = self.intent.skip_quantized
        return may and (_is_scale(key[1]) or self._is_near_codes(key))

    def _is_near_codes(self, key: Key) -> bool:
        """Whether the module of a tensor has codes that are carried, or one that its name begins
        with."""
        if not self.intent.skip_quantized:
            return False
        folder, (module, _, _) = os.path.dirname(key[0]), key[1].rpartition(".")
        while module:
            if (folder, module) in self._modules_with_codes:
                return True
            module = module.rpartition(".")[0]
        return False

    @cached_property
    def _modules_with_codes(self) -> set[tuple[str, str]]:
        return {
            (os.path.dirname(file), module)
            for file, entries in self.headers.items()
            for name, entry in entries.items()
            if entry.dtype in CODES and entry.elements > 1
            for module in (name, name.rpartition(".")[0])
        }

    @cached_property
    def _staying(self) -> set[Key]:
        """The floats that stay as they are: what patterns say, what is wide on purpose, and
        optimizer state. Only where it is known what was asked for."""
        if self.is_as_stored or not self.exact or self.to is None:
            return set()
        stays = set(self.source.state)
        for pattern in self.intent.keep:
            stays |= self._matching(pattern)
        if self.intent.auto_keep:
            for folder in {os.path.dirname(file) for file in self.headers}:
                stays |= self._wide(folder)
        return stays

    def _matching(self, pattern: str) -> set[Key]:
        """The tensors that a pattern of `--keep` matches, by their own names, by those of what is
        tied to them, and, with a slash, by these below their folder."""
        keys = [(file, name) for file, entries in self.headers.items() for name in entries]
        others = {(file, name): [name] for file, name in keys}
        for file, tied in self.tied.items():
            for name, kept in tied.items():
                others[file, kept].append(name)
        keys = [key for key, names in others.items() for _ in names]
        names = [name for names in others.values() for name in names]
        found = {key for key, hit in zip(keys, matching(pattern, names), strict=True) if hit}
        if "/" in pattern:
            # What is no text in the name of a folder is matched as what stands for it.
            folders = {
                file: os.fsencode(os.path.dirname(file)).decode(errors="replace")
                for file, _ in keys
            }
            below = [
                f"{folders[file]}/{name}" if folders[file] else name
                for (file, _), name in zip(keys, names, strict=True)
            ]
            found |= {key for key, hit in zip(keys, matching(pattern, below), strict=True) if hit}
        return found

    def _wide(self, folder: str) -> set[Key]:
        """The tensors of a folder that are wide on purpose."""
        own = {file: self.headers[file] for file in self.headers if os.path.dirname(file) == folder}
        aside = self.source.state | self._carried | self.dropped | self.codes.keys()
        weights = [
            (name, entry)
            for file, entries in own.items()
            for name, entry in entries.items()
            if (file, name) not in aside and entry.dtype in SOURCES
        ]
        names = {name for entries in own.values() for name in entries}
        found = wide.find(self._target, self.source.configs(folder), weights, names)
        return {(file, name) for file, entries in own.items() for name in found & entries.keys()}

    def weight_map(self, file: str) -> Any:
        """What an index must map to shards, by that of the source: not what is dropped or tied, and
        the dequantized weights by their names in the result."""
        folder = os.path.dirname(file)
        before = self._renamed(self.source.json(file, MAX_INDEX)["weight_map"], folder)
        keys = {name: (os.path.join(folder, shard), name) for name, shard in before.items()}
        return {
            self.codes[key].name if key in self.codes else name: before[name]
            for name, key in keys.items()
            if key not in self.dropped
        }

    def _renamed(self, weight_map: Any, folder: str) -> Any:
        """What an index in a folder says of pickles, with the names of what is made of them, and
        without what is tied."""
        files = {self.source.shards[path]: path for path in self.source.pickles}
        renamed = {}
        for name, shard in weight_map.items():
            path = files.get(os.path.normpath(os.path.join(folder, shard)))
            if path is None:
                renamed[name] = shard
            elif name not in self.tied[path]:
                renamed[name] = os.path.join(os.path.dirname(shard), os.path.basename(path))
        return renamed


def _is_scale(name: str) -> bool:
    """Whether a tensor is called like what goes with codes."""
    return any(word in name.rpartition(".")[2].lower() for word in SCALES)
