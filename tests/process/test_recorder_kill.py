"""Recorder and monitor killed with SIGKILL at every dangerous place: nothing is lost, nothing is there twice."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from tidemill.lake import Lake, TableName
from tidemill.log.base import Message, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Prediction, Retrain, Topics, to_bytes

TOPICS = Topics.of("demo")
REQUESTS, EVERY, BAD = 240, 25, 30

CHILD = """
import sys, threading, time
from pathlib import Path
from tidemill import settings
from tidemill.clock import SystemClock
from tidemill.core.metrics import metric
from tidemill.core.schema import Feature, Schema
from tidemill.lake import Lake
from tidemill.log.base import lag
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Topics
from tidemill.roles.monitor import Monitor
from tidemill.roles.recorder import Recorder

root, expected, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
topics = Topics.of("demo")
schema = Schema((Feature("age", "number"),), "rich", "binary", ("no", "yes"))
log, stop, clock = SqliteLog(root / "log", "normal"), threading.Event(), SystemClock()
quick = settings.Lake(flush_rows=2, flush_seconds=0.05)  # behind it writes 20
lakes = [Lake(root / "lake", compact_every=8, retention_seconds=1) for _ in range(3)]
recorder = Recorder(log, topics, lakes[0], schema, quick, clock)
monitor = Monitor(
    log, topics, lakes[1], schema, settings.Retrain(every=every), settings.Labels(), metric("log_loss", "binary"), clock
)
threads = [threading.Thread(target=role.run, args=(stop,), daemon=True) for role in (recorder, monitor)]
for thread in threads:
    thread.start()
while all(thread.is_alive() for thread in threads):
    behind = lag(log, "recorder", [topics.requests, topics.predictions, topics.outcomes, topics.dead_letters])
    if not any(behind.values()) and lakes[2].count("observations") == expected:
        break
    time.sleep(0.02)
else:
    sys.exit(9)
stop.set()
for thread in threads:
    thread.join()
"""

POINTS = [
    "lake.checked:1",
    "recorder.polled:1",
    "recorder.appended:1",
    "recorder.committed:1",
    "lake.written:1",
    "recorder.appended:2",
    "recorder.appended:3",
    "recorder.polled:3",
    "monitor.sent:1",
    "monitor.appended:1",
    "recorder.appended:5",
    "lake.written:4",
    "lake.compacted:1",
    "lake.checkpointed:1",
    "monitor.sent:1",
    "lake.checked:6",
    "recorder.committed:4",
    "monitor.appended:1",
    "monitor.sent:2",
    "recorder.appended:7",
]


def fill(log: SqliteLog) -> None:
    log.create(Topic(name) for name in msgspec.structs.astuple(TOPICS))
    for i in range(REQUESTS):
        id = b"r%d" % i
        messages = [
            Message(TOPICS.requests, b'{"age": %d}' % i, id),
            Message(TOPICS.predictions, to_bytes(Prediction(f"r{i}", "yes", 1, "abc", 0, 0, probability=0.5)), id),
            Message(TOPICS.outcomes, b'{"outcome": "yes"}', id),
        ]
        if i < BAD:
            messages.append(Message(TOPICS.outcomes, b'{"outcome": "bad"}', id))
        log.append(messages)


def run(root: Path, point: str) -> tuple[int, str]:
    environment = {**os.environ, "TIDEMILL_FAILPOINT": point}
    arguments = [sys.executable, "-c", CHILD, str(root), str(REQUESTS), str(EVERY)]
    done = subprocess.run(arguments, check=False, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr + done.stdout


def offsets(lake: Lake, table: TableName) -> list[int]:
    return lake.read(lake.scan(table).select("offset"))["offset"].sort().to_list()


@pytest.mark.process
@pytest.mark.slow
def test_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    """Twenty kills, then an undisturbed run: every record is one row, every bad outcome one dead letter, every labelled
    request one observation, every bucket one command.
    """
    log = SqliteLog(tmp_path / "log", "normal")
    fill(log)
    log.close()
    codes = [run(tmp_path, point)[0] for point in POINTS]
    assert set(codes) <= {0, -signal.SIGKILL}
    assert codes.count(-signal.SIGKILL) >= 17, codes
    assert run(tmp_path, "")[0] == 0
    log, lake = SqliteLog(tmp_path / "log", "normal"), Lake(tmp_path / "lake")
    assert offsets(lake, "requests") == list(range(REQUESTS))
    assert offsets(lake, "predictions") == list(range(REQUESTS))
    assert len(offsets(lake, "outcomes")) == len(set(offsets(lake, "outcomes"))) == REQUESTS
    letters = Counter(dict(record.headers)["offset"] for record in read_all(log, TOPICS.dead_letters))
    assert letters == Counter(b"%d" % (2 * i + 1) for i in range(BAD))
    assert offsets(lake, "dead_letters") == list(range(BAD))
    assert sorted(lake.observations()["request_offset"]) == list(range(REQUESTS))
    commands = [msgspec.json.decode(record.value, type=Retrain).id for record in read_all(log, TOPICS.retrain)]
    assert commands == ["first", *(f"labelled-{n}" for n in range(EVERY, REQUESTS + 1, EVERY))]
    log.close()
