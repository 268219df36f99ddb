"""The hash table on arrays, against a dict."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.keys import CAPACITY_MIN, KeyTable


class Keys:
    """A table with the hashes of its keys; ``first`` has few values, so that searches are long."""

    def __init__(self, first_values: int) -> None:
        self.first_values = first_values
        self.owned = np.zeros(1 << 16, dtype=np.int64)
        self.held: set[int] = set()
        self.table = KeyTable(
            lambda slots: self.hashes(self.owned[slots]),
            lambda size: np.zeros(size, dtype=np.uint64),
            lambda: [np.array([slot], dtype=np.int64) for slot in self.held],
        )

    def hashes(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = (keys % self.first_values).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return first, keys.astype(np.uint64)

    def add(self, keys: np.ndarray, slots: np.ndarray) -> None:
        self.owned[slots] = keys
        self.table.add(self.hashes(keys)[0], slots)
        self.held.update(slots.tolist())

    def remove(self, keys: np.ndarray) -> None:
        self.held -= set(self.table.find(*self.hashes(keys)).tolist())
        self.table.remove(*self.hashes(keys))


@settings(max_examples=100, deadline=None)
@given(
    first_values=st.sampled_from([1, 7, 1 << 40]),
    steps=st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 60), min_size=1, max_size=30)), max_size=12),
)
def test_keys_come_and_go_as_in_a_dict(first_values: int, steps: list[tuple[bool, set[int]]]) -> None:
    """Whatever their hashes have in common."""
    model: dict[int, int] = {}
    keys, next_slot = Keys(first_values), 0
    everything = np.arange(61)
    for adding, some in steps:
        chosen = np.array(sorted(key for key in some if (key in model) != adding), dtype=np.int64)
        if adding:
            slots = np.arange(next_slot, next_slot + len(chosen))
            next_slot += len(chosen)
            keys.add(chosen, slots)
            model |= dict(zip(chosen.tolist(), slots.tolist(), strict=True))
        else:
            keys.remove(chosen)
            for key in chosen.tolist():
                del model[key]
        assert keys.table.find(*keys.hashes(everything)).tolist() == [model.get(key, -1) for key in range(61)]
        assert len(keys.table) == len(model)


def test_it_grows_and_forgets_what_is_gone() -> None:
    """Through many times its first size, and through as many removals without growing."""
    keys = Keys(1 << 40)
    many = np.arange(10 * CAPACITY_MIN)
    for start in range(0, len(many), 1000):
        keys.add(many[start : start + 1000], many[start : start + 1000])
    assert keys.table.find(*keys.hashes(many)).tolist() == many.tolist()
    grown = len(keys.table._entries)
    for _ in range(20):
        keys.remove(many[:10_000])
        keys.add(many[:10_000], many[:10_000])
    assert len(keys.table._entries) <= 2 * grown
    assert keys.table.find(*keys.hashes(many)).tolist() == many.tolist()
