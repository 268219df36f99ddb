"""What tests of faults are made of: roles that are kept alive, traffic that never stops, and how long nobody answered.

A ``Crew`` is a supervisor without manners: whatever ends is started again at once, so that a test measures the role and not
a supervisor's patience. ``Traffic`` asks at a fixed rate, whatever happens, and notes when each answer could be read.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
from msgspec import Struct

from tidemill.clock import SystemClock
from tidemill.core.inference import Choices
from tidemill.errors import Unavailable
from tidemill.log.base import Log, Message, Record, Start
from tidemill.log.kafka import KafkaLog
from tidemill.messages import Topics
from tidemill.new_project import init_project
from tidemill.tables import columns_of, read_table

LOOK_SECONDS = 0.01
"""How soon a death is noticed."""
TURN_SECONDS = 0.01
"""What is due is sent together, so often."""
RETRY_SECONDS = 0.2

ADULT = Path(__file__).parents[1] / "datasets" / "adult.parquet"
ROWS = 3000
QUICK = {
    "tune.trials": "1",
    "tune.folds": "2",
    "tune.rounds_max": "20",
    "tune.patience": "5",
    "tracking.tracker": "none",
    "retrain.every": "1000000",
    "lake.flush_seconds": "0.3",
}
"""A first model in seconds, and no second one."""

Tell = Callable[[str, list[float], float], None]
"""Tells measured seconds beside their limit, and fails where they are over it."""

_clock = SystemClock()


def hanging(log: Log, topics: Topics) -> list[str]:
    """Partitions of a project on Kafka whose readers wait for a transaction to end."""
    if not isinstance(log, KafkaLog):
        raise TypeError("only Kafka has transactions that hang")
    names = [getattr(topics, field) for field in topics.__struct_fields__]
    return [f"{topic} {partition}" for topic, partition in log.undecided(names)]


def quick_project(directory: Path, name: str, settings: Mapping[str, str]) -> list[bytes]:
    """Make a small project on UCI Adult in ``directory``; the rows that it does not learn from come back as requests."""
    directory.mkdir(parents=True, exist_ok=True)
    table = read_table(ADULT)
    data = directory / "original.parquet"
    table.head(ROWS).write_parquet(data)
    choices = Choices(target="income_over_50k", ignore=("split", "fnlwgt"))
    schema = init_project(data, directory, choices, name, QUICK | dict(settings)).configuration.schema
    columns = columns_of(table.tail(ROWS), [feature.name for feature in schema.features])
    return [msgspec.json.encode(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def wait_for(condition: Callable[[], object], what: str, seconds: float) -> float:
    """Look again and again until it holds; how long that took. ``TimeoutError`` if it never does."""
    begin = _clock.monotonic()
    while not condition():
        if _clock.monotonic() - begin > seconds:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        _clock.sleep(LOOK_SECONDS)
    return _clock.monotonic() - begin


class End(Struct, frozen=True):
    """How a process ended: its exit code (negative: the signal), and when, on the monotonic clock."""

    name: str
    code: int
    at: float


class Crew:
    """Processes of ``tidemill`` on one project. A member's name is its role, with ``-2`` and so on for further ones.

    What ends is started again at once, until it is told to ``stay_down`` or the crew is closed. ``ends`` has every end.
    """

    def __init__(self, project: Path, outputs: Path) -> None:
        outputs.mkdir(parents=True, exist_ok=True)
        self.ends: list[End] = []
        self._project = project
        self._outputs = outputs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, Sequence[str]] = {}
        self._points: dict[str, deque[str]] = {}
        self._kept: set[str] = set()
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def start(self, *names: str, points: Iterable[str] = (), command: Sequence[str] = ()) -> None:
        """Start members and keep them. Each life is given the next of ``points`` as its failpoint; those after the last have
        none. ``command`` stands for ``python -m tidemill``, in the first life alone.
        """
        for name in names:
            with self._lock:
                self._points[name] = deque(points)
                self._kept.add(name)
                self._launch(name, command)

    def line_up(self, *names: str) -> None:
        """Have exactly these: start those that are missing, end the others in order."""
        self.stop(*(name for name in self._processes if name in self._kept and name not in names))
        self.start(*(name for name in names if name not in self._kept))

    def arm(self, name: str, points: Iterable[str]) -> None:
        """See ``start``: failpoints for a member's next lives."""
        with self._lock:
            self._points[name] = deque(points)

    def pid(self, name: str) -> int:
        """The present process of a member."""
        return self._processes[name].pid

    def signal(self, name: str, number: signal.Signals) -> float:
        """Send it a signal; when that was."""
        with self._lock:
            self._processes[name].send_signal(number)
            return _clock.monotonic()

    def kill(self, *names: str) -> float:
        """SIGKILL to these, together; they are started again if they are kept. When that was."""
        with self._lock:
            for name in names:
                self._processes[name].kill()
            return _clock.monotonic()

    def stay_down(self, *names: str) -> None:
        """What ends from here on is not started again."""
        with self._lock:
            self._kept -= set(names)

    def stop(self, *names: str) -> None:
        """End these in order, for good; after 10 s with a kill."""
        self.stay_down(*names)
        for name in names:
            self._processes[name].terminate()
        for name in names:
            try:
                self._processes[name].wait(10)
            except subprocess.TimeoutExpired:
                self._processes[name].kill()
                self._processes[name].wait()

    def count(self, *names: str) -> int:
        """How often these have ended."""
        return sum(end.name in names for end in list(self.ends))

    def output(self, name: str) -> str:
        """What a member has printed, in all its lives."""
        return (self._outputs / f"{name}.txt").read_text()

    def close(self) -> None:
        """Kill all."""
        self._closed.set()
        self._thread.join()
        for process in self._processes.values():
            process.kill()
            process.wait()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self, name: str, command: Sequence[str] = ()) -> None:
        points = self._points[name]
        variables = os.environ | {"PYTHONUNBUFFERED": "1", "TIDEMILL_FAILPOINT": points.popleft() if points else ""}
        role = name.partition("-")[0]
        arguments = [*(command or (sys.executable, "-m", "tidemill")), role, "--project", str(self._project)]
        with (self._outputs / f"{name}.txt").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                arguments, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def _watch(self) -> None:
        noticed: set[int] = set()
        while not self._closed.wait(LOOK_SECONDS):
            with self._lock:
                for name, process in self._processes.items():
                    code = process.poll()
                    if code is None or process.pid in noticed:
                        continue
                    noticed.add(process.pid)
                    self.ends.append(End(name, code, _clock.monotonic()))
                    if name in self._kept:
                        self._launch(name)


