"""Recorder, monitor and join: rows a second, CPU seconds and memory, each in a process of its own.

Memory is what a process needs beyond what it had before it began: ``anonymous_mb`` cannot be given back by the kernel, the
rest of ``peak_mb`` are pages of files.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from msgspec import Struct

from bench.stage import append, requests
from tidemill import settings
from tidemill.clock import SystemClock
from tidemill.core.metrics import metric
from tidemill.core.schema import Feature, Schema
from tidemill.demo.plans import ADULT, set_stage
from tidemill.lake import COLUMNS, Lake, TableName
from tidemill.log.base import Message, Topic, lag
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Prediction, Topics, to_bytes
from tidemill.roles.monitor import Monitor
from tidemill.wiring import Wiring

EVERY = 10_000
LABELLED = 11
"""Of so many requests one waits for its outcome, until the end of its stretch of history."""
BLOCK = 110_000
STEP = 10_000
"""Outcomes of a step, of requests anywhere in the history."""
SCHEMA = Schema((Feature("age", "number"),), "rich", "binary", ("no", "yes"))


class Spent(Struct, frozen=True):
    """What a process did: ``rows`` are records, observations (monitor) or outcomes."""

    rows: int
    rows_a_second: float
    cpu_us_a_row: float
    seconds: float
    cpu_seconds: float
    peak_mb: float
    anonymous_mb: float


def measure(backlog: int, histories: list[int]) -> dict[str, Spent]:
    """All of it, one after the other."""
    found: dict[str, Spent] = {}
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
        project = Path(folder) / "project"
        set_stage(ADULT, project, messages=16_000, every=EVERY, trials=1)
        _fill(project, backlog)
        found["recorder, requests and predictions"] = _child("recorder", project, 2 * backlog)
        _label(project, backlog)
        found["recorder, outcomes"] = _child("recorder", project, backlog)
        found["monitor"] = _child("monitor", project, backlog)
        if histories:
            found |= dict(_children("join", Path(folder) / "join", *histories))
            found |= dict(_children("compaction", Path(folder) / "join", histories[-1]))
            found |= dict(_children("restart", Path(folder) / "join", histories[-1]))
    return found


# -- in this process: what the children find


def _fill(project: Path, backlog: int) -> None:
    wiring = Wiring(project)
    asked = requests(wiring, "lake", backlog)
    answer = Prediction("", ">50K", 1, "0" * 64, 1_700_000_000_000, 1_700_000_000_001, probability=0.123)
    answers = [msgspec.structs.replace(answer, request_id=(message.key or b"").decode()) for message in asked]
    append(wiring, asked)
    append(wiring, [Message(wiring.topics.predictions, to_bytes(one), one.request_id.encode()) for one in answers])
    wiring.close()


def _label(project: Path, backlog: int) -> None:
    wiring = Wiring(project)
    label = wiring.configuration.schema.classes[1]
    value = msgspec.json.encode({"outcome": label})
    append(wiring, [Message(wiring.topics.outcomes, value, f"lake-{number}".encode()) for number in range(backlog)])
    wiring.close()


def _children(part: str, folder: Path, *numbers: int) -> list[tuple[str, Spent]]:
    """Run a part in a process of its own, which prints a line of JSON for each result."""
    argv = [sys.executable, "-m", "bench.lake", part, str(folder), *map(str, numbers)]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE)
    return [msgspec.json.decode(line, type=tuple[str, Spent]) for line in done.stdout.splitlines() if line.startswith(b"[")]


def _child(part: str, folder: Path, rows: int) -> Spent:
    return _children(part, folder, rows)[0][1]


# -- in a process of its own


class _Meter:
    """What this process has spent since the meter was made; the peak is the process's."""

    def __init__(self) -> None:
        self._before = _memory()
        self._started, self._cpu = time.monotonic(), time.process_time()

    def spent(self, rows: int) -> Spent:
        seconds, cpu, memory = time.monotonic() - self._started, time.process_time() - self._cpu, _memory()
        peak, anonymous = memory["VmHWM"] - self._before["VmRSS"], memory["RssAnon"] - self._before["RssAnon"]
        return Spent(rows, rows / seconds, cpu / rows * 1e6, seconds, cpu, peak / 1000, anonymous / 1000)


