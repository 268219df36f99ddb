"""The log on Apache Kafka, or whatever speaks its protocol: exactly once, for any number of processes and machines.

Groups and transactional ids carry the project's name, as topics do. What is appended outside of a commit goes through an
idempotent producer; what must be seen together (messages for several topics) through a transaction of its own. Every reader
sees committed records only.
"""

import os
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Producer

from tidemill.errors import Broken, Unavailable
from tidemill.failpoints import failpoint
from tidemill.log.base import Message, Record, Start, Topic
from tidemill.log.kafka_client import CALL_SECONDS, Clients, Value, produce, produce_together
from tidemill.log.kafka_reader import KafkaReader
from tidemill.log.kafka_session import ABORT_SECONDS, TRANSACTION, Delivery, Membership, flush
from tidemill.log.kafka_slots import Slots
from tidemill.log.kafka_tail import Tail
from tidemill.log.kafka_topics import Place, Topics


class KafkaLog:
    """A ``tidemill.log.base.Log`` on ``brokers`` (``host:port,host:port``).

    ``prefix`` stands before groups and transactional ids. ``slots`` is a folder of this machine that the project's processes
    share; ``node`` tells this machine from others (empty: the host's name). ``settings`` are librdkafka's. ``replication``
    is for topics that are made (0: the broker's default).

    Thread-safe, except ``close``. Not to be used across a fork: the child's calls raise ``Broken``.
    """

    def __init__(
        self,
        brokers: str,
        prefix: str,
        slots: Path,
        *,
        settings: Mapping[str, Value] | None = None,
        delivery: Delivery = "exactly_once",
        node: str = "",
        replication: int = 0,
    ) -> None:
        self._clients = Clients(brokers, settings or {})
        self._topics = Topics(self._clients, replication)
        self._prefix = prefix
        self._slots = Slots(slots, node)
        self._delivery = delivery
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        # Weak: one that was dropped before its first poll is gone, with its clients.
        self._open: weakref.WeakSet[KafkaReader | Tail] = weakref.WeakSet()

    def create(self, topics: Iterable[Topic]) -> None:
        """See ``Log.create``. An existing topic takes over a new retention; other differences are named and refused."""
        self._guard()
        self._topics.create(list(topics))

    def append(self, messages: Sequence[Message]) -> None:
        """See ``Log.append``."""
        self._guard()
        names = {message.topic for message in messages}
        for name in names:
            self._topics.partitions(name)
        with self._clients.in_our_words("an append"):
            if len(names) > 1:
                self._append_together(messages)
            elif messages:
                self._append(messages)
        failpoint("log.append.done")

    def join(self, group: str, topics: Sequence[str], start: Start = "beginning") -> KafkaReader:
        """See ``Log.join``. With "end", records appended after this call are read."""
        self._guard()
        names = list(dict.fromkeys(topics))
        places = self._topics.places(names)
        origins = {place: end for place, (_, end) in self._topics.ends(places).items()} if start == "end" else {}
        reader = KafkaReader(
            Membership(self._clients, self._topics, self._slots, self._group(group), names, origins, self._delivery)
        )
        self._open.add(reader)
        return reader

    def follow(self, topic: str, start: Start = "beginning", timeout: float = 0.25) -> Iterator[list[Record]]:
        """See ``Log.follow``. Ends when the log is closed. Where retention overtakes it, it skips what was deleted."""
        self._guard()
        bounds = self._topics.ends(self._topics.places([topic]))
        tail = Tail(self._clients, bounds, start, timeout)
        self._open.add(tail)
        return tail.records()

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """See ``Log.bounds``."""
        self._guard()
        return self._topics.bounds(topic)

    def committed(self, group: str) -> dict[tuple[str, int], int]:
        """See ``Log.committed``."""
        self._guard()
        return self._topics.committed(self._group(group))

    @property
    def brokers(self) -> str:
        """The cluster, as ``host:port,host:port``."""
        return self._clients.brokers

    def undecided(self, topics: Iterable[str]) -> dict[Place, tuple[int, int]]:
        """Partitions with records that an open transaction hides: from which offset on, and where they end now."""
        self._guard()
        return self._topics.undecided(self._topics.places(topics))

    def close(self) -> None:
        """See ``Log.close``; may be repeated."""
        if self._process != os.getpid():
            return
        for one in list(self._open):
            one.close()
        self._topics.close()
        self._producer = None

    def _guard(self) -> None:
        if self._process != os.getpid():
            raise Broken("the log was opened before a fork: open it in the process that uses it")

    def _group(self, group: str) -> str:
        return f"{self._prefix}.{group}"

    def _append(self, messages: Sequence[Message]) -> None:
        refused: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _: object) -> None:
            if error is not None:
                refused.append(error)

        producer = self._appender()
        try:
            produce(producer, messages, on_delivery)
            left = producer.flush(2 * CALL_SECONDS)
            if refused:
                raise KafkaException(refused[0])
            if left:
                raise Unavailable(f"Kafka at {self._clients.brokers} does not answer: an append was not confirmed")
        except BaseException:
            with self._lock:
                self._producer = None
            producer.purge()
            raise

    def _append_together(self, messages: Sequence[Message]) -> None:
        """A transaction under an id of its own: rare, since only a person's decisions are published together like this."""
        name = f"{self._prefix}.append.{uuid.uuid4().hex}"
        refused: list[KafkaError] = []
        producer = self._clients.producer({"transactional.id": name}, TRANSACTION)
        producer.init_transactions(CALL_SECONDS)
        producer.begin_transaction()
        try:
            produce_together(producer, messages, lambda error, _: refused.append(error) if error else None)
            failpoint("log.append.written")
            flush(producer, refused, CALL_SECONDS)
            producer.commit_transaction(CALL_SECONDS)
        except KafkaException:
            cause = refused[:1]  # an abort refuses the others
            with suppress(KafkaException):
                producer.abort_transaction(ABORT_SECONDS)
            producer.purge()
            if cause:
                raise KafkaException(cause[0]) from None
            raise

    def _appender(self) -> Producer:
        with self._lock:
            if self._producer is None:
                self._producer = self._clients.producer({}, {"linger.ms": 0})
                # One that knows the brokers gets its number at once; else its first word waits for half a second.
                self._producer.list_topics(timeout=CALL_SECONDS)
            return self._producer
