"""The log in one SQLite database: durable, exactly once, for any number of processes on one machine.

Each topic is one table whose primary key is the offset; it has one partition, 0. A group's position is a row beside them,
so a commit is one transaction. What holds it together:

- Every write transaction and every checkpoint runs under one file lock (``WriteLock``). SQLite 3.7.0 to 3.51.2 can lose
  pages when two connections write and checkpoint at the wrong moment (its "WAL-reset bug"); with one at a time there is no
  such moment, whatever version Python was built with. ``sqlite_check.check`` reports the version.
- A topic is read for a group by who holds its lock file. The kernel frees it when a process dies, so a standby takes over
  at its next look, within 5 ms. A generation number in the group's row, which rises at each takeover and which a commit
  checks, holds even where the lock files were deleted.
- Reads end with their statement: an open one would keep the WAL from being written over.
- Records end when retention says so, but not before every group that ever read the topic has committed past them.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from tidemill.clock import Clock, SystemClock
from tidemill.errors import Broken
from tidemill.failpoints import failpoint
from tidemill.log.base import Message, Record, Start, Topic
from tidemill.log.sqlite_folder import MOUNTS, prepare_folder
from tidemill.log.sqlite_reader import Closed, SqliteReader, Tail
from tidemill.log.sqlite_records import Columns, Table
from tidemill.log.sqlite_store import Store

FOLLOW_ROWS = 1000
_clock = SystemClock()


class SqliteLog:
    """A ``tidemill.log.base.Log`` in the folder ``root``, which is made where it is missing.

    ``durability``: "full" survives a power cut, "normal" only a killed process (the newest commits may vanish, whole).
    ``clock`` gives the records' times and ages them; waiting is always in real time. ``mounts`` is the mount table by which
    a network file system is refused.

    Thread-safe, except ``close``: a process has one connection that writes, one for look-ups, and one for each reader and
    follower, each with its lock. Not to be used across a fork: the child's calls raise ``Broken``.
    """

    def __init__(
        self,
        root: Path,
        durability: Literal["full", "normal"] = "full",
        *,
        clock: Clock | None = None,
        mounts: Path = MOUNTS,
    ) -> None:
        self._store = Store(prepare_folder(root, mounts), durability, clock or SystemClock())
        # Weak: one that was dropped without close is gone, with its locks.
        self._open: weakref.WeakSet[SqliteReader | Tail] = weakref.WeakSet()

    def create(self, topics: Iterable[Topic]) -> None:
        """See ``Log.create``. An existing topic takes over a new retention. ``compacted`` topics keep every record."""
        self._store.guard()
        self._store.create(list(topics))

    def append(self, messages: Sequence[Message]) -> None:
        """See ``Log.append``. Raises ``ConfigError`` for an unknown topic, ``Unavailable`` where the disk is full."""
        self._store.guard()
        if not messages:
            return
        with self._store.writing() as db:
            self._store.insert(db, messages)
            failpoint("log.append.written")
        failpoint("log.append.done")

    def join(self, group: str, topics: Sequence[str], start: Start = "beginning") -> SqliteReader:
        """See ``Log.join``. With "end", records appended after this call are read."""
        self._store.guard()
        tables = [self._store.table(topic) for topic in dict.fromkeys(topics)]
        origins = [self._store.bounds(table)[1] if start == "end" else None for table in tables]
        reader = SqliteReader(self._store, group, tables, origins)
        self._open.add(reader)
        return reader

    def follow(self, topic: str, start: Start = "beginning", timeout: float = 0.25) -> Iterator[list[Record]]:
        """See ``Log.follow``. Ends when the log is closed. Where retention overtakes it, it skips what was deleted."""
        self._store.guard()
        table = self._store.table(topic)
        tail = Tail(self._store.root, [topic])
        self._open.add(tail)
        first, end = tail.bounds(table)
        return _following(tail, table, first if start == "beginning" else end, end, timeout)

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """See ``Log.bounds``."""
        self._store.guard()
        return {0: self._store.bounds(self._store.table(topic))}

    def committed(self, group: str) -> dict[tuple[str, int], int]:
        """See ``Log.committed``."""
        return {(topic, 0): position for topic, position in self._store.committed(group).items()}

    def close(self) -> None:
        """See ``Log.close``; may be repeated."""
        if self._store.forked:
            return
        for reader in list(self._open):
            reader.close()
        self._store.close()


def _following(tail: Tail, table: Table, position: int, standing: int, timeout: float) -> Iterator[list[Record]]:
    """``standing``: the end at the call; the first empty list comes there."""
    active_at = waiting_since = _clock.monotonic()
    seen: int | None = None
    caught_up = False
    try:
        while True:
            if position >= standing and not caught_up:
                caught_up = True
                yield []
                waiting_since = _clock.monotonic()
            version = tail.version()
            columns, position = _next(tail, table, position) if version != seen else (None, position)
            if columns is not None:
                position, seen = columns.offsets[-1] + 1, None
                yield _records(table.topic, columns)
                active_at = waiting_since = _clock.monotonic()
                continue
            seen, now = version, _clock.monotonic()
            if now - waiting_since >= timeout:
                yield []
                waiting_since = _clock.monotonic()
            else:
                tail.wait(waiting_since + timeout - now, now - active_at)
    except Closed:
        return
    finally:
        tail.close()


def _next(tail: Tail, table: Table, position: int) -> tuple[Columns | None, int]:
    try:
        return tail.read(table, position, FOLLOW_ROWS), position
    except Closed:
        raise
    except Broken:
        first, _ = tail.bounds(table)
        if position >= first:
            raise
        return tail.read(table, first, FOLLOW_ROWS), first


def _records(topic: str, columns: Columns) -> list[Record]:
    rows = zip(columns.offsets, columns.times_ms, columns.keys, columns.values, columns.headers, strict=True)
    return [Record(topic, 0, *row) for row in rows]
