"""One life of a member: a consumer and a producer, from their making to the first error.

The producer is made first. Under the slot's transactional id it fences a predecessor and aborts what that one left open, so
that the positions which the broker then tells are final.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Literal

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from msgspec import Struct

from tidemill.clock import SystemClock
from tidemill.errors import Broken, TidemillError, Unavailable
from tidemill.failpoints import failpoint
from tidemill.log.base import Batch, Message, Positions
from tidemill.log.kafka_client import CALL_SECONDS, Clients, Raw, produce_together
from tidemill.log.kafka_slots import Slots
from tidemill.log.kafka_topics import Place, Topics, gone

Delivery = Literal["exactly_once", "at_least_once"]

SESSION_SECONDS = 8
"""After so long without a heartbeat a member is dead, and others take over."""
HEARTBEAT_SECONDS = 0.5
"""How often a member asks whether the group rebalances: others stand still until the last one has heard of it."""
POLL_SECONDS_MAX = 300
COMMIT_SECONDS = 5.0
"""A transaction ends in milliseconds. One that takes so long is given up: a new session hears how it ended."""
LEAVE_SECONDS = 1.0
ABORT_SECONDS = 1.0
TRANSACTION_SECONDS = 6
"""The broker ends a transaction that is open for longer; one is a batch, well below a second."""
FAIR_ROWS = 5000
"""How many messages of several topics are taken from the client's queue, to share them out evenly."""

MEMBER = {
    "group.protocol": "classic",
    "partition.assignment.strategy": "range",
    "auto.offset.reset": "error",
}
SETTLE_SECONDS = 0.05

CONSUMER = {
    "session.timeout.ms": SESSION_SECONDS * 1000,
    "heartbeat.interval.ms": round(HEARTBEAT_SECONDS * 1000),
    "max.poll.interval.ms": POLL_SECONDS_MAX * 1000,
}
TRANSACTION = {
    "transaction.timeout.ms": TRANSACTION_SECONDS * 1000,
    "message.timeout.ms": TRANSACTION_SECONDS * 1000,  # librdkafka wants it no longer than the transaction's
}
PRODUCER = {
    "linger.ms": 0,
    "batch.size": 1_000_000,
    "batch.num.messages": 100_000,
}
_clock = SystemClock()
logger = structlog.get_logger()


class Membership(Struct, frozen=True):
    """What a member is, in all its sessions. ``origins``: where to start without a position, if not at the beginning."""

    clients: Clients
    topics: Topics
    slots: Slots
    group: str
    names: Sequence[str]
    origins: Mapping[Place, int]
    delivery: Delivery


