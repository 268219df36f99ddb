"""A person's word on versions: rollback and promotion, what they refuse, what they leave in the journal, who follows."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tidemill.bundle_files import Card
from tidemill.bundles import BundleStore
from tidemill.clock import SystemClock
from tidemill.core.auditing import sequences_rise, versions_rise
from tidemill.core.encoder import Encoder
from tidemill.core.schema import Feature, Schema
from tidemill.core.versions import Slots
from tidemill.errors import BundleRefused, UnknownModel
from tidemill.learners.base import Samples
from tidemill.learners.lightgbm import LightGBM
from tidemill.log.base import Message, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import JournalEntry, ModelVersion, Prediction, Topics, to_bytes
from tidemill.roles.predictor import Predictor
from tidemill.roles.promotion import LOCK, LOCK_SECONDS, deciding, promote, read_slots, rollback
from tidemill.roles.reading import read_messages
from tidemill.settings import Predictor as PredictorSettings
from tidemill.testing.clock import ManualClock
from tidemill.testing.compacted import CompactedLog
from tidemill.wiring import learner

TOPICS = Topics.of("test")
SCHEMA = Schema((Feature("age", "number"),), "income", "binary", ("no", "yes"))
CLOCK = SystemClock()


class World:
    """A log and a store in which versions are announced without a trainer."""

    def __init__(self, folder: Path, kind: type[SqliteLog] = SqliteLog) -> None:
        self.log = kind(folder / "log", "normal")
        self.log.create(Topic(getattr(TOPICS, field)) for field in TOPICS.__struct_fields__)
        self.store = BundleStore(folder / "bundles", learner)

    def version(self, number: int, champion: bool = True) -> str:
        """Write a bundle of its own and put it into a slot."""
        columns = {"age": list(range(200))}
        encoder = Encoder.fit(SCHEMA, columns)
        matrix = encoder.encode(columns).matrix
        labels = (np.arange(200) > 40 * number).astype(np.float64)
        samples = Samples(matrix, labels, None, SCHEMA.columns, encoder.categorical, "binary", 2)
        model = LightGBM().fit(samples, {}, 3, 0, 1)
        card = Card(
            learner="lightgbm",
            metric="log_loss",
            score=0.5,
            parameters={},
            rounds=3,
            seed=0,
            data_version=number,
            rows=200,
            training_set="",
            experiment=f"e{number}",
            version=number,
            created_at=0,
        )
        bundle = self.store.write(model, encoder, card, matrix[:8])
        slots = self.slots
        made = ModelVersion(number, bundle, bundle, SCHEMA.digest(), "challenger", number, f"e{number}", 0, 0)
        moves = slots.promote(made, 0) if champion else slots.challenge(made, 0)
        entry = JournalEntry(
            f"e{number}", "experiment", "asked", "promoted" if champion else "waiting", 0, f"e{number}", number,
            version=number, bundle=bundle, champion_version=slots.champion.version if slots.champion else 0,
        )  # fmt: skip
        records = [Message(TOPICS.models, to_bytes(move), move.state.encode()) for move in moves]
        self.log.append([*records, Message(TOPICS.journal, to_bytes(entry), entry.id.encode())])
        return bundle

    @property
    def slots(self) -> Slots:
        return read_slots(self.log, TOPICS)

    def serving(self) -> int:
        champion = self.slots.champion
        return champion.version if champion else 0

    def decisions(self) -> list[JournalEntry]:
        """The whole journal, experiments too."""
        return read_messages(self.log, TOPICS.journal, JournalEntry)

    def journal(self) -> list[JournalEntry]:
        """A person's words."""
        return [entry for entry in self.decisions() if entry.kind != "experiment"]

    def check(self) -> None:
        """What the audit says of the decisions."""
        models = read_messages(self.log, TOPICS.models, ModelVersion)
        for check in (sequences_rise, versions_rise):
            assert check(models, self.decisions()).examples == []

    def rollback(self, version: int | None = None) -> ModelVersion:
        return rollback(self.log, TOPICS, self.store, CLOCK, version)

    def wait_for_answer(self, id: str) -> Prediction:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for record in read_all(self.log, TOPICS.predictions):
                answer = msgspec.json.decode(record.value, type=Prediction)
                if answer.request_id == id:
                    return answer
            time.sleep(0.02)
        raise AssertionError(f"no answer to {id}")


