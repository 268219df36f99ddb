"""The watch over a real log, lake and store: what it counts, when it raises an alarm, what it asks for, and restarts."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from tidemill import failpoints
from tidemill.bundle_files import Card, OutOfFold
from tidemill.bundles import BundleStore
from tidemill.core.metrics import Metric, metric
from tidemill.core.schema import Feature, Schema
from tidemill.core.training_set import Rows
from tidemill.core.versions import Slots
from tidemill.lake import COLUMNS, Lake, TableName
from tidemill.learners.lightgbm import LightGBM
from tidemill.log.base import Message, Topic
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Event, JournalEntry, ModelVersion, Prediction, Retrain, Topics, to_bytes
from tidemill.roles import watch
from tidemill.roles.experiment import Blocking, fitted, prepare, refer
from tidemill.roles.looks import Look, Matured
from tidemill.roles.promotion import announcements, read_slots
from tidemill.roles.reading import read_messages
from tidemill.roles.watch import Watcher
from tidemill.settings import Drift, Tune
from tidemill.settings import Retrain as RetrainSettings
from tidemill.testing.clock import ManualClock
from tidemill.wiring import learner

TOPICS = Topics.of("demo")
SCHEMA = Schema(
    (Feature("heat", "number"), Feature("place", "category"), Feature("noise", "number")),
    "late",
    "binary",
    ("no", "yes"),
    time="at",
)
DAY = 86_400_000
HOUR = 3_600_000
START = 1_700_000_000_000 // DAY * DAY
DAILY = 300
LOG_LOSS = metric("log_loss", "binary")
PLACES = ("inn", "mill", "quay")


def people(days: range, seed: int) -> tuple[dict[str, list[Any]], NDArray[np.float64], NDArray[np.int64]]:
    """Rows of a time series: heat has a level of its own each day, and with the place says how likely yes is."""
    rng = np.random.default_rng((seed, 1000 + days.start))
    rows = len(days) * DAILY
    level = np.repeat(rng.normal(0, 0.5, len(days)), DAILY)
    heat = level + rng.normal(0, 1, rows)
    place = rng.integers(0, 3, rows)
    chance = 1 / (1 + np.exp(-(1.5 * heat + place - 1)))
    columns = {"heat": heat.tolist(), "place": [PLACES[i] for i in place], "noise": rng.normal(0, 1, rows).tolist()}
    times = START + np.repeat(np.array(days), DAILY) * DAY + np.tile(np.arange(DAILY) * (DAY // DAILY), len(days))
    return columns, (rng.random(rows) < chance).astype(np.float64), times


class World:
    """A champion that learnt from 40 days, a lake that a recorder fills day by day, and a watch that may start again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = SqliteLog(folder / "log", "normal")
        self.log.create(Topic(name) for name in msgspec.structs.astuple(TOPICS))
        self.lake = Lake(folder / "lake")
        self.clock = ManualClock(START)
        self.store = BundleStore(folder / "bundles", learner)
        self.rows = 0
        self.observed = 0
        self.asked: list[Retrain] = []
        self.before_watch: Callable[[], None] = lambda: None
        self.watch: Any = None
        self.watch_lake: Any = None
        self.model: Any = None
        self.encoder: Any = None

    def train(self, days: range = range(-40, 0), with_reference: bool = True) -> None:
        columns, labels, times = people(days, 0)
        rows = Rows(columns, [SCHEMA.classes[int(label)] for label in labels], times.tolist())
        prepared = prepare(SCHEMA, rows, Tune(folds=3, split="time"), 0)
        samples, lgb = prepared.samples, LightGBM()
        predicted = np.full(len(labels), np.nan)
        for trained, scored in prepared.folds:
            part = msgspec.structs.replace(samples, matrix=samples.matrix[trained], labels=samples.labels[trained])
            predicted[scored] = lgb.fit(part, {}, 30, 0, 1).predict(samples.matrix[scored])
        model = lgb.fit(samples, {}, 30, 0, 1)
        found = OutOfFold(samples.labels, predicted)
        reference = refer(model, prepared, lgb.importances(model.to_bytes()), prepared, found, Blocking("", DAY))
        made = fitted(model, prepared)
        number = 1 + max((one.version for one in read_messages(self.log, TOPICS.models, ModelVersion)), default=0)
        card = Card(
            learner="lightgbm",
            metric="log_loss",
            score=0.5,
            parameters={},
            rounds=30,
            seed=number,
            data_version=0,
            rows=len(labels),
            training_set="",
            experiment=f"e{number}",
            version=number,
            created_at=self.clock.now_ms(),
        )
        kept = (found, reference) if with_reference else (None, None)
        bundle = self.store.write(made.model, made.encoder, card, made.golden, 0.5, *kept)
        version = ModelVersion(number, bundle, bundle, SCHEMA.digest(), "challenger", 0, "", self.clock.now_ms(), 0)
        slots: Slots = read_slots(self.log, TOPICS)
        self.log.append(announcements(TOPICS, slots.promote(version, self.clock.now_ms())))
        self.model, self.encoder, self.version = model, made.encoder, version

    def start(self, retrain: RetrainSettings | None = None, measure: Metric = LOG_LOSS, **drift: Any) -> None:
        if self.watch_lake:
            self.watch_lake.close()
        self.watch_lake = Lake(self.folder / "lake")
        self.watch = Watcher(
            self.log,
            TOPICS,
            self.watch_lake,
            self.store,
            Drift(**{"window_rows": DAILY, **drift}),
            retrain or RetrainSettings(),
            720.0,
            measure,
            0,
            self.clock,
        )
        assert self.watch.hold()
        self.watch.start(self.send)

    def send(self, command: Retrain | None) -> None:
        if command is not None and command.id not in {one.id for one in self.asked}:
            self.asked.append(command)

    def serve(
        self,
        days: range,
        seed: int = 1,
        flip: bool = False,
        told: bool | Callable[[dict[str, Any]], bool] = True,
        watched: bool = True,
        moved: Callable[[NDArray[np.int64]], NDArray[np.int64]] = lambda times: times,
        **change: Any,
    ) -> None:
        """Serve and label days of requests, a look each; outcomes come at once, of those rows that are ``told``. ``change``:
        column=function of a value.
        """
        for day in days:
            columns, labels, times = people(range(day, day + 1), seed)
            for name, function in change.items():
                columns[name] = [function(value) for value in columns[name]]
            self.clock.advance(max(0.0, (START + (day + 1) * DAY - self.clock.now_ms()) / 1000))
            self._record(columns, 1 - labels if flip else labels, moved(times), told)
            self.before_watch()
            while watched and self.watch.turn(self.observed):
                pass

    def _record(
        self,
        columns: dict[str, list[Any]],
        labels: NDArray[np.float64],
        times: NDArray[np.int64],
        told: bool | Callable[[dict[str, Any]], bool],
    ) -> None:
        scores = self.model.predict(self.encoder.encode(columns).matrix)
        at, bundle, version = self.clock.now_ms(), self.version.bundle, self.version.version
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        values = [msgspec.json.encode(row) for row in rows]
        requests, answers = [], []
        observations: list[Any] = []
        for i, (value, score, label, time) in enumerate(zip(values, scores, labels, times, strict=True)):
            offset = self.rows + i
            id, text = f"r{offset}", msgspec.json.encode(SCHEMA.classes[int(label)]).decode()
            answer = Prediction(id, "yes", version, bundle, 0, 0, probability=float(score))
            requests.append((id, 0, offset, at, int(time), value))
            answers.append((id, 0, offset, at, version, bundle, to_bytes(answer)))
            known = int(time), at, int(time) + 2 * HOUR, version, bundle, [float(score)]
            if told(rows[i]) if callable(told) else told:
                number = self.observed + len(observations)
                observations.append((number, id, 0, offset, value, text, *known))
        self.rows += len(values)
        mark = {"recorder:demo.requests:0": self.rows}
        self._append("requests", requests, mark)
        self._append("predictions", answers, {"recorder:demo.predictions:0": self.rows})
        if observations:
            self.observed += len(observations)
            self._append("observations", observations, {"monitor": self.observed})

    def _append(self, table: TableName, rows: list[Any], marks: dict[str, int]) -> None:
        self.lake.append(table, pl.DataFrame(rows, schema=COLUMNS[table], orient="row"), marks)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [one.values for one in read_messages(self.log, TOPICS.events, Event) if one.name == name]

    def looks(self) -> list[Look]:
        rows = self.lake.read(self.lake.scan("looks").filter(pl.col("kind") == "look").sort("number"))
        return [msgspec.json.decode(value, type=Look) for value in rows["value"]]

    def matured(self) -> list[Matured]:
        rows = self.lake.read(self.lake.scan("looks").filter(pl.col("kind") == "matured").sort("number"))
        return [msgspec.json.decode(value, type=Matured) for value in rows["value"]]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.train()
    yield world
    if world.watch_lake:
        world.watch_lake.close()
    world.lake.close()
    world.log.close()


