"""What the log on Kafka meets and the SQLite log does not: markers, members, positions that are gone, other clients."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tidemill.errors import BadRecord, Broken
from tidemill.log import kafka_reader
from tidemill.log.base import Batch, Message, Reader, Record, Topic, lag, read_all
from tidemill.log.kafka import KafkaLog
from tidemill.log.kafka_slots import Slots
from tidemill.testing.ending import ending

pytestmark = pytest.mark.kafka

SECONDS = 30.0
QUIET: dict[str, Any] = {"log_level": 0}
MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
    b"": 275646681,
}
"""What the Java client's own test expects of its hash, and the hash of nothing."""

HOLDER = """
import sys, time
from pathlib import Path
from tidemill.log.kafka_slots import Slots
held = Slots(Path(sys.argv[1]), "").take("group")
print(held.name, flush=True)
time.sleep(60)
"""
COPIER = """
import sys
from pathlib import Path
from tidemill.log.base import Message, lag
from tidemill.log.kafka import KafkaLog
brokers, prefix, folder, source, target = sys.argv[1:]
log = KafkaLog(brokers, prefix, Path(folder), delivery="at_least_once")
reader = log.join("copiers", [source])
while lag(log, "copiers", [source])[source]:
    batch = reader.poll(10, 1.0)
    reader.commit([Message(target, value) for value in batch.values])
"""


class Kafka:
    """A project's log, opened as often as a test likes, and what strangers do to its topics."""

    def __init__(self, bootstrap: str, folder: Path, feeder: KafkaLog) -> None:
        self.bootstrap = bootstrap
        self.prefix = f"log-{uuid.uuid4().hex[:8]}"
        self.slots = folder / "slots"
        self.admin = AdminClient(QUIET | {"bootstrap.servers": bootstrap})
        self.append = feeder.append
        self._open: list[KafkaLog] = []
        self.log = self.open()

    def open(self, **options: Any) -> KafkaLog:
        log = KafkaLog(self.bootstrap, self.prefix, self.slots, **options)
        self._open.append(log)
        return log

    def close(self) -> None:
        for log in self._open:
            log.close()

    def topic(self, name: str, partitions: int = 1, values: int = 0) -> str:
        """A new topic with the values 0, 1, 2 ..."""
        topic = f"{self.prefix}.{name}"
        self.log.create([Topic(topic, partitions)])
        self.fill(topic, values)
        return topic

    def fill(self, topic: str, values: int, first: int = 0) -> None:
        self.append([Message(topic, b"%d" % number, b"%d" % number) for number in range(first, first + values)])

    def producer(self, **settings: Any) -> Producer:
        return Producer(QUIET | {"bootstrap.servers": self.bootstrap} | settings)

    def transactional(self) -> Producer:
        """A stranger's producer that is ready for its first transaction."""
        producer = self.producer(**{"transactional.id": f"{self.prefix}.{uuid.uuid4().hex}", "retry.backoff.ms": 1})
        producer.init_transactions(SECONDS)
        return producer

    def abort(self, topic: str, count: int) -> None:
        """Leave records that were taken back."""
        producer = self.transactional()
        producer.begin_transaction()
        for _ in range(count):
            producer.produce(topic, b"taken back")
        producer.flush(SECONDS)
        producer.abort_transaction(SECONDS)

    def delete_records(self, topic: str, before: int) -> None:
        """As retention does."""
        for future in self.admin.delete_records([TopicPartition(topic, 0, before)]).values():
            future.result(SECONDS)

    def make_again(self, topic: str) -> None:
        """Delete a topic and make it again, empty."""
        for future in self.admin.delete_topics([topic]).values():
            future.result(SECONDS)
        self.log.create([Topic(topic)])

    def members(self, group: str) -> list[str]:
        """The static names of a group's members."""
        (future,) = self.admin.describe_consumer_groups([f"{self.prefix}.{group}"]).values()
        return sorted(str(member.group_instance_id) for member in future.result(SECONDS).members)


@pytest.fixture(scope="module")
def feeder(bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaLog]:
    """For all that tests only append: the first word of a producer takes half a second."""
    log = KafkaLog(bootstrap, "feeder", tmp_path_factory.mktemp("feeder"))
    yield log
    log.close()


