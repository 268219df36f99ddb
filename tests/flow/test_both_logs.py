"""One seeded workload through the log on SQLite and the one on Kafka: whoever asks cannot tell them apart."""

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tidemill import settings
from tidemill.bundle_files import Card
from tidemill.bundles import BundleStore
from tidemill.clock import SystemClock
from tidemill.core.encoder import Encoder
from tidemill.core.outcomes import label_numbers
from tidemill.core.schema import Feature, Schema
from tidemill.learners.base import Samples
from tidemill.learners.lightgbm import LightGBM
from tidemill.log.base import Log, Message, Record, Topic, lag, read_all
from tidemill.log.kafka import KafkaLog
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import ModelVersion, Topics, to_bytes
from tidemill.roles.predictor import Predictor
from tidemill.wiring import learner

pytestmark = pytest.mark.kafka

CORPUS = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "bad_requests.jsonl").read_text().splitlines()]
SCHEMA = Schema(
    (Feature("age", "number", minimum=17.0, maximum=90.0), Feature("workclass", "category"), Feature("member", "boolean")),
    "income",
    "binary",
    ("no", "yes"),
)
TIMES = ("requested_at", "predicted_at")
PLACE = ("partition", "offset")
SECONDS = 60.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BundleStore:
    """A store with one bundle, which uses all features."""
    chance = np.random.default_rng(1)
    rows: dict[str, list[Any]] = {
        "age": chance.integers(17, 91, 600).tolist(),
        "workclass": chance.choice(["a", "b", "c", "d"], 600).tolist(),
        "member": chance.choice([True, False], 600).tolist(),
    }
    labels = [
        "yes" if (age > 50) != (work in "ab" and member) else "no" for age, work, member in zip(*rows.values(), strict=True)
    ]
    encoder = Encoder.fit(SCHEMA, rows)
    matrix = encoder.encode(rows).matrix
    samples = Samples(matrix, label_numbers(SCHEMA, labels), None, SCHEMA.columns, encoder.categorical, "binary", 2)
    model = LightGBM().fit(samples, {"min_data_in_leaf": 5}, 20, 0, 1)
    card = Card(
        learner="lightgbm", metric="log_loss", score=0.5, parameters={}, rounds=20, seed=0, data_version=0, rows=600,
        training_set="", experiment="e", version=1, created_at=0,
    )  # fmt: skip
    store = BundleStore(tmp_path_factory.mktemp("made") / "bundles", learner)
    store.write(model, encoder, card, matrix[:64])
    return store


def workload(topic: str, seed: int, unkeyed: int) -> list[list[Message]]:
    """Good, odd and bad requests, some under an id that was there before, in bursts of any length."""
    chance = random.Random(seed)
    keys = [f"id-{number}".encode() for number in range(300)]
    messages = [Message(topic, good(chance), key, trace(chance)) for key in keys]
    messages += [Message(topic, good(chance), chance.choice(keys)) for _ in range(60)]
    messages += [Message(topic, good(chance), None, trace(chance)) for _ in range(unkeyed)]
    messages += [bad(topic, line, f"bad-{number}".encode()) for number, line in enumerate(CORPUS)]
    chance.shuffle(messages)
    bursts = []
    while messages:
        size = chance.randint(1, 60)
        bursts.append(messages[:size])
        messages = messages[size:]
    return bursts


def good(chance: random.Random) -> bytes:
    """Fields in any order; missing, unseen, outside, in text, unknown."""
    fields = {
        "age": chance.choice([chance.randint(17, 90), str(chance.randint(17, 90)), chance.random() * 200, None]),
        "workclass": chance.choice(["a", "b", "c", "d", "never seen", 7, None]),
        "member": chance.choice([True, False, "true", 0, None]),
        "note": ["ignored", {"x": 1}],
    }
    names = chance.sample(list(fields), chance.randint(1, 4))
    return json.dumps({name: fields[name] for name in names}).encode()


def trace(chance: random.Random) -> tuple[tuple[str, bytes], ...]:
    return (("traceparent", b"00-%032x-%016x-01" % (chance.getrandbits(128), chance.getrandbits(64))),) * chance.randint(
        0, 1
    )


def bad(topic: str, line: dict[str, Any], key: bytes) -> Message:
    """A line of the corpus: its bytes as latin-1, long values as their parts."""
    value = line["value"]
    if isinstance(value, list):
        start, left, times, right, times_right, end = value
        value = start + left * times + right * times_right + end
    headers = tuple((name, text.encode("latin-1")) for name, text in line.get("headers", ()))
    return Message(topic, value.encode("latin-1"), line["key"].encode("latin-1") if "key" in line else key, headers)


@contextmanager
def predicting(log: Log, topics: Topics, store: BundleStore) -> Iterator[None]:
    """A predictor in a thread."""
    stop = threading.Event()
    role = Predictor(log, topics, store, settings.Predictor(batch_max=50), SystemClock())
    thread = threading.Thread(target=role.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(SECONDS)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def play(log: Log, topics: Topics, store: BundleStore, partitions: int, bursts: Sequence[Sequence[Message]]) -> None:
    """Send it all to a new project with one champion, and wait until it is answered."""
    shared = {topics.requests, topics.predictions, topics.dead_letters}
    log.create(Topic(name, partitions if name in shared else 1) for name in msgspec.structs.astuple(topics))
    (bundle,) = store.bundles()
    champion = ModelVersion(1, f"bundles/{bundle}", bundle, SCHEMA.digest(), "champion", 0, "e", 0, 1)
    log.append([Message(topics.models, to_bytes(champion), b"champion")])
    with predicting(log, topics, store):
        for burst in bursts:
            log.append(burst)
        until(lambda: lag(log, "predictor", [topics.requests]) == {topics.requests: 0})


def answer(record: Record) -> tuple[object, ...]:
    """All that an answer says but its times."""
    said = {name: value for name, value in msgspec.json.decode(record.value).items() if name not in TIMES}
    return record.key, record.headers, tuple(sorted(said.items()))


def letter(record: Record, without: Sequence[str]) -> tuple[object, ...]:
    """All that a dead letter says, but how long ago a deadline was."""
    late = ("detail",) if ("reason", b"expired") in record.headers else ()
    return record.key, record.value, tuple(header for header in record.headers if header[0] not in (*without, *late))


@pytest.mark.parametrize("partitions", [1, 3])
def test_both_logs_give_the_same_answers_and_dead_letters(
    bootstrap: str, tmp_path: Path, store: BundleStore, partitions: int
) -> None:
    """Bit for bit; with one partition also under the same ids where a request has no key, and from the same places."""
    project = f"both-{uuid.uuid4().hex[:8]}"
    topics = Topics.of(project)
    bursts = workload(topics.requests, seed=partitions, unkeyed=60 if partitions == 1 else 0)
    answers, letters = [], []
    for log in (SqliteLog(tmp_path / "log", "normal"), KafkaLog(bootstrap, project, tmp_path / "slots")):
        with closing(log):
            play(log, topics, store, partitions if isinstance(log, KafkaLog) else 1, bursts)
            answers.append(sorted(map(answer, read_all(log, topics.predictions)), key=repr))
            without = () if partitions == 1 else PLACE
            letters.append(sorted((letter(record, without) for record in read_all(log, topics.dead_letters)), key=repr))
    assert len(answers[0]) == sum(map(len, bursts)) - len(CORPUS)
    assert len(letters[0]) == len(CORPUS)
    assert answers[0] == answers[1]
    assert letters[0] == letters[1]
