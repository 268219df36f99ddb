"""The topics of a Kafka log: made as they must be, checked where they exist, and where their records begin and end."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from tidemill.clock import SystemClock
from tidemill.errors import Broken, ConfigError
from tidemill.log.base import Topic
from tidemill.log.kafka_client import CALL_SECONDS, Answer, Clients, consume

UNDECIDED_SECONDS = 2.0
"""How long to wait for a transaction's end, to see what stands behind it."""
SPREAD_SECONDS = 0.5
ADMIN_SECONDS = 3.0
"""How long to wait for an answer that takes milliseconds, before another client asks."""
LIST_SECONDS = 2.0
"""How soon a password that is wrong, say, is told: until then a broker that is away looks the same."""
_clock = SystemClock()

Place = tuple[str, int]
Bounds = dict[Place, tuple[int, int]]

LOOK = {
    "group.id": "tidemill.look",
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",
    # The end of a partition is told when a fetch brings nothing.
    "fetch.wait.max.ms": 10,
}


class Topics:
    """Administration of the cluster's topics. Thread-safe; clients are made when they are first needed."""

    def __init__(self, clients: Clients, replication: int) -> None:
        self._clients = clients
        self._replication = replication
        self._lock = threading.Lock()
        self._admin: AdminClient | None = None
        self._known: dict[str, int] = {}

    def create(self, topics: Sequence[Topic]) -> None:
        """See ``Log.create``. Raises ``ConfigError`` that names every difference, where one exists otherwise."""
        standing = self._patiently("making topics", self._names)
        with self._clients.in_our_words("making topics"):
            made = self._make([topic for topic in topics if topic.name not in standing])
            self._check([topic for topic in topics if topic.name not in made])
        for name in made:
            self._known.pop(name, None)  # another topic may have had that name
        self.ends(self.places(made))  # which waits until each partition has a leader

    def _names(self) -> set[str]:
        return set(self._admin_client().list_topics(timeout=LIST_SECONDS).topics)

    def close(self) -> None:
        """Forget the clients."""
        self._admin = None

    def partitions(self, topic: str) -> int:
        """How many a topic has. Raises ``ConfigError`` where there is none of that name."""
        if topic not in self._known:
            doing = f"looking for topic {topic!r}"
            self._known[topic] = self._patiently(doing, lambda: self._look(topic))
        return self._known[topic]

    def _look(self, topic: str) -> int:
        """A topic that was just made is not known to every broker at once."""
        deadline = _clock.monotonic() + SPREAD_SECONDS
        while True:
            found = self._admin_client().list_topics(topic, timeout=CALL_SECONDS).topics[topic]
            if found.error is None:
                return len(found.partitions)
            if _clock.monotonic() > deadline:
                raise KafkaException(found.error)
            _clock.sleep(0.05)

    def places(self, topics: Iterable[str]) -> list[Place]:
        """Every partition of some topics."""
        return [(topic, partition) for topic in topics for partition in range(self.partitions(topic))]

    def ids(self, topics: Iterable[str]) -> dict[str, str]:
        """The id of each topic: another one once it was deleted and made again."""

        def describe() -> dict[str, str]:
            futures = self._admin_client().describe_topics(TopicCollection(list(topics)), request_timeout=CALL_SECONDS)
            return {topic: str(future.result(ADMIN_SECONDS).topic_id) for topic, future in futures.items()}

        return self._patiently("describing topics", describe)

    def ends(self, places: Sequence[Place]) -> Bounds:
        """Where each partition begins and ends, with all that is in it: markers, and what may yet be aborted.

        A commit returns before its markers are written, so who asks for its own records must wait until they are decided.
        """
        firsts = self._offsets(places, OffsetSpec.earliest())
        lasts = self._offsets(places, OffsetSpec.latest())
        return {place: (firsts[place], lasts[place]) for place in places}

    def undecided(self, places: Sequence[Place]) -> Bounds:
        """See ``KafkaLog.undecided``."""
        stable = self._offsets(places, OffsetSpec.latest(), IsolationLevel.READ_COMMITTED)
        ends = self._offsets(places, OffsetSpec.latest())
        return {place: (stable[place], ends[place]) for place in places if stable[place] < ends[place]}

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """See ``Log.bounds``: an end stands behind the last record, not behind the markers that may follow it."""
        ends = self._decided(self.ends(self.places([topic])))
        filled = {place: bounds for place, bounds in ends.items() if bounds[1] > bounds[0]}
        lasts = self._last_records(filled) if filled else {}
        return {place[1]: (first, lasts.get(place, first)) for place, (first, _) in ends.items()}

    def _decided(self, bounds: Bounds) -> Bounds:
        """The same once their transactions have ended; what one that stays open hides is left out after a while."""
        deadline = _clock.monotonic() + UNDECIDED_SECONDS
        while True:
            stable = self._offsets(list(bounds), OffsetSpec.latest(), IsolationLevel.READ_COMMITTED)
            if all(stable[place] >= end for place, (_, end) in bounds.items()) or _clock.monotonic() > deadline:
                return {place: (first, min(end, stable[place])) for place, (first, end) in bounds.items()}
            _clock.sleep(0.005)

    def committed(self, group: str) -> dict[Place, int]:
        """See ``Log.committed``: of the group's project, and of the topics that were looked at here.

        Asked by a consumer: where the group's coordinator is just coming or going, an administrator's librdkafka (2.16) ends
        the process, since it wants to tell a consumer group that it does not have.
        """

        def look() -> dict[Place, int]:
            topics = self._admin_client().list_topics(timeout=CALL_SECONDS).topics
            prefix = f"{group.rpartition('.')[0]}."
            wanted = {name for name in topics if name.startswith(prefix)} | (self._known.keys() & topics.keys())
            places = [TopicPartition(name, partition) for name in sorted(wanted) for partition in topics[name].partitions]
            return self._committed(group, places) if places else {}

        return self._patiently(f"looking for the positions of group {group!r}", look)

    def _committed(self, group: str, places: list[TopicPartition]) -> dict[Place, int]:
        consumer = self._clients.consumer({**LOOK, "group.id": group})
        try:
            found = consumer.committed(places, ADMIN_SECONDS)
        finally:
            consumer.close()
        for one in found:
            if one.error is not None:
                raise KafkaException(one.error)
        return {(one.topic, one.partition): one.offset for one in found if one.offset >= 0}

    def _patiently(self, doing: str, call: Callable[[], Answer]) -> Answer:
        """An administrator that has failed is dropped: some go on asking a broker that has restarted, without an answer."""

        def once() -> Answer:
            try:
                return call()
            except (KafkaException, TimeoutError):
                self._admin = None
                raise

        return self._clients.patiently(doing, once)

    def _admin_client(self) -> AdminClient:
        with self._lock:
            if self._admin is None:
                self._admin = self._clients.admin()
            return self._admin

    def _offsets(
        self, places: Sequence[Place], spec: OffsetSpec, isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED
    ) -> dict[Place, int]:
        def look() -> dict[Place, int]:
            request = {TopicPartition(*place): spec for place in places}
            futures = self._admin_client().list_offsets(request, isolation_level=isolation, request_timeout=CALL_SECONDS)
            return {(one.topic, one.partition): future.result(ADMIN_SECONDS).offset for one, future in futures.items()}

        return self._patiently("looking for the ends of topics", look)

    def _last_records(self, bounds: Bounds) -> dict[Place, int]:
        """Behind the last record of each partition that has one: looked for from its end, further back each time."""
        found: dict[Place, int] = {}
        reach = 2
        consumer = self._clients.consumer(LOOK)
        try:
            left = dict(bounds)
            while left:
                starts = {place: max(first, end - reach) for place, (first, end) in left.items()}
                found |= self._read_to_end(consumer, starts, left)
                left = {p: b for p, b in left.items() if p not in found and starts[p] > b[0]}
                reach *= 10
        finally:
            consumer.close()
        return found

    def _read_to_end(self, consumer: Consumer, starts: Mapping[Place, int], bounds: Bounds) -> dict[Place, int]:
        found: dict[Place, int] = {}
        open_places = set(starts)
        with self._clients.in_our_words("looking for the last records"):
            consumer.assign([TopicPartition(*place, offset) for place, offset in starts.items()])
            while open_places:
                messages = consume(consumer, 1000, CALL_SECONDS)
                if not messages:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                for message in messages:
                    place, error, offset = (message.topic(), message.partition()), message.error(), message.offset()
                    if error is None and offset < bounds[place][1]:
                        found[place] = offset + 1
                    elif error is not None and error.code() != KafkaError._PARTITION_EOF:
                        raise KafkaException(error)
                    if offset + (error is None) >= bounds[place][1]:
                        open_places.discard(place)
        return found

    def _make(self, topics: Sequence[Topic]) -> set[str]:
        """Those that were made here: another process may have been quicker."""
        if not topics:
            return set()
        replication = self._replication or -1
        wanted = [
            NewTopic(topic.name, topic.partitions, replication_factor=replication, config=_config(topic)) for topic in topics
        ]
        made = set()
        for name, future in self._admin_client().create_topics(wanted, request_timeout=CALL_SECONDS).items():
            try:
                future.result(CALL_SECONDS)
                made.add(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise self._clients.translated(error.args[0], f"making topic {name!r}") from error
        return made

    def _check(self, topics: Sequence[Topic]) -> None:
        if not topics:
            return
        resources = {ConfigResource(ResourceType.TOPIC, topic.name): topic for topic in topics}
        futures = self._admin_client().describe_configs(list(resources), request_timeout=CALL_SECONDS)
        differences: list[str] = []
        retentions: dict[str, str] = {}
        for resource, future in futures.items():
            topic, found = resources[resource], future.result(CALL_SECONDS)
            if self.partitions(topic.name) != topic.partitions:
                differences.append(f"{topic.name} has {self.partitions(topic.name)} partitions, not {topic.partitions}")
            differing = {name: value for name, value in _config(topic).items() if not _suits(name, found[name].value, value)}
            if "retention.ms" in differing:
                retentions[topic.name] = differing.pop("retention.ms")
            differences += [f"{topic.name} has {name}={found[name].value}, not {value}" for name, value in differing.items()]
        if differences:
            raise ConfigError(
                f"topics on {self._clients.brokers} are not as this project needs them: {'; '.join(sorted(differences))}: "
                "change them there, or the settings in [stream]"
            )
        for name, retention in retentions.items():
            self._alter(name, {"retention.ms": retention})

    def _alter(self, topic: str, config: Mapping[str, str]) -> None:
        entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in config.items()]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        (future,) = self._admin_client().incremental_alter_configs([resource], request_timeout=CALL_SECONDS).values()
        future.result(CALL_SECONDS)


def _config(topic: Topic) -> dict[str, str]:
    """The log's own times, so that a clock that is wrong neither refuses nor ages records; nothing orders by them."""
    retention = -1 if topic.retention_seconds is None else round(topic.retention_seconds * 1000)
    size = {} if topic.bytes_max is None else {"max.message.bytes": str(topic.bytes_max)}
    return {
        "cleanup.policy": "compact" if topic.compacted else "delete",
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": str(retention),
        **size,
    }


def _suits(name: str, found: str, wanted: str) -> bool:
    """Whether a topic's own value will do: a limit that is higher does no harm."""
    return found == wanted or (name == "max.message.bytes" and int(found) > int(wanted))


def gone(place: Place, first: int, position: int) -> Broken:
    """The error for records that were deleted before they were read."""
    topic, partition = place
    return Broken(
        f"topic {topic!r}, partition {partition}: records {position} to {first - 1} were deleted before they were read"
    )
