"""Slots: which version serves is a replay of the models topic, in the order of the log."""

from collections.abc import Iterator

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.auditing import sequences_rise, versions_rise
from tidemill.core.versions import Slots, announced
from tidemill.messages import JournalEntry, ModelVersion, to_bytes


def a_version(number: int, sequence: int = 0) -> ModelVersion:
    bundle = f"{number:064x}"
    return ModelVersion(number, bundle, bundle, "s", "challenger", 0, f"labelled-{number}", 0, sequence)


def test_the_first_version_becomes_the_champion() -> None:
    """A promotion without a champion is one record."""
    moves = Slots().promote(a_version(1), at=5)
    assert [(move.state, move.version, move.sequence, move.at) for move in moves] == [("champion", 1, 1, 5)]


def test_a_promotion_keeps_the_old_champion_as_previous() -> None:
    """The champion moves to ``previous``, the new version takes its place, sequences rise."""
    slots = replayed([1, 2])
    assert slots.champion is not None
    assert slots.previous is not None
    assert (slots.champion.version, slots.previous.version) == (2, 1)
    assert slots.sequence == 3


def test_a_rollback_is_a_promotion_of_an_older_version() -> None:
    """The version before serves again, with a higher sequence."""
    slots = replayed([1, 2, 1])
    assert slots.champion is not None
    assert slots.champion.version == 1
    assert slots.champion.sequence == slots.sequence


def test_a_challenger_waits_beside_the_champion() -> None:
    """A waiting version leaves the champion where it is."""
    slots = replayed([1])
    for move in slots.challenge(a_version(2), at=9):
        slots.apply(move)
    assert slots.champion is not None
    assert slots.challenger is not None
    assert (slots.champion.version, slots.challenger.version) == (1, 2)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.data())
def test_records_that_are_read_again_change_nothing(numbers: list[int], data: st.DataObject) -> None:
    """A reader that lost its place and begins anew, from any record, ends where it was."""
    slots, moves = Slots(), []
    for number in numbers:
        for move in slots.promote(a_version(number), at=0):
            slots.apply(move)
            moves.append(move)
    again = data.draw(st.integers(0, len(moves)))
    repeated = Slots.of(to_bytes(move) for move in [*moves, *moves[again:]])
    assert msgspec.to_builtins(repeated) == msgspec.to_builtins(slots)


def test_the_last_record_holds_whatever_its_sequence() -> None:
    """Its writer did not know of the one before: it is none the less what was said last."""
    slots = Slots()
    for version, sequence in ((1, 7), (2, 4)):
        slots.apply(msgspec.structs.replace(a_version(version, sequence), state="champion"))
    assert slots.champion is not None
    assert (slots.champion.version, slots.sequence) == (2, 7)
    assert slots.promote(a_version(3), at=0)[-1].sequence == 9


def test_what_was_announced_is_in_the_journal_where_the_topic_has_forgotten_it() -> None:
    """By number, from either; what never stood in a slot was not announced."""
    entries = [
        an_entry("first", "experiment", 1),
        an_entry("e2", "experiment", 2, verdict="waiting"),
        an_entry("e3", "experiment", 3, verdict="kept"),
        an_entry("e4", "experiment", 0, verdict="failed"),
        an_entry("p", "promotion", 2),
    ]
    found = announced([a_version(5), msgspec.structs.replace(a_version(2), data_version=8)], entries)
    assert list(found) == [1, 2, 5]
    assert [version.bundle for version in found.values()] == [f"{number:064x}" for number in (1, 2, 5)]
    assert (found[1].experiment, found[1].schema, found[2].data_version) == ("first", "", 8)


# Writers at the same moment: each reads, then appends its records one by one, while others do so too.


