"""The monitor: joins what the recorder wrote into observations, says how good the models are, and asks for new ones.

Its state is the observations table: what it has read up to (``monitor:<table>:<partition>``) and what it has counted stand
in the commit of the observations that came of it. Restarted, it reads again what may still matter of the rows before, gives
nothing out for them, and goes on.

A commit never holds observations of two buckets (``retrain.every``), so each bucket's end is a commit's end; its command is
sent after it. Killed between the two, it finds at its start that the topic lacks the command, and sends it.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import polars as pl
import structlog

from tidemill import settings
from tidemill.clock import Clock
from tidemill.core.answers import scores_of
from tidemill.core.joining import Counters, Joiner, Observation
from tidemill.core.metrics import Metric
from tidemill.core.quality import WINDOW_ROWS, Quality
from tidemill.core.retraining import boundary, due, first
from tidemill.core.schema import Schema
from tidemill.errors import Unavailable
from tidemill.failpoints import failpoint
from tidemill.lake import COLUMNS, Lake, TableName
from tidemill.log.base import Log, Message
from tidemill.messages import Event, Prediction, Retrain, Topics, to_bytes
from tidemill.roles.promotion import read_slots
from tidemill.roles.reading import decided_commands, read_messages
from tidemill.roles.recorder import application
from tidemill.roles.tail import Tail, chunks

logger = structlog.get_logger()

ROLE = "monitor"
TABLES: tuple[TableName, ...] = ("requests", "predictions", "outcomes")

CHUNK_ROWS = 20_000
"""Rows of a partition that are read at a time: some 20 MB of requests."""
COMMIT_ROWS = 10_000
"""Observations in a commit at most, where no bucket ends before."""
EVENT_SECONDS = 2.0
FORGET_SECONDS = 60.0
SLACK_MS = 3_600_000
"""How far back the log's times may jump without harm: what is forgotten is this much older than it need be."""

_POLL_SECONDS = 0.2  # looking for new commits costs 20 microseconds a table
_PAUSE_SECONDS = 1.0

_decode_prediction = msgspec.json.Decoder(Prediction).decode


