"""What ``tidemill drift`` compares: a file, the original data, or recorded requests, as columns of values.

A side is named by a text (``SOURCES``). Requests are those of the lake: each id's first, with its first outcome if one came.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from tidemill.configuration import Configuration
from tidemill.core.decoding import Decoder
from tidemill.core.inference import Choices, Column, infer, nearest
from tidemill.core.inspection import BOOLEANS, boolean_key, category_text, exact_number
from tidemill.core.outcomes import label_of
from tidemill.core.schema import UNREADABLE, Feature, FeatureType, Schema, is_readable
from tidemill.errors import BadRecord, ConfigError
from tidemill.messages import Label
from tidemill.original import event_times, load_original
from tidemill.tables import columns_for_inference, columns_of, read_table
from tidemill.texts import milliseconds, moment

if TYPE_CHECKING:
    from tidemill.lake import Lake

Times = NDArray[np.int64]

SOURCES = "a .csv or .parquet file, original, version:N, FROM..UNTIL (dates or times) or observations:I..J"
TARGET = "A or B"
"""What a schema that is inferred for a comparison is to predict: which of the two tables a row is from."""
CHUNK_ROWS = 20_000
"""Requests that are decoded in one go."""
_REQUEST = ("request_id", "partition", "offset", "event_at")
_NO_TIMES: Times = np.zeros(0, dtype=np.int64)


class Table(Struct, frozen=True):
    """One side: ``rows`` of each of its ``columns`` (a feature that is not there is not in the source), and, where it has
    them, ``outcomes`` (None: not known), event times in milliseconds, and request ids. ``notes``: what was left out.
    """

    name: str
    rows: int
    columns: dict[str, list[Any]]
    outcomes: list[Label | None] = []
    times_ms: Times = _NO_TIMES
    ids: list[str] = []
    notes: list[str] = []


class Pair(Struct, frozen=True):
    """Both sides, with the schema that both are read by; ``notes`` say what of them is not compared."""

    schema: Schema
    a: Table
    b: Table
    notes: list[str]


def is_file(source: str) -> bool:
    """Whether the text names a file, be it one that is not there."""
    return Path(source).suffix.lower() in {".csv", ".parquet"} or (source != "original" and Path(source).is_file())


def check_source(source: str) -> None:
    """Raises ``ConfigError`` where the text names nothing that can be compared."""
    if not (is_file(source) or source == "original" or source.startswith(("version:", "observations:")) or ".." in source):
        hint = nearest(source, ("original", "version:1", "observations:0.."))
        raise ConfigError(f"{source!r} is nothing to compare{hint}; give {SOURCES}")


def of_files(a: Path, b: Path, time: str = "") -> Pair:
    """Two files without a project: features and types are what A has, ``time`` names its column of event times (by default
    its only one of dates or times). Raises ``ConfigError`` as ``read_table``, and where they share no column of use.
    """
    frames = read_table(a), read_table(b)
    before, after = ({column.name: column for column in columns_for_inference(frame)} for frame in frames)
    unreadable = [name for name in before if not is_readable(name)]
    told = [_told(column, after.get(name)) for name, column in before.items() if name not in unreadable]
    table = Column(TARGET, "boolean", 2, 0, 2, counts={False: 1, True: 1})
    inferred = infer([*told, table], Choices(target=TARGET, time=time))
    schema = inferred.schema
    notes = [f"{name}: not compared: {reason}" for name, reason in inferred.ignored.items()]
    notes += [f"{name!r}: not compared: {UNREADABLE}" for name in unreadable]
    notes += [f"{schema.id}: not compared: it is taken for the rows' ids"] * bool(schema.id)
    notes += [f"{name}: only B has it" for name in after if name not in before]
    times = [name for name, column in before.items() if column.kind == "time"]
    if times and not schema.time:
        notes.append(f"{', '.join(times)} hold times: --time COLUMN says by which of them rows stay together")
    return _shared(schema, _of_frame(frames[0], str(a), schema), _of_frame(frames[1], str(b), schema), notes)


def of_project(a: str, b: str, configuration: Configuration, lake: "Lake") -> Pair:
    """Two sources by the project's schema. Raises ``ConfigError`` for one that is none, has no rows, or cannot be read."""
    schema = configuration.schema
    return _shared(schema, _load(a, configuration, lake), _load(b, configuration, lake), [])


def _told(a: Column, b: Column | None) -> Column:
    """What A's column is taken for: one that is empty or the same in all its rows counts where B has something else."""
    if a.distinct > 1 or b is None or (a.counts.keys() == b.counts.keys() and bool(a.missing) == bool(b.missing)):
        return a
    known = a if a.present else b
    return replace(known, rows=known.rows + 1, missing=known.missing + 1, distinct=max(2, known.distinct))