@pytest.fixture
def kafka(bootstrap: str, tmp_path: Path, feeder: KafkaLog) -> Iterator[Kafka]:
    kafka = Kafka(bootstrap, tmp_path, feeder)
    yield kafka
    kafka.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def read(reader: Reader, count: int, limit: int = 1000) -> list[bytes]:
    """Poll until so many values came."""
    found: list[bytes] = []
    end = time.monotonic() + SECONDS
    while len(found) < count:
        assert time.monotonic() < end, f"{len(found)} of {count} came"
        found += reader.poll(min(limit, count - len(found)), 0.2).values
    return found


def active(reader: Reader) -> Batch:
    """The first poll after which the reader has a partition."""
    end = time.monotonic() + SECONDS
    while True:
        batch = reader.poll(1000, 0.2)
        if batch.positions:
            return batch
        assert time.monotonic() < end, "it was given nothing"


def read_on(reader: Reader, seconds: float = SECONDS) -> tuple[list[bytes], str]:
    """What the reader still gives to a role that commits each poll, and what it ends with."""
    found: list[bytes] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            found += reader.poll(10, 0.2).values
            reader.commit()
        except Broken as error:
            return found, str(error)
    pytest.fail(f"it went on, with {found}")


@contextmanager
def polling(reader: Reader) -> Iterator[None]:
    """It polls meanwhile, as a role does."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set():
            reader.poll(1, 0.1)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def values(records: list[Record]) -> list[bytes]:
    return [record.value for record in records]


def numbers(first: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, end)]


# Members and their slots.


def test_a_slot_has_one_holder_and_a_name_that_outlives_it(tmp_path: Path) -> None:
    """A second process gets the next one; after a kill -9 the first one is free at once, under the same name."""
    slots = Slots(tmp_path, "")
    with ending(
        subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    ) as holder:
        assert holder.stdout is not None
        name = holder.stdout.readline().strip()
        second = slots.take("group")
        assert second.name == name.removesuffix("0") + "1"
        assert slots.take("other").name.endswith(".0")
        with slots.left_behind("group") as free:
            assert free == []
        holder.kill()
        holder.wait()
    with slots.left_behind("group") as free:
        assert free == [name]
    first = slots.take("group")
    assert first.name == name
    first.release()
    second.release()
    assert slots.take("group").name == name
    assert slots.take("group").name == name  # one that was dropped is free again


def test_slots_of_other_machines_and_folders_have_other_names(tmp_path: Path) -> None:
    """So their holders never fence each other."""
    folders = [(tmp_path / "a", "one"), (tmp_path / "a", "two"), (tmp_path / "b", "one")]
    names = {
        Slots(folder, node).take(f"group.{number}").name.split(".", 2)[2] for number, (folder, node) in enumerate(folders)
    }
    assert len(names) == 3


def test_readers_of_one_process_are_different_members(kafka: Kafka) -> None:
    """Each with partitions of its own; one that joins after another has left is known by that one's name."""
    topic = kafka.topic("in", 2)
    first, second = kafka.log.join("g", [topic]), kafka.open().join("g", [topic])
    with polling(first):
        until(lambda: len(second.poll(1, 0.1).positions) == 1)
    places = [place for reader in (first, second) for place in reader.poll(1, 0.1).positions]
    assert sorted(places) == [(topic, 0), (topic, 1)]
    names = kafka.members("g")
    assert [name.rpartition(".")[2] for name in names] == ["0", "1"]
    first.close()
    with polling(second):
        until(lambda: len(kafka.members("g")) == 1)
        active(kafka.log.join("g", [topic]))
    assert kafka.members("g") == names


def test_a_reader_that_is_dropped_before_its_first_poll_ends_its_thread(kafka: Kafka) -> None:
    """Nobody else would, for as long as the process lives."""
    topic = kafka.topic("in")
    before = [thread.name for thread in threading.enumerate()]
    kafka.log.join("g", [topic])
    deadline = time.monotonic() + 10
    while [thread.name for thread in threading.enumerate()] != before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


