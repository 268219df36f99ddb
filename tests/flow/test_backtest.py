"""The backtest against the live loop: the same answers by the same versions, from a data set and from what was recorded."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import polars as pl
import pytest

from tidemill.app.data_set import Options
from tidemill.app.replay import Replay, Summary
from tidemill.audit import audit
from tidemill.backtest.clock import StreamClock
from tidemill.backtest.held import HeldLog
from tidemill.backtest.play import Played
from tidemill.backtest.result import Result, answers_of
from tidemill.backtest.run import Plan, Progress, backtest
from tidemill.backtest.scratch import configured, opened
from tidemill.backtest.stream import Span, Stream, of_lake, of_table
from tidemill.clock import SystemClock
from tidemill.configuration import Configuration
from tidemill.core.inference import Choices
from tidemill.core.metrics import metric
from tidemill.core.policies import parse
from tidemill.core.schema import Feature, Schema
from tidemill.errors import ConfigError
from tidemill.lake import COLUMNS, Lake
from tidemill.log.base import Message, Topic, lag, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import JournalEntry, ModelVersion, Prediction, Topics, to_bytes
from tidemill.new_project import init_project
from tidemill.roles.promotion import read_slots
from tidemill.roles.reading import decided_commands, read_messages
from tidemill.settings import Retrain
from tidemill.tables import read_table
from tidemill.wiring import Wiring

FLIGHTS = Path(__file__).parents[2] / "src" / "tidemill" / "datasets" / "flights.parquet"
CHOICES = Choices(target="late", id="id", time="request_time", ignore=("arr_delay", "outcome_time"))
ORIGINAL, ROWS, EVERY = 3000, 6000, 2000
SECONDS = 120
SETTINGS = {
    "retrain.every": str(EVERY),
    "tune.trials": "2",
    "tune.rounds_max": "15",
    "tune.folds": "2",
    "tracking.tracker": "none",
    "lake.flush_seconds": "0.02",
    "stream.durability": "normal",
}
POLICIES = ("never", f"every:{EVERY}")
Answered = dict[str, tuple[int, str, float | None]]


class World(NamedTuple):
    """A project of flights, and the stream that follows on its original data."""

    configuration: Configuration
    frame: pl.DataFrame

    def stream(self) -> Stream:
        schema = self.configuration.schema
        return Stream(of_table(self.frame, "flights", schema, Topics.of("flights"), "outcome_time", None), Span())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("flights")
    table = read_table(FLIGHTS).sort("id")
    known = table["outcome_time"].drop_nulls().sort()[ORIGINAL - 1]
    table.filter(pl.col("outcome_time") <= known).write_parquet(folder / "original.parquet")
    made = init_project(folder / "original.parquet", folder / "p", CHOICES, "flights", SETTINGS)
    stream = table.filter(pl.col("request_time") > known).head(ROWS)
    return World(made.configuration, stream.with_columns(pl.col("outcome_time") + pl.duration(days=1)))


@pytest.fixture(scope="module")
def live(world: World) -> Answered:
    """What the live loop answers: real roles on the real clock; the stream stands still while they catch up."""
    with running(world.configuration.root) as wiring:
        gate = Gate(wiring, world.stream())
        options = Options(rate=3000.0, outcome_time="outcome_time", answer_wait=SECONDS)
        played = Replay(
            wiring.log,
            wiring.topics,
            wiring.configuration.schema,
            world.frame,
            "flights",
            options,
            SystemClock(),
            gate=gate,
        )
        summary = played.run(threading.Event())
        wait(lambda: gate.through(summary))
        assert (summary.sent, summary.unanswered) == (ROWS, 0)
        return answered(wiring)


@contextmanager
def running(folder: Path) -> Iterator[Wiring]:
    """All roles of a project in threads, each with its own parts."""
    stop = threading.Event()
    wirings = [Wiring(folder) for _ in range(5)]
    roles = ("predictor", "recorder", "monitor", "trainer")
    threads = [
        threading.Thread(target=wiring.run_role, args=(role, stop)) for wiring, role in zip(wirings[1:], roles, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        wait(lambda: read_slots(wirings[0].log, wirings[0].topics).champion is not None)
        yield wirings[0]
    finally:
        stop.set()
        for thread in threads:
            thread.join(SECONDS)
        for wiring in wirings:
            wiring.close()


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Gate:
    """Shut at some requests until all is answered, recorded and joined, every command is decided, and its version serves."""

    def __init__(self, wiring: Wiring, stream: Stream) -> None:
        self.wiring = wiring
        self.lake = Lake(wiring.configuration.lake)
        self.stops = stops(stream)

    def __call__(self, summary: Summary) -> bool:
        if self.stops and summary.sent >= self.stops[0]:
            if not self.through(summary):
                return False
            self.stops.pop(0)
        return True

    def through(self, summary: Summary) -> bool:
        log, topics = self.wiring.log, self.wiring.topics
        behind = lag(log, "predictor", [topics.requests]) | lag(log, "recorder", [topics.predictions, topics.outcomes])
        sent = log.bounds(topics.requests)[0][1] >= summary.sent
        if not sent or any(behind.values()) or self.lake.count("observations") < summary.outcomes:
            return False
        due = {f"labelled-{rows}" for rows in range(EVERY, summary.outcomes + 1, EVERY)}
        if not due <= decided_commands(log, topics):
            return False
        champion = read_slots(log, topics).champion  # after the commands: their decisions are in it
        return champion is not None and newest_swap(self.wiring) == champion.bundle


def stops(stream: Stream) -> list[int]:
    """The numbers of the requests before which the live stream stands still: the first one after each bucket's end, and such
    that no outcome is sent before its request's answer is recorded, so that the order of the observations is the outcomes'.
    (A day passes in a second here: without these an outcome now and then overtakes an answer, as it never does in life.)
    """
    found, covered = set(), 0
    for place in np.flatnonzero(stream.is_outcome).tolist():
        before = int(stream.asked_before[place])
        if int(stream.labels_before[place + 1]) % EVERY == 0:
            covered = before
            found.add(before)
        elif stream.ids.index((stream.messages(place, place + 1)[0].key or b"").decode()) >= covered:
            covered = before - 1
            found.add(covered)
    return sorted(found)


def newest_swap(wiring: Wiring) -> str:
    newest = ""
    for records in wiring.log.follow(wiring.topics.events):
        if not records:
            break
        for record in records:
            event = msgspec.json.decode(record.value)
            newest = event["values"]["bundle"] if event["name"] == "model_swapped" else newest
    return newest


def answered(wiring: Wiring) -> Answered:
    """By request: version, bundle and probability."""
    table = wiring.lake.read(wiring.lake.scan("predictions"))
    answers = [msgspec.json.decode(value, type=Prediction) for value in table["value"].to_list()]
    assert len({answer.request_id for answer in answers}) == len(answers)
    return {answer.request_id: (answer.version, answer.bundle, answer.probability) for answer in answers}


def observed(wiring: Wiring) -> list[str]:
    ids: list[str] = wiring.lake.observations()["request_id"].to_list()
    return ids


def decided(wiring: Wiring) -> list[Any]:
    journal = read_messages(wiring.log, wiring.topics.journal, JournalEntry)
    return [(one.id, one.verdict, one.training_set, one.parameters, one.rounds, one.statistic) for one in journal]


def replayed(folder: Path, name: str) -> Answered:
    """What a policy answered, from the project that was kept."""
    wiring = Wiring(folder / name)
    try:
        return answered(wiring)
    finally:
        wiring.close()


class Runs(NamedTuple):
    """A backtest of the data set and one of what the live loop recorded, each with the folder of its projects."""

    table: Result
    table_folder: Path
    lake: Result
    lake_folder: Path


@pytest.fixture(scope="module")
def runs(world: World, live: Answered, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder, configuration = tmp_path_factory.mktemp("work"), world.configuration
    plan = Plan([parse(policy) for policy in POLICIES], trials=0, work=folder / "table")
    table = backtest(configuration, world.stream(), plan)
    recorded = Stream(of_lake(Lake(configuration.lake), Topics.of("flights"), None), Span())
    plan = msgspec.structs.replace(plan, work=folder / "lake", step=700)
    return Runs(table, folder / "table", backtest(configuration, recorded, plan), folder / "lake")


def plain(result: Result) -> Any:
    """The result without what was measured, and without where it is from."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            left_out = ("source", "seconds", "training_seconds")
            return {name: without(inner) for name, inner in value.items() if name not in left_out}
        return list(map(without, value)) if isinstance(value, list) else value

    return without(msgspec.to_builtins(result))


