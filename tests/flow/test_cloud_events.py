"""Requests and outcomes of a service that speaks CloudEvents and knows nothing of tidemill, from the log to the audit."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tidemill import settings
from tidemill.app.client import Client
from tidemill.audit import Report, audit
from tidemill.bundle_files import Card
from tidemill.bundles import BundleStore
from tidemill.clock import SystemClock
from tidemill.core.encoder import Encoder
from tidemill.core.metrics import metric
from tidemill.core.schema import Feature, Schema
from tidemill.errors import BadRecord
from tidemill.lake import Lake
from tidemill.learners.base import Samples
from tidemill.learners.lightgbm import LightGBM
from tidemill.log.base import Headers, Message, Record, Topic, lag, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import JournalEntry, ModelVersion, Prediction, Topics, to_bytes
from tidemill.roles.monitor import Monitor
from tidemill.roles.predictor import Predictor
from tidemill.roles.recorder import Recorder
from tidemill.wiring import learner

TOPICS = Topics.of("shop")
SCHEMA = Schema((Feature("age", "number"),), "bought", "binary", ("no", "yes"))
RECORDED = [TOPICS.requests, TOPICS.predictions, TOPICS.outcomes, TOPICS.dead_letters]
WAIT = settings.Labels(wait_hours=24.0)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> BundleStore:
    """A store with one bundle."""
    store = BundleStore(tmp_path_factory.mktemp("made") / "bundles", learner)
    rows: dict[str, list[Any]] = {"age": np.random.default_rng(1).uniform(18, 80, 80).tolist()}
    encoder = Encoder.fit(SCHEMA, rows)
    matrix = encoder.encode(rows).matrix
    samples = Samples(matrix, (matrix[:, 0] > 45).astype(np.float64), None, SCHEMA.columns, encoder.categorical, "binary", 2)
    model = LightGBM().fit(samples, {"min_data_in_leaf": 5}, 10, 1, threads=1)
    card = Card(
        learner="lightgbm", metric="log_loss", score=0.4, parameters={}, rounds=10, seed=1, data_version=0, rows=80,
        training_set="", experiment="first", version=1, created_at=0,
    )  # fmt: skip
    store.write(model, encoder, card, matrix[:8])
    return store


class Shop:
    """A log with a champion, and the roles over it."""

    def __init__(self, folder: Path, store: BundleStore) -> None:
        self.folder, self.store = folder, store
        self.log = SqliteLog(folder / "log", "normal")
        self.log.create(Topic(name) for name in msgspec.structs.astuple(TOPICS))
        (bundle,) = store.bundles()
        champion = ModelVersion(1, bundle, bundle, SCHEMA.digest(), "champion", 0, "first", 0, 1)
        entry = JournalEntry("first", "promotion", "", "promoted", 0, version=1, bundle=bundle)
        self.log.append([Message(TOPICS.models, to_bytes(champion), b"champion")])
        self.log.append([Message(TOPICS.journal, to_bytes(entry), b"first")])

    def ask(self, value: bytes, key: bytes | None, *headers: tuple[str, bytes]) -> None:
        self.log.append([Message(TOPICS.requests, value, key, headers)])

    def tell(self, label: str, key: bytes | None, *headers: tuple[str, bytes]) -> None:
        self.log.append([Message(TOPICS.outcomes, b'{"outcome": "%s"}' % label.encode(), key, headers)])

    @contextmanager
    def running(self) -> Iterator[None]:
        """Predictor, recorder and monitor; leaving waits until all that was sent is answered, recorded and joined."""
        stop = threading.Event()
        quick, every = settings.Lake(flush_rows=5, flush_seconds=0.02), settings.Retrain(every=1000)
        with ExitStack() as stack:
            lakes = [stack.enter_context(closing_lake(self.folder)) for _ in range(2)]
            roles: list[Predictor | Recorder | Monitor] = [
                Predictor(self.log, TOPICS, self.store, settings.Predictor(), SystemClock()),
                Recorder(self.log, TOPICS, lakes[0], SCHEMA, quick, SystemClock()),
                Monitor(self.log, TOPICS, lakes[1], SCHEMA, every, WAIT, metric("", "binary"), SystemClock()),
            ]
            threads = [threading.Thread(target=role.run, args=(stop,)) for role in roles]
            for thread in threads:
                thread.start()
            try:
                yield
                until(lambda: not any(lag(self.log, "predictor", [TOPICS.requests]).values()))
                until(lambda: not any(lag(self.log, "recorder", RECORDED).values()))
            finally:
                stop.set()
                for thread in threads:
                    thread.join(60)

    def read(self, topic: str) -> list[Record]:
        return read_all(self.log, topic)

    def audit(self) -> Report:
        with closing_lake(self.folder) as lake:
            return audit(self.log, TOPICS, lake, self.store, labels_wait_ms=round(WAIT.wait_hours * 3_600_000))

    def observed(self) -> list[dict[str, Any]]:
        with closing_lake(self.folder) as lake:
            return lake.observations().to_dicts()


@contextmanager
def closing_lake(folder: Path) -> Iterator[Lake]:
    lake = Lake(folder / "lake")
    try:
        yield lake
    finally:
        lake.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


@pytest.fixture
def shop(tmp_path: Path, bundles: BundleStore) -> Iterator[Shop]:
    shop = Shop(tmp_path, bundles)
    yield shop
    shop.log.close()


def event(name: str, *more: tuple[str, bytes]) -> Headers:
    """A CloudEvent's headers, as its libraries write them."""
    return (
        ("ce_specversion", b"1.0"),
        ("ce_type", b"shop.visit"),
        ("ce_source", b"/shop"),
        ("ce_id", name.encode()),
        ("ce_time", b"2026-01-02T03:04:05Z"),
        ("content-type", b"application/json"),
        *more,
    )