def test_a_long_batch_keeps_its_member_and_its_commit(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than max.poll.interval.ms: nothing is lost or repeated, and what came meanwhile is read next."""
    monkeypatch.setattr(kafka_reader, "KEEP_SECONDS", 1.0)
    source, target = kafka.topic("in", values=5), kafka.topic("out")
    log = kafka.open(settings={"max.poll.interval.ms": 6000, "session.timeout.ms": 6000})
    reader = log.join("g", [source])
    batch = read(reader, 3)
    time.sleep(4.0)
    kafka.fill(source, 2, first=5)
    time.sleep(3.5)
    reader.commit([Message(target, value) for value in batch])
    rest = read(reader, 4)
    reader.commit([Message(target, value) for value in rest])
    assert values(read_all(log, target)) == numbers(0, 7)
    assert lag(log, "g", [source]) == {source: 0}


def test_a_long_batch_stops_nobody(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that joins meanwhile gets its share at once; what is no longer the first one's is refused to it."""
    monkeypatch.setattr(kafka_reader, "KEEP_SECONDS", 0.5)
    source, target = kafka.topic("in", 2, values=40), kafka.topic("out")
    first, second = kafka.log.join("g", [source]), kafka.open().join("g", [source])
    batch = read(first, 40)
    time.sleep(1.5)
    started = time.monotonic()
    copied = active(second).values
    assert time.monotonic() - started < 5.0
    second.commit([Message(target, value) for value in copied])
    with pytest.raises(Broken, match="given to another member"):
        first.commit([Message(target, value) for value in batch])
    while lag(kafka.log, "g", [source])[source]:
        for reader in (first, second):
            copied = reader.poll(1000, 0.2).values
            reader.commit([Message(target, value) for value in copied])
    assert sorted(values(read_all(kafka.log, target))) == sorted(numbers(0, 40))


def test_at_least_once_repeats_what_a_crash_cut_off(kafka: Kafka) -> None:
    """Killed three times between the outputs and the position: each is there at least once, and the position is right."""
    source, target = kafka.topic("in", values=50), kafka.topic("out")
    command = [sys.executable, "-c", COPIER, kafka.bootstrap, kafka.prefix, str(kafka.slots), source, target]
    codes = []
    for death in ("log.commit.written:2", "log.commit.written", "log.commit.done", ""):
        ended = subprocess.run(command, check=False, env=os.environ | {"TIDEMILL_FAILPOINT": death}, timeout=SECONDS)
        codes.append(ended.returncode)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, -signal.SIGKILL, 0]
    assert set(values(read_all(kafka.log, target))) == set(numbers(0, 50))
    assert kafka.log.committed("copiers") == {(source, 0): 50}


# Transactions, and what they leave in a topic.


def test_a_commit_is_seen_by_whoever_looks_next(kafka: Kafka) -> None:
    """Its markers are written after it returns; who reads the topic then waits for them, a hundred times."""
    source, target = kafka.topic("in", values=1), kafka.topic("out")
    reader = kafka.log.join("g", [source])
    for number in range(100):
        assert len(read(reader, 1)) == 1
        reader.commit([Message(target, b"%d" % number), Message(source, b"next")])
        assert values(read_all(kafka.log, target)) == numbers(0, number + 1)


def test_bounds_end_behind_the_last_record_and_not_its_marker(kafka: Kafka) -> None:
    """So a group that has read the outputs of transactions has no lag, and one that has not has as many as there are."""
    source, target = kafka.topic("in", values=1), kafka.topic("out")
    copier, sink = kafka.log.join("g", [source]), kafka.log.join("h", [target])
    for number in range(20):
        read(copier, 1)
        copier.commit([Message(target, b"%d" % number), Message(source, b"next")])
        read(sink, 1)
        sink.commit()
        assert lag(kafka.log, "h", [target]) == {target: 0}
        assert kafka.log.bounds(target) == {0: (0, 2 * number + 1)}
        assert kafka.log.committed("h") == {(target, 0): 2 * number + 1}


def test_a_group_that_starts_at_the_end_has_no_lag(kafka: Kafka) -> None:
    """Nor less than none, though a marker stands before its position."""
    source, target = kafka.topic("in", values=1), kafka.topic("out")
    reader = kafka.log.join("g", [source])
    read(reader, 1)
    reader.commit([Message(target, b"old")])
    until(lambda: kafka.log.undecided([target]) == {})
    late = kafka.log.join("late", [target], start="end")
    active(late)
    late.commit()
    assert lag(kafka.log, "late", [target]) == {target: 0}
    kafka.append([Message(target, b"new")])
    assert read(late, 1) == [b"new"]


