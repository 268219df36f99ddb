"""The audit finds a clean world clean, and names every fault that is planted in it.

The world is made and spoilt through the public interfaces alone: what a role would have written is appended to the log, the
lake and the store, so no role's own idea of what is right stands between the fault and the audit.
"""

import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from tidemill.audit import Report, audit, render
from tidemill.bundle_files import Card
from tidemill.bundles import BundleStore
from tidemill.core import auditing
from tidemill.core.answers import Answerer
from tidemill.core.auditing import Traffic
from tidemill.core.encoder import Encoder
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.core.schema import Feature, Schema
from tidemill.lake import COLUMNS, Lake, TableName
from tidemill.learners.base import Samples
from tidemill.learners.lightgbm import LightGBM
from tidemill.log.base import Message, Reader, Record, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import JournalEntry, ModelVersion, Outcome, Prediction, Retrain, Topics, Trial, to_bytes
from tidemill.testing.compacted import CompactedLog

SCHEMA = Schema(
    (Feature("age", "number"), Feature("colour", "category", ("blue", "red"))), "bought", "binary", classes=("no", "yes")
)
TOPICS = Topics.of("shop")
WAIT_MS = 3_600_000
HOLD_BACK: tuple[TableName, ...] = ("requests", "predictions", "outcomes", "dead_letters")


class World:
    """A project's log, lake and store, and what each role would do with them, a step at a time."""

    def __init__(self, root: Path, kind: type[SqliteLog] = SqliteLog) -> None:
        self.log = kind(root / "log", "normal")
        self.log.create(Topic(getattr(TOPICS, name)) for name in TOPICS.__struct_fields__)
        self.lake = Lake(root / "lake")
        self.store = BundleStore(root / "bundles", lambda name: LightGBM())
        self.bundles = self.store.bundles()

    def close(self) -> None:
        self.lake.close()
        self.log.close()

    def audit(self, sample: int = 1000) -> Report:
        return audit(self.log, TOPICS, self.lake, self.store, sample, labels_wait_ms=WAIT_MS)

    # The app.

    def ask(self, name: str | None, value: object = None) -> None:
        body = msgspec.json.encode({"age": 31, "colour": "red"} if value is None else value)
        self.log.append([Message(TOPICS.requests, body, name.encode() if name else None)])

    def tell(self, name: str, label: str) -> None:
        self.log.append([Message(TOPICS.outcomes, to_bytes(Outcome(label)), name.encode())])

    # The trainer.

    def train(self, seed: int, schema: Schema = SCHEMA) -> str:
        rng = np.random.default_rng(seed)
        rows: dict[str, list[Any]] = {
            "age": rng.uniform(18, 80, 80).tolist(),
            "colour": rng.choice(["blue", "red"], 80).tolist(),
        }
        encoder = Encoder.fit(schema, rows)
        matrix = encoder.encode(rows).matrix
        labels = (matrix[:, 0] + rng.normal(0, 9, 80) > 45).astype(np.float64)
        samples = Samples(matrix, labels, None, SCHEMA.columns, encoder.categorical, "binary", 2)
        model = LightGBM().fit(samples, {"min_data_in_leaf": 5}, 10, seed, threads=1)
        card = Card(
            learner="lightgbm", metric="log_loss", score=0.4, parameters={}, rounds=10, seed=seed, data_version=0, rows=80,
            training_set="", experiment="first", version=seed, created_at=0,
        )  # fmt: skip
        return self.store.write(model, encoder, card, matrix[:8])

    def announce(self, version: int, bundle: str, sequence: int, state: Any = "champion") -> None:
        model = ModelVersion(version, bundle, bundle, SCHEMA.digest(), state, 0, "first", 0, sequence)
        self.log.append([Message(TOPICS.models, to_bytes(model), state.encode())])

    def decide(
        self,
        id: str,
        version: int = 0,
        bundle: str = "",
        kind: Any = "experiment",
        merged: Sequence[str] = (),
        champion: int = 0,
    ) -> None:
        entry = JournalEntry(
            id, kind, "", "promoted", 0, version=version, bundle=bundle, merged=list(merged),
            experiment=id if kind == "experiment" else "", champion_version=champion,
        )  # fmt: skip
        self.log.append([Message(TOPICS.journal, to_bytes(entry), id.encode())])

    def command(self, id: str, data_version: int) -> None:
        self.log.append([Message(TOPICS.retrain, to_bytes(Retrain(id, "", data_version, 0)), id.encode())])

    def try_parameters(self, number: int, score: float) -> None:
        trial = Trial("first", number, {}, "log_loss", score, [score], 10, 0.1, "", 0)
        self.log.append([Message(TOPICS.trials, to_bytes(trial), f"first/{number}".encode())])

    # Readers.

    def take(self, group: str, *topics: str) -> tuple[Reader, list[Record]]:
        reader = self.log.join(group, topics)
        records: list[Record] = []
        while len(batch := reader.poll(1000, 0.0)):
            records += batch.records()
        return reader, records

    def pass_over(self, group: str, topic: str, *outputs: Message) -> None:
        """Read to the end and commit these outputs, whatever was read."""
        reader, _ = self.take(group, topic)
        reader.commit(outputs)
        reader.close()

    # The predictor.

    def answer(self, version: int, bundle: str, spoil: Callable[[list[Message]], list[Message]] = lambda made: made) -> None:
        reader, records = self.take("predictor", TOPICS.requests)
        with self.store.load(bundle) as loaded:
            answerer = Answerer(MatrixDecoder(loaded.encoder), loaded.model.predict)
            due = answerer.answer([record.value for record in records])
        made = [dead_letter("predictor", records[row]) for row, _ in due.bad]
        for place, label, probability in zip(due.rows, due.predictions, due.probability, strict=True):
            record = records[place]
            answer = Prediction(id_of(record), label, version, bundle, record.time_ms, record.time_ms, probability)
            made.append(Message(TOPICS.predictions, to_bytes(answer), answer.request_id.encode()))
        reader.commit(spoil(made))
        reader.close()

    # The recorder.

    def record(self, spoil: Callable[[TableName, list[Any]], list[Any]] = lambda table, rows: rows) -> None:
        topics = {getattr(TOPICS, table): table for table in HOLD_BACK}
        reader, records = self.take("recorder", *topics)
        letters = [dead_letter("recorder", r) for r in records if r.topic == TOPICS.outcomes and is_bad(r)]
        for topic, table in topics.items():
            mine = [r for r in records if r.topic == topic and not (table == "outcomes" and is_bad(r))]
            end = self.log.bounds(topic)[0][1]
            if any(r.topic == topic for r in records):
                self.put(table, spoil(table, [row_of(table, r) for r in mine]), {f"recorder:{topic}:0": end})
        reader.commit(letters)
        reader.close()

    def put(self, table: TableName, rows: list[Any], positions: dict[str, int]) -> None:
        self.lake.append(table, pl.DataFrame(rows, schema=COLUMNS[table], orient="row"), positions)

    # The monitor.

    def observe(self, spoil: Callable[[list[Any]], list[Any]] = lambda rows: rows) -> None:
        tables: dict[str, list[dict[str, Any]]] = {
            table: self.lake.scan(table).collect().sort("offset").to_dicts() for table in HOLD_BACK[:3]
        }
        seen = set(self.lake.scan("observations").collect()["request_id"])
        rows: list[Any] = []
        for asked in first_by_id(tables["requests"]):
            name = asked["request_id"]
            answers = [row for row in tables["predictions"] if row["request_id"] == name]
            truths = [row for row in tables["outcomes"] if row["request_id"] == name]
            if answers and truths and name not in seen:
                rows.append(observation(len(seen) + len(rows), asked, answers[0], truths[0]))
        ends = {f"monitor:{table}:0": tables[table][-1]["offset"] + 1 for table in tables}
        moved = {app: at for app, at in ends.items() if at > (self.lake.position("observations", app) or 0)}
        self.put("observations", spoil(rows), moved)


