"""Recorder and monitor in a real process, with more waiting for them than they hold in memory."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import polars as pl
import pytest

from tidemill.lake import Lake, TableName
from tidemill.log.base import Message, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Prediction, Retrain, Topics, to_bytes

TOPICS = Topics.of("demo")
EVERY = 5_000
VALUE = b'{"age": 1, "text": "' + b"x" * 350 + b'"}'

CHILD = """
import sys, threading, time
from pathlib import Path
from tidemill import settings
from tidemill.clock import SystemClock
from tidemill.core.metrics import metric
from tidemill.core.schema import Feature, Schema
from tidemill.lake import Lake
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Topics
from tidemill.roles.monitor import Monitor
from tidemill.roles.recorder import Recorder

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000

root, every, expected = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
topics, clock, stop = Topics.of("demo"), SystemClock(), threading.Event()
schema = Schema((Feature("age", "number"),), "rich", "binary", ("no", "yes"))
log, lakes = SqliteLog(root / "log", "normal"), [Lake(root / "lake") for _ in range(3)]
recorder = Recorder(log, topics, lakes[0], schema, settings.Lake(flush_rows=500), clock)
monitor = Monitor(
    log, topics, lakes[1], schema, settings.Retrain(every=every), settings.Labels(), metric("log_loss", "binary"), clock
)
before = memory("VmRSS")
threads = [threading.Thread(target=role.run, args=(stop,), daemon=True) for role in (recorder, monitor)]
for thread in threads:
    thread.start()
while all(thread.is_alive() for thread in threads) and lakes[2].count("observations") < expected:
    time.sleep(0.02)
stop.set()
for thread in threads:
    thread.join()
print(memory("VmHWM") - before)
"""


def add(root: Path, start: int, end: int) -> None:
    log = SqliteLog(root / "log", "normal")
    log.create(Topic(name) for name in msgspec.structs.astuple(TOPICS))
    for first in range(start, end, 2000):
        ids = [f"r{number}" for number in range(first, min(first + 2000, end))]
        answers = [Prediction(id, "yes", 1, "abc", 0, 0, probability=0.5) for id in ids]
        log.append([Message(TOPICS.requests, VALUE, id.encode()) for id in ids])
        log.append([Message(TOPICS.predictions, to_bytes(answer), answer.request_id.encode()) for answer in answers])
        log.append([Message(TOPICS.outcomes, b'{"outcome": "yes"}', id.encode()) for id in ids])
    log.close()


def begin(root: Path, expected: int) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", CHILD, str(root), str(EVERY), str(expected)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def peak_mb(root: Path, expected: int) -> float:
    process = begin(root, expected)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return float(output.splitlines()[-1])


def check(root: Path, requests: int) -> None:
    """Every record is one row, every request one observation, every bucket one command."""
    log, lake = SqliteLog(root / "log", "normal"), Lake(root / "lake")
    tables: tuple[TableName, ...] = ("requests", "predictions", "outcomes")
    for table in tables:
        assert (
            lake.read(lake.scan(table).select("offset"))["offset"]
            .sort()
            .equals(pl.int_range(requests, eager=True, dtype=pl.Int64), check_names=False)
        )
    observed = lake.observations()
    assert observed["request_id"].n_unique() == observed.height == requests
    assert observed["features"].unique().to_list() == [VALUE]
    commands = [msgspec.json.decode(record.value, type=Retrain).id for record in read_all(log, TOPICS.retrain)]
    assert commands == ["first", *(f"labelled-{number}" for number in range(EVERY, requests + 1, EVERY))]
    log.close()


@pytest.mark.process
@pytest.mark.slow
def test_memory_does_not_follow_the_backlog(tmp_path: Path) -> None:
    """Six times as much that waits, some 100 MB of records more, needs hardly more memory."""
    peaks = []
    for requests in (20_000, 120_000):
        root = tmp_path / str(requests)
        add(root, 0, requests)
        peaks.append(peak_mb(root, requests))
        check(root, requests)
    print(f"peak of {peaks[0]:.0f} and {peaks[1]:.0f} MB")
    assert peaks[1] < peaks[0] + 120


@pytest.mark.process
@pytest.mark.slow
def test_a_killed_one_catches_up(tmp_path: Path) -> None:
    """Killed three times with a backlog that grows meanwhile: in the end everything is there once."""
    end = 0
    for part in range(1, 4):
        add(tmp_path, end, 20_000 * part)
        end = 20_000 * part
        process = begin(tmp_path, 1_000_000)
        until(partial(has_observed, tmp_path, end - 10_000))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    peak_mb(tmp_path, end)
    check(tmp_path, end)


def has_observed(root: Path, goal: int) -> bool:
    return Lake(root / "lake").count("observations") >= goal


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.01)
