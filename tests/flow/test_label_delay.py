"""Recorder and monitor together over a log whose clock is moved by hand: labels that take their time."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidemill import settings
from tidemill.clock import SystemClock
from tidemill.core.metrics import metric
from tidemill.core.schema import Feature, Schema
from tidemill.lake import Lake
from tidemill.log.base import Message, Topic, lag, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Event, Prediction, Retrain, Topics, to_bytes
from tidemill.roles.monitor import Monitor
from tidemill.roles.recorder import Recorder
from tidemill.testing.clock import ManualClock

TOPICS = Topics.of("demo")
SCHEMA = Schema((Feature("age", "number"),), "rich", "binary", ("no", "yes"))
RECORDED = [TOPICS.requests, TOPICS.predictions, TOPICS.outcomes, TOPICS.dead_letters]


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.log = SqliteLog(folder / "log", "normal", clock=self.clock)
        self.log.create(Topic(name) for name in msgspec.structs.astuple(TOPICS))

    def ask(self, *ids: str) -> None:
        for id in ids:
            self.log.append([Message(TOPICS.requests, b'{"age": 1}', id.encode())])
            answer = Prediction(id, "yes", 1, "abc", 0, 0, probability=0.5)
            self.log.append([Message(TOPICS.predictions, to_bytes(answer), id.encode())])

    def label(self, *ids: str) -> None:
        for id in ids:
            self.log.append([Message(TOPICS.outcomes, b'{"outcome": "no"}', id.encode())])

    @contextmanager
    def running(self) -> Iterator[None]:
        """Both roles; leaving waits until everything that was sent is recorded and joined."""
        stop, lakes = threading.Event(), [Lake(self.folder / "lake") for _ in range(3)]
        quick = settings.Lake(flush_rows=5, flush_seconds=0.02)
        recorder = Recorder(self.log, TOPICS, lakes[0], SCHEMA, quick, SystemClock())
        every, wait = settings.Retrain(every=4), settings.Labels(wait_hours=24.0)
        monitor = Monitor(self.log, TOPICS, lakes[1], SCHEMA, every, wait, metric("", "binary"), SystemClock())
        threads = [threading.Thread(target=role.run, args=(stop,)) for role in (recorder, monitor)]
        for thread in threads:
            thread.start()
        try:
            yield
            self.settle()
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
            for lake in lakes:
                lake.close()

    def settle(self) -> None:
        end = time.monotonic() + 30
        while any(lag(self.log, "recorder", RECORDED).values()):
            assert time.monotonic() < end, "the recorder does not come to the end"
            time.sleep(0.01)

    def observed(self) -> list[str]:
        return self.lake().observations()["request_id"].to_list()

    def lake(self) -> Lake:
        return Lake(self.folder / "lake")

    def commands(self) -> list[Any]:
        return [msgspec.json.decode(record.value, type=Retrain).id for record in read_all(self.log, TOPICS.retrain)]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.log.close()


def test_labels_that_come_after_restarts_still_count(project: Project) -> None:
    """Requests of one life of the processes, outcomes of another, each observed once; the commands follow the labels."""
    with project.running():
        project.ask(*(f"r{i}" for i in range(10)))
        project.label("r0", "r1")
    assert project.observed() == ["r0", "r1"]
    assert project.commands() == ["first"]
    project.clock.advance(3600 * 5)
    with project.running():
        project.label("r2", "r0")
    assert project.observed() == ["r0", "r1", "r2"]
    with project.running():
        project.label("r3", "r4")
    with project.running():
        project.label("r5", "r6", "r7", "r8")
    assert project.observed() == [f"r{i}" for i in range(9)]
    assert project.commands() == ["first", "labelled-4", "labelled-8"]


def test_a_label_that_comes_too_late_is_only_counted(project: Project) -> None:
    """By the log's times, not by when anybody reads them."""
    with project.running():
        project.ask("old")
        project.clock.advance(3600 * 23)
        project.ask("new")
    project.clock.advance(3600 * 2)
    project.label("old", "new")
    with project.running():
        pass
    assert project.observed() == ["new"]
    events = [msgspec.json.decode(record.value, type=Event) for record in read_all(project.log, TOPICS.events)]
    joined = [event.values for event in events if event.name == "observations_joined"]
    assert max(values["late_outcomes"] for values in joined) == 1


def test_labels_wait_for_requests_that_were_held_up(project: Project) -> None:
    """An outcome that the log has before its request is joined once the request is there."""
    with project.running():
        project.label("a", "b")
    project.clock.advance(60)
    with project.running():
        project.ask("b", "a")
    assert sorted(project.observed()) == ["a", "b"]


def test_a_rebuilt_lake_observes_the_same_set(project: Project) -> None:
    """Without the lake the log tells it all again."""
    with project.running():
        project.ask(*"abcdef")
        project.label(*"fedbb")
    before = set(project.observed())
    shutil.rmtree(project.folder / "lake")
    with project.running():
        project.label("c")
    assert set(project.observed()) == before | {"c"}
    assert project.commands() == ["first", "labelled-4"]
