"""The monitor: joins what the recorder wrote into observations, says how good the models are, and asks for new ones.

Its state is the observations table: what it has read up to (``monitor:<table>:<partition>``) and what it has counted stand
in the commit of the observations that came of it. Restarted, it reads again what may still matter of the rows before, gives
nothing out for them, and goes on.

A commit never holds observations of two buckets (``retrain.every``), so each bucket's end is a commit's end; its command is
sent after it. Killed between the two, it finds at its start that the topic lacks the command, and sends it.
"""

import threading
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import structlog
from numpy.typing import NDArray

from tidemill import settings
from tidemill.clock import Clock
from tidemill.core.joining import Counters
from tidemill.core.metrics import Metric
from tidemill.core.quality import WINDOW_ROWS, Quality
from tidemill.core.retraining import AHEAD_MS, boundary, due, first, periodic
from tidemill.core.schema import Schema
from tidemill.errors import Unavailable
from tidemill.failpoints import failpoint
from tidemill.lake import COLUMNS, Lake, before
from tidemill.log.base import Log, Message
from tidemill.messages import Event, Retrain, Topics, to_bytes
from tidemill.roles.joined import OBSERVED, ColumnJoiner
from tidemill.roles.pauses import Pauses
from tidemill.roles.promotion import announced, read_slots
from tidemill.roles.reading import decided_commands, read_messages
from tidemill.roles.recorder import application
from tidemill.roles.scores import Scores
from tidemill.roles.tail import Feed, Tail, next_rows

if TYPE_CHECKING:
    from tidemill.roles.watch import Watcher

logger = structlog.get_logger()

ROLE = "monitor"
TABLES: tuple[Feed, ...] = ("requests", "predictions", "outcomes")

CHUNK_ROWS = 20_000
"""Rows of a partition that are read at a time: some 20 MB of requests."""
COMMIT_ROWS = 10_000
"""Observations in a commit at most, where no bucket ends before."""
NO_LIMIT = 1 << 40
OBSERVED_ROWS = 1_000_000
"""Observations that a start looks at in one piece: only their places or scores."""
SCORED = ("version", "outcome", "scores")
EVENT_SECONDS = 2.0
FORGET_SECONDS = 60.0
SLACK_MS = 3_600_000
"""How far back the log's times may jump without harm: what is forgotten is this much older than it need be."""

_POLL_SECONDS = 0.2  # looking for new commits costs 20 microseconds a table
_PAUSE_SECONDS = 1.0

_event_at = pl.min_horizontal("event_at", pl.col("requested_at") + AHEAD_MS)

