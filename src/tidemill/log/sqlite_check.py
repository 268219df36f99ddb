"""The audit of a SQLite log: whether every record is what was written, and every position where it may be."""

import os
import sqlite3
from pathlib import Path

from msgspec import Struct

from tidemill.errors import ConfigError, LogDamaged
from tidemill.log.sqlite_database import APPLICATION_ID, in_our_words, reader
from tidemill.log.sqlite_folder import database_file, file_bytes, wal_file
from tidemill.log.sqlite_records import Damage, Table, damage_in, table_of

ROWS = 1000
POSITIONS = 'SELECT "group", origin, committed FROM positions WHERE topic = ? ORDER BY "group"'


class TopicReport(Struct, frozen=True):
    """The kept range of a topic: ``records`` from ``first`` up to, not with, ``end``."""

    topic: str
    first: int
    end: int
    records: int


class GroupReport(Struct, frozen=True):
    """Where a group stands in a topic; ``committed`` is None where it has read without a commit."""

    group: str
    topic: str
    committed: int | None
    lag: int


class LogReport(Struct, frozen=True):
    """What ``check`` found; the log is good where ``problems`` is empty."""

    root: str
    sqlite_version: str
    wal_reset_bug: bool
    """Whether this SQLite has the bug that the write lock keeps out; also not to be let near the log by other programs."""
    file_bytes: int
    wal_bytes: int
    topics: list[TopicReport]
    groups: list[GroupReport]
    problems: list[str]


def check(root: Path) -> LogReport:
    """Read the whole log and report. Works beside running roles, writes nothing, never holds a read open for long, except
    for SQLite's own integrity check. Needs the right to read only.

    Raises ``ConfigError`` where there is no log; damage is reported, not raised.
    """
    root = root.absolute()
    problems: list[str] = []
    topics: list[TopicReport] = []
    groups: list[GroupReport] = []
    if not database_file(root).is_file():
        raise ConfigError(f"there is no log in {root}")
    # SQLite needs a file beside a WAL, and makes it where nobody has yet.
    db = reader(root, at_rest=not os.access(root, os.W_OK) and not file_bytes(wal_file(root)))
    try:
        with in_our_words(root):
            refuse_others(db, root)
            problems.extend(f"database: {line}" for (line,) in db.execute("PRAGMA integrity_check") if line != "ok")
            groups, found = _groups(db)
            problems.extend(found)
            for topic_id, topic in db.execute("SELECT id, name FROM topics ORDER BY name").fetchall():
                report, found = _topic(db, table_of(topic_id, topic))
                topics.append(report)
                problems.extend(found)
    except LogDamaged as error:
        problems.append(str(error))
    finally:
        db.close()
    return LogReport(
        root=str(root),
        sqlite_version=sqlite3.sqlite_version,
        wal_reset_bug=(3, 7, 0) <= sqlite3.sqlite_version_info < (3, 51, 3),
        file_bytes=file_bytes(database_file(root)),
        wal_bytes=file_bytes(wal_file(root)),
        topics=topics,
        groups=groups,
        problems=problems,
    )


def refuse_others(db: sqlite3.Connection, root: Path) -> None:
    """Raise ``ConfigError`` for a database of another program."""
    (found,) = db.execute("PRAGMA application_id").fetchone()
    if found != APPLICATION_ID:
        raise ConfigError(f"{database_file(root)} is a database of another program")


def scan(db: sqlite3.Connection, table: Table, start: int, end: int) -> tuple[int, list[Damage]]:
    """Read the records from ``start`` up to, not with, ``end``: how many there are, and what is wrong with them.

    Each read ends with its statement. Retention may delete from the front meanwhile.
    """
    position, records = start, 0
    damage: list[Damage] = []
    while position < end:
        rows = db.execute(table.select, (position, min(ROWS, end - position))).fetchall()
        rows = [row for row in rows if row[0] < end]
        if not rows or rows[0][0] != position:
            kept, _ = db.execute(table.bounds).fetchone()
            position = max(position, min(kept, rows[0][0] if rows else end))
        if not rows:
            if position < end:
                damage.append(Damage(table.topic, position, end - position))
            break
        damage.extend(damage_in(table, rows, position))
        position, records = rows[-1][0] + 1, records + len(rows)
    return records, damage


def _topic(db: sqlite3.Connection, table: Table) -> tuple[TopicReport, list[str]]:
    """Every record up to the end at the call."""
    first, end = db.execute(table.bounds).fetchone()
    records, damage = scan(db, table, first, end)
    return TopicReport(table.topic, first, end, records), list(map(str, damage))


def _groups(db: sqlite3.Connection) -> tuple[list[GroupReport], list[str]]:
    groups: list[GroupReport] = []
    problems: list[str] = []
    for topic_id, topic in db.execute("SELECT id, name FROM topics ORDER BY name").fetchall():
        # Positions first: they only grow, and no further than the end.
        positions = db.execute(POSITIONS, (topic_id,)).fetchall()
        first, end = db.execute(table_of(topic_id, topic).bounds).fetchone()
        for group, origin, committed in positions:
            position = origin if committed is None else committed
            groups.append(GroupReport(group, topic, committed, end - max(first, position)))
            if not 0 <= position <= end:
                problems.append(f"group {group!r}: position {position} in topic {topic!r} is past the end, {end}")
    return groups, problems