class Traffic:
    """Asks ``rate`` times a second, open loop, and reads the answers as any reader of committed records sees them.

    While the log is away what is due waits and is tried again: what was tried several times may have been asked as often.
    """

    def __init__(self, log: Log, topics: Topics, values: Sequence[bytes], rate: float, prefix: str) -> None:
        self.tried: Counter[str] = Counter()
        self.asked: set[str] = set()
        self.answered: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._log = log
        self._topics = topics
        self._values = values
        self._rate = rate
        self._prefix = prefix
        self._places: set[tuple[int, int]] = set()
        self._sights: dict[int, list[float]] = {partition: [] for partition in log.bounds(topics.predictions)}
        self._stands = threading.Event()
        self._stop = threading.Event()
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(run,), daemon=True) for run in (self._read, self._ask)]

    def outage(self, since: float, partitions: Collection[int] | None = None) -> float:
        """The longest time from ``since`` until now in which a partition had no answer; of these, or of all."""
        now = _clock.monotonic()
        return max(
            self._longest([at for at in list(self._sights[partition]) if at >= since], since, now)
            for partition in (self._sights if partitions is None else partitions)
        )

    def served_since(self, moment: float, partitions: Collection[int] | None = None) -> bool:
        """Whether every partition has had an answer since then."""
        return all(
            bool(sights) and sights[-1] > moment
            for partition, sights in self._sights.items()
            if partitions is None or partition in partitions
        )

    def settle(self, seconds: float) -> None:
        """Stop asking, and return once all that was asked is answered, or the time is up."""
        self._stop.set()
        self._threads[1].join()
        until = _clock.monotonic() + seconds
        while self.lost() and _clock.monotonic() < until:
            _clock.sleep(0.05)

    def lost(self) -> set[str]:
        """What was asked and has no answer yet."""
        return self.asked - self.answered.keys()

    def doubled(self) -> dict[str, int]:
        """What has more answers than it was asked."""
        return {name: count for name, count in self.answered.items() if count > max(1, self.tried[name])}

    def __enter__(self) -> "Traffic":
        self._threads[0].start()
        self._stands.wait(30)
        self._threads[1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._closed.set()
        for thread in self._threads:
            thread.join()

    @staticmethod
    def _longest(sights: Sequence[float], since: float, now: float) -> float:
        moments = [since, *sights, now]
        return max(after - before for before, after in pairwise(moments))

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            self.failure = error
            raise

    def _ask(self) -> None:
        begin, sent = _clock.monotonic(), 0
        while not self._stop.wait(TURN_SECONDS):
            due = int((_clock.monotonic() - begin) * self._rate) - sent
            if due > 0 and self._sent({f"{self._prefix}-{number}": number for number in range(sent, sent + due)}):
                sent += due

    def _sent(self, names: Mapping[str, int]) -> bool:
        self.tried.update(names.keys())
        try:
            self._log.append(
                [
                    Message(self._topics.requests, self._values[number % len(self._values)], name.encode())
                    for name, number in names.items()
                ]
            )
        except Unavailable:
            self._stop.wait(RETRY_SECONDS)
            return False
        self.asked.update(names)
        return True

    def _read(self) -> None:
        start: Start = "end"
        while not self._closed.is_set():
            try:
                for records in self._log.follow(self._topics.predictions, start, 0.1):
                    self._take(records)
                    self._stands.set()
                    if self._closed.is_set():
                        return
            except Unavailable:
                start = "beginning"
                self._closed.wait(RETRY_SECONDS)

    def _take(self, records: Sequence[Record]) -> None:
        now = _clock.monotonic()
        for record in records:
            name, place = (record.key or b"").decode(), (record.partition, record.offset)
            if name.startswith(f"{self._prefix}-") and place not in self._places:
                self._places.add(place)
                self.answered[name] += 1
                self._sights[record.partition].append(now)
