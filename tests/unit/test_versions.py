"""Slots: which version serves is a replay of the models topic."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.versions import Slots
from tidemill.messages import ModelVersion, to_bytes


def a_version(number: int, sequence: int = 0) -> ModelVersion:
    bundle = f"{number:064x}"
    return ModelVersion(number, bundle, bundle, "s", "challenger", 0, f"labelled-{number}", 0, sequence)


def test_the_first_version_becomes_the_champion() -> None:
    """A promotion without a champion is one record."""
    moves = Slots().promote(a_version(1), at=5)
    assert [(move.state, move.version, move.sequence, move.at) for move in moves] == [("champion", 1, 1, 5)]


def test_a_promotion_keeps_the_old_champion_as_previous() -> None:
    """The champion moves to ``previous``, the new version takes its place, sequences rise."""
    slots = replayed([1, 2])
    assert slots.champion is not None
    assert slots.previous is not None
    assert (slots.champion.version, slots.previous.version) == (2, 1)
    assert slots.sequence == 3


def test_a_rollback_is_a_promotion_of_an_older_version() -> None:
    """The version before serves again, with a higher sequence."""
    slots = replayed([1, 2, 1])
    assert slots.champion is not None
    assert slots.champion.version == 1
    assert slots.champion.sequence == slots.sequence


def test_a_challenger_waits_beside_the_champion() -> None:
    """A waiting version leaves the champion where it is."""
    slots = replayed([1])
    for move in slots.challenge(a_version(2), at=9):
        slots.apply(move)
    assert slots.champion is not None
    assert slots.challenger is not None
    assert (slots.champion.version, slots.challenger.version) == (1, 2)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_an_out_of_date_record_changes_nothing(numbers: list[int], random: st.DataObject) -> None:
    """Records that are read again, or late, leave the slots as they are: the highest sequence holds."""
    slots, moves = Slots(), []
    for number in numbers:
        for move in slots.promote(a_version(number), at=0):
            slots.apply(move)
            moves.append(move)
    repeated = Slots.of(to_bytes(move) for move in [*moves, *random.sample(moves, len(moves) // 2)])  # type: ignore[attr-defined]
    assert msgspec.to_builtins(repeated) == msgspec.to_builtins(slots)


def replayed(numbers: list[int]) -> Slots:
    slots = Slots()
    for number in numbers:
        for move in slots.promote(a_version(number), at=0):
            slots.apply(move)
    return slots
