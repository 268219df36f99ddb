"""The clients of Apache Kafka: their settings, their errors in this project's words, and a guard for calls that hang.

Everything is crash-only: a client that has failed is dropped, never mended. librdkafka does not know which of its requests
reached a broker that went away (its transactions lack KIP-890), a new client does: it fences what the old one left behind.
"""

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from tidemill.clock import SystemClock
from tidemill.errors import BadRecord, Broken, ConfigError, TidemillError, Unavailable
from tidemill.log.base import Message

Answer = TypeVar("Answer")
Value = str | int | float | bool
Delivered = Callable[[KafkaError | None, Any], None]
"""Called within other calls, for what the broker did not take."""
Raw = Any
"""A ``confluent_kafka.Message``. Its types say that everything may be absent; what was consumed has it all."""

CALL_SECONDS = 10.0
"""How long a call to a broker may take before it is given up."""
HANG_SECONDS = 5.0
"""How much longer than its own limit a call may take before the process is ended: it will never return."""
LOOK_SECONDS = 0.5
TELL_SECONDS = 10.0

COMMON: Mapping[str, Value] = {
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 1000,
    "socket.keepalive.enable": True,
    "socket.nagle.disable": True,
    # Its lines would go to the standard error, one a try while a broker is away; ``on_error`` tells once.
    "log_level": 2,
}
CONSUMER: Mapping[str, Value] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",
    "fetch.wait.max.ms": 100,
    # After a full queue librdkafka waits a second before it fetches again, unless told otherwise.
    "fetch.queue.backoff.ms": 5,
    # Large fetches let one partition's backlog starve the others (measured).
    "queued.min.messages": 10_000,
    "queued.max.messages.kbytes": 16_384,
    "fetch.message.max.bytes": 262_144,
}
PRODUCER: Mapping[str, Value] = {
    "acks": "all",
    "enable.idempotence": True,
    # As in the Java client, so that a key's records stand together whoever writes them.
    "partitioner": "murmur2_random",
    # The broker decides what is too large; a dead letter is larger than the request that it carries.
    "message.max.bytes": 4_000_000,
    # No limits: what is appended is in memory anyway, and a batch's messages are handed over together.
    "queue.buffering.max.messages": 0,
    "queue.buffering.max.kbytes": 2**31 - 1,
    "message.timeout.ms": round(CALL_SECONDS * 1000),
    # After a commit the broker answers CONCURRENT_TRANSACTIONS until its markers are written (about a millisecond), and
    # librdkafka waits so long before it asks again: 44 ms a transaction by default, and 500 ms for a producer's first word.
    "retry.backoff.ms": 1,
    "delivery.report.only.error": True,
}

_AWAY = {
    *(KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE),
    *(KafkaError._RESOLVE, KafkaError._MSG_TIMED_OUT, KafkaError._WAIT_COORD, KafkaError._UNKNOWN_BROKER),
    *(KafkaError.REQUEST_TIMED_OUT, KafkaError.BROKER_NOT_AVAILABLE, KafkaError.NETWORK_EXCEPTION),
    *(KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR),
    *(KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.NOT_ENOUGH_REPLICAS),
    *(KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND, KafkaError.CONCURRENT_TRANSACTIONS, KafkaError.NOT_CONTROLLER),
    *(KafkaError.UNSTABLE_OFFSET_COMMIT, KafkaError.KAFKA_STORAGE_ERROR, KafkaError.TRANSACTION_ABORTABLE),
    *(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, KafkaError.UNKNOWN_PRODUCER_ID, KafkaError.INVALID_PRODUCER_ID_MAPPING),
    *(KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH),
    # _NOENT is "no leaders found": the partitions of a broker that has just come back have none for a moment.
    *(KafkaError._NOENT, KafkaError.OFFSET_NOT_AVAILABLE, KafkaError.ELIGIBLE_LEADERS_NOT_AVAILABLE),
    *(KafkaError.INVALID_TXN_STATE, KafkaError._STATE, KafkaError._PURGE_INFLIGHT, KafkaError._PURGE_QUEUE),
}
_OTHERS = {
    *(KafkaError._FENCED, KafkaError.FENCED_INSTANCE_ID, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH),
    *(KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS),
    *(KafkaError._ASSIGNMENT_LOST, KafkaError._MAX_POLL_EXCEEDED, KafkaError.UNRELEASED_INSTANCE_ID),
}
_FORBIDDEN = {
    *(KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError.UNSUPPORTED_SASL_MECHANISM),
    *(KafkaError.ILLEGAL_SASL_STATE, KafkaError._SSL, KafkaError.TOPIC_AUTHORIZATION_FAILED),
    *(KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED),
    *(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, KafkaError.INVALID_SESSION_TIMEOUT, KafkaError.POLICY_VIOLATION),
    *(KafkaError.INVALID_REPLICATION_FACTOR, KafkaError.INVALID_CONFIG, KafkaError._INVALID_ARG),
}
_REFUSED = {
    *(KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.RECORD_LIST_TOO_LARGE),
    *(KafkaError.INVALID_TIMESTAMP, KafkaError.INVALID_RECORD, KafkaError.INVALID_MSG),
}
_UNKNOWN = {
    *(KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION),
    KafkaError.TOPIC_EXCEPTION,  # no topic can have such a name
}

