"""A project on UCI Adult in a temporary folder, with a first model, and its requests as the app would send them."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tidemill.demo.plans import ADULT, set_stage
from tidemill.log.base import Message
from tidemill.tables import columns_of, read_table
from tidemill.wiring import Wiring

TRIALS = 5
SECONDS_MAX = 300.0


@contextmanager
def open_stage(brokers: str = "") -> Iterator[Wiring]:
    """The demo's project with its first model trained, on ``brokers`` or on SQLite; retraining by count is out of reach."""
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
        directory = Path(folder)
        plan = msgspec.structs.replace(ADULT, settings=ADULT.settings | {"tune.workers": "1"})
        set_stage(plan, directory, messages=16_000, every=1_000_000_000, trials=TRIALS, brokers=brokers)
        command("train", directory)
        wiring = Wiring(directory)
        try:
            yield wiring
        finally:
            wiring.close()


def command(name: str, directory: Path) -> None:
    """Run a command of the project to its end."""
    subprocess.run(
        [sys.executable, "-m", "tidemill", name, "--project", str(directory)], check=True, stdout=subprocess.DEVNULL
    )


@contextmanager
def running(name: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command of the project, ended afterwards."""
    argv = [sys.executable, "-m", "tidemill", name, "--project", str(directory)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def requests(wiring: Wiring, prefix: str, count: int) -> list[Message]:
    """``count`` requests: rows of Adult's test file, over and over, each with an id of its own."""
    frame = read_table(wiring.configuration.root / "adult.parquet")
    columns = columns_of(frame, [feature.name for feature in wiring.configuration.schema.features])
    rows = zip(*columns.values(), strict=True)
    values = [msgspec.json.encode(dict(zip(columns, row, strict=True))) for row in rows]
    return [
        Message(wiring.topics.requests, values[number % len(values)], f"{prefix}-{number}".encode())
        for number in range(count)
    ]


def wait_for(condition: Callable[[], bool], pause: float = 0.005) -> float:
    """The time (monotonic seconds) at which the condition was first seen to hold."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the benchmark stands still")
        time.sleep(pause)
    return time.monotonic()


def end_of(wiring: Wiring, topic: str) -> int:
    """How many records a topic has had."""
    return sum(end for _, end in wiring.log.bounds(topic).values())
