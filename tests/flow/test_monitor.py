"""The monitor over a real lake: what is joined, counted, measured and asked for, and that a restart changes nothing."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from tidemill import settings
from tidemill.clock import SystemClock
from tidemill.core.metrics import metric
from tidemill.core.schema import Feature, Schema
from tidemill.errors import TidemillError, Unavailable
from tidemill.lake import COLUMNS, Lake, TableName
from tidemill.log.base import Message, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Event, JournalEntry, ModelVersion, Prediction, Retrain, Topics, to_bytes
from tidemill.roles import monitor
from tidemill.roles.monitor import Monitor
from tidemill.roles.reading import read_messages
from tidemill.testing.clock import ManualClock
from tidemill.testing.open_files import open_files

TOPICS = Topics.of("demo")
SCHEMA = Schema((Feature("age", "number"),), "rich", "binary", ("no", "yes"))
HOUR = 3_600_000
START = 1_700_000_000_000


class World:
    """A lake that a recorder fills, a log, and a monitor that may be started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = SqliteLog(folder / "log", "normal")
        self.log.create(Topic(name) for name in msgspec.structs.astuple(TOPICS))
        self.lake = Lake(folder / "lake")
        self.clock = ManualClock(START)
        self.next = {"requests": 0, "predictions": 0, "outcomes": 0}
        self.rows: dict[TableName, list[Any]] = {"requests": [], "predictions": [], "outcomes": []}
        self.monitor: Any = None
        self.monitor_lake = Lake(folder / "lake")

    def _add(self, table: TableName, id: str, *rest: Any) -> None:
        self.rows[table].append((id, 0, self.next[table], self.clock.now_ms(), *rest))
        self.next[table] += 1

    def request(self, *ids: str) -> None:
        for id in ids:
            self._add("requests", id, self.clock.now_ms(), b'{"age": 1}')

    def predict(self, *ids: str, version: int = 1, probability: float = 0.75) -> None:
        for id in ids:
            answer = Prediction(id, "yes", version, "abc", 0, 0, probability=probability)
            self._add("predictions", id, version, "abc", to_bytes(answer))

    def outcome(self, *ids: str, label: str = "yes") -> None:
        for id in ids:
            self._add("outcomes", id, msgspec.json.encode(label).decode(), None)

    def labelled(self, *ids: str) -> None:
        self.request(*ids)
        self.predict(*ids)
        self.outcome(*ids)

    def start(self, every: int = 10, wait_hours: float = 1.0) -> None:
        if self.monitor:
            self.monitor.close()
            self.monitor_lake.close()
        self.monitor_lake = Lake(self.folder / "lake")
        self.monitor = Monitor(
            self.log,
            TOPICS,
            self.monitor_lake,
            SCHEMA,
            settings.Retrain(every=every),
            settings.Labels(wait_hours=wait_hours),
            metric("log_loss", "binary"),
            self.clock,
        )
        self.monitor.start()

    def turn(self) -> None:
        for table, rows in self.rows.items():
            if rows:
                frame = pl.DataFrame(rows, schema=COLUMNS[table], orient="row")
                self.lake.append(table, frame, {f"recorder:{getattr(TOPICS, table)}:0": self.next[table]})
                rows.clear()
        while self.monitor.turn():
            pass

    def observed(self) -> list[str]:
        return self.lake.observations()["request_id"].to_list()

    def commands(self) -> list[Any]:
        found = [msgspec.json.decode(record.value, type=Retrain) for record in read_all(self.log, TOPICS.retrain)]
        return [(one.id, one.data_version) for one in found if one.id != "first"]

    def events(self, name: str) -> list[dict[str, Any]]:
        self.clock.advance(2)
        self.monitor.report()
        found = [msgspec.json.decode(record.value, type=Event) for record in read_all(self.log, TOPICS.events)]
        return [one.values for one in found if one.name == name]


def join_files(folder: Path) -> int:
    return sum("(deleted)" in name for name in open_files(folder))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    if world.monitor:
        world.monitor.close()
    world.monitor_lake.close()
    world.lake.close()
    world.log.close()


