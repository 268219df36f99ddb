"""The recorder: what flows through the log becomes facts in the lake, each record once.

A turn has four steps, and a process may die between any two of them:

1. poll until enough records wait, or the oldest waits long enough; nothing is written;
2. append each table's rows with the position behind them, in one Delta commit a table;
3. commit: the dead letters and the group's position become visible together;
4. maintain the tables.

After 2 the lake is ahead of the group: the records come again, and rows below the table's position are dropped. Where the
lake is behind (a table was deleted or put back) the reader goes back to the lake's position, and dead letters of records
that the group had passed are not sent a second time.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from typing import Any

import msgspec
import polars as pl
import structlog

from tidemill import settings
from tidemill.clock import Clock
from tidemill.core.decoding import event_time, outcome_id, plain_ids, request_id_or_place
from tidemill.core.outcomes import OutcomeDecoder
from tidemill.core.schema import Schema
from tidemill.errors import BadRecord, Broken, Unavailable
from tidemill.failpoints import failpoint
from tidemill.lake import COLUMNS, Lake, TableName
from tidemill.log.base import Batch, Headers, Log, Message, Reader, Record
from tidemill.messages import Prediction, Topics
from tidemill.roles.dead_letters import dead_letter
from tidemill.roles.pauses import Pauses

logger = structlog.get_logger()

GROUP = "recorder"
TABLES: tuple[TableName, ...] = ("requests", "predictions", "outcomes", "dead_letters")

BEHIND = 10
"""While more waits in the log, so many times ``flush_rows`` are written at once ..."""
BEHIND_BYTES = 32 << 20
"""... or as many records as have so many bytes."""

_PATIENCE_SECONDS = 0.25  # how late a stop may be noticed
_PAUSE_SECONDS = 1.0  # between two tries while the lake or the log is away
_decode_prediction = msgspec.json.Decoder(Prediction).decode
_encode = msgspec.json.Encoder().encode

Bad = list[tuple[Record, BadRecord]]
Columns = dict[str, Sequence[Any]]
Read = tuple[Batch, Columns, Bad]
"""The good records of a batch of one topic, what their table holds of them besides their places, and the bad ones."""


def application(topic: str, partition: int) -> str:
    """The name under which a table holds the recorder's position in a partition of its topic."""
    return f"{GROUP}:{topic}:{partition}"


