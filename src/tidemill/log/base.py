"""The log: topics of records that connect the roles, with atomic "publish and advance".

A topic has partitions (one, on SQLite); records of one partition have rising offsets, and records with the same key go to
the same partition, in the order in which they were appended. Record times are the log's own (ms, when appended); nothing
is ordered by them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

from msgspec import Struct

Headers = tuple[tuple[str, bytes], ...]
Positions = Mapping[tuple[str, int], int]
"""(topic, partition) -> the offset of the next record to read."""
Start = Literal["beginning", "end"]

DAMAGED = "damaged"
"""The header of an empty record that stands in the place of one whose bytes are lost: a backend was mended."""


class Topic(Struct, frozen=True):
    """A topic to be created. ``retention_seconds`` None keeps records for ever; ``compacted`` allows (does not promise) that
    only the last record of each key stays. ``bytes_max`` is the size of a record that must be taken, where that is more than
    what the log takes anyway.
    """

    name: str
    partitions: int = 1
    retention_seconds: float | None = None
    compacted: bool = False
    bytes_max: int | None = None


class Message(Struct, frozen=True, gc=False):
    """What is appended: a value with an optional key and headers, for one topic."""

    topic: str
    value: bytes
    key: bytes | None = None
    headers: Headers = ()


class Record(Struct, frozen=True, gc=False):
    """What is read back: a message with its place and the time (ms) at which the log took it."""

    topic: str
    partition: int
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes
    headers: Headers


class Batch(Struct, frozen=True):
    """Records of one poll as columns of equal length, and ``positions``: where the reader stands after them.

    Records of one partition are in offset order; partitions and topics may alternate.
    """

    topics: list[str]
    partitions: list[int]
    offsets: list[int]
    times_ms: list[int]
    keys: list[bytes | None]
    values: list[bytes]
    headers: list[Headers]
    positions: dict[tuple[str, int], int]

    def __len__(self) -> int:
        return len(self.values)

    def record(self, row: int) -> Record:
        """One row."""
        return Record(
            self.topics[row],
            self.partitions[row],
            self.offsets[row],
            self.times_ms[row],
            self.keys[row],
            self.values[row],
            self.headers[row],
        )

    def records(self) -> Iterator[Record]:
        """The same as rows, for roles that take one record at a time."""
        columns = (self.topics, self.partitions, self.offsets, self.times_ms, self.keys, self.values, self.headers)
        return (Record(*row) for row in zip(*columns, strict=True))


class Reader(Protocol):
    """One member of a consumer group. Used by one thread at a time; ``close`` may be called twice.

    Of the members of a group, one at most is given a partition at a time; the others wait and take over when it closes or
    dies. A reader that has lost a partition has its commit refused.
    """

    def poll(self, limit: int, timeout: float) -> Batch:
        """Up to ``limit`` records after the last poll; waits up to ``timeout`` seconds for the first, never for more.

        Empty when nothing came, or while another member of the group is the active one.

        Raises ``LogDamaged`` for a record that is not what was written, ``Broken`` where records between the reader's
        position and the first one kept were deleted, ``Unavailable`` where the log does not answer.
        """
        ...

    def commit(self, outputs: Sequence[Message] = ()) -> None:
        """Atomically: append ``outputs`` and advance the group past the last poll. Durable when it returns.

        Raises ``Broken`` where this reader is no longer the group's member for what it polled: nothing was written, and
        the role must start again. Raises ``BadRecord`` where the log refuses one of the outputs for what it is (too large,
        say): nothing was written. After any error the reader continues from the last commit.
        """
        ...

    def seek(self, positions: Positions) -> None:
        """Read these partitions from these offsets on, as soon as (and whenever) they are this reader's; others stay.

        For sinks that keep the position with their data. Nothing is written until the next commit.
        """
        ...

    def close(self) -> None:
        """Leave the group at once, so that another member takes over. Uncommitted polls are read again by it."""
        ...


class Log(Protocol):
    """Opened by one process; every method but ``close`` may be called from any thread. Never used across a fork."""

    def create(self, topics: Iterable[Topic]) -> None:
        """Make the topics that do not exist; check those that do. Idempotent.

        Raises ``ConfigError`` where an existing topic differs in its number of partitions.
        """
        ...

    def append(self, messages: Sequence[Message]) -> None:
        """Append, in order for each key. Durable when it returns.

        Messages for several topics are appended all or none. Where those for one topic cannot be (``Unavailable``), or the
        process dies meanwhile, the first ones may have been.

        Raises ``ConfigError`` for an unknown topic, with nothing written; ``BadRecord`` where the log refuses one of them
        for what it is (too large, say): of those for one topic the others may have been written.
        """
        ...

    def join(self, group: str, topics: Sequence[str], start: Start = "beginning") -> Reader:
        """A member of ``group`` over ``topics``. ``start`` counts only where the group has no position yet."""
        ...

    def follow(self, topic: str, start: Start = "beginning", timeout: float = 0.25) -> Iterator[list[Record]]:
        """The topic's records from ``start``, then live, without a group. Never ends by itself.

        Yields non-empty lists while there are records, and an empty list whenever none came for ``timeout`` seconds; the
        first empty list comes without waiting, as soon as the records that stood at the call have been given.
        """
        ...

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """By partition: the offset of the first record kept, and the offset that the next one will get."""
        ...

    def committed(self, group: str) -> dict[tuple[str, int], int]:
        """The group's positions, for the partitions where it has committed any."""
        ...

    def close(self) -> None:
        """Release files, sockets and threads. Readers of this log are closed first."""
        ...


def read_all(log: Log, topic: str) -> list[Record]:
    """The records that stand in a topic now."""
    records: list[Record] = []
    for chunk in log.follow(topic):
        if not chunk:
            break
        records.extend(chunk)
    return records


def lag(log: Log, group: str, topics: Iterable[str]) -> dict[str, int]:
    """By topic: how many records stand after the group's position."""
    committed = log.committed(group)
    return {
        topic: sum(
            max(0, end - max(first, committed.get((topic, partition), first)))
            for partition, (first, end) in log.bounds(topic).items()
        )
        for topic in topics
    }