def test_a_commit_without_outputs_moves_the_position_only(kafka: Kafka) -> None:
    """It is no transaction: nothing is written into a topic."""
    topic = kafka.topic("in", values=3)
    reader = kafka.log.join("g", [topic])
    read(reader, 2)
    reader.commit()
    assert kafka.log.committed("g") == {(topic, 0): 2}
    assert lag(kafka.log, "g", [topic]) == {topic: 1}
    assert kafka.log.bounds(topic) == {0: (0, 3)}
    reader.close()
    assert read(kafka.log.join("g", [topic]), 1) == [b"2"]


@pytest.mark.parametrize("aborted", [1, 250])
def test_what_was_taken_back_does_not_count(kafka: Kafka, aborted: int) -> None:
    """Aborted records at the end of a topic, or nothing else in it: bounds, lag and readers are as without them."""
    topic, empty = kafka.topic("in", values=3), kafka.topic("empty")
    for name in (topic, empty):
        kafka.abort(name, aborted)
        kafka.abort(name, aborted)
    assert kafka.log.bounds(topic) == {0: (0, 3)}
    assert kafka.log.bounds(empty) == {0: (0, 0)}
    assert values(read_all(kafka.log, topic)) == numbers(0, 3)
    assert read_all(kafka.log, empty) == []
    reader = kafka.log.join("g", [topic, empty])
    assert sorted(read(reader, 3)) == numbers(0, 3)
    reader.commit()
    assert lag(kafka.log, "g", [topic, empty]) == {topic: 0, empty: 0}
    kafka.fill(empty, 1, first=7)
    assert read(reader, 1) == [b"7"]


def test_what_stands_behind_an_open_transaction_is_left_out_or_awaited(kafka: Kafka) -> None:
    """Bounds give up after two seconds, once; who reads the topic waits for the decision."""
    topic = kafka.topic("in", values=2)
    producer = kafka.transactional()
    producer.begin_transaction()
    for _ in range(300):
        producer.produce(topic, b"undecided")
    producer.flush(SECONDS)
    kafka.fill(topic, 1, first=2)
    assert kafka.log.undecided([topic]) == {(topic, 0): (2, 303)}
    started = time.monotonic()
    assert kafka.log.bounds(topic) == {0: (0, 2)}
    assert 1.5 < time.monotonic() - started < 4.0
    timer = threading.Timer(0.3, producer.abort_transaction, [SECONDS])
    timer.start()
    assert values(read_all(kafka.log, topic)) == numbers(0, 3)
    timer.join()
    assert kafka.log.bounds(topic) == {0: (0, 303)}


@pytest.mark.parametrize("size", [1_200_000, 4_200_000])
def test_an_output_that_is_too_large_fails_its_commit_alone(kafka: Kafka, size: int) -> None:
    """Too large for the broker, or for the client: nothing is seen, and the reader soon goes on with the same."""
    source, target = kafka.topic("in", values=3), kafka.topic("out")
    reader = kafka.log.join("g", [source])
    read(reader, 1)
    reader.commit()
    assert read(reader, 2) == numbers(1, 3)
    started = time.monotonic()
    with pytest.raises(BadRecord) as caught:
        reader.commit([Message(target, b"fine"), Message(target, b"x" * size), *[Message(target, b"fine too")] * 50])
    assert (caught.value.reason, caught.value.field) == ("refused_by_log", "")
    assert "too large" in caught.value.detail
    assert kafka.log.committed("g") == {(source, 0): 1}
    assert time.monotonic() - started < 5.0
    kafka.append([Message(target, b"of another")])
    assert values(read_all(kafka.log, target)) == [b"of another"]
    assert read(reader, 2) == numbers(1, 3)
    reader.commit([Message(target, b"fine")])
    assert values(read_all(kafka.log, target)) == [b"of another", b"fine"]
    assert kafka.log.committed("g") == {(source, 0): 3}


