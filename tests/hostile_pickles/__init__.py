"""Pickles nobody should trust, each a valid file with one thing wrong, by name."""

from collections import Counter

from hostile_pickles import archives, bombs, headers, kinds, legacies, names, opcodes, tensors
from hostile_pickles.case import CANARY, Hostile
from hostile_pickles.oddities import FILES as ODDITIES

GROUPS = (opcodes, names, kinds, archives, headers, tensors, legacies, bombs)
FILES = {case.name: case for group in GROUPS for case in group.FILES}
LARGE = {case.name: case for case in bombs.LARGE}
HEAVY = bombs.HEAVY

__all__ = ["CANARY", "FILES", "GROUPS", "HEAVY", "LARGE", "ODDITIES", "Hostile"]

TWICE = Counter(case.name for group in GROUPS for case in group.FILES)
TWICE -= Counter(list(FILES))
assert not TWICE, TWICE
