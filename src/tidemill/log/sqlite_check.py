"""The audit of a SQLite log: whether every record is what was written, and every position where it may be."""

import sqlite3
from pathlib import Path

from msgspec import Struct

from tidemill.errors import ConfigError, LogDamaged
from tidemill.log.sqlite_database import APPLICATION_ID, in_our_words, reader
from tidemill.log.sqlite_folder import database_file, file_bytes, wal_file
from tidemill.log.sqlite_records import Table, problems_of, table_of

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
    for SQLite's own integrity check.

    Raises ``ConfigError`` where there is no log; damage is reported, not raised.
    """
    root = root.absolute()
    problems: list[str] = []
    topics: list[TopicReport] = []
    groups: list[GroupReport] = []
    if not database_file(root).is_file():
        raise ConfigError(f"there is no log in {root}")
    db = reader(root)
    try:
        with in_our_words(root):
            _refuse_others(db, root)
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


def _refuse_others(db: sqlite3.Connection, root: Path) -> None:
    (found,) = db.execute("PRAGMA application_id").fetchone()
    if found != APPLICATION_ID:
        raise ConfigError(f"{database_file(root)} is a database of another program")


def _topic(db: sqlite3.Connection, table: Table) -> tuple[TopicReport, list[str]]:
    """Every record up to the end at the call; retention may delete from the front meanwhile."""
    first, end = db.execute(table.bounds).fetchone()
    position, records = first, 0
    problems: list[str] = []
    while position < end:
        rows = db.execute(table.select, (position, min(ROWS, end - position))).fetchall()
        if not rows or rows[0][0] != position:
            kept, _ = db.execute(table.bounds).fetchone()
            position = max(position, min(kept, rows[0][0] if rows else end))
        if not rows:
            if position < end:
                problems.append(f"topic {table.topic!r}, offset {position}: {end - position} records are missing")
            break
        problems.extend(problems_of(table, rows, position))
        position, records = rows[-1][0] + 1, records + len(rows)
    return TopicReport(table.topic, first, end, records), problems


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
