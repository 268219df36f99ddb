"""Damaged records: roles stop at them, a person mends the log, and what was lost is a dead letter, or unchecked."""

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from tidemill.audit import Report, audit
from tidemill.bundle_files import Card
from tidemill.bundles import BundleStore
from tidemill.clock import SystemClock
from tidemill.core.encoder import Encoder
from tidemill.core.schema import Feature, Schema
from tidemill.errors import LogDamaged
from tidemill.lake import COLUMNS, Lake
from tidemill.learners.base import Samples
from tidemill.learners.lightgbm import LightGBM
from tidemill.log.base import DAMAGED, Message, Record, Topic, lag, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.log.sqlite_check import check
from tidemill.log.sqlite_folder import database_file
from tidemill.log.sqlite_repair import repair
from tidemill.messages import ModelVersion, Outcome, Prediction, Topics, to_bytes
from tidemill.roles.predictor import Predictor
from tidemill.roles.recorder import Recorder
from tidemill.settings import Lake as LakeSettings
from tidemill.settings import Predictor as PredictorSettings
from tidemill.wiring import learner

TOPICS = Topics.of("p")
RECORDED = [TOPICS.requests, TOPICS.predictions, TOPICS.outcomes, TOPICS.dead_letters]
SCHEMA = Schema((Feature("age", "number"),), "old", "binary", ("no", "yes"))
BAD = 8
"""The offset of the request that cannot be answered; the answers to those before it stand where they stand."""
SPOIL = {"damaged": "UPDATE {} SET value = x'00' WHERE offset = ?", "missing": "DELETE FROM {} WHERE offset = ?"}


class World:
    """A project's log, lake and store, with the roles that answer and record."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = SqliteLog(root / "log")
        self.log.create([Topic(getattr(TOPICS, field)) for field in TOPICS.__struct_fields__])
        self.store = BundleStore(root / "bundles", learner)
        self.lake = Lake(root / "lake", 50)

    def close(self) -> None:
        self.lake.close()
        self.log.close()

    def train(self) -> None:
        """One small model, announced."""
        data = {"age": list(range(200))}
        encoder = Encoder.fit(SCHEMA, data)
        matrix = encoder.encode(data).matrix
        labels = np.array([float(age > 100) for age in data["age"]])
        model = LightGBM().fit(Samples(matrix, labels, None, ("age",), (), "binary", 2), {"min_data_in_leaf": 5}, 4, 0, 1)
        facts: dict[str, Any] = {"learner": "lightgbm", "metric": "log_loss", "score": 0.5, "parameters": {}}
        facts |= {"experiment": "e", "rounds": 4, "seed": 0, "data_version": 0, "rows": 200, "training_set": ""}
        bundle = self.store.write(model, encoder, Card(**facts, version=1, created_at=0), matrix[:64])
        announced = ModelVersion(1, bundle, bundle, SCHEMA.digest(), "champion", 0, "e", 0, 1)
        self.log.append([Message(TOPICS.models, to_bytes(announced), b"champion")])

    def ask(self, name: str, value: object) -> None:
        self.log.append([Message(TOPICS.requests, json.dumps(value).encode(), name.encode())])

    def forge(self, name: str) -> None:
        """What an app can send: a request that looks mended."""
        told = b"the record's checksum did not match; see quarantine/1.jsonl"
        self.log.append([Message(TOPICS.requests, b"", name.encode(), ((DAMAGED, told),))])

    def tell(self, name: str, label: str) -> None:
        self.log.append([Message(TOPICS.outcomes, to_bytes(Outcome(label)), name.encode())])

    def predictor(self) -> Predictor:
        return Predictor(self.log, TOPICS, self.store, PredictorSettings(), SystemClock())

    def answer(self) -> None:
        """Let the predictor answer all that was asked."""
        with running(self.predictor().run) as failed:
            until(lambda: failed or not any(lag(self.log, "predictor", [TOPICS.requests]).values()))
        assert failed == []

    def record(self) -> None:
        """Let the recorder record all that is there, and its own dead letters."""
        recorder = Recorder(self.log, TOPICS, self.lake, SCHEMA, LakeSettings(flush_seconds=0.1), SystemClock())
        with running(recorder.run) as failed:
            until(lambda: failed or not any(lag(self.log, "recorder", RECORDED).values()))
        assert failed == []

    def pass_over(self, group: str, topics: list[str], *outputs: Message) -> None:
        """Commit these outputs behind all that is there, whatever it is."""
        reader = self.log.join(group, topics)
        while len(reader.poll(1000, 0.0)):
            pass
        reader.commit(outputs)
        reader.close()

    def damage(self, topic: str, offset: int, how: str = "damaged") -> None:
        [(table,)] = self.rows("SELECT 'records_' || id FROM topics WHERE name = ?", topic)
        self.rows(SPOIL[how].format(table), offset)

    def mend(self) -> None:
        assert repair(self.root / "log").problems == []

    def rows(self, sql: str, *parameters: Any) -> list[Any]:
        """Whatever a statement gives, on the log's own file."""
        with sqlite3.connect(database_file(self.root / "log")) as db:
            found = db.execute(sql, parameters).fetchall()
        db.close()
        return found

    def put_again(self, table: Any, offset: int, /, **changes: Any) -> None:
        """A row of the lake once more, with these changes."""
        row = self.lake.scan(table).collect().row(by_predicate=pl.col("offset") == offset, named=True) | changes
        self.lake.append(table, pl.DataFrame([row], schema=COLUMNS[table]), {"somebody": 1})

    def audit(self) -> Report:
        return audit(self.log, TOPICS, self.lake, self.store)