class Recorder:
    """The one writer of requests, predictions, outcomes and dead letters in the lake; others wait as standbys."""

    def __init__(self, log: Log, topics: Topics, lake: Lake, schema: Schema, settings: settings.Lake, clock: Clock) -> None:
        self._log = log
        self._topics = topics
        self._lake = lake
        self._outcomes = OutcomeDecoder(schema)
        self._settings = settings
        self._clock = clock
        self._tables: dict[str, TableName] = {getattr(topics, table): table for table in TABLES}
        self._read: dict[TableName, Callable[[Batch], Read]] = {
            "requests": _requests,
            "predictions": _predictions,
            "outcomes": self._read_outcomes,
            "dead_letters": _dead_letters,
        }

    def run(self, stop: threading.Event) -> None:
        """Record until ``stop``; what was polled by then is written. While lake or log are away, try again."""
        waiting, pauses = False, Pauses(GROUP, "recording_paused", self._log, self._topics, self._clock)
        while not stop.is_set():
            try:
                if all(self._lake.hold(table) for table in TABLES):
                    self._record(stop)
                    continue
                if not waiting:
                    logger.info("standby_started", role=GROUP)
                waiting = True
                stop.wait(_PATIENCE_SECONDS)
            except Unavailable as error:
                pauses.tell(error)
                stop.wait(_PAUSE_SECONDS)

    def _record(self, stop: threading.Event) -> None:
        reader = self.start()
        try:
            while not stop.is_set():
                self._turn(reader, self._patience())
            if self._polled:
                self._flush(reader)
        finally:
            reader.close()

    def start(self) -> Reader:
        """The group's reader, where both the lake and the group have everything before."""
        reader = self._log.join(GROUP, list(self._tables))
        try:
            self._align(reader)
        except BaseException:
            reader.close()
            raise
        return reader

    def drain(self, reader: Reader) -> None:
        """Record all that stands in the log now, for whoever takes the steps himself."""
        while self._turn(reader, 0.0):
            pass
        if self._polled:
            self._flush(reader)

    def _turn(self, reader: Reader, patience: float) -> int:
        """Poll, and flush what is due; how many records came."""
        room = self._settings.flush_rows - self._polled % self._settings.flush_rows
        batch = reader.poll(room, patience)
        self._take(batch)
        if self._due(behind=len(batch) == room):
            self._flush(reader)
        return len(batch)

    def _align(self, reader: Reader) -> None:
        """Start where both the lake and the group have everything before."""
        self._empty()
        self._passed = self._log.committed(GROUP)
        self._stored: dict[tuple[str, int], int] = {}
        back: dict[tuple[str, int], int] = {}
        for topic, table in self._tables.items():
            for partition, (first, end) in self._log.bounds(topic).items():
                stored = self._lake.position(table, application(topic, partition))
                if stored is not None and stored > end:
                    raise Broken(
                        f"lake table {table} holds {topic} up to offset {stored}, the log ends at {end}: "
                        "they do not belong together; give the lake or the log another folder"
                    )
                self._stored[topic, partition] = stored or 0
                if (stored or 0) < self._passed.get((topic, partition), 0):
                    back[topic, partition] = first if stored is None else stored
        if back:
            logger.warning(
                "lake_rebuilding", positions={f"{topic}:{partition}": at for (topic, partition), at in back.items()}
            )
            reader.seek(back)
        logger.info("recorder_started", positions={table: self._lake.count(table) for table in TABLES})

    def _take(self, batch: Batch) -> None:
        if not len(batch):
            return
        failpoint("recorder.polled")
        if not self._polled:
            self._oldest = self._clock.monotonic()
        self._polled += len(batch)
        self._bytes += sum(map(len, batch.values))
        self._next.update(batch.positions)
        for part in _by_topic(batch):
            table = self._tables[part.topics[0]]
            good, columns, bad = self._read[table](part)
            if len(good):
                self._frames[table].append(self._new(table, good, columns))
            for record, error in bad:
                if record.offset >= self._passed.get((record.topic, record.partition), 0):
                    about = _known_id(record) if table == "outcomes" else ""
                    self._letters.append(dead_letter(self._topics.dead_letters, record, error, GROUP, about))

    def _new(self, table: TableName, good: Batch, columns: Columns) -> pl.DataFrame:
        """The rows that the table does not have."""
        places = {"partition": good.partitions, "offset": good.offsets, "time_ms": good.times_ms}
        kinds = COLUMNS[table]
        frame = pl.DataFrame([pl.Series(name, (places | columns)[name], kind) for name, kind in kinds.items()])
        for partition in set(good.partitions):
            stored = self._stored.get((good.topics[0], partition), 0)
            if good.offsets[good.partitions.index(partition)] < stored:
                frame = frame.filter((pl.col("partition") != partition) | (pl.col("offset") >= stored))
        return frame

    def _flush(self, reader: Reader) -> None:
        for table in TABLES:
            places = {p: at for p, at in self._next.items() if self._tables[p[0]] == table and at > self._stored.get(p, 0)}
            if places:
                frame = pl.concat([pl.DataFrame(schema=COLUMNS[table]), *self._frames[table]])
                self._lake.append(table, frame, {application(*place): at for place, at in places.items()})
                self._stored.update(places)
                failpoint("recorder.appended")
        reader.commit(self._letters)
        failpoint("recorder.committed")
        self._empty()
        for table in TABLES:
            self._maintain(table)

    def _maintain(self, table: TableName) -> None:
        try:
            self._lake.maintain(table)
        except Unavailable as error:
            logger.warning("maintenance_postponed", table=table, error=str(error))

    def _empty(self) -> None:
        self._polled = self._bytes = 0
        self._oldest = 0.0
        self._next: dict[tuple[str, int], int] = {}
        self._letters: list[Message] = []
        self._frames: dict[TableName, list[pl.DataFrame]] = {table: [] for table in TABLES}

    def _due(self, behind: bool) -> bool:
        """Whoever is behind writes more at a time: a commit costs as much as 2,000 rows."""
        full = self._polled >= self._settings.flush_rows
        large = self._polled >= BEHIND * self._settings.flush_rows or self._bytes >= BEHIND_BYTES
        return (full and (large or not behind)) or (self._polled > 0 and self._left() <= 0)

    def _left(self) -> float:
        return self._oldest + self._settings.flush_seconds - self._clock.monotonic()

    def _patience(self) -> float:
        return max(0.0, min(_PATIENCE_SECONDS, self._left())) if self._polled else _PATIENCE_SECONDS

    def _read_outcomes(self, part: Batch) -> Read:
        good, ids, bad = part, plain_ids(part.keys, part.headers), Bad()
        found: list[Any] = list(map(self._outcomes.plain, part.values)) if ids else [None]
        if not ids or None in found:
            good, found, bad = _each(part, lambda one: self._outcomes.decode(one.key, one.value, one.headers))
            ids = [outcome_id(*of) for of in zip(good.keys, good.headers, strict=True)]
        labels = [_encode(one.outcome).decode() for one in found]
        return good, {"request_id": ids, "outcome": labels, "outcome_at": [one.time for one in found]}, bad


