"""The order, ids and values of a played data set; no log and no clock."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.app.data_set import DataSet, Options, Step, already_there, timeline
from tidemill.core.schema import Feature, Schema
from tidemill.errors import ConfigError

SCHEMA = Schema((Feature("age", "number"), Feature("job", "category")), "rich", "binary", classes=(0, 1))
TIMED = Schema(SCHEMA.features, "rich", "binary", classes=(0, 1), id="key", time="asked")

times = st.integers(0, 30)


def slow_timeline(asked: list[int], told: list[int | None]) -> list[Step]:
    """The same by the words of the docstring: sort (time, requests first, row)."""
    events = [(time, False, row) for row, time in enumerate(asked)]
    events += [(max(time, asked[row]), True, row) for row, time in enumerate(told) if time is not None]
    return [Step(is_outcome, row) for _, is_outcome, row in sorted(events)]


@given(st.lists(st.tuples(times, st.none() | times)))
def test_timeline_sorts_requests_and_outcomes(rows: list[tuple[int, int | None]]) -> None:
    """It equals the slow, obvious sort, whatever the ties, the gaps and the outcomes from before their requests."""
    asked, told = [row[0] for row in rows], [row[1] for row in rows]
    assert timeline(asked, told) == slow_timeline(asked, told)


@given(st.lists(st.tuples(times, st.none() | times)))
def test_every_outcome_follows_its_request(rows: list[tuple[int, int | None]]) -> None:
    """Each row asks once; one with an outcome time is told once, later."""
    steps = timeline([row[0] for row in rows], [row[1] for row in rows])
    for row, (_, told) in enumerate(rows):
        mine = [step.is_outcome for step in steps if step.row == row]
        assert mine == ([False] if told is None else [False, True])


def test_timeline_by_example() -> None:
    """The second flight lands before the first; the third, cancelled, never; the fourth asks at the minute of a landing."""
    steps = timeline([10, 20, 30, 50], [100, 50, None, 60])
    assert [f"{'outcome' if step.is_outcome else 'request'} {step.row}" for step in steps] == [
        "request 0",
        "request 1",
        "request 2",
        "request 3",
        "outcome 1",
        "outcome 3",
        "outcome 0",
    ]


def test_what_is_there_is_not_sent_again() -> None:
    """Ids in the log are skipped; in a shortened log also those from before the first one that is left."""
    order = ["a", "b", "c", "d"]
    assert already_there(order, {"c": 1}, shortened=False) == {"c"}
    assert already_there(order, {"c": 1}, shortened=True) == {"a", "b", "c"}
    assert already_there(order, {}, shortened=True) == set()


def frame(**columns: list[Any]) -> pl.DataFrame:
    base: dict[str, list[Any]] = {"age": [39, 50, 38], "job": ["a", None, "c"], "rich": [0, 1, None]}
    return pl.DataFrame({**base, **columns})


def test_ids_name_the_row_of_the_file() -> None:
    """Without an id column the id is the row's place in the file, wherever playing starts; features are the schema's."""
    data = DataSet(frame(other=[1, 2, 3]), SCHEMA, "adult", Options(start=1, limit=5))
    assert data.ids == ["adult-1", "adult-2"]
    assert data.features(0) == {"age": 50, "job": None}
    assert data.truths == [1, None]
    assert data.steps() == [Step(False, 0), Step(False, 1)]


def test_real_delays_order_the_rows_by_time() -> None:
    """With outcome times the rows are asked in the order of their times; one without a target never gets an outcome."""
    table = frame(key=["x", "y", "z"], asked=[30, 10, 20], told=[40, 15, 25])
    data = DataSet(table, TIMED, "f", Options(outcome_time="told"))
    assert data.ids == ["f-y", "f-z", "f-x"]
    assert [data.features(row)["age"] for row in range(3)] == [50, 38, 39]
    assert data.steps() == [Step(False, 0), Step(True, 0), Step(False, 1), Step(False, 2), Step(True, 2)]


def test_many_rows_are_read_in_chunks() -> None:
    """A row's features are the same whichever row was asked for before it."""
    rows = 12_345
    table = pl.DataFrame({"age": range(rows), "job": ["a"] * rows, "rich": [0] * rows})
    data = DataSet(table, SCHEMA, "many", Options())
    assert [data.features(row)["age"] for row in (0, 12_344, 4_999, 5_000, 0)] == [0, 12_344, 4_999, 5_000, 0]


@pytest.mark.parametrize(
    ("table", "schema", "options", "words"),
    [
        (frame(), SCHEMA, Options(start=3), "no rows to play from row 3 on; the table has 3"),
        (frame().drop("job"), SCHEMA, Options(), "no column 'job'"),
        (frame().drop("rich"), SCHEMA, Options(), "no column 'rich'"),
        (frame(key=[1, 1, 2], asked=[1, 2, 3]), TIMED, Options(), "'key' has an empty value, or one twice"),
        (frame(key=[1, 2, None], asked=[1, 2, 3]), TIMED, Options(), "'key' has an empty value, or one twice"),
        (frame(told=[1, 2, 3]), SCHEMA, Options(outcome_time="told"), "need the schema's time column"),
        (frame(key=[1, 2, 3], asked=[1, None, 3], told=[1, 2, 3]), TIMED, Options(outcome_time="told"), "in every row"),
        (frame(key=[1, 2, 3], asked=["x", "y", "z"]), TIMED, Options(), "'asked' must hold dates"),
        (frame(key=[1, 2, 3], asked=[1, 2, 3]), TIMED, Options(outcome_time="told"), "no column 'told'"),
    ],
)
def test_data_that_cannot_be_played(table: pl.DataFrame, schema: Schema, options: Options, words: str) -> None:
    """One line says what is wrong."""
    with pytest.raises(ConfigError, match=words):
        DataSet(table, schema, "data", options)


@pytest.mark.parametrize(
    "options",
    [
        Options(rate=0),
        Options(rate=float("nan")),
        Options(rate=float("inf")),
        Options(start=-1),
        Options(limit=0),
        Options(delay=-1),
        Options(outcome_time="told", delay=1),
    ],
)
def test_options_that_make_no_sense(options: Options) -> None:
    """They are refused before anything is sent."""
    with pytest.raises(ConfigError):
        options.check()
