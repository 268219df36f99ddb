"""Plays a data set as the user's service would: requests at a steady rate, each outcome when it becomes known.

Requests leave on an absolute schedule (request k at k/rate seconds), whatever the answers do: a slow predictor meets the
same load as a quick one. What is due leaves in one append, so a high rate makes its own batches.
"""

import heapq
import queue
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from msgspec import Struct

from tidemill.app.client import FOLLOW_SECONDS, answer_of, id_of, outcome_message, request_message
from tidemill.app.data_set import DataSet, Options, Step, already_there
from tidemill.clock import Clock
from tidemill.core.schema import Schema
from tidemill.errors import BadRecord, TidemillError, Unavailable
from tidemill.log.base import Log, Message, Record, read_all
from tidemill.messages import Label, Prediction, Topics

BATCH_MAX = 1000
"""Messages an append takes at most: a sender that fell behind catches up in steps."""

TURN_SECONDS = 0.02
"""How long an answer may lie unseen by the loop; its latency is taken when it comes."""


class Asked(Struct, frozen=True):
    """One request with its answer (or why there is none), and the truth, which the app may learn only later."""

    id: str
    features: dict[str, Any]
    answer: Prediction | BadRecord
    truth: Label | None
    latency_ms: float


class Summary(Struct):
    """What was done so far. ``skipped_*`` were in the log already; ``behind_ms_max`` is how late the worst request left."""

    rows: int = 0
    sent: int = 0
    answered: int = 0
    dead: int = 0
    outcomes: int = 0
    skipped_requests: int = 0
    skipped_outcomes: int = 0
    unanswered: int = 0
    seconds: float = 0.0
    latency_ms_p50: float | None = None
    latency_ms_p99: float | None = None
    behind_ms_max: float = 0.0


class _Flight(NamedTuple):
    row: int
    features: dict[str, Any]
    sent: float