class Project:
    """The topics ``models`` and ``journal``, a trainer, and persons; everybody decides on what they have read before."""

    def __init__(self) -> None:
        self.models: list[ModelVersion] = []
        self.journal: list[JournalEntry] = []
        self.made = 0

    def slots(self) -> Slots:
        return Slots.of(map(to_bytes, self.models))

    def train(self, waits: bool) -> Iterator[None]:
        """A new version, promoted or waiting: the one writer of new numbers."""
        slots = self.slots()
        yield
        self.made += 1
        version = a_version(self.made)
        moves = slots.challenge(version, 0) if waits else slots.promote(version, 0)
        yield from self.write(slots, moves, f"e{self.made}", "experiment", "waiting" if waits else "promoted")

    def choose(self, version: int) -> Iterator[None]:
        """A person's word for one of those that were announced and is not the champion."""
        slots = self.slots()
        yield
        known = announced(self.models, self.journal)
        others = [number for number in known if slots.champion is None or number != slots.champion.version]
        if others:
            moves = slots.promote(known[others[version % len(others)]], 0)
            yield from self.write(slots, moves, "person", "rollback", "promoted")

    def write(self, slots: Slots, moves: list[ModelVersion], id: str, kind: str, verdict: str) -> Iterator[None]:
        for move in moves:
            self.models.append(move)
            yield
        before = slots.champion.version if slots.champion else 0
        self.journal.append(an_entry(id, kind, moves[-1].version, verdict, before))


def an_entry(id: str, kind: str, version: int, verdict: str = "promoted", champion: int = 0) -> JournalEntry:
    experiment = id if kind == "experiment" else ""
    bundle = f"{version:064x}" if version else ""
    made = JournalEntry(id, "experiment", "", "promoted", 0, experiment, version=version, bundle=bundle)
    return msgspec.structs.replace(made, kind=kind, verdict=verdict, champion_version=champion)


def interleaved(data: st.DataObject, writers: int = 3, steps: int = 40) -> Project:
    """A trainer and some persons, each with one decision after the other, advanced in any order."""
    project = Project()
    running: dict[int, Iterator[None]] = {}
    for writer in data.draw(st.lists(st.integers(0, writers - 1), max_size=steps)):
        if writer not in running:
            running[writer] = (
                project.train(data.draw(st.booleans())) if writer == 0 else project.choose(data.draw(st.integers(0, 9)))
            )
        if next(running[writer], "done") == "done":
            del running[writer]
    for decision in running.values():
        list(decision)
    return project


def forgotten(models: list[ModelVersion], data: st.DataObject) -> list[ModelVersion]:
    """The topic after a compaction: any records may be gone of which a later one has the key."""
    last = {model.state: place for place, model in enumerate(models)}
    return [
        model for place, model in enumerate(models) if place == last[model.state] or data.draw(st.booleans(), label="kept")
    ]


def without_sequence(slots: Slots) -> object:
    return slots.champion, slots.challenger, slots.previous


@given(st.data())
def test_whoever_decides_at_the_same_moment_the_last_record_of_a_slot_holds(data: st.DataObject) -> None:
    """Every reader sees the same, whatever a compaction has removed, and the audit calls none of it a fault."""
    project = interleaved(data)
    champions = [model for model in project.models if model.state == "champion"]
    slots = project.slots()
    assert slots.champion == (champions[-1] if champions else None)
    kept = forgotten(project.models, data)
    assert without_sequence(Slots.of(map(to_bytes, kept))) == without_sequence(slots)
    assert set(announced(kept, project.journal)) == set(announced(project.models, project.journal))
    for models in (project.models, kept):
        assert sequences_rise(models, project.journal).examples == []
        assert versions_rise(models, project.journal).examples == []


@given(st.data())
def test_a_record_that_nobody_decided_is_found_among_those_of_the_same_moment(data: st.DataObject) -> None:
    """A late record of an unknown version, or the copy of one that is there."""
    project = interleaved(data)
    if not project.models:
        return
    last = project.models[-1]
    strange = msgspec.structs.replace(a_version(99, last.sequence), state="champion")
    for planted in (strange, last):
        assert sequences_rise([*project.models, planted], project.journal).problems >= 1


def replayed(numbers: list[int]) -> Slots:
    slots = Slots()
    for number in numbers:
        for move in slots.promote(a_version(number), at=0):
            slots.apply(move)
    return slots