def first_by_id(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({row["request_id"]: row for row in reversed(rows)}.values())[::-1]


def observation(number: int, asked: dict[str, Any], answer: dict[str, Any], truth: dict[str, Any]) -> list[Any]:
    prediction = msgspec.json.decode(answer["value"], type=Prediction)
    at = truth["time_ms"] if truth["outcome_at"] is None else truth["outcome_at"]
    return [
        number, asked["request_id"], asked["partition"], asked["offset"], asked["value"], truth["outcome"],
        asked["event_at"],
        asked["time_ms"], at, answer["version"], answer["bundle"],
        [prediction.probability],
    ]  # fmt: skip


def id_of(record: Record) -> str:
    return record.key.decode() if record.key else f"{record.topic}-{record.partition}-{record.offset}"


def is_bad(record: Record) -> bool:
    return b"perhaps" in record.value


def dead_letter(role: str, record: Record) -> Message:
    headers = {"topic": record.topic, "partition": str(record.partition), "offset": str(record.offset), "role": role}
    told = {**headers, "reason": "wrong_type", "field": "age", "detail": "not a number"}
    return Message(TOPICS.dead_letters, record.value, record.key, tuple((k, v.encode()) for k, v in told.items()))


def row_of(table: TableName, record: Record) -> list[Any]:
    place = [record.partition, record.offset, record.time_ms]
    if table == "dead_letters":
        said = {name: value.decode() for name, value in record.headers}
        source = [said["topic"], int(said["partition"]), int(said["offset"])]
        return [*place, *source, *(said[n] for n in ("role", "reason", "field", "detail")), record.key, record.value]
    if table == "requests":
        return [id_of(record), *place, record.time_ms, record.value]
    if table == "outcomes":
        outcome = msgspec.json.decode(record.value, type=Outcome)
        return [id_of(record), *place, msgspec.json.encode(outcome.outcome).decode(), outcome.time]
    answer = msgspec.json.decode(record.value, type=Prediction)
    return [answer.request_id, *place, answer.version, answer.bundle, record.value]


def build(root: Path) -> None:
    """Two versions, an id that is sent twice, one without a key, bad requests and outcomes, labels that come twice."""
    world = World(root)
    rng = random.Random(1)
    bundles = [world.train(seed) for seed in (1, 2)]
    world.command("first", 0)
    world.try_parameters(0, 0.5)
    world.announce(1, bundles[0], 1)
    world.decide("first", 1, bundles[0])
    for number in range(8):
        world.ask(f"r{number}", {"age": rng.uniform(18, 80), "colour": rng.choice(["blue", "red", "green"])})
    world.ask("r3", {"age": 70})
    world.ask(None)
    world.ask("bad", {"age": [1]})
    world.answer(1, bundles[0])
    for number in range(5):
        world.tell(f"r{number}", rng.choice(["no", "yes"]))
    world.tell("r2", "no")
    world.tell("r5", "perhaps")
    world.record()
    world.observe()
    world.command("asked-1", 2)
    world.command("labelled-4", 4)
    world.pass_over("trainer", TOPICS.retrain)
    world.announce(1, bundles[0], 2, "previous")
    world.announce(2, bundles[1], 3)
    world.decide("labelled-4", 2, bundles[1], merged=["asked-1"])
    for number in range(8, 12):
        world.ask(f"r{number}")
    world.answer(2, bundles[1])
    world.tell("r8", "yes")
    world.record()
    world.observe()
    world.ask("waits")
    world.close()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean")
    build(root)
    return root


@pytest.fixture
def world(clean: Path, tmp_path: Path) -> Iterator[World]:
    shutil.copytree(clean, tmp_path, dirs_exist_ok=True)
    world = World(tmp_path)
    first, second = (record.value for record in read_all(world.log, TOPICS.models) if b'"champion"' in record.value)
    world.bundles = [msgspec.json.decode(value, type=ModelVersion).bundle for value in (first, second)]
    yield world
    world.close()


def broken(report: Report) -> dict[str, list[str]]:
    """The checks that found something, with their examples; what is broken is never called clean."""
    named = {check.name: check.examples for check in report.checks if check.problems}
    assert report.clean == (not named)
    assert all(name in render(report) for name in named)
    return named


def test_a_clean_world_is_clean(world: World) -> None:
    """Nothing is found where nothing is wrong, and everything was looked at."""
    report = world.audit()
    assert broken(report) == {}
    assert (report.requests, report.answers, report.dead_letters, report.waiting) == (16, 14, 2, 1)
    assert (report.lost, report.doubled, report.wrong, report.recomputed, report.unchecked) == (0, 0, 0, 14, 0)
    assert (report.observations, report.retrainings, report.bundles, report.versions) == (6, 1, 2, [1, 2])
    assert all(check.checked for check in report.checks)
    assert "clean" in render(report)
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_an_empty_project_is_clean(tmp_path: Path) -> None:
    """Before the first record there is nothing to complain of."""
    world = World(tmp_path)
    assert broken(world.audit()) == {}
    world.close()


def test_a_lost_answer_is_found(world: World) -> None:
    """A request that the predictor has passed without a word is lost; the one behind it only waits."""
    world.pass_over("predictor", TOPICS.requests)
    world.ask("later")
    report = world.audit()
    assert broken(report) == {"answered": ["request waits (last at 0:15) has no answer"]}
    assert (report.lost, report.waiting) == (1, 1)


def test_one_answer_for_two_requests_with_the_same_id_is_a_lost_one(world: World) -> None:
    """An id that is sent twice is owed two answers."""
    world.ask("waits")
    world.answer(2, world.bundles[1], lambda made: made[:1])
    report = world.audit()
    assert list(broken(report)) == ["answered"]
    assert report.lost == 1


def test_a_doubled_answer_is_found(world: World) -> None:
    """A second copy of an answer is one too many."""
    answer = read_all(world.log, TOPICS.predictions)[0]
    world.log.append([Message(TOPICS.predictions, answer.value, answer.key)])
    report = world.audit()
    assert broken(report) == {"answered-once": ["request r0 has 2 answers, 1 due"]}
    assert report.doubled == 1


def test_an_answer_and_a_dead_letter_for_one_request_are_one_too_many(world: World) -> None:
    """A request gets an answer or a dead letter, not both."""
    request = read_all(world.log, TOPICS.requests)[0]
    world.log.append([dead_letter("predictor", request)])
    assert list(broken(world.audit())) == ["answered-once"]


def test_a_doubled_dead_letter_is_found(world: World) -> None:
    """A second dead letter of a request is one too many."""
    letter = next(r for r in read_all(world.log, TOPICS.dead_letters) if ("role", b"predictor") in r.headers)
    world.log.append([Message(TOPICS.dead_letters, letter.value, letter.key, letter.headers)])
    assert broken(world.audit()) == {"answered-once": ["request at 0:10 has 2 dead letters"]}


def test_an_answer_that_nobody_asked_for_is_found(world: World) -> None:
    """An answer or a dead letter without a request is a problem while no request was deleted."""
    answer = msgspec.json.decode(read_all(world.log, TOPICS.predictions)[0].value, type=Prediction)
    ghost = msgspec.structs.replace(answer, request_id="ghost")
    request = msgspec.structs.replace(read_all(world.log, TOPICS.requests)[0], offset=999)
    world.log.append([Message(TOPICS.predictions, to_bytes(ghost), b"ghost"), dead_letter("predictor", request)])
    assert broken(world.audit()) == {
        "asked-for": ["answer to ghost, which nobody asked", "dead letter of a request at 0:999"]
    }


def test_a_dead_letter_with_other_bytes_is_found(world: World) -> None:
    """A dead letter carries what was sent, byte for byte."""

    def spoil(made: list[Message]) -> list[Message]:
        return [msgspec.structs.replace(message, value=b'{"age":[2]}') for message in made]

    world.pass_over("predictor", TOPICS.requests, *world_answers(world, "waits"))
    world.ask("worse", {"age": [1]})
    world.answer(2, world.bundles[1], spoil)
    assert broken(world.audit()) == {
        "dead-letters": ["dead letter of shop.requests at 0:16 has other bytes than the record"]
    }


def world_answers(world: World, name: str) -> list[Message]:
    """The right answers to an id's waiting requests, without a commit."""
    made: list[Message] = []
    records = [record for record in read_all(world.log, TOPICS.requests) if id_of(record) == name]
    with world.store.load(world.bundles[1]) as loaded:
        answerer = Answerer(MatrixDecoder(loaded.encoder), loaded.model.predict)
        due = answerer.answer([record.value for record in records])
    for record, label, probability in zip(records, due.predictions, due.probability, strict=True):
        answer = Prediction(name, label, 2, world.bundles[1], record.time_ms, 0, probability)
        made.append(Message(TOPICS.predictions, to_bytes(answer), name.encode()))
    return made


def spoilt(**changes: Any) -> Callable[[list[Message]], list[Message]]:
    """Answers that differ in these fields; a function is applied to the right value."""

    def spoil(made: list[Message]) -> list[Message]:
        found = []
        for message in made:
            answer = msgspec.json.decode(message.value, type=Prediction)
            new = {name: change(getattr(answer, name)) if callable(change) else change for name, change in changes.items()}
            found.append(msgspec.structs.replace(message, value=to_bytes(msgspec.structs.replace(answer, **new))))
        return found

    return spoil


@pytest.mark.parametrize(
    "changes",
    [{"probability": lambda p: math.nextafter(p, 1.0)}, {"prediction": lambda label: "no" if label == "yes" else "yes"}],
    ids=["last bit", "label"],
)
def test_an_answer_that_its_bundle_does_not_give_is_found(world: World, changes: dict[str, Any]) -> None:
    """One flipped bit of a probability, or another label, is a wrong answer."""
    world.answer(2, world.bundles[1], spoilt(**changes))
    report = world.audit()
    [example] = broken(report)["recomputed"]
    assert example.startswith("answer to waits by version 2 is [")
    assert list(broken(report)) == ["recomputed"]
    assert report.wrong == 1


def test_an_answer_by_another_version_than_it_names_is_found(world: World) -> None:
    """The bundle that an answer names must be the one that gave it."""
    world.answer(2, world.bundles[1], spoilt(version=1, bundle=world.bundles[0]))
    assert list(broken(world.audit())) == ["recomputed"]


@pytest.mark.parametrize("changes", [{"bundle": "f" * 64}, {"version": 7}])
def test_an_answer_by_an_unannounced_version_is_found(world: World, changes: dict[str, Any]) -> None:
    """Version and bundle must have been announced, together."""
    world.answer(2, world.bundles[1], spoilt(**changes))
    assert list(broken(world.audit())) == ["announced"]


def test_answers_of_a_pruned_bundle_are_unchecked(world: World) -> None:
    """What can no longer be recomputed is not a fault, and not good either."""
    world.store.prune({world.bundles[1]})
    report = world.audit()
    assert broken(report) == {}
    assert (report.recomputed, report.unchecked) == (4, 11)


def test_a_sample_is_as_large_as_asked(world: World) -> None:
    """Only so many answers are recomputed; the other checks look at all."""
    report = world.audit(sample=5)
    assert report.recomputed == 5
    assert {check.name: check.checked for check in report.checks}["answered-once"] == 15


@pytest.mark.parametrize("table", HOLD_BACK)
def test_a_row_that_is_twice_in_the_lake_is_found(world: World, table: TableName) -> None:
    """Of every record there is one row."""
    row = list(world.lake.scan(table).collect().sort("offset").row(0))
    world.put(table, [row], {"somebody": 1})
    assert f"lake-{table.replace('_', '-')}" in broken(world.audit())
    assert broken(world.audit())[f"lake-{table.replace('_', '-')}"][0] == "0:0 is in the table twice"


@pytest.mark.parametrize("table", HOLD_BACK)
def test_a_row_that_the_lake_misses_is_found(world: World, table: TableName) -> None:
    """The stored position vouches for every row before it."""
    more_of_everything(world)
    world.record(lambda name, rows: rows[:-1] if name == table else rows)
    assert [*broken(world.audit())] == [f"lake-{table.replace('_', '-')}"]


@pytest.mark.parametrize(
    ("table", "column"), [("requests", 5), ("requests", 4), ("predictions", 6), ("dead_letters", 7), ("outcomes", 0)]
)
def test_a_row_that_differs_from_its_record_is_found(world: World, table: TableName, column: int) -> None:
    """A row has its record's own values."""

    def spoil(name: str, rows: list[Any]) -> list[Any]:
        if name == table:
            old = rows[-1][column]
            rows[-1][column] = old + (" " if isinstance(old, str) else b" " if isinstance(old, bytes) else 1)
        return rows

    more_of_everything(world)
    world.record(spoil)
    assert [*broken(world.audit())] == [f"lake-{table.replace('_', '-')}"]


def more_of_everything(world: World) -> None:
    """A record in each topic that the recorder has not read yet."""
    world.ask("worse", {"age": [1]})
    world.ask("more")
    world.answer(2, world.bundles[1])
    world.tell("nobody", "yes")


def test_a_lake_that_is_ahead_of_the_log_is_found(world: World) -> None:
    """A position beyond the log's end belongs to another log."""
    world.put("requests", [], {"recorder:shop.requests:0": 99})
    assert "lake-requests" in broken(world.audit())


def test_a_row_without_a_record_is_found(world: World) -> None:
    """Nothing is in a table that the log did not bring."""
    row = world.lake.scan("requests").collect().row(0, named=True)
    world.put("requests", [list((row | {"offset": 77}).values())], {"somebody": 1})
    assert broken(world.audit()) == {"lake-requests": ["0:77 is in the table, beyond its position 15"]}


def test_an_outcome_that_is_recorded_as_another_label_is_found(world: World) -> None:
    """The recorded label is the one that was sent."""
    world.tell("r9", "yes")
    world.record(lambda table, rows: [[*row[:4], '"no"', row[5]] if table == "outcomes" else row for row in rows])
    assert broken(world.audit()) == {"outcomes-read": ['outcome 0:8 should not be "no"']}


def test_a_bad_outcome_without_a_dead_letter_is_found(world: World) -> None:
    """A bad outcome is not passed over in silence."""
    world.tell("r9", "perhaps")
    world.put("outcomes", [], {"recorder:shop.outcomes:0": 9})
    world.pass_over("recorder", TOPICS.outcomes)
    assert broken(world.audit()) == {"lake-outcomes": ["0:8 is missing in the table"]}


def test_a_good_outcome_as_a_dead_letter_is_found(world: World) -> None:
    """What can be read must not be refused; and what was recorded must not be refused as well."""
    world.tell("r9", "yes")
    records = read_all(world.log, TOPICS.outcomes)
    world.put("outcomes", [], {"recorder:shop.outcomes:0": 9})
    world.pass_over("recorder", TOPICS.outcomes, dead_letter("recorder", records[8]), dead_letter("recorder", records[0]))
    assert broken(world.audit())["outcomes-read"] == [
        "outcome 0:0 has 1 dead letters and a row",
        "outcome 0:8 should be a row",
    ]


def test_an_observation_twice_is_found(world: World) -> None:
    """One observation for a request id."""
    row = list(world.lake.observations().row(0))
    world.put("observations", [[6, *row[1:]]], {"somebody": 1})
    assert broken(world.audit()) == {"observations-once": ["request r0 at 0:0 is observed 2 times"]}


def test_a_gap_in_the_numbers_is_found(world: World) -> None:
    """The numbers count up without a gap, or "the first K" would mean nothing."""
    label(world)
    world.observe(lambda rows: [[7, *row[1:]] for row in rows])
    assert broken(world.audit()) == {"observations-once": ["number 6 is missing"]}


@pytest.mark.parametrize(
    ("column", "value"),
    [(4, b"{}"), (5, '"no"'), (6, 5), (7, 5), (8, 5), (9, 1), (10, "f" * 64), (11, [0.5])],
    ids=["features", "outcome", "event_at", "requested_at", "outcome_at", "version", "bundle", "scores"],
)
def test_an_observation_that_is_not_the_join_is_found(world: World, column: int, value: Any) -> None:
    """An observation has its own request's bytes, its own answer and its own label."""
    label(world)
    world.observe(lambda rows: [[*row[:column], value, *row[column + 1 :]] for row in rows])
    name = list(COLUMNS["observations"])[column]
    assert broken(world.audit()) == {"observations-join": [f"observation 6 (r9) has another {name}"]}


def test_an_observation_without_an_outcome_is_found(world: World) -> None:
    """What nobody labelled is not observed."""
    requests = world.lake.scan("requests").collect().to_dicts()
    asked = next(row for row in requests if row["request_id"] == "r10")
    answer = next(row for row in world.lake.scan("predictions").collect().to_dicts() if row["request_id"] == "r10")
    truth = {"outcome": '"yes"', "outcome_at": None, "time_ms": 5}
    world.put("observations", [observation(6, asked, answer, truth)], {"somebody": 1})
    assert broken(world.audit()) == {
        "observations-join": ["observation 6 (r10) has no request, prediction or outcome of its own"]
    }


def test_a_missing_observation_is_found(world: World) -> None:
    """What the monitor has read with its answer and its label is observed; what it has not read may wait."""
    label(world)
    assert broken(world.audit()) == {}
    world.observe(lambda rows: [])
    assert broken(world.audit()) == {"observations-all": ["request r9 is labelled and answered, but not observed"]}


def label(world: World) -> None:
    """One more labelled request, recorded."""
    world.answer(2, world.bundles[1])
    world.tell("r9", "yes")
    world.record()


def test_a_command_that_was_sent_twice_is_found(world: World) -> None:
    """A retrain command has an id of its own."""
    world.command("labelled-4", 4)
    assert broken(world.audit()) == {"commands-unique": ["command labelled-4 was sent 2 times"]}


def test_a_first_model_may_be_asked_for_twice_and_again(world: World) -> None:
    """The monitor and a person at the same moment name the same command; one that failed is asked for anew."""
    world.command("first", 0)
    world.command("first-2", 0)
    world.decide("first-2")
    report = world.audit()
    assert broken(report) == {}
    assert report.retrainings == 1, "a first model is no retraining"
    world.decide("first-2")
    assert broken(world.audit()) == {"commands-decided": ["command first-2 has 2 journal entries"]}


@pytest.mark.parametrize(("id", "data_version"), [("labelled-4000", 4000), ("labelled-5", 4)])
def test_a_command_that_was_not_due_is_found(world: World, id: str, data_version: int) -> None:
    """A command is of as many observations as its id says, and as there are."""
    world.command(id, data_version)
    assert list(broken(world.audit())) == ["commands-due"]


def test_a_command_without_a_journal_entry_is_found(world: World) -> None:
    """What the trainer has taken it has decided."""
    world.command("asked-2", 4)
    assert broken(world.audit()) == {}
    world.pass_over("trainer", TOPICS.retrain)
    assert broken(world.audit()) == {"commands-decided": ["command asked-2 was taken but has no journal entry"]}


@pytest.mark.parametrize("id", ["labelled-4", "asked-1"])
def test_a_command_that_was_decided_twice_is_found(world: World, id: str) -> None:
    """Also one that had been merged into another."""
    world.decide(id)
    assert broken(world.audit()) == {"commands-decided": [f"command {id} has 2 journal entries"]}


def test_a_trial_that_is_recorded_twice_differently_is_found(world: World) -> None:
    """A repeated key is the same trial."""
    world.try_parameters(0, 0.5)
    assert broken(world.audit()) == {}
    world.try_parameters(0, 0.4)
    assert broken(world.audit()) == {"trials": ["first/0 was recorded twice, differently"]}


def test_a_sequence_that_does_not_rise_is_found(world: World) -> None:
    """The highest sequence serves, so none may come twice or late."""
    world.announce(3, world.train(3), 3)
    assert broken(world.audit()) == {"sequences-rise": ["sequence 3 comes after 3"]}


def test_two_who_decided_at_the_same_moment_are_no_fault(world: World) -> None:
    """Both had read sequence 3; each has its entry in the journal. A third record without one is still found."""
    for _ in range(2):
        world.announce(2, world.bundles[1], 4, "previous")
        world.announce(1, world.bundles[0], 5)
        world.decide("rollback", 1, world.bundles[0], "rollback", champion=2)
    assert broken(world.audit()) == {}
    world.announce(1, world.bundles[0], 5)
    assert list(broken(world.audit())) == ["sequences-rise", "versions-rise"]


def test_numbers_that_are_missing_among_the_sequences_are_no_fault(world: World) -> None:
    """The log may have removed the records that had them."""
    world.announce(3, world.train(3), 40)
    assert broken(world.audit()) == {}


def third_version(world: World) -> str:
    """Champion, with the second as the previous; the first stands in no slot any more."""
    bundle = world.train(3)
    world.announce(2, world.bundles[1], 4, "previous")
    world.announce(3, bundle, 5)
    world.decide("asked-3", 3, bundle, champion=2)
    return bundle


def test_a_topic_of_which_only_the_last_of_each_slot_is_left_is_clean(world: World, tmp_path: Path) -> None:
    """What was announced stands in the journal: as much is checked as before, and a fault in it is found."""
    third_version(world)
    before = world.audit()
    world.log.close()
    world.log = CompactedLog(tmp_path / "log", "normal")
    report = world.audit()
    assert broken(report) == {}
    assert (report.bundles, report.recomputed, report.unchecked) == (before.bundles, before.recomputed, before.unchecked)
    path = world.store.root / world.bundles[0] / "model.txt"
    path.write_bytes(path.read_bytes()[:-1])
    assert list(broken(world.audit())) == ["bundles"]


def test_outcomes_of_a_schema_that_only_the_journal_remembers_are_good(tmp_path: Path) -> None:
    """An old version read them, and none of today's slots holds it."""
    world = World(tmp_path, CompactedLog)
    world.bundles = [world.train(1, msgspec.structs.replace(SCHEMA, classes=("no", "maybe"))), world.train(2)]
    world.announce(1, world.bundles[0], 1)
    world.decide("first", 1, world.bundles[0])
    world.tell("x", "maybe")
    world.record()
    world.announce(1, world.bundles[0], 2, "previous")
    world.announce(2, world.bundles[1], 3)
    world.decide("asked-2", 2, world.bundles[1], champion=1)
    third_version(world)
    assert broken(world.audit()) == {}
    world.close()


def test_a_version_goes_back_only_by_a_decision(world: World) -> None:
    """A rollback is in the journal, once for each time."""
    world.announce(1, world.bundles[0], 4)
    report = world.audit()
    assert broken(report) == {"versions-rise": ["champion went from version 2 to 1 without a rollback in the journal"]}
    world.decide("rollback-4", 1, world.bundles[0], "rollback")
    assert broken(world.audit()) == {}
    world.announce(2, world.bundles[1], 5)
    world.announce(1, world.bundles[0], 6)
    assert list(broken(world.audit())) == ["versions-rise"]


def test_a_version_with_two_bundles_is_found(world: World) -> None:
    """A version number is one bundle's for ever."""
    world.announce(2, world.bundles[0], 4, "challenger")
    assert broken(world.audit()) == {"versions-rise": ["version 2 was announced with two bundles"]}


@pytest.mark.parametrize("file", ["model.txt", "encoder.json", "schema.json", "manifest.json"])
def test_a_bundle_with_a_flipped_bit_is_found(world: World, file: str) -> None:
    """A bundle has the bytes of its hash; its answers are unchecked then, not wrong."""
    path = world.store.root / world.bundles[1] / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    report = world.audit()
    assert list(broken(report)) == ["bundles"]
    assert report.recomputed == 10


def test_a_champion_without_a_bundle_is_found(world: World) -> None:
    """What serves must be there."""
    world.store.prune({world.bundles[0]})
    [example] = broken(world.audit())["bundles"]
    assert "of the champion, version 2, is not in the store" in example


def test_a_reader_beyond_what_was_written_is_found(world: World) -> None:
    """The monitor cannot have read rows that the recorder has not written."""
    world.put("observations", [], {"monitor:predictions:0": 99})
    assert broken(world.audit()) == {"positions": ["monitor stands at lake-predictions 0:99, outside 0 to 14"]}


def test_a_record_that_cannot_be_read_is_found(world: World) -> None:
    """The project's own messages are JSON of their kind."""
    world.log.append([Message(TOPICS.journal, b"?")])
    assert list(broken(world.audit())) == ["readable"]


def test_a_group_outside_the_log_is_found() -> None:
    """A position before the first record kept means that records were deleted unread."""
    bounds = {("t", 0): (5, 9)}
    for position, problems in ((4, 1), (5, 0), (9, 0), (10, 1)):
        assert auditing.positions_within({("g", "t", 0): position}, bounds).problems == problems


def test_deleted_requests_are_unchecked() -> None:
    """After retention an answer too many or without a request proves nothing; a kept request without one still does."""
    requests = {(0, offset): f"r{offset}" for offset in range(3, 6)}
    traffic = Traffic(requests, ["r0", "r3", "r3", "r4"], {}, {0: 3}, {0: 6}, whole=False)
    assert auditing.answered(traffic).problems == 1
    assert auditing.answered(traffic).unchecked == 3
    once, asked = auditing.answered_once(traffic), auditing.asked_for(traffic)
    assert (once.problems, once.unchecked, asked.problems, asked.unchecked) == (0, 1, 0, 1)


def test_a_gap_before_what_the_log_keeps_is_found() -> None:
    """Of deleted records the table has all, from its first on."""
    rows = [(0, offset, b"") for offset in (2, 3, 5, 8, 9)]
    due = {(0, offset): (b"",) for offset in (8, 9)}
    check = auditing.table_is_log("requests", rows, due, {0: 10}, {0: (8, 10)})
    assert check.examples == ["3 rows are missing between 0:2 and 0:8"]


class Partitions:
    """A log that somebody else wrote, with as many partitions as its records name; only what an audit reads."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def follow(self, topic: str) -> Iterator[list[Record]]:
        yield [record for record in self.records if record.topic == topic]
        yield []

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        places = [(record.partition, record.offset) for record in self.records if record.topic == topic]
        return {number: (0, sum(partition == number for partition, _ in places)) for number in (0, 1)}

    def committed(self, group: str) -> dict[tuple[str, int], int]:
        read = {"predictor": [TOPICS.requests], "recorder": [getattr(TOPICS, table) for table in HOLD_BACK]}
        return {(topic, number): self.bounds(topic)[number][1] for topic in read.get(group, []) for number in (0, 1)}


def scattered_records(world: World, bundle: str) -> list[Record]:
    """``x`` is sent with one key, then with another; whoever reads the second partition first answers that first. Then its
    outcomes, in two partitions too.
    """
    sent = [(0, 0, "x", 20), (1, 0, "x", 70), (0, 1, "y", 30)]
    requests = [
        Record(TOPICS.requests, partition, offset, 5, name.encode(), b'{"age":%d}' % age, ())
        for partition, offset, name, age in sent
    ]
    with world.store.load(bundle) as loaded:
        due = Answerer(MatrixDecoder(loaded.encoder), loaded.model.predict).answer([r.value for r in requests])
    answers = [
        to_bytes(Prediction(sent[row][2], due.predictions[row], 1, bundle, 5, 5, due.probability[row])) for row in (1, 0, 2)
    ]
    predictions = [Record(TOPICS.predictions, 0, place, 5, b"", value, ()) for place, value in enumerate(answers)]
    outcomes = [(0, 0, "x", "no"), (1, 0, "x", "yes"), (0, 1, "y", "yes")]
    return [
        *requests,
        *predictions,
        *(Record(TOPICS.outcomes, p, o, 5, name.encode(), to_bytes(Outcome(label)), ()) for p, o, name, label in outcomes),
    ]


def test_what_has_no_order_is_unchecked_not_wrong(tmp_path: Path) -> None:
    """An id whose records an app scattered over partitions has no first request or outcome; the others are still checked."""
    world = World(tmp_path)
    bundle = world.train(1)
    champion = ModelVersion(1, bundle, bundle, SCHEMA.digest(), "champion", 0, "first", 0, 1)
    records = scattered_records(world, bundle)
    log = Partitions([*records, Record(TOPICS.models, 0, 0, 5, b"champion", to_bytes(champion), ())])
    rows: dict[str, list[dict[str, Any]]] = {}
    for table in HOLD_BACK:
        topic = getattr(TOPICS, table)
        mine = [row_of(table, record) for record in records if record.topic == topic]
        world.put(table, mine, {f"recorder:{topic}:{number}": end for number, (_, end) in log.bounds(topic).items() if end})
        rows[table] = [dict(zip(COLUMNS[table], row, strict=True)) for row in mine]
    observed = [
        observation(0, rows["requests"][1], rows["predictions"][0], rows["outcomes"][1]),
        observation(1, rows["requests"][2], rows["predictions"][2], rows["outcomes"][2]),
    ]
    ends = {
        f"monitor:{table}:{number}": end
        for table in HOLD_BACK[:3]
        for number, (_, end) in log.bounds(getattr(TOPICS, table)).items()
        if end
    }
    world.put("observations", observed, ends)

    def found() -> Report:
        return audit(log, TOPICS, world.lake, world.store, labels_wait_ms=WAIT_MS)  # type: ignore[arg-type]

    report = found()
    assert broken(report) == {}
    counts = {check.name: (check.checked, check.unchecked) for check in report.checks}
    assert counts["recomputed"] == (1, 2)
    assert (counts["observations-join"], counts["observations-all"]) == ((1, 1), (1, 0))
    assert counts["observations-once"] == (2, 0)
    world.put("observations", [[2, *observed[1][1:]]], {"somebody": 1})
    assert "observations-once" in broken(found())
    world.close()
