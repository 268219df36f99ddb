"""What an audit looks at: positions, tables, records, and both as frames that can be compared.

Positions are read first, then the tables, then the log, answers before requests: what a role writes meanwhile is never
mistaken for a fault.

A mended record has its place and perhaps its key, no more. What the lake has of it is taken instead, as for a deleted one.
Anybody can send a record that looks mended, so without the lake's row a request is what it looks like: an empty one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
import polars as pl

from tidemill.core.auditing import Check, Place, found
from tidemill.core.decoding import event_time, outcome_id, request_id_or_place
from tidemill.errors import BadRecord
from tidemill.lake import Lake, TableName
from tidemill.log.base import DAMAGED, Headers, Log, Record, read_all
from tidemill.messages import JournalEntry, ModelVersion, Prediction, Retrain, Topics, Trial

T = TypeVar("T")
GROUPS = ("predictor", "recorder", "monitor", "trainer", "tracker")
JOINED: tuple[TableName, ...] = ("requests", "predictions", "outcomes")
TABLES: tuple[TableName, ...] = (*JOINED, "dead_letters")
PLACE = ["partition", "offset"]
REQUEST = ["request_partition", "request_offset"]
"""Where an observation's request stands."""

_RECORD = {"partition": pl.Int32, "offset": pl.Int64, "time_ms": pl.Int64, "key": pl.Binary, "value": pl.Binary}
_TEXTS = ("topic", "role", "reason", "field", "detail")
_prediction = msgspec.json.Decoder(Prediction)


class Records(NamedTuple):
    """A topic's records as columns, with the headers of each; of those that are ``mended`` the place, time and key."""

    frame: pl.DataFrame
    headers: list[Headers]
    mended: pl.DataFrame

    def whole(self) -> pl.DataFrame:
        """The others, as columns."""
        return self.frame.join(self.mended, on=PLACE, how="anti", maintain_order="left")


class Facts(NamedTuple):
    """All that was read, by group, table or topic; what stands for a partition is under its number.

    ``stored`` is where the recorder stands in each table, ``read`` the monitor, ``observed`` the number of observations
    once the commands were read. ``bounds`` of the log are newer than the records, ``firsts`` older than the positions.
    """

    firsts: dict[str, dict[int, int]]
    committed: dict[str, dict[tuple[str, int], int]]
    tables: dict[TableName, pl.DataFrame]
    stored: dict[str, dict[int, int]]
    read: dict[str, dict[int, int]]
    records: dict[str, Records]
    observed: int
    bounds: dict[str, dict[int, tuple[int, int]]]

    def done_to(self, group: str, topic: str) -> dict[int, int]:
        """A group's position in a topic, by partition."""
        return {partition: at for (name, partition), at in self.committed[group].items() if name == topic}


def read_facts(log: Log, topics: Topics, lake: Lake) -> Facts:
    """Positions, then tables, then the log: whoever writes meanwhile only adds what is not yet due."""
    firsts = {name: {p: first for p, (first, _) in bounds.items()} for name, bounds in _bounds(log, topics).items()}
    committed = {group: dict(log.committed(group)) for group in GROUPS}
    partitions = {name: sorted(firsts[name]) for name in TABLES}
    read: dict[str, dict[int, int]] = {
        name: _positions(lake, "observations", f"monitor:{name}", partitions[name]) for name in JOINED
    }
    tables: dict[TableName, pl.DataFrame] = {"observations": lake.read(lake.scan("observations"))}
    stored: dict[str, dict[int, int]] = {}
    for name in TABLES:
        tables[name], stored[name] = _settled(lake, name, f"recorder:{getattr(topics, name)}", partitions[name])
    names = [name for name in topics.__struct_fields__ if name not in {"requests", "events"}]
    records = {name: _records(log, getattr(topics, name)) for name in [*names, "requests"]}
    observed = lake.count("observations")
    return Facts(firsts, committed, tables, stored, read, records, observed, _bounds(log, topics))


def _bounds(log: Log, topics: Topics) -> dict[str, dict[int, tuple[int, int]]]:
    return {name: log.bounds(getattr(topics, name)) for name in topics.__struct_fields__}


def _positions(lake: Lake, table: TableName, reader: str, partitions: Iterable[int]) -> dict[int, int]:
    names = {f"{reader}:{partition}": partition for partition in partitions}
    return {names[app]: position for app, position in lake.positions(table, names).items()}


def _settled(lake: Lake, name: TableName, reader: str, partitions: list[int]) -> tuple[pl.DataFrame, dict[int, int]]:
    """A table with its positions; rows that were added while it was read are left out."""
    before = _positions(lake, name, reader, partitions)
    frame = lake.read(lake.scan(name))
    if _positions(lake, name, reader, partitions) != before:
        limits = pl.col("partition").replace_strict(before, default=0, return_dtype=pl.Int64)
        frame = frame.filter(pl.col("offset") < limits)
    return frame, before


