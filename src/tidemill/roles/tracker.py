"""The tracker: copies trials, decisions and model versions to a tool for people, in a process of its own.

Training never waits for the tool. A batch is exported, then the group's position is committed; while the tool is away the
same batch is tried again, and what the tool has already taken is not taken twice.

The topics hold everything, so a tool that is new, or older than it was, is filled from there. Its own store says up to where
it holds everything: where that is not what was noted last, somebody has replaced it, and the reader goes back to that place.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby

import msgspec
import structlog
from msgspec import Struct

from tidemill.clock import Clock
from tidemill.errors import ConfigError, Unavailable
from tidemill.log.base import Batch, Log, Message, Positions, Reader, Record
from tidemill.messages import JournalEntry, ModelVersion, Topics, Trial
from tidemill.roles.loop import run_loop
from tidemill.tracking.base import Tracker

GROUP = "tracker"
LIMIT = 20
"""Records of a batch: a second or two of work, so that a stop waits little and a restart repeats little."""
WAIT_MIN, WAIT_MAX = 1.0, 30.0
"""Seconds between two tries while the tool is away: doubled from the first to the last."""

logger = structlog.get_logger()


class TrackerRole:
    """Consumer group ``tracker`` over trials, journal and models. ``run`` is called once, in the thread that opened it."""

    def __init__(self, log: Log, topics: Topics, tracker: Tracker, clock: Clock) -> None:
        self._log = log
        self._topics = topics
        self._tracker = tracker
        self._clock = clock
        self._noted: Positions = {}
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
        messages = [message for record in batch.records() if (message := self._decode(record)) is not None]
        for step in [self._begin, *self._steps(messages)]:
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

    def _decode(self, record: Record) -> Struct | None:
        """A record that is not a message is skipped: it is no less lost for the roles that live on it, which complain."""
        try:
            return msgspec.json.decode(record.value, type=self._types[record.topic])
        except (ValueError, RecursionError) as error:
            place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
            logger.warning("tracker_skipped_record", detail=str(error), **place)
            return None

    def _steps(self, messages: list[Struct]) -> Iterator[Callable[[], None]]:
        """One call a decision or a version, one call a stretch of trials, in the order of the log."""
        for kind, stretch in groupby(messages, key=type):
            block = list(stretch)
            if kind is Trial:
                yield lambda block=block: self._tracker.record_trials(block)  # type: ignore[misc]
                continue
            for message in block:
                if isinstance(message, JournalEntry):
                    yield lambda message=message: self._tracker.record_decision(message)  # type: ignore[misc]
                elif isinstance(message, ModelVersion):
                    yield lambda message=message: self._tracker.record_version(message)  # type: ignore[misc]

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


class _Stopped(Exception):
    """The role was told to stop in the middle of a batch, which is exported again by the next one."""
