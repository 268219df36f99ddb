"""The recorder over a real log and a real lake."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest

from tidemill import settings
from tidemill.clock import SystemClock
from tidemill.core.schema import Feature, Schema
from tidemill.errors import Broken
from tidemill.lake import Lake, TableName
from tidemill.log.base import Batch, Message, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Event, Prediction, Topics, to_bytes
from tidemill.roles import recorder
from tidemill.roles.recorder import Recorder, _by_topic

TOPICS = Topics.of("demo")
SCHEMA = Schema((Feature("age", "number"),), "rich", "binary", ("no", "yes"))
QUICK = settings.Lake(flush_rows=7, flush_seconds=0.05)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    log = SqliteLog(tmp_path / "log", "normal")
    log.create(Topic(name) for name in msgspec.structs.astuple(TOPICS))
    yield log
    log.close()


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    lake = Lake(tmp_path / "lake")
    yield lake
    lake.close()


@contextmanager
def running(log: SqliteLog, lake: Lake) -> Iterator[threading.Event]:
    """A recorder in a thread; what it raises is raised at the end."""
    stop, raised = threading.Event(), []

    def run() -> None:
        try:
            Recorder(log, TOPICS, lake, SCHEMA, QUICK, SystemClock()).run(stop)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(20)
        lake.close()
    if raised:
        raise raised[0]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def record_everything(log: SqliteLog, lake: Lake) -> None:
    with running(log, lake):
        until(lambda: behind_of(log) == [0, 0, 0, 0])


def behind_of(log: SqliteLog) -> list[int]:
    committed = log.committed("recorder")
    return [
        log.bounds(topic)[0][1] - committed.get((topic, 0), 0)
        for topic in (TOPICS.requests, TOPICS.predictions, TOPICS.outcomes, TOPICS.dead_letters)
    ]


def send(log: SqliteLog, count: int, start: int = 0) -> None:
    for i in range(start, start + count):
        id = b"r%d" % i
        answer = Prediction(f"r{i}", "yes", 3, "abc", 1, 2, probability=0.75)
        log.append(
            [
                Message(TOPICS.requests, b'{"age": %d}' % i, id, (("time", b"%d" % i),)),
                Message(TOPICS.predictions, to_bytes(answer), id),
                Message(TOPICS.outcomes, b'{"outcome": "yes", "time": 5}', id),
            ]
        )


def offsets(lake: Lake, table: TableName) -> list[int]:
    return lake.read(lake.scan(table).select("offset"))["offset"].sort().to_list()


def test_every_record_becomes_one_row_with_its_bytes(log: SqliteLog, lake: Lake) -> None:
    """Requests, predictions and outcomes stand in their tables once, as they came; a restart adds nothing."""
    send(log, 20)
    record_everything(log, lake)
    record_everything(log, lake)
    for table in ("requests", "predictions", "outcomes"):
        assert offsets(lake, table) == list(range(20))
    request = lake.read(lake.scan("requests")).sort("offset").row(4, named=True)
    assert (request["request_id"], request["event_at"], request["value"]) == ("r4", 4, b'{"age": 4}')
    prediction = lake.read(lake.scan("predictions")).sort("offset").row(4, named=True)
    assert (prediction["request_id"], prediction["version"], prediction["bundle"]) == ("r4", 3, "abc")
    assert msgspec.json.decode(prediction["value"], type=Prediction).probability == 0.75
    outcome = lake.read(lake.scan("outcomes")).sort("offset").row(4, named=True)
    assert (outcome["request_id"], outcome["outcome"], outcome["outcome_at"]) == ("r4", '"yes"', 5)


def test_an_outcome_that_cannot_be_used_becomes_one_dead_letter(log: SqliteLog, lake: Lake) -> None:
    """It keeps its bytes, key and place, names the reason, and the dead letter is itself recorded."""
    send(log, 3)
    log.append([Message(TOPICS.outcomes, b'{"outcome": "perhaps"}', b"r0"), Message(TOPICS.outcomes, b'{"outcome": "no"}')])
    send(log, 3, start=3)
    record_everything(log, lake)
    record_everything(log, lake)
    letters = read_all(log, TOPICS.dead_letters)
    assert [(dict(one.headers)["offset"], dict(one.headers)["reason"]) for one in letters] == [
        (b"3", b"unknown_class"),
        (b"4", b"missing_id"),
    ]
    assert (letters[0].key, letters[0].value, dict(letters[0].headers)["role"]) == (
        b"r0",
        b'{"outcome": "perhaps"}',
        b"recorder",
    )
    assert offsets(lake, "outcomes") == [0, 1, 2, 5, 6, 7]
    rows = lake.read(lake.scan("dead_letters")).sort("offset")
    assert rows["source_offset"].to_list() == [3, 4]
    assert rows["topic"].to_list() == [TOPICS.outcomes] * 2
    assert rows["key"].to_list() == [b"r0", None]


def test_only_bad_outcomes_still_move_the_position(log: SqliteLog, lake: Lake) -> None:
    """A table whose records were all bad has no rows, but stands behind them."""
    log.append([Message(TOPICS.outcomes, b"nonsense", b"r0")] * 3)
    record_everything(log, lake)
    assert lake.count("outcomes") == 0
    assert lake.position("outcomes", f"recorder:{TOPICS.outcomes}:0") == 3


def test_a_request_that_cannot_be_answered_is_still_a_fact(log: SqliteLog, lake: Lake) -> None:
    """Its id is its place where the key is none, its event time the log's where the header is none."""
    log.append([Message(TOPICS.requests, b"not json", b"\xff", (("time", b"yesterday"),))])
    record_everything(log, lake)
    row = lake.read(lake.scan("requests")).row(0, named=True)
    assert row["request_id"] == f"{TOPICS.requests}-0-0"
    assert row["event_at"] == row["time_ms"]
    assert row["value"] == b"not json"
    assert read_all(log, TOPICS.dead_letters) == []


