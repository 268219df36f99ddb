"""What keeps a role from its work is said at once, and again once a minute."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from tidemill.errors import Unavailable
from tidemill.log.base import Log, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Event, Topics
from tidemill.roles.pauses import Pauses
from tidemill.testing.clock import ManualClock
from tidemill.testing.full_disk import files_at_most

TOPICS = Topics.of("adult")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    found = SqliteLog(tmp_path / "log")
    found.create([Topic(TOPICS.events)])
    yield found
    found.close()


def test_the_same_reason_is_said_once_a_minute(log: Log) -> None:
    """Another one at once; in the role's own log and in the project's."""
    clock = ManualClock()
    pauses = Pauses("recorder", "recording_paused", log, TOPICS, clock)
    with capture_logs() as lines:
        for second in range(130):
            pauses.tell(Unavailable("the disk is full" if second != 10 else "the lake is read-only"))
            clock.advance(1)
    said = ["the disk is full", "the lake is read-only", *["the disk is full"] * 2]
    assert [line["error"] for line in lines] == said
    assert {line["event"] for line in lines} == {"recording_paused"}
    events = [msgspec.json.decode(record.value, type=Event) for record in read_all(log, TOPICS.events)]
    assert [(event.name, event.role, event.values["error"]) for event in events] == [
        ("recording_paused", "recorder", reason) for reason in said
    ]


def test_where_the_log_is_what_is_away_it_is_said_all_the_same(log: Log) -> None:
    """By the role's own log."""
    with capture_logs() as lines, files_at_most(0):
        Pauses("recorder", "recording_paused", log, TOPICS, ManualClock()).tell(Unavailable("the disk is full"))
    assert [line["error"] for line in lines] == ["the disk is full"]
    assert read_all(log, TOPICS.events) == []