def test_outcomes_late_early_twice_conflicting_and_never(world: World) -> None:
    """One observation an id, with the first label; the rest is counted."""
    world.start()
    world.outcome("early")
    world.request("early", "twice", "conflicting", "late", "never", "unanswered")
    world.predict("early", "twice", "conflicting", "late", "never")
    world.outcome("twice", "twice", "unanswered")
    world.outcome("conflicting", label="no")
    world.outcome("conflicting", label="yes")
    world.request("twice")
    world.turn()
    world.clock.advance(1.5 * 3600)
    world.outcome("late")
    world.turn()
    rows = world.lake.observations()
    assert dict(zip(rows["request_id"], rows["outcome"], strict=True)) == {
        "early": '"yes"',
        "twice": '"yes"',
        "conflicting": '"no"',
    }
    counted = world.events("observations_joined")[-1]
    assert counted == {
        "observations": 3,
        "waiting_requests": 3,
        "early_outcomes": 1,
        "duplicate_requests": 1,
        "duplicate_predictions": 0,
        "duplicate_outcomes": 1,
        "conflicting_outcomes": 1,
        "late_outcomes": 1,
    }


def test_an_observation_carries_its_request_and_its_answer(world: World) -> None:
    """Features and place of the request, label and time of the outcome, version and scores of the prediction."""
    world.start()
    world.request("a")
    world.predict("a", version=4, probability=0.25)
    world.clock.advance(60)
    world.outcome("a", label="no")
    world.turn()
    assert world.lake.observations().row(0, named=True) == {
        "number": 0,
        "request_id": "a",
        "request_partition": 0,
        "request_offset": 0,
        "features": b'{"age": 1}',
        "outcome": '"no"',
        "event_at": START,
        "requested_at": START,
        "outcome_at": START + 60_000,
        "version": 4,
        "bundle": "abc",
        "scores": [0.25],
    }


def test_only_labelled_requests_count_towards_a_retraining(world: World) -> None:
    """Requests and answers alone never ask for one, whatever their number."""
    world.start(every=10)
    ids = [f"r{i}" for i in range(50)]
    world.request(*ids)
    world.predict(*ids)
    world.outcome(*ids[:9])
    world.outcome(*ids[:9])
    world.turn()
    assert world.commands() == []
    world.outcome(ids[9])
    world.turn()
    assert world.commands() == [("labelled-10", 10)]


def test_each_bucket_gets_its_command_even_where_many_fill_at_once(world: World) -> None:
    """Commits end at bucket ends, so the observations of a command are exactly those before it."""
    world.start(every=10)
    world.labelled(*(f"r{i}" for i in range(37)))
    world.turn()
    assert world.commands() == [("labelled-10", 10), ("labelled-20", 20), ("labelled-30", 30)]
    assert world.observed() == [f"r{i}" for i in range(37)]
    assert world.lake.version("observations") == 4


def test_a_stop_between_two_buckets_of_one_read_loses_nothing(world: World) -> None:
    """The log goes away after the first bucket's commit: its command and the rows behind it come with the next start."""
    world.start(every=10)
    world.labelled(*(f"r{i}" for i in range(37)))
    world.log.close()
    with pytest.raises(TidemillError):
        world.turn()
    assert len(world.observed()) == 10
    world.log = SqliteLog(world.folder / "log", "normal")
    world.start(every=10)
    world.turn()
    assert world.observed() == [f"r{i}" for i in range(37)]
    assert world.commands() == [("labelled-10", 10), ("labelled-20", 20), ("labelled-30", 30)]


def test_a_restart_in_mid_bucket_keeps_the_exact_set(world: World) -> None:
    """Nothing is observed twice, nothing is lost, no command is repeated or skipped, wherever it stops."""
    made = []
    for i in range(25):
        world.start(every=10)
        world.labelled(f"r{i}")
        world.request(f"waits{i}")
        world.predict(f"waits{i}")
        if i >= 3:
            world.outcome(f"waits{i - 3}")
            made.append(f"waits{i - 3}")
        made.append(f"r{i}")
        world.turn()
    assert sorted(world.observed()) == sorted(made)
    assert world.commands() == [(f"labelled-{n}", n) for n in range(10, len(made) + 1, 10)]