def test_where_nothing_changes_all_is_counted_and_nothing_is_said(world: World) -> None:
    """40 days like those before: a look a day, each told once its outcomes are in, the metric expected beside the real one
    within its interval about as often as it says, and no alarm.
    """
    world.start()
    world.serve(range(40))
    looks = world.looks()
    assert [one.number for one in looks] == list(range(40))
    assert sum(one.tally.rows for one in looks) == 40 * DAILY
    assert looks[5].tally.rows == sum(looks[5].tally.features[0]) == sum(looks[5].tally.predictions)
    matured = world.events("window_matured")
    assert len(matured) >= 38
    assert all(one["labelled"] == one["requests"] for one in matured)
    inside = [one["low"] <= one["score"] <= one["high"] for one in matured]
    assert np.mean(inside) > 0.75
    assert not world.events("alarm_raised")
    assert world.asked == []


def test_a_unit_that_changes_is_named_and_answered_as_the_mode_says(world: World) -> None:
    """Celsius for Fahrenheit: one alarm, that names the feature and the predictions; by ``auto`` one command with the
    evidence, again after the cooldown while it is up.
    """
    world.start(RetrainSettings(drift="auto", drop="off", cooldown_hours=7 * 24))
    world.serve(range(10))
    world.serve(range(10, 20), told=False, heat=lambda value: 32 + 1.8 * value)
    (raised,) = world.events("alarm_raised")
    assert raised["findings"][0]["name"] == "heat"
    assert {one["name"] for one in raised["findings"]} <= {"heat", "prediction"}
    assert "heat: above" in raised["text"]
    first, second = world.asked
    assert first.reason == second.reason == "drift"
    assert first.data_version == 10 * DAILY
    assert first.evidence["alarm"] == raised["alarm"]
    assert second.id != first.id
    assert not world.events("retraining_suggested")


