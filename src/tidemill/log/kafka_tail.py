"""Following a topic of a Kafka log without a group."""

import threading
from collections.abc import Iterator

from confluent_kafka import Consumer, KafkaError, TopicPartition

from tidemill.clock import SystemClock
from tidemill.errors import Unavailable
from tidemill.log.base import Record, Start
from tidemill.log.kafka_client import Clients, Raw, consume
from tidemill.log.kafka_session import headers_of
from tidemill.log.kafka_topics import Bounds, Place

ROWS = 1000
LOOK_SECONDS = 0.25
"""How soon a follower sees that the log was closed."""
STANDING_SECONDS = 30.0
"""How long the records that stand may take to come, since the last of them."""
_clock = SystemClock()


class Tail:
    """One follower; ``bounds`` is where the topic's partitions begin and end at the call."""

    def __init__(self, clients: Clients, bounds: Bounds, start: Start, timeout: float) -> None:
        self._clients = clients
        self._timeout = timeout
        self._closed = threading.Event()
        self._standing: dict[Place, int] = {}
        if start == "beginning":
            self._standing = {place: end for place, (first, end) in bounds.items() if end > first}
        self._starts = {place: first if start == "beginning" else end for place, (first, end) in bounds.items()}

    def close(self) -> None:
        """End it; the generator notices within a quarter of a second."""
        self._closed.set()

    def records(self) -> Iterator[list[Record]]:
        """See ``Log.follow``."""
        consumer = self._clients.consumer(
            {
                "group.id": "tidemill.follow",
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 20,
            }
        )
        with self._clients.in_our_words("following a topic"):
            consumer.assign([TopicPartition(*place, offset) for place, offset in self._starts.items()])
        return self._follow(consumer)

    def _follow(self, consumer: Consumer) -> Iterator[list[Record]]:
        try:
            yield from self._stand(consumer)
            yield []
            waiting_since = _clock.monotonic()
            while not self._closed.is_set():
                left = waiting_since + self._timeout - _clock.monotonic()
                records = self._next(consumer, min(max(0.0, left), LOOK_SECONDS))
                if records or _clock.monotonic() - waiting_since >= self._timeout:
                    yield records
                    waiting_since = _clock.monotonic()
        finally:
            consumer.close()

    def _stand(self, consumer: Consumer) -> Iterator[list[Record]]:
        """What stood at the call."""
        heard = _clock.monotonic()
        while self._standing and not self._closed.is_set():
            records = self._next(consumer, LOOK_SECONDS)
            if records:
                yield records
                heard = _clock.monotonic()
            elif _clock.monotonic() > heard + STANDING_SECONDS:
                raise Unavailable(f"Kafka at {self._clients.brokers} does not answer: the records of a topic do not come")

    def _next(self, consumer: Consumer, timeout: float) -> list[Record]:
        return [_record(message) for message in consume(consumer, ROWS, timeout) if self._counts(message)]

    def _counts(self, message: Raw) -> bool:
        """Whether it is a record; notes how far its partition was read. Other errors are librdkafka's to go on with."""
        place, error, offset = (message.topic(), message.partition()), message.error(), message.offset()
        end = self._standing.get(place)
        if error is None:
            if end is not None and offset + 1 >= end:
                del self._standing[place]
            return True
        if error.code() == KafkaError._PARTITION_EOF:
            if end is not None and offset >= end:
                del self._standing[place]
            return False
        found = self._clients.translated(error, "following a topic")
        if not isinstance(found, Unavailable):
            raise found
        return False


def _record(message: Raw) -> Record:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    return Record(
        topic, partition, offset, message.timestamp()[1], message.key(), message.value() or b"", headers_of(message)
    )
