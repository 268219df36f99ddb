"""The client for the user's service: ask for predictions, and report what became true."""

import math
import operator
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import msgspec

from tidemill.core.decoding import outcome_id
from tidemill.core.decoding import request_id as id_of_request
from tidemill.errors import BadRecord, TidemillError, Unavailable
from tidemill.log.base import Headers, Log, Message, Record
from tidemill.messages import Label, Outcome, Prediction, Topics, to_bytes

Answer = Prediction | BadRecord

FOLLOW_SECONDS = 0.1
"""How often a follower without records looks whether the client was closed; an answer is seen at once all the same."""

STAND_SECONDS_MAX = 30.0
"""How long a new client waits until its followers stand at the ends of their topics."""


class NoAnswer(Unavailable, TimeoutError):
    """Not every request was answered in time. ``answers`` has those that were, by request id; the others stay in the log
    and are answered later.
    """

    def __init__(self, text: str, answers: Mapping[str, Answer]) -> None:
        super().__init__(text)
        self.answers = answers


class _Call:
    """A caller that waits for the answers to some ids; ``failure`` ends its wait without them."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.open = set(ids)
        self.answers: dict[str, Answer] = {}
        self.done = threading.Event()
        self.failure: TidemillError | None = None


class Client:
    """Sends requests and outcomes to a project's log and receives the answers; may be shared by threads.

    A request id names one request for ever: the same id sent again is answered again, but only the first request counts.
    """

    def __init__(self, log: Log, topics: Topics, on_close: Callable[[], None] = lambda: None) -> None:
        """Returns once it follows the answers from here on, so that none to a later request can be missed."""
        self._log = log
        self._topics = topics
        self._on_close = on_close
        self._lock = threading.Lock()
        self._waiting: dict[str, _Call] = {}
        self._failure: TidemillError | None = None
        self._closing = threading.Event()
        self._threads = [
            self._start_following(topics.predictions),
            self._start_following(topics.dead_letters),
        ]
        for _, stands in self._threads:
            if not stands.wait(STAND_SECONDS_MAX):
                self.close()
                raise Unavailable(f"the log did not show the end of its topics within {STAND_SECONDS_MAX:g} s")
        if self._failure is not None:
            self.close()
            raise self._failure

    def predict(self, features: Mapping[str, Any], request_id: str | None = None, timeout: float = 5.0) -> Prediction:
        """The answer to one request. ``request_id`` is a new one by default; outcomes are reported under it.

        Raises ``BadRecord`` where the features cannot be sent or the predictor refused them, ``NoAnswer`` after ``timeout``
        seconds.
        """
        [answer] = self.predict_many([features], None if request_id is None else [request_id], timeout)
        if isinstance(answer, BadRecord):
            raise answer
        return answer

    def predict_many(
        self, rows: Iterable[Mapping[str, Any]], ids: Iterable[str] | None = None, timeout: float = 5.0
    ) -> list[Answer]:
        """The answers in the order of the rows, sent together; a row that cannot be used has its ``BadRecord`` there.

        Raises ``NoAnswer``, which has what did come, after ``timeout`` seconds.
        """
        rows = list(rows)
        names = [new_id() for _ in rows] if ids is None else list(ids)
        if len(names) != len(rows):
            raise BadRecord("bad_id", "", f"{len(names)} ids for {len(rows)} rows")
        if len(set(names)) != len(names):
            raise BadRecord("bad_id", "", "an id is there twice")
        built = [self._request(name, row) for name, row in zip(names, rows, strict=True)]
        messages = [message for message in built if isinstance(message, Message)]
        sent = [name for name, message in zip(names, built, strict=True) if isinstance(message, Message)]
        answers = self._ask(messages, sent, timeout) if messages else {}
        refused = {name: bad for name, bad in zip(names, built, strict=True) if isinstance(bad, BadRecord)}
        return [refused[name] if name in refused else answers[name] for name in names]

    def send(self, features: Mapping[str, Any], request_id: str | None = None, time_ms: SupportsIndex | None = None) -> str:
        """Send a request without waiting for its answer, with its event time if it is not now. The request's id."""
        name = new_id() if request_id is None else request_id
        at = _time(time_ms)
        message = self._request(name, features, () if at is None else (("time", b"%d" % at),))
        if isinstance(message, BadRecord):
            raise message
        self._log.append([message])
        return name

    def report(self, request_id: str, outcome: Label, time_ms: SupportsIndex | None = None) -> None:
        """Report what became true about a request, and when if it was not now. Durable when it returns."""
        self.report_many({request_id: outcome}, time_ms)

    def report_many(self, outcomes: Mapping[str, Label], time_ms: SupportsIndex | None = None) -> None:
        """Report several at once, by request id: all or none."""
        self._log.append([outcome_message(self._topics, name, outcome, time_ms) for name, outcome in outcomes.items()])

    def close(self) -> None:
        """Stop following; calls that wait end with ``Unavailable``. May be called twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._fail(Unavailable("the client was closed"))
        for thread, _ in self._threads:
            thread.join()
        self._on_close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, name: str, features: Mapping[str, Any], headers: Headers = ()) -> Message | BadRecord:
        try:
            return request_message(self._topics, name, features, headers)
        except BadRecord as error:
            return error

    def _ask(self, messages: Sequence[Message], ids: Sequence[str], timeout: float) -> dict[str, Answer]:
        call = _Call(ids)
        with self._lock:
            if self._failure is not None:
                raise self._failure
            taken = next((name for name in ids if name in self._waiting), None)
            if taken is not None:
                raise BadRecord("bad_id", "", f"a request with the id {taken!r} waits for its answer already")
            self._waiting.update(dict.fromkeys(ids, call))
        try:
            self._log.append(messages)
            call.done.wait(timeout)
        finally:
            with self._lock:
                for name in call.open:
                    self._waiting.pop(name, None)
        if call.failure is not None:
            raise call.failure
        if call.open:
            raise NoAnswer(_unanswered(sorted(call.open), len(ids), timeout), call.answers)
        return call.answers

    def _start_following(self, topic: str) -> tuple[threading.Thread, threading.Event]:
        stands = threading.Event()
        thread = threading.Thread(target=self._follow, args=(topic, stands), name=f"follow {topic}", daemon=True)
        thread.start()
        return thread, stands

    def _follow(self, topic: str, stands: threading.Event) -> None:
        """A follower that fails ends every call: an answer could have passed unseen."""
        try:
            for records in self._log.follow(topic, "end", FOLLOW_SECONDS):
                for record in records:
                    self._hand_over(record)
                stands.set()
                if self._closing.is_set():
                    return
        except TidemillError as error:
            self._fail(error)
        finally:
            stands.set()

    def _hand_over(self, record: Record) -> None:
        name = id_of(record, self._topics)
        if name not in self._waiting:
            return
        answer = answer_of(record, self._topics)
        with self._lock:
            call = self._waiting.pop(name, None) if answer is not None else None
            if call is not None and answer is not None:
                call.answers[name] = answer
                call.open.discard(name)
                if not call.open:
                    call.done.set()

    def _fail(self, error: TidemillError) -> None:
        with self._lock:
            self._failure = self._failure or error
            for call in self._waiting.values():
                call.failure = error
                call.done.set()


def new_id() -> str:
    """A request id that nobody else has."""
    return uuid.uuid4().hex


def id_of(record: Record, topics: Topics) -> str:
    """The id of the request that a record of an app's topics is about; empty where it has none that can be used."""
    try:
        if record.topic == topics.requests:
            return id_of_request(record.key, record.topic, record.partition, record.offset, False, record.headers)
        if record.topic == topics.outcomes:
            return outcome_id(record.key, record.headers)
    except BadRecord:
        return ""
    name = dict(record.headers).get("request_id") if record.topic == topics.dead_letters else None
    return (record.key or b"" if name is None else name).decode("utf-8", "replace")


