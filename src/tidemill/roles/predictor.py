"""The predictor: micro-batches of requests -> answers, with the champion of ``models``, which changes without a pause.

Two threads share one slot. The preparer follows ``models`` and loads, tries and warms a new champion; the loop takes what is
ready between two batches, as one object: schema, decoder, encoder and model never mix with another version's. The same
champion comes once more where a faster engine for it is ready later. One that is refused changes nothing but an event: the
old one goes on.

Before the first model nothing is polled: requests wait in the log. Every request gets exactly one answer or one dead letter,
in the same commit as the position behind it.
"""

import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
import structlog
from msgspec import Struct

from tidemill.bundle_files import gives
from tidemill.bundles import Bundle
from tidemill.clock import Clock
from tidemill.core.answers import Answerer, Answers
from tidemill.core.decoding import check_content, deadline, event_time, plain_ids, request_id
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.core.versions import Slots
from tidemill.errors import BadRecord, Broken, TidemillError, Unavailable, UnknownModel
from tidemill.learners.base import Model
from tidemill.log.base import Batch, Headers, Log, Message, Record
from tidemill.messages import Event, ModelVersion, Prediction, Topics, to_bytes, to_lines
from tidemill.roles.dead_letters import dead_letter
from tidemill.roles.loop import run_loop
from tidemill.roles.reading import decoded
from tidemill.settings import Predictor as PredictorSettings

ROLE = "predictor"
POLL_SECONDS = 0.25
EVENT_SECONDS = 2.0
"""Between two ``requests_answered``: fresh enough for a person, rare beside the answers."""
POSITION_TRIES = 8
EVENTS_WAITING_MAX = 1000
"""While the log is away; older ones are dropped."""
WARM_ROWS = (1, 10, 100)
SWITCH_SECONDS = 1e-4
RETRY_SECONDS_FIRST, RETRY_SECONDS_MAX = 1.0, 30.0
TRACE_BYTES_MAX = 8192
"""Of the trace headers that go on to an answer: sixteen times what W3C asks for. Anybody can send more."""
_TRACE = frozenset({"traceparent", "tracestate"})
_UNUSABLE = (TidemillError, OSError, MemoryError, ValueError, LookupError, TypeError, msgspec.MsgspecError)
"""What a bundle may do when it is loaded; none of it may stop the answers of the model that serves."""

T = TypeVar("T")
logger = structlog.get_logger()


class Store(Protocol):
    """Of the bundles, what the predictor needs. A bundle is named by its hash: no path from a message is ever opened."""

    def load(self, bundle: str) -> Bundle:
        """Verify and load, without harm whatever it holds; the bundle stays until it is closed. Raises ``BundleRefused``."""
        ...


class Serving(Struct, frozen=True):
    """One version with all that belongs to it. Two may share a bundle: the same model on two engines."""

    version: ModelVersion
    bundle: Bundle
    answerer: Answerer
    engine: str