Marked = tuple[int, NDArray[np.bool_]]


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
        watch: "Watcher | None" = None,
    ) -> None:
        self._log = log
        self._topics = topics
        self._lake = lake
        self._schema = schema
        self._every = retrain.every
        self._hours = retrain.hours
        self._watch = watch
        self._wait_ms = round(labels.wait_hours * 3_600_000)
        self._metric = metric
        self._scores = Scores(schema)
        self._clock = clock
        self._began = False
        self._files = ExitStack()

    def run(self, stop: threading.Event) -> None:
        """Observe until ``stop``. While lake or log are away, try again."""
        waiting, pauses = False, Pauses(ROLE, "monitoring_paused", self._log, self._topics, self._clock)
        while not stop.is_set():
            try:
                if self._lake.hold("observations") and (self._watch is None or self._watch.hold()):
                    self._observe(stop)
                    continue
                if not waiting:
                    logger.info("standby_started", role=ROLE)
                waiting = True
                stop.wait(_POLL_SECONDS)
            except Unavailable as error:
                pauses.tell(error)
                stop.wait(_PAUSE_SECONDS)

    def _observe(self, stop: threading.Event) -> None:
        with self._files:
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
        self.close()
        joiner = ColumnJoiner(self._wait_ms, self._lake.folder(), self._scores.wide)
        self._joiner = self._files.enter_context(closing(joiner))
        self._observed = self._lake.count("observations")
        self._made: list[pl.DataFrame] = []
        times = self._lake.scan("observations").select(
            pl.col("event_at").min().alias("low"), pl.col("event_at").max().alias("high")
        )
        low, high = self._lake.read(times).row(0)
        self._event_times = (low or 0, high or 0)
        self._tails = {table: self._tail(table) for table in TABLES}
        self._written: dict[str, int] = {}
        self._restore_joiner()
        self._restore_quality()
        self._reported: dict[str, object] = {}
        self._report_at = self._forget_at = self._clock.monotonic()
        self._commands = {one.id: one for one in read_messages(self._log, self._topics.retrain, Retrain)}
        self._send_first()
        self._send_due()
        if self._watch:
            self._watch.start(self._send)
        logger.info("monitor_started", observations=self._observed, waiting_requests=self._joiner.waiting_requests)

    def close(self) -> None:
        """Give the disk back what the join holds; it is read again at the next start."""
        self._files.close()

    def turn(self) -> bool:
        """Join what is new; False where there was nothing."""
        worked = False
        for tail in self._tails.values():
            rows = None if self._ahead(tail) else tail.read(CHUNK_ROWS)
            if rows is not None:
                self._join(tail, rows)
                worked = True
        self._commit()
        if self._clock.monotonic() >= self._forget_at:
            self._forget_at = self._clock.monotonic() + FORGET_SECONDS
            self._joiner.forget(self._settled())
        if self._watch:
            worked |= self._watch.turn(self._observed)
        return worked

    def _ahead(self, tail: Tail) -> bool:
        """Whether what comes next is younger than requests that were not read yet: it would wait for them in vain."""
        requests = self._tails["requests"]
        return tail.newest_ms > requests.newest_ms and not requests.ended()

    def report(self, at_once: bool = False) -> None:
        """Say what has changed, every two seconds at most."""
        if not at_once and self._clock.monotonic() < self._report_at:
            return
        self._report_at = self._clock.monotonic() + EVENT_SECONDS
        self._measure()
        versions = announced(self._log, self._topics).values() if self._metric.decides else ()
        thresholds = {version.version: version.threshold for version in versions}
        facts: dict[str, dict[str, Any]] = {
            f"quality_measured {one.version}": {**msgspec.structs.asdict(one), "metric": self._metric.name}
            for one in self._quality.measured(thresholds)
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
        done = 0
        for found, taken in self._joiner.feed(tail.table, self._fields(tail.table, rows), self._room):
            self._made.append(found)
            tail.advance(rows.slice(done, taken))
            done += taken
            if not self._room():
                self._commit()

    def _room(self) -> int:
        """Observations that the commit still takes."""
        return min(boundary(self._observed, self._every) - self._observed, COMMIT_ROWS) - sum(map(len, self._made))

    def _fields(self, table: Feed, rows: pl.DataFrame) -> pl.DataFrame:
        """What the joiner takes."""
        if table != "predictions":
            return rows
        return rows.select("request_id", "time_ms", "version", "bundle", scores=pl.Series(self._scores.of(rows["value"])))

    def _commit(self) -> None:
        """Write the observations made, with what was read and counted up to the last; then the command, if one is due."""
        frame = pl.concat([pl.DataFrame(schema=OBSERVED), *self._made])
        self._made = []
        if not frame.height:
            return
        marks = self._marks()
        changed = {app: at for app, at in marks.items() if at > self._written.get(app, 0)}
        numbers = pl.int_range(self._observed, self._observed + frame.height, dtype=pl.Int64, eager=True).alias("number")
        self._lake.append("observations", frame.insert_column(0, numbers), changed)
        failpoint("monitor.appended")
        self._written = marks
        self._observed += frame.height
        self._event_times = _spread(self._event_times, frame)
        self._unmeasured.append(frame.select(SCORED))
        self._send_due()
        try:
            self._lake.maintain("observations")
        except Unavailable as error:
            logger.warning("maintenance_postponed", table="observations", error=str(error))

    def _measure(self) -> None:
        """Of what was observed since the last time, the newest of each version that count."""
        if not self._unmeasured:
            return
        labels = self._quality.labels
        counted = (pl.col("scores").list.len() > 0) & (pl.col("outcome").is_in(labels) if labels else True)
        newest = pl.concat(self._unmeasured).filter(counted).group_by("version", maintain_order=True).tail(WINDOW_ROWS)
        for row in newest.select(*SCORED).iter_rows():
            self._quality.add(*row)
        self._unmeasured.clear()

    def _send_due(self) -> None:
        """What the number of observations asks for, and the time."""
        now = self._clock.now_ms()
        self._send(due(self._observed, self._every, self._commands, now))
        began, newest = self._event_times
        self._send(periodic(began, newest, self._hours, self._observed, self._commands.values(), now))

    def _send_first(self) -> None:
        """Where nothing serves. A first model that failed is asked for again, once a process: whoever started it may have
        mended the settings, the schema or the data.
        """
        champion = read_slots(self._log, self._topics).champion is not None
        decided: set[str] = set() if self._began else decided_commands(self._log, self._topics)
        self._send(first(champion, self._commands, self._clock.now_ms(), decided))
        self._began = True

    def _send(self, command: Retrain | None) -> None:
        if command is None or command.id in self._commands:
            return
        self._log.append([Message(self._topics.retrain, to_bytes(command), command.id.encode())])
        failpoint("monitor.sent")
        self._commands[command.id] = command
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

    def _tail(self, table: Feed) -> Tail:
        topic = getattr(self._topics, table)
        partitions = self._log.bounds(topic)
        stored = {p: self._lake.position("observations", f"{ROLE}:{table}:{p}") for p in partitions}
        return Tail(self._lake, table, {partition: at for partition, at in stored.items() if at is not None})

    def _restore_joiner(self) -> None:
        """Read again what can still matter of the rows before the positions: two waits, for what is to come may belong to
        their requests, or be too late for them, and the two before, which tell whether one of those repeats another.
        """
        counted = {name: f"{ROLE}:counted:{name}" for name in Counters.__struct_fields__}
        stored = self._lake.positions("observations", counted.values())
        for tail in self._tails.values():
            old = self._lake.scan(tail.table, until=tail.positions).select(pl.col("time_ms").max())
            tail.newest_ms = self._lake.read(old).item() or 0
        since = min(tail.newest_ms for tail in self._tails.values()) - SLACK_MS - 4 * self._wait_ms
        observed = self._observed_requests(since)
        for tail in self._tails.values():
            self._feed_again(tail, since, observed)
        self._joiner.forget(self._settled())
        self._joiner.counters = Counters(**{name: stored.get(app, 0) for name, app in counted.items()})
        self._written = self._marks()

    def _feed_again(self, tail: Tail, since_ms: int, observed: dict[int, Marked]) -> None:
        rows = self._lake.scan(tail.table, until=tail.positions).filter(pl.col("time_ms") >= since_ms)
        at = dict(self._lake.read(rows.group_by("partition").agg(pl.col("offset").min())).iter_rows())
        at = {partition: at.get(partition, position) for partition, position in tail.positions.items()}
        while any(at[partition] < position for partition, position in tail.positions.items()):
            chunk = next_rows(self._lake, tail.table, at, CHUNK_ROWS).filter(before(tail.positions))
            if not chunk.height:
                break
            at |= {
                partition: offset + 1
                for partition, offset in chunk.group_by("partition").agg(pl.col("offset").max()).iter_rows()
            }
            if tail.table == "requests":  # the features of those that are observed would only fill the disk
                chunk = chunk.with_columns(value=pl.when(~pl.Series(_marks_of(chunk, observed))).then("value"))
            for _ in self._joiner.feed(tail.table, self._fields(tail.table, chunk), lambda: NO_LIMIT):
                pass

    def _observed_requests(self, since_ms: int) -> dict[int, Marked]:
        """By partition: the lowest offset, and from there on whether the request is observed."""
        rows = self._lake.scan("observations").filter(pl.col("requested_at") >= since_ms)
        offset = pl.col("request_offset")
        spans = self._lake.read(rows.group_by("request_partition").agg(low=offset.min(), high=offset.max()))
        marked = {partition: (low, np.zeros(high + 1 - low, dtype=np.bool_)) for partition, low, high in spans.iter_rows()}
        for start in range(0, self._observed, OBSERVED_ROWS):
            some = rows.filter(pl.col("number").is_between(start, start + OBSERVED_ROWS, closed="left"))
            for (partition,), part in self._lake.read(some.select("request_partition", "request_offset")).group_by(
                "request_partition"
            ):
                low, marks = marked[partition]
                marks[part["request_offset"].to_numpy() - low] = True
        return marked

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
        """From the newest on, for it is not known how far back a version's observations are."""
        self._quality = Quality(self._metric, self._schema)
        newest = pl.DataFrame(schema={name: COLUMNS["observations"][name] for name in SCORED})
        for start in range(self._observed // OBSERVED_ROWS * OBSERVED_ROWS, -1, -OBSERVED_ROWS):
            some = self._lake.scan("observations").filter(
                pl.col("number").is_between(start, start + OBSERVED_ROWS, closed="left")
            )
            rows = self._lake.read(some.select("number", *SCORED)).sort("number").select(SCORED)
            newest = pl.concat([rows, newest]).group_by("version", maintain_order=True).tail(WINDOW_ROWS).select(SCORED)
        self._unmeasured = [newest]
        self._measure()


def _spread(times: tuple[int, int], observed: pl.DataFrame) -> tuple[int, int]:
    """The first and the last event time, with those of new observations."""
    low, high = observed.select(low=_event_at.min(), high=_event_at.max()).row(0)
    return (min(times[0] or low, low), max(times[1], high))


def _marks_of(requests: pl.DataFrame, observed: dict[int, Marked]) -> NDArray[np.bool_]:
    """Which of the requests are observed."""
    found = np.zeros(requests.height, dtype=np.bool_)
    partitions, offsets = requests["partition"].to_numpy(), requests["offset"].to_numpy()
    for partition, (low, marks) in observed.items():
        rows = np.flatnonzero((partitions == partition) & (offsets >= low) & (offsets < low + len(marks)))
        found[rows] = marks[offsets[rows] - low]
    return found
