"""A person's word on versions: rollback and promotion, what they refuse, what they leave in the journal, who follows."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tidemill.bundles import BundleStore, Card
from tidemill.clock import SystemClock
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
from tidemill.roles.promotion import promote, read_slots, rollback
from tidemill.settings import Predictor as PredictorSettings
from tidemill.wiring import learner

TOPICS = Topics.of("test")
SCHEMA = Schema((Feature("age", "number"),), "income", "binary", ("no", "yes"))
CLOCK = SystemClock()


class World:
    """A log and a store in which versions are announced without a trainer."""

    def __init__(self, folder: Path) -> None:
        self.log = SqliteLog(folder / "log", "normal")
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
        self.log.append([Message(TOPICS.models, to_bytes(move), move.state.encode()) for move in moves])
        return bundle

    @property
    def slots(self) -> Slots:
        return read_slots(self.log, TOPICS)

    def serving(self) -> int:
        champion = self.slots.champion
        return champion.version if champion else 0

    def journal(self) -> list[JournalEntry]:
        return [msgspec.json.decode(record.value, type=JournalEntry) for record in read_all(self.log, TOPICS.journal)]

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


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
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
    with pytest.raises(UnknownModel, match="no bundle"):
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
