"""Plays a stream through a project's own roles, step by step, on the stream's time.

A step ends where a decision could fall: at the outcome that completes a bucket of ``retrain.every``, at the request that
completes a look of the watch, else after so many events or so much time. Then all is let through: every request is answered,
everything is recorded and joined, the monitor decides, and a command is served. The next step begins when the new version
answers, so that each request is answered by the newest version that could be made of the outcomes known before it. Or, where
a training is to take its time of the stream, when that is over: until then the old version answers, and commands wait.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import msgspec
import numpy as np
from msgspec import Struct

from tidemill.backtest.scratch import Scratch
from tidemill.backtest.stream import HOUR_MS, Stream
from tidemill.core.retraining import boundary
from tidemill.errors import Broken
from tidemill.log.base import lag
from tidemill.messages import Event
from tidemill.roles.promotion import read_slots

LOG_MS = 600_000
"""What the log takes together has one time: appends of ten minutes' events. It is the precision of ``labels.wait_hours``."""
LOG_EVENTS = 1000
WAIT_SECONDS = 0.0005


class Pace(Struct, frozen=True):
    """Where a step ends at the latest: after ``events``, before more than ``hours`` have passed, at the outcome that
    completes ``every`` observations, at each request whose number is a multiple of ``looks``; 0 is no limit. A training
    takes ``training_seconds`` of the stream.
    """

    events: int
    hours: float = 0.0
    every: int = 0
    looks: int = 0
    training_seconds: float = 0.0


class Played(Struct, frozen=True):
    """How far a play is: places of the stream that are done, of all, and the trainings until then."""

    done: int
    all: int
    trainings: int


def train_first(scratch: Scratch) -> None:
    """Have the monitor ask for the first model, and the trainer serve it."""
    with closing(scratch.monitor()) as monitor:
        monitor.start()
    _train(scratch)


def play(scratch: Scratch, stream: Stream, pace: Pace, tell: Callable[[Played], None] = lambda played: None) -> None:
    """Play the whole stream in a scratch project that has a model."""
    with _answering(scratch) as answering, closing(_Player(scratch, stream, pace, answering)) as player:
        while player.place < len(stream):
            player.step()
            tell(Played(player.place, len(stream), player.trainings))


class _Player:
    """The stream up to ``place`` is through."""

    def __init__(self, scratch: Scratch, stream: Stream, pace: Pace, answering: "_Answering") -> None:
        self.place = 0
        self.trainings = 0
        self._ready_ms: int | None = None
        self._scratch = scratch
        self._stream = stream
        self._pace = pace
        self._answering = answering
        self._trainer = scratch.trainer()
        self._monitor = scratch.monitor()
        self._monitor.start()
        self._recorder = scratch.recorder()
        self._reader = self._recorder.start()

    def close(self) -> None:
        """Release what its roles hold."""
        self._reader.close()
        self._monitor.close()

    def step(self) -> None:
        """Send, and let all through."""
        end = self._end()
        for behind in self._appends(end):
            self._scratch.stream_clock.move_to(int(self._stream.times[behind - 1]))
            self._scratch.log.append(self._stream.messages(self.place, behind))
            self.place = behind
        self._answering.wait_answered()
        self._recorder.drain(self._reader)
        while self._monitor.turn():
            pass
        self._monitor.report()
        self._release()
        if self._ready_ms is None and _waits(self._scratch):
            self._train()

    def _train(self) -> None:
        """Serve the commands that wait; the version is held back for as long as that is to take."""
        if self._pace.training_seconds:
            self._scratch.held.hold()
            self._ready_ms = self._scratch.clock.now_ms() + round(self._pace.training_seconds * 1000)
        stop = threading.Event()
        self._trainer.run(stop, idle=stop.set)
        self.trainings += 1
        self._release()
        if self._ready_ms is None:
            self._answering.wait_serving()

    def _release(self) -> None:
        """Let the version serve that is ready before the next event."""
        left = self._stream.times[self.place :]
        if self._ready_ms is not None and len(left) and left[0] > self._ready_ms:
            self._ready_ms = self._scratch.held.seen = None
            self._answering.wait_serving()

    def _end(self) -> int:
        """The place behind the step's last event."""
        pace, stream, place = self._pace, self._stream, self.place
        ends = [place + pace.events, len(stream)]
        if pace.every:
            observed = self._scratch.lake.count("observations")
            wanted = stream.labels_before[place] + boundary(observed, pace.every) - observed
            ends.append(int(np.searchsorted(stream.labels_before, wanted)))
        if pace.looks:
            wanted = boundary(int(stream.asked_before[place]), pace.looks)
            ends.append(int(np.searchsorted(stream.asked_before, wanted)))
        if self._ready_ms is not None:
            ends.append(int(np.searchsorted(stream.times, self._ready_ms, "right")))
        if pace.hours:
            limit = stream.times[place] + round(pace.hours * HOUR_MS)
            ends.append(int(np.searchsorted(stream.times, limit, "right")))
        return max(place + 1, min(ends))

    def _appends(self, end: int) -> Iterator[int]:
        """The places at which an append ends."""
        place = self.place
        while place < end:
            soon = int(np.searchsorted(self._stream.times, self._stream.times[place] + LOG_MS, "right"))
            place = min(end, soon, place + LOG_EVENTS)
            yield place


def _waits(scratch: Scratch) -> bool:
    """Whether a command waits for the trainer."""
    return any(lag(scratch.log, "trainer", [scratch.topics.retrain]).values())


def _train(scratch: Scratch) -> None:
    stop = threading.Event()
    scratch.trainer().run(stop, idle=stop.set)


class _Answering:
    """A predictor that runs in a thread, and what is to be known of it. ``failure`` is what ended it."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._events = scratch.log.follow(scratch.topics.events, timeout=0.0)
        self._serves = 0
        self.failure: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        """The thread."""
        try:
            self._scratch.predictor().run(stop)
        except BaseException as error:
            self.failure = error

    def wait_answered(self) -> None:
        """Until no request waits."""
        scratch = self._scratch
        while lag(scratch.log, "predictor", [scratch.topics.requests])[scratch.topics.requests]:
            self._pause()

    def wait_serving(self) -> None:
        """Until the champion is the version that answers."""
        champion = read_slots(self._scratch.log, self._scratch.topics).champion
        while champion is not None and self._newest() != champion.version:
            self._pause()

    def _newest(self) -> int:
        """The version that answers, as far as the events tell. Raises ``Broken`` where one was refused."""
        for records in self._events:
            if not records:
                break
            for record in records:
                event = msgspec.json.decode(record.value, type=Event)
                if event.name == "bundle_refused":
                    raise Broken(f"the predictor refused a bundle of the backtest: {event.values['error']}")
                if event.name == "model_swapped":
                    self._serves = event.values["version"]
        return self._serves

    def _pause(self) -> None:
        if self.failure is not None:
            raise self.failure
        self._scratch.clock.sleep(WAIT_SECONDS)


@contextmanager
def _answering(scratch: Scratch) -> Iterator[_Answering]:
    """With the first version serving."""
    stop = threading.Event()
    answering = _Answering(scratch)
    thread = threading.Thread(target=answering.run, args=(stop,), name="predictor")
    thread.start()
    try:
        answering.wait_serving()
        yield answering
    finally:
        stop.set()
        thread.join()
