"""The joiner's rules, one by one; tests/stateful holds them against a twin."""

from tidemill.core.joining import Joiner, Observation

HOUR = 3_600_000
ANSWER = (1, "abc", [0.5])


class Feeds:
    """A joiner with rows given by name and hour."""

    def __init__(self, wait: int = 10) -> None:
        self.joiner = Joiner(wait * HOUR)
        self.offset = 0

    def request(self, id: str, hour: int, features: bytes = b"x") -> list[str]:
        self.offset += 1
        row = (id, 0, self.offset - 1, hour * HOUR, 7, features)
        return [one.request_id for one in self.joiner.feed_requests(iter([row]), 9)]

    def predict(self, id: str, hour: int) -> list[str]:
        return [one.request_id for one in self.joiner.feed_predictions(iter([(id, hour * HOUR, ANSWER)]), 9)]

    def outcome(self, id: str, hour: int, label: str = '"yes"') -> list[str]:
        return [one.request_id for one in self.joiner.feed_outcomes(iter([(id, hour * HOUR, label, None)]), 9)]


def test_the_last_of_the_three_makes_the_observation() -> None:
    """In each of the orders in which they may come."""
    for order in ("rpo", "rop", "pro", "por", "orp", "opr"):
        feeds = Feeds()
        steps = {"r": feeds.request, "p": feeds.predict, "o": feeds.outcome}
        assert [steps[step]("a", 1) for step in order] == [[], [], ["a"]]
        assert feeds.joiner.waiting_requests == feeds.joiner.early_outcomes == 0


def test_an_observation_has_all_that_its_rows_say() -> None:
    """The outcome's own time goes before the log's."""
    joiner = Joiner(HOUR)
    joiner.feed_requests(iter([("a", 3, 4, 100, 50, b"x")]), 1)
    joiner.feed_predictions(iter([("a", 110, ANSWER)]), 1)
    assert joiner.feed_outcomes(iter([("a", 120, "1", 90)]), 1) == [Observation("a", 3, 4, b"x", "1", 50, 100, 90, ANSWER)]


def test_an_outcome_counts_up_to_the_wait_and_not_beyond() -> None:
    """Exactly the wait is in time, before as after."""
    for hour, found in ((10, ["a"]), (30, ["a"]), (9, []), (31, [])):
        feeds = Feeds(wait=10)
        feeds.request("a", 20)
        feeds.predict("a", 20)
        assert feeds.outcome("a", hour) == found
    assert feeds.joiner.counters.late_outcomes == 1


def test_the_first_of_each_wins() -> None:
    """Later ones are counted, whether they come before or after the observation."""
    feeds = Feeds()
    feeds.outcome("a", 0)
    feeds.outcome("a", 0, '"no"')
    feeds.request("a", 1)
    feeds.request("a", 2)
    assert feeds.predict("a", 2) == ["a"]
    feeds.predict("a", 2)
    feeds.outcome("a", 3)
    feeds.outcome("a", 3, '"no"')
    counters = feeds.joiner.counters
    assert (counters.duplicate_requests, counters.duplicate_predictions) == (1, 1)
    assert (counters.duplicate_outcomes, counters.conflicting_outcomes) == (1, 2)


def test_an_id_used_again_after_two_waits_of_silence_is_another_request() -> None:
    """Until then each repetition prolongs the first one's claim to the id."""
    feeds = Feeds(wait=10)
    for hour in (0, 20, 40):
        feeds.request("a", hour)
    assert feeds.joiner.counters.duplicate_requests == 2
    feeds.request("a", 61)
    feeds.predict("a", 61)
    assert feeds.outcome("a", 62) == ["a"]


def test_a_full_room_leaves_the_rest_in_the_iterator() -> None:
    """The caller knows exactly which rows were taken."""
    joiner = Joiner(HOUR)
    joiner.feed_requests(iter([(str(i), 0, i, 0, 0, b"x") for i in range(5)]), 9)
    joiner.feed_predictions(iter([(str(i), 0, ANSWER) for i in range(5)]), 9)
    rows = iter([(str(i), 0, "1", None) for i in range(5)])
    assert [one.request_id for one in joiner.feed_outcomes(rows, 2)] == ["0", "1"]
    assert [row[0] for row in rows] == ["2", "3", "4"]


def test_forgetting_frees_what_has_no_future() -> None:
    """Features after one wait, the id after two; not a moment before."""
    feeds = Feeds(wait=10)
    feeds.request("a", 0)
    feeds.outcome("b", 0)
    feeds.joiner.forget(10 * HOUR)
    assert (feeds.joiner.waiting_requests, feeds.joiner.early_outcomes) == (1, 1)
    feeds.joiner.forget(10 * HOUR + 1)
    assert (feeds.joiner.waiting_requests, feeds.joiner.early_outcomes) == (0, 0)
    feeds.request("a", 20)
    assert feeds.joiner.counters.duplicate_requests == 1
    feeds.joiner.forget(41 * HOUR)
    feeds.request("a", 41)
    assert feeds.joiner.waiting_requests == 1