def test_the_state_after_a_restart_is_the_same(world: World) -> None:
    """Counters, what waits and the measured quality, though nothing but the tables is kept."""
    world.start(wait_hours=2.0)
    world.outcome("early", "orphan")
    for hour in range(9):
        world.clock.advance(3600)
        world.labelled(f"a{hour}")
        world.request(f"w{hour}", f"a{hour}")
        world.predict(f"w{hour}")
        if hour >= 3:
            world.outcome(f"w{hour - 3}", f"a{hour}")
        world.turn()
    joined, measured = world.events("observations_joined")[-1], world.events("quality_measured")[-1]
    assert joined["late_outcomes"] == 6
    world.start(wait_hours=2.0)
    world.turn()
    after = world.events("observations_joined")[-1]
    assert {k: v for k, v in after.items() if k not in ("waiting_requests", "early_outcomes")} == {
        k: v for k, v in joined.items() if k not in ("waiting_requests", "early_outcomes")
    }
    assert world.events("quality_measured")[-1] == measured
    world.outcome("w8", "w7", "a8")
    world.turn()
    assert world.observed()[-2:] == ["w8", "w7"]
    assert len(set(world.observed())) == len(world.observed())


def test_a_command_that_was_not_sent_is_sent_at_the_next_start(world: World, tmp_path: Path) -> None:
    """Here the topic is new, as if the process had died between the observations' commit and the command; once is enough."""
    world.start(every=10)
    world.labelled(*(f"r{i}" for i in range(12)))
    world.turn()
    world.log.close()
    world.log = SqliteLog(tmp_path / "new-log", "normal")
    world.log.create(Topic(name) for name in msgspec.structs.astuple(TOPICS))
    world.start(every=10)
    world.start(every=10)
    assert world.commands() == [("labelled-10", 10)]


def test_the_first_model_is_asked_for_once(world: World) -> None:
    """At the first start, not again at the next."""
    world.start()
    world.start()
    assert [msgspec.json.decode(record.value, type=Retrain).id for record in read_all(world.log, TOPICS.retrain)] == [
        "first"
    ]


def test_a_first_model_that_failed_is_asked_for_again_by_the_next_process(world: World) -> None:
    """Whoever started it may have mended what was wrong; the same process does not, nor one that finds it asked for."""

    def asked() -> list[str]:
        return [command.id for command in read_messages(world.log, TOPICS.retrain, Retrain)]

    def fail(id: str) -> None:
        entry = JournalEntry(id, "experiment", "first", "failed", 0, id, detail="too little data")
        world.log.append([Message(TOPICS.journal, to_bytes(entry), id.encode())])

    world.start()
    fail("first")
    world.monitor.start()
    assert asked() == ["first"]
    world.start()
    world.start()
    assert asked() == ["first", "first-2"]
    fail("first-2")
    world.start()
    assert asked() == ["first", "first-2", "first-3"]
    version = ModelVersion(1, "v1", "abc", "s", "champion", 0, "first-3", 0, 1)
    world.log.append([Message(TOPICS.models, to_bytes(version), b"champion")])
    world.start()
    assert asked() == ["first", "first-2", "first-3"]


def test_what_others_wrote_into_the_topics_is_passed_over(world: World) -> None:
    """Junk in ``retrain``, ``models`` and ``journal``: the commands that are due are sent, each once."""
    for topic in (TOPICS.retrain, TOPICS.models, TOPICS.journal):
        world.log.append([Message(topic, junk, b"champion") for junk in (b"\xff garbage", b"{}", b"")])
    world.start(every=10)
    world.labelled(*(f"r{i}" for i in range(12)))
    world.turn()
    world.start(every=10)
    assert [command.id for command in read_messages(world.log, TOPICS.retrain, Retrain)] == ["first", "labelled-10"]


def test_no_first_model_is_asked_for_where_one_serves(world: World) -> None:
    """A champion in the models topic is enough."""
    version = ModelVersion(1, "v1", "abc", "s", "champion", 0, "x", 0, 1)
    world.log.append([Message(TOPICS.models, to_bytes(version), b"champion")])
    world.start()
    assert read_all(world.log, TOPICS.retrain) == []


