"""The client over a real log, with an echo in the predictor's place."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np
import pytest

from tidemill.app.client import Client, NoAnswer
from tidemill.errors import BadRecord, Unavailable
from tidemill.log.base import Batch, Log, Message, Record, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Outcome, Prediction, Topics, to_bytes
from tidemill.roles.loop import run_loop

TOPICS = Topics.of("echo")


def answers(batch: Batch) -> list[Message]:
    """``age`` comes back as the value; a request with ``bad`` is a dead letter, one with ``deaf`` gets nothing."""
    return [message for record in batch.records() if (message := answer(record)) is not None]


def answer(record: Record) -> Message | None:
    features = msgspec.json.decode(record.value)
    name = (record.key or b"").decode()
    if "deaf" in features:
        return None
    if "bad" in features:
        headers = {"topic": record.topic, "reason": "wrong_type", "field": "bad", "detail": "text for a number"}
        encoded = tuple((header, text.encode()) for header, text in headers.items())
        return Message(TOPICS.dead_letters, record.value, record.key, encoded)
    prediction = Prediction(name, 1, 7, "abc", record.time_ms, record.time_ms, value=features["age"])
    return Message(TOPICS.predictions, to_bytes(prediction), record.key)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    found = SqliteLog(tmp_path / "log")
    found.create([Topic(getattr(TOPICS, field)) for field in TOPICS.__struct_fields__])
    yield found
    found.close()


@pytest.fixture
def echo(log: Log) -> Iterator[None]:
    stop = threading.Event()
    reader = log.join("predictor", [TOPICS.requests])
    thread = threading.Thread(target=run_loop, args=("predictor", reader, answers, stop, 1000, 0.05))
    thread.start()
    yield
    stop.set()
    thread.join()
    reader.close()


@pytest.fixture
def client(log: Log) -> Iterator[Client]:
    with Client(log, TOPICS) as found:
        yield found


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.usefixtures("echo")
def test_predict_returns_the_answer_to_its_request(client: Client, log: Log) -> None:
    """The id given is the record's key; without one a new id is made."""
    found = client.predict({"age": 39.5}, request_id="mine")
    assert (found.request_id, found.value, found.version) == ("mine", 39.5, 7)
    other = client.predict(MappingProxyType({"age": 1}))
    assert len(other.request_id) == 32
    assert [record.key for record in read_all(log, TOPICS.requests)] == [b"mine", other.request_id.encode()]


@pytest.mark.usefixtures("echo")
def test_a_dead_letter_is_raised_with_its_reason(client: Client) -> None:
    """What the predictor refused comes back as BadRecord with the reason, the field and the detail."""
    with pytest.raises(BadRecord) as caught:
        client.predict({"bad": "x"})
    assert (caught.value.reason, caught.value.field, caught.value.detail) == ("wrong_type", "bad", "text for a number")


def test_a_dead_letter_is_about_the_request_that_it_names(client: Client, log: Log) -> None:
    """Not about its key, which of a CloudEvent is any bytes; one that names none is about nobody's request."""
    found: list[BadRecord] = []

    def ask() -> None:
        with pytest.raises(BadRecord) as caught:
            client.predict({"age": 1}, request_id="mine", timeout=60)
        found.append(caught.value)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: read_all(log, TOPICS.requests))
    for key, name, reason in ((b"mine", b"other", b"not_mine"), (b"mine", b"", b"nobodys"), (b"\xff", b"mine", b"mine")):
        headers = (("request_id", b"mine"), ("topic", TOPICS.requests.encode()), ("request_id", name), ("reason", reason))
        log.append([Message(TOPICS.dead_letters, b"{}", key, headers)])
    thread.join(timeout=60)
    assert [error.reason for error in found] == ["mine"]


@pytest.mark.usefixtures("echo")
def test_predict_many_keeps_the_order_and_marks_bad_rows(client: Client, log: Log) -> None:
    """Answers stand where their rows stood; a row that cannot be sent or was refused does not fail the others."""
    rows: list[dict[str, float]] = [{"age": 1}, {"age": float("nan")}, {"bad": 1}, {"age": 4}]
    found = client.predict_many(rows, ids=["a", "b", "c", "d"])
    assert [one.reason if isinstance(one, BadRecord) else one.value for one in found] == [1, "not_finite", "wrong_type", 4]
    assert [record.key for record in read_all(log, TOPICS.requests)] == [b"a", b"c", b"d"]
    assert client.predict_many([]) == []


@pytest.mark.usefixtures("echo")
def test_threads_get_their_own_answers(client: Client) -> None:
    """Eight threads that share a client each receive the answers to their own requests."""
    wrong: list[float] = []

    def ask(number: int) -> None:
        for step in range(20):
            value = number * 1000 + step
            found = client.predict({"age": value}, timeout=30)
            if found.value != value:
                wrong.append(value)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.usefixtures("echo")
def test_no_answer_is_missed_by_a_new_client(log: Log) -> None:
    """A request sent right after construction is answered to the client: it follows before it sends."""
    for number in range(20):
        with Client(log, TOPICS) as one:
            assert one.predict({"age": number}).value == number


def test_no_answer_in_time(client: Client, log: Log) -> None:
    """Without a predictor: an error that is both ours and a TimeoutError; the request stays in the log."""
    with pytest.raises(TimeoutError, match="request 'lonely' had no answer within"):
        client.predict({"age": 1}, request_id="lonely", timeout=0.05)
    with pytest.raises(Unavailable):
        client.predict({"age": 1}, timeout=0.05)
    assert len(read_all(log, TOPICS.requests)) == 2


