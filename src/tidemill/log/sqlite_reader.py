"""Reading a SQLite log: a connection that can wait for news, and the member of a group."""

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from tidemill.clock import SystemClock
from tidemill.errors import Broken, ConfigError, LogDamaged
from tidemill.failpoints import failpoint
from tidemill.log.base import Batch, Message, Positions
from tidemill.log.sqlite_database import in_our_words, reader
from tidemill.log.sqlite_folder import GroupLock
from tidemill.log.sqlite_records import MEND, Columns, Damage, Table, columns_of
from tidemill.log.sqlite_store import Store
from tidemill.log.sqlite_wake import Watch

_clock = SystemClock()


class Closed(Broken):
    """What was closed is used."""


class Tail:
    """Reads one log by offset. Every call is a read transaction of its own, so that it never holds the WAL.

    The lock lets another thread close it between two calls. One that is dropped is closed: Python's connections are parts of
    cycles, and would keep their files until the collector comes.
    """

    _db: sqlite3.Connection | None = None

    def __init__(self, root: Path, topics: Iterable[str]) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._db = reader(root)
        self._watch = Watch(root, topics)
        self.wait = self._watch.wait

    def version(self) -> int:
        """A number that changes with every commit to the log."""
        return int(self._query("PRAGMA data_version")[0][0])

    def bounds(self, table: Table) -> tuple[int, int]:
        """The offset of the first record kept, and of the next one to come."""
        first, end = self._query(table.bounds)[0]
        return first, end

    def read(self, table: Table, position: int, limit: int) -> Columns | None:
        """Up to ``limit`` records from ``position`` on. Raises ``Broken`` where that is outside of what is kept."""
        rows = self._query(table.select, (position, limit))
        if rows and rows[0][0] == position:
            return columns_of(table, rows)
        first, end = self.bounds(table)
        if position < first:
            raise Broken(f"topic {table.topic!r}: records {position} to {first - 1} were deleted before they were read")
        if position > end:
            raise Broken(f"topic {table.topic!r}: position {position} is past the end, {end}")
        if rows:
            raise LogDamaged(f"{Damage(table.topic, position, rows[0][0] - position)}; {MEND}")
        return None

    def close(self) -> None:
        """Close the connection; may be repeated."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None
                self._watch.close()

    __del__ = close

    def _query(self, sql: str, parameters: tuple[int, ...] = ()) -> list[tuple]:  # type: ignore[type-arg]
        with self._lock, in_our_words(self._root):
            if self._db is None:
                raise Closed("the log is closed")
            return self._db.execute(sql, parameters).fetchall()


class _Claim:
    """One topic of a reader: its lock, and while that is held the reader's generation and positions."""

    __slots__ = ("committed", "generation", "lock", "origin", "position", "sought", "table")

    def __init__(self, table: Table, lock: GroupLock, origin: int | None) -> None:
        self.table = table
        self.lock = lock
        self.origin = origin
        self.generation = 0
        self.position = 0
        self.committed = 0
        self.sought: int | None = None

    @property
    def held(self) -> bool:
        return self.generation > 0

    def give_back(self) -> None:
        if self.held:
            self.generation = 0
            self.lock.release()


