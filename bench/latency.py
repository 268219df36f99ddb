"""Latency at a fixed offered rate, open loop: from when a request was due to when its answer was seen.

All roles run as ``tidemill run`` starts them. Quiet first, then while the trainer works, then around the swap.
"""

import threading
import time
from collections.abc import Callable

import numpy as np
from msgspec import Struct

from bench.stage import end_of, requests, running, wait_for
from tidemill.demo.watch import Follower, Watch
from tidemill.log.base import Message, lag
from tidemill.messages import Retrain, to_bytes
from tidemill.wiring import Wiring


class Latency(Struct, frozen=True):
    """Milliseconds from due to seen, at ``rate`` requests a second."""

    rate: int
    quiet_p50: float
    quiet_p99: float
    training_p50: float
    training_p99: float
    training_seconds: float
    swap_gap_longest: float
    quiet_gap_longest: float


PULSE_SECONDS = 300
"""At the longest: a start of all roles, and a training."""


class Pulse:
    """Sends requests on an absolute schedule and notes when each answer is seen."""

    def __init__(self, wiring: Wiring, rate: int) -> None:
        self._wiring = wiring
        self._rate = rate
        self._messages = requests(wiring, f"pulse-{time.monotonic_ns()}", rate * PULSE_SECONDS)
        self._stop = threading.Event()
        self.due: dict[bytes, float] = {}
        self.seen: dict[bytes, float] = {}
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def __enter__(self) -> "Pulse":
        for thread in reversed(self._threads):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        """Whatever is due goes out in one append, as a client with several callers would send it."""
        begin, sent = time.monotonic() + 0.5, 0
        while sent < len(self._messages) and not self._stop.wait(max(0.0, begin + sent / self._rate - time.monotonic())):
            due = min(len(self._messages), int((time.monotonic() - begin) * self._rate) + 1)
            for number in range(sent, due):
                self.due[self._messages[number].key or b""] = begin + number / self._rate
            self._wiring.log.append(self._messages[sent:due])
            sent = due

    def _receive(self) -> None:
        for records in self._wiring.log.follow(self._wiring.topics.predictions, start="end", timeout=0.05):
            now = time.monotonic()
            self.seen.update((record.key or b"", now) for record in records)
            if self._stop.is_set() and not records:
                return

    def latencies(self, start: float, end: float) -> "np.typing.NDArray[np.float64]":
        """Milliseconds of the requests that were due between two times; one without an answer yet counts until now."""
        now = time.monotonic()
        due = [(key, at) for key, at in list(self.due.items()) if start <= at < end]
        return np.array([self.seen.get(key, now) - at for key, at in due]) * 1000

    def longest_gap(self, start: float, end: float) -> float:
        """The longest time (ms) between two sights of answers."""
        times = np.unique([at for at in list(self.seen.values()) if start <= at < end])
        return float(np.diff(times).max() * 1000)


def measure(wiring: Wiring, rate: int, seconds: float) -> Latency:
    """Start the roles, let them settle, then measure."""
    watch = Watch(wiring.topics)
    follower = Follower(wiring.log, watch, [wiring.topics.journal, wiring.topics.models, wiring.topics.events])

    def seen(condition: Callable[[], bool]) -> float:
        return wait_for(lambda: (follower.step() and condition()) or condition(), pause=0.02)

    before = end_of(wiring, wiring.topics.predictions)
    with running("run", wiring.configuration.root), Pulse(wiring, rate) as pulse:
        wait_for(lambda: end_of(wiring, wiring.topics.predictions) > before)
        wait_for(lambda: _copied(wiring), pause=0.5)  # the other roles start, the first model goes to MLflow
        time.sleep(2.0)
        quiet = time.monotonic()
        time.sleep(seconds)
        training = time.monotonic()
        _ask(wiring)
        trained = seen(lambda: "bench" in watch.finished())
        swapped = seen(watch.swapped)
        time.sleep(1.0)
    return Latency(
        rate=rate,
        quiet_p50=_percentile(pulse, quiet, training, 50),
        quiet_p99=_percentile(pulse, quiet, training, 99),
        training_p50=_percentile(pulse, training, trained, 50),
        training_p99=_percentile(pulse, training, trained, 99),
        training_seconds=trained - training,
        swap_gap_longest=pulse.longest_gap(swapped - 2.0, swapped + 1.0),
        quiet_gap_longest=pulse.longest_gap(quiet, training),
    )


def _copied(wiring: Wiring) -> bool:
    topics = [wiring.topics.trials, wiring.topics.journal, wiring.topics.models]
    return not any(lag(wiring.log, "tracker", topics).values())


def _ask(wiring: Wiring) -> None:
    command = Retrain("bench", "asked", wiring.lake.count("observations"), wiring.clock.now_ms())
    wiring.log.append([Message(wiring.topics.retrain, to_bytes(command), b"bench")])


def _percentile(pulse: Pulse, start: float, end: float, percent: int) -> float:
    return float(np.percentile(pulse.latencies(start, end), percent))
