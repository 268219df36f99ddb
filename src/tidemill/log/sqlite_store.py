"""The one connection of a process that writes to a SQLite log, and what is done beside writing: checkpoints, retention."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from tidemill.clock import Clock
from tidemill.errors import Broken, ConfigError
from tidemill.log.base import Message, Topic
from tidemill.log.sqlite_database import in_our_words, reader, writer
from tidemill.log.sqlite_folder import WriteLock, file_bytes, wal_file
from tidemill.log.sqlite_records import Table, rows_of, table_of
from tidemill.log.sqlite_wake import Touch

MB = 1 << 20
# A WAL that is copied back every 4 MB is written over in place: 270k rows/s and 5.2k single commits/s, against 230k and
# 4.2k with one that grows to 64 MB, and 250k and 3.6k with one that is truncated every 16 MB.
CHECKPOINT_BYTES = 4 * MB
# Only where a reader kept it from being written over.
TRUNCATE_BYTES = 64 * MB
SWEEP_MS = 10_000
# While a sweep finds more than it may delete at once. Small, since a commit waits for it: 5,000 rows and 512 pages took
# 24 to 96 ms, and 1,000 rows every 20 ms are more than any role appends.
SWEEP_AGAIN_MS = 20
SWEEP_ROWS = 1_000
# Free pages that stay in the file, to be used again at once, and how many a sweep gives back at most.
FREE_PAGES = 1024
VACUUM_PAGES = 128


class Store:
    """Used by any thread: writes wait for the write lock, look-ups have a connection and a lock of their own."""

    def __init__(self, root: Path, durability: Literal["full", "normal"], clock: Clock) -> None:
        self.root = root
        self._clock = clock
        self._pid = os.getpid()
        self._closed = False
        self._lock = WriteLock(root)
        try:
            with self._lock.held():
                self._db = writer(root, durability)
                self._lookup = reader(root)
        except BaseException:
            self._lock.close()
            raise
        self._lookup_lock = threading.Lock()
        self._touch = Touch(root)
        self._news: set[str] = set()
        self._tables: dict[str, Table] = {}
        self._written = 0
        self._swept_at_ms = 0
        self._sweep_pause_ms = SWEEP_MS

    @property
    def forked(self) -> bool:
        """Whether this is a copy in a child of the process that opened it."""
        return os.getpid() != self._pid

    def guard(self) -> None:
        """Raise ``Broken`` where the log is closed, or was opened by a parent process."""
        if self.forked:
            raise Broken("a SQLite log cannot be used across a fork: open it in the child, and start processes by spawn")
        if self._closed:
            raise Broken("the log is closed")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One write transaction under the write lock: durable after the block, undone where the block raises."""
        self.guard()
        with in_our_words(self.root), self._lock.held():
            db = self._db
            self._news.clear()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                _undo(db)
                raise
            for topic in self._news:
                self._touch.touch(topic)
            self._keep_house(db)

    def insert(self, db: sqlite3.Connection, messages: Sequence[Message]) -> None:
        """Append within a transaction of ``writing``."""
        now = self._clock.now_ms()
        by_topic: dict[str, list[Message]] = {}
        for message in messages:
            by_topic.setdefault(message.topic, []).append(message)
        for topic, group in by_topic.items():
            table = self.table(topic)
            self._news.add(topic)
            _, end = db.execute(table.bounds).fetchone()
            db.executemany(table.insert, rows_of(table, end, now, group))
            self._written += sum(len(message.value) + 64 for message in group) + 8192

    def create(self, topics: Sequence[Topic]) -> None:
        """Make or update topics; no transaction where nothing is to be done."""
        with self._lookup_lock, in_our_words(self.root):
            present = set(self._lookup.execute("SELECT name, retention_ms, compacted FROM topics"))
        missing = [row for topic in topics if (row := _topic_row(topic)) not in present]
        if not missing:
            return
        with self.writing() as db:
            for row in missing:
                db.execute(
                    "INSERT INTO topics (name, retention_ms, compacted, first) VALUES (?, ?, ?, 0) ON CONFLICT (name)"
                    " DO UPDATE SET retention_ms = excluded.retention_ms, compacted = excluded.compacted",
                    row,
                )
                (topic_id,) = db.execute("SELECT id FROM topics WHERE name = ?", row[:1]).fetchone()
                db.execute(table_of(topic_id, row[0]).create)

    def table(self, topic: str) -> Table:
        """Raises ``ConfigError`` for a topic that was not created."""
        table = self._tables.get(topic)
        if table is None:
            found = self._look_up("SELECT id FROM topics WHERE name = ?", topic)
            if not found:
                raise ConfigError(f"the log in {self.root} has no topic {topic!r}: create it first")
            table = self._tables[topic] = table_of(found[0][0], topic)
        return table

    def bounds(self, table: Table) -> tuple[int, int]:
        """The offset of the first record kept, and of the next one to come."""
        first, end = self._look_up(table.bounds)[0]
        return first, end

    def committed(self, group: str) -> dict[str, int]:
        """By topic: what the group has committed."""
        sql = (
            "SELECT name, committed FROM positions JOIN topics ON topics.id = topic"
            ' WHERE "group" = ? AND committed IS NOT NULL'
        )
        return dict(self._look_up(sql, group))

    def take_over(self, group: str, table: Table, origin: int | None) -> tuple[int, int]:
        """The new generation of the group's reader of a topic, and where it starts.

        ``origin``: where a group without a position starts; None is the first record kept. It is stored, so that a second
        reader that starts before the first commit starts there too.
        """
        with self.writing() as db:
            if origin is None:
                origin, _ = db.execute(table.bounds).fetchone()
            (row,) = db.execute(
                'INSERT INTO positions ("group", topic, generation, origin) VALUES (?, ?, 1, ?) ON CONFLICT DO UPDATE'
                " SET generation = generation + 1 RETURNING generation, coalesce(committed, origin)",
                (group, table.id, origin),
            ).fetchall()
        return row[0], row[1]

    def advance(self, db: sqlite3.Connection, group: str, table: Table, generation: int, position: int) -> bool:
        """Within a transaction: store the group's position. False where another reader has taken over."""
        sql = 'UPDATE positions SET committed = ? WHERE "group" = ? AND topic = ? AND generation = ?'
        return db.execute(sql, (position, group, table.id, generation)).rowcount == 1

    def close(self) -> None:
        """Copy the WAL back where nobody reads it, and close. In a forked child, where nothing may be touched, nothing."""
        if self._closed or self.forked:
            return
        self._closed = True
        # Closing is under the lock too: the last connection of all checkpoints when it goes.
        with in_our_words(self.root), self._lock.held(), self._lookup_lock:
            self._lookup.close()
            with suppress(sqlite3.Error):
                _checkpoint(self._db, "TRUNCATE")
            self._db.close()
        self._touch.close()
        self._lock.close()

    def _look_up(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        self.guard()
        with self._lookup_lock, in_our_words(self.root):
            return self._lookup.execute(sql, parameters).fetchall()

    def _keep_house(self, db: sqlite3.Connection) -> None:
        """Bounded work now and then, after a commit that stands: what fails here fails the next time too, or not."""
        try:
            if self._written >= CHECKPOINT_BYTES:
                self._written = 0
                _checkpoint(db, "PASSIVE")
                if file_bytes(wal_file(self.root)) > TRUNCATE_BYTES:
                    _checkpoint(db, "TRUNCATE")
            now = self._clock.now_ms()
            if abs(now - self._swept_at_ms) >= self._sweep_pause_ms:
                self._swept_at_ms, self._sweep_pause_ms = now, SWEEP_MS
                if self._sweep(db):
                    self._sweep_pause_ms = SWEEP_AGAIN_MS
        except sqlite3.Error:
            _undo(db)

    def _sweep(self, db: sqlite3.Connection) -> bool:
        """Delete expired records and shrink the file; whether there is more to do."""
        now, more = self._clock.now_ms(), False
        kept = db.execute("SELECT id, name, retention_ms FROM topics WHERE retention_ms IS NOT NULL").fetchall()
        for topic_id, topic, retention_ms in kept:
            deleted = _delete_expired(db, table_of(topic_id, topic), now - retention_ms)
            self._written += deleted * 256
            more |= deleted >= SWEEP_ROWS
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        if free > FREE_PAGES:
            # As a script: each step moves one page, and execute takes one step of a statement that has no columns.
            db.executescript(f"PRAGMA incremental_vacuum({min(free - FREE_PAGES, VACUUM_PAGES)})")
            self._written += VACUUM_PAGES * 4096
            more |= free - FREE_PAGES > VACUUM_PAGES
        return more


def _topic_row(topic: Topic) -> tuple[str, int | None, int]:
    if topic.partitions != 1:
        raise ConfigError(f"topic {topic.name!r}: a SQLite log has one partition a topic, not {topic.partitions}")
    retention = None if topic.retention_seconds is None else round(topic.retention_seconds * 1000)
    return topic.name, retention, int(topic.compacted)


def _delete_expired(db: sqlite3.Connection, table: Table, before_ms: int) -> int:
    """Delete the oldest records up to the first that is young enough or that a group has still to read; how many."""
    expired = db.execute(table.expired, (before_ms, SWEEP_ROWS)).fetchall()
    young = next((i for i, (_, old) in enumerate(expired) if not old), len(expired))
    if not young:
        return 0
    (needed,) = db.execute("SELECT min(coalesce(committed, origin)) FROM positions WHERE topic = ?", (table.id,)).fetchone()
    first = expired[young - 1][0] + 1
    if needed is not None:
        first = min(first, needed)
    if first <= expired[0][0]:
        return 0
    db.execute("BEGIN IMMEDIATE")
    deleted = db.execute(table.delete, (first,)).rowcount
    db.execute("UPDATE topics SET first = max(first, ?) WHERE id = ?", (first, table.id))
    db.execute("COMMIT")
    return deleted


def _checkpoint(db: sqlite3.Connection, mode: Literal["PASSIVE", "TRUNCATE"]) -> None:
    # Who reads now will not be waited for: the next one may find nobody.
    db.execute("PRAGMA busy_timeout=0")
    try:
        db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
    finally:
        db.execute("PRAGMA busy_timeout=5000")


def _undo(db: sqlite3.Connection) -> None:
    # SQLite has undone it already where the disk was full.
    if db.in_transaction:
        db.execute("ROLLBACK")