@pytest.mark.parametrize(("mode", "suggested"), [("suggest", 1), ("off", 0)])
def test_modes_that_leave_it_to_a_person(world: World, mode: Any, suggested: int) -> None:
    """``suggest`` says so once, ``off`` says nothing but the alarm; neither sends a command."""
    world.start(RetrainSettings(drift=mode, drop=mode, cooldown_hours=24))
    world.serve(range(8))
    world.serve(range(8, 16), told=False, heat=lambda value: 32 + 1.8 * value)
    assert len(world.events("alarm_raised")) == 1
    assert len(world.events("retraining_suggested")) == suggested
    assert world.asked == []


def test_a_label_that_flips_is_a_drop(world: World) -> None:
    """Features and predictions are as ever, so no distance between them shows it: the error does, when outcomes come."""
    world.start(RetrainSettings(drift="off", drop="auto"))
    world.serve(range(10))
    world.serve(range(10, 18), flip=True)
    (raised,) = world.events("alarm_raised")
    assert raised["findings"][0]["name"] == "error"
    assert any("adwin" in one["error_changed"] for one in world.events("window_matured")[10:])
    assert not any(one["error_changed"] for one in world.events("window_matured")[:9])
    assert not {"heat", "place", "noise", "prediction"} & {one["name"] for one in raised["findings"]}
    assert {one.reason for one in world.asked} == {"drop"}


def test_outcomes_that_come_for_some_only_are_told(world: World) -> None:
    """Two places of three report theirs: the windows end without the third's, and say what the labelled are unlike."""
    world.start()
    world.serve(range(14))
    alike = [one["labelled_like_served"] for one in world.events("window_matured")]
    assert not any("differ in" in text for text in alike)
    before = len(alike)
    world.serve(range(14, 40), told=lambda row: row["place"] != "quay")
    told = world.events("window_matured")[before:]
    partly = [one for one in told if one["labelled"] < one["requests"]]
    assert partly
    assert all("differ in place (distance 0." in one["labelled_like_served"] for one in partly)


def test_what_was_recorded_before_the_watch_began_is_judged_the_same(world: World) -> None:
    """A monitor that is behind tells outcomes before it looks further: labels that flipped meanwhile are a drop."""
    retrain = RetrainSettings(drift="off", drop="auto")
    world.start(retrain)
    world.serve(range(8), watched=False)
    world.serve(range(8, 16), flip=True, watched=False)
    while world.watch.turn(world.observed):
        pass
    assert len(world.looks()) < 16
    assert [one["findings"][0]["name"] for one in world.events("alarm_raised")] == ["error"]
    assert {one.reason for one in world.asked} == {"drop"}


def test_a_window_larger_than_a_read_is_looked_at_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a look takes where the monitor is behind: all requests and all answers of a day."""
    monkeypatch.setattr(watch, "LOOK_ROWS", 100)
    world.start()
    world.serve(range(3))
    assert [(one.tally.rows, sum(one.tally.predictions)) for one in world.looks()] == [(DAILY, DAILY)] * 3


def test_an_older_versions_outcomes_are_told_by_its_own_threshold(world: World) -> None:
    """Its look was made before another version came to serve; what is told of it is as if none had."""
    world.start()
    world.serve(range(4), told=False)
    threshold = 0.9
    old = msgspec.structs.replace(world.version, threshold=threshold, state="champion", sequence=50)
    world.log.append(announcements(TOPICS, [old]))
    world.train(range(-39, 1))
    assert world.watch._older(world.looks()[0]).threshold == threshold


@pytest.mark.parametrize("name", ["r2", "rmse"])
def test_a_metric_that_does_not_fit_what_serves_is_not_told(world: World, name: str) -> None:
    """The schema was made a regression's while an older champion serves: it is watched, and neither expected nor scored."""
    world.start(measure=metric(name, "regression"))
    world.serve(range(4))
    assert len(world.looks()) == 4
    assert [(one["score"], one["expected"]) for one in world.events("window_matured")] == [(None, None)] * 4
    assert world.matured()[0].tally.labelled == DAILY