def test_quality_is_measured_for_each_version_and_said_when_it_changes(world: World) -> None:
    """The metric over the newest observations of the version."""
    world.start()
    world.labelled("a", "b")
    world.request("c")
    world.predict("c", version=2, probability=0.5)
    world.outcome("c", label="no")
    world.turn()
    first, second = world.events("quality_measured")
    assert first == {"version": 1, "metric": "log_loss", "score": pytest.approx(0.2876820724517809), "rows": 2}
    assert second == {"version": 2, "metric": "log_loss", "score": pytest.approx(0.6931471805599453), "rows": 1}
    assert len(world.events("quality_measured")) == 2
    world.request("d")
    world.predict("d", version=2, probability=0.5)
    world.outcome("d")
    world.turn()
    assert [one["version"] for one in world.events("quality_measured")] == [1, 2, 2]


def test_answers_to_another_task_are_observed_but_not_measured(world: World) -> None:
    """A row is a label all the same."""
    world.start()
    world.request("a")
    world._add("predictions", "a", 1, "abc", to_bytes(Prediction("a", 3.0, 1, "abc", 0, 0, value=3.0)))
    world.outcome("a")
    world.turn()
    assert world.lake.observations()["scores"].to_list() == [[]]
    assert world.events("quality_measured") == []


def test_memory_follows_what_can_still_be_joined(world: World) -> None:
    """Requests that never get an outcome are forgotten after the wait, ids after two."""
    world.start(wait_hours=1.0)
    for hour in range(30):
        world.clock.advance(3600)
        world.request(f"never{hour}")
        world.predict(f"never{hour}")
        world.outcome(f"orphan{hour}")
        world.turn()
    joiner = world.monitor._joiner
    assert joiner.waiting_requests < 6
    assert joiner.early_outcomes < 6
    assert len(joiner._openings) < 8


def test_outcomes_of_a_backlog_wait_for_their_requests_unread(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are fewer outcomes than requests, they are not read ahead of them and kept in memory."""
    monkeypatch.setattr(monitor, "CHUNK_ROWS", 10)
    world.start()
    for number in range(300):
        world.clock.advance(1)
        world.request(f"r{number}")
        world.predict(f"r{number}")
        if number % 10 == 9:
            world.outcome(f"r{number}")
    early = []
    turn = world.monitor.turn

    def watched() -> bool:
        early.append(world.monitor._joiner.early_outcomes)
        return bool(turn())

    world.monitor.turn = watched
    world.turn()
    assert max(early) <= 10
    assert len(world.observed()) == 30


def test_a_request_that_is_repeated_for_long_is_the_same_after_a_restart(world: World) -> None:
    """A repetition within two waits is none of its own, though the first is more than three waits ago: no outcome is late
    for it.
    """
    world.start(wait_hours=10.0)
    world.request("a")
    world.clock.advance(19.5 * 3600)
    world.request("a")
    world.clock.advance(12.5 * 3600)
    world.labelled("other")
    world.turn()
    world.start(wait_hours=10.0)
    world.outcome("a")
    world.turn()
    counted = world.events("observations_joined")[-1]
    assert (counted["late_outcomes"], counted["duplicate_requests"]) == (0, 1)


def test_a_full_disk_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The join's files are made anew, nothing is observed twice, and the old ones take no room."""
    world.start()
    world.labelled("a", "b")
    world.turn()
    held = join_files(world.folder)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", refuse)
        world.labelled("c")
        with pytest.raises(Unavailable, match="No space left"):
            world.turn()
    for _ in range(3):
        world.monitor.start()
    world.turn()
    assert world.observed() == ["a", "b", "c"]
    assert join_files(world.folder) == held > 0
    world.monitor.close()
    assert join_files(world.folder) == 0


def test_a_second_monitor_waits_and_takes_over(world: World) -> None:
    """One writes; the standby observes what comes after it has gone."""
    world.start()
    world.labelled("a")
    world.turn()
    lake = Lake(world.folder / "lake")
    second = Monitor(
        world.log,
        TOPICS,
        lake,
        SCHEMA,
        settings.Retrain(),
        settings.Labels(),
        metric("log_loss", "binary"),
        SystemClock(),
    )
    stop = threading.Event()
    thread = threading.Thread(target=second.run, args=(stop,))
    thread.start()
    world.labelled("b")
    world.turn()
    assert world.observed() == ["a", "b"]
    world.monitor_lake.close()
    world.rows["requests"].clear()
    world.labelled("c")
    world.monitor.turn = lambda: False
    world.turn()
    end = time.monotonic() + 20
    while len(world.observed()) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    stop.set()
    thread.join(20)
    lake.close()
    assert world.observed() == ["a", "b", "c"]
