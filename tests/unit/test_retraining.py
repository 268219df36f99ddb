"""When a model is trained again, and what becomes of commands that wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.alarms import Kind
from tidemill.core.retraining import NEVER, boundary, due, first, for_alarm, is_first, merge, periodic
from tidemill.messages import Mode, Retrain

HOUR_MS = 3_600_000


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


@given(st.integers(0, 10**9))
def test_without_every_no_number_of_observations_asks_for_a_command(observed: int) -> None:
    """0 switches it off: the next boundary is further than any observation."""
    assert due(observed, 0, set(), 5) is None
    assert boundary(observed, 0) == NEVER > 10**18


def test_a_period_asks_for_what_was_observed_until_now() -> None:
    """The id is that of the period since 1970; the command says why it came and when."""
    assert periodic(0, 25 * HOUR_MS, 24, 70, [], 9) == Retrain("period-1", "period", 70, 9)
    assert periodic(0, 49 * HOUR_MS, 24, 70, [], 9) == Retrain("period-2", "period", 70, 9)
    assert periodic(0, 49 * HOUR_MS, 0.5, 70, [], 9) == Retrain("period-98", "period", 70, 9)


@pytest.mark.parametrize(
    ("began_ms", "event_ms", "hours"),
    [
        (0, 25 * HOUR_MS, 0),  # switched off
        (0, 0, 24),  # no event yet
        (HOUR_MS, 24 * HOUR_MS - 1, 24),  # the first period
        (30 * HOUR_MS, 47 * HOUR_MS, 24),
        (30 * HOUR_MS, 5 * HOUR_MS, 24),  # before it
    ],
)
def test_a_period_asks_for_nothing_in_the_first_one(began_ms: int, event_ms: int, hours: float) -> None:
    """Nor where there are no periods, or no events."""
    assert periodic(began_ms, event_ms, hours, 70, [], 9) is None


def test_a_period_asks_for_nothing_without_new_observations() -> None:
    """New since any command, whatever its reason; commands that were sent out of order count by the most."""
    sent = [Retrain("drift-3", "drift", 70, 0), Retrain("labelled-50", "labelled", 50, 0)]
    assert periodic(0, 25 * HOUR_MS, 24, 70, sent, 9) is None
    assert periodic(0, 25 * HOUR_MS, 24, 71, sent, 9) == Retrain("period-1", "period", 71, 9)
    assert periodic(0, 25 * HOUR_MS, 24, 0, [], 9) is None


def test_a_period_asks_once() -> None:
    """However much is observed after its command."""
    sent = [Retrain("period-1", "period", 70, 0)]
    assert periodic(0, 30 * HOUR_MS, 24, 500, sent, 9) is None
    assert periodic(0, 48 * HOUR_MS, 24, 500, sent, 9) == Retrain("period-2", "period", 500, 9)


@given(
    began=st.integers(1, 10**13),
    hours=st.sampled_from([0.1, 1, 24, 168, 720.5]),
    steps=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 3)), max_size=30),
)
def test_each_period_with_new_observations_has_one_command(began: int, hours: float, steps: list[tuple[int, int]]) -> None:
    """In order, but for the first; a slow twin counts periods in tenths, and asking twice gives nothing new."""
    length_ms, event, observed, learnt = hours * HOUR_MS, began, 0, 0
    sent: list[Retrain] = []
    expected: list[tuple[str, int]] = []
    for tenths, new in steps:
        event, observed = event + int(tenths * length_ms / 10), observed + new
        period = int(event // length_ms)
        if period > began // length_ms and observed > learnt and f"period-{period}" not in [id for id, _ in expected]:
            expected.append((f"period-{period}", observed))
            learnt = observed
        for _ in range(2):
            command = periodic(began, event, hours, observed, sent, 0)
            sent += [command] if command else []
    assert [(command.id, command.data_version) for command in sent] == expected
    periods = [int(command.id.removeprefix("period-")) for command in sent]
    assert periods == sorted(set(periods))


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


def test_a_merged_command_has_every_reason_and_the_last_evidence() -> None:
    """What is trained for two reasons says so; a reason that comes twice stands there once."""
    commands = [
        Retrain("a", "drift", 10, 0, {"alarm": "alarm-1"}),
        Retrain("b", "labelled", 20, 0),
        Retrain("c", "drift", 15, 0, {"alarm": "alarm-2"}),
    ]
    assert merge(commands) == Retrain("b", "labelled, drift", 20, 0, {"alarm": "alarm-2"})


@pytest.mark.parametrize(
    ("kinds", "fresh", "asked_at", "wanted"),
    [
        (["feature", "prediction"], True, None, ("drift", "suggest")),
        (["feature"], False, None, None),
        (["outcome"], True, 99, ("drift", "suggest")),
        (["feature", "error"], True, None, ("drop", "auto")),
        (["calibration"], False, None, ("drop", "auto")),
        (["error"], True, 95, None),
        (["error"], False, 90, ("drop", "auto")),
        (["error"], False, 200, ("drop", "auto")),
    ],
)
def test_an_alarm_asks_for_what_its_mode_says(
    kinds: list[Kind], fresh: bool, asked_at: int | None, wanted: tuple[str, str] | None
) -> None:
    """A drop where the model is wrong, else a drift. A suggestion comes once and knows no cooldown; a retraining waits for
    it, however fresh the alarm is, unless the last one was asked for at a time that is still to come.
    """
    modes: dict[str, Mode] = {"drift": "suggest", "drop": "auto"}
    assert for_alarm(kinds, fresh, asked_at, 100, modes, 10) == wanted
    assert for_alarm(kinds, fresh, asked_at, 100, {"drift": "off", "drop": "off"}, 10) is None
