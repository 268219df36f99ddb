"""The tracker: copies trials, decisions and model versions to a tool for people, in a process of its own.

Training never waits for the tool. A batch is exported, then the group's position is committed; while the tool is away the
same batch is tried again, and what the tool has already taken is not taken twice.

The topics hold everything, so a tool that is new, or older than it was, is filled from there. Its own store says up to where
it holds everything: where that is not what was noted last, somebody has replaced it, and the reader goes back to that place.

What is shown of an experiment is of all its trials together (the best, the table), and its decision may be polled before
they are: they are read from the log too, when a batch is about an experiment that the one before was not about.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby

import structlog
from msgspec import Struct

from tidemill.clock import Clock
from tidemill.core.importing import PREFIX
from tidemill.errors import ConfigError, Unavailable
from tidemill.log.base import Batch, Log, Message, Positions, Reader
from tidemill.messages import JournalEntry, ModelVersion, Topics, Trial
from tidemill.roles.loop import run_loop
from tidemill.roles.reading import decoded
from tidemill.tracking.base import Tracker

GROUP = "tracker"
LIMIT = 100
"""Records of a batch. A stop waits for one of its experiments at most, and a restart finds most of it done."""
WAIT_MIN, WAIT_MAX = 1.0, 30.0
"""Seconds between two tries while the tool is away: doubled from the first to the last."""

Report = Callable[[Sequence[Trial], JournalEntry], str]
"""The page of an experiment that has ended, as HTML, or ``""`` for none. Raises ``ConfigError`` or ``ImportError`` where
this installation cannot make any.
"""

logger = structlog.get_logger()


class TrackerRole:
    """Consumer group ``tracker`` over trials, journal and models. ``run`` is called once, in the thread that opened it."""

    def __init__(self, log: Log, topics: Topics, tracker: Tracker, clock: Clock, report: Report | None = None) -> None:
        self._log = log
        self._topics = topics
        self._tracker = tracker
        self._clock = clock
        self._report = report
        self._noted: Positions = {}
        self._known: dict[str, dict[int, Trial]] = {}
        self._types: dict[str, type[Struct]] = {
            topics.trials: Trial,
            topics.journal: JournalEntry,
            topics.models: ModelVersion,
        }

    def run(self, stop: threading.Event) -> None:
        """Export until ``stop`` is set. A tool that is not installed is told once; then it waits to be stopped."""
        reader = self._log.join(GROUP, list(self._types))
        try:
            self._until_it_answers(lambda: self._align(reader, {}), stop)
            run_loop(GROUP, reader, lambda b: self._export(b, reader, stop), stop, LIMIT, 0.5, lambda: self._look(reader))
        except _Stopped:
            logger.info("tracker_stopped", unfinished=True)
        except ConfigError as error:
            logger.error("tracker_gave_up", detail=str(error))
            stop.wait()
        finally:
            reader.close()

    def _align(self, reader: Reader, polled: Positions) -> None:
        """Go back to where the tool stands, where that is before what was committed or polled."""
        stands = self._tracker.positions()
        passed = {**self._log.committed(GROUP), **polled}
        held = {place: max(first, stands.get(place, first)) for place, (first, _) in self._bounds().items()}
        back = {place: at for place, at in held.items() if at < passed.get(place, at)}
        if back:
            told = {f"{topic}:{partition}": at for (topic, partition), at in back.items()}
            logger.warning("tracking_starts_over", positions=told)
            reader.seek(back)
        self._noted = stands

    def _bounds(self) -> dict[tuple[str, int], tuple[int, int]]:
        bounds = {topic: self._log.bounds(topic) for topic in self._types}
        return {(topic, partition): ends for topic, found in bounds.items() for partition, ends in found.items()}

    def _look(self, reader: Reader) -> None:
        """While nothing comes: whether the tool was replaced."""
        with suppress(Unavailable):  # the next export tells it
            if self._tracker.positions() != self._noted:
                self._align(reader, {})

    def _export(self, batch: Batch, reader: Reader, stop: threading.Event) -> list[Message]:
        """The batch counts only where the tool stood still meanwhile: else it comes again."""
        found = (decoded(record, self._types[record.topic]) for record in batch.records())
        messages = [message for message in found if message is not None]
        for step in [self._begin, lambda: self._know(messages), *self._steps(messages)]:
            if stop.is_set():
                raise _Stopped
            self._until_it_answers(step, stop)
        self._until_it_answers(lambda: self._note(batch, reader), stop)
        return []

    def _begin(self) -> None:
        """Mark a new tool before anything is written, so that it differs from the next new one."""
        if not self._noted:
            starts = {place: first for place, (first, _) in self._bounds().items()}
            if self._tracker.advance({}, starts):
                self._noted = starts

    def _note(self, batch: Batch, reader: Reader) -> None:
        noted = {**self._noted, **batch.positions}
        if self._tracker.advance(self._noted, noted):
            self._noted = noted
        else:
            self._align(reader, batch.positions)

    def _know(self, messages: Sequence[Struct]) -> None:
        """All trials of the experiments that the messages are about."""
        trials = [message for message in messages if isinstance(message, Trial)]
        entries = [message for message in messages if isinstance(message, JournalEntry)]
        decided = {_experiment(entry) for entry in entries if entry.kind == "experiment"}
        wanted = decided | {trial.experiment for trial in trials}
        if not wanted:
            return
        missing = decided | (wanted - self._known.keys())
        self._known = {experiment: {} if experiment in missing else self._known[experiment] for experiment in wanted}
        for trial in self._recorded() if missing else trials:
            if trial.experiment in wanted:
                self._known[trial.experiment][trial.number] = trial

    def _recorded(self) -> Iterator[Trial]:
        """The trials that stand in the log now."""
        for records in self._log.follow(self._topics.trials):
            if not records:
                return
            yield from (trial for record in records if (trial := decoded(record, Trial)) is not None)

    def _steps(self, messages: Sequence[Struct]) -> Iterator[Callable[[], None]]:
        """One call a decision or a version, one call for an experiment's trials of a stretch, in the order of the log."""
        for _, stretch in groupby(messages, key=type):
            block = list(stretch)
            for experiment, new in _numbers(block).items():
                yield partial(self._trials, experiment, new)
            for message in block:
                if isinstance(message, JournalEntry):
                    yield partial(self._decision, message)
                elif isinstance(message, ModelVersion):
                    yield partial(self._tracker.record_version, message)

    def _trials(self, experiment: str, new: set[int]) -> None:
        """Nobody decides what was imported: all of it is there at once."""
        self._tracker.record_trials(list(self._known[experiment].values()), new, experiment.startswith(PREFIX))

    def _decision(self, entry: JournalEntry) -> None:
        trials = list(self._known.get(_experiment(entry), {}).values())
        self._tracker.record_decision(entry, trials, lambda: self._page(trials, entry))

    def _page(self, trials: Sequence[Trial], entry: JournalEntry) -> str:
        if self._report is None or not trials:
            return ""
        try:
            return self._report(trials, entry)
        except (ConfigError, ImportError) as error:
            self._report = None
            logger.info("reports_left_out", detail=str(error))
        except Exception as error:  # one page that cannot be drawn stops no copy
            logger.warning("report_failed", experiment=entry.experiment, error=f"{type(error).__name__}: {error}")
        return ""

    def _until_it_answers(self, step: Callable[[], None], stop: threading.Event) -> None:
        wait = 0.0
        while True:
            try:
                step()
            except Unavailable as error:
                if not wait:
                    logger.warning("tracking_unavailable", detail=str(error))
                wait = min(max(WAIT_MIN, 2 * wait), WAIT_MAX)
                self._rest(wait, stop)
            else:
                if wait:
                    logger.info("tracking_resumed")
                return

    def _rest(self, seconds: float, stop: threading.Event) -> None:
        """Wait, but leave at once, without committing, when the role is to stop."""
        until = self._clock.monotonic() + seconds
        while not stop.is_set() and (left := until - self._clock.monotonic()) > 0:
            self._clock.sleep(min(left, 0.25))
        if stop.is_set():
            raise _Stopped


def _numbers(messages: Sequence[Struct]) -> dict[str, set[int]]:
    """By experiment: the numbers of the trials among messages."""
    found: dict[str, set[int]] = {}
    for message in messages:
        if isinstance(message, Trial):
            found.setdefault(message.experiment, set()).add(message.number)
    return found


def _experiment(entry: JournalEntry) -> str:
    return entry.experiment or entry.id


class _Stopped(Exception):
    """The role was told to stop in the middle of a batch, which is exported again by the next one."""