def test_cloud_events_are_recorded_under_the_ids_that_they_name(log: SqliteLog, lake: Lake) -> None:
    """Of a request its own id and time, of an outcome its subject and time; a request with a bad id under its place."""
    event = (("ce_id", b"event-1"), ("ce_time", b"2026-01-02T03:04:05Z"))
    told = (("ce_id", b"event-2"), ("ce_time", b"7"))
    log.append(
        [
            Message(TOPICS.requests, b"{}", b"customer-7", event),
            Message(TOPICS.requests, b"{}", b"customer-7", (*event, ("ce_id", b""), ("time", b"9"))),
            Message(TOPICS.outcomes, b'{"outcome": "yes"}', None, (*told, ("ce_subject", b"event-1"))),
            Message(TOPICS.outcomes, b'{"outcome": "no", "time": 8}', b"event-1", told),
            Message(TOPICS.outcomes, b'{"outcome": "no"}', None, told),
            Message(TOPICS.outcomes, b'{"outcome": "perhaps"}', None, (*told, ("ce_subject", b"event-1"))),
        ]
    )
    record_everything(log, lake)
    record_everything(log, lake)
    requests = lake.read(lake.scan("requests")).sort("offset")
    assert requests["request_id"].to_list() == ["event-1", f"{TOPICS.requests}-0-1"]
    assert requests["event_at"].to_list() == [1767323045000, 9]
    outcomes = lake.read(lake.scan("outcomes")).sort("offset")
    assert outcomes.select("request_id", "outcome", "outcome_at").rows() == [("event-1", '"yes"', 7), ("event-1", '"no"', 8)]
    letters = [dict(letter.headers) for letter in read_all(log, TOPICS.dead_letters)]
    assert [(said["offset"], said["reason"], said["request_id"]) for said in letters] == [
        (b"2", b"missing_id", b""),
        (b"3", b"unknown_class", b"event-1"),
    ]
    assert all(said["ce_id"] == b"event-2" for said in letters)


def test_a_dead_letter_is_recorded_as_its_role_wrote_it(log: SqliteLog, lake: Lake) -> None:
    """Headers of the bad record that bear the names of ours change nothing."""
    names = ("topic", "partition", "offset", "role", "reason", "field", "detail", "request_id")
    log.append([Message(TOPICS.outcomes, b"{}", b"r0", tuple((name, b"77") for name in names))])
    record_everything(log, lake)
    row = lake.read(lake.scan("dead_letters")).row(0, named=True)
    assert (row["topic"], row["source_partition"], row["source_offset"]) == (TOPICS.outcomes, 0, 0)
    assert (row["role"], row["reason"], row["field"]) == ("recorder", "missing_outcome", "outcome")