def _memory() -> dict[str, float]:
    """Kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: float(line.split()[1]) for line in lines if line.startswith(("VmHWM", "VmRSS", "RssAnon"))}


def _run(role: Callable[[threading.Event], None], ended: Callable[[], bool], rows: int) -> Spent:
    stop, meter = threading.Event(), _Meter()
    watch = threading.Thread(target=_stop_at, args=(ended, stop), daemon=True)
    watch.start()
    role(stop)
    return meter.spent(rows)


def _stop_at(ended: Callable[[], bool], stop: threading.Event) -> None:
    while not ended():
        time.sleep(0.05)
    stop.set()


def _recorder(project: Path, rows: int) -> Iterator[tuple[str, Spent]]:
    wiring = Wiring(project)
    topics = [wiring.topics.requests, wiring.topics.predictions, wiring.topics.outcomes]
    wiring.lake.version("requests")
    yield (
        "recorder",
        _run(
            lambda stop: wiring.run_role("recorder", stop),
            lambda: not any(lag(wiring.log, "recorder", topics).values()),
            rows,
        ),
    )


def _monitor(project: Path, rows: int) -> Iterator[tuple[str, Spent]]:
    wiring = Wiring(project)
    watched = Lake(wiring.configuration.lake)
    yield "monitor", _run(lambda stop: wiring.run_role("monitor", stop), lambda: watched.count("observations") >= rows, rows)


class _History:
    """A lake that grows at 40,000 requests a second of its own time, and a monitor over it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "lake"
        self.lake = Lake(self._folder)
        self.log = SqliteLog(folder / "log", "normal")
        self.topics = Topics.of("join")
        self.log.create(Topic(name) for name in msgspec.structs.astuple(self.topics))
        self.monitor = self.begin()
        self.asked = 0
        self._outcomes = 0
        self._waiting: list[np.ndarray] = []
        self._value = b'{"age": 39, "text": "' + b"x" * 340 + b'"}'

    def begin(self) -> Monitor:
        """A monitor that takes up where the lake stands."""
        every, wait, measure = settings.Retrain(every=1_000_000_000), settings.Labels(), metric("log_loss", "binary")
        self._observations = Lake(self._folder)
        monitor = Monitor(self.log, self.topics, self._observations, SCHEMA, every, wait, measure, SystemClock())
        monitor.start()
        return monitor

    def close(self) -> None:
        """Let others write."""
        self.lake.close()
        self._observations.close()

    def grow(self) -> Spent:
        """A block of requests and predictions, then the outcomes of all of it but those that wait: what these took."""
        numbers = np.arange(self.asked, self.asked + BLOCK)
        self.asked += BLOCK
        frame = _placed(numbers, numbers)
        self._append("requests", frame.with_columns(event_at="time_ms", value=pl.lit(self._value)))
        answer = to_bytes(Prediction("?", "yes", 1, "abc", 0, 0, probability=0.75)).decode().split("?")
        value = pl.concat_str(pl.lit(answer[0]), "request_id", pl.lit(answer[1])).cast(pl.Binary)
        self._append("predictions", frame.with_columns(version=pl.lit(1), bundle=pl.lit("abc"), value=value))
        self.join()
        waiting = numbers % LABELLED == 0
        self._waiting.append(numbers[waiting])
        self.label(np.random.default_rng(1).permutation(numbers[~waiting]))
        meter = _Meter()
        self.join()
        return meter.spent(int((~waiting).sum()))

    def step(self) -> np.ndarray:
        """Requests that wait, from anywhere in the history; they wait no longer."""
        waiting = np.random.default_rng(2).permutation(np.concatenate(self._waiting))
        self._waiting = [waiting[STEP:]]
        return waiting[:STEP]

    def label(self, numbers: np.ndarray) -> None:
        """Append their outcomes."""
        offsets = np.arange(self._outcomes, self._outcomes + len(numbers))
        self._outcomes += len(numbers)
        outcomes = _placed(numbers, offsets).with_columns(time_ms=pl.lit(self.asked // 40))
        self._append("outcomes", outcomes.with_columns(outcome=pl.lit('"yes"'), outcome_at=None))

    def join(self) -> None:
        """Let the monitor come to the end."""
        while self.monitor.turn():
            pass

    def _append(self, name: TableName, frame: pl.DataFrame) -> None:
        end = int(frame["offset"][-1]) + 1
        columns = [pl.col(column).cast(kind) for column, kind in COLUMNS[name].items()]
        self.lake.append(name, frame.select(columns), {f"recorder:{getattr(self.topics, name)}:0": end})
        self.lake.maintain(name)


def _placed(numbers: np.ndarray, offsets: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"number": numbers, "offset": offsets}).select(
        request_id=pl.format("request-{}", "number"), partition=0, offset="offset", time_ms=pl.col("number") // 40
    )


def _join(folder: Path, *histories: int) -> Iterator[tuple[str, Spent]]:
    history, before = _History(folder), _memory()
    for goal in histories:
        blocks = [history.grow()]
        while history.asked * (LABELLED - 1) < goal * LABELLED:
            blocks.append(history.grow())
        yield f"outcomes of new requests, up to {goal:,}", _since(before, _sum(blocks))
        history.label(history.step())
        meter = _Meter()
        history.join()
        yield f"outcomes of any requests, {goal:,} before", _since(before, meter.spent(STEP))
    history.close()


def _sum(blocks: list[Spent]) -> Spent:
    rows = sum(block.rows for block in blocks)
    seconds, cpu = sum(block.seconds for block in blocks), sum(block.cpu_seconds for block in blocks)
    return msgspec.structs.replace(
        blocks[-1], rows=rows, rows_a_second=rows / seconds, cpu_us_a_row=cpu / rows * 1e6, seconds=seconds, cpu_seconds=cpu
    )


def _since(before: dict[str, float], spent: Spent) -> Spent:
    """With the memory that is needed beyond an earlier moment's."""
    now = _memory()
    peak, anonymous = now["VmHWM"] - before["VmRSS"], now["RssAnon"] - before["RssAnon"]
    return msgspec.structs.replace(spent, peak_mb=peak / 1000, anonymous_mb=anonymous / 1000)


def _compaction(folder: Path, rows: int) -> Iterator[tuple[str, Spent]]:
    lake = Lake(folder / "lake", compact_every=1)
    lake.append("requests", pl.DataFrame(schema=COLUMNS["requests"]), {"bench": 1})
    meter = _Meter()
    lake.maintain("requests")
    yield f"compaction of requests, {rows:,} observations", meter.spent(lake.count("requests"))


def _restart(folder: Path, rows: int) -> Iterator[tuple[str, Spent]]:
    meter = _Meter()
    _History(folder)
    yield f"monitor's start, {rows:,} observations", meter.spent(rows)


PARTS: dict[str, Callable[..., Iterator[tuple[str, Spent]]]] = {
    "recorder": _recorder,
    "monitor": _monitor,
    "join": _join,
    "compaction": _compaction,
    "restart": _restart,
}


def main() -> None:
    """One part, in the process that ``measure`` has started for it: ``python -m bench.lake PART FOLDER NUMBER ...``."""
    name, folder, *numbers = sys.argv[1:]
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the imports does not count
    for result in PARTS[name](Path(folder), *map(int, numbers)):
        print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
