"""When a model is trained again, and what becomes of commands that wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.retraining import boundary, due, first, is_first, merge
from tidemill.messages import Retrain


@pytest.mark.parametrize(
    ("observed", "id"), [(0, None), (9, None), (10, "labelled-10"), (19, "labelled-10"), (20, "labelled-20")]
)
def test_a_command_is_due_for_the_newest_full_bucket(observed: int, id: str) -> None:
    """It names the bucket's end and trains on the observations up to there."""
    command = due(observed, 10, set(), 5)
    assert (command and command.id) == id
    if command:
        assert (command.data_version, command.reason, command.requested_at) == (int(id.split("-")[1]), "labelled", 5)


def test_a_command_that_was_sent_is_not_due() -> None:
    """Nor are older ones that were never sent."""
    assert due(25, 10, {"labelled-20"}, 0) is None


@given(every=st.integers(1, 50), steps=st.lists(st.integers(1, 50), max_size=30))
def test_whoever_stops_at_each_boundary_sends_each_bucket_once(every: int, steps: list[int]) -> None:
    """Any steps that end at the boundaries they meet give one command a bucket, in order."""
    observed = 0
    sent: list[str] = []
    for step in steps:
        goal = observed + step
        while observed < goal:
            observed = min(goal, boundary(observed, every))
            command = due(observed, every, sent, 0)
            if command:
                sent.append(command.id)
    assert sent == [f"labelled-{n}" for n in range(every, observed + 1, every)]


def test_the_first_model_is_asked_for_unless_one_serves_or_it_was_asked_for() -> None:
    """Its training set is the original data alone."""
    assert first(False, set(), 7) == Retrain("first", "first", 0, 7)
    assert first(True, set(), 7) is None
    assert first(False, {"first"}, 7) is None


def test_a_first_model_that_failed_is_asked_for_again_under_the_next_number() -> None:
    """Never while one waits for its verdict, nor where a model serves; whoever asks in the same moment names the same."""
    assert first(False, {"first"}, 7, decided={"first"}) == Retrain("first-2", "first", 0, 7)
    assert first(False, {"first", "first-2"}, 7, decided={"first"}) is None
    assert first(False, {"first", "first-2", "labelled-10"}, 7, decided={"first", "first-2"}) == Retrain(
        "first-3", "first", 0, 7
    )
    assert first(True, {"first"}, 7, decided={"first"}) is None
    assert [id for id in ("first", "first-2", "first-", "labelled-2", "firsts") if is_first(id)] == ["first", "first-2"]


def test_waiting_commands_merge_into_the_newest_data() -> None:
    """Of those with the same data the last; whatever their order."""
    commands = [Retrain(id, "r", version, 0) for id, version in (("a", 10), ("b", 30), ("c", 20), ("d", 30))]
    assert merge(commands).id == "d"
    assert merge(commands[:1]).id == "a"
