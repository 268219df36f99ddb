"""The promises as checks over values: requests and answers, commands and decisions, versions, positions.

Each check takes what was read from the log and says how many things it looked at and which of them break the promise.
A thing that can no longer be looked at (deleted by retention, pruned, damaged and mended) is unchecked, never good.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from tidemill.core.decoding import Headers
from tidemill.core.outcomes import decode_outcome
from tidemill.core.retraining import is_first
from tidemill.core.schema import Schema
from tidemill.errors import BadRecord
from tidemill.messages import JournalEntry, ModelVersion, Retrain, Slot

EXAMPLES = 3
Place = tuple[int, int]
"""(partition, offset)"""
Announced = tuple[int, str]
"""(version, bundle)"""


class Check(Struct, frozen=True):
    """One promise: how many things were looked at, how many break it (with the first few of them), how many could not be
    looked at.
    """

    name: str
    checked: int
    problems: int
    examples: list[str]
    unchecked: int = 0


def found(name: str, checked: int, problems: Sequence[str], unchecked: int = 0) -> Check:
    """The check with these problems."""
    return Check(name, checked, len(problems), list(problems[:EXAMPLES]), unchecked)


class Traffic(Struct, frozen=True):
    """What was asked and what came back.

    ``requests`` are the ids by place, in offset order, with those that only the lake still holds; ``answers`` the ids of
    the predictions in their order; ``refused`` how many dead letters of the predictor name a place; ``kept_from`` the first
    offset the log keeps, ``done_to`` the predictor's committed position, by partition. ``whole`` says that no request is
    unknown: none was deleted that the lake does not hold.
    """

    requests: Mapping[Place, str]
    answers: Sequence[str]
    refused: Mapping[Place, int]
    kept_from: Mapping[int, int]
    done_to: Mapping[int, int]
    whole: bool

    def done(self, place: Place) -> bool:
        """Whether the predictor has committed this request."""
        return place[1] < self.done_to.get(place[0], 0)

    def kept(self, place: Place) -> bool:
        """Whether the log still holds this request."""
        return place[1] >= self.kept_from.get(place[0], 0)


def answered(traffic: Traffic) -> Check:
    """Every request that the log holds and the predictor has passed has its answer or its dead letter."""
    due = [place for place in traffic.requests if traffic.done(place) and traffic.kept(place)]
    counts = Counter(traffic.answers)
    needed: Counter[str] = Counter()
    last: dict[str, Place] = {}
    for place, name in traffic.requests.items():
        if traffic.done(place) and place not in traffic.refused:
            needed[name] += 1
            last[name] = place
    lacking = [(name, needed[name] - counts[name]) for name in needed if counts[name] < needed[name]]
    problems = [
        f"request {name} (last at {_at(last[name])}) has no answer"
        for name, number in lacking
        for _ in range(number)
        if traffic.kept(last[name])
    ]
    deleted = sum(1 for place in traffic.requests if not traffic.kept(place))
    return found("answered", len(due), problems, max(deleted, sum(traffic.kept_from.values())))


def answered_once(traffic: Traffic) -> Check:
    """No request has more than one answer, more than one dead letter, or both."""
    allowed = Counter(name for place, name in traffic.requests.items() if place not in traffic.refused)
    asked = set(traffic.requests.values())
    counts = Counter(traffic.answers)
    problems: list[str] = []
    unchecked = 0
    for name, number in counts.items():
        extra = number - allowed[name] if name in asked else 0
        if extra > 0 and traffic.whole:
            problems += [f"request {name} has {number} answers, {allowed[name]} due"] * extra
        elif extra > 0:
            unchecked += extra
    for place, number in traffic.refused.items():
        problems += [f"request at {_at(place)} has {number} dead letters"] * (number - 1)
    return found("answered-once", len(traffic.answers) + sum(traffic.refused.values()), problems, unchecked)


def asked_for(traffic: Traffic) -> Check:
    """Every answer and every dead letter of the predictor belongs to a request."""
    asked = set(traffic.requests.values())
    problems = [f"answer to {name}, which nobody asked" for name in traffic.answers if name not in asked]
    problems += [f"dead letter of a request at {_at(place)}" for place in traffic.refused if place not in traffic.requests]
    checked = len(traffic.answers) + len(traffic.refused)
    return found("asked-for", checked, problems) if traffic.whole else found("asked-for", checked, [], len(problems))


def dead_letters_carry(
    letters: Iterable[tuple[str, Place, bytes]], originals: Mapping[tuple[str, Place], Collection[bytes]]
) -> Check:
    """A dead letter (topic, place, value) holds the bytes of the record that it names, of a mended one those before or
    after; records whose bytes nobody knows are unchecked.
    """
    problems: list[str] = []
    checked = unchecked = 0
    for topic, place, value in letters:
        original = originals.get((topic, place))
        checked += original is not None
        unchecked += original is None
        if original is not None and value not in original:
            problems.append(f"dead letter of {topic} at {_at(place)} has other bytes than the record")
    return found("dead-letters", checked, problems, unchecked)


def table_is_log(
    name: str,
    rows: Iterable[tuple[Any, ...]],
    due: Mapping[Place, tuple[Any, ...]],
    stored: Mapping[int, int],
    bounds: Mapping[int, tuple[int, int]],
    mended: Collection[Place] = (),
) -> Check:
    """A lake table (rows: partition, offset, values) has every record once and unchanged up to its position, nothing else.

    ``due`` are the values that the records kept in the log must have become, ``stored`` the table's positions and
    ``bounds`` the log's, by partition. Of records that the log has deleted none may be missing after the table's first.
    What the rows of ``mended`` records say is unchecked.
    """
    problems: list[str] = []
    seen: dict[Place, tuple[Any, ...]] = {}
    for partition, offset, *values in rows:
        place = partition, offset
        if place in seen:
            problems.append(f"{_at(place)} is in the table twice")
        seen[place] = tuple(values)
        first, end = bounds.get(partition, (0, 0))
        if offset >= stored.get(partition, 0):
            problems.append(f"{_at(place)} is in the table, beyond its position {stored.get(partition, 0)}")
        elif place in mended:
            continue
        elif first <= offset < end and place not in due:
            problems.append(f"{_at(place)} is in the table, but should not be")
        elif place in due and due[place] != tuple(values):
            problems.append(f"{_at(place)} is not in the table what it is in the log")
    below = [place for place in due if place[1] < stored.get(place[0], 0)]
    problems += [f"{_at(place)} is missing in the table" for place in below if place not in seen]
    problems += _gaps(seen, stored, bounds)
    ends = {partition: end for partition, (_, end) in bounds.items()}
    beyond = [place for place in stored.items() if place[1] > ends.get(place[0], 0)]
    problems += [f"the table's position {_at(place)} is beyond the log's end" for place in beyond]
    unchecked = sum(place in mended for place in seen)
    return found(f"lake-{name.replace('_', '-')}", len(seen.keys() | set(below)) - unchecked, problems, unchecked)


def _gaps(seen: Collection[Place], stored: Mapping[int, int], bounds: Mapping[int, tuple[int, int]]) -> Iterator[str]:
    """Between the table's first row and the first record that the log keeps."""
    deleted: dict[int, list[int]] = {}
    for partition, offset in seen:
        if offset < bounds.get(partition, (0, 0))[0]:
            deleted.setdefault(partition, []).append(offset)
    for partition, offsets in deleted.items():
        until = min(bounds[partition][0], stored.get(partition, 0))
        missing = until - min(offsets) - sum(offset < until for offset in offsets)
        if missing:
            yield f"{missing} rows are missing between {partition}:{min(offsets)} and {partition}:{until}"