def _shared(schema: Schema, a: Table, b: Table, notes: list[str]) -> Pair:
    """The schema of what both have."""
    names = [feature.name for feature in schema.features]
    lost = [name for name in names if name not in a.columns or name not in b.columns]
    for name in lost:
        sides = [side for side, table in (("A", a), ("B", b)) if name in table.columns]
        notes = [*notes, f"{name}: {f'only {sides[0]} has it' if sides else 'neither table has it'}"]
    features = tuple(feature for feature in schema.features if feature.name not in lost)
    if not features:
        raise ConfigError(f"{a.name} and {b.name} share no column to compare: {', '.join(names)} are not in both")
    crosses = tuple(cross for cross in schema.crosses if not set(cross) & set(lost))
    notes = [*notes, *(f"{side}: {note}" for side, table in (("A", a), ("B", b)) for note in table.notes)]
    both = len(set(a.ids) & set(b.ids))
    if both:
        notes.append(f"{both:,} requests are in both: the shift between the others is larger")
    return Pair(replace(schema, features=features, crosses=crosses), a, b, notes)


def _load(source: str, configuration: Configuration, lake: "Lake") -> Table:
    check_source(source)
    kind, _, rest = source.partition(":")
    if is_file(source):
        return _of_frame(read_table(Path(source)), source, configuration.schema)
    if source == "original":
        return _original(configuration)
    if kind == "version":
        return _of_version(_whole(rest, source), configuration.schema, lake)
    if kind == "observations":
        return _of_observations(source, rest, configuration.schema, lake)
    return _of_range(source, configuration.schema, lake)


# -- files


def _original(configuration: Configuration) -> Table:
    rows = load_original(configuration.data, configuration.schema)
    if not len(rows):
        raise ConfigError(f"{configuration.data}: no row has a value of {configuration.schema.target!r}")
    times = np.array(rows.times_ms if configuration.schema.time else [], dtype=np.int64)
    return Table("original", len(rows), rows.columns, list(rows.outcomes), times)


def _of_frame(frame: pl.DataFrame, name: str, schema: Schema) -> Table:
    """A file's columns that the schema names, as its features take them; what they cannot take counts as missing."""
    notes: list[str] = []
    columns = {
        feature.name: _taken(columns_of(frame, [feature.name])[feature.name], feature, notes)
        for feature in schema.features
        if feature.name in frame.columns
    }
    labels = columns_of(frame, [schema.target])[schema.target] if schema.target in frame.columns else []
    outcomes = [_label(label, schema) for label in labels]
    unknown = sum(label is not None and outcome is None for label, outcome in zip(labels, outcomes, strict=True))
    if unknown:
        notes.append(f"{unknown:,} values of {schema.target} are no {schema.task} outcome: they count as not known")
    return Table(name, frame.height, columns, outcomes, _times(frame, schema.time), notes=notes)


def _taken(values: list[Any], feature: Feature, notes: list[str]) -> list[Any]:
    plain: dict[FeatureType, set[type]] = {"number": {int, float}, "boolean": {bool}, "category": {str}}
    if set(map(type, values)) <= plain[feature.type] | {type(None)}:
        return values
    read = [_read(value, feature) for value in values]
    bad = [value for value, found in zip(values, read, strict=True) if found is None and value is not None]
    if bad:
        notes.append(f"{feature.name}: {len(bad):,} values are no {feature.type}, say {bad[0]!r:.40}: they count as missing")
    return read


def _read(value: Any, feature: Feature) -> Any:
    """As a request's field would be read; None for what cannot."""
    if value is None or feature.type == "category":
        return value if value is None else category_text(value)
    if feature.type == "boolean":
        return BOOLEANS.get(boolean_key(value))
    try:
        return exact_number(value, feature.name) if isinstance(value, str) else float(value)
    except BadRecord:
        return None


def _label(value: Any, schema: Schema) -> Label | None:
    try:
        return None if value is None else label_of(value, schema)
    except BadRecord:
        return None


def _times(frame: pl.DataFrame, column: str) -> Times:
    """Of a row without a time the earliest."""
    if not column or column not in frame.columns:
        return _NO_TIMES
    times, absent = np.array(event_times(frame, column), dtype=np.int64), frame[column].is_null().to_numpy()
    return _NO_TIMES if absent.all() else np.where(absent, times[~absent].min(), times)


# -- the lake


