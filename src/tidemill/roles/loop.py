"""The loop of every role that consumes topics: poll, handle, commit.

A turn has three steps, and a process may die between any two of them:

1. poll a batch; nothing is written;
2. handle it: a pure step for the log (a sink may write its data with the position inside);
3. commit: outputs and position become visible together.

While the log is away the loop waits and tries again: after a failed poll or commit the reader goes on from the last commit,
so the batch comes again. What ``handle`` raises ends the role.

An output that the log refuses for what it is (too large, say) fails the commit of its whole batch, each time. The batch is
halved until the record that it comes from stands alone; that one becomes a dead letter, its neighbours are answered.
"""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType

import msgspec
import structlog

from tidemill.errors import BadRecord, Unavailable
from tidemill.failpoints import failpoint
from tidemill.log.base import Batch, Message, Reader, Record
from tidemill.roles.dead_letters import dead_letter

logger = structlog.get_logger()

PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 2.0
"""Between two tries while the log is away: doubled from the first to the last."""


def run_loop(
    role: str,
    reader: Reader,
    handle: Callable[[Batch], Sequence[Message]],
    stop: threading.Event,
    limit: int,
    timeout: float,
    idle: Callable[[], None] = lambda: None,
    dead_letters: str = "",
) -> None:
    """Turn until ``stop`` is set. ``idle`` is called after every poll that brought nothing.

    ``dead_letters`` is the topic for records whose outputs the log refuses; without it that ends the role.
    """
    away = _Away(role, stop)
    poison = _Poison(role, dead_letters)
    room = limit
    while not stop.is_set():
        batch = None
        with away:
            batch = reader.poll(room, timeout)
        if batch is None:
            continue
        if not len(batch):
            with away:
                idle()
            continue
        failpoint(f"{role}.polled")
        outputs = poison.letters(batch) or handle(batch)
        failpoint(f"{role}.handled")
        try:
            with away:
                reader.commit(outputs)
                failpoint(f"{role}.committed")
                room = min(limit, 2 * room)
        except BadRecord as error:
            room = max(1, len(batch) // 2)
            if len(batch) == 1:
                poison.found(batch.record(0), error)


class _Away:
    """A stretch in which the log may be away: told once, waited for, longer each time."""

    def __init__(self, role: str, stop: threading.Event) -> None:
        self._role = role
        self._stop = stop
        self._pause = 0.0

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if isinstance(error, Unavailable):
            if not self._pause:
                logger.warning("log_unavailable", role=self._role, error=str(error))
            self._pause = min(max(PAUSE_SECONDS_MIN, 2 * self._pause), PAUSE_SECONDS_MAX)
            self._stop.wait(self._pause)
            return True
        if error is None and self._pause:
            self._pause = 0.0
            logger.info("log_resumed", role=self._role)
        return False


class _Poison:
    """Records whose outputs the log has refused, by their places, until they come again and become dead letters."""

    def __init__(self, role: str, topic: str) -> None:
        self._role = role
        self._topic = topic
        self._refused: dict[tuple[str, int, int], list[BadRecord]] = {}

    def found(self, record: Record, error: BadRecord) -> None:
        """Note it, the first time for its outputs, the second time for its letter; raises what there is no letter for."""
        topic, partition, offset = place = (record.topic, record.partition, record.offset)
        logger.error("output_refused", role=self._role, topic=topic, partition=partition, offset=offset, error=str(error))
        refusals = self._refused.setdefault(place, [])
        refusals.append(error)
        if not self._topic or len(refusals) > 2:
            raise error

    def letters(self, batch: Batch) -> list[Message]:
        """The dead letter, where the batch is such a record alone; without the record's own bytes, if it was refused."""
        if len(batch) != 1 or not self._refused:
            return []
        record = batch.record(0)
        refusals = self._refused.get((record.topic, record.partition, record.offset))
        if not refusals:
            return []
        if len(refusals) > 1:
            record = msgspec.structs.replace(record, value=b"", headers=())
        return [dead_letter(self._topic, record, refusals[0], self._role)]
