"""A hash table of keys on arrays: millions of keys, found a thousand at a time, at a cost that does not grow with them.

A key is a pair of 64-bit hashes, which its owner keeps by slot; the table holds only slots, each beside 24 bits of its key.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Slots = NDArray[np.int64]

CAPACITY_MIN = 1 << 12
LOAD_MAX = 0.5
"""Of the places, as many are taken at most, else a search would go on for too long."""

_SLOT_BITS = np.uint64(40)
_SLOT = np.uint64((1 << 40) - 1)
_FREE = np.uint64(0)
_GONE = np.uint64((1 << 64) - 1)  # was taken: a search goes on behind it


class KeyTable:
    """Slots by key. ``key_of`` gives the keys of slots; ``empty`` makes an array of zeros, wherever it is to stand; ``held``
    gives the slots that are here, in pieces.
    """

    def __init__(
        self,
        key_of: Callable[[Slots], tuple[Hashes, Hashes]],
        empty: Callable[[int], Hashes],
        held: Callable[[], Iterable[Slots]],
    ) -> None:
        self._key_of = key_of
        self._empty = empty
        self._slots_held = held
        self._entries = empty(CAPACITY_MIN)
        self._taken = 0
        self._held = 0

    def __len__(self) -> int:
        return self._held

    def find(self, first: Hashes, second: Hashes) -> Slots:
        """The slots of the keys, -1 for those that are not here."""
        return self._search(first, second)[0]

    def add(self, first: Hashes, slots: Slots) -> None:
        """Keys that are different and not here, by the first of their hashes."""
        if self._taken + len(slots) > LOAD_MAX * len(self._entries):
            self._rebuild(self._held + len(slots))
        self._taken += len(slots)
        self._held += len(slots)
        self._put(first, slots)

    def remove(self, first: Hashes, second: Hashes) -> None:
        """Keys that are here."""
        _, places = self._search(first, second)
        self._entries[places] = _GONE
        self._held -= len(first)

    def _search(self, first: Hashes, second: Hashes) -> tuple[Slots, Slots]:
        """Slots and places in the table; step by step for all keys that are not found yet."""
        slots = np.full(len(first), -1, dtype=np.int64)
        places = np.full(len(first), -1, dtype=np.int64)
        tags, mask = first & ~_SLOT, np.uint64(len(self._entries) - 1)
        left = np.arange(len(first))
        at = first & mask
        while len(left):
            entries = self._entries[at]
            alike = np.flatnonzero(((entries & ~_SLOT) == tags[left]) & (entries != _FREE) & (entries != _GONE))
            rows = left[alike]
            candidates = ((entries[alike] & _SLOT) - np.uint64(1)).astype(np.int64)
            one, two = self._key_of(candidates)
            same = (one == first[rows]) & (two == second[rows])
            slots[rows[same]] = candidates[same]
            places[rows[same]] = at[alike[same]].astype(np.int64)
            on = entries != _FREE
            on[alike[same]] = False
            left, at = left[on], (at[on] + np.uint64(1)) & mask
        return slots, places

    def _put(self, first: Hashes, slots: Slots) -> None:
        entries = (first & ~_SLOT) | (slots.astype(np.uint64) + np.uint64(1))
        mask = np.uint64(len(self._entries) - 1)
        at = first & mask
        while len(entries):
            free = self._entries[at] == _FREE
            self._entries[at[free]] = entries[free]
            on = self._entries[at] != entries  # of several that want a place, the last one written has it
            entries, at = entries[on], (at[on] + np.uint64(1)) & mask

    def _rebuild(self, goal: int) -> None:
        """Without what is gone, and with room for more than the goal."""
        capacity = CAPACITY_MIN
        while LOAD_MAX * capacity < 1.2 * goal:
            capacity *= 2
        self._entries = self._empty(capacity)
        self._taken = self._held
        for slots in self._slots_held():
            self._put(self._key_of(slots)[0], slots)
