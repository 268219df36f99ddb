"""What every ``Log`` must do, as tests: subclass ``LogContract`` and give it a ``log_factory`` fixture.

    class TestMyLog(LogContract):
        @pytest.fixture
        def log_factory(self, tmp_path):
            return functools.partial(MyLog, tmp_path)

``log_factory()`` opens the same log again each time, also in another process, so it must be picklable. Each test makes
topics of its own, waits for what it expects instead of sleeping, and asks nothing about the number of partitions.
"""

# ruff: noqa: S101 (these are tests, shipped)
import gc
import multiprocessing
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

import pytest

from tidemill.errors import ConfigError, TidemillError
from tidemill.log.base import Batch, Headers, Log, Message, Reader, Record, Topic, lag, read_all
from tidemill.testing.open_files import nothing_stays_open

LogFactory = Callable[[], Log]
PATIENCE_SECONDS = 60.0


def poll_records(reader: Reader, count: int, limit: int = 100) -> list[Record]:
    """Poll until so many records came; fails when they do not."""
    records: list[Record] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(records) < count:
        assert time.monotonic() < deadline, f"{len(records)} of {count} records came in time"
        records.extend(reader.poll(limit, 0.5).records())
    return records


def poll_until_active(reader: Reader) -> Batch:
    """Poll until the reader is given its topics; the batch of that poll."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        batch = reader.poll(100, 0.2)
        if batch.positions:
            return batch
        assert time.monotonic() < deadline, "the reader was not given its topics in time"


def values(records: Sequence[Record]) -> list[bytes]:
    """Their values, sorted: between partitions there is no order."""
    return sorted(record.value for record in records)


def _poll_and_hang(log_factory: LogFactory, group: str, topic: str, count: int, ready: Connection) -> None:
    """A process that reads, does not commit, and waits to be killed."""
    log = log_factory()
    reader = log.join(group, [topic])
    poll_records(reader, count)
    ready.send("polled")
    threading.Event().wait()


class LogContract:
    """The tests. ``partitions`` is what topics are made with; set it in the subclass."""

    partitions = 1

    @pytest.fixture
    def log(self, log_factory: LogFactory) -> Iterator[Log]:
        """One log, open for the test."""
        log = log_factory()
        yield log
        log.close()

    @pytest.fixture
    def topic(self, log: Log) -> str:
        """A new topic."""
        return self.a_topic(log)

    @pytest.fixture
    def output(self, log: Log) -> str:
        """Another new topic."""
        return self.a_topic(log)

    @pytest.fixture
    def group(self) -> str:
        """A name of a group that nobody used."""
        return f"group-{uuid.uuid4().hex[:12]}"

    def a_topic(self, log: Log, retention_seconds: float | None = None) -> str:
        """A new topic with a name of its own."""
        name = f"test-{uuid.uuid4().hex[:12]}.records"
        log.create([Topic(name, self.partitions, retention_seconds)])
        return name

    def fill(self, log: Log, topic: str, count: int) -> list[bytes]:
        """Append so many records with keys; their values, sorted."""
        messages = [Message(topic, b"value %04d" % i, b"key %d" % (i % 7)) for i in range(count)]
        log.append(messages)
        return sorted(message.value for message in messages)

    def test_create_is_idempotent(self, log: Log, topic: str) -> None:
        """Making a topic that exists changes nothing in it."""
        expected = self.fill(log, topic, 3)
        log.create([Topic(topic, self.partitions)])
        assert values(read_all(log, topic)) == expected

    def test_create_refuses_another_number_of_partitions(self, log: Log, topic: str) -> None:
        """A topic's records cannot be dealt out anew: that is a wrong setting."""
        with pytest.raises(ConfigError, match=topic):
            log.create([Topic(topic, self.partitions + 1)])

    def test_append_to_an_unknown_topic_is_refused_whole(self, log: Log, topic: str) -> None:
        """The error names the topic, and the messages for known topics are not written either."""
        with pytest.raises(ConfigError, match="no-such-topic"):
            log.append([Message(topic, b"good"), Message(f"{topic}.no-such-topic", b"bad")])
        with pytest.raises(ConfigError, match="no such/ü"):
            log.append([Message("no such/ü", b"bad")])
        assert read_all(log, topic) == []

    @pytest.mark.parametrize("key", [None, b"", b"k", b"\0\xff\0"])
    @pytest.mark.parametrize("value", [b"", b"{}", b"\0" * 3, bytes(range(256)) * 800])
    @pytest.mark.parametrize("headers", [(), (("h", b""), ("h", b"\0\xff"), ("trace-é", b"1"))])
    def test_bytes_come_back_as_they_went(
        self, log: Log, topic: str, group: str, key: bytes | None, value: bytes, headers: Headers
    ) -> None:
        """Empty, missing, NUL, not UTF-8, 200 KB, a header twice: as a batch and as records."""
        log.append([Message(topic, value, key, headers)])
        (record,) = read_all(log, topic)
        assert (record.topic, record.key, record.value, record.headers) == (topic, key, value, headers)
        reader = log.join(group, [topic])
        assert poll_records(reader, 1) == [record]

    def test_order_is_kept_per_key(self, log: Log, topic: str, group: str) -> None:
        """Records of one key come in the order of their appends, over many appends and polls, with and without headers."""
        some: list[Headers] = [(), (), (("h", b"1"),), (("h", b"2"),)]
        for start in range(0, 300, 30):
            log.append([Message(topic, b"%d" % i, b"key %d" % (i % 5), some[i % 4]) for i in range(start, start + 30)])
        reader = log.join(group, [topic])
        by_key: dict[bytes | None, list[int]] = defaultdict(list)
        for record in poll_records(reader, 300, limit=17):
            by_key[record.key].append(int(record.value))
        assert by_key == {b"key %d" % k: list(range(k, 300, 5)) for k in range(5)}

    def test_offsets_rise_and_positions_follow_them(self, log: Log, topic: str, group: str) -> None:
        """Within a partition offsets rise, and the batch's positions stand behind its last records."""
        self.fill(log, topic, 40)
        reader = log.join(group, [topic])
        last: dict[tuple[str, int], int] = {}
        seen = 0
        while seen < 40:
            batch = reader.poll(7, 1.0)
            assert len(batch) <= 7
            for record in batch.records():
                place = (record.topic, record.partition)
                assert record.offset > last.get(place, -1)
                last[place] = record.offset
                seen += 1
            for place, offset in last.items():
                assert batch.positions[place] > offset

    def test_a_racing_reader_never_skips_a_record(self, log_factory: LogFactory, log: Log, topic: str, group: str) -> None:
        """While two writers race, a reader gets every record of both, once, each writer's in order."""

        def write(name: bytes) -> None:
            mine = log_factory()
            for i in range(60):
                mine.append([Message(topic, name + b" %d" % (3 * i + j), name) for j in range(3)])
            mine.close()

        writers = [threading.Thread(target=write, args=(name,)) for name in (b"one", b"two")]
        reader = log.join(group, [topic])
        for writer in writers:
            writer.start()
        records = poll_records(reader, 360, limit=10)
        for writer in writers:
            writer.join()
        for name in (b"one", b"two"):
            assert [record.value for record in records if record.key == name] == [name + b" %d" % i for i in range(180)]

    def test_a_full_topic_does_not_starve_another(self, log: Log, topic: str, output: str, group: str) -> None:
        """A record of a second topic comes long before the first topic's backlog is read."""
        self.fill(log, topic, 1000)
        log.append([Message(output, b"urgent")])
        reader = log.join(group, [topic, output])
        seen: list[bytes] = []
        while b"urgent" not in seen:
            seen.extend(reader.poll(10, 1.0).values)
        assert len(seen) <= 500

    def test_commit_publishes_and_advances_together(self, log: Log, topic: str, output: str, group: str) -> None:
        """After a commit the outputs are there, the group stands behind its input, and reading goes on there."""
        expected = self.fill(log, topic, 20)
        other = self.a_topic(log)
        reader = log.join(group, [topic])
        records = poll_records(reader, 20)
        assert read_all(log, output) == []
        reader.commit([Message(output, r.value, r.key) for r in records] + [Message(other, b"done")])
        assert values(read_all(log, output)) == expected
        assert values(read_all(log, other)) == [b"done"]
        assert sum(log.committed(group).values()) == 20
        assert lag(log, group, [topic]) == {topic: 0}
        reader.close()
        log.append([Message(topic, b"later")])
        assert values(poll_records(log.join(group, [topic]), 1)) == [b"later"]

    def test_a_failed_commit_leaves_nothing_and_repeats_its_input(
        self, log: Log, topic: str, output: str, group: str
    ) -> None:
        """Of a commit that raised no output is seen, the position stays, and the reader gets the same records again."""
        expected = self.fill(log, topic, 10)
        reader = log.join(group, [topic])
        assert values(poll_records(reader, 10)) == expected
        with pytest.raises(TidemillError):
            reader.commit([Message(output, b"half"), Message(f"{topic}.no-such-topic", b"bad")])
        assert read_all(log, output) == []
        assert log.committed(group) == {}
        records = poll_records(reader, 10)
        assert values(records) == expected
        reader.commit([Message(output, r.value) for r in records])
        assert values(read_all(log, output)) == expected

    def test_a_commit_without_a_poll_only_publishes(self, log: Log, topic: str, output: str, group: str) -> None:
        """Outputs are written and no position is; with neither nothing happens."""
        self.fill(log, topic, 3)
        reader = log.join(group, [topic])
        reader.commit()
        reader.commit([Message(output, b"alone")])
        assert values(read_all(log, output)) == [b"alone"]
        assert sum(log.committed(group).values()) == 0
        assert len(poll_records(reader, 3)) == 3

    def test_close_without_commit_repeats_the_input(self, log: Log, topic: str, output: str, group: str) -> None:
        """What was polled and not committed is polled again by the next member, and nobody saw an output."""
        expected = self.fill(log, topic, 10)
        reader = log.join(group, [topic])
        assert values(poll_records(reader, 10)) == expected
        reader.close()
        reader.close()
        assert values(poll_records(log.join(group, [topic]), 10)) == expected
        assert read_all(log, output) == []

    def test_a_standby_takes_over_from_a_killed_process(
        self, log_factory: LogFactory, log: Log, topic: str, group: str
    ) -> None:
        """Killed between poll and commit, a member leaves all its records to the next one."""
        expected = self.fill(log, topic, 10)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_poll_and_hang, args=(log_factory, group, topic, 10, theirs))
        process.start()
        try:
            assert ours.poll(PATIENCE_SECONDS)
            assert ours.recv() == "polled"
            standby = log.join(group, [topic])
            if self.partitions == 1:
                assert len(standby.poll(10, 0.2)) == 0
        finally:
            process.kill()
            process.join()
        assert values(poll_records(standby, 10)) == expected

    def test_two_members_get_each_record_once(self, log: Log, topic: str, group: str) -> None:
        """Whoever of a group is given a record, it is given once, also when one leaves."""
        expected = self.fill(log, topic, 100)
        members = [log.join(group, [topic]), log.join(group, [topic])]
        seen: Counter[bytes] = Counter()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while sum(seen.values()) < 100 and time.monotonic() < deadline:
            for member in list(members):
                seen.update(member.poll(10, 0.05).values)
                member.commit()
            if len(members) == 2 and sum(seen.values()) >= 50:
                members.pop(0).close()
        assert seen == Counter(expected)

    def test_groups_are_independent(self, log: Log, topic: str, group: str) -> None:
        """Each group gets every record, and has a position of its own."""
        expected = self.fill(log, topic, 10)
        first, second = log.join(group, [topic]), log.join(f"{group}-2", [topic])
        assert values(poll_records(first, 10)) == expected
        first.commit()
        assert values(poll_records(second, 10)) == expected
        assert log.committed(f"{group}-2") == {}
        assert lag(log, group, [topic]) == {topic: 0}
        assert lag(log, f"{group}-2", [topic]) == {topic: 10}

    def test_seek_gives_the_same_records(self, log: Log, topic: str, group: str) -> None:
        """From the same positions the same records come, as often as one likes; a commit stores where that ended."""
        self.fill(log, topic, 30)
        reader = log.join(group, [topic])
        everything = sorted(poll_records(reader, 30), key=lambda r: (r.partition, r.offset))
        reader.commit()
        for skip in (3, 0):
            start = {(topic, p): first + skip for p, (first, end) in log.bounds(topic).items() if end - first >= skip}
            expected = [r for r in everything if (topic, r.partition) in start and r.offset >= start[topic, r.partition]]
            reader.seek(start)
            found = poll_records(reader, len(expected))
            assert sorted(found, key=lambda r: (r.partition, r.offset)) == expected
        reader.commit()
        assert lag(log, group, [topic]) == {topic: 0}

    def test_seek_before_the_first_poll_holds_when_the_topics_come(self, log: Log, topic: str, group: str) -> None:
        """A sink seeks right after it has joined; the group's own position does not win."""
        expected = self.fill(log, topic, 10)
        first = log.join(group, [topic])
        poll_records(first, 10)
        first.commit()
        first.close()
        second = log.join(group, [topic])
        second.seek({(topic, partition): start for partition, (start, _) in log.bounds(topic).items()})
        assert values(poll_records(second, 10)) == expected

    def test_start_at_the_end_skips_what_stands(self, log: Log, topic: str, group: str) -> None:
        """A new group that starts at the end gets only what comes later; with a position the start does not count."""
        self.fill(log, topic, 10)
        reader = log.join(group, [topic], start="end")
        assert len(poll_until_active(reader)) == 0
        log.append([Message(topic, b"new")])
        assert values(poll_records(reader, 1)) == [b"new"]
        reader.commit()
        reader.close()
        log.append([Message(topic, b"newer")])
        assert values(poll_records(log.join(group, [topic], start="end"), 1)) == [b"newer"]

    def test_poll_waits_for_the_first_record_only(self, log: Log, topic: str, group: str) -> None:
        """Nothing comes: an empty batch after the timeout. One record comes: a batch of one, before it."""
        reader = log.join(group, [topic])
        poll_until_active(reader)
        assert len(reader.poll(10, 0.01)) == 0
        timer = threading.Timer(0.1, log.append, [[Message(topic, b"one")]])
        timer.start()
        assert reader.poll(10, PATIENCE_SECONDS).values == [b"one"]
        timer.join()

    def test_follow_gives_the_topic_and_then_what_comes(self, log: Log, topic: str) -> None:
        """From the start: what stands, an empty list at once, later records, an empty list after each timeout."""
        expected = self.fill(log, topic, 30)
        chunks = log.follow(topic, timeout=0.05)
        records: list[Record] = []
        while chunk := next(chunks):
            records.extend(chunk)
        assert values(records) == expected
        assert next(chunks) == []
        log.append([Message(topic, b"live")])
        chunk = next(chunks)
        while not chunk:
            chunk = next(chunks)
        assert values(chunk) == [b"live"]

    def test_follow_from_the_end_gives_only_what_comes(self, log: Log, topic: str) -> None:
        """The first list is empty and comes without waiting; what was appended after the call follows."""
        self.fill(log, topic, 5)
        chunks = log.follow(topic, start="end", timeout=PATIENCE_SECONDS)
        log.append([Message(topic, b"new")])
        assert next(chunks) == []
        assert values(next(chunks)) == [b"new"]

    def test_follow_of_an_empty_topic_is_empty_at_once(self, log: Log, topic: str) -> None:
        """Nothing stands there, so nothing is waited for."""
        assert next(log.follow(topic, timeout=PATIENCE_SECONDS)) == []

    def test_bounds_count_what_was_appended(self, log: Log, topic: str) -> None:
        """Before the first record and after some, for every partition."""
        assert log.bounds(topic) == dict.fromkeys(range(self.partitions), (0, 0))
        self.fill(log, topic, 12)
        bounds = log.bounds(topic)
        assert sorted(bounds) == list(range(self.partitions))
        assert len(read_all(log, topic)) == 12

    def test_young_records_outlive_retention(self, log: Log, group: str) -> None:
        """A topic with retention keeps what is younger, whether or not it was read."""
        topic = self.a_topic(log, retention_seconds=3600)
        expected = self.fill(log, topic, 10)
        reader = log.join(group, [topic])
        poll_records(reader, 10)
        reader.commit()
        log.append([Message(topic, b"z")])
        assert values(read_all(log, topic)) == sorted([*expected, b"z"])

    def test_what_is_closed_or_dropped_leaves_nothing_open(
        self, log_factory: LogFactory, log: Log, topic: str, output: str, group: str
    ) -> None:
        """At once, not when the collector comes: a reader, one that was dropped, a follower, and the log."""
        self.fill(log, topic, 3)
        log.close()
        gc.collect()
        gc.disable()
        try:
            with nothing_stays_open():
                mine = log_factory()
                readers = [mine.join(name, [topic]) for name in (group, f"{group}-dropped")]
                for reader in readers:
                    poll_records(reader, 3)
                    reader.commit([Message(output, b"x"), Message(output, b"x", headers=(("h", b"x"),))])
                readers[0].close()
                del reader, readers
                mine.join(f"{group}-idle", [topic])
                followed = mine.follow(topic)
                assert len(next(followed)) > 0
                mine.append([Message(topic, b"x")])
                mine.close()
                del followed, mine
        finally:
            gc.enable()

    def test_a_log_that_was_closed_is_as_it_was(self, log_factory: LogFactory, log: Log, topic: str, group: str) -> None:
        """Records and positions are there for who opens it next; closing twice is allowed."""
        expected = self.fill(log, topic, 10)
        reader = log.join(group, [topic])
        poll_records(reader, 10)
        reader.commit()
        log.close()
        log.close()
        again = log_factory()
        assert values(read_all(again, topic)) == expected
        assert lag(again, group, [topic]) == {topic: 0}
        again.close()