def answer_of(record: Record, topics: Topics) -> Answer | None:
    """What a record of predictions or dead letters says about a request; None for the dead letter of something else."""
    if record.topic == topics.predictions:
        try:
            return _decoder.decode(record.value)
        except msgspec.DecodeError as error:
            return BadRecord("not_json", "", f"the answer is no prediction: {error}")
    headers = {name: value.decode("utf-8", "replace") for name, value in record.headers}
    if headers.get("topic") != topics.requests:
        return None
    return BadRecord(headers.get("reason", "unknown"), headers.get("field", ""), headers.get("detail", ""))


def request_message(topics: Topics, request_id: str, features: Mapping[str, Any], headers: Headers = ()) -> Message:
    """The record of a request. Raises ``BadRecord`` for an id or features that no predictor could read."""
    if not isinstance(features, Mapping):
        raise BadRecord("not_an_object", "", f"the features are a {type(features).__name__}, not a mapping")
    for field, value in features.items():
        if not isinstance(field, str):
            raise BadRecord("not_an_object", repr(field), "a feature's name must be text")
        _check_finite(value, field)
    try:
        value = msgspec.json.encode(dict(features), enc_hook=_plain)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadRecord("not_json", "", str(error)) from error
    return Message(topics.requests, value, _key(request_id), headers)