@pytest.fixture(params=[SqliteLog, CompactedLog])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, request.param)
    yield made
    made.check()
    made.log.close()


def test_rollback_goes_to_the_version_before_or_to_a_named_one(world: World) -> None:
    """The older version gets the highest sequence; each rollback is one entry with both bundles."""
    bundles = {number: world.version(number) for number in (1, 2, 3)}
    assert world.rollback().version == 2
    assert (world.serving(), world.slots.previous and world.slots.previous.version) == (2, 3)
    assert world.rollback(1).version == 1
    assert world.serving() == 1
    first, second = world.journal()
    assert (first.kind, first.verdict, first.version, first.champion_version) == ("rollback", "promoted", 2, 3)
    assert (second.bundle, second.champion_bundle, second.data_version) == (bundles[1], bundles[2], 1)
    assert first.id != second.id
    assert world.rollback().version == 2, "a rollback is rolled back like anything else"


def test_rollback_names_what_there_is_when_it_cannot_be_done(world: World) -> None:
    """No version before, an unknown version, the champion itself: one line each, and nothing is written."""
    with pytest.raises(UnknownModel, match="no version before"):
        world.rollback()
    with pytest.raises(UnknownModel, match="none yet"):
        world.rollback(1)
    world.version(1)
    world.version(2)
    with pytest.raises(UnknownModel, match="version 7 was never announced; announced versions: 1, 2"):
        world.rollback(7)
    with pytest.raises(UnknownModel, match="version 2 is the champion already"):
        world.rollback(2)
    assert world.serving() == 2
    assert world.journal() == []


def test_nobody_is_sent_to_a_damaged_bundle(world: World) -> None:
    """One changed byte in the older bundle: refused, and the champion stays."""
    older = world.version(1)
    world.version(2)
    file = world.store.root / older / "model.txt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleRefused, match=r"model\.txt"):
        world.rollback()
    assert world.serving() == 2
    assert world.journal() == []


def test_a_pruned_bundle_cannot_come_back(world: World) -> None:
    """The version was announced, but its bundle is gone: that is said, and the champion stays."""
    world.version(1)
    world.version(2)
    world.store.prune([world.version(3)])
    with pytest.raises(UnknownModel, match=r"version 1 was pruned \(bundles.keep\); there are still: 3"):
        world.rollback(1)
    assert world.serving() == 3


def test_promotion_needs_a_challenger_that_waits(world: World) -> None:
    """None waits: refused. One waits: it serves, once, and the journal has the person's word."""
    world.version(1)
    with pytest.raises(UnknownModel, match="no challenger waits"):
        promote(world.log, TOPICS, world.store, CLOCK)
    bundle = world.version(2, champion=False)
    assert world.serving() == 1
    assert promote(world.log, TOPICS, world.store, CLOCK).bundle == bundle
    assert world.serving() == 2
    with pytest.raises(UnknownModel, match="no challenger waits"):
        promote(world.log, TOPICS, world.store, CLOCK)
    (entry,) = world.journal()
    assert (entry.kind, entry.version, entry.champion_version) == ("promotion", 2, 1)


class Meeting(BundleStore):
    """Two who decide have both made up their minds before either goes on."""

    def __init__(self, store: BundleStore, of: int = 2) -> None:
        super().__init__(store.root, store.learner)
        self.barrier = threading.Barrier(of, timeout=60)

    def try_out(self, bundle: str) -> None:
        self.verify(bundle)
        self.barrier.wait()


def at_once(*words: Callable[[], ModelVersion]) -> list[int | str]:
    """Each in its thread: the version that serves from then on, or why not."""

    def say(word: Callable[[], ModelVersion]) -> int | str:
        try:
            return word().version
        except UnknownModel as error:
            return str(error)

    with ThreadPoolExecutor(len(words)) as threads:
        return list(threads.map(say, words))


def test_two_rollbacks_at_once_go_back_once(world: World) -> None:
    """The second sees that it has been done."""
    for number in (1, 2, 3):
        world.version(number)
    world.store = Meeting(world.store)
    found = at_once(world.rollback, world.rollback)
    assert sorted(map(str, found)) == ["2", "version 2 is the champion already"]
    assert (world.serving(), len(world.journal())) == (2, 1)