class Preparer:
    """Follows ``models`` in a thread; ``take`` gives the newest champion once it is ready to answer."""

    def __init__(self, log: Log, topics: Topics, store: Store, bytes_max: int, clock: Clock) -> None:
        self.events: deque[Event] = deque(maxlen=EVENTS_WAITING_MAX)
        self._log = log
        self._topics = topics
        self._store = store
        self._bytes_max = bytes_max
        self._clock = clock
        self._slots = Slots()
        self._tried: ModelVersion | None = None
        self._prepared: ModelVersion | None = None
        self._retry: tuple[float, float] | None = None
        self._ready: Serving | None = None
        self._taken: Bundle | None = None
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preparer", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self) -> None:
        """End the thread (a trial load that is under way is not waited for), and give back what nobody took."""
        self._stop.set()
        self._thread.join(timeout=0.5)
        with self._changed:
            self._put(None)

    def take(self, timeout: float = 0.0) -> Serving | None:
        """The newest champion that is ready and was not taken yet; it is the caller's to close.

        Raises what ended the thread, if anything did.
        """
        with self._changed:
            if self._ready is None and self._failure is None and timeout:
                self._changed.wait(timeout)
            if self._failure is not None:
                raise self._failure
            ready, self._ready = self._ready, None
            if ready is not None:
                self._taken = ready.bundle
            return ready

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except Unavailable as error:
                logger.warning("models_unavailable", error=str(error))
                self._stop.wait(RETRY_SECONDS_FIRST)
            except BaseException as error:
                # The loop raises it again, in the thread that can end the role.
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return

    def _follow(self) -> None:
        """Replay ``models`` and go on with what comes; a champion counts once everything that stood there is read."""
        for records in self._log.follow(self._topics.models, timeout=POLL_SECONDS):
            if self._stop.is_set():
                return
            for record in records:
                self._apply(record)
            if not records and self._slots.champion is not None:
                self._consider(self._slots.champion)

    def _apply(self, record: Record) -> None:
        version = decoded(record, ModelVersion)
        if version is not None:
            self._slots.apply(version)

    def _consider(self, version: ModelVersion) -> None:
        """Prepare a champion that is new, or whose time to be tried again has come."""
        again = self._retry is not None and self._clock.monotonic() >= self._retry[0]
        if version == self._tried and not again:
            return
        first = version != self._tried
        self._tried = version
        if first:
            self._retry = None
        if self._prepared is not None and (version.version, version.bundle) == (
            self._prepared.version,
            self._prepared.bundle,
        ):
            return
        with _giving_way():
            try:
                serving = self._load(version)
            except _UNUSABLE as error:
                self._refuse(version, error, first)
                return
            self._retry, self._prepared = None, version
            self._offer(serving)
            faster = self._quicken(serving)
            if faster is not None:
                self._offer(faster)

    def _offer(self, serving: Serving) -> None:
        with self._changed:
            self._put(serving)
            if self._stop.is_set():
                self._put(None)

    def _load(self, version: ModelVersion) -> Serving:
        """On the engine that is ready at once."""
        bundle = self._store.load(version.bundle)
        try:
            return self._serving(version, bundle, bundle.model)
        except BaseException:
            bundle.close()
            raise

    def _quicken(self, serving: Serving) -> Serving | None:
        """The same version on a faster engine, if there is one that gives the golden answers."""
        try:
            model = serving.bundle.model.faster()
            if model is None:
                return None
            if gives(model, serving.bundle.golden):
                return self._serving(serving.version, serving.bundle, model)
            reason = "golden answers differ"
        except _UNUSABLE as error:
            reason = f"{type(error).__name__}: {error}"
        logger.warning("engine_refused", bundle=serving.bundle.hash, reason=reason, keeps=serving.engine)
        return None

    def _serving(self, version: ModelVersion, bundle: Bundle, model: Model) -> Serving:
        """Ready and warm."""
        for rows in WARM_ROWS:
            model.predict(np.full((rows, len(bundle.schema.columns)), np.nan))
        answerer = Answerer(MatrixDecoder(bundle.encoder, self._bytes_max), model.predict, bundle.threshold)
        return Serving(version, bundle, answerer, model.engine)

    def _refuse(self, version: ModelVersion, error: Exception, first: bool) -> None:
        """Tell it once. What is only away or not there yet is tried again, later each time."""
        if isinstance(error, Unavailable | UnknownModel | OSError):
            wait = RETRY_SECONDS_FIRST if self._retry is None else min(2 * self._retry[1], RETRY_SECONDS_MAX)
            self._retry = (self._clock.monotonic() + wait, wait)
        else:
            self._retry = None
        if first:
            told = {"version": version.version, "bundle": version.bundle, "error": f"{type(error).__name__}: {error}"}
            logger.error("bundle_refused", **told)
            self.events.append(Event("bundle_refused", ROLE, self._clock.now_ms(), told))

    def _put(self, serving: Serving | None) -> None:
        if self._ready is not None and self._ready.bundle not in (self._taken, serving and serving.bundle):
            self._ready.bundle.close()
        self._ready = serving
        self._changed.notify_all()