@contextmanager
def running(run: Callable[[threading.Event], None]) -> Iterator[list[BaseException]]:
    """A role in a thread, and what ended it."""
    stop, failed = threading.Event(), list[BaseException]()

    def body() -> None:
        try:
            run(stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield failed
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.02)


def broken(report: Report) -> dict[str, list[str]]:
    """The checks that found something, with their examples."""
    named = {check.name: check.examples for check in report.checks if check.problems}
    assert report.clean == (not named)
    return named


def unchecked(report: Report) -> dict[str, int]:
    """What each check could not look at."""
    return {check.name: check.unchecked for check in report.checks if check.unchecked}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Requests id-0 to id-9, of which one is bad, answered; two outcomes, of which one is bad; all recorded."""
    root = tmp_path_factory.mktemp("recorded")
    world = World(root)
    world.train()
    for number in range(10):
        world.ask(f"id-{number}", {"age": [0] if number == BAD else 17 * number})
    world.answer()
    world.tell("id-0", "yes")
    world.tell("id-1", "perhaps")
    world.record()
    assert (world.audit().clean, world.audit().unchecked) == (True, 0)
    world.close()
    return root


@pytest.fixture
def world(recorded: Path, tmp_path: Path) -> Iterator[World]:
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    world = World(tmp_path)
    yield world
    world.close()


def test_a_damaged_request_is_mended_into_one_dead_letter(tmp_path: Path) -> None:
    """No role skips it; after the repair all others are answered, the log is good, and the audit is clean."""
    world = World(tmp_path)
    world.train()
    for number in range(10):
        world.ask(f"id-{number}", {"age": number})
    world.damage(TOPICS.requests, 5)
    with running(world.predictor().run) as failed:
        until(lambda: failed)
    assert isinstance(failed[0], LogDamaged)
    assert "`tidemill log repair`" in str(failed[0])
    assert world.log.committed("predictor") == {}

    world.mend()

    world.answer()
    world.record()
    [letter] = read_all(world.log, TOPICS.dead_letters)
    headers = dict(letter.headers)
    assert (headers["offset"], headers["request_id"], headers["reason"]) == (b"5", b"id-5", b"empty")
    assert headers["damaged"] == b"the record's checksum did not match; see quarantine/1.jsonl"
    assert check(tmp_path / "log").problems == []
    report = world.audit()
    assert (report.clean, report.answers, report.dead_letters) == (True, 9, 1)
    world.close()


@pytest.fixture(params=["damaged", "missing"])
def mended(world: World, request: pytest.FixtureRequest) -> World:
    """One record of each topic was lost after it had been recorded; a missing one also lost its key."""
    for topic, offset in ((TOPICS.requests, 3), (TOPICS.predictions, 5), (TOPICS.outcomes, 0), (TOPICS.dead_letters, 0)):
        world.damage(topic, offset, request.param)
    world.mend()
    return world


def test_what_was_damaged_after_it_was_recorded_is_unchecked(mended: World) -> None:
    """The lake says what it was: nothing is lost, doubled or unreadable, and nothing of it is called good."""
    report = mended.audit()
    assert broken(report) == {}
    assert (report.requests, report.answers, report.dead_letters, report.recomputed) == (10, 9, 2, 9)
    tables = {"lake-requests": 1, "lake-predictions": 1, "lake-dead-letters": 1, "lake-outcomes": 1}
    assert unchecked(report) == {"readable": 1, "outcomes-read": 1, **tables}
    mended.record()
    assert broken(mended.audit()) == {}


def test_what_is_decided_after_the_repair_is_checked_as_before(mended: World) -> None:
    """New requests, answers and outcomes of the same ids are good where they are."""
    mended.ask("id-3", {"age": 150})
    mended.answer()
    mended.tell("id-0", "no")
    mended.record()
    report = mended.audit()
    assert broken(report) == {}
    assert (report.answers, report.recomputed) == (10, 10)


def test_a_lost_answer_is_found_beside_mended_records(mended: World) -> None:
    """Of a request of its own, and of one more with a mended one's id."""
    mended.ask("new", {"age": 1})
    mended.ask("id-3", {"age": 1})
    mended.pass_over("predictor", [TOPICS.requests])
    assert broken(mended.audit()) == {
        "answered": ["request id-3 (last at 0:11) has no answer", "request new (last at 0:10) has no answer"]
    }