def outcomes_read(
    records: Iterable[tuple[Place, bytes | None, bytes, Headers]],
    rows: Mapping[Place, tuple[str, int | None]],
    refused: Mapping[Place, int],
    schemas: Sequence[Schema],
    mended: int = 0,
) -> Check:
    """An outcome record (place, key, value, headers) is a row (label as JSON, its time) as one of the schemas reads it,
    or has one dead letter because one of them cannot; never both. ``mended`` ones, which are not among them, are unchecked.
    """
    problems: list[str] = []
    checked, unchecked = 0, mended
    for place, key, value, headers in records:
        letters, row = refused.get(place, 0), rows.get(place)
        if letters + (row is not None) > 1:
            problems.append(f"outcome {_at(place)} has {letters} dead letters" + (" and a row" if row else ""))
        elif letters or row:
            checked += 1
            if schemas and all(_read_outcome(key, value, headers, schema) != row for schema in schemas):
                problems.append(f"outcome {_at(place)} should {'be a row' if row is None else f'not be {row[0]}'}")
            unchecked += not schemas
    return found("outcomes-read", checked, problems, unchecked)


def _read_outcome(key: bytes | None, value: bytes, headers: Headers, schema: Schema) -> tuple[str, int | None] | None:
    """The row's values, or None for a bad outcome."""
    try:
        outcome = decode_outcome(key, value, schema, headers)
    except BadRecord:
        return None
    return msgspec.json.encode(outcome.outcome).decode(), outcome.time


def announced_pairs(models: Iterable[ModelVersion], journal: Iterable[JournalEntry]) -> set[Announced]:
    """The versions that were ever announced, with their bundles."""
    pairs = {(model.version, model.bundle) for model in models}
    for entry in journal:
        pairs |= {(entry.version, entry.bundle), (entry.champion_version, entry.champion_bundle)}
    return {pair for pair in pairs if pair[1]}


def answers_announced(
    answers: Iterable[tuple[str, Announced]], announced: Collection[Announced], unchecked: int = 0
) -> Check:
    """Every answer (request id, version and bundle) names a version and bundle that were announced."""
    counts = Counter(pair for _, pair in answers)
    strange = {pair for pair in counts if pair not in announced}
    problems = [
        f"answer to {name} names version {pair[0]}, bundle {pair[1][:12] or '(none)'}, never announced"
        for name, pair in answers
        if pair in strange
    ]
    return found("announced", sum(counts.values()), problems, unchecked)


