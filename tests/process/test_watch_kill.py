"""The watch in a monitor of its own, on a real Kafka broker, killed with SIGKILL wherever a look may break off."""

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidemill.log.base import Message, read_all
from tidemill.messages import Event, Retrain
from tidemill.roles.looks import read_looks
from tidemill.roles.reading import read_messages
from tidemill.testing.faults import Crew, quick_project, wait_for
from tidemill.wiring import Wiring

pytestmark = [pytest.mark.kafka, pytest.mark.process, pytest.mark.slow]

WINDOW, USUAL, SHIFTED = 300, 3, 3
POINTS = ("watch.appended", "lake.written", "watch.appended:2", "lake.checked")
"""The third is the first look at what has shifted."""


@pytest.fixture
def project(tmp_path: Path, bootstrap: str) -> Iterator[tuple[Wiring, list[bytes]]]:
    """With its first model."""
    watched = {"drift.window_rows": str(WINDOW), "retrain.drift": "auto", "retrain.drop": "off"}
    folder = tmp_path / "watched"
    values = quick_project(folder, f"watched-{uuid.uuid4().hex[:8]}", {"stream.url": f"kafka://{bootstrap}"} | watched)
    train = [sys.executable, "-m", "tidemill", "train", "--project", str(folder)]
    subprocess.run(train, check=True, capture_output=True)
    wiring = Wiring(folder)
    yield wiring, values
    wiring.close()


def older(value: bytes) -> bytes:
    """The same person, forty years later."""
    row: dict[str, Any] = json.loads(value)
    return json.dumps({**row, "age": row["age"] + 40}).encode()


def test_killed_anywhere_it_looks_once_at_each_request(project: tuple[Wiring, list[bytes]], tmp_path: Path) -> None:
    """Four kills while usual requests come, and then others: each request is in one look, an alarm is raised once, and its
    command is sent once.
    """
    wiring, values = project
    log, topics = wiring.log, wiring.topics

    def looks() -> int:
        return sum(one.tally.rows for one in read_looks(wiring.lake)[0].values())

    with Crew(wiring.configuration.root, tmp_path / "outputs") as crew:
        crew.start("predictor", "recorder")
        crew.start("monitor", points=POINTS)
        for number in range(USUAL + SHIFTED):
            some = values[number * WINDOW : (number + 1) * WINDOW]
            some = some if number < USUAL else list(map(older, some))
            log.append([Message(topics.requests, value, f"{number}-{i}".encode()) for i, value in enumerate(some)])
            wait_for(lambda want=(number + 1) * WINDOW: looks() == want, f"look {number}", 60)  # type: ignore[misc]
        wait_for(lambda: crew.count("monitor") >= len(POINTS), "every kill", 30)
        wait_for(lambda: len(_values(wiring, "window_compared")) >= USUAL + SHIFTED, "every look's event", 30)
        crew.stop("monitor", "recorder", "predictor")
        assert [end.code for end in crew.ends if end.name == "monitor"][: len(POINTS)] == [-signal.SIGKILL] * len(POINTS)
    found = list(read_looks(wiring.lake)[0].values())
    assert [one.number for one in found] == list(range(USUAL + SHIFTED))
    assert {one.tally.rows for one in found} == {WINDOW}
    assert {one["window"] for one in _values(wiring, "window_compared")} == set(range(USUAL + SHIFTED))
    raised = _values(wiring, "alarm_raised")
    assert len({one["alarm"] for one in raised}) == 1
    assert raised[0]["findings"][0]["name"] == "age"
    commands = [one.id for one in read_messages(log, topics.retrain, Retrain) if one.reason == "drift"]
    assert commands == [one.command.id for one in found if one.command]
    assert len(commands) == 1
    assert len(read_all(log, topics.predictions)) == WINDOW * (USUAL + SHIFTED)


def _values(wiring: Wiring, name: str) -> list[dict[str, Any]]:
    return [one.values for one in read_messages(wiring.log, wiring.topics.events, Event) if one.name == name]