def _by_topic(batch: Batch) -> Iterator[Batch]:
    """The batch in parts of one topic each."""
    for topic in dict.fromkeys(batch.topics):
        count, first = batch.topics.count(topic), batch.topics.index(topic)
        if count == len(batch):
            yield batch
        elif batch.topics[first : first + count].count(topic) == count:
            yield _batch(column[first : first + count] for column in _columns(batch))
        else:
            yield _those(batch, [one == topic for one in batch.topics])


def _columns(batch: Batch) -> tuple[list[Any], ...]:
    return (batch.topics, batch.partitions, batch.offsets, batch.times_ms, batch.keys, batch.values, batch.headers)


def _those(batch: Batch, chosen: Sequence[bool]) -> Batch:
    return _batch(list(compress(column, chosen)) for column in _columns(batch))


def _batch(columns: Iterable[list[Any]]) -> Batch:
    topics, partitions, offsets, times, keys, values, headers = columns
    return Batch(topics, partitions, offsets, times, keys, values, headers, {})


def _each(part: Batch, read: Callable[[Record], Any]) -> tuple[Batch, list[Any], Bad]:
    """Record by record: the good ones, what was read of them, and the bad ones."""
    found: list[Any] = []
    bad: Bad = []
    good = [False] * len(part)
    for row, record in enumerate(part.records()):
        try:
            found.append(read(record))
            good[row] = True
        except BadRecord as error:
            bad.append((record, error))
    return _those(part, good), found, bad


def _known_id(record: Record) -> str:
    """Empty where an outcome has no id that can be used."""
    try:
        return outcome_id(record.key, record.headers)
    except BadRecord:
        return ""


def _requests(part: Batch) -> Read:
    """Every request is a fact. One with a bad id or time is kept under its place and the log's time: that it cannot be
    answered is the predictor's to say.
    """
    ids, times = plain_ids(part.keys, part.headers), part.times_ms
    if ids is None:
        places = zip(part.keys, part.topics, part.partitions, part.offsets, part.headers, strict=True)
        ids = [request_id_or_place(*place) for place in places]
        times = [_event_time(headers, time) for headers, time in zip(part.headers, part.times_ms, strict=True)]
    return part, {"request_id": ids, "event_at": times, "value": part.values}, []


def _event_time(headers: Headers, default_ms: int) -> int:
    try:
        return event_time(headers, default_ms)
    except BadRecord:
        return default_ms


def _predictions(part: Batch) -> Read:
    good, bad = part, Bad()
    try:
        answers = list(map(_decode_prediction, part.values))
    except (ValueError, RecursionError):
        good, answers, bad = _each(part, _prediction)
    columns: Columns = {
        "request_id": [answer.request_id for answer in answers],
        "version": [answer.version for answer in answers],
        "bundle": [answer.bundle for answer in answers],
        "value": good.values,
    }
    return good, columns, bad


def _prediction(record: Record) -> Prediction:
    try:
        return _decode_prediction(record.value)
    except (ValueError, RecursionError) as error:
        raise BadRecord("not_json", "", str(error)) from error


def _dead_letters(part: Batch) -> Read:
    """What their headers say; of two of one name the last counts."""
    said = [{name: value.decode("utf-8", "replace") for name, value in headers} for headers in part.headers]
    texts = {name: [one.get(name, "") for one in said] for name in ("topic", "role", "reason", "field", "detail")}
    places = {
        "source_partition": [_number(one.get("partition", ""), 2**31) for one in said],
        "source_offset": [_number(one.get("offset", ""), 2**63) for one in said],
    }
    return part, {**texts, **places, "key": part.keys, "value": part.values}, []


def _number(text: str, limit: int) -> int | None:
    """None for what is no number of a record: somebody else's dead letter."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 and int(text) < limit else None