@pytest.mark.parametrize("size", [1_200_000, 4_200_000])
def test_an_append_to_several_topics_that_is_refused_holds_up_nobody(kafka: Kafka, size: int) -> None:
    """None of its messages is seen, and what others write behind them is read at once."""
    one, two = kafka.topic("one"), kafka.topic("two")
    with pytest.raises(BadRecord, match="too large"):
        kafka.append([Message(one, b"fine"), Message(two, b"x" * size)])
    kafka.fill(one, 1)
    started = time.monotonic()
    assert values(read_all(kafka.log, one)) == numbers(0, 1)
    assert time.monotonic() - started < 2.0
    assert read_all(kafka.log, two) == []


def test_an_append_stops_at_a_message_that_is_too_large(kafka: Kafka) -> None:
    """Those before it may be there, none behind it: a key's records would have a hole."""
    topic = kafka.topic("one")
    small = [Message(topic, b"%d" % i, b"k") for i in range(2000)]
    with pytest.raises(BadRecord, match="too large"):
        kafka.append([*small[:10], Message(topic, b"x" * 5_000_000, b"k"), *small[10:]])
    found = [record.value for record in read_all(kafka.log, topic)]
    assert found == [message.value for message in small[: len(found)]]
    assert len(found) <= 10


# Positions that are gone.


def test_records_deleted_under_a_stopped_group_are_named(kafka: Kafka) -> None:
    """Retention overtook it: it stops, each time, and neither skips nor repeats; a group that is new begins behind them."""
    topic = kafka.topic("in", values=10)
    reader = kafka.log.join("g", [topic])
    read(reader, 4)
    reader.commit()
    reader.close()
    kafka.delete_records(topic, 7)
    reader = kafka.log.join("g", [topic])
    for _ in range(2):
        said = f"topic {topic!r}, partition 0: records 4 to 6 were deleted before they were read"
        assert read_on(reader) == ([], said)
    assert kafka.log.committed("g") == {(topic, 0): 4}
    assert lag(kafka.log, "g", [topic]) == {topic: 3}
    assert read(kafka.log.join("new", [topic]), 3) == numbers(7, 10)
    assert values(read_all(kafka.log, topic)) == numbers(7, 10)


def test_records_deleted_under_a_running_reader_stop_it(kafka: Kafka) -> None:
    """What it had fetched it still reads; then it says which topic and partition, and after that which records."""
    topic = kafka.topic("in")
    for number in range(40):
        kafka.append([Message(topic, b"%d" % number + b"x" * 10_000)])
    log = kafka.open(settings={"queued.min.messages": 1, "queued.max.messages.kbytes": 1, "fetch.message.max.bytes": 10_000})
    reader = log.join("g", [topic])
    read(reader, 4)
    reader.commit()
    kafka.delete_records(topic, 39)
    found, said = read_on(reader)
    assert f"topic {topic!r}, partition 0, at its position are gone" in said
    _, said = read_on(reader)
    assert said.endswith(f"records {4 + len(found)} to 38 were deleted before they were read")


def test_a_position_past_the_end_stops_the_reader(kafka: Kafka) -> None:
    """A sink that knows more than the log holds has another log's data."""
    topic = kafka.topic("in", values=3)
    reader = kafka.log.join("g", [topic])
    reader.seek({(topic, 0): 4})
    assert read_on(reader) == ([], f"topic {topic!r}, partition 0: position 4 is past the end, 3")


def test_a_position_of_another_topic_of_that_name_stops_the_reader(kafka: Kafka) -> None:
    """Positions carry the topic's id: also where they are within its bounds."""
    topic = kafka.topic("in", values=5)
    consumer = Consumer(QUIET | {"bootstrap.servers": kafka.bootstrap, "group.id": f"{kafka.prefix}.g"})
    consumer.commit(offsets=[TopicPartition(topic, 0, 3, "of-an-old-topic")], asynchronous=False)
    consumer.close()
    found, said = read_on(kafka.log.join("g", [topic]))
    assert found == []
    assert said.startswith(f"topic {topic!r} was deleted and made again")


def test_a_topic_made_again_under_a_stopped_group_is_read_from_its_beginning(kafka: Kafka) -> None:
    """The broker has forgotten the positions together with the topic: no record of the new one is skipped."""
    topic = kafka.topic("in", values=10)
    reader = kafka.log.join("g", [topic])
    read(reader, 4)
    reader.commit()
    reader.close()
    kafka.make_again(topic)
    assert kafka.log.committed("g") == {}
    kafka.fill(topic, 6, first=10)
    assert read(kafka.log.join("g", [topic]), 6) == numbers(10, 16)


