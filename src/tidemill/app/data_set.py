"""A data set as a stream of requests and outcomes: their ids, values, times and order. No log and no clock."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from msgspec import Struct

from tidemill.core.schema import Schema
from tidemill.errors import ConfigError
from tidemill.tables import columns_of

CHUNK_ROWS = 5000
"""Rows whose features are Python values at a time: a year of flights would take a quarter of a gigabyte."""


class Options(Struct, frozen=True, kw_only=True):
    """How to play. Outcomes come by ``outcome_time`` (a column: in the order of event time), else ``delay`` seconds after
    the request, else right after the answer, or ``answer_wait`` seconds after the request if there is none.

    ``start`` rows of the file are skipped (those that the first model knows), at most ``limit`` are played.
    """

    rate: float = 10.0
    start: int = 0
    limit: int | None = None
    outcome_time: str = ""
    delay: float | None = None
    answer_wait: float = 30.0

    def check(self) -> None:
        """Raise ``ConfigError`` for values that make no sense."""
        if not 0 < self.rate < float("inf"):
            raise ConfigError(f"the rate must be above 0 requests a second, not {self.rate}")
        if self.start < 0 or (self.limit is not None and self.limit < 1):
            raise ConfigError("start must be 0 or more, and limit 1 or more rows")
        if self.outcome_time and self.delay is not None:
            raise ConfigError("give either the outcomes' time column or a fixed delay, not both")
        if self.delay is not None and not 0 <= self.delay < float("inf"):
            raise ConfigError(f"the delay must be 0 or more seconds, not {self.delay}")


class Step(NamedTuple):
    """Send the request, or report the outcome, of a row."""

    is_outcome: bool
    row: int


def timeline(request_times: Sequence[int], outcome_times: Sequence[int | None]) -> list[Step]:
    """Requests and outcomes in the order of event time. At the same time requests come first, and rows in their order;
    an outcome never comes before its own request, and one without a time never comes.
    """
    asked = np.asarray(request_times, np.int64)
    known = np.array([row for row, time in enumerate(outcome_times) if time is not None], np.int64)
    told = np.maximum(np.array([outcome_times[row] for row in known], np.int64), asked[known])
    rows = np.concatenate([np.arange(len(asked)), known])
    is_outcome = np.concatenate([np.zeros(len(asked), bool), np.ones(len(known), bool)])
    order = np.lexsort((rows, is_outcome, np.concatenate([asked, told])))
    return list(map(Step, is_outcome[order].tolist(), rows[order].tolist()))


def already_there(order: Sequence[str], found: Mapping[str, int], shortened: bool) -> set[str]:
    """Which ids of a stream that was sent in this order need not be sent again, given those that the log still has.

    In a ``shortened`` log (retention deleted its beginning), whatever comes before the first id found was sent as well.
    """
    first = next((place for place, name in enumerate(order) if name in found), 0) if shortened else 0
    return {*order[:first], *(name for name in order if name in found)}


class DataSet:
    """The rows to play, in the order of their requests: by time where outcomes have times, else as in the file. Ids are
    ``name-ID`` by the id column, or ``name-ROW`` by the row of the file.
    """

    def __init__(self, frame: pl.DataFrame, schema: Schema, name: str, options: Options) -> None:
        played = frame.slice(options.start, options.limit)
        if not played.height:
            raise ConfigError(f"{name}: no rows to play from row {options.start} on; the table has {frame.height}")
        numbers = _column(played, schema.id) or range(options.start, options.start + played.height)
        if len(set(numbers)) != len(numbers) or None in numbers:
            raise ConfigError(f"{name}: the id column {schema.id!r} has an empty value, or one twice")
        times = _times(played, schema.time, name)
        if options.outcome_time:
            if times is None or None in times:
                raise ConfigError(f"{name}: real delays need the schema's time column, with a time in every row")
            order = np.argsort(np.array(times), kind="stable")
            played, times, numbers = played[order], [times[row] for row in order], [numbers[row] for row in order]
        self._frame = played
        self._names = [feature.name for feature in schema.features]
        columns_of(played.head(0), self._names)
        self.ids = [f"{name}-{number}" for number in numbers]
        self.times = times
        self.truths: list[Any] = columns_of(played, [schema.target])[schema.target]
        self.outcome_times = _times(played, options.outcome_time, name)
        self._chunk: list[dict[str, Any]] = []
        self._chunk_start = 0

    def __len__(self) -> int:
        return len(self.ids)

    def steps(self) -> list[Step]:
        """What to send in which order; outcomes are in it only where the data set says when they come."""
        if self.outcome_times is None or self.times is None:
            return [Step(False, row) for row in range(len(self))]
        known = zip(self.outcome_times, self.truths, strict=True)
        asked = [time for time in self.times if time is not None]
        return timeline(asked, [None if truth is None else time for time, truth in known])

    def features(self, row: int) -> dict[str, Any]:
        """The features of a row; quick for rows near to the last one asked for."""
        if not 0 <= row - self._chunk_start < len(self._chunk):
            self._chunk_start = row - row % CHUNK_ROWS
            columns = columns_of(self._frame.slice(self._chunk_start, CHUNK_ROWS), self._names)
            self._chunk = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return self._chunk[row - self._chunk_start]


def _column(frame: pl.DataFrame, name: str) -> list[Any] | None:
    return columns_of(frame, [name])[name] if name else None


def _times(frame: pl.DataFrame, column: str, name: str) -> list[int | None] | None:
    values = _column(frame, column)
    if values is not None and not all(isinstance(value, int | None) for value in values):
        raise ConfigError(f"{name}: {column!r} must hold dates, or milliseconds as whole numbers")
    return values