class Replay:
    """Plays a data set once. Started again with the same data, it goes on where the topics say that it was.

    ``on_answer`` is called for each answer; ``gate`` before each request with the summary so far: while it returns False the
    stream stands still, and afterwards it goes on at its pace, without a burst. Both run in the thread of ``run``.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        schema: Schema,
        frame: pl.DataFrame,
        name: str,
        options: Options,
        clock: Clock,
        on_answer: Callable[[Asked], None] = lambda asked: None,
        gate: Callable[[Summary], bool] = lambda summary: True,
    ) -> None:
        options.check()
        self._log = log
        self._topics = topics
        self._options = options
        self._clock = clock
        self._on_answer = on_answer
        self._gate = gate
        self._data = DataSet(frame, schema, name, options)
        self._by_id = {name: row for row, name in enumerate(self._data.ids)}
        self._steps: list[Step] = []
        self._next = 0
        self._begin = 0.0
        self._last_sent = 0.0
        self._flights: dict[str, _Flight] = {}
        self._due: list[tuple[float, int]] = []
        self._settled: set[int] = set()
        self._latencies = array("d")
        self._seen: queue.SimpleQueue[tuple[Record, float] | TidemillError] = queue.SimpleQueue()
        self.summary = Summary(rows=len(self._data))

    def run(self, stop: threading.Event) -> Summary:
        """Play until all is sent and answered (or ``answer_wait`` seconds have passed since), or ``stop`` is set."""
        with self._followed():
            self._resume()
            start = self._begin = self._last_sent = self._clock.monotonic()
            while not stop.is_set():
                self._take_answers()
                self._send_due()
                if self._is_over():
                    break
                self._clock.sleep(self._pause())
        self.summary.seconds = self._clock.monotonic() - start
        self.summary.unanswered = len(self._flights)
        if self._latencies:
            p50, p99 = np.percentile(np.frombuffer(self._latencies), [50, 99])
            self.summary.latency_ms_p50, self.summary.latency_ms_p99 = float(p50), float(p99)
        return self.summary

    # Where an earlier run was.

    def _resume(self) -> None:
        steps = self._data.steps()
        asked, told = self._stands(self._topics.requests), self._stands(self._topics.outcomes)
        ids = self._data.ids
        sent = already_there([ids[step.row] for step in steps if not step.is_outcome], asked, self._shortened("requests"))
        outcome_order = [ids[step.row] for step in steps if step.is_outcome] or ids
        reported = already_there(outcome_order, told, self._shortened("outcomes")) & {*sent, *told}
        self._steps = [step for step in steps if ids[step.row] not in (reported if step.is_outcome else sent)]
        self._settled = {self._by_id[name] for name in reported | self._refused()}
        self.summary.skipped_requests, self.summary.skipped_outcomes = len(sent), len(reported)
        if self._data.outcome_times is None:
            for name in sent - reported:
                self._plan_outcome(self._by_id[name], self._left_of_delay(asked.get(name, 0)))

    def _left_of_delay(self, sent_ms: int) -> float:
        """For a request of an earlier run; without a set delay its answer may have passed, so its outcome is due."""
        return max(0.0, (self._options.delay or 0.0) - (self._clock.now_ms() - sent_ms) / 1000)

    def _stands(self, topic: str) -> dict[str, int]:
        """Our ids in a topic, with the time at which the log took the first of each."""
        found: dict[str, int] = {}
        for records in self._log.follow(topic):
            if not records:
                break
            for record in records:
                name = id_of(record, self._topics)
                if name in self._by_id:
                    found.setdefault(name, record.time_ms)
        return found

    def _refused(self) -> set[str]:
        """Our requests that are dead letters: their outcomes would wait for ever."""
        letters = read_all(self._log, self._topics.dead_letters)
        names = {id_of(letter, self._topics) for letter in letters if answer_of(letter, self._topics) is not None}
        return names & self._by_id.keys()

    def _shortened(self, topic: str) -> bool:
        return any(first > 0 for first, _ in self._log.bounds(getattr(self._topics, topic)).values())

    # Sending.

    def _send_due(self) -> None:
        now = self._clock.monotonic()
        messages = [*self._outcomes_due(now), *self._steps_due(now)]
        # A topic at a time: nothing asks for the two together, and apart they are cheaper on some logs.
        for topic in (self._topics.outcomes, self._topics.requests):
            mine = [message for message in messages if message.topic == topic]
            if mine:
                self._log.append(mine)
                self._last_sent = now

    def _steps_due(self, now: float) -> Iterator[Message]:
        for _ in range(BATCH_MAX):
            due = self._next_due()
            if due is None or due > now:
                return
            step = self._steps[self._next]
            if step.is_outcome:
                yield from self._outcome(step.row)
            elif self._gate(self.summary):
                self.summary.behind_ms_max = max(self.summary.behind_ms_max, (now - due) * 1000)
                yield self._request(step.row, now)
            else:
                self._begin += now - due
                return
            self._next += 1

    def _next_due(self) -> float | None:
        """An outcome is due together with the request that follows it."""
        if self._next >= len(self._steps):
            return None
        return self._begin + self.summary.sent / self._options.rate

    def _request(self, row: int, now: float) -> Message:
        name, features = self._data.ids[row], self._data.features(row)
        time = self._data.times[row] if self._data.times is not None else None
        self._flights[name] = _Flight(row, features, now)
        self.summary.sent += 1
        if self._data.outcome_times is None:
            self._plan_outcome(row, self._options.answer_wait if self._options.delay is None else self._options.delay)
        headers = () if time is None else (("time", str(time).encode()),)
        return request_message(self._topics, name, features, headers)

    def _plan_outcome(self, row: int, seconds: float) -> None:
        if self._data.truths[row] is not None:
            heapq.heappush(self._due, (self._clock.monotonic() + seconds, row))

    def _outcomes_due(self, now: float) -> Iterator[Message]:
        for _ in range(BATCH_MAX):
            if not self._due or self._due[0][0] > now:
                return
            yield from self._outcome(heapq.heappop(self._due)[1])

    def _outcome(self, row: int) -> Iterator[Message]:
        """Nothing where it was reported before, or the request is a dead letter."""
        if row not in self._settled:
            self._settled.add(row)
            self.summary.outcomes += 1
            yield outcome_message(self._topics, self._data.ids[row], self._data.truths[row], self._outcome_time(row))

    def _outcome_time(self, row: int) -> int | None:
        """On the same time axis as the request: the data set's, where it has one."""
        if self._data.outcome_times is not None:
            return self._data.outcome_times[row]
        asked = self._data.times[row] if self._data.times is not None else None
        return None if asked is None else asked + round((self._options.delay or 0.0) * 1000)

    # Answers.

    def _take_answers(self) -> None:
        while True:
            try:
                seen = self._seen.get_nowait()
            except queue.Empty:
                return
            if isinstance(seen, TidemillError):
                raise seen
            self._take(*seen)

    def _take(self, record: Record, at: float) -> None:
        name = id_of(record, self._topics)
        answer = answer_of(record, self._topics) if name in self._flights else None
        if answer is None:
            return
        flight = self._flights.pop(name)
        latency_ms = (at - flight.sent) * 1000
        self._latencies.append(latency_ms)
        if isinstance(answer, Prediction):
            self.summary.answered += 1
            if self._data.outcome_times is None and self._options.delay is None:
                self._plan_outcome(flight.row, 0.0)
        else:
            self.summary.dead += 1
            self._settled.add(flight.row)
        self._on_answer(Asked(name, flight.features, answer, self._data.truths[flight.row], latency_ms))

    def _is_over(self) -> bool:
        while self._due and self._due[0][1] in self._settled:
            heapq.heappop(self._due)
        if self._due or self._next < len(self._steps):
            return False
        return not self._flights or self._clock.monotonic() > self._last_sent + self._options.answer_wait

    def _pause(self) -> float:
        """Until the next step, a millisecond at least: it makes batches of a high rate."""
        due = self._next_due()
        wait = TURN_SECONDS if due is None else due - self._clock.monotonic()
        return min(TURN_SECONDS, max(0.001, wait))

    @contextmanager
    def _followed(self) -> Iterator[None]:
        """Threads that note when each answer came; they stand at the ends of their topics before anything is sent."""
        closing = threading.Event()
        threads = []
        for topic in (self._topics.predictions, self._topics.dead_letters):
            stands = threading.Event()
            threads.append(threading.Thread(target=self._follow, args=(topic, stands, closing), daemon=True))
            threads[-1].start()
            if not stands.wait(30):
                raise Unavailable(f"the log did not show the end of {topic} within 30 s")
        try:
            yield
        finally:
            closing.set()
            for thread in threads:
                thread.join()

    def _follow(self, topic: str, stands: threading.Event, closing: threading.Event) -> None:
        try:
            for records in self._log.follow(topic, "end", FOLLOW_SECONDS):
                at = self._clock.monotonic()
                for record in records:
                    self._seen.put((record, at))
                stands.set()
                if closing.is_set():
                    return
        except TidemillError as error:
            self._seen.put(error)
        finally:
            stands.set()