_clock = SystemClock()
logger = structlog.get_logger()


class Clients:
    """Makes clients of one cluster. What they report between calls is kept to explain the calls that fail for it."""

    def __init__(self, brokers: str, settings: Mapping[str, Value]) -> None:
        self.brokers = brokers
        self._settings = settings
        self._last: KafkaError | None = None
        self._told_at = -TELL_SECONDS
        self._admins: weakref.WeakSet[AdminClient] = weakref.WeakSet()

    def consumer(self, own: Mapping[str, Any], defaults: Mapping[str, Value] | None = None) -> Consumer:
        """``own`` settings win over the user's, which win over ``defaults``."""
        made: Consumer = self._made(Consumer, {**CONSUMER, **(defaults or {})}, own)
        return made

    def producer(self, own: Mapping[str, Any], defaults: Mapping[str, Value] | None = None) -> Producer:
        """See ``consumer``."""
        made: Producer = self._made(Producer, {**PRODUCER, **(defaults or {})}, own)
        return made

    def admin(self) -> AdminClient:
        """See ``consumer``."""
        made: AdminClient = self._made(AdminClient, {}, {"error_cb": self._remember})
        self._admins.add(made)
        return made

    def _made(self, kind: Callable[[dict[str, Any]], Any], ours: Mapping[str, Value], own: Mapping[str, Any]) -> Any:
        every = {"bootstrap.servers": self.brokers, "error_cb": self._on_error}
        try:
            return kind({**COMMON, **ours, **self._settings, **every, **own})
        except KafkaException as error:
            raise ConfigError(f"stream.kafka: {error.args[0].str()}") from None
        except (TypeError, ValueError) as error:
            raise ConfigError(f"stream.kafka: {error}") from None

    def _on_error(self, error: KafkaError) -> None:
        """Called within other calls. What librdkafka goes on with by itself is told now and then."""
        self._remember(error)
        if _clock.monotonic() - self._told_at >= TELL_SECONDS:
            self._told_at = _clock.monotonic()
            logger.warning("kafka_trouble", brokers=self.brokers, error=error.str())

    def _remember(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._last = error

    def _hear(self) -> None:
        """Producers and consumers report within their calls; who administers, only here."""
        for admin in list(self._admins):
            admin.poll(0.0)

    @contextmanager
    def in_our_words(self, doing: str) -> Iterator[None]:
        """Turn the client's errors into this project's."""
        self._hear()
        self._last = None
        try:
            yield
        except KafkaException as error:
            self._hear()
            raise self.translated(error.args[0], doing) from error
        except TimeoutError as error:
            raise Unavailable(f"Kafka at {self.brokers} does not answer: {doing}") from error

    def patiently(self, doing: str, call: Callable[[], Answer]) -> Answer:
        """Call until it works, a while at most: a topic that was just made, or a broker that just came, is not known
        everywhere at once. For calls that change nothing.

        Who administers would go on with what it once heard of the partitions' leaders: between two tries it asks again.
        """
        deadline = _clock.monotonic() + CALL_SECONDS
        with self.in_our_words(doing):  # around all tries: what librdkafka has reported once it may not repeat for a while
            while True:
                try:
                    return call()
                except (KafkaException, TimeoutError) as error:
                    self._hear()
                    away = isinstance(error, TimeoutError) or isinstance(self.translated(error.args[0], doing), Unavailable)
                    if not away or _clock.monotonic() > deadline:
                        raise
                    _clock.sleep(0.05)
                    with suppress(KafkaException):
                        for admin in list(self._admins):
                            admin.list_topics(timeout=1.0)

    def translated(self, error: KafkaError, doing: str) -> TidemillError:
        """What an error means for who called."""
        cause = self._last
        if cause is not None and error.code() in _AWAY and cause.code() in _FORBIDDEN | _AWAY:
            error = cause
        code, text = error.code(), f"{doing}: {error.str()}"
        found: TidemillError = Broken(text)
        if code in _REFUSED:
            found = BadRecord("refused_by_log", "", text)
        elif code in _OTHERS:
            found = Broken(f"{doing}: another member of the group has taken over ({error.str()})")
        elif code in _UNKNOWN:
            found = ConfigError(f"{text}: the topic does not exist; a role makes the project's topics when it starts")
        elif code in _FORBIDDEN:
            found = ConfigError(f"Kafka at {self.brokers}: {text}: look at [stream.kafka], and at the rights that it gives")
        elif code in _AWAY or error.retriable():
            found = Unavailable(f"Kafka at {self.brokers} does not answer: {text}")
        return found


def consume(consumer: Consumer, limit: int, timeout: float) -> list[Raw]:
    """Up to ``limit`` messages and errors; waits for the first only (``Consumer.consume`` would wait for all)."""
    found: list[Raw] = consumer.consume(1, timeout)
    if found and limit > 1:
        found += consumer.consume(limit - 1, 0.0)
    return found


def produce(producer: Producer, messages: Iterable[Message], on_delivery: Delivered) -> None:
    """Hand messages to the client, in order, up to the first that it refuses."""
    for message in messages:
        headers: Any = list(message.headers) if message.headers else None
        producer.produce(message.topic, message.value, message.key, headers=headers, on_delivery=on_delivery)


def produce_together(producer: Producer, messages: Iterable[Message], on_delivery: Delivered) -> None:
    """The same for messages of which none counts, or all are repeated, where one is refused: of those without headers the
    client takes many at once, also those behind one that it refuses. One call a message takes longer.
    """
    for (topic, headers), some in groupby(messages, attrgetter("topic", "headers")):
        if not headers:
            batch: list[Any] = [{"value": message.value, "key": message.key} for message in some]
            if producer.produce_batch(topic, batch, on_delivery=on_delivery) < len(batch):
                raise KafkaException(next(one["_error"] for one in batch if "_error" in one))
        else:
            produce(producer, some, on_delivery)


class Watchdog:
    """Ends the process when a call does not return: some of librdkafka's never do (its issues 5456, 5511), while its
    heartbeats keep the dead member in the group. They do not hold the interpreter's lock, so a thread can watch them.

    One a reader: only roles have readers, and whoever runs a role starts it again. A user's service is never ended.
    """

    def __init__(self) -> None:
        # In looks, not by a clock: a process that was stopped for a while has not hung meanwhile.
        self._looks = 0
        self._deadline: float | None = None
        self._doing = ""
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    @contextmanager
    def limit(self, doing: str, seconds: float) -> Iterator[None]:
        """What is done inside must end within ``seconds``, and some patience."""
        self._doing, self._deadline = doing, self._looks + (seconds + HANG_SECONDS) / LOOK_SECONDS
        try:
            yield
        finally:
            self._deadline = None

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            self._looks += 1
            deadline = self._deadline
            if deadline is not None and self._looks > deadline:
                sys.stderr.write(f"tidemill: Kafka's client does not return from {self._doing}: the process is ended\n")
                sys.stderr.flush()
                os._exit(Unavailable.exit_code)