def test_a_deleted_lake_is_rebuilt_without_new_dead_letters(log: SqliteLog, lake: Lake, tmp_path: Path) -> None:
    """The log is the truth: the same rows come again, what was said about bad ones is not said twice."""
    send(log, 10)
    log.append([Message(TOPICS.outcomes, b"nonsense", b"r0")])
    record_everything(log, lake)
    tables: tuple[TableName, ...] = ("requests", "outcomes", "dead_letters")
    before = {table: lake.read(lake.scan(table)).sort("offset") for table in tables}
    shutil.rmtree(tmp_path / "lake")
    send(log, 1, start=10)
    lake = Lake(tmp_path / "lake")
    with running(log, lake):
        until(lambda: lake_counts(tmp_path) == (11, 11, 11, 1))
        until(lambda: behind_of(log) == [0, 0, 0, 0])
    for table, frame in before.items():
        assert lake.read(lake.scan(table)).sort("offset").head(frame.height).equals(frame)
    assert len(read_all(log, TOPICS.dead_letters)) == 1


def lake_counts(tmp_path: Path) -> tuple[int, ...]:
    lake = Lake(tmp_path / "lake")
    return tuple(lake.count(table) for table in ("requests", "predictions", "outcomes", "dead_letters"))


def test_a_lake_that_was_put_back_catches_up(log: SqliteLog, lake: Lake, tmp_path: Path) -> None:
    """A copy from before is behind the group: the reader goes back to where the copy stands."""
    send(log, 10)
    record_everything(log, lake)
    shutil.copytree(tmp_path / "lake", tmp_path / "copy")
    send(log, 10, start=10)
    record_everything(log, lake)
    shutil.rmtree(tmp_path / "lake")
    shutil.move(tmp_path / "copy", tmp_path / "lake")
    with running(log, Lake(tmp_path / "lake")):
        until(lambda: lake_counts(tmp_path) == (20, 20, 20, 0))
    assert offsets(Lake(tmp_path / "lake"), "requests") == list(range(20))


def test_a_lake_of_another_log_is_refused(log: SqliteLog, lake: Lake, tmp_path: Path) -> None:
    """A lake that is ahead of the log's end would silently swallow what comes."""
    send(log, 10)
    record_everything(log, lake)
    other = SqliteLog(tmp_path / "other", "normal")
    other.create(Topic(name) for name in msgspec.structs.astuple(TOPICS))
    with pytest.raises(Broken, match="do not belong together"):
        Recorder(other, TOPICS, lake, SCHEMA, QUICK, SystemClock()).run(threading.Event())
    other.close()


def test_a_second_recorder_waits_and_takes_over(log: SqliteLog, lake: Lake, tmp_path: Path) -> None:
    """There is one writer; the standby goes on exactly where the first one stopped."""
    first = ExitStack()
    first.enter_context(running(log, lake))
    send(log, 5)
    until(lambda: behind_of(log) == [0, 0, 0, 0])
    with running(log, Lake(tmp_path / "lake")):
        send(log, 5, start=5)
        until(lambda: behind_of(log) == [0, 0, 0, 0])
        first.close()
        send(log, 5, start=10)
        until(lambda: behind_of(log) == [0, 0, 0, 0])
    assert offsets(lake, "outcomes") == list(range(15))


def test_whoever_is_behind_writes_more_at_a_time(log: SqliteLog, lake: Lake) -> None:
    """Ten times as much, and what is left at the end; nobody waits for a full one."""
    send(log, 100)
    record_everything(log, lake)
    assert lake.version("outcomes") <= 100 * 3 // (10 * QUICK.flush_rows) + 2
    for table in ("requests", "predictions", "outcomes"):
        assert offsets(lake, table) == list(range(100))
    send(log, 1, start=100)
    record_everything(log, lake)
    assert offsets(lake, "outcomes") == list(range(101))