@pytest.mark.usefixtures("echo")
def test_no_answer_to_some_hands_over_the_others(client: Client) -> None:
    """What came in time is in the error."""
    with pytest.raises(NoAnswer, match="1 of 2 requests, the first 'b'") as caught:
        client.predict_many([{"age": 1}, {"deaf": 1}], ids=["a", "b"], timeout=1.0)
    assert list(caught.value.answers) == ["a"]


@pytest.mark.usefixtures("echo")
def test_an_id_may_be_asked_again_after_a_timeout(client: Client) -> None:
    """A call that gave up leaves nothing behind under its id."""
    with pytest.raises(NoAnswer):
        client.predict({"deaf": 1}, request_id="again", timeout=0.05)
    assert client.predict({"age": 2}, request_id="again").value == 2


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        ({"age": float("nan")}, "not_finite"),
        ({"age": np.float32("inf")}, "not_finite"),
        ([1, 2], "not_an_object"),
        ("age", "not_an_object"),
        ({1: 2}, "not_an_object"),
        ({"age": object()}, "wrong_type"),
        ({"age": np.array([1, 2])}, "wrong_type"),
        ({"job": "\ud800"}, "not_json"),
    ],
)
def test_features_that_cannot_be_sent(client: Client, log: Log, features: object, reason: str) -> None:
    """They are refused here, before anything is written."""
    with pytest.raises(BadRecord) as caught:
        client.predict(features)  # type: ignore[arg-type]
    assert caught.value.reason == reason
    assert read_all(log, TOPICS.requests) == []


@pytest.mark.parametrize("name", ["", "x" * 513, "a\0b", "\ud800", 7])
def test_ids_that_cannot_be_used(client: Client, log: Log, name: object) -> None:
    """An id is 1 to 512 bytes of text without NUL, for requests and outcomes alike."""
    for act in (
        lambda: client.predict({"age": 1}, request_id=name),  # type: ignore[arg-type]
        lambda: client.report(name, 1),  # type: ignore[arg-type]
    ):
        with pytest.raises(BadRecord, match="bad_id"):
            act()
    assert read_all(log, TOPICS.requests) == read_all(log, TOPICS.outcomes) == []


def test_ids_of_many_must_fit(client: Client) -> None:
    """As many ids as rows, each once."""
    with pytest.raises(BadRecord, match="1 ids for 2 rows"):
        client.predict_many([{}, {}], ids=["a"])
    with pytest.raises(BadRecord, match="twice"):
        client.predict_many([{}, {}], ids=["a", "a"])


def test_numpy_values_are_sent_as_what_they_hold(client: Client, log: Log) -> None:
    """A row of a frame may hold NumPy scalars; None stays null."""
    client.send({"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True), "d": None, "e": np.str_("x")}, "r", time_ms=5)
    [record] = read_all(log, TOPICS.requests)
    assert msgspec.json.decode(record.value) == {"a": 3, "b": 0.5, "c": True, "d": None, "e": "x"}
    assert record.headers == (("time", b"5"),)


def test_outcomes_are_reported_under_their_ids(client: Client, log: Log) -> None:
    """One or many, with or without the time at which they became true."""
    client.report("a", 1, time_ms=9)
    client.report_many({"b": "yes", "c": np.float64(2.5)})
    records = read_all(log, TOPICS.outcomes)
    assert [record.key for record in records] == [b"a", b"b", b"c"]
    decoded = [msgspec.json.decode(record.value, type=Outcome) for record in records]
    assert decoded == [Outcome(1, 9), Outcome("yes"), Outcome(2.5)]


@pytest.mark.parametrize("outcome", [float("nan"), np.float64("inf"), None, [1], {}])
def test_outcomes_that_are_no_label(client: Client, log: Log, outcome: object) -> None:
    """They are refused, and none of the same call is written."""
    with pytest.raises(BadRecord):
        client.report_many({"good": 1, "bad": outcome})  # type: ignore[dict-item]
    assert read_all(log, TOPICS.outcomes) == []


def test_closing_ends_calls_that_wait(log: Log) -> None:
    """``close`` may be called twice; a thread that waits for an answer gets Unavailable, and so does a later call."""
    closed: list[int] = []
    client = Client(log, TOPICS, on_close=lambda: closed.append(1))
    errors: list[Exception] = []

    def ask() -> None:
        try:
            client.predict({"age": 1}, timeout=60)
        except Unavailable as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: read_all(log, TOPICS.requests))
    client.close()
    client.close()
    thread.join(timeout=20)
    assert [str(error) for error in errors] == ["the client was closed"]
    assert closed == [1]
    with pytest.raises(Unavailable):
        client.predict({"age": 1})


def test_a_time_that_is_no_number_is_refused_before_it_is_sent(client: Client) -> None:
    """Of a request and of an outcome, where NumPy's whole numbers are good ones; an unknown outcome is no missing value."""
    with pytest.raises(BadRecord, match="bad_time"):
        client.send({"x": 1}, time_ms="abc")  # type: ignore[arg-type]
    with pytest.raises(BadRecord, match="bad_time"):
        client.report("r1", 1, time_ms="abc")  # type: ignore[arg-type]
    client.send({"x": 1}, "timed", time_ms=np.int64(1_700_000_000_000))
    client.report("timed", 1, time_ms=np.int64(1_700_000_000_000))
    with pytest.raises(BadRecord, match="an outcome must be known"):
        client.report("r1", float("nan"))
