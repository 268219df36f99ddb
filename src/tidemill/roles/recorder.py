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
from collections.abc import Callable

import msgspec
import polars as pl
import structlog

from tidemill import settings
from tidemill.clock import Clock
from tidemill.core.decoding import event_time, outcome_id, request_id_or_place
from tidemill.core.outcomes import decode_outcome
from tidemill.core.schema import Schema
from tidemill.errors import BadRecord, Broken, Unavailable
from tidemill.failpoints import failpoint
from tidemill.lake import COLUMNS, Lake, TableName
from tidemill.log.base import Batch, Log, Message, Reader, Record
from tidemill.messages import Prediction, Topics
from tidemill.roles.dead_letters import dead_letter

logger = structlog.get_logger()

GROUP = "recorder"
TABLES: tuple[TableName, ...] = ("requests", "predictions", "outcomes", "dead_letters")

_PATIENCE_SECONDS = 0.25  # how late a stop may be noticed
_PAUSE_SECONDS = 1.0  # between two tries while the lake or the log is away
_decode_prediction = msgspec.json.Decoder(Prediction).decode


def application(topic: str, partition: int) -> str:
    """The name under which a table holds the recorder's position in a partition of its topic."""
    return f"{GROUP}:{topic}:{partition}"


class Recorder:
    """The one writer of requests, predictions, outcomes and dead letters in the lake; others wait as standbys."""

    def __init__(self, log: Log, topics: Topics, lake: Lake, schema: Schema, settings: settings.Lake, clock: Clock) -> None:
        self._log = log
        self._lake = lake
        self._schema = schema
        self._settings = settings
        self._clock = clock
        self._dead_letters = topics.dead_letters
        self._tables: dict[str, TableName] = {getattr(topics, table): table for table in TABLES}
        self._rows_of: dict[TableName, Callable[[Record], tuple[object, ...]]] = {
            "requests": _request_row,
            "predictions": _prediction_row,
            "outcomes": self._outcome_row,
            "dead_letters": _dead_letter_row,
        }

    def run(self, stop: threading.Event) -> None:
        """Record until ``stop``; what was polled by then is written. While lake or log are away, try again."""
        waiting = False
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
                logger.warning("recording_paused", error=str(error))
                stop.wait(_PAUSE_SECONDS)

    def _record(self, stop: threading.Event) -> None:
        reader = self._log.join(GROUP, list(self._tables))
        try:
            self._align(reader)
            while not stop.is_set():
                self._take(reader.poll(self._settings.flush_rows - self._polled, self._patience()))
                if self._due():
                    self._flush(reader)
            if self._polled:
                self._flush(reader)
        finally:
            reader.close()

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
        self._next.update(batch.positions)
        for record in batch.records():
            place = (record.topic, record.partition)
            recorded = record.offset < self._stored.get(place, 0)
            passed = record.offset < self._passed.get(place, 0)
            if recorded and passed:
                continue
            table = self._tables[record.topic]
            try:
                row = self._rows_of[table](record)
            except BadRecord as error:
                if not passed:
                    about = _known_id(record) if table == "outcomes" else ""
                    self._letters.append(dead_letter(self._dead_letters, record, error, GROUP, about))
                continue
            if not recorded:
                self._rows[table].append(row)

    def _flush(self, reader: Reader) -> None:
        for table in TABLES:
            places = {p: at for p, at in self._next.items() if self._tables[p[0]] == table and at > self._stored.get(p, 0)}
            if places:
                frame = pl.DataFrame(self._rows[table], schema=COLUMNS[table], orient="row")
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
        self._polled = 0
        self._oldest = 0.0
        self._next: dict[tuple[str, int], int] = {}
        self._letters: list[Message] = []
        self._rows: dict[TableName, list[tuple[object, ...]]] = {table: [] for table in TABLES}

    def _due(self) -> bool:
        return self._polled >= self._settings.flush_rows or (self._polled > 0 and self._left() <= 0)

    def _left(self) -> float:
        return self._oldest + self._settings.flush_seconds - self._clock.monotonic()

    def _patience(self) -> float:
        return max(0.0, min(_PATIENCE_SECONDS, self._left())) if self._polled else _PATIENCE_SECONDS

    def _outcome_row(self, record: Record) -> tuple[object, ...]:
        outcome = decode_outcome(record.key, record.value, self._schema, record.headers)
        label = msgspec.json.encode(outcome.outcome).decode()
        name = outcome_id(record.key, record.headers)
        return (name, record.partition, record.offset, record.time_ms, label, outcome.time)


def _known_id(record: Record) -> str:
    """Empty where an outcome has no id that can be used."""
    try:
        return outcome_id(record.key, record.headers)
    except BadRecord:
        return ""


def _request_row(record: Record) -> tuple[object, ...]:
    """Every request is a fact. One with a bad id or time is kept under its place and the log's time: that it cannot be
    answered is the predictor's to say.
    """
    id = request_id_or_place(record.key, record.topic, record.partition, record.offset, record.headers)
    try:
        event_at = event_time(record.headers, record.time_ms)
    except BadRecord:
        event_at = record.time_ms
    return (id, record.partition, record.offset, record.time_ms, event_at, record.value)


def _prediction_row(record: Record) -> tuple[object, ...]:
    try:
        answer = _decode_prediction(record.value)
    except (ValueError, RecursionError) as error:
        raise BadRecord("not_json", "", str(error)) from error
    place = (record.partition, record.offset, record.time_ms)
    return (answer.request_id, *place, answer.version, answer.bundle, record.value)


def _dead_letter_row(record: Record) -> tuple[object, ...]:
    said = {name: value.decode("utf-8", "replace") for name, value in record.headers}
    return (
        record.partition,
        record.offset,
        record.time_ms,
        said.get("topic", ""),
        _number(said.get("partition", ""), 2**31),
        _number(said.get("offset", ""), 2**63),
        *(said.get(name, "") for name in ("role", "reason", "field", "detail")),
        record.key,
        record.value,
    )


def _number(text: str, limit: int) -> int | None:
    """None for what is no number of a record: somebody else's dead letter."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 and int(text) < limit else None
