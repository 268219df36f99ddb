"""The tracker: copies trials, decisions and model versions to a tool for people, in a process of its own.

Training never waits for the tool. A batch is exported, then the group's position is committed; while the tool is away the
same batch is tried again, and what the tool has already taken is not taken twice.
"""

import threading
from collections.abc import Callable, Iterator
from itertools import groupby

import msgspec
import structlog
from msgspec import Struct

from tidemill.clock import Clock
from tidemill.errors import ConfigError, Unavailable
from tidemill.log.base import Batch, Log, Message, Record
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
        self._types: dict[str, type[Struct]] = {
            topics.trials: Trial,
            topics.journal: JournalEntry,
            topics.models: ModelVersion,
        }

    def run(self, stop: threading.Event) -> None:
        """Export until ``stop`` is set. A tool that is not installed is told once; then it waits to be stopped."""
        reader = self._log.join(GROUP, list(self._types))
        try:
            run_loop("tracker", reader, lambda batch: self._export(batch, stop), stop, LIMIT, 0.5)
        except _Stopped:
            logger.info("tracker_stopped", unfinished=True)
        except ConfigError as error:
            logger.error("tracker_gave_up", detail=str(error))
            stop.wait()
        finally:
            reader.close()

    def _export(self, batch: Batch, stop: threading.Event) -> list[Message]:
        messages = [message for record in batch.records() if (message := self._decode(record)) is not None]
        for step in self._steps(messages):
            self._until_it_answers(step, stop)
        return []

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
