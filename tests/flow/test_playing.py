"""The replay over a real log, with an echo in the predictor's place: nothing twice, nothing left out, in order."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from tidemill.app.data_set import Options
from tidemill.app.replay import Asked, Replay, Summary
from tidemill.clock import SystemClock
from tidemill.core.schema import Feature, Schema
from tidemill.errors import BadRecord
from tidemill.log.base import Batch, Log, Message, Record, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Outcome, Prediction, Topics, to_bytes
from tidemill.roles.loop import run_loop

TOPICS = Topics.of("echo")
ROWS = 200
SCHEMA = Schema((Feature("age", "number"),), "rich", "binary", classes=(0, 1))
TIMED = Schema((Feature("age", "number"),), "rich", "binary", classes=(0, 1), time="asked")
FRAME = pl.DataFrame(
    {
        "age": range(ROWS),
        "rich": [None if row % 10 == 9 else row % 2 for row in range(ROWS)],
        "asked": [1000 * row for row in range(ROWS)],
        "told": [None if row % 7 == 6 else 1000 * row + 10_500 * (1 + row % 3) for row in range(ROWS)],
    }
)
FAST = 2000.0


def answer(record: Record) -> Message:
    name, features = (record.key or b"").decode(), msgspec.json.decode(record.value)
    if features["age"] == 13:
        headers = (("topic", record.topic.encode()), ("reason", b"unlucky"), ("field", b"age"), ("detail", b"13"))
        return Message(TOPICS.dead_letters, record.value, record.key, headers)
    prediction = Prediction(name, 1, 1, "abc", record.time_ms, record.time_ms, probability=0.5)
    return Message(TOPICS.predictions, to_bytes(prediction), record.key)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    found = SqliteLog(tmp_path / "log", "normal")
    found.create([Topic(getattr(TOPICS, field)) for field in TOPICS.__struct_fields__])
    yield found
    found.close()


@pytest.fixture
def echo(log: Log) -> Iterator[None]:
    stop = threading.Event()
    reader = log.join("predictor", [TOPICS.requests])

    def handle(batch: Batch) -> list[Message]:
        return [answer(record) for record in batch.records()]

    thread = threading.Thread(target=run_loop, args=("predictor", reader, handle, stop, 1000, 0.05))
    thread.start()
    yield
    stop.set()
    thread.join()
    reader.close()


def play(log: Log, schema: Schema = SCHEMA, frame: pl.DataFrame = FRAME, **options: Any) -> Replay:
    hooks = {name: options.pop(name) for name in ("on_answer", "gate") if name in options}
    chosen = Options(**{"rate": FAST, "answer_wait": 5.0, **options})
    return Replay(log, TOPICS, schema, frame, "rows", chosen, SystemClock(), **hooks)


def keys(log: Log, topic: str) -> list[str]:
    return [(record.key or b"").decode() for record in read_all(log, topic)]


def ids(rows: Iterable[int]) -> list[str]:
    return [f"rows-{row}" for row in rows]


LABELLED = [row for row in range(ROWS) if row % 10 != 9]


@pytest.mark.usefixtures("echo")
def test_every_row_is_asked_answered_and_told_once(log: Log) -> None:
    """Outcomes at once: each request in file order, each answer handed over with the truth, each labelled row told after
    its answer, except the dead letter.
    """
    seen: list[Asked] = []
    told_before: list[str] = []

    def on_answer(asked: Asked) -> None:
        told_before.extend(name for name in keys(log, TOPICS.outcomes) if name == asked.id)
        seen.append(asked)

    summary = play(log, on_answer=on_answer, limit=50).run(threading.Event())
    assert keys(log, TOPICS.requests) == ids(range(50))
    assert sorted(asked.id for asked in seen) == sorted(ids(range(50)))
    assert told_before == []
    assert set(keys(log, TOPICS.outcomes)) == set(ids([row for row in LABELLED if row < 50 and row != 13]))
    assert all(asked.truth == FRAME["rich"][asked.features["age"]] for asked in seen)
    dead = [asked for asked in seen if isinstance(asked.answer, BadRecord)]
    assert [(asked.id, asked.answer.reason) for asked in dead if isinstance(asked.answer, BadRecord)] == [
        ("rows-13", "unlucky")
    ]
    assert (summary.sent, summary.answered, summary.dead, summary.outcomes, summary.unanswered) == (50, 49, 1, 44, 0)
    assert summary.latency_ms_p50 is not None
    assert summary.latency_ms_p99 is not None
    assert 0 < summary.latency_ms_p50 <= summary.latency_ms_p99


@pytest.mark.usefixtures("echo")
def test_real_delays_keep_the_order_of_event_time(log: Log) -> None:
    """Read back by their places in one log, requests and outcomes alternate as their times do; nulls are never told."""
    play(log, TIMED, outcome_time="told").run(threading.Event())
    assert keys(log, TOPICS.requests) == ids(range(ROWS))
    records = read_all(log, TOPICS.outcomes)
    outcomes = [msgspec.json.decode(record.value, type=Outcome) for record in records]
    times = [outcome.time or 0 for outcome in outcomes]
    assert times == sorted(times)
    expected = [row for row in LABELLED if row % 7 != 6 and row != 13]
    assert sorted(keys(log, TOPICS.outcomes)) == sorted(ids(expected))
    assert times[0] == 10_500
    headers = [dict(record.headers)["time"] for record in read_all(log, TOPICS.requests)]
    assert headers[:2] == [b"0", b"1000"]


@pytest.mark.usefixtures("echo")
def test_an_outcome_waits_for_the_requests_before_it(log: Log) -> None:
    """While the gate is closed at request k, no outcome of a later event time has left."""
    waits: list[tuple[int, int]] = []

    def gate(summary: Summary) -> bool:
        if summary.sent == 100 and len(waits) < 20:
            times = [msgspec.json.decode(record.value, type=Outcome).time or 0 for record in read_all(log, TOPICS.outcomes)]
            waits.append((len(read_all(log, TOPICS.requests)), max(times)))
            return False
        return True

    play(log, TIMED, outcome_time="told", gate=gate).run(threading.Event())
    assert len(waits) == 20
    assert waits[-1][0] == 100
    assert waits[-1][1] < 100_000
    assert len(keys(log, TOPICS.requests)) == ROWS


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize("options", [{}, {"delay": 0.05}, {"outcome_time": "told"}])
def test_a_stopped_replay_goes_on_where_it_was(log: Log, options: dict[str, Any]) -> None:
    """Stopped several times in the middle, it has asked each row and told each labelled one exactly once in the end."""
    schema = TIMED if "outcome_time" in options else SCHEMA
    for cut in (30, 90, 91, 150):
        stop = threading.Event()

        def gate(summary: Summary, stop: threading.Event = stop, cut: int = cut) -> bool:
            if summary.skipped_requests + summary.sent >= cut:
                stop.set()
            return True

        play(log, schema, gate=gate, **options).run(stop)
    last = play(log, schema, **options).run(threading.Event())
    assert last.skipped_requests >= 150
    assert keys(log, TOPICS.requests) == ids(range(ROWS))
    told = keys(log, TOPICS.outcomes)
    assert len(told) == len(set(told))
    assert set(told) == set(ids([row for row in LABELLED if row != 13 and not ("outcome_time" in options and row % 7 == 6)]))
    again = play(log, schema, **options).run(threading.Event())
    assert (again.sent, again.outcomes, again.skipped_requests) == (0, 0, ROWS)


def test_what_others_sent_is_not_taken_for_its_own(log: Log) -> None:
    """Another service's CloudEvents may bear keys that look like a row's id; those that bear its id are its own."""
    event = (("ce_id", b"another"),)
    mine = (("ce_id", b"rows-1"),)
    log.append(
        [Message(TOPICS.requests, b'{"age": 0}', b"rows-0", event), Message(TOPICS.requests, b'{"age": 1}', b"x", mine)]
    )
    log.append([Message(TOPICS.outcomes, b'{"outcome": 1}', None, (*event, ("ce_subject", b"rows-1")))])
    letter = (("topic", TOPICS.requests.encode()), ("request_id", b"another"), ("reason", b"not_json"))
    log.append(
        [Message(TOPICS.dead_letters, b"", b"rows-2", letter), Message(TOPICS.requests, b"", b"rows-3", (("ce_id", b""),))]
    )
    summary = play(log, limit=4, answer_wait=0.1).run(threading.Event())
    assert (summary.skipped_requests, summary.skipped_outcomes, summary.sent, summary.outcomes) == (1, 1, 3, 3)
    assert keys(log, TOPICS.requests)[3:] == ids([0, 2, 3])


def test_without_a_predictor_it_ends(log: Log) -> None:
    """Nobody answers: after ``answer_wait`` the outcomes leave all the same, and the rest is counted as unanswered."""
    summary = play(log, limit=20, answer_wait=0.2).run(threading.Event())
    assert (summary.sent, summary.answered, summary.unanswered, summary.outcomes) == (20, 0, 20, 18)
    assert summary.latency_ms_p50 is None


def test_the_rate_is_an_absolute_schedule(log: Log) -> None:
    """Requests are never early: by its own clock, request k left no sooner than k/rate seconds after the first."""
    sent: list[float] = []
    clock = SystemClock()

    def gate(summary: Summary) -> bool:
        sent.append(clock.monotonic())
        return True

    play(log, limit=50, rate=100.0, answer_wait=0.0, gate=gate).run(threading.Event())
    assert len(sent) == 50
    begin = sent[0]
    assert all(at - begin >= place / 100 - 0.021 for place, at in enumerate(sent))


@pytest.mark.usefixtures("echo")
def test_a_closed_gate_leaves_no_burst(log: Log) -> None:
    """After a pause the stream goes on at its pace: the pause is not made up for."""
    sent: list[float] = []
    clock = SystemClock()
    closed = 0

    def gate(summary: Summary) -> bool:
        nonlocal closed
        if summary.sent == 10 and closed < 10:
            closed += 1
            return False
        sent.append(clock.monotonic())
        return True

    summary = play(log, limit=30, rate=100.0, gate=gate).run(threading.Event())
    assert (closed, summary.sent) == (10, 30)
    assert sent[29] - sent[10] >= 19 / 100 - 0.021