def test_a_time_from_another_century_stretches_no_window(world: World) -> None:
    """One request of each day says that it was made in 1970, another in 5138: looks span their days, and raise nothing."""

    def moved(times: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([[0, 100_000_000_000_000], times[2:]])

    world.start()
    world.serve(range(12), moved=moved)
    assert all(one.tally.ended_at - one.tally.began_at < DAY for one in world.looks())
    assert not world.events("alarm_raised")


def test_an_alarm_clears_by_itself(world: World) -> None:
    """Two looks without it and it is over; when the same comes again, it is another one."""
    world.start(window_blocks=3)
    world.serve(range(8))
    world.serve(range(8, 12), heat=lambda value: value + 4)
    world.serve(range(12, 20))
    (cleared,) = world.events("alarm_cleared")
    assert cleared["why"] == "back to normal"
    world.serve(range(20, 24), heat=lambda value: value + 4)
    assert len({one["alarm"] for one in world.events("alarm_raised")}) == 2


def test_what_a_person_acknowledges_is_the_new_normal(world: World) -> None:
    """The alarm clears, and the same state raises none again; a shift beyond it does."""
    world.start(window_blocks=3)
    world.serve(range(8))
    world.serve(range(8, 12), told=False, heat=lambda value: value + 4)
    (raised,) = world.events("alarm_raised")
    entry = JournalEntry("a1", "acknowledgement", "a person's word", "acknowledged", 0, evidence={"alarm": raised["alarm"]})
    world.log.append([Message(TOPICS.journal, to_bytes(entry), b"a1")])
    world.serve(range(12, 22), told=False, heat=lambda value: value + 4)
    (cleared,) = world.events("alarm_cleared")
    assert cleared["why"] == "acknowledged"
    assert len(world.events("alarm_raised")) == 1
    world.serve(range(22, 28), told=False, heat=lambda value: value - 4)
    assert len(world.events("alarm_raised")) == 2


def test_a_new_champion_is_held_against_its_own_reference(world: World) -> None:
    """What was a shift for the old one is not one for a model that learnt from it; the alarm clears."""
    world.start(window_blocks=3)
    world.serve(range(6), told=False, heat=lambda value: value + 4)
    assert len(world.events("alarm_raised")) == 1
    world.train(range(-40, 3))
    world.serve(range(6, 14), told=False)
    assert [one["why"] for one in world.events("alarm_cleared")] == ["back to normal"]
    assert {one.version for one in world.looks()} == {1, 2}


def test_a_champion_without_a_reference_is_not_watched(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """It was trained by an older version: told once, and requests wait in the table for nothing."""
    world.train(range(-39, 0), with_reference=False)
    world.start()
    world.serve(range(3))
    assert world.looks() == []
    assert capfd.readouterr().out.count("champion_not_watched") == 1
    (told,) = world.events("champion_not_watched")
    assert told["version"] == 2
    assert "no reference" in told["why"]


@pytest.mark.parametrize("point", ["lake.checked", "lake.written", "watch.appended"])
def test_killed_anywhere_it_looks_once_and_says_it(world: World, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks, state, alarms and commands are those of an undisturbed watch; what was not said is said by the next start."""
    monkeypatch.setattr(os, "kill", _stop)
    retrain = RetrainSettings(drift="auto", drop="auto")
    world.start(retrain)
    for day in range(16):
        change: Any = {"heat": lambda value: value + 4} if day >= 8 else {}
        if day % 3 == 1:
            world.before_watch = partial(failpoints._points.__setitem__, point, 1)
        try:
            world.serve(range(day, day + 1), **change)
        except _Killed:
            world.before_watch = lambda: None
            world.start(retrain)
            while world.watch.turn(world.observed):
                pass
    looks = world.looks()
    assert [one.number for one in looks] == list(range(16))
    assert sum(one.tally.rows for one in looks) == 16 * DAILY
    assert len({one["alarm"] for one in world.events("alarm_raised")}) == 1
    assert world.asked
    assert [one.id for one in world.asked] == [one.command.id for one in looks if one.command]


class _Killed(BaseException):
    """Ends what a signal would have ended."""


def _stop(pid: int, signal: int) -> None:
    raise _Killed
