"""Request + prediction + outcome -> observation, whatever comes late, early, twice or never.

Rows come in three feeds, each in offset order (all rows of an id are in one partition), interleaved in any way. What comes
of them depends on their contents alone. (Where an app scattered the rows of an id, the first that are fed count.) Its only
clock is the log's time of each row, and ``wait`` decides:

- A request opens unless one of the same id came at most two waits before it: then it is a duplicate, and prolongs that.
- A prediction or an outcome belongs to the opening request of its id from which it is at most one wait away, before or
  after. No two openings are that near, so it belongs to one or none.
- The first prediction and the first outcome that belong to an opening request make the observation, with its features.

An id thus gives one observation, unless it is used again after two waits of silence. ``forget`` frees memory only: it drops
what no row to come can belong to.
"""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

RequestRow = tuple[str, int, int, int, int, bytes | None]
"""id, partition, offset, log time, event time, features. Without features it can no longer become an observation."""
PredictionRow = tuple[str, int, Any]
"""id, log time, answer: whatever the observation is to hold of it."""
OutcomeRow = tuple[str, int, Any, int | None]
"""id, log time, the label (equal where it says the same), the time at which it became true."""


class Observation(Struct, frozen=True, gc=False):
    """One labelled row. ``outcome_at`` is the outcome's own time, or the log's where it has none."""

    request_id: str
    partition: int
    offset: int
    features: bytes
    outcome: Any
    event_at: int
    requested_at: int
    outcome_at: int
    answer: Any


class Counters(Struct):
    """What did not become an observation; none ever goes down.

    ``duplicate_outcomes`` repeat the first one's label, ``conflicting_outcomes`` do not; ``late_outcomes`` came between one
    and two waits after their request, later ones belong to nobody.
    """

    duplicate_requests: int = 0
    duplicate_predictions: int = 0
    duplicate_outcomes: int = 0
    conflicting_outcomes: int = 0
    late_outcomes: int = 0


class _Opening:
    """An opening request, what is known of it, and the next opening of its id."""

    __slots__ = (
        "answer",
        "event_at",
        "features",
        "following",
        "last",
        "offset",
        "outcome",
        "outcome_at",
        "partition",
        "time",
    )

    def __init__(self, row: RequestRow) -> None:
        _, self.partition, self.offset, self.time, self.event_at, self.features = row
        self.last = self.time
        self.answer: Any = None
        self.outcome: Any = None
        self.outcome_at = 0
        self.following: _Opening | None = None


