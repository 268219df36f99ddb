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
import psutil  # type: ignore[import-untyped]

from tidemill.bundle_files import Card
from tidemill.demo.plans import ADULT, set_stage
from tidemill.log.base import Message
from tidemill.messages import ModelVersion
from tidemill.original import load_original
from tidemill.roles.experiment import fitted, prepare
from tidemill.roles.promotion import announcements, read_slots
from tidemill.tables import columns_of, read_table
from tidemill.wiring import Wiring, learner

TRIALS = 5
SECONDS_MAX = 300.0
TREES, LEAVES = 300, 63
"""Of the model that serves: what somebody gets who tunes for quality, and large enough that scoring is most of the work."""


@contextmanager
def open_stage(brokers: str = "") -> Iterator[Wiring]:
    """The demo's project with a first model, on ``brokers`` or on SQLite; retraining by count is out of reach."""
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
        directory = Path(folder)
        plan = msgspec.structs.replace(ADULT, settings=ADULT.settings | {"tune.workers": "1"})
        set_stage(plan, directory, messages=16_000, every=1_000_000_000, trials=TRIALS, brokers=brokers)
        wiring = Wiring(directory)
        try:
            serve(wiring, write_model(wiring, 1))
            yield wiring
        finally:
            wiring.close()


def write_model(wiring: Wiring, number: int) -> ModelVersion:
    """A bundle of ``TREES`` trees, fitted on the original data with ``number`` as its seed."""
    schema, tune = wiring.configuration.schema, wiring.settings.tune
    prepared = prepare(schema, load_original(wiring.configuration.data, schema), tune, seed=number)
    parameters = {"num_leaves": LEAVES, "learning_rate": 0.1, "bagging_fraction": 0.9}
    model = learner(tune.learner).fit(prepared.samples, parameters, TREES, seed=number, threads=1)
    found = fitted(model, prepared)
    now = wiring.clock.now_ms()
    card = Card(
        learner=tune.learner,
        metric="log_loss",
        score=None,
        parameters=parameters,
        rounds=TREES,
        seed=number,
        data_version=0,
        rows=found.rows,
        training_set=found.digest,
        experiment="bench",
        version=number,
        created_at=now,
    )
    bundle = wiring.store.write(found.model, found.encoder, card, found.golden)
    return ModelVersion(number, bundle, bundle, schema.digest(), "challenger", 0, "bench", now, 0)


def champion(wiring: Wiring) -> str:
    """The bundle that serves."""
    found = read_slots(wiring.log, wiring.topics).champion
    if found is None:
        raise LookupError("no model")
    return found.bundle


def serve(wiring: Wiring, version: ModelVersion) -> None:
    """Make it the champion."""
    moves = read_slots(wiring.log, wiring.topics).promote(version, wiring.clock.now_ms())
    wiring.log.append(announcements(wiring.topics, moves))


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


def append(wiring: Wiring, messages: list[Message]) -> None:
    """Some thousands at a time."""
    for first in range(0, len(messages), 5000):
        wiring.log.append(messages[first : first + 5000])


def cpu_seconds(pid: int) -> float:
    """Of a process, all its threads, and its children that have ended."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system + used.children_user + used.children_system)


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
