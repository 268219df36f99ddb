"""Decisions on model versions: who serves now, one decision at a time, and a person's word: promote, roll back."""

import fcntl
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Literal

import msgspec
import structlog

from tidemill.bundles import BundleStore
from tidemill.clock import Clock
from tidemill.core import versions
from tidemill.core.versions import Slots
from tidemill.errors import UnknownModel
from tidemill.log.base import Log, Message
from tidemill.messages import JournalEntry, ModelVersion, Topics, to_bytes
from tidemill.roles.reading import read_messages

logger = structlog.get_logger()

LOCK = ".decisions"
"""A file in the store's folder, which whoever decides can reach: it holds the bundles."""
LOCK_SECONDS = 5.0
"""Longer than any decision takes: whoever holds the lock for longer hangs, and must not keep a person from a rollback."""
LOCK_POLL_SECONDS = 0.01


def read_slots(log: Log, topics: Topics) -> Slots:
    """The slots as the log has them now."""
    slots = Slots()
    for version in read_messages(log, topics.models, ModelVersion):
        slots.apply(version)
    return slots


def announced(log: Log, topics: Topics) -> dict[int, ModelVersion]:
    """Every version that ever stood in a slot, by its number, whatever the log has removed of ``models``."""
    models = read_messages(log, topics.models, ModelVersion)
    return versions.announced(models, read_messages(log, topics.journal, JournalEntry))


@contextmanager
def deciding(store: BundleStore, clock: Clock) -> Iterator[None]:
    """On this machine one at a time: from the last look at the slots until the decision is in the log.

    Between machines, or where the lock cannot be had, the order of the log decides, which every reader sees alike: the
    lock only keeps a decision from passing over one that came a moment before.
    """
    with ExitStack() as held:
        with suppress(OSError):
            store.root.mkdir(parents=True, exist_ok=True)
            _lock(held.enter_context((store.root / LOCK).open("a")), clock)
        yield


def _lock(file: IO[str], clock: Clock) -> None:
    until = clock.monotonic() + LOCK_SECONDS
    while clock.monotonic() < until:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            clock.sleep(LOCK_POLL_SECONDS)
        else:
            return
    logger.warning("decision_not_locked", lock=file.name)


def promote(log: Log, topics: Topics, store: BundleStore, clock: Clock) -> ModelVersion:
    """Make the challenger the champion. Raises ``UnknownModel`` where none waits."""
    version = _waiting(read_slots(log, topics))
    store.try_out(version.bundle)
    with deciding(store, clock):
        slots = read_slots(log, topics)
        if _waiting(slots).version != version.version:
            raise UnknownModel(f"version {version.version} no longer waits: another challenger has come, look at it first")
        return _serve(log, topics, store, clock, slots, version, "promotion")


def _waiting(slots: Slots) -> ModelVersion:
    if slots.challenger is None or (slots.champion and slots.challenger.version <= slots.champion.version):
        raise UnknownModel("no challenger waits: with verdict.policy = 'manual' the next retraining gives one")
    return slots.challenger


def rollback(log: Log, topics: Topics, store: BundleStore, clock: Clock, version: int | None = None) -> ModelVersion:
    """Make an older version (by default the one before the champion) the champion again.

    Raises ``UnknownModel`` where there is no such version, ``BundleRefused`` where its bundle is damaged.
    """
    slots = read_slots(log, topics)
    target = _older(announced(log, topics), slots, version)
    _check_other(slots, target)
    kept = store.bundles()
    if target.bundle not in kept:
        there = [str(one.version) for one in announced(log, topics).values() if one.bundle in kept]
        raise UnknownModel(
            f"version {target.version} was pruned (bundles.keep); there are still: {', '.join(there) or 'none'}"
        )
    store.try_out(target.bundle)
    with deciding(store, clock):
        slots = read_slots(log, topics)
        _check_other(slots, target)
        target = msgspec.structs.replace(target, schema=target.schema or store.schema(target.bundle).digest())
        return _serve(log, topics, store, clock, slots, target, "rollback")


def _older(known: Mapping[int, ModelVersion], slots: Slots, version: int | None) -> ModelVersion:
    if version is None:
        if slots.previous is None:
            raise UnknownModel("there is no version before the champion to roll back to")
        return slots.previous
    if version not in known:
        listed = ", ".join(map(str, known)) or "none yet"
        raise UnknownModel(f"version {version} was never announced; announced versions: {listed}")
    return known[version]


def _check_other(slots: Slots, target: ModelVersion) -> None:
    if slots.champion is not None and slots.champion.version == target.version:
        raise UnknownModel(f"version {target.version} is the champion already")


def _serve(
    log: Log,
    topics: Topics,
    store: BundleStore,
    clock: Clock,
    slots: Slots,
    version: ModelVersion,
    kind: Literal["promotion", "rollback"],
) -> ModelVersion:
    """Announce and journal in one append; call it within ``deciding``, with the slots as they are then.

    The bundle was tried before; that it has not been pruned since is seen here.
    """
    store.verify(version.bundle)
    now = clock.now_ms()
    moves = slots.promote(version, now)
    champion = slots.champion
    entry = JournalEntry(
        id=new_id(kind, moves[-1].sequence),
        kind=kind,
        reason="a person's word",
        verdict="promoted",
        at=now,
        version=version.version,
        bundle=version.bundle,
        data_version=version.data_version,
        champion_version=champion.version if champion else 0,
        champion_bundle=champion.bundle if champion else "",
    )
    log.append([*announcements(topics, moves), Message(topics.journal, to_bytes(entry), entry.id.encode())])
    return moves[-1]


def acknowledge(log: Log, topics: Topics, alarm: str, clock: Clock) -> None:
    """A person's word that what an alarm saw is how it should be."""
    now = clock.now_ms()
    id = f"acknowledgement-{alarm}"
    entry = JournalEntry(id, "acknowledgement", "a person's word", "acknowledged", now, evidence={"alarm": alarm})
    log.append([Message(topics.journal, to_bytes(entry), id.encode())])


def acknowledged(journal: Iterable[JournalEntry]) -> set[str]:
    """The alarms that have a person's word."""
    return {str(entry.evidence.get("alarm")) for entry in journal if entry.kind == "acknowledgement"}


def announcements(topics: Topics, moves: list[ModelVersion]) -> list[Message]:
    """The records of ``models``; the key is the slot."""
    return [Message(topics.models, to_bytes(move), move.state.encode()) for move in moves]


def new_id(kind: str, number: int) -> str:
    """A name that nobody else gives who counts to the same number at the same moment."""
    return f"{kind}-{number}-{uuid.uuid4().hex[:8]}"
