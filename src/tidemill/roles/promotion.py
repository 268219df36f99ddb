"""A person's word on model versions: promote the challenger, or roll back to an older version."""

import msgspec

from tidemill.bundles import BundleStore
from tidemill.clock import Clock
from tidemill.core.versions import Slots
from tidemill.errors import UnknownModel
from tidemill.log.base import Log, Message, read_all
from tidemill.messages import JournalEntry, ModelVersion, Topics, to_bytes


def read_slots(log: Log, topics: Topics) -> Slots:
    """The slots as the log has them now."""
    return Slots.of(record.value for record in read_all(log, topics.models))


def promote(log: Log, topics: Topics, store: BundleStore, clock: Clock) -> ModelVersion:
    """Make the challenger the champion. Raises ``UnknownModel`` where none waits."""
    slots = read_slots(log, topics)
    if slots.challenger is None or (slots.champion and slots.challenger.version <= slots.champion.version):
        raise UnknownModel("no challenger waits: with verdict.policy = 'manual' the next retraining gives one")
    return _serve(log, topics, store, clock, slots, slots.challenger, "promotion")


def rollback(log: Log, topics: Topics, store: BundleStore, clock: Clock, version: int | None = None) -> ModelVersion:
    """Make an older version (by default the one before the champion) the champion again.

    Raises ``UnknownModel`` where there is no such version, ``BundleRefused`` where its bundle is damaged.
    """
    slots = read_slots(log, topics)
    known = {announced.version: announced for announced in _announced(log, topics)}
    if version is None:
        if slots.previous is None:
            raise UnknownModel("there is no version before the champion to roll back to")
        version = slots.previous.version
    if version not in known:
        listed = ", ".join(map(str, sorted(known))) or "none yet"
        raise UnknownModel(f"version {version} was never announced; announced versions: {listed}")
    if slots.champion is not None and slots.champion.version == version:
        raise UnknownModel(f"version {version} is the champion already")
    return _serve(log, topics, store, clock, slots, known[version], "rollback")


def _announced(log: Log, topics: Topics) -> list[ModelVersion]:
    return [msgspec.json.decode(record.value, type=ModelVersion) for record in read_all(log, topics.models)]


def _serve(
    log: Log, topics: Topics, store: BundleStore, clock: Clock, slots: Slots, version: ModelVersion, kind: str
) -> ModelVersion:
    """Announce and journal in one append; the bundle is tried first, so that nobody is sent to one that is refused."""
    store.try_in_child(version.bundle)
    now = clock.now_ms()
    moves = slots.promote(version, now)
    champion = slots.champion
    entry = JournalEntry(
        id=f"{kind}-{slots.sequence + 1}",
        kind="promotion" if kind == "promotion" else "rollback",
        reason="a person's word",
        verdict="promoted",
        at=now,
        version=version.version,
        bundle=version.bundle,
        data_version=version.data_version,
        champion_version=champion.version if champion else 0,
        champion_bundle=champion.bundle if champion else "",
    )
    log.append(
        [
            *(Message(topics.models, to_bytes(move), move.state.encode()) for move in moves),
            Message(topics.journal, to_bytes(entry), entry.id.encode()),
        ]
    )
    return moves[-1]