class Session:
    """Used by one thread at a time. After any error only ``close`` may be called."""

    def __init__(self, member: Membership, name: str, sought: Positions) -> None:
        self._member = member
        self._sought = dict(sought)
        self._position: dict[Place, int] = {}
        self._stored: dict[Place, int | None] = {}
        self._polled: set[Place] = set()
        self._ids: dict[str, str] = {}
        self._waiting: dict[Place, deque[Raw]] = {}
        self._turn = 0
        self._moves = 0
        self._settled = False
        self._paused = False
        self._failure: TidemillError | None = None
        self._refusals: list[KafkaError] = []
        self._producer = self._transactional(name) if member.delivery == "exactly_once" else self._plain()
        self._end_left_behind()
        own = {**MEMBER, "group.id": member.group, "group.instance.id": name}
        self._consumer = member.clients.consumer(own, CONSUMER)
        self._joined = False

    def join(self) -> None:
        """Become a member; may be repeated. Until then the session only holds its name, and nothing is given to it."""
        if not self._joined:
            self._joined = True
            with self._member.clients.in_our_words(f"joining group {self._member.group!r}"):
                self._consumer.subscribe(
                    list(self._member.names), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
                )

    # Reading.

    def poll(self, limit: int, timeout: float) -> Batch:
        """See ``Reader.poll``."""
        self._resume()
        deadline = _clock.monotonic() + timeout
        while True:
            messages = self._take(limit, max(0.0, deadline - _clock.monotonic()))
            self._raise_failure()
            if messages or _clock.monotonic() >= deadline:
                return self._batch(messages)

    def _take(self, limit: int, timeout: float) -> list[Raw]:
        """A topic alone is given as it comes, several are shared out."""
        if len(self._member.names) == 1 and not self._waiting:
            return self._good(self._consume(limit, timeout))
        waits = sum(map(len, self._waiting.values()))
        if waits < FAIR_ROWS:
            self._put_aside(self._consume(FAIR_ROWS - waits, 0.0 if waits else timeout))
        if self._waiting and not self._settled:
            # Partitions that were just assigned begin to come one after the other.
            self._settled = True
            self._put_aside(self._consumer.consume(FAIR_ROWS, SETTLE_SECONDS))
        return self._shared_out(limit)

    def _consume(self, limit: int, timeout: float) -> list[Raw]:
        """Waits for the first message only. It is dropped where partitions moved while the others were taken: whoever has
        its partition now reads it again.
        """
        with self._member.clients.in_our_words(f"a poll of group {self._member.group!r}"):
            first: list[Raw] = self._consumer.consume(1, timeout)
            if not first or limit == 1:
                return first
            moves = self._moves
            rest: list[Raw] = self._consumer.consume(limit - 1, 0.0)
            return first + rest if moves == self._moves else rest

    def _put_aside(self, messages: list[Raw]) -> None:
        for message in self._good(messages):
            self._waiting.setdefault((message.topic(), message.partition()), deque()).append(message)

    def _shared_out(self, limit: int) -> list[Raw]:
        """An equal share for each partition, then the rest for those that have more; another one is first each time."""
        self._turn += 1
        queues = list(self._waiting.values())
        turn = self._turn % (len(queues) or 1)
        taken: list[Raw] = []
        for waiting, queue in zip(range(len(queues), 0, -1), queues[turn:] + queues[:turn], strict=True):
            share = min(len(queue), -(-(limit - len(taken)) // waiting))
            taken += [queue.popleft() for _ in range(share)]
        self._waiting = {place: queue for place, queue in self._waiting.items() if queue}
        return taken

    def _good(self, messages: list[Raw]) -> list[Raw]:
        """Messages without the errors among them; what librdkafka goes on with by itself is left to it."""
        if not any(message.error() for message in messages):
            return messages
        for message in messages:
            error = message.error()
            if error is not None:
                self._note(error, message)
        return [message for message in messages if message.error() is None]

    def _note(self, error: KafkaError, message: Raw) -> None:
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            failure: TidemillError = Broken(
                f"group {self._member.group!r}: the records of topic {message.topic()!r}, partition {message.partition()}, "
                f"at its position are gone ({error.str()}): they were deleted before they were read"
            )
        else:
            failure = self._member.clients.translated(error, f"group {self._member.group!r}")
        if not isinstance(failure, Unavailable):
            self._failure = self._failure or failure

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _batch(self, messages: list[Raw]) -> Batch:
        topics = [message.topic() for message in messages]
        partitions = [message.partition() for message in messages]
        offsets = [message.offset() for message in messages]
        places = list(zip(topics, partitions, strict=True))
        first = dict(zip(reversed(places), reversed(offsets), strict=True))
        if any(offset < self._position.get(place, offset + 1) for place, offset in first.items()):
            return self._batch(self._without_repeats(messages))
        read = dict(zip(places, offsets, strict=True))
        self._position.update((place, offset + 1) for place, offset in read.items())
        self._polled.update(read)
        return Batch(
            topics,
            partitions,
            offsets,
            [message.timestamp()[1] for message in messages],
            [message.key() for message in messages],
            [message.value() or b"" for message in messages],
            [headers_of(message) for message in messages],
            dict(self._position),
        )

    def _without_repeats(self, messages: list[Raw]) -> list[Raw]:
        """Clients have given out records a second time, or of partitions that had been taken away (librdkafka 2.2 to 2.13,
        its issue 4844): here they would be answered twice, so they are dropped, with a line that says so.
        """
        kept = []
        for message in messages:
            place, offset = (message.topic(), message.partition()), message.offset()
            if offset >= self._position.get(place, offset + 1):
                kept.append(message)
        logger.warning("records_came_again", group=self._member.group, records=len(messages) - len(kept))
        return kept

    # Committing.

    def commit(self, outputs: Sequence[Message]) -> None:
        """See ``Reader.commit``."""
        self._raise_failure()
        moved = [place for place, position in self._position.items() if position != self._stored[place]]
        if not moved and not outputs:
            return
        offsets = [TopicPartition(*place, self._position[place], self._ids[place[0]]) for place in moved]
        with self._member.clients.in_our_words(f"a commit of group {self._member.group!r}"):
            if self._member.delivery == "at_least_once":
                self._publish_then_commit(outputs, offsets)
            elif outputs:
                self._commit_transaction(outputs, offsets)
            else:
                self._consumer.commit(offsets=offsets, asynchronous=False)
        failpoint("log.commit.done")
        self._stored.update((place, self._position[place]) for place in moved)
        self._polled.clear()
        for place in moved:
            self._sought.pop(place, None)

    def _commit_transaction(self, outputs: Sequence[Message], offsets: list[TopicPartition]) -> None:
        producer, deadline = self._producer, _clock.monotonic() + COMMIT_SECONDS
        producer.begin_transaction()
        failpoint("log.commit.begun")
        produce_together(producer, outputs, self._on_delivery)
        failpoint("log.commit.written")
        try:
            if offsets:
                producer.send_offsets_to_transaction(offsets, self._consumer.consumer_group_metadata(), COMMIT_SECONDS)
                failpoint("log.commit.positions")
            flush(producer, self._refusals, deadline - _clock.monotonic())
            producer.commit_transaction(max(1.0, deadline - _clock.monotonic()))
        except KafkaException:
            if self._refusals:
                raise KafkaException(self._refusals[0]) from None
            raise

    def _publish_then_commit(self, outputs: Sequence[Message], offsets: list[TopicPartition]) -> None:
        produce_together(self._producer, outputs, self._on_delivery)
        failpoint("log.commit.written")
        if self._producer.flush(COMMIT_SECONDS):
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        if self._refusals:
            raise KafkaException(self._refusals[0])
        if offsets:
            self._consumer.commit(offsets=offsets, asynchronous=False)

    def _on_delivery(self, error: KafkaError | None, _: Raw) -> None:
        """Called within other calls, for what the broker did not take. The first reason is the one that counts."""
        if error is not None:
            self._refusals.append(error)

    # Coming and going.

    def seek(self, positions: Positions) -> None:
        """See ``Reader.seek``."""
        self._sought |= positions
        for place, offset in positions.items():
            if place in self._position:
                self._waiting.pop(place, None)
                self._position[place] = offset
                with self._member.clients.in_our_words("a seek"):
                    self._consumer.seek(TopicPartition(*place, offset))

    def await_places(self, places: Collection[Place]) -> None:
        """Until these partitions are this member's; what comes meanwhile is kept for the next poll."""
        deadline = _clock.monotonic() + CALL_SECONDS
        while not self._position.keys() >= set(places):
            self._put_aside(self._consumer.consume(1, 0.1))
            self._raise_failure()
            if _clock.monotonic() > deadline:
                raise Broken(f"group {self._member.group!r}: another member has the partitions that this one was to read")

    def keep_alive(self) -> None:
        """Poll without taking anything."""
        with self._member.clients.in_our_words("keeping a member alive"):
            if not self._paused:
                self._consumer.pause(self._consumer.assignment())
                self._paused = True
            self._put_aside(self._consumer.consume(1, 0.0))

    def _resume(self) -> None:
        if self._paused:
            self._consumer.resume(self._consumer.assignment())
            self._paused = False

    def close(self, leave: bool) -> None:
        """End both clients. With ``leave`` others take over at once; else the slot's next holder goes on where this was."""
        with suppress(KafkaException, RuntimeError):
            if leave:
                self._leave()
            self._consumer.close()
        if self._member.delivery == "exactly_once":
            with suppress(KafkaException):
                self._producer.abort_transaction(ABORT_SECONDS)
        self._producer.purge()
        # The consumer knows this session's methods: a cycle, which would keep both clients until the collector comes.
        del self._consumer, self._producer

    def _leave(self) -> None:
        """A static member leaves when it unsubscribes, not when it closes; and only once it was told to let go."""
        self._consumer.unsubscribe()
        deadline = _clock.monotonic() + LEAVE_SECONDS
        while self._consumer.assignment() and _clock.monotonic() < deadline:
            self._consumer.consume(1, 0.02)

    # Partitions.

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Called within a poll. What goes wrong here is raised after it."""
        self._moves += 1
        places = [(one.topic, one.partition) for one in partitions]
        try:
            starts = self._starts(consumer, places) if places else {}
        except TidemillError as error:
            self._failure = error
            consumer.assign([])
            return
        self._position |= starts
        self._settled = False
        consumer.assign([TopicPartition(*place, offset) for place, offset in starts.items()])
        if self._paused:
            consumer.pause(partitions)

    def _starts(self, consumer: Consumer, places: list[Place]) -> dict[Place, int]:
        """Where to read from: the place sought, the group's position, or the origin; never where nothing is known."""
        group, clients, topics = self._member.group, self._member.clients, self._member.topics
        self._end_left_behind()
        self._ids |= topics.ids({topic for topic, _ in places})
        with clients.in_our_words(f"looking for the positions of group {group!r}"):
            found = consumer.committed([TopicPartition(*place) for place in places], CALL_SECONDS)
        bounds = topics.ends(places)
        starts: dict[Place, int] = {}
        for one in found:
            place, (first, end) = (one.topic, one.partition), bounds[one.topic, one.partition]
            if one.error is not None:
                raise clients.translated(one.error, f"looking for the positions of group {group!r}")
            stored = one.offset if one.offset >= 0 else None
            if place in self._sought:
                start = self._sought[place]
            elif stored is not None:
                self._check_identity(place, one.metadata)
                start = stored
            else:
                start = self._member.origins.get(place, first)
            if start < first:
                raise gone(place, first, start)
            if start > end:
                raise Broken(f"topic {place[0]!r}, partition {place[1]}: position {start} is past the end, {end}")
            starts[place] = start
            # A start that was chosen is written with the next commit, though nothing is read, and with the topic's new id.
            known = stored == start and one.metadata in (None, "", self._ids[place[0]])
            self._stored[place] = start if known or self._is_plain(place, stored) else None
        return starts

    def _is_plain(self, place: Place, stored: int | None) -> bool:
        return stored is None and place not in self._sought and place not in self._member.origins

    def _check_identity(self, place: Place, known: str | None) -> None:
        """Positions carry the topic's id: one that was deleted and made again has other records under the same offsets."""
        if known and known != self._ids[place[0]]:
            raise self._made_again(place[0])

    def hold_against(self, ids: Mapping[str, str]) -> None:
        """What the topics' ids are now; from another thread. Where one has changed, the next call fails."""
        for topic, known in self._ids.copy().items():
            if ids[topic] != known:
                self._failure = self._failure or self._made_again(topic)

    def _made_again(self, topic: str) -> Broken:
        group = self._member.group
        return Broken(f"topic {topic!r} was deleted and made again: group {group!r} has a position in the old one")

    def _end_left_behind(self) -> None:
        """Abort what members that died on this machine left open: until then their positions cannot be known, which would
        take the broker up to 20 s.
        """
        if self._member.delivery != "exactly_once":
            return
        with self._member.slots.left_behind(self._member.group) as names:
            for name in names:
                self._transactional(name)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._moves += 1
        for one in partitions:
            place = (one.topic, one.partition)
            self._position.pop(place, None)
            self._stored.pop(place, None)
            self._waiting.pop(place, None)
            if place in self._polled:
                self._failure = self._failure or Broken(
                    f"group {self._member.group!r}: topic {place[0]!r}, partition {place[1]} was given to another member "
                    "before what was read of it was committed"
                )

    # The producers.

    def _transactional(self, name: str) -> Producer:
        producer = self._member.clients.producer({"transactional.id": name}, PRODUCER | TRANSACTION)
        with self._member.clients.in_our_words(f"taking up transactional id {name!r}"):
            producer.init_transactions(CALL_SECONDS)
        return producer

    def _plain(self) -> Producer:
        return self._member.clients.producer({}, PRODUCER)


def flush(producer: Producer, refusals: Sequence[KafkaError], seconds: float) -> None:
    """Until the broker has all; an output that it refuses holds back those behind it, and a commit would wait for them."""
    deadline = _clock.monotonic() + seconds
    while producer.flush(0.05) and not refusals and _clock.monotonic() < deadline:
        pass
    if refusals:
        raise KafkaException(refusals[0])


def headers_of(message: Raw) -> tuple[tuple[str, bytes], ...]:
    """A message's headers; one without a value has an empty one."""
    found = message.headers()
    return tuple((name, value or b"") for name, value in found) if found else ()