@contextmanager
def _giving_way() -> Iterator[None]:
    """While a model is made ready, whoever wants the interpreter gets it at once, not after Python's 5 ms: an answer may ask
    for it fifty times, and one took 53 ms beside a table that was built in 84.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


class Counts:
    """What was done since the last event. A crash loses them: they are for people, the truth is in the topics."""

    def __init__(self) -> None:
        self.answered = 0
        self.delay_ms = 0
        self.delay_ms_max = 0
        self.by_name = {name: Counter[str]() for name in ("dead", "missing", "unseen", "outside")}

    def add(self, answers: Answers, columns: Sequence[str], delays_ms: Sequence[int]) -> None:
        """Count a batch: its answers, how long each was on its way, and by feature what was odd in them."""
        self.answered += len(delays_ms)
        self.delay_ms += sum(delays_ms)
        self.delay_ms_max = max(self.delay_ms_max, max(delays_ms, default=0))
        for name in ("missing", "unseen", "outside"):
            counts = getattr(answers.encoded, name)
            if counts.any():
                self.by_name[name].update({columns[i]: int(counts[i]) for i in counts.nonzero()[0]})

    def __bool__(self) -> bool:
        return self.answered > 0 or bool(self.by_name["dead"])

    def values(self) -> dict[str, Any]:
        """The values of ``requests_answered``."""
        mean = self.delay_ms / self.answered if self.answered else 0.0
        return {
            "answered": self.answered,
            "delay_ms_mean": mean,
            "delay_ms_max": self.delay_ms_max,
            **{name: dict(counter) for name, counter in self.by_name.items()},
        }


class Asked(NamedTuple):
    """Requests whose keys and headers can be used, as columns: their rows in the batch, and their ids."""

    rows: Sequence[int]
    ids: Sequence[str]

    def those_at(self, places: Sequence[int]) -> "Asked":
        """Some of them, in order."""
        return Asked(_at(places, self.rows), _at(places, self.ids))


class Refused(NamedTuple):
    """A request that gets a dead letter: its row in the batch, its id if that is known, and why."""

    row: int
    id: str
    error: BadRecord


class Predictor:
    """The role. One at a time answers on a SQLite log; others wait with their model ready. ``after_swap`` is called when
    another version serves, the first one as well.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        store: Store,
        settings: PredictorSettings,
        clock: Clock,
        after_swap: Callable[[], object] = lambda: None,
    ) -> None:
        self._log = log
        self._topics = topics
        self._settings = settings
        self._clock = clock
        self._after_swap = after_swap
        self._preparer = Preparer(log, topics, store, settings.request_bytes_max, clock)
        self._serving: Serving | None = None
        self._counts = Counts()
        self._told_at = clock.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Answer until ``stop`` is set. Raises ``Broken`` where the log has lost the position but not the answers."""
        reader = self._log.join(ROLE, [self._topics.requests])
        self._preparer.start()
        try:
            self._check_position()
            self._wait_for_model(stop)
            letters = self._topics.dead_letters
            run_loop(ROLE, reader, self._handle, stop, self._settings.batch_max, POLL_SECONDS, self._idle, letters)
            self._tell(0.0)
        finally:
            self._preparer.close()
            if self._serving is not None:
                self._serving.bundle.close()
            reader.close()

    def _check_position(self) -> None:
        """A position that the log has dropped must not pass for a first start: every request would be answered again."""
        for _ in range(POSITION_TRIES):
            answered = any(end > 0 for _, end in self._log.bounds(self._topics.predictions).values())
            if not answered or self._log.committed(ROLE):
                return
            self._clock.sleep(POLL_SECONDS)  # answers may become visible before the position
        raise Broken(
            f"{self._topics.requests}: answers exist, but the position up to which requests were answered is gone; "
            f"say where to go on: tidemill log seek {ROLE} {self._topics.requests} end (or beginning)"
        )

    def _wait_for_model(self, stop: threading.Event) -> None:
        told = False
        while self._serving is None and not stop.is_set():
            self._swap(POLL_SECONDS)
            self._tell(EVENT_SECONDS)
            if self._serving is None and not told:
                logger.info("waiting_for_model", topic=self._topics.models)
                told = True

    def _idle(self) -> None:
        self._swap()
        self._tell(EVENT_SECONDS)

    def _tell(self, seconds: float) -> None:
        """Publish the events that are due, apart from any batch: a commit may fail, and its batch comes again, they do not.

        While the log is away they wait.
        """
        if self._counts and self._clock.monotonic() - self._told_at >= seconds:
            serving = self._serving
            served = {"version": serving.version.version, "engine": serving.engine} if serving else {}
            values = self._counts.values() | served
            self._preparer.events.append(Event("requests_answered", ROLE, self._clock.now_ms(), values))
            self._counts, self._told_at = Counts(), self._clock.monotonic()
        events = list(self._preparer.events)
        if not events:
            return
        with suppress(Unavailable):
            self._log.append([Message(self._topics.events, to_bytes(event)) for event in events])
            for _ in events:
                self._preparer.events.popleft()

    def _swap(self, timeout: float = 0.0) -> None:
        """Let a champion that is ready serve from here on."""
        new = self._preparer.take(timeout)
        if new is None:
            return
        old, self._serving = self._serving, new
        if old is not None and old.bundle is new.bundle:
            faster = {"version": new.version.version, "engine": new.engine, "old_engine": old.engine}
            logger.info("engine_swapped", **faster)
            self._preparer.events.append(Event("engine_swapped", ROLE, self._clock.now_ms(), faster))
            return
        told: dict[str, Any] = {"version": new.version.version, "bundle": new.version.bundle, "engine": new.engine}
        if old is not None:
            told |= {"old_version": old.version.version, "old_bundle": old.version.bundle}
            old.bundle.close()
        del old
        self._after_swap()
        logger.info("model_swapped", **told)
        self._preparer.events.append(Event("model_swapped", ROLE, self._clock.now_ms(), told))

    def _handle(self, batch: Batch) -> list[Message]:
        """One answer or dead letter for every request of the batch."""
        self._swap()
        self._tell(EVENT_SECONDS)
        serving = self._serving
        assert serving is not None, "the loop starts with a model"  # noqa: S101
        refused: list[Refused] = []
        asked = self._asked(batch, refused)
        answers = serving.answerer.answer(_at(asked.rows, batch.values))
        now = self._clock.now_ms()
        refused += [Refused(asked.rows[place], asked.ids[place], error) for place, error in answers.bad]
        answered = asked.those_at(answers.rows)
        times = _at(answered.rows, batch.times_ms)
        self._counts.add(answers, serving.bundle.schema.columns, [now - at for at in times])
        self._counts.by_name["dead"].update(bad.error.reason for bad in refused)
        return [
            *self._predictions(serving.version, answered.ids, times, answers, now, _traces(batch, answered.rows)),
            *(dead_letter(self._topics.dead_letters, batch.record(bad.row), bad.error, ROLE, bad.id) for bad in refused),
        ]

    def _asked(self, batch: Batch, refused: list[Refused]) -> Asked:
        """The requests whose envelope is good and whose deadline has not passed; the others go to ``refused``."""
        names = plain_ids(batch.keys, batch.headers)
        if names is not None:
            return Asked(range(len(batch)), names)
        now, require_id = self._clock.now_ms(), self._settings.require_id
        places = zip(batch.keys, batch.topics, batch.partitions, batch.offsets, strict=True)
        rows, ids = list[int](), list[str]()
        for row, place in enumerate(places):
            headers, name = batch.headers[row], ""
            try:
                name = request_id(*place, require_id, headers)
                if headers:
                    check_content(headers)
                    event_time(headers, 0)  # an unreadable time is refused here; the recorder keeps a good one
                    _check_deadline(headers, now)
                rows.append(row)
                ids.append(name)
            except BadRecord as error:
                refused.append(Refused(row, name, error))
        return Asked(rows, ids)

    def _predictions(
        self,
        version: ModelVersion,
        ids: Sequence[str],
        times: Sequence[int],
        answers: Answers,
        now: int,
        traces: Iterable[Headers],
    ) -> Iterator[Message]:
        number, bundle = version.version, version.bundle
        scores = answers.predictions, answers.probability, answers.probabilities, answers.value
        predictions = [
            Prediction(id, label, number, bundle, at, now, probability, probabilities, value)
            for id, at, label, probability, probabilities, value in zip(ids, times, *scores, strict=True)
        ]
        for id, value, trace in zip(ids, to_lines(predictions), traces, strict=True):
            yield Message(self._topics.predictions, value, id.encode(), trace)


def _at(rows: Sequence[int], column: Sequence[T]) -> Sequence[T]:
    """A column's values in these rows, which are in order."""
    return column if len(rows) == len(column) else [column[row] for row in rows]


def _traces(batch: Batch, rows: Sequence[int]) -> list[Headers]:
    """What goes on of the headers of these rows."""
    return [_trace(batch.headers[row]) if batch.headers[row] else () for row in rows]


def _check_deadline(headers: Headers, now: int) -> None:
    limit = deadline(headers)
    if limit is not None and limit < now:
        raise BadRecord("expired", "deadline", f"it was {now - limit} ms ago")


def _trace(headers: Headers) -> Headers:
    """The trace context as it came; without it an answer is still an answer, so one of any other size is dropped."""
    trace = tuple(header for header in headers if header[0] in _TRACE)
    return trace if sum(len(name) + len(value) for name, value in trace) <= TRACE_BYTES_MAX else ()
