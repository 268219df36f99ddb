"""How a SQLite log stores a record: its row, its checksum, and the SQL of its table. Nothing here touches a file."""

import struct
from collections.abc import Iterator, Sequence
from zlib import crc32

import msgspec
from msgspec import Struct

from tidemill.errors import LogDamaged
from tidemill.log.base import Headers, Message

Row = tuple[int, int, bytes | None, bytes, bytes, int]
"""offset, time_ms, key, value, headers, checksum; in a damaged one each may be of any type that SQLite has."""
MEND = "`tidemill log repair` makes it an empty record, which is refused where it is read"

_prefix = struct.Struct("<qqii").pack
_pack_headers = msgspec.msgpack.Encoder().encode
_unpack_headers = msgspec.msgpack.Decoder(Headers).decode


class Table(Struct, frozen=True):
    """Where the records of one topic are, and the statements on them. ``seed`` starts their checksums."""

    id: int
    topic: str
    seed: int
    create: str
    insert: str
    replace: str
    select: str
    bounds: str
    time_near: str
    expired: str
    delete: str


def table_of(topic_id: int, topic: str) -> Table:
    """The table of the topic with this id in ``topics``."""
    name = f"records_{topic_id}"
    columns = "offset, time, key, value, headers, checksum"
    return Table(
        id=topic_id,
        topic=topic,
        seed=crc32(topic.encode()),
        create=f"CREATE TABLE IF NOT EXISTS {name} (offset INTEGER PRIMARY KEY, time INTEGER NOT NULL, key BLOB,"
        " value BLOB NOT NULL, headers BLOB NOT NULL, checksum INTEGER NOT NULL)",
        insert=f"INSERT INTO {name} ({columns}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
        replace=f"REPLACE INTO {name} ({columns}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
        select=f"SELECT {columns} FROM {name} WHERE offset >= ? ORDER BY offset LIMIT ?",  # noqa: S608
        # Retention sets "first" past what it deletes, so an offset is not used twice even where no row is left.
        bounds=f"SELECT first, coalesce((SELECT max(offset) FROM {name}) + 1, first) FROM topics WHERE id = {topic_id}",  # noqa: S608
        # Of the record before an offset, else of the one after it.
        time_near=f"SELECT coalesce((SELECT time FROM {name} WHERE offset < ?1 ORDER BY offset DESC LIMIT 1),"  # noqa: S608
        f" (SELECT time FROM {name} WHERE offset > ?1 ORDER BY offset LIMIT 1), 0)",
        expired=f"SELECT offset, time < ? FROM {name} ORDER BY offset LIMIT ?",  # noqa: S608
        delete=f"DELETE FROM {name} WHERE offset < ?",  # noqa: S608
    )


def checksum(seed: int, offset: int, time_ms: int, key: bytes | None, value: bytes, headers: bytes) -> int:
    """CRC-32 of a record and its place; a missing key and an empty one differ."""
    prefix = _prefix(offset, time_ms, -1 if key is None else len(key), len(headers))
    return crc32(value, crc32(headers, crc32(key or b"", crc32(prefix, seed))))


def rows_of(table: Table, first: int, time_ms: int, messages: Sequence[Message]) -> list[Row]:
    """The messages as rows, from offset ``first`` on."""
    seed, rows = table.seed, []
    for offset, message in enumerate(messages, first):
        key, value = message.key, message.value
        headers = _pack_headers(message.headers) if message.headers else b""
        rows.append((offset, time_ms, key, value, headers, checksum(seed, offset, time_ms, key, value, headers)))
    return rows


class Columns(Struct, frozen=True):
    """Rows of one topic, checked and turned."""

    offsets: list[int]
    times_ms: list[int]
    keys: list[bytes | None]
    values: list[bytes]
    headers: list[Headers]


class Damage(Struct, frozen=True):
    """A record that is not what was written, or, where ``missing`` is above 0, so many that are gone from ``offset`` on."""

    topic: str
    offset: int
    missing: int = 0

    def __str__(self) -> str:
        what = f"{self.missing} records are missing" if self.missing else "the record's checksum does not match"
        return f"topic {self.topic!r}, offset {self.offset}: {what}"


def columns_of(table: Table, rows: Sequence[Row]) -> Columns:
    """The columns of one row or more. Raises ``LogDamaged`` where one is not what was written."""
    damage = next(damage_in(table, rows, rows[0][0]), None)
    if damage:
        raise LogDamaged(f"{damage}; {MEND}")
    offsets, times, keys, values, headers, _ = (list(column) for column in zip(*rows, strict=True))
    decoded: list[Headers] = [_unpack_headers(h) if h else () for h in headers] if any(headers) else [()] * len(rows)
    return Columns(offsets, times, keys, values, decoded)


def damage_in(table: Table, rows: Sequence[Row], expected: int) -> Iterator[Damage]:
    """What is wrong with rows that should begin at offset ``expected`` and have no gap."""
    for row in rows:
        offset = row[0]
        if offset != expected:
            yield Damage(table.topic, expected, offset - expected)
        if not is_whole(table, row):
            yield Damage(table.topic, offset)
        expected = offset + 1


def is_whole(table: Table, row: Row) -> bool:
    """Whether the row is what was written."""
    offset, time_ms, key, value, headers, stored = row
    try:
        return checksum(table.seed, offset, time_ms, key, value, headers) == stored
    except (TypeError, struct.error):  # a flipped bit can change a column's type
        return False