def test_a_backtest_answers_as_the_live_loop_did(world: World, live: Answered, runs: Runs) -> None:
    """The same observations in the same order, the same decisions, and request by request the same version, the same bundle
    to the last bit, and so the same probability.
    """
    theirs, ours = (Wiring(folder) for folder in (world.configuration.root, runs.table_folder / "2-every-2000"))
    assert observed(ours) == observed(theirs)
    assert decided(ours) == decided(theirs)
    found = replayed(runs.table_folder, "2-every-2000")
    assert len(found) == ROWS
    assert found == live
    assert len({version for version, _, _ in found.values()}) > 1
    assert {version for version, _, _ in replayed(runs.table_folder, "1-never").values()} == {1}


def test_what_was_recorded_plays_again_the_same(live: Answered, runs: Runs) -> None:
    """From the lake, whose log's times are a replay's, so that the events' count; and with other steps."""
    assert runs.lake.source == "the lake, by the event's times"
    assert replayed(runs.lake_folder, "2-every-2000") == live
    assert plain(runs.lake) == plain(runs.table)


def test_the_result_is_that_of_the_answers(world: World, runs: Runs) -> None:
    """Scores, counts and times, computed from the predictions and the data set by hand."""
    result, frame = runs.table, world.frame
    labels = dict(zip((f"flights-{id}" for id in frame["id"]), frame["late"].to_list(), strict=True))
    for number, one in enumerate(result.policies, 1):
        found = replayed(runs.table_folder, f"{number}-{one.policy.replace(':', '-')}")
        pairs = [(labels[id], answer[2]) for id, answer in found.items() if labels[id] is not None]
        by_hand = metric("log_loss", "binary").function(*np.array(pairs, np.float64).T)
        assert one.score == pytest.approx(by_hand, abs=1e-12)
    labelled = frame["late"].drop_nulls().len()
    assert (result.requests, result.labelled, result.scored, sum(result.rows)) == (ROWS, labelled, labelled, labelled)
    assert [len(one.trainings) for one in result.policies] == [1, 1 + labelled // EVERY]
    assert [training.experiment for training in result.policies[1].trainings] == ["first", "labelled-2000", "labelled-4000"]
    times = sorted(time for time in frame["outcome_time"].dt.epoch("ms").to_list() if time is not None)
    assert [training.at for training in result.policies[1].trainings[1:]] == [times[EVERY - 1], times[2 * EVERY - 1]]
    assert result.best == result.chosen == f"every:{EVERY}"
    assert all(training.seconds > 0 for one in result.policies for training in one.trainings)


def test_a_policys_project_is_one_like_any_other(runs: Runs) -> None:
    """What is kept can be looked at, and its audit is clean."""
    wiring = Wiring(runs.table_folder / "2-every-2000")
    try:
        report = audit(wiring.log, wiring.topics, wiring.lake, wiring.store, sample=100)
    finally:
        wiring.close()
    assert report.clean
    assert report.answers == ROWS


def test_nothing_stays_of_what_is_interrupted(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file and no thread, wherever it ends."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def interrupt(progress: Progress) -> None:
        if progress.played is not None and progress.played.done:
            raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        backtest(world.configuration, world.stream(), Plan([parse("never")], step=100), interrupt)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads


def test_a_span_takes_requests_with_their_outcomes(world: World) -> None:
    """By the times of the requests: from the first on, before the last, so many."""
    source = of_table(world.frame, "flights", world.configuration.schema, Topics.of("flights"), "outcome_time", None)
    times = sorted(source.times.tolist())
    some = Stream(source, Span(times[100], times[900], 300))
    assert some.requests == 300
    assert times[100] <= some.asked[0] <= some.asked[-1] < times[900]
    assert some.labelled == sum(source.told[source.ids.index(id)] is not None for id in some.ids)
    assert (np.diff(some.times) >= 0).all()
    with pytest.raises(ConfigError, match="no request in that time: they are of 2013-01-04"):
        Stream(source, Span(until=times[0]))


def test_a_delay_stands_for_the_outcomes_times(world: World) -> None:
    """The same for every row."""
    schema, topics = world.configuration.schema, Topics.of("flights")
    source = of_table(world.frame, "flights", schema, topics, "", 90.0)
    assert {told - asked for asked, told in zip(source.times.tolist(), source.told, strict=True) if told} == {90_000}
    with pytest.raises(ConfigError, match="when were the outcomes known"):
        of_table(world.frame, "flights", schema, topics, "", None)
    with pytest.raises(ConfigError, match="has no column 'late'"):
        of_table(world.frame.drop("late"), "flights", schema, topics, "outcome_time", None)
    with pytest.raises(ConfigError, match="none of its 6,000 requests has an outcome"):
        Stream(of_table(world.frame.with_columns(late=None), "f", schema, topics, "outcome_time", None), Span())


def test_a_live_lake_is_played_by_the_logs_times(tmp_path: Path) -> None:
    """An outcome is known when the log has it, whatever time it says; only an id's first request and outcome count."""
    lake, topics = Lake(tmp_path / "lake"), Topics.of("demo")
    with pytest.raises(ConfigError, match="no recorded requests"):
        of_lake(lake, topics, None)
    asked = [(id, 0, place, 1000 * place, 1000 * place, b"{}") for place, id in enumerate("abca")]
    lake.append("requests", pl.DataFrame(asked, schema=COLUMNS["requests"], orient="row"), {"r": 1})
    with pytest.raises(ConfigError, match="no outcome of any"):
        of_lake(lake, topics, None)
    told = [("a", 0, 0, 9000, '"no"', 5), ("a", 0, 1, 9500, '"yes"', 6), ("c", 0, 2, 8000, '"yes"', None)]
    lake.append("outcomes", pl.DataFrame(told, schema=COLUMNS["outcomes"], orient="row"), {"r": 2})
    stream = Stream(of_lake(lake, topics, None), Span())
    assert stream.name == "the lake, by the log's times"
    assert stream.times.tolist() == [0, 1000, 2000, 8000, 9000]
    sent = stream.messages(0, len(stream))
    assert [message.key for message in sent] == [b"a", b"b", b"c", b"c", b"a"]
    assert msgspec.json.decode(sent[-1].value) == {"outcome": "no", "time": 5}


def test_a_metric_that_decides_takes_each_versions_threshold(world: World, tmp_path: Path) -> None:
    """0.3 is a yes for the first version, whose bar is 0.2, and a no for the second."""
    schema = Schema((Feature("age", "number"),), "rich", "binary", ("no", "yes"))
    own = msgspec.structs.replace(world.configuration, schema=schema)
    with opened(configured(own, tmp_path / "p", Retrain()), StreamClock(0)) as scratch:
        for number, bar in ((1, 0.2), (2, 0.5)):
            version = ModelVersion(number, "", "abc", "", "champion", 0, "e", 0, number, threshold=bar)
            scratch.log.append([Message(scratch.topics.models, to_bytes(version), b"champion")])
        rows = [
            (number, id, 0, number, b"{}", '"yes"', 0, 0, 0, version, "abc", [0.3])
            for number, (id, version) in enumerate([("b", 2), ("a", 1)])
        ]
        frame = pl.DataFrame(rows, schema=COLUMNS["observations"], orient="row")
        scratch.lake.append("observations", frame, {"m": 1})

        class Ids:
            ids = ("a", "x", "b")

        found = answers_of(scratch, Ids, metric("f1", "binary"))  # type: ignore[arg-type]
    assert (found.places.tolist(), found.labels.tolist()) == ([0, 2], [1.0, 1.0])
    assert found.predictions.tolist() == [1.0, 0.0]


def test_a_training_may_take_its_time_of_the_stream(world: World, tmp_path: Path) -> None:
    """Until it is over the version before answers, to the millisecond, and commands wait, and are merged. Progress is told
    all the while.
    """
    told: list[Progress] = []
    schema, hours = world.configuration.schema, 30
    stream = Stream(of_table(world.frame, "flights", schema, Topics.of("flights"), "outcome_time", None), Span(rows=2600))
    settings = world.configuration.settings
    always = msgspec.structs.replace(settings.verdict, policy="always")
    own = msgspec.structs.replace(world.configuration, settings=msgspec.structs.replace(settings, verdict=always))
    plan = Plan([parse("every:400")], step=1000, training_seconds=hours * 3600.0, work=tmp_path / "work")
    found = backtest(own, stream, plan, told.append)
    _, *made = found.policies[0].trainings
    answers = replayed(tmp_path / "work", "1-every-400")
    ready = [training.at + hours * 3_600_000 for training in made]
    expected = [1 + sum(asked > at for at in ready) for asked in stream.asked.tolist()]
    assert [answers[id][0] for id in stream.ids] == expected
    assert set(expected) >= {1, 2}
    assert len(made) < stream.labelled // 400
    assert told[:2] == [Progress("every:400"), Progress("every:400", Played(0, len(stream), 0))]
    assert told[-1] == Progress("every:400", Played(len(stream), len(stream), len(made)))


def test_a_held_log_shows_what_is_ready(tmp_path: Path) -> None:
    """All of the log but one topic's newest records; once released, each of them once, in order."""
    log = SqliteLog(tmp_path / "log", "normal")
    log.create([Topic("models"), Topic("events")])
    held = HeldLog(log, "models")
    followed = held.follow("models", timeout=0.0)
    assert next(followed) == []
    held.append([Message("models", b"1"), Message("events", b"a")])
    assert [record.value for record in next(followed)] == [b"1"]
    held.hold()
    held.append([Message("models", b"2"), Message("models", b"3"), Message("events", b"b")])
    assert next(followed) == []
    assert [record.value for record in read_all(held, "models")] == [b"1"]
    assert [record.value for record in read_all(held, "events")] == [b"a", b"b"]
    held.seen = None
    assert [record.value for record in next(followed)] == [b"2", b"3"]
    assert held.bounds("models") == {0: (0, 3)}
    held.close()
