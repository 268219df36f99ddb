"""The member of a group on Kafka: exactly once by transactions, crash-only by construction.

Any error ends its session; the next call opens another one, which starts from what the broker says is committed. Nothing
that was remembered counts.

A transaction never spans a poll: partitions are taken away inside of polls only, so what a transaction commits is the
reader's own, and the group's generation, sent with the positions, lets the broker refuse a member that slept too long.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from tidemill.clock import SystemClock
from tidemill.errors import Broken, ConfigError, TidemillError
from tidemill.log.base import Batch, Message, Positions
from tidemill.log.kafka_client import CALL_SECONDS, Watchdog
from tidemill.log.kafka_session import COMMIT_SECONDS, Membership, Session
from tidemill.log.kafka_slots import Slot
from tidemill.log.kafka_topics import Place

KEEP_SECONDS = 20.0
"""A role that has not called for so long works on a batch: its partitions are paused, and polled for it."""
_clock = SystemClock()


class KafkaReader:
    """See ``tidemill.log.base.Reader``. It joins at its first poll, so that a role may get ready before.

    Its slot is taken at once: what the slot's last holder left open is aborted, so that positions can be known.
    """

    def __init__(self, member: Membership) -> None:
        self._member = member
        self._places = set(member.topics.places(member.names))
        self._sought: dict[Place, int] = {}
        self._slot: Slot | None = None
        self._session: Session | None = None
        self._uncommitted = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._called_at = 0.0
        self._keeper: threading.Thread | None = None
        self._watchdog = Watchdog()
        try:
            self._session = self._open()
        except BaseException:
            self.close()
            raise

    def poll(self, limit: int, timeout: float) -> Batch:
        """See ``Reader.poll``. Topics share ``limit`` evenly, and take in turn what others leave."""
        with self._calling() as session, self._watchdog.limit("a poll", timeout + 2 * CALL_SECONDS):
            batch = session.poll(limit, timeout)
            self._uncommitted = self._uncommitted or len(batch) > 0
            return batch

    def commit(self, outputs: Sequence[Message] = ()) -> None:
        """See ``Reader.commit``. Positions that did not move are not written; nothing at all is no transaction."""
        with self._calling() as session:
            with self._watchdog.limit("a commit", 2 * CALL_SECONDS):
                self._check_topics(outputs)
                if self._sought:
                    session.await_places(self._sought)
            # Of a broker that goes away meanwhile librdkafka may wait for ever: whoever waits for answers waits as long.
            with self._watchdog.limit("a commit", COMMIT_SECONDS):
                session.commit(outputs)
            self._uncommitted = False
            self._sought.clear()

    def seek(self, positions: Positions) -> None:
        """See ``Reader.seek``. It holds until a commit stores a position, also over a failed one."""
        for topic, partition in positions:
            if (topic, partition) not in self._places:
                raise ConfigError(f"group {self._member.group!r}: topic {topic!r}, partition {partition} is not read here")
        with self._lock:
            self._guard()
            self._sought |= positions
            if self._session is not None:
                self._session.seek(positions)

    def close(self) -> None:
        """See ``Reader.close``."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            self._drop(leave=True)
            self._watchdog.close()
            if self._slot is not None:
                self._slot.release()

    def __del__(self) -> None:
        """Of one that did not poll, or is closed: the others are held by their keepers."""
        with suppress(AttributeError):  # it was not made whole
            self._watchdog.close()

    def _guard(self) -> None:
        if self._closed.is_set():
            raise Broken("the reader is closed")

    @contextmanager
    def _calling(self) -> Iterator[Session]:
        """The session, opened where there is none; any error ends it."""
        with self._lock:
            self._guard()
            try:
                yield self._opened()
            except BaseException:
                self._drop()
                self._uncommitted = False
                raise
            finally:
                self._called_at = _clock.monotonic()

    def _opened(self) -> Session:
        if self._session is None:
            if self._uncommitted:
                raise Broken(f"group {self._member.group!r}: the membership was lost before what was read was committed")
            self._session = self._open()
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="keep-alive", daemon=True)
            self._keeper.start()
        self._session.join()
        return self._session

    def _open(self) -> Session:
        if self._slot is None:
            self._slot = self._member.slots.take(self._member.group)
        with self._watchdog.limit("opening a session", 3 * CALL_SECONDS):
            return Session(self._member, self._slot.name, self._sought)

    def _drop(self, leave: bool = False) -> None:
        session, self._session = self._session, None
        if session is not None:
            with self._watchdog.limit("closing a session", CALL_SECONDS):
                session.close(leave)

    def _look_at_topics(self) -> None:
        """A topic that is deleted and made again while it is read would be read on where the old one was, without a word."""
        session = self._session
        if session is not None:
            with suppress(TidemillError):
                session.hold_against(self._member.topics.ids(self._member.names))

    def _check_topics(self, outputs: Iterable[Message]) -> None:
        for topic in {message.topic for message in outputs}:
            self._member.topics.partitions(topic)

    def _keep(self) -> None:
        """A role may work on a batch for an hour: its member polls meanwhile, so that the group neither waits for it nor
        throws it out. Where that fails the session ends, and the next commit is refused.
        """
        while not self._closed.wait(1.0):
            self._look_at_topics()
            if _clock.monotonic() - self._called_at < KEEP_SECONDS or not self._lock.acquire(blocking=False):
                continue
            try:
                if self._session is not None and not self._closed.is_set():
                    with self._watchdog.limit("keeping a member alive", CALL_SECONDS):
                        self._session.keep_alive()
            except TidemillError:
                self._drop()
            finally:
                self._lock.release()