def test_a_promotion_and_a_rollback_at_once_follow_one_another(world: World) -> None:
    """Either may be first; the second's version serves, and the first's is the one before."""
    for number in (1, 2):
        world.version(number)
    world.version(3, champion=False)
    world.store = Meeting(world.store)
    found = at_once(lambda: promote(world.log, TOPICS, world.store, CLOCK), world.rollback)
    assert found == [3, 1]
    words = world.journal()
    assert [entry.champion_version for entry in words] == [2, words[0].version]
    slots = world.slots
    assert slots.champion is not None
    assert slots.previous is not None
    assert (slots.champion.version, slots.previous.version) == (words[1].version, words[0].version)


def test_a_challenger_that_nobody_has_looked_at_is_not_promoted(world: World) -> None:
    """A newer one came between a person's word and its record: the person is told."""
    world.version(1)
    world.version(2, champion=False)
    world.store = Meeting(world.store)

    def challenge() -> ModelVersion:
        world.version(3, champion=False)
        world.store.try_out(world.store.bundles()[0])
        return world.slots.held()[0]

    found = at_once(lambda: promote(world.log, TOPICS, world.store, CLOCK), challenge)
    assert found == ["version 2 no longer waits: another challenger has come, look at it first", 1]
    assert world.journal() == []


def test_a_bundle_that_was_pruned_in_between_is_not_announced(world: World) -> None:
    """It was good when it was tried, and is gone when the word is to be written."""
    world.version(1)
    keep = [world.version(2), world.version(3)]
    world.store = Meeting(world.store)

    def prune() -> ModelVersion:
        with deciding(world.store, CLOCK):
            world.store.try_out(keep[0])
            world.store.prune(keep)
        return world.slots.held()[0]

    refused, champion = at_once(lambda: world.rollback(1), prune)
    assert "no bundle" in str(refused)
    assert (champion, world.serving(), world.journal()) == (3, 3, [])


def test_one_who_hangs_in_a_decision_does_not_keep_others_from_theirs(world: World) -> None:
    """After five seconds they go on without the lock: the order of the log holds all the same."""
    for number in (1, 2):
        world.version(number)
    clock = ManualClock()
    with deciding(world.store, CLOCK):
        assert rollback(world.log, TOPICS, world.store, clock).version == 1
    assert clock.monotonic() >= LOCK_SECONDS
    assert world.serving() == 1


def test_where_no_lock_can_be_had_a_word_is_still_taken(world: World) -> None:
    """The lock's file is a folder here, as where a file system has no locks."""
    for number in (1, 2):
        world.version(number)
    (world.store.root / LOCK).mkdir()
    assert world.rollback().version == 1


def test_records_of_others_are_passed_over(world: World) -> None:
    """Junk in ``models`` and in ``journal``: what was announced is still known, and a person's word is still taken."""
    for number in (1, 2, 3):
        world.version(number)
    for junk in (b"\xff garbage", b"", b"{}", b'{"more":' + b"[" * 100_000):
        world.log.append([Message(TOPICS.models, junk, b"junk"), Message(TOPICS.journal, junk, b"junk")])
    assert rollback(world.log, TOPICS, world.store, CLOCK, 1).version == 1
    assert world.slots.champion is not None
    assert (world.slots.champion.version, world.slots.champion.schema) == (1, SCHEMA.digest())
    for version in world.slots.held():
        assert version.schema == SCHEMA.digest()


def test_the_predictor_follows_a_rollback(world: World) -> None:
    """Answers after it carry the older version and its hash."""
    older, newer = world.version(1), world.version(2)
    stop = threading.Event()
    role = Predictor(world.log, TOPICS, world.store, PredictorSettings(), CLOCK)
    thread = threading.Thread(target=role.run, args=(stop,))
    thread.start()
    try:
        world.log.append([Message(TOPICS.requests, b'{"age": 3}', b"before")])
        before = world.wait_for_answer("before")
        assert (before.version, before.bundle) == (2, newer)
        world.rollback()
        for number in range(2000):
            world.log.append([Message(TOPICS.requests, b'{"age": 3}', f"after-{number}".encode())])
            after = world.wait_for_answer(f"after-{number}")
            if after.version == 1:
                break
        assert (after.version, after.bundle) == (1, older)
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