def _of_version(version: int, schema: Schema, lake: "Lake") -> Table:
    rows = lake.scan("predictions").sort("partition", "offset").unique("request_id", keep="first", maintain_order=True)
    found = lake.read(rows.select("request_id", "version"))
    known = ", ".join(map(str, sorted(found["version"].unique())))
    answered = found.filter(pl.col("version") == version).select("request_id")
    if not answered.height:
        raise ConfigError(
            f"version:{version}: it has answered no request; " + (f"versions {known} have" if known else "nor has any other")
        )
    asked = _asked(lake).join(answered, on="request_id", how="semi")
    return _of_requests(f"version:{version}", asked, schema, lake)


def _of_range(source: str, schema: Schema, lake: "Lake") -> Table:
    """From the first time on, before the second one."""
    since, until = (_instant(text, source) for text in source.split("..", 1))
    if since is not None and until is not None and since >= until:
        raise ConfigError(f"{source}: ends before it begins; the second time is the first that is left out")
    asked = _asked(lake)
    kept = asked if since is None else asked.filter(pl.col("event_at") >= since)
    kept = kept if until is None else kept.filter(pl.col("event_at") < until)
    if not kept.height:
        raise ConfigError(f"{source}: no request is of that time; {_of(asked)}")
    return _of_requests(source, kept, schema, lake)


def _instant(text: str, source: str) -> int | None:
    """Milliseconds of a date or time, UTC where it names no zone; None of nothing."""
    if not text.strip():
        return None
    try:
        return milliseconds(text.strip())
    except ValueError:
        raise ConfigError(
            f"{source}: {text!r} is no date or time like 2013-04-04 or 2013-04-04T06:30:00Z; give {SOURCES}"
        ) from None


def _of(asked: pl.DataFrame) -> str:
    if not asked.height:
        return "the lake has no requests yet: tidemill run records them"
    times = asked["event_at"].to_numpy()
    return f"the lake's {asked.height:,} requests are of {moment(int(times.min()))} to {moment(int(times.max()))} UTC"


def _asked(lake: "Lake") -> pl.DataFrame:
    """Each id's first request, without its value."""
    rows = lake.scan("requests").select(_REQUEST).sort("partition", "offset")
    return lake.read(rows.unique("request_id", keep="first", maintain_order=True))


def _of_requests(name: str, asked: pl.DataFrame, schema: Schema, lake: "Lake") -> Table:
    wanted = asked.lazy().select("partition", "offset")
    rows = lake.scan("requests").select("partition", "offset", "value")
    values = lake.read(rows.join(wanted, on=["partition", "offset"], how="semi"))
    told = lake.scan("outcomes").sort("partition", "offset").unique("request_id", keep="first", maintain_order=True)
    outcomes = lake.read(told.select("request_id", "outcome"))
    found = asked.join(values, on=["partition", "offset"], how="inner", maintain_order="left")
    found = found.join(outcomes, on="request_id", how="left", maintain_order="left")
    return _decoded(name, found.rename({"value": "features"}), schema)


def _of_observations(source: str, span: str, schema: Schema, lake: "Lake") -> Table:
    """From number I on, before J."""
    first, dots, last = span.partition("..")
    if not dots:
        raise ConfigError(f"{source}: write observations:I..J, from number I on, before J; both may be left out")
    since = _whole(first, source) if first else 0
    count = lake.count("observations")
    until = _whole(last, source) if last else count
    if not since < until <= count:
        there = f"there are {count:,}, from number 0 to {count - 1}" if count else "there are none yet"
        raise ConfigError(f"{source}: {there}; give I below J, and J at most {count}")
    return _decoded(source, lake.observations(until).slice(since), schema)


def _whole(text: str, source: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ConfigError(f"{source}: {text!r} is no whole number")
    return int(text)


def _decoded(name: str, frame: pl.DataFrame, schema: Schema) -> Table:
    """Requests as they were answered; what could not be read had no answer, and is left out."""
    columns: dict[str, list[Any]] = {feature.name: [] for feature in schema.features}
    decoder, kept = Decoder(schema), list[int]()
    for start in range(0, frame.height, CHUNK_ROWS):
        decoded = decoder.decode([value or b"" for value in frame["features"][start : start + CHUNK_ROWS]])
        kept += [start + row for row in decoded.rows]
        for feature, values in decoded.columns.items():
            columns[feature] += values
    if not kept:
        raise ConfigError(f"{name}: none of its {frame.height:,} requests can be read by schema.json")
    bad = frame.height - len(kept)
    notes = [f"{bad:,} requests cannot be read by schema.json: they are left out"] if bad else []
    good = frame[kept]
    outcomes = [None if text is None else _label(msgspec.json.decode(text), schema) for text in good["outcome"]]
    return Table(name, good.height, columns, outcomes, good["event_at"].to_numpy(), good["request_id"].to_list(), notes)
