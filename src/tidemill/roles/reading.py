"""The project's own topics as messages. Anybody can append to a topic: a record that is no message is passed over."""

from functools import lru_cache
from typing import TypeVar

import msgspec
import structlog
from msgspec import Struct

from tidemill.log.base import Log, Record, read_all
from tidemill.messages import JournalEntry, Topics, Trial

logger = structlog.get_logger()

Kind = TypeVar("Kind", bound=Struct)


def decoded(record: Record, kind: type[Kind]) -> Kind | None:
    """The record's message, or None for what is none: a log line tells it once, and ``tidemill audit`` reports it."""
    try:
        return msgspec.json.decode(record.value, type=kind)
    except (ValueError, RecursionError) as error:
        _tell(record.topic, record.partition, record.offset, kind.__name__, str(error))
        return None


def read_messages(log: Log, topic: str, kind: type[Kind]) -> list[Kind]:
    """The messages that stand in a topic now, in the order of the log."""
    found = (decoded(record, kind) for record in read_all(log, topic))
    return [message for message in found if message is not None]


def read_trials(log: Log, topics: Topics) -> list[Trial]:
    """The project's trials so far, in their order; a repeated key is the same trial."""
    trials = read_messages(log, topics.trials, Trial)
    return list({(trial.experiment, trial.number): trial for trial in trials}.values())


def decided_commands(log: Log, topics: Topics) -> set[str]:
    """The ids of the commands that have their verdict, those among them that were merged into others."""
    return {id for entry in read_messages(log, topics.journal, JournalEntry) for id in (entry.id, *entry.merged)}


@lru_cache(maxsize=1000)
def _tell(topic: str, partition: int, offset: int, kind: str, error: str) -> None:
    """Cached, for a topic is read again and again: the same record is told once a process."""
    logger.warning("record_skipped", topic=topic, partition=partition, offset=offset, expected=kind, error=error)
