import datetime as dt
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from tidemill.errors import ConfigError
from tidemill.tables import columns_for_inference, columns_of, read_table


def error_of(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.xlsx", b"x", "unknown kind of file, give a .csv or .parquet file"),
        ("t", b"x", "unknown kind of file"),
        ("t.csv", b"", "the file is empty"),
        ("t.csv", b"a,b\n", "no rows"),
        ("t.csv", b"a,b,a\n1,2,3\n", "more than one column is named 'a'"),
        ("t.csv", b"a,,b\n1,2,3\n", "column 2 has no name"),
        ("t.csv", b"a,b\n1,2,3\n", "cannot be read: found more fields"),
        ("t.csv", b'a,b\n"x,3\n', "cannot be read: could not parse"),
        ("t.csv", b"a,b\n\xff\xfe,3\n", "cannot be read: "),
        ("t.csv", b"\xff\xfea,b\n1,3\n", "cannot be read: "),
        ("t.parquet", b"", "cannot be read: "),
        ("t.parquet", b"PAR1 this is no table PAR1", "cannot be read: "),
    ],
)
def test_an_unusable_file_is_one_clear_line(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    """Whatever is wrong with a table, the error is one line that names the file and the fault."""
    path = tmp_path / name
    path.write_bytes(content)
    assert expected in error_of(path)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    """A path that is not a file is said to be one that does not exist, or that is something else."""
    assert error_of(tmp_path / "none.csv").endswith("no such file")
    (tmp_path / "folder.csv").mkdir()
    assert error_of(tmp_path / "folder.csv").endswith("is not a file")


def test_csv_and_parquet_give_the_same_values(tmp_path: Path) -> None:
    """A table is the same values, whichever way it is kept; a byte order mark and the usual words for missing do no harm."""
    text = "a,b,c,d\n1,0.5,x,true\n,NaN,NA,\n3,2,,false\n"
    (tmp_path / "t.csv").write_text("\ufeff" + text, encoding="utf-8")
    columns = {"a": [1, None, 3], "b": [0.5, float("nan"), 2.0], "c": ["x", None, None], "d": [True, None, False]}
    pl.DataFrame(columns).write_parquet(tmp_path / "t.parquet")
    expected = columns | {"b": [0.5, None, 2.0]}
    assert columns_of(read_table(tmp_path / "t.csv"), ["a", "b", "c", "d"]) == expected
    assert columns_of(read_table(tmp_path / "t.parquet"), ["a", "b", "c", "d"]) == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('"back\\slash""q",b\n1,2\n', ['back\\slash"q', "b"]),
        ('"a,b",b\n1,2\n', ["a,b", "b"]),
        ('"a\nb", b\n1,2\n', ["a\nb", " b"]),
        ("a;b\n1;2\n", ["a", "b"]),
        ("a\tb\n1\t2\n", ["a", "b"]),
        ("a|b\n1|2\n", ["a", "b"]),
        ('"a;b";b\n1;2\n', ["a;b", "b"]),
        ("a;b,b\n1,2\n", ["a;b", "b"]),
        ("\n\na,b\n1,2\n", ["a", "b"]),
        ("a,b\r\n1,2\r\n", ["a", "b"]),
    ],
)
def test_a_header_is_read_as_csv_has_it(tmp_path: Path, text: str, names: list[str]) -> None:
    """Quotes are undone; where there is no comma, semicolons, tabs or bars separate."""
    (tmp_path / "t.csv").write_bytes(text.encode())
    frame = read_table(tmp_path / "t.csv")
    assert frame.columns == names
    assert frame.row(0) == (1, 2)


def test_numbers_with_a_decimal_comma_are_numbers(tmp_path: Path) -> None:
    """Where semicolons separate; text with commas stays text."""
    (tmp_path / "t.csv").write_text("a;b;c;d\n1,5;-2;x,1;3.5\n;3,25;1,5;4.5\n")
    frame = read_table(tmp_path / "t.csv")
    assert frame.rows() == [(1.5, -2.0, "x,1", 3.5), (None, 3.25, "1,5", 4.5)]


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    """Square brackets in a file's name are part of the name."""
    (tmp_path / "[ab].csv").write_text("a\n1\n")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "[ab].parquet")
    assert read_table(tmp_path / "[ab].csv").equals(read_table(tmp_path / "[ab].parquet"))


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (pl.Series([1, None], dtype=pl.UInt64), [1, None]),
        (pl.Series([0.1, float("inf")], dtype=pl.Float32), [0.10000000149011612, None]),
        (pl.Series([True, None]), [True, None]),
        (pl.Series([None, None]), [None, None]),
        (pl.Series([Decimal("1.25"), None]), [1.25, None]),
        (pl.Series(["b", "a"], dtype=pl.Categorical), ["b", "a"]),
        (pl.Series(["b", "a"], dtype=pl.Enum(["a", "b"])), ["b", "a"]),
        (pl.Series([dt.datetime(1970, 1, 1, 0, 0, 1), None]), [1000, None]),
        (pl.Series([dt.datetime(1970, 1, 1, tzinfo=dt.UTC)]).dt.convert_time_zone("Asia/Tokyo"), [0]),
        (pl.Series([dt.date(1970, 1, 2)]), [86_400_000]),
        (pl.Series([dt.timedelta(seconds=2)]), [2000]),
        (pl.Series([dt.time(12, 30)]), ["12:30:00"]),
    ],
)
def test_values_are_what_json_carries(series: pl.Series, expected: list[object]) -> None:
    """Every type of a table becomes int, float, str, bool or None, in one documented way."""
    values = columns_of(series.alias("x").to_frame(), ["x"])["x"]
    assert values == expected
    assert [type(value) for value in values] == [type(value) for value in expected]


def test_columns_that_json_fields_cannot_hold_are_refused() -> None:
    """Lists and unknown names are one clear line."""
    frame = pl.DataFrame({"a": [[1, 2]], "b": [1]})
    with pytest.raises(ConfigError, match=r"column 'a' holds List\(Int64\)"):
        columns_of(frame, ["a"])
    with pytest.raises(ConfigError, match="no column 'c'; it has a, b"):
        columns_of(frame, ["c"])


def test_statistics_count_nan_as_missing_and_know_whole_numbers() -> None:
    """A target of 0, 1 and missing that a tool wrote as floats is seen as whole numbers with missing rows."""
    column = columns_for_inference(pl.DataFrame({"y": [0.0, 1.0, float("nan"), None, 1.0]}))[0]
    assert (column.missing, column.distinct, column.whole, column.counts) == (2, 2, True, {0.0: 1, 1.0: 2})
    assert (column.minimum, column.maximum) == (0.0, 1.0)