def test_events_are_answered_recorded_joined_and_audited(shop: Shop) -> None:
    """Each under its own id, whatever key the service chose; its outcome finds it by the key or by the event's subject."""
    with shop.running():
        for number in range(6):
            shop.ask(b'{"age": %d}' % (20 + 10 * number), b"customer-%d" % (number % 2), *event(f"visit-{number}"))
        shop.ask(b'{"age": 33}', None, *event("visit-6"))
        shop.ask(b'{"age": 33}', b"plain")
        shop.tell("yes", b"visit-0", *event("told-0"))
        shop.tell("no", None, *event("told-1", ("ce_subject", b"visit-1")))
        shop.tell("no", None, *event("told-6", ("ce_subject", b"visit-6")))
        shop.tell("no", b"plain")
    ids = [*(f"visit-{number}" for number in range(7)), "plain"]
    answers = [msgspec.json.decode(record.value, type=Prediction) for record in shop.read(TOPICS.predictions)]
    assert [answer.request_id for answer in answers] == ids
    assert [record.key for record in shop.read(TOPICS.predictions)] == [name.encode() for name in ids]
    observed = {row["request_id"]: row for row in shop.observed()}
    assert {name: row["outcome"] for name, row in observed.items()} == {
        "visit-0": '"yes"', "visit-1": '"no"', "visit-6": '"no"', "plain": '"no"'
    }  # fmt: skip
    assert observed["visit-1"]["features"] == b'{"age": 30}'
    assert observed["visit-1"]["event_at"] == observed["visit-1"]["outcome_at"] == 1767323045000
    assert observed["plain"]["event_at"] == observed["plain"]["requested_at"]
    report = shop.audit()
    assert report.clean
    assert (report.requests, report.answers, report.dead_letters, report.recomputed, report.unchecked) == (8, 8, 0, 8, 0)


