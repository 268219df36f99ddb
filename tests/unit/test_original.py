"""The original data as labelled rows."""

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from tidemill.core.schema import Feature, Schema
from tidemill.errors import ConfigError
from tidemill.original import event_times, load_original


def test_rows_without_a_target_are_left_out(tmp_path: Path) -> None:
    """The others keep their values, outcomes and times."""
    times = [dt.datetime(1970, 1, 1, 0, 0, second) for second in range(3)]
    pl.DataFrame({"x": [1.5, 2.5, None], "y": [1, None, 0], "t": times}).write_parquet(tmp_path / "t.parquet")
    rows = load_original(tmp_path / "t.parquet", Schema((Feature("x", "number"),), "y", "binary", (0, 1), time="t"))
    assert (rows.columns, rows.outcomes, rows.times_ms) == ({"x": [1.5, None]}, [1, 0], [0, 2000])


def test_a_column_that_the_schema_names_is_missing(tmp_path: Path) -> None:
    """Which one, and what there is."""
    pl.DataFrame({"x": [1], "y": [1]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"no column 'z', which schema.json names; it has x, y"):
        load_original(tmp_path / "t.parquet", Schema((Feature("z", "number"),), "y", "binary", (0, 1)))


@pytest.mark.parametrize(
    "column",
    [pl.Series(["soon", "later"]), pl.Series([[1], [2]]), pl.Series([dt.time(1), dt.time(2)]), pl.Series([b"a", b"b"])],
)
def test_what_is_no_time_is_one_line(column: pl.Series) -> None:
    """A person may name any column in schema.json."""
    with pytest.raises(ConfigError, match=r"^time column 't' holds .*, not dates, times or milliseconds\Z"):
        event_times(column.alias("t").to_frame(), "t")
    assert event_times(pl.DataFrame({"t": ["5", "6"]}), "t") == [5, 6]
    assert event_times(pl.DataFrame({"t": [dt.date(1970, 1, 2), None]}), "t") == [86_400_000, 0]
    assert event_times(pl.DataFrame({"x": [1]}), "") == [0]