def _records(log: Log, topic: str) -> Records:
    records = read_all(log, topic)
    columns = {name: [getattr(record, name) for record in records] for name in _RECORD}
    frame = pl.DataFrame(columns, schema=_RECORD)
    mended = frame.filter(pl.Series(map(_is_mended, records), dtype=pl.Boolean)).drop("value")
    return Records(frame, [record.headers for record in records], mended)


def _is_mended(record: Record) -> bool:
    """As ``log repair`` leaves one; a dead letter that carries the header has others too."""
    return not record.value and len(record.headers) == 1 and record.headers[0][0] == DAMAGED


class Told(NamedTuple):
    """The decoded records of the topics that say what was decided, and whether all could be decoded."""

    models: list[ModelVersion]
    commands: list[tuple[Place, Retrain]]
    journal: list[JournalEntry]
    check: Check


def told_in(facts: Facts) -> Told:
    """Decode them; each record that cannot be is a problem, or unchecked if it is mended, and is left out."""
    problems: list[str] = []

    def decoded(name: str, kind: type[T]) -> list[tuple[Place, T]]:
        decoder = msgspec.json.Decoder(kind)
        good = []
        for partition, offset, value in facts.records[name].whole().select(*PLACE, "value").iter_rows():
            try:
                good.append(((partition, offset), decoder.decode(value)))
            except (ValueError, RecursionError) as error:
                problems.append(f"{name} {partition}:{offset} cannot be read: {error}")
        return good

    models = [model for _, model in decoded("models", ModelVersion)]
    commands = decoded("retrain", Retrain)
    journal = [entry for _, entry in decoded("journal", JournalEntry)]
    others = len(decoded("trials", Trial)) + len(decoded("predictions", Prediction))
    mended = sum(len(facts.records[name].mended) for name in ("models", "retrain", "journal", "trials", "predictions"))
    checked = len(models) + len(commands) + len(journal) + others + len(problems)
    return Told(models, commands, journal, found("readable", checked, problems, mended))


def request_ids(facts: Facts, topics: Topics) -> list[str]:
    """The ids of the requests by their keys and headers; of one that has a bad one, its place."""
    frame, headers, _ = facts.records["requests"]
    rows = zip(frame["key"], frame["partition"], frame["offset"], headers, strict=True)
    return [request_id_or_place(key, topics.requests, partition, offset, said) for key, partition, offset, said in rows]


def outcome_ids(facts: Facts) -> list[str | None]:
    """The request ids that the outcomes name; None for one that must be a dead letter."""
    frame, headers, _ = facts.records["outcomes"]
    return [_outcome_id_or_none(key, said) for key, said in zip(frame["key"], headers, strict=True)]


def _outcome_id_or_none(key: bytes | None, headers: Headers) -> str | None:
    try:
        return outcome_id(key, headers)
    except BadRecord:
        return None


def _with_deleted(facts: Facts, name: TableName, kept: pl.DataFrame) -> pl.DataFrame:
    """The log's records, and those that only the table still has: deleted or mended ones; by place."""
    first = {partition: bounds[0] for partition, bounds in facts.bounds[name].items()}
    begin = pl.col("partition").replace_strict(first, default=0, return_dtype=pl.Int64)
    table = facts.tables[name].select(kept.columns)
    mended = table.join(facts.records[name].mended, on=PLACE, how="semi")
    gone = pl.concat([table.filter(pl.col("offset") < begin), mended]).unique(PLACE)
    here = kept.filter(pl.col("offset") >= begin).join(gone, on=PLACE, how="anti")
    return pl.concat([gone, here]).sort(PLACE)


def requests_in(facts: Facts, topics: Topics) -> pl.DataFrame:
    """The requests, as the table must have them, and those that only the table has."""
    frame, headers, _ = facts.records["requests"]
    frame = frame.with_columns(
        request_id=pl.Series(request_ids(facts, topics), dtype=pl.String),
        event_at=pl.Series(map(_event_at, headers, frame["time_ms"]), dtype=pl.Int64),
    )
    return _with_deleted(facts, "requests", frame.select(*PLACE, "request_id", "time_ms", "event_at", "value"))


def _event_at(headers: Headers, time_ms: int) -> int:
    """A bad time is a dead letter, under the log's time."""
    try:
        return event_time(headers, time_ms) if headers else time_ms
    except BadRecord:
        return time_ms


