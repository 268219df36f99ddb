"""Reads the original data: a CSV or Parquet file as a frame, and its columns as the values that JSON would carry."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from tidemill.core.inference import CATEGORIES_MAX, Column, Kind, Value
from tidemill.errors import ConfigError

SEPARATORS = ",;\t|"
HEADER_CHARACTERS_MAX = 1 << 20
MISSING_IN_CSV = ["", "NA", "N/A", "NaN", "nan", "null", "NULL"]
"""What a CSV file writes for "no value"; in Parquet only null and NaN are missing."""


def read_table(path: Path) -> pl.DataFrame:
    """The whole table. Raises ``ConfigError``, in one line, for a file that is missing, of an unknown kind, damaged, empty,
    or with columns that share a name or have none.
    """
    ending = path.suffix.lower()
    if ending not in {".csv", ".parquet"}:
        raise ConfigError(f"{path}: unknown kind of file, give a .csv or .parquet file")
    if not path.is_file():
        raise ConfigError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        frame = _read_csv(path) if ending == ".csv" else pl.read_parquet(path, glob=False)
    except pl.exceptions.NoDataError:
        raise ConfigError(f"{path}: the file is empty") from None
    except (pl.exceptions.PolarsError, OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read: {_first_line(error)}") from error
    if "" in frame.columns:
        raise ConfigError(f"{path}: column {frame.columns.index('') + 1} has no name")
    if not frame.height:
        raise ConfigError(f"{path}: the table has no rows")
    return frame


def columns_of(frame: pl.DataFrame, names: Sequence[str]) -> dict[str, list[Value]]:
    """Columns as lists of what JSON carries: int, float, str, bool and None.

    Floats are widened to 64 bits, NaN and infinities become None. Decimals become floats, categoricals and enums their
    text. Datetimes (UTC, if they name no zone) and dates (their midnight) become milliseconds since 1970, as every time in
    the project; durations become milliseconds, times of day text. Raises ``ConfigError`` for a column that is not there or
    that holds lists, records or bytes.
    """
    return {name: _plain(_column(frame, name)).to_list() for name in names}


def columns_for_inference(frame: pl.DataFrame) -> list[Column]:
    """What ``core.inference`` wants to know of each column of the table."""
    return [_summary(series) for series in frame.iter_columns()]


def _read_csv(path: Path) -> pl.DataFrame:
    separator, header = _header(path)
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise ConfigError(f"{path}: more than one column is named {', '.join(map(repr, doubled))}")
    frame = pl.read_csv(
        path,
        separator=separator,
        infer_schema_length=None,
        try_parse_dates=True,
        null_values=MISSING_IN_CSV,
        glob=False,
    )
    if len(header) == frame.width:
        frame.columns = header  # polars leaves quotes inside a name doubled
    return frame if separator == "," else frame.with_columns(map(_decimal_commas, frame.iter_columns()))


def _header(path: Path) -> tuple[str, list[str]]:
    """What separates the columns, and their names: a comma, unless only something else parts the first line."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        text = file.read(HEADER_CHARACTERS_MAX)
    headers = {
        separator: next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=separator)), [])
        for separator in SEPARATORS
    }
    return next(((separator, names) for separator, names in headers.items() if len(names) > 1), (",", headers[","]))


def _decimal_commas(series: pl.Series) -> pl.Series:
    """A column of text as numbers where all of it is numbers with a decimal comma, as in files that semicolons separate."""
    if series.dtype != pl.String:
        return series
    numbers = series.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
    return numbers if numbers.null_count() == series.null_count() < len(series) else series


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _column(frame: pl.DataFrame, name: str) -> pl.Series:
    if name not in frame.columns:
        raise ConfigError(f"the table has no column {name!r}; it has {', '.join(frame.columns)}")
    return frame.get_column(name)


def _kind(dtype: pl.DataType) -> Kind:
    if dtype.is_integer():
        return "integer"
    if dtype.is_float() or dtype.is_decimal():
        return "float"
    if dtype == pl.Boolean:
        return "boolean"
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return "text"
    return "time" if isinstance(dtype, pl.Date | pl.Datetime) else "other"


def _plain(series: pl.Series) -> pl.Series:
    """The column in one of the types Int, Float64, Boolean, String, Null."""
    dtype = series.dtype
    match _kind(dtype):
        case "float":
            wide = series.cast(pl.Float64)
            return wide.set(~wide.is_finite(), None)
        case "text":
            return series.cast(pl.String)
        case "time":
            return series.cast(pl.Datetime("ms")).dt.epoch("ms")
        case "other" if dtype == pl.Duration:
            return series.dt.total_milliseconds()
        case "other" if dtype == pl.Time:
            return series.cast(pl.String)
        case "other" if dtype != pl.Null:
            raise ConfigError(f"column {series.name!r} holds {dtype}: give numbers, text, true/false or times")
    return series


def _summary(series: pl.Series) -> Column:
    kind = _kind(series.dtype)
    if kind == "other":
        return Column(series.name, kind, len(series), series.null_count(), 0)
    plain = _plain(series)
    present = plain.drop_nulls()
    distinct = present.n_unique()
    low, high = (present.min(), present.max()) if kind in {"integer", "float", "time"} else (None, None)
    return Column(
        name=series.name,
        kind=kind,
        rows=len(plain),
        missing=plain.null_count(),
        distinct=distinct,
        minimum=low if isinstance(low, int | float) else None,
        maximum=high if isinstance(high, int | float) else None,
        whole=kind == "integer" or (kind == "float" and bool((present == present.floor()).all())),
        counts=dict(present.value_counts(sort=False).iter_rows()) if distinct <= CATEGORIES_MAX and kind != "time" else {},
    )