class Joiner:
    """The join's state. Each feed takes rows until they end or ``room`` observations are complete: the iterator then stands
    after the row that completed the last one.
    """

    def __init__(self, wait_ms: int) -> None:
        self.counters = Counters()
        self._wait = wait_ms
        self._openings: dict[str, _Opening] = {}
        self._waiting: dict[_Opening, None] = {}
        self._predictions: dict[str, list[PredictionRow]] = {}
        self._outcomes: dict[str, list[OutcomeRow]] = {}

    @property
    def waiting_requests(self) -> int:
        """Requests that may still become an observation."""
        return len(self._waiting)

    @property
    def early_outcomes(self) -> int:
        """Outcomes that wait for a request."""
        return sum(map(len, self._outcomes.values()))

    def knows(self, id: str) -> bool:
        """Whether rows of this id are kept."""
        return id in self._openings or id in self._predictions or id in self._outcomes

    def feed_requests(self, rows: Iterator[RequestRow], room: int) -> list[Observation]:
        """Take requests; those without features only stand in the way of later ones with the same id."""
        found: list[Observation] = []
        for row in rows:
            opening = self._open(row)
            if opening is not None and self._complete(row[0], opening, found) == room:
                break
        return found

    def feed_predictions(self, rows: Iterator[PredictionRow], room: int) -> list[Observation]:
        """Take predictions."""
        found: list[Observation] = []
        for row in rows:
            opening = self._owner(row[0], row[1])
            if opening is None:
                self._predictions.setdefault(row[0], []).append(row)
            elif self._predict(opening, row) and self._complete(row[0], opening, found) == room:
                break
        return found

    def feed_outcomes(self, rows: Iterator[OutcomeRow], room: int) -> list[Observation]:
        """Take outcomes."""
        found: list[Observation] = []
        for row in rows:
            opening = self._owner(row[0], row[1])
            self._count_late(row)
            if opening is None:
                self._outcomes.setdefault(row[0], []).append(row)
            elif self._label(opening, row) and self._complete(row[0], opening, found) == room:
                break
        return found

    def prolong(self, id: str, last_ms: int) -> None:
        """Of the newest request of this id, if one is known: its last duplicate came at ``last_ms``."""
        opening = self._newest(id)
        if opening is not None:
            opening.last = max(opening.last, last_ms)

    def forget(self, before_ms: int) -> None:
        """Free what has no future, given that every row to come has a log time of ``before_ms`` or later."""
        for opening in list(_while(self._waiting, lambda opening: opening.time + self._wait < before_ms)):
            del self._waiting[opening]
            opening.features = opening.answer = None
        for id in list(_while(self._openings, lambda id: self._openings[id].time + 2 * self._wait < before_ms)):
            opening = self._openings.pop(id)
            left = opening.following if opening.last + 2 * self._wait < before_ms else opening
            if left is not None:
                self._openings[id] = left
        for rows in (self._predictions, self._outcomes):
            for id in list(_while(rows, lambda id, rows=rows: rows[id][-1][1] + self._wait < before_ms)):
                del rows[id]

    def _open(self, row: RequestRow) -> _Opening | None:
        """The request's opening, with what came before it; None for a duplicate."""
        id, time, wait = row[0], row[3], self._wait
        previous = self._newest(id)
        if previous is not None and time - previous.last <= 2 * wait:
            previous.last = max(previous.last, time)
            self.counters.duplicate_requests += 1
            return None
        opening = _Opening(row)
        if previous is None:
            self._openings[id] = opening
        else:
            previous.following = opening
        if opening.features is not None:
            self._waiting[opening] = None
        for prediction in self._claim(self._predictions, id, time):
            self._predict(opening, prediction)
        for outcome in self._claim(self._outcomes, id, time):
            self._label(opening, outcome)
        for outcome in self._outcomes.get(id, ()):
            self.counters.late_outcomes += wait < outcome[1] - time <= 2 * wait
        return opening

    def _newest(self, id: str) -> _Opening | None:
        opening = self._openings.get(id)
        while opening is not None and opening.following is not None:
            opening = opening.following
        return opening

    def _claim(self, rows: dict[str, list[Any]], id: str, time: int) -> list[Any]:
        """Take the rows that belong to a request of this time; older ones belong to nobody, newer ones stay."""
        early = rows.pop(id, None)
        if early is None:
            return []
        left = [row for row in early if row[1] - time > self._wait]
        if left:
            rows[id] = left
        return [row for row in early if abs(row[1] - time) <= self._wait]

    def _owner(self, id: str, time: int) -> _Opening | None:
        opening = self._openings.get(id)
        while opening is not None and time - opening.time > self._wait:
            opening = opening.following
        return None if opening is None or opening.time - time > self._wait else opening

    def _count_late(self, row: OutcomeRow) -> None:
        opening = self._openings.get(row[0])
        while opening is not None:
            self.counters.late_outcomes += self._wait < row[1] - opening.time <= 2 * self._wait
            opening = opening.following

    def _predict(self, opening: _Opening, row: PredictionRow) -> bool:
        if opening.answer is not None:
            self.counters.duplicate_predictions += 1
            return False
        opening.answer = row[2]
        return True

    def _label(self, opening: _Opening, row: OutcomeRow) -> bool:
        if opening.outcome is None:
            opening.outcome = row[2]
            opening.outcome_at = row[1] if row[3] is None else row[3]
            return True
        if opening.outcome == row[2]:
            self.counters.duplicate_outcomes += 1
        else:
            self.counters.conflicting_outcomes += 1
        return False

    def _complete(self, id: str, opening: _Opening, found: list[Observation]) -> int:
        """Add the opening's observation if it is complete; how many there are."""
        if opening.answer is not None and opening.outcome is not None and opening.features is not None:
            found.append(
                Observation(
                    id,
                    opening.partition,
                    opening.offset,
                    opening.features,
                    opening.outcome,
                    opening.event_at,
                    opening.time,
                    opening.outcome_at,
                    opening.answer,
                )
            )
            del self._waiting[opening]
            opening.features = None
            opening.answer = ()
        return len(found)


def _while(items: Any, expired: Any) -> Iterator[Any]:
    """The leading items that are expired: they stand in the order of their coming, which is close to that of their times."""
    for item in items:
        if not expired(item):
            return
        yield item
