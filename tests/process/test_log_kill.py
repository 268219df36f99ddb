"""Processes killed at any moment lose nothing in a SQLite log and double nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest

from tidemill.log.base import Message, Reader, Topic, lag, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.log.sqlite_check import check

KILLS = 200
PATIENCE_SECONDS = 240.0

COPIER = """
import os
import sys
from pathlib import Path
from tidemill.log.base import Message
from tidemill.log.sqlite import SqliteLog
log = SqliteLog(Path(sys.argv[1]))
reader = log.join("copiers", ["in"])
parent = os.getppid()
while os.getppid() == parent:
    batch = reader.poll(20, 1.0)
    reader.commit([Message("out", value, key) for value, key in zip(batch.values, batch.keys)])
"""
PRODUCER = """
import sys
from pathlib import Path
from tidemill.log.base import Message, read_all
from tidemill.log.sqlite import SqliteLog
log = SqliteLog(Path(sys.argv[1]))
name = sys.argv[2].encode()
number = sum(record.key == name for record in read_all(log, "in"))
while True:
    log.append([Message("in", name + b" %d" % i, name) for i in range(number, number + 5)])
    number += 5
    if not sys.stdin.readline():
        break
"""
COPIER_DEATHS = ["log.commit.begun:2", "log.commit.written:3", "log.commit.done:2", "", ""]
PRODUCER_DEATHS = ["log.append.written:3", "log.append.done:2", ""]


class Slot:
    """A place that always has a process of one kind; each one dies at the next of some ways to die."""

    def __init__(self, root: Path, script: str, name: str, deaths: list[str], chance: random.Random) -> None:
        self._command = [sys.executable, "-c", script, str(root), name]
        self._deaths: Iterator[str] = cycle(deaths)
        self._chance = chance
        self.start()

    def start(self) -> None:
        """Start a process: it will die at a failpoint, or of a kill at a random time."""
        self.death = next(self._deaths)
        self.killed_at = time.monotonic() + (30.0 if self.death else self._chance.uniform(0.1, 0.5))
        environment = os.environ | {"TIDEMILL_FAILPOINT": self.death}
        self.process = subprocess.Popen(self._command, bufsize=0, env=environment, stdin=subprocess.PIPE)

    def pace(self) -> None:
        """Let a producer append once more."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(b"\n")

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


@pytest.mark.process
@pytest.mark.slow
def test_two_hundred_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    """Two producers, a copier and two standbys die 200 times: in a commit, around an append, at random times.

    At the end the copy equals the input, record by record, the input has each number of each producer once and in order,
    and the audit finds nothing.
    """
    root, chance = tmp_path / "log", random.Random(1)
    log = SqliteLog(root)
    log.create([Topic("in"), Topic("out")])
    slots = [Slot(root, COPIER, "", COPIER_DEATHS[i:] + COPIER_DEATHS[:i], chance) for i in (0, 1, 3)]
    slots += [Slot(root, PRODUCER, name, PRODUCER_DEATHS, chance) for name in ("one", "two")]
    deaths: Counter[str] = Counter()
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while deaths.total() < KILLS:
            assert time.monotonic() < deadline, f"only {deaths} in time"
            for slot in slots:
                slot.pace()
                if time.monotonic() >= slot.killed_at:
                    slot.process.kill()
                    slot.process.wait()
                if slot.process.poll() is not None:
                    assert slot.process.returncode == -signal.SIGKILL
                    deaths[slot.death] += 1
                    slot.kill()
                    slot.start()
            time.sleep(0.005)
    finally:
        for slot in slots:
            slot.kill()
    assert set(deaths) == {*COPIER_DEATHS, *PRODUCER_DEATHS}
    reader = log.join("copiers", ["in"])
    _copy_the_rest(log, reader)
    produced = read_all(log, "in")
    assert [(r.key, r.value) for r in read_all(log, "out")] == [(r.key, r.value) for r in produced]
    for name in (b"one", b"two"):
        numbers = [int(r.value.split()[1]) for r in produced if r.key == name]
        assert numbers == list(range(len(numbers)))
        assert numbers
    assert check(root).problems == []
    log.close()


def _copy_the_rest(log: SqliteLog, reader: Reader) -> None:
    while lag(log, "copiers", ["in"])["in"]:
        batch = reader.poll(1000, 1.0)
        reader.commit([Message("out", value, key) for value, key in zip(batch.values, batch.keys, strict=True)])