def test_a_lost_answer_to_a_mended_request_is_found(mended: World) -> None:
    """The lake knows its id: that it was damaged is no excuse."""
    mended.ask("new", {"age": 1})
    mended.record()
    mended.damage(TOPICS.requests, 10, "missing")
    mended.mend()
    mended.pass_over("predictor", [TOPICS.requests])
    assert broken(mended.audit()) == {"answered": ["request new (last at 0:10) has no answer"]}


@pytest.mark.parametrize("name", ["id-3", "id-5", "id-6"], ids=["request", "prediction", "other"])
def test_a_doubled_answer_is_found_beside_mended_records(mended: World, name: str) -> None:
    """Also where the request, or the first answer, is the mended one."""
    mended.log.append([an_answer(mended, name)])
    report = mended.audit()
    assert broken(report) == {"answered-once": [f"request {name} has 2 answers, 1 due"]}
    assert report.doubled == 1


def an_answer(world: World, name: str) -> Message:
    """The answer to an id, as the lake has it."""
    [row] = world.lake.scan("predictions").filter(pl.col("request_id") == name).collect().iter_rows(named=True)
    return Message(TOPICS.predictions, row["value"], name.encode())


def test_a_wrong_answer_is_found_beside_mended_records(mended: World) -> None:
    """To a mended request too, since the lake has its features."""
    for name in ("id-3", "id-6"):
        mended.ask(name, {"age": 199})
        wrong = msgspec.json.decode(an_answer(mended, name).value, type=Prediction)
        wrong = msgspec.structs.replace(wrong, probability=0.125)
        mended.pass_over("predictor", [TOPICS.requests], Message(TOPICS.predictions, to_bytes(wrong), name.encode()))
    report = mended.audit()
    assert list(broken(report)) == ["recomputed"]
    assert report.wrong == 2


def test_wrong_features_of_a_mended_request_are_found(mended: World) -> None:
    """What the lake says of it must give the answer that it got."""
    table = mended.lake.scan("requests").collect()
    changed = table.with_columns(value=pl.when(pl.col("offset") == 3).then(pl.lit(b'{"age":199}')).otherwise("value"))
    positions = {"recorder:p.requests:0": 10}
    mended.lake.close()
    shutil.rmtree(mended.root / "lake" / "requests")
    mended.lake = Lake(mended.root / "lake", 50)
    mended.lake.append("requests", changed, positions)
    assert list(broken(mended.audit())) == ["recomputed"]


@pytest.mark.parametrize(
    ("table", "offset"), [("requests", 3), ("requests", 4), ("predictions", 5), ("predictions", 4), ("dead_letters", 0)]
)
def test_a_row_that_is_twice_in_the_lake_is_found_beside_mended_records(mended: World, table: str, offset: int) -> None:
    """Also one that stands for a mended record."""
    mended.put_again(table, offset)
    name = f"lake-{table.replace('_', '-')}"
    assert f"0:{offset} is in the table twice" in broken(mended.audit())[name]


def test_rows_without_a_record_are_found_beside_mended_records(mended: World) -> None:
    """A mended record excuses no row but its own."""
    mended.put_again("outcomes", 0, offset=1)
    mended.put_again("predictions", 5, offset=99)
    found = broken(mended.audit())
    assert found["lake-predictions"] == ["0:99 is in the table, beyond its position 9"]
    assert found["outcomes-read"] == ["outcome 0:1 has 1 dead letters and a row"]