def commands_unique(commands: Sequence[Retrain]) -> Check:
    """No retrain command was sent twice, but for a first model's: the monitor and a person may ask in the same moment, and
    name the same.
    """
    counts = Counter(command.id for command in commands if not is_first(command.id))
    problems = [f"command {name} was sent {number} times" for name, number in counts.items() if number > 1]
    return found("commands-unique", len(commands), problems)


def commands_due(commands: Sequence[Retrain], observations: int) -> Check:
    """The command ``labelled-K`` is of data version K, and no command is of more observations than there are."""
    problems = []
    for command in commands:
        kind, _, number = command.id.rpartition("-")
        if kind == "labelled" and number != str(command.data_version):
            problems.append(f"command {command.id} has data version {command.data_version}")
        elif command.data_version > observations:
            problems.append(f"command {command.id} is of {command.data_version} observations, there are {observations}")
    return found("commands-due", len(commands), problems)


def commands_decided(
    commands: Sequence[tuple[Place, Retrain]], done_to: Mapping[int, int], journal: Sequence[JournalEntry]
) -> Check:
    """Every command that the trainer has passed stands in exactly one journal entry, as its experiment or merged into it;
    a command that it has not passed may stand in one at most.
    """
    entries = [entry for entry in journal if entry.kind == "experiment"]
    decided = Counter(name for entry in entries for name in {entry.experiment, *entry.merged})
    passed = {command.id for (partition, offset), command in commands if offset < done_to.get(partition, 0)}
    problems = [f"command {name} was taken but has no journal entry" for name in passed if not decided[name]]
    problems += [f"command {name} has {number} journal entries" for name, number in decided.items() if number > 1]
    return found("commands-decided", len(passed | decided.keys()), sorted(problems))


def same_when_repeated(name: str, records: Iterable[tuple[str, bytes]]) -> Check:
    """Records (key, value) with the same key are the same bytes."""
    first: dict[str, bytes] = {}
    problems: list[str] = []
    checked = 0
    for key, value in records:
        checked += 1
        if first.setdefault(key, value) != value:
            problems.append(f"{key} was recorded twice, differently")
    return found(name, checked, problems)


def sequences_rise(models: Sequence[ModelVersion], journal: Iterable[JournalEntry]) -> Check:
    """The sequence rises from record to record.

    Two who decided at the same moment may have counted from the same record: one that does not rise is good where a
    decision in the journal stands behind it, one decision behind each record of its slot and version. The log may have
    removed records, so numbers may be missing.
    """
    decided = Counter(move for entry in journal for move in _moves(entry))
    made = Counter((model.state, model.version) for model in models)
    problems = [
        f"sequence {b.sequence} comes after {a.sequence}"
        for a, b in itertools.pairwise(models)
        if b.sequence <= a.sequence and made[b.state, b.version] > decided[b.state, b.version]
    ]
    return found("sequences-rise", len(models), problems)


def _moves(entry: JournalEntry) -> Iterator[tuple[Slot, int]]:
    """Slot and version of the records that a decision makes."""
    if entry.verdict == "promoted":
        yield "champion", entry.version
        yield "previous", entry.champion_version
    elif entry.verdict == "waiting":
        yield "challenger", entry.version


def versions_rise(models: Sequence[ModelVersion], journal: Sequence[JournalEntry]) -> Check:
    """Each champion is newer than the one before, unless a person's decision in the journal names it, once for each time;
    and a version number is one bundle's for ever.
    """
    chosen = Counter(entry.version for entry in journal if entry.kind != "experiment")
    champions = [model for model in models if model.state == "champion"]
    bundles: dict[int, str] = {}
    problems = []
    for model in models:
        if bundles.setdefault(model.version, model.bundle) != model.bundle:
            problems.append(f"version {model.version} was announced with two bundles")
    for before, model in itertools.pairwise(champions):
        if model.version > before.version:
            continue
        chosen[model.version] -= 1
        if chosen[model.version] < 0:
            problems.append(
                f"champion went from version {before.version} to {model.version} without a rollback in the journal"
            )
    return found("versions-rise", len(models), problems)


def positions_within(
    positions: Mapping[tuple[str, str, int], int], bounds: Mapping[tuple[str, int], tuple[int, int]]
) -> Check:
    """A reader's position (reader, topic, partition) lies between the first record kept and the end."""
    problems = []
    for (reader, topic, partition), position in positions.items():
        first, end = bounds.get((topic, partition), (0, 0))
        if not first <= position <= end:
            problems.append(f"{reader} stands at {topic} {_at((partition, position))}, outside {first} to {end}")
    return found("positions", len(positions), problems)


def _at(place: Place) -> str:
    return f"{place[0]}:{place[1]}"