def answers_in(facts: Facts) -> pl.DataFrame:
    """The predictions that can be read, as the table must have them, and those that only the table has.

    A mended one that the table lacks answers the request that its key names; its version, bundle and value are null.
    """
    records = facts.records["predictions"]
    answers = _with_deleted(facts, "predictions", _predictions(records.whole()))
    mended = records.mended.filter(pl.col("key").is_not_null()).join(answers, on=PLACE, how="anti")
    names = [key.decode("utf-8", "replace") for key in mended["key"]]
    by_key = mended.select(*PLACE, "time_ms").with_columns(request_id=pl.Series(names, dtype=pl.String))
    return pl.concat([answers, by_key], how="diagonal").sort(PLACE)


def _predictions(records: pl.DataFrame) -> pl.DataFrame:
    """Those that cannot be read are another check's."""
    answers = [_prediction_or_none(value) for value in records["value"]]
    columns = {
        "request_id": pl.Series([a and a.request_id for a in answers], dtype=pl.String),
        "version": pl.Series([a and a.version for a in answers], dtype=pl.Int64),
        "bundle": pl.Series([a and a.bundle for a in answers], dtype=pl.String),
    }
    frame = records.with_columns(**columns).filter(pl.col("request_id").is_not_null())
    return frame.select(*PLACE, "request_id", "time_ms", "version", "bundle", "value")


def _prediction_or_none(value: bytes) -> Prediction | None:
    try:
        return _prediction.decode(value)
    except (ValueError, RecursionError):
        return None


def dead_letters_in(facts: Facts) -> pl.DataFrame:
    """The dead letters, as the table must have them, and those that only the table has."""
    frame, headers, _ = facts.records["dead_letters"]
    said = [{name: value.decode("utf-8", "replace") for name, value in one} for one in headers]
    columns: dict[str, list[Any]] = {name: [one.get(name, "") for one in said] for name in _TEXTS}
    columns |= {
        f"source_{name}": [_number(one.get(name, ""), digits) for one in said]
        for name, digits in zip(PLACE, (9, 18), strict=True)
    }
    types = {**dict.fromkeys(_TEXTS, pl.String), "source_partition": pl.Int32, "source_offset": pl.Int64}
    return _with_deleted(facts, "dead_letters", pl.concat([frame, pl.DataFrame(columns, schema=types)], how="horizontal"))


def _number(text: str, digits: int) -> int | None:
    """None in a dead letter that names no record."""
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= digits else None


def refused_by(letters: pl.DataFrame, role: str, topic: str) -> Counter[Place]:
    """How many dead letters of a role name each place of a topic."""
    mine = letters.filter((pl.col("role") == role) & (pl.col("topic") == topic))
    return Counter(mine.select("source_partition", "source_offset").iter_rows())


def joined(tables: Mapping[TableName, pl.DataFrame], wait_ms: int) -> pl.DataFrame:
    """What the observations must be, but for their numbers.

    Of each request id the first row opens, and any that comes more than two waits after the one before it. With it go the
    first prediction and the first outcome of the id that are at most one wait away. ``answer`` is the prediction's bytes.
    """
    silence = pl.col("time_ms") - pl.col("time_ms").shift(1).over("request_id")
    openings = tables["requests"].sort(PLACE).filter((silence > 2 * wait_ms).fill_null(True))
    wanted = openings.select(
        "request_id",
        pl.col("partition").alias("request_partition"),
        pl.col("offset").alias("request_offset"),
        pl.col("value").alias("features"),
        "event_at",
        pl.col("time_ms").alias("requested_at"),
    )
    answers = tables["predictions"].select(
        "request_id", *PLACE, "time_ms", "version", "bundle", pl.col("value").alias("answer")
    )
    truths = tables["outcomes"].select(
        "request_id", *PLACE, "time_ms", "outcome", pl.coalesce("outcome_at", "time_ms").alias("outcome_at")
    )
    return _with_nearest(_with_nearest(wanted, answers, wait_ms), truths, wait_ms)


def scattered(tables: Mapping[TableName, pl.DataFrame]) -> pl.DataFrame:
    """The ids of which several partitions hold requests, or outcomes: an app sent them with different keys."""
    rows = [tables[name].group_by("request_id").agg(pl.col("partition").n_unique()) for name in ("requests", "outcomes")]
    return pl.concat(rows).filter(pl.col("partition") > 1).select("request_id").unique()


def _with_nearest(wanted: pl.DataFrame, rows: pl.DataFrame, wait_ms: int) -> pl.DataFrame:
    near = (pl.col("time_ms") - pl.col("requested_at")).abs() <= wait_ms
    found = wanted.join(rows, on="request_id").filter(near).sort(PLACE)
    return found.unique(REQUEST, keep="first", maintain_order=True).drop(*PLACE, "time_ms")
