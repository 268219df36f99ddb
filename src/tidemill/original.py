"""The original data as labelled rows, in the values that JSON would carry."""

from pathlib import Path

import polars as pl

from tidemill.core.schema import Schema
from tidemill.core.training_set import Rows
from tidemill.errors import ConfigError
from tidemill.tables import columns_of, read_table


def load_original(path: Path, schema: Schema) -> Rows:
    """The rows of a table whose target is known.

    Raises ``ConfigError`` where the table lacks a column that the schema names.
    """
    frame = read_table(path)
    names = [feature.name for feature in schema.features]
    wanted = [*names, schema.target, *([schema.time] if schema.time else [])]
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        raise ConfigError(f"{path} has no column {missing[0]!r}, which schema.json names; it has {', '.join(frame.columns)}")
    outcomes = columns_of(frame, [schema.target])[schema.target]
    frame = frame.filter(pl.Series([outcome is not None for outcome in outcomes], dtype=pl.Boolean))
    known = [outcome for outcome in outcomes if outcome is not None]
    return Rows(columns_of(frame, names), known, event_times(frame, schema.time))


def event_times(frame: pl.DataFrame, column: str) -> list[int]:
    """Milliseconds of a timestamp (or whole-number) column; zeros where the data has no time.

    Raises ``ConfigError`` for a column that holds something else.
    """
    if not column:
        return [0] * len(frame)
    times = frame[column]
    try:
        milliseconds = times.dt.epoch("ms") if times.dtype.is_temporal() else times.cast(pl.Int64)
    except pl.exceptions.PolarsError:
        raise ConfigError(f"time column {column!r} holds {times.dtype}, not dates, times or milliseconds") from None
    return milliseconds.fill_null(0).to_list()
