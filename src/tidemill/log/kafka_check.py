"""The audit of a Kafka log: where topics and groups stand, which transactions stay open, which positions are lost."""

from collections.abc import Iterable

from msgspec import Struct

from tidemill.clock import SystemClock
from tidemill.log.kafka import KafkaLog
from tidemill.log.kafka_topics import Place

OPEN_SECONDS = 2.0
"""A transaction of a healthy role is far shorter; one that hides the same records for so long is reported."""
_clock = SystemClock()


class PartitionReport(Struct, frozen=True):
    """The kept range of a partition, from ``first`` up to, not with, ``end``; ``hidden`` records wait for a transaction."""

    topic: str
    partition: int
    first: int
    end: int
    hidden: int


class PositionReport(Struct, frozen=True):
    """Where a group stands in a partition, and how many records are behind it."""

    group: str
    topic: str
    partition: int
    committed: int
    lag: int


class KafkaReport(Struct, frozen=True):
    """What ``check`` found; the log is good where ``problems`` is empty."""

    brokers: str
    partitions: list[PartitionReport]
    positions: list[PositionReport]
    problems: list[str]


def check(log: KafkaLog, topics: Iterable[str], groups: Iterable[str]) -> KafkaReport:
    """Look at a project's topics and groups; takes ``OPEN_SECONDS`` where a transaction is open."""
    names = list(topics)
    bounds = {(topic, p): found for topic in names for p, found in log.bounds(topic).items()}
    hidden = _hidden(log, names)
    partitions = [PartitionReport(*place, *found, hidden.get(place, 0)) for place, found in bounds.items()]
    problems = [
        f"topic {topic!r}, partition {partition}: {count} records are hidden by a transaction that does not end; the broker "
        "ends it after its timeout, or: kafka-transactions.sh find-hanging"
        for (topic, partition), count in hidden.items()
    ]
    positions = []
    for group in groups:
        for place, position in log.committed(group).items():
            if place not in bounds:
                continue
            first, end = bounds[place]
            positions.append(PositionReport(group, *place, position, max(0, end - max(first, position))))
            problems += _lost(group, place, position, first)
    return KafkaReport(log.brokers, partitions, positions, problems)


def _hidden(log: KafkaLog, topics: list[str]) -> dict[Place, int]:
    """By partition, how many offsets a transaction hides, where it is the same one for a while."""
    before = log.undecided(topics)
    if not before:
        return {}
    _clock.sleep(OPEN_SECONDS)
    after = log.undecided({topic for topic, _ in before})
    return {place: end - stable for place, (stable, end) in after.items() if before.get(place, (-1, 0))[0] == stable}


def _lost(group: str, place: Place, position: int, first: int) -> list[str]:
    if position >= first:
        return []
    topic, partition = place
    return [
        f"group {group!r}: records {position} to {first - 1} of topic {topic!r}, partition {partition}, were deleted before "
        f"they were read; say where to go on: tidemill log seek {group} {topic} beginning"
    ]