def test_large_records_are_written_sooner(log: SqliteLog, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held back while behind is bounded in bytes too."""
    monkeypatch.setattr(recorder, "BEHIND_BYTES", 1)
    send(log, 100)
    record_everything(log, lake)
    assert lake.version("outcomes") >= 100 * 3 // (2 * QUICK.flush_rows)
    assert offsets(lake, "outcomes") == list(range(100))


def test_bad_ones_among_many_change_nothing_for_the_others(log: SqliteLog, lake: Lake) -> None:
    """Of every topic, with and without keys and headers, in one batch."""
    answer = to_bytes(Prediction("r0", "yes", 3, "abc", 1, 2, probability=0.75))
    log.append(
        [
            *(Message(TOPICS.requests, b"{}", key) for key in (b"a", b"", b"\xff", b"n\0l", b"x" * 513, None, "ä".encode())),
            Message(TOPICS.requests, b"{}", b"told", (("time", b"5"),)),
            *(Message(TOPICS.predictions, value, b"r0") for value in (answer, b"{}", answer, b"[" * 2000, b"", answer)),
            *(Message(TOPICS.outcomes, b'{"rich": "no"}', key) for key in (b"a", None, b"\xff", b"b")),
            *(Message(TOPICS.outcomes, value, b"c") for value in (b'{"rich": 3}', b'{"rich": "no", "time": 9}', b"")),
            Message(TOPICS.dead_letters, b"theirs", None, (("partition", b"-1"), ("detail", b"\xff"))),
        ]
    )
    record_everything(log, lake)
    requests = lake.read(lake.scan("requests")).sort("offset")
    places = [f"{TOPICS.requests}-0-{offset}" for offset in range(7)]
    assert requests["request_id"].to_list() == ["a", *places[1:6], "ä", "told"]
    assert requests["event_at"][7] == 5
    assert offsets(lake, "predictions") == [0, 2, 5]
    outcomes = lake.read(lake.scan("outcomes")).sort("offset").select("request_id", "offset", "outcome", "outcome_at")
    assert outcomes.rows() == [("a", 0, '"no"', None), ("b", 3, '"no"', None), ("c", 5, '"no"', 9)]
    letters = {
        (dict(one.headers)["topic"], int(dict(one.headers)["offset"])) for one in read_all(log, TOPICS.dead_letters)[1:]
    }
    assert letters == {
        *((TOPICS.predictions.encode(), offset) for offset in (1, 3, 4)),
        *((TOPICS.outcomes.encode(), offset) for offset in (1, 2, 4, 6)),
    }
    assert lake.count("dead_letters") == 8


def test_a_batch_is_taken_by_topic_however_they_alternate() -> None:
    """Each part has its topic's records in their order."""
    for topics in ("aab", "abab", "aaa", "abca", "bbaacc"):
        numbers = list(range(len(topics)))
        keys = [b"%d" % number for number in numbers]
        batch = Batch(list(topics), numbers, numbers, numbers, list(keys), list(keys), [()] * len(topics), {})
        parts = list(_by_topic(batch))
        assert [part.topics[0] for part in parts] == list(dict.fromkeys(topics))
        for part in parts:
            mine = [number for number in numbers if topics[number] == part.topics[0]]
            assert part.topics == [topics[number] for number in mine]
            assert part.partitions == part.offsets == part.times_ms == mine
            assert part.keys == part.values == [keys[number] for number in mine]


def test_a_lake_that_is_away_is_told_to_the_project_and_waited_for(log: SqliteLog, tmp_path: Path) -> None:
    """A file in the folder's place: an event says so, and once it is gone what waited is recorded."""
    place = tmp_path / "lakes"
    place.touch()
    send(log, 1)
    with running(log, Lake(place / "lake")):
        until(lambda: bool(read_all(log, TOPICS.events)))
        place.unlink()
        until(lambda: behind_of(log) == [0, 0, 0, 0])
    assert offsets(Lake(place / "lake"), "requests") == [0]
    (event,) = [msgspec.json.decode(record.value, type=Event) for record in read_all(log, TOPICS.events)]
    assert (event.name, event.role) == ("recording_paused", "recorder")
    assert "lakes" in event.values["error"]