class Monitor:
    """The one writer of observations, and of the commands that count them; others wait as standbys."""

    def __init__(
        self,
        log: Log,
        topics: Topics,
        lake: Lake,
        schema: Schema,
        retrain: settings.Retrain,
        labels: settings.Labels,
        metric: Metric,
        clock: Clock,
    ) -> None:
        self._log = log
        self._topics = topics
        self._lake = lake
        self._schema = schema
        self._every = retrain.every
        self._wait_ms = round(labels.wait_hours * 3_600_000)
        self._metric = metric
        self._clock = clock
        self._began = False

    def run(self, stop: threading.Event) -> None:
        """Observe until ``stop``. While lake or log are away, try again."""
        waiting = False
        while not stop.is_set():
            try:
                if self._lake.hold("observations"):
                    self._observe(stop)
                    continue
                if not waiting:
                    logger.info("standby_started", role=ROLE)
                waiting = True
                stop.wait(_POLL_SECONDS)
            except Unavailable as error:
                logger.warning("monitoring_paused", error=str(error))
                stop.wait(_PAUSE_SECONDS)

    def _observe(self, stop: threading.Event) -> None:
        self.start()
        while True:
            stopping = stop.is_set()
            worked = self.turn()
            self.report(at_once=stopping)
            if stopping:
                return
            if not worked:
                stop.wait(_POLL_SECONDS)

    def start(self) -> None:
        """Take up where the observations table stands, and send the commands that are missing."""
        self._joiner = Joiner(self._wait_ms)
        self._observed = self._lake.count("observations")
        self._made: list[Observation] = []
        self._tails = {table: self._tail(table) for table in TABLES}
        self._written: dict[str, int] = {}
        self._restore_joiner()
        self._restore_quality()
        self._reported: dict[str, object] = {}
        self._report_at = self._forget_at = self._clock.monotonic()
        self._sent = {command.id for command in read_messages(self._log, self._topics.retrain, Retrain)}
        self._send_first()
        self._send(due(self._observed, self._every, self._sent, self._clock.now_ms()))
        logger.info("monitor_started", observations=self._observed, waiting_requests=self._joiner.waiting_requests)

    def turn(self) -> bool:
        """Join what is new; False where there was nothing."""
        worked = False
        for tail in self._tails.values():
            rows = tail.read(CHUNK_ROWS)
            if rows is not None:
                self._join(tail, rows)
                worked = True
        self._commit()
        if self._clock.monotonic() >= self._forget_at:
            self._forget_at = self._clock.monotonic() + FORGET_SECONDS
            self._joiner.forget(self._settled())
        return worked

    def report(self, at_once: bool = False) -> None:
        """Say what has changed, every two seconds at most."""
        if not at_once and self._clock.monotonic() < self._report_at:
            return
        self._report_at = self._clock.monotonic() + EVENT_SECONDS
        facts: dict[str, dict[str, Any]] = {
            f"quality_measured {one.version}": {**msgspec.structs.asdict(one), "metric": self._metric.name}
            for one in self._quality.measured()
        }
        facts["observations_joined"] = {
            "observations": self._observed,
            "waiting_requests": self._joiner.waiting_requests,
            "early_outcomes": self._joiner.early_outcomes,
            **msgspec.structs.asdict(self._joiner.counters),
        }
        changed = {name: values for name, values in facts.items() if self._reported.get(name) != values}
        now = self._clock.now_ms()
        events = [Event(name.split()[0], ROLE, now, values) for name, values in changed.items()]
        if events:
            self._log.append([Message(self._topics.events, to_bytes(event)) for event in events])
            self._reported.update(changed)

    # -- joining

    def _join(self, tail: Tail, rows: pl.DataFrame) -> None:
        """Feed the rows, with a commit wherever a bucket ends."""
        feed, left = self._feed(tail.table), self._tuples(tail.table, rows)
        done = 0
        while done < rows.height:
            room = min(boundary(self._observed, self._every) - self._observed, COMMIT_ROWS) - len(self._made)
            self._made += feed(left, room)
            taken = rows.height - left.__length_hint__() - done
            tail.advance(rows.slice(done, taken))
            done += taken
            if len(self._made) >= COMMIT_ROWS or self._observed + len(self._made) == boundary(self._observed, self._every):
                self._commit()

    def _feed(self, table: TableName) -> Callable[[Iterator[Any], int], list[Observation]]:
        feed: Callable[[Iterator[Any], int], list[Observation]] = getattr(self._joiner, f"feed_{table}")
        return feed

    def _tuples(self, table: TableName, rows: pl.DataFrame) -> Any:
        """An iterator over the joiner's rows that knows how many are left."""
        if table == "requests":
            return iter(rows.select("request_id", "partition", "offset", "time_ms", "event_at", "value").rows())
        if table == "outcomes":
            return iter(rows.select("request_id", "time_ms", "outcome", "outcome_at").rows())
        answers = map(self._answer, rows["value"])
        return iter(list(zip(rows["request_id"], rows["time_ms"], answers, strict=True)))

    def _answer(self, value: bytes) -> tuple[int, str, list[float]]:
        """Version, bundle and scores; no scores where the answer is to another schema's task."""
        prediction = _decode_prediction(value)
        try:
            return prediction.version, prediction.bundle, scores_of(prediction, self._schema)
        except (ValueError, KeyError):
            return prediction.version, prediction.bundle, []

    def _commit(self) -> None:
        """Write the observations made, with what was read and counted up to the last; then the command, if one is due."""
        if not self._made:
            return
        marks = self._marks()
        changed = {app: at for app, at in marks.items() if at > self._written.get(app, 0)}
        self._lake.append("observations", self._frame(), changed)
        failpoint("monitor.appended")
        self._written = marks
        self._observed += len(self._made)
        for one in self._made:
            self._quality.add(one.answer[0], one.outcome, one.answer[2])
        self._made = []
        self._send(due(self._observed, self._every, self._sent, self._clock.now_ms()))
        try:
            self._lake.maintain("observations")
        except Unavailable as error:
            logger.warning("maintenance_postponed", table="observations", error=str(error))

    def _frame(self) -> pl.DataFrame:
        rows = [
            (
                number,
                one.request_id,
                one.partition,
                one.offset,
                one.features,
                one.outcome,
                one.event_at,
                one.requested_at,
                one.outcome_at,
                *one.answer,
            )
            for number, one in enumerate(self._made, self._observed)
        ]
        return pl.DataFrame(rows, schema=COLUMNS["observations"], orient="row")

    def _send_first(self) -> None:
        """Where nothing serves. A first model that failed is asked for again, once a process: whoever started it may have
        mended the settings, the schema or the data.
        """
        champion = read_slots(self._log, self._topics).champion is not None
        decided: set[str] = set() if self._began else decided_commands(self._log, self._topics)
        self._send(first(champion, self._sent, self._clock.now_ms(), decided))
        self._began = True

    def _send(self, command: Retrain | None) -> None:
        if command is None or command.id in self._sent:
            return
        self._log.append([Message(self._topics.retrain, to_bytes(command), command.id.encode())])
        failpoint("monitor.sent")
        self._sent.add(command.id)
        logger.info("retraining_asked_for", id=command.id, data_version=command.data_version)

    # -- the same state after a restart

    def _marks(self) -> dict[str, int]:
        """Where this monitor stands, by the names under which the observations table keeps it."""
        read = {
            f"{ROLE}:{table}:{partition}": offset
            for table, tail in self._tails.items()
            for partition, offset in tail.positions.items()
        }
        counted = msgspec.structs.asdict(self._joiner.counters)
        return read | {f"{ROLE}:counted:{name}": count for name, count in counted.items()}

    def _tail(self, table: TableName) -> Tail:
        topic = getattr(self._topics, table)
        partitions = self._log.bounds(topic)
        stored = {p: self._lake.position("observations", f"{ROLE}:{table}:{p}") for p in partitions}
        return Tail(self._lake, table, {partition: at for partition, at in stored.items() if at is not None})

    def _restore_joiner(self) -> None:
        """Read again what can still matter of the rows before the positions: three waits, as ``core/joining.py`` has it."""
        counted = {name: f"{ROLE}:counted:{name}" for name in Counters.__struct_fields__}
        stored = self._lake.positions("observations", counted.values())
        for tail in self._tails.values():
            newest = self._lake.read(_before(self._lake.scan(tail.table), tail.positions).select(pl.col("time_ms").max()))
            tail.newest_ms = newest.item() or 0
        since = min(tail.newest_ms for tail in self._tails.values()) - SLACK_MS - 3 * self._wait_ms
        for tail in self._tails.values():
            self._feed_again(tail, since)
        self._joiner.forget(self._settled())
        self._joiner.counters = Counters(**{name: stored.get(app, 0) for name, app in counted.items()})
        self._written = self._marks()

    def _feed_again(self, tail: Tail, since_ms: int) -> None:
        rows = _before(self._lake.scan(tail.table), tail.positions).filter(pl.col("time_ms") >= since_ms)
        starts = dict(self._lake.read(rows.group_by("partition").agg(pl.col("offset").min())).iter_rows())
        done = self._lake.read(
            self._lake.scan("observations")
            .filter(pl.col("requested_at") >= since_ms)
            .select(pl.col("request_partition").alias("partition"), pl.col("request_offset").alias("offset"), done=True)
        )
        for chunk in chunks(self._lake, tail.table, tail.positions | starts, CHUNK_ROWS):
            old = _before(chunk.lazy(), tail.positions).collect()
            if not old.height:
                break
            if tail.table == "requests":  # the features of those that are observed would only fill memory
                old = old.join(done, on=["partition", "offset"], how="left", maintain_order="left").with_columns(
                    value=pl.when(pl.col("done").is_null()).then("value")
                )
            self._feed(tail.table)(self._tuples(tail.table, old), -1)

    def _settled(self) -> int:
        """The log time before which no row that is still to be joined can be. A topic of which everything was recorded and
        joined brings only newer ones; else what comes is no older than what came of it before.
        """
        known = [tail.newest_ms for tail in self._tails.values()]
        return min([max(known), *(tail.newest_ms for tail in self._tails.values() if not self._ended(tail))]) - SLACK_MS

    def _ended(self, tail: Tail) -> bool:
        topic = getattr(self._topics, tail.table)
        return (
            all(
                (self._lake.position(tail.table, application(topic, partition)) or 0) >= end
                for partition, (_, end) in self._log.bounds(topic).items()
            )
            and tail.ended()
        )

    def _restore_quality(self) -> None:
        self._quality = Quality(self._metric, self._schema)
        newest = (
            self._lake.scan("observations")
            .select("number", "version", "outcome", "scores")
            .filter(pl.col("number").rank("ordinal", descending=True).over("version") <= WINDOW_ROWS)
        )
        for _, version, outcome, scores in self._lake.read(newest.sort("number")).iter_rows():
            self._quality.add(version, outcome, scores)


def _before(rows: pl.LazyFrame, positions: dict[int, int]) -> pl.LazyFrame:
    """The rows that stand before the positions; none of other partitions."""
    return rows.filter(
        pl.any_horizontal(
            pl.lit(False),
            *((pl.col("partition") == partition) & (pl.col("offset") < at) for partition, at in positions.items()),
        )
    )