def test_a_shorter_topic_made_again_under_a_running_reader_stops_it(kafka: Kafka) -> None:
    """It says so once; from then on it reads the new topic from its beginning."""
    topic = kafka.topic("in", values=10)
    reader = kafka.log.join("g", [topic])
    read(reader, 10)
    reader.commit()
    kafka.make_again(topic)
    kafka.fill(topic, 6, first=10)
    found, said = read_on(reader)
    assert found == []
    assert topic in said
    assert "made again" in said or "are gone" in said
    assert read(reader, 6) == numbers(10, 16)


def test_a_longer_topic_made_again_under_a_running_reader_stops_it(kafka: Kafka) -> None:
    """Its position is within the new topic's bounds, and means other records there."""
    topic = kafka.topic("in", values=4)
    reader = kafka.log.join("g", [topic])
    read(reader, 4)
    reader.commit()
    kafka.make_again(topic)
    kafka.fill(topic, 10, first=10)
    _, said = read_on(reader, 5.0)
    assert topic in said
    assert "made again" in said or "are gone" in said  # where it looked before the new topic had grown


# Other clients, and bytes of every kind.


def test_a_key_has_the_partition_that_javas_clients_give_it(kafka: Kafka) -> None:
    """Appended or published by a commit: murmur2, held against the vectors of Kafka's own test."""
    source, target = kafka.topic("in", 7), kafka.topic("out", 7)
    expected = {key: (number & 0x7FFFFFFF) % 7 for key, number in MURMUR2.items()}
    kafka.append([Message(source, b"", key) for key in MURMUR2])
    assert {record.key: record.partition for record in read_all(kafka.log, source)} == expected
    reader = kafka.log.join("g", [source])
    read(reader, len(MURMUR2))
    reader.commit([Message(target, b"", key) for key in MURMUR2])
    assert {record.key: record.partition for record in read_all(kafka.log, target)} == expected


def test_what_other_clients_write_is_read(kafka: Kafka) -> None:
    """Values, keys and headers that are null or empty, a header twice or with a name of any script."""
    topic = kafka.topic("in")
    producer = kafka.producer()
    headers: Any = [("null", None), ("empty", b""), ("größe 大小", b"\xff\0"), ("twice", b"1"), ("twice", b"2")]
    producer.produce(topic, None, b"tombstone", headers=headers)
    producer.produce(topic, b"", b"")
    producer.produce(topic, b"value", None)
    producer.flush(SECONDS)
    expected = [
        (b"tombstone", b"", (("null", b""), ("empty", b""), ("größe 大小", b"\xff\0"), ("twice", b"1"), ("twice", b"2"))),
        (b"", b"", ()),
        (None, b"value", ()),
    ]
    assert [(record.key, record.value, record.headers) for record in read_all(kafka.log, topic)] == expected
    reader = kafka.log.join("g", [topic])
    assert [(record.key, record.value, record.headers) for record in active(reader).records()] == expected


def test_large_and_many_messages_come_back_as_they_went(kafka: Kafka) -> None:
    """One of a megabyte, with an empty key and a header of any script; ten thousand in one append, and in one commit."""
    topic, target = kafka.topic("in"), kafka.topic("out")
    large = Message(topic, os.urandom(1_000_000), b"", (("größe 大小", b"\xff\0"),))
    kafka.append([large])
    kafka.fill(topic, 10_000)
    first, *rest = read_all(kafka.log, topic)
    assert (first.value, first.key, first.headers) == (large.value, large.key, large.headers)
    assert values(rest) == numbers(0, 10_000)
    reader = kafka.log.join("g", [topic])
    read(reader, 1)
    reader.commit([Message(target, large.value, large.key, large.headers)])
    batch = read(reader, 10_000, limit=10_000)
    reader.commit([Message(target, value) for value in batch])
    first, *rest = read_all(kafka.log, target)
    assert (first.value, first.key, first.headers) == (large.value, large.key, large.headers)
    assert values(rest) == numbers(0, 10_000)