def test_bad_events_become_one_dead_letter_each_and_the_audit_stays_clean(shop: Shop) -> None:
    """With all headers of the event, and the request id where it is known; a restart says nothing twice."""
    trace = (("traceparent", b"00-1"), ("tracestate", b"a=1"))
    with shop.running():
        shop.ask(b'{"age": 20}', b"customer-1", *event("", *trace))
        shop.ask(b'{"age": []}', b"customer-1", *event("visit-1", *trace))
        shop.ask(b'{"age": 20}', b"customer-1", *event("visit-2", ("ce_time", b"now")), *trace)
        shop.ask(b'{"data": {"age": 20}}', b"customer-1", ("content-type", b"application/cloudevents+json"), *trace)
        shop.ask(b'{"age": 20}', b"customer-1", *event("good"))
        shop.tell("perhaps", None, *event("told-1", ("ce_subject", b"good"), *trace))
        shop.tell("yes", None, *event("told-2"), *trace)
    with shop.running():
        shop.tell("yes", b"good")
    letters = shop.read(TOPICS.dead_letters)
    assert all({*trace} <= {*letter.headers} for letter in letters)
    said = [{name: value.decode() for name, value in letter.headers} for letter in letters]
    assert sorted((one["topic"], one["offset"], one["reason"], one["field"], one["request_id"]) for one in said) == [
        (TOPICS.outcomes, "0", "unknown_class", "outcome", "good"),
        (TOPICS.outcomes, "1", "missing_id", "", ""),
        (TOPICS.requests, "0", "bad_id", "ce_id", ""),
        (TOPICS.requests, "1", "wrong_type", "age", "visit-1"),
        (TOPICS.requests, "2", "bad_time", "ce_time", "visit-2"),
        (TOPICS.requests, "3", "wrong_type", "content-type", "customer-1"),
    ]
    assert [row["request_id"] for row in shop.observed()] == ["good"]
    report = shop.audit()
    assert report.clean
    assert (report.requests, report.answers, report.dead_letters) == (5, 1, 6)


def test_an_event_that_comes_twice_is_answered_twice_and_observed_once(shop: Shop) -> None:
    """Also under another key, and with other features: the first counts."""
    with shop.running():
        shop.ask(b'{"age": 20}', b"customer-1", *event("visit-1"))
        shop.ask(b'{"age": 70}', b"customer-2", *event("visit-1"))
        shop.ask(b'{"age": 70}', b"visit-1", *event("other"))
        shop.tell("yes", None, *event("told-1", ("ce_subject", b"visit-1")))
        shop.tell("no", b"visit-1", *event("told-2"))
    answers = [msgspec.json.decode(record.value, type=Prediction) for record in shop.read(TOPICS.predictions)]
    assert [answer.request_id for answer in answers] == ["visit-1", "visit-1", "other"]
    assert answers[0].probability != answers[1].probability == answers[2].probability
    (row,) = shop.observed()
    assert (row["request_id"], row["features"], row["outcome"]) == ("visit-1", b'{"age": 20}', '"yes"')
    assert row["scores"] == [answers[0].probability]
    assert shop.audit().clean


def test_what_an_event_says_with_our_names_changes_nothing(shop: Shop) -> None:
    """A bad request cannot make its dead letter look like another's, or like an answer to somebody who waits."""
    names = ("topic", "partition", "offset", "request_id", "reason", "field", "detail", "role")
    with shop.running(), Client(shop.log, TOPICS) as client:
        shop.ask(b'{"age": []}', b"mine", *event("", *((name, b"mine") for name in names)))
        shop.ask(b'{"age": []}', b"mine", *event("visit-1", *((name, b"mine") for name in names)))
        answer = client.predict({"age": 20}, request_id="mine", timeout=60)
        with pytest.raises(BadRecord, match="wrong_type in 'age'"):
            client.predict({"age": []}, request_id="visit-2", timeout=60)
    assert answer.request_id == "mine"
    assert [dict(letter.headers)["request_id"] for letter in shop.read(TOPICS.dead_letters)] == [b"", b"visit-1", b"visit-2"]
    report = shop.audit()
    assert report.clean
    assert (report.answers, report.dead_letters) == (1, 3)