def test_a_row_that_the_lake_misses_is_found_beside_mended_records(mended: World) -> None:
    """Every request and dead letter has a row, whatever it is; so has a good outcome."""
    mended.forge("new")
    mended.answer()
    mended.tell("new", "yes")
    ends = {topic: mended.log.bounds(topic)[0][1] for topic in RECORDED}
    for table in ("requests", "outcomes", "dead_letters"):
        topic = getattr(TOPICS, table)
        mended.lake.append(table, pl.DataFrame(schema=COLUMNS[table]), {f"recorder:{topic}:0": ends[topic]})
    mended.pass_over("recorder", RECORDED)
    found = broken(mended.audit())
    assert found["lake-requests"] == ["0:10 is missing in the table"]
    assert found["lake-outcomes"] == ["0:2 is missing in the table"]
    assert found["lake-dead-letters"] == ["0:2 is missing in the table"]


def test_dead_letters_of_records_that_were_damaged_later_are_unchecked_or_compared(world: World) -> None:
    """A letter has the bytes that the lake remembers, or those of the mended record, and no others."""
    world.damage(TOPICS.requests, BAD)
    world.damage(TOPICS.outcomes, 1)
    world.mend()
    report = world.audit()
    assert broken(report) == {}
    assert unchecked(report)["dead-letters"] == 1, "the lake has no bytes of an outcome"
    [letter] = [r for r in read_all(world.log, TOPICS.dead_letters) if ("role", b"predictor") in r.headers]
    world.log.append([Message(TOPICS.dead_letters, b"{}", letter.key, letter.headers)])
    assert broken(world.audit())["dead-letters"] == [f"dead letter of p.requests at 0:{BAD} has other bytes than the record"]


def test_an_answer_that_was_damaged_before_it_was_recorded_counts_by_its_key(world: World) -> None:
    """Its request is not lost; what it said is unchecked, before and after the recorder has refused it."""
    world.ask("id-3", {"age": 160})
    world.ask("id-3", {"age": 20})
    world.answer()
    world.damage(TOPICS.predictions, 9)
    world.mend()
    for _ in range(2):
        report = world.audit()
        assert broken(report) == {}
        assert (report.lost, report.answers, report.recomputed, report.versions) == (0, 11, 10, [1])
        assert {"readable": 1, "announced": 1, "recomputed": 1}.items() <= unchecked(report).items()
        world.record()
    assert unchecked(world.audit())["readable"] == 1
    world.log.append([an_answer(world, "id-6")])
    assert list(broken(world.audit())) == ["answered-once"]


def test_an_answer_beside_one_that_counts_by_its_key_is_one_too_many(world: World) -> None:
    """What counts as an answer counts against a second one too."""
    world.ask("new", {"age": 160})
    world.answer()
    answer: Record = read_all(world.log, TOPICS.predictions)[-1]
    world.damage(TOPICS.predictions, 9)
    world.mend()
    world.log.append([Message(TOPICS.predictions, answer.value, answer.key)])
    assert broken(world.audit()) == {"answered-once": ["request new has 2 answers, 1 due"]}


def test_a_mended_trial_is_no_other_trial(world: World) -> None:
    """Of two equal records one was damaged: they are not called different."""
    world.log.append([Message(TOPICS.trials, b"{}", b"e/0"), Message(TOPICS.trials, b"{}", b"e/0")])
    world.damage(TOPICS.trials, 0)
    world.mend()
    assert "trials" not in broken(world.audit())


@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_forged_request_is_a_request_like_any_other(world: World, is_recorded: bool) -> None:
    """It gets its dead letter; without one it is lost, and no other id's answer goes unseen behind it."""
    world.forge("id-6")
    world.answer()
    if is_recorded:
        world.record()
    report = world.audit()
    assert broken(report) == {}
    assert (report.answers, report.dead_letters) == (9, 3)
    world.log.append([an_answer(world, "id-6")])
    assert broken(world.audit()) == {"answered-once": ["request id-6 has 2 answers, 1 due"]}


@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_forged_request_without_a_dead_letter_is_found(world: World, is_recorded: bool) -> None:
    """Lost where it was passed over; and an answer too many to its id is no answer to it."""
    world.forge("id-6")
    world.pass_over("predictor", [TOPICS.requests])
    if is_recorded:
        world.record()
    assert broken(world.audit()) == {"answered": ["request id-6 (last at 0:10) has no answer"]}
    world.log.append([an_answer(world, "id-6")])
    [example] = broken(world.audit())["recomputed"]
    assert example.startswith("answer to id-6 was given to a bad request")