def outcome_message(topics: Topics, request_id: str, outcome: Label, time_ms: SupportsIndex | None = None) -> Message:
    """The record of an outcome. Raises ``BadRecord`` for one that is neither text, a finite number nor true or false."""
    if type(outcome) not in (str, int, float, bool) and hasattr(outcome, "item"):
        outcome = _plain(outcome)
    if not isinstance(outcome, str | int | float | bool):
        raise BadRecord("wrong_type", "outcome", f"a {type(outcome).__name__} is no label or value")
    _check_finite(outcome, "outcome")
    return Message(topics.outcomes, to_bytes(Outcome(outcome, _time(time_ms))), _key(request_id))


def _key(name: str) -> bytes:
    if not isinstance(name, str):
        raise BadRecord("bad_id", "", f"a request id is text, not a {type(name).__name__}")
    try:
        key = name.encode()
    except UnicodeEncodeError as error:
        raise BadRecord("bad_id", "", str(error)) from error
    id_of_request(key, "", 0, 0, require_id=True)
    return key


def _time(time_ms: SupportsIndex | None) -> int | None:
    """NumPy's whole numbers are good ones, too."""
    try:
        return None if time_ms is None else operator.index(time_ms)
    except TypeError:
        raise BadRecord("bad_time", "time", f"an event time is a whole number of milliseconds, not {time_ms!r}") from None


def _check_finite(value: Any, field: str) -> None:
    """JSON has no NaN and infinities; written as null they would silently become a missing value. NumPy's are floats too."""
    number = value if isinstance(value, float) or not hasattr(value, "item") else _plain(value)
    if isinstance(number, float) and not math.isfinite(number):
        instead = "an outcome must be known" if field == "outcome" else "send None for a missing value"
        raise BadRecord("not_finite", field, f"JSON has no {number}; {instead}")


def _plain(value: Any) -> Any:
    """A NumPy scalar as the number or text that it holds."""
    try:
        return value.item()
    except (AttributeError, ValueError, TypeError) as error:
        raise BadRecord("wrong_type", "", f"a {type(value).__name__} cannot be sent") from error


def _unanswered(missing: Sequence[str], asked: int, timeout: float) -> str:
    which = f"{len(missing)} of {asked} requests, the first {missing[0]!r}," if asked > 1 else f"request {missing[0]!r}"
    return f"{which} had no answer within {timeout:g} s: look at `tidemill status` for the predictor and its model"


_decoder = msgspec.json.Decoder(Prediction)