class SqliteReader:
    """One member of a group; see ``tidemill.log.base.Reader``.

    After a commit that failed it gives its topics back and takes them again at the next poll, so that it always goes on
    from what the database says; a standby may be quicker.
    """

    def __init__(self, store: Store, group: str, tables: Sequence[Table], origins: Sequence[int | None]) -> None:
        self._store = store
        self._group = group
        locks = [GroupLock(store.root, group, table.topic) for table in tables]
        self._claims = [_Claim(*row) for row in zip(tables, locks, origins, strict=True)]
        self._tail = Tail(store.root, [table.topic for table in tables])
        self._closed = False
        self._turn = 0
        self._seen: int | None = None
        self._active_at = _clock.monotonic()

    def poll(self, limit: int, timeout: float) -> Batch:
        """See ``Reader.poll``. Topics share ``limit`` evenly, and take in turn what others leave."""
        self._guard()
        deadline = _clock.monotonic() + timeout
        while True:
            self._take_over()
            parts = self._read(limit)
            now = _clock.monotonic()
            if parts:
                self._active_at = now
            if parts or now >= deadline:
                return self._batch(parts)
            complete = all(claim.held for claim in self._claims)
            self._tail.wait(deadline - now, now - self._active_at, only_commits=complete)

    def commit(self, outputs: Sequence[Message] = ()) -> None:
        """See ``Reader.commit``. Positions that did not move are not written; nothing at all is no transaction."""
        self._guard()
        if any(claim.sought is not None and not claim.held for claim in self._claims):
            self._take_over()  # a seek that no poll has followed counts too
        moved = [claim for claim in self._claims if claim.held and claim.position != claim.committed]
        if not moved and not outputs:
            return
        try:
            with self._store.writing() as db:
                failpoint("log.commit.begun")
                for claim in moved:
                    if not self._store.advance(db, self._group, claim.table, claim.generation, claim.position):
                        raise Broken(f"group {self._group!r}: another reader has taken over topic {claim.table.topic!r}")
                self._store.insert(db, outputs)
                failpoint("log.commit.written")
            failpoint("log.commit.done")
        except BaseException:
            self._give_back()
            raise
        for claim in moved:
            claim.committed = claim.position
            claim.sought = None

    def seek(self, positions: Positions) -> None:
        """See ``Reader.seek``. It holds until a commit stores a position, also over a failed one."""
        self._guard()
        claims = {(claim.table.topic, 0): claim for claim in self._claims}
        for place in positions:
            if place not in claims:
                raise ConfigError(f"group {self._group!r}: topic {place[0]!r}, partition {place[1]} is not read here")
        for place, offset in positions.items():
            claims[place].sought = claims[place].position = offset
        self._seen = None

    def close(self) -> None:
        """See ``Reader.close``."""
        self._closed = True
        self._tail.close()
        for claim in self._claims:
            claim.lock.close()

    def _guard(self) -> None:
        self._store.guard()
        if self._closed:
            raise Closed("the reader is closed")

    def _take_over(self) -> None:
        for claim in self._claims:
            if claim.held or not claim.lock.try_take():
                continue
            try:
                claim.generation, claim.committed = self._store.take_over(self._group, claim.table, claim.origin)
            except BaseException:
                claim.lock.release()
                raise
            claim.position = claim.committed if claim.sought is None else claim.sought
            self._seen = None

    def _give_back(self) -> None:
        for claim in self._claims:
            claim.give_back()

    def _read(self, limit: int) -> list[tuple[_Claim, Columns]]:
        """What stands after the positions, which move past it; nothing is read while nobody has committed."""
        seen = self._tail.version()
        if seen == self._seen:
            return []
        parts = self._fair(limit)
        for claim, columns in parts:
            claim.position = columns.offsets[-1] + 1
        self._seen = None if parts else seen
        return parts

    def _fair(self, limit: int) -> list[tuple[_Claim, Columns]]:
        """An equal share for each topic, then the rest for those that had more; another topic is first each time."""
        held = [claim for claim in self._claims if claim.held]
        self._turn += 1
        turn = self._turn % (len(held) or 1)
        parts: list[tuple[_Claim, Columns]] = []
        full: list[tuple[_Claim, int]] = []
        left = limit
        for waiting, claim in zip(range(len(held), 0, -1), held[turn:] + held[:turn], strict=True):
            share = -(-left // waiting)
            columns = self._tail.read(claim.table, claim.position, share) if share else None
            if columns is None:
                continue
            parts.append((claim, columns))
            left -= len(columns.offsets)
            if len(columns.offsets) == share:
                full.append((claim, columns.offsets[-1] + 1))
        for claim, position in full:
            columns = self._tail.read(claim.table, position, left) if left else None
            if columns is not None:
                parts.append((claim, columns))
                left -= len(columns.offsets)
        return parts

    def _batch(self, parts: list[tuple[_Claim, Columns]]) -> Batch:
        positions = {(claim.table.topic, 0): claim.position for claim in self._claims if claim.held}
        if len(parts) == 1:
            claim, columns = parts[0]
            return _as_batch(claim.table.topic, columns, positions)
        batch = Batch([], [], [], [], [], [], [], positions)
        for claim, columns in parts:
            part = _as_batch(claim.table.topic, columns, {})
            batch.topics.extend(part.topics)
            batch.partitions.extend(part.partitions)
            batch.offsets.extend(part.offsets)
            batch.times_ms.extend(part.times_ms)
            batch.keys.extend(part.keys)
            batch.values.extend(part.values)
            batch.headers.extend(part.headers)
        return batch


def _as_batch(topic: str, columns: Columns, positions: dict[tuple[str, int], int]) -> Batch:
    size = len(columns.offsets)
    return Batch(
        [topic] * size,
        [0] * size,
        columns.offsets,
        columns.times_ms,
        columns.keys,
        columns.values,
        columns.headers,
        positions,
    )
