"""What is played: requests with their times, and the outcomes that came, from the lake or from a data set."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from tidemill.app.client import outcome_message, request_message
from tidemill.app.data_set import DataSet, Options, timeline
from tidemill.core.schema import Schema
from tidemill.errors import ConfigError
from tidemill.lake import Lake
from tidemill.log.base import Message
from tidemill.messages import Label, Topics
from tidemill.texts import moment

HOUR_MS = 3_600_000
REPLAYED_MS = HOUR_MS
"""Where the event times of the requests are further than this from the log's, most of them, the stream was a replay, and
the log's times say nothing of when outcomes were known.
"""
OUTCOME_AT = "tidemill outcome time"
"""A column that no table has: what ``--delay`` makes."""
Axis = Literal["log", "event"]


class Span(NamedTuple):
    """Which requests: from ``since`` (ms) on, before ``until``, the first ``rows`` of them."""

    since: int | None = None
    until: int | None = None
    rows: int | None = None


class Source(NamedTuple):
    """Requests by row, each with its time and, where its outcome came, when; ``name`` says where they are from."""

    name: str
    ids: Sequence[str]
    times: NDArray[np.int64]
    told: list[int | None]
    request: Callable[[int], Message]
    outcome: Callable[[int], Message]


class Stream:
    """A source's requests and outcomes of a span in the order of their times, by place: 0, 1, 2 ...

    ``times`` of the places; ``labels_before[k]`` outcomes and ``asked_before[k]`` requests stand before place k. At one time
    a request comes before an outcome, and no outcome comes before its own request.
    """

    def __init__(self, source: Source, span: Span) -> None:
        first = np.argsort(source.times, kind="stable")
        asked = source.times[first]
        kept = (asked >= _or(span.since, asked)) & (asked < _or(span.until, asked + 1))
        chosen = first[kept][: span.rows]
        told = [source.told[row] for row in chosen]
        if not len(chosen):
            raise ConfigError(f"{source.name}: no request in that time: {_range(asked)}")
        if all(time is None for time in told):
            raise ConfigError(f"{source.name}: none of its {len(chosen):,} requests has an outcome with a time")
        self.name = source.name
        self.ids = [source.ids[row] for row in chosen]
        self.asked = source.times[chosen]
        self._source = source
        steps = timeline(self.asked.tolist(), told)
        self._rows = chosen[np.array([step.row for step in steps])]
        self.is_outcome = np.array([step.is_outcome for step in steps])
        known = np.array([time if time is not None else 0 for time in told], np.int64)
        rows = np.array([step.row for step in steps])
        self.times = np.where(self.is_outcome, np.maximum(known, self.asked)[rows], self.asked[rows])
        self.labels_before = np.concatenate([[0], np.cumsum(self.is_outcome)])
        self.asked_before = np.arange(len(steps) + 1) - self.labels_before

    def __len__(self) -> int:
        return len(self.times)

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.ids)

    @property
    def labelled(self) -> int:
        """How many have an outcome."""
        return int(self.labels_before[-1])

    def messages(self, start: int, stop: int) -> list[Message]:
        """The records of these places."""
        source = self._source
        return [
            (source.outcome if self.is_outcome[place] else source.request)(int(self._rows[place]))
            for place in range(start, stop)
        ]


def _or(bound: int | None, default: NDArray[np.int64]) -> NDArray[np.int64]:
    return default if bound is None else np.full_like(default, bound)


def _range(times: NDArray[np.int64]) -> str:
    if not len(times):
        return "there is none at all"
    return f"they are of {moment(int(times[0]))} to {moment(int(times[-1]))} UTC"


def of_table(
    frame: pl.DataFrame, name: str, schema: Schema, topics: Topics, outcome_time: str, delay: float | None
) -> Source:
    """A data set, as ``tidemill replay`` takes it: outcomes come when the column ``outcome_time`` says, or ``delay`` seconds
    after their requests. Raises ``ConfigError`` where it does not say when.
    """
    if not schema.time:
        raise ConfigError(
            "a backtest needs the times of the requests: schema.json names no time column (tidemill init --time)"
        )
    if not outcome_time and delay is None:
        raise ConfigError(
            f"{name}: when were the outcomes known? Give --outcome-time COLUMN (of {', '.join(frame.columns)})"
            " or --delay SECONDS"
        )
    if delay is not None and not outcome_time:
        asked = _milliseconds(frame, schema.time, name)
        frame = frame.with_columns((asked + round(delay * 1000)).alias(OUTCOME_AT))
    options = Options(outcome_time=outcome_time or OUTCOME_AT, delay=delay if outcome_time else None)
    options.check()
    data = DataSet(frame, schema, name, options)
    told = [time if truth is not None else None for time, truth in zip(data.outcome_times or [], data.truths, strict=True)]

    def request(row: int) -> Message:
        return request_message(topics, data.ids[row], data.features(row), _header(data.times[row] if data.times else None))

    def outcome(row: int) -> Message:
        return outcome_message(topics, data.ids[row], data.truths[row], told[row])

    return Source(name, data.ids, np.array(data.times, np.int64), told, request, outcome)


def _milliseconds(frame: pl.DataFrame, column: str, name: str) -> pl.Series:
    if column not in frame.columns:
        raise ConfigError(f"{name}: the table has no column {column!r}; it has {', '.join(frame.columns)}")
    times = frame[column]
    return times.cast(pl.Datetime("ms")).dt.epoch("ms") if times.dtype.is_temporal() else times


def _header(time_ms: int | None) -> tuple[tuple[str, bytes], ...]:
    return () if time_ms is None else (("time", b"%d" % time_ms),)


def of_lake(lake: Lake, topics: Topics, axis: Axis | None) -> Source:
    """What the recorder wrote: each id's first request, and its first outcome, if that came.

    ``axis``: "log", when each record was taken, or "event", when its sender says that it happened (a replay's log tells the
    pace of the replay); None finds out. Raises ``ConfigError`` where there are no requests, or no outcomes.
    """
    asked = _first(lake, "requests", "event_at", "value")
    if not asked.height:
        raise ConfigError("the lake has no recorded requests to play: run the project first, or give --data FILE")
    told = _first(lake, "outcomes", "outcome", "outcome_at").rename({"time_ms": "told_ms"})
    frame = asked.join(told, on="request_id", how="left", maintain_order="left")
    if frame["outcome"].null_count() == frame.height:
        raise ConfigError(f"the lake has {frame.height:,} requests, and no outcome of any: without, no model can be judged")
    axis = axis or ("event" if (frame["event_at"] - frame["time_ms"]).abs().median() > REPLAYED_MS else "log")  # type: ignore[operator]
    if axis == "event":
        delay = pl.col("told_ms") - pl.col("time_ms")
        frame = frame.with_columns(told_ms=pl.coalesce("outcome_at", pl.col("event_at") + delay), time_ms="event_at")
        frame = frame.with_columns(told_ms=pl.when(pl.col("outcome").is_not_null()).then("told_ms"))
    return _recorded(frame, topics, axis)


def _first(lake: Lake, table: Literal["requests", "outcomes"], *columns: str) -> pl.DataFrame:
    """The first row of each id."""
    rows = lake.scan(table).sort("partition", "offset")
    return lake.read(rows.unique("request_id", keep="first", maintain_order=True).select("request_id", "time_ms", *columns))


def _recorded(frame: pl.DataFrame, topics: Topics, axis: Axis) -> Source:
    ids, values, events = (frame[name].to_list() for name in ("request_id", "value", "event_at"))
    outcomes, times = frame["outcome"].to_list(), frame["outcome_at"].to_list()

    def request(row: int) -> Message:
        return Message(topics.requests, values[row], ids[row].encode(), _header(events[row]))

    def outcome(row: int) -> Message:
        label: Label = msgspec.json.decode(outcomes[row])
        return outcome_message(topics, ids[row], label, times[row])

    name = f"the lake, by the {axis}'s times"
    return Source(name, ids, frame["time_ms"].to_numpy(), frame["told_ms"].to_list(), request, outcome)
