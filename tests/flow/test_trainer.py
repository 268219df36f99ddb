"""The trainer on a real log, lake and store: what an experiment reads, decides, writes, and leaves alone."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import polars as pl
import pytest

from tidemill.bundles import BundleStore
from tidemill.clock import SystemClock
from tidemill.core.answers import Answerer
from tidemill.core.auditing import sequences_rise, versions_rise
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.core.outcomes import label_numbers
from tidemill.core.schema import Feature, Schema
from tidemill.core.training_set import Rows, balanced_weights
from tidemill.lake import COLUMNS, Lake
from tidemill.learners.base import Samples
from tidemill.learners.lightgbm import LightGBM
from tidemill.log.base import Message, Topic, lag, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import JournalEntry, Label, ModelVersion, Retrain, Topics, Trial, to_bytes
from tidemill.roles.experiment import Search, prepare
from tidemill.roles.promotion import promote, read_slots, rollback
from tidemill.roles.reading import read_messages
from tidemill.roles.trainer import Trainer
from tidemill.settings import Bundles, Drift, Project, Settings, Tune, Verdict
from tidemill.settings import Retrain as RetrainSettings
from tidemill.testing.compacted import CompactedLog
from tidemill.wiring import PROPOSERS, learner, processes
from tidemill.wiring import lightgbm as lightgbm_learner

TOPICS = Topics.of("test")
SCHEMA = Schema((Feature("age", "number"), Feature("work", "category")), "income", "binary", ("no", "yes"))
TUNE = Tune(trials=2, folds=2, patience=3, rounds_max=15)
Rule = Callable[[int, str], bool]


def old(age: int, work: str) -> bool:
    """The rule of the original data."""
    return age > 50


def new(age: int, work: str) -> bool:
    """The opposite, which observations may follow."""
    return age <= 50


def people(rows: int, rule: Rule, seed: int, noise: float = 0.1) -> tuple[list[int], list[str], list[Label]]:
    random = np.random.default_rng(seed)
    ages = random.integers(17, 91, rows).tolist()
    works = random.choice(["a", "b", "c"], rows).tolist()
    odd = random.random(rows) < noise
    labels = [SCHEMA.classes[int(rule(age, work) ^ bool(flip))] for age, work, flip in zip(ages, works, odd, strict=True)]
    return ages, works, labels


def original(rows: int = 240) -> Rows:
    ages, works, labels = people(rows, old, 1)
    return Rows({"age": ages, "work": works}, labels, [1000 * i for i in range(rows)])


class World:
    """A log, a lake that a monitor fills, a store, and a trainer that serves all that waits."""

    def __init__(self, folder: Path, kind: type[SqliteLog] = SqliteLog) -> None:
        self.log = kind(folder / "log", "normal")
        self.log.create(Topic(getattr(TOPICS, field)) for field in TOPICS.__struct_fields__)
        self.lake = Lake(folder / "lake")
        self.store: BundleStore = BundleStore(folder / "bundles", learner)
        self.observations = 0
        self.rows = original()
        self.words: list[Callable[[], object]] = []

    def observe(
        self,
        rows: int,
        rule: Rule = old,
        event_at: Callable[[int], int] = lambda number: number,
        works: Sequence[str] = (),
    ) -> None:
        ages, found, labels = people(rows, rule, 100 + self.observations)
        works = list(works) * rows or found
        first = self.observations
        self.observations += rows
        frame = pl.DataFrame(
            [
                (
                    first + i,
                    f"r{first + i}",
                    0,
                    first + i,
                    msgspec.json.encode({"age": ages[i], "work": works[i]}),
                    msgspec.json.encode(labels[i]).decode(),
                    event_at(first + i),
                    0,
                    0,
                    1,
                    "",
                    [0.5],
                )
                for i in range(rows)
            ],
            schema=COLUMNS["observations"],
            orient="row",
        )
        self.lake.append("observations", frame, {"monitor": self.observations})

    def ask(self, id: str, data_version: int = 0) -> None:
        command = Retrain(id, "asked", data_version, 0)
        self.log.append([Message(TOPICS.retrain, to_bytes(command), id.encode())])

    def serve(self, schema: Schema = SCHEMA, tune: Tune = TUNE, **sections: Any) -> None:
        """A trainer from its start until no command waits."""
        settings = Settings(project=Project(name="test", data="x.csv"), tune=tune, **sections)
        plan = Search({"lightgbm": lightgbm_learner}, PROPOSERS.find("optuna"), processes, tune, 0, SystemClock())
        stop = threading.Event()
        trainer = Trainer(
            self.log, TOPICS, self.lake, self.store, settings, "digest", schema, lambda: self.rows, plan, SystemClock(),
            on_trial=self.tried,
        )  # fmt: skip

        def idle() -> None:
            if not lag(self.log, "trainer", [TOPICS.retrain])[TOPICS.retrain]:
                stop.set()

        trainer.run(stop, idle)

    def read(self, topic: str, kind: type[Any]) -> list[Any]:
        return read_messages(self.log, topic, kind)

    @property
    def journal(self) -> list[JournalEntry]:
        return self.read(TOPICS.journal, JournalEntry)

    @property
    def models(self) -> list[ModelVersion]:
        return self.read(TOPICS.models, ModelVersion)

    @property
    def trials(self) -> list[Trial]:
        return self.read(TOPICS.trials, Trial)

    @property
    def slots(self) -> dict[str, int]:
        """By slot the version that stands in it."""
        return {version.state: version.version for version in read_slots(self.log, TOPICS).held()}

    def make(self, versions: int) -> None:
        """Versions 1, 2 ..., each promoted over the one before."""
        for number in range(1, versions + 1):
            self.observe(10)
            self.ask(f"made-{number}", self.observations)
            self.serve(verdict=Verdict(policy="always"))

    def meanwhile(self, word: Callable[[], object]) -> None:
        """A person's word in the middle of the next search, once."""
        self.words.append(word)

    def tried(self, trial: Trial) -> None:
        """Between two trials."""
        while self.words:
            self.words.pop()()

    def rollback(self, version: int | None = None) -> ModelVersion:
        return rollback(self.log, TOPICS, self.store, SystemClock(), version)

    def promote(self) -> ModelVersion:
        return promote(self.log, TOPICS, self.store, SystemClock())

    def damage(self, bundle: str) -> None:
        """Flip a bit."""
        path = self.store.root / bundle / "model.txt"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def check_decisions(self) -> None:
        """What the audit says of them."""
        for check in (sequences_rise, versions_rise):
            assert check(self.models, self.journal).examples == []


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.lake.close()
    made.log.close()


@pytest.fixture(params=[SqliteLog, CompactedLog])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A world whose log keeps all of ``models``, or only what must be kept; its decisions are audited at the end."""
    made = World(tmp_path, request.param)
    yield made
    made.check_decisions()
    made.lake.close()
    made.log.close()


def better(**values: Any) -> Verdict:
    return Verdict(policy="better", **{"holdout": 0.5, "holdout_rows_min": 20, **values})


def test_the_first_command_gives_a_champion_and_a_second_serving_changes_nothing(world: World, tmp_path: Path) -> None:
    """One version in its slot, one entry, trials 0 to n - 1, a bundle that passes its trial; sent again, it is skipped."""
    world.store = BundleStore(tmp_path / "bundles", learner)
    world.ask("first")
    world.serve()
    (entry,), (champion,) = world.journal, world.models
    assert (champion.state, champion.version, champion.experiment) == ("champion", 1, "first")
    assert (entry.verdict, entry.version, entry.bundle, entry.rows) == ("promoted", 1, champion.bundle, 240)
    assert [(trial.experiment, trial.number) for trial in world.trials] == [("first", 0), ("first", 1)]
    with world.store.load(champion.bundle) as bundle:
        assert (bundle.model.predict(bundle.golden.matrix) == bundle.golden.answers).all()
    world.ask("first")
    world.serve()
    assert (world.journal, world.models, len(world.trials)) == ([entry], [champion], 2)
    assert lag(world.log, "trainer", [TOPICS.retrain]) == {TOPICS.retrain: 0}


def test_commands_that_wait_become_one_experiment_on_the_newest_data(world: World) -> None:
    """Three commands, one retraining, the other two named as merged; each of them counts as finished afterwards."""
    world.observe(30)
    for rows in (10, 30, 20):
        world.ask(f"labelled-{rows}", rows)
    world.serve()
    (entry,) = world.journal
    assert (entry.id, entry.data_version, entry.rows) == ("labelled-30", 30, 270)
    assert entry.merged == ["labelled-10", "labelled-20"]
    world.ask("labelled-10", 10)
    world.serve()
    assert len(world.journal) == 1


def test_what_is_no_command_becomes_a_dead_letter_and_the_next_is_served(world: World) -> None:
    """A foreign record in ``retrain`` neither stops nor fails the trainer."""
    foreign = [b"", b"\xff", b"{}", b"[]"]
    world.log.append([Message(TOPICS.retrain, value, b"foreign") for value in foreign])
    world.ask("first", 0)
    world.serve()
    assert [entry.id for entry in world.journal] == ["first"]
    letters = read_all(world.log, TOPICS.dead_letters)
    assert [letter.value for letter in letters] == foreign
    assert {dict(letter.headers)["reason"] for letter in letters} == {b"not_a_command"}


def test_commands_queue_where_the_setting_says_so(world: World) -> None:
    """Each command its own experiment, in order."""
    world.observe(20)
    world.ask("labelled-10", 10)
    world.ask("labelled-20", 20)
    world.serve(retrain=RetrainSettings(commands="queue"), verdict=Verdict(policy="always"))
    assert [(entry.id, entry.rows, entry.merged) for entry in world.journal] == [
        ("labelled-10", 250, []),
        ("labelled-20", 260, []),
    ]
    slots = read_slots(world.log, TOPICS)
    assert slots.champion is not None
    assert slots.previous is not None
    assert (slots.champion.version, slots.previous.version) == (2, 1)


def test_a_data_version_is_a_prefix_however_much_the_lake_holds(world: World, tmp_path: Path) -> None:
    """The first 20 of 60 observations give the training set, and the bundle, that they gave when there were only 20."""
    other = World(tmp_path / "other")
    for some, later in ((world, 0), (other, 40)):
        some.observe(20)
        if later:
            some.observe(later, new)
        some.ask("labelled-20", 20)
        some.serve()
    assert world.journal[0].training_set == other.journal[0].training_set
    assert world.journal[0].bundle == other.journal[0].bundle
    assert world.journal[0].rows == 260
    other.log.close()


def test_rows_in_time_are_never_learnt_from_before_those_they_are_scored_on() -> None:
    """With a time column each fold trains on rows that came before all that it scores."""
    schema = msgspec.structs.replace(SCHEMA, time="at")
    rows = original(100)
    prepared = prepare(schema, rows, TUNE, 0)
    assert len(prepared.folds) == TUNE.folds
    for learnt, scored in prepared.folds:
        assert learnt.max() < scored.min()
    shuffled = prepare(SCHEMA, rows, TUNE, 0)
    assert any(learnt.max() > scored.min() for learnt, scored in shuffled.folds)


def test_a_late_observation_stands_at_its_own_time(world: World) -> None:
    """Events from the past are sorted among the original rows: another training set than those of the newest time."""
    schema = msgspec.structs.replace(SCHEMA, time="at")
    world.observe(20, event_at=lambda number: 500)
    world.ask("labelled-20", 20)
    world.serve(schema)
    bundle = world.store.load(world.journal[0].bundle)
    assert bundle.golden.matrix[0][0] == world.rows.columns["age"][0]
    first = msgspec.json.decode(world.lake.observations(1)["features"][0])
    assert bundle.golden.matrix[1][0] == msgspec.json.decode(world.lake.observations(4)["features"][3])["age"]
    assert first["age"] != world.rows.columns["age"][1]
    bundle.close()


def test_a_challenger_must_win_on_observations_that_neither_has_seen(world: World) -> None:
    """Misled by older observations: the champion stays. The labels turned round: the challenger wins, with the proof."""
    world.ask("first")
    world.serve(verdict=better())
    world.observe(40, new)
    world.observe(40, old)
    world.ask("labelled-80", 80)
    world.serve(verdict=better())
    kept = world.journal[-1]
    assert kept.verdict == "kept"
    assert kept.statistic["rows"] == 40
    assert kept.rows == 240 + 40
    assert [model.version for model in world.models] == [1]
    world.observe(400, new)
    world.ask("labelled-480", 480)
    world.serve(verdict=better())
    won = world.journal[-1]
    assert won.verdict == "promoted", won.statistic
    assert won.statistic["improvement_low"] > 0
    assert won.champion_version == 1
    assert won.rows == 240 + 480, "what was promoted has learnt from the held-out observations too"
    slots = read_slots(world.log, TOPICS)
    assert slots.champion is not None
    assert (slots.champion.version, slots.champion.bundle) == (3, won.bundle)


def test_too_few_new_observations_keep_the_champion_without_a_search(world: World) -> None:
    """The journal says why, and no trial was made."""
    world.ask("first")
    world.serve(verdict=better())
    world.observe(10)
    world.ask("labelled-10", 10)
    world.serve(verdict=better())
    entry = world.journal[-1]
    assert (entry.verdict, entry.version, entry.bundle) == ("kept", 0, "")
    assert "5 held-out observations are too few" in entry.detail
    assert {trial.experiment for trial in world.trials} == {"first"}


def test_by_hand_a_challenger_waits_until_a_person_promotes_it(world: World) -> None:
    """Policy manual: the second version waits in its slot, then serves; the old champion is the previous one."""
    for id in ("first", "asked-2"):
        world.observe(10)
        world.ask(id, world.observations)
        world.serve(verdict=Verdict(policy="manual"))
    assert [entry.verdict for entry in world.journal] == ["promoted", "waiting"]
    slots = read_slots(world.log, TOPICS)
    assert slots.champion is not None
    assert slots.challenger is not None
    assert (slots.champion.version, slots.challenger.version) == (1, 2)
    promote(world.log, TOPICS, world.store, SystemClock())
    slots = read_slots(world.log, TOPICS)
    assert slots.champion is not None
    assert slots.previous is not None
    assert (slots.champion.version, slots.previous.version) == (2, 1)


def test_an_experiment_that_cannot_be_done_fails_alone(world: World) -> None:
    """One class only: the journal says 'failed' and why, the command is done with, and the next one is served."""
    good = world.rows
    world.rows = Rows(good.columns, ["no"] * len(good), good.times_ms)
    world.ask("first")
    world.serve()
    (entry,) = world.journal
    assert (entry.verdict, entry.version) == ("failed", 0)
    assert "classes" in entry.detail
    assert world.models == []
    world.rows = good
    world.ask("asked-2")
    world.serve()
    assert [entry.verdict for entry in world.journal] == ["failed", "promoted"]
    assert world.models[0].version == 1


def test_past_bundles_are_pruned_but_never_one_in_a_slot(world: World) -> None:
    """With keep = 1 the newest bundle and those of champion and previous stay."""
    tune = msgspec.structs.replace(TUNE, trials=1, rounds_max=3)
    for number in range(3):
        world.observe(5)
        world.ask(f"asked-{number}", world.observations)
        world.serve(tune=tune, verdict=Verdict(policy="always"), bundles=Bundles(keep=1))
    written = [entry.bundle for entry in world.journal]
    assert len(set(written)) == 3
    assert set(world.store.bundles()) == set(written[-2:])


def test_what_ships_is_what_was_scored(world: World) -> None:
    """Parameters, rounds, seed and the weights of unbalanced classes: the shipped model is the winner's, to the byte."""
    tune = msgspec.structs.replace(TUNE, unbalanced=True)
    ages, works, labels = people(300, lambda age, work: age > 80, 1, noise=0.02)
    world.rows = Rows({"age": ages, "work": works}, labels, [0] * 300)
    world.ask("first")
    world.serve(tune=tune)
    (entry,) = world.journal
    best = min(world.trials, key=lambda trial: trial.score if trial.score is not None else np.inf)
    assert (entry.parameters, entry.rounds, entry.score) == (best.parameters, best.rounds, best.score)
    text = (world.store.root / entry.bundle / "model.txt").read_text()
    booster = lightgbm.Booster(model_str=text)
    assert booster.current_iteration() == best.rounds
    shipped = dict(line[1:-1].split(": ", 1) for line in text.splitlines() if line.startswith("[") and ": " in line)
    for name, value in best.parameters.items():
        assert float(shipped[name]) == pytest.approx(value, rel=1e-4), name
    assert int(shipped["bagging_freq"]) == 1, "without it bagging_fraction does nothing"
    prepared = prepare(SCHEMA, world.rows, tune, 0)
    weights = balanced_weights(label_numbers(SCHEMA, labels), 2)
    assert prepared.samples.weights is not None
    assert (prepared.samples.weights == weights).all()
    again = LightGBM().fit(prepared.samples, best.parameters, best.rounds, 0, 1)
    assert again.to_bytes() == text.encode()
    even = prepared.samples
    bare = Samples(even.matrix, even.labels, None, even.columns, even.categorical, even.task, even.classes)
    assert LightGBM().fit(bare, best.parameters, best.rounds, 0, 1).to_bytes() != text.encode()


def test_features_that_drift_are_left_out_where_that_is_asked_for(world: World) -> None:
    """Since the champion another kind of work is all there is: MLBox's rule leaves it out, the journal says so, the bundle
    has its own schema, and the next model may have the feature again. Without the setting nothing is left out.
    """
    world.rows = original(400)
    world.ask("first")
    world.serve(verdict=Verdict(policy="always"))
    world.observe(400, works=("d",))
    world.ask("all", world.observations)
    world.serve(verdict=Verdict(policy="manual"))
    world.ask("fewer", world.observations)
    world.serve(verdict=Verdict(policy="always"), retrain=RetrainSettings(drop_drifting=0.6))
    world.observe(400, works=("d",))
    world.ask("again", world.observations)
    world.serve(verdict=Verdict(policy="always"), retrain=RetrainSettings(drop_drifting=0.6))
    _, every, fewer, again = world.journal
    assert every.detail == ""
    assert fewer.detail.startswith("left out for their drift since the champion: work (1.00)")
    assert [world.store.schema(entry.bundle).columns for entry in (every, fewer, again)] == [
        ("age", "work"),
        ("age",),
        ("age", "work"),
    ]
    assert world.models[-1].schema == world.store.schema(again.bundle).digest()


def test_a_feature_that_is_left_out_makes_no_blocks(world: World) -> None:
    """Where ``drift.block`` names it: the model is trained all the same, its rows without blocks (there is no time)."""
    world.rows = original(400)
    blocked: Any = {"verdict": Verdict(policy="always"), "drift": Drift(block="work")}
    world.ask("first")
    world.serve(**blocked)
    world.observe(400, works=("d",))
    world.ask("all", world.observations)
    world.serve(**blocked, retrain=RetrainSettings(drop_drifting=0.6))
    found = [world.store.reference(entry.bundle) for entry in world.journal]
    assert [kept and kept[1].blocked for kept in found] == [True, False]


def test_a_tuned_threshold_ships_with_the_model(world: World) -> None:
    """For F1: in the bundle, the announcement and the journal, and in the answers; where few are positive it is low."""
    tune = msgspec.structs.replace(TUNE, metric="f1")
    ages, works, labels = people(600, lambda age, work: age > 80, 1, noise=0.3)
    world.rows = Rows({"age": ages, "work": works}, labels, [0] * 600)
    world.ask("first")
    world.serve(tune=tune)
    (entry,) = world.journal
    (champion,) = world.models
    with world.store.load(entry.bundle) as bundle:
        assert bundle.threshold == entry.threshold == champion.threshold < 0.5
        answerer = Answerer(MatrixDecoder(bundle.encoder), bundle.model.predict, bundle.threshold)
        answers = answerer.answer([msgspec.json.encode({"age": age, "work": "a"}) for age in range(17, 91)])
    between = [
        label for label, chance in zip(answers.predictions, answers.probability, strict=True) if chance and chance < 0.5
    ]
    assert answers.predictions == ["yes" if chance and chance > entry.threshold else "no" for chance in answers.probability]
    assert "no" in between
    kept = world.store.out_of_fold(entry.bundle)
    assert kept is not None
    assert kept.predictions.shape == (600,)


def test_a_rollback_during_an_experiment_has_the_last_word(either: World) -> None:
    """The challenger was judged against a version that serves no more: it waits, the journal says why, and can serve."""
    either.make(2)
    either.meanwhile(either.rollback)
    either.observe(10)
    either.ask("asked-3", either.observations)
    either.serve(verdict=Verdict(policy="always"))
    assert either.slots == {"champion": 1, "previous": 2, "challenger": 3}
    entry = either.journal[-1]
    assert (entry.verdict, entry.version, entry.champion_version) == ("waiting", 3, 2)
    assert entry.detail == (
        "when this experiment began version 2 served, now version 1 by a person's word: tidemill promote lets the"
        " challenger serve"
    )
    either.promote()
    assert either.slots == {"champion": 3, "previous": 1, "challenger": 3}


def test_a_promotion_during_an_experiment_has_the_last_word(world: World) -> None:
    """The next challenger takes the place of the one that was promoted, whose own records stay as they are."""
    for id in ("first", "asked-2", "asked-3"):
        world.observe(10)
        world.ask(id, world.observations)
        if id == "asked-3":
            world.meanwhile(world.promote)
        world.serve(verdict=Verdict(policy="manual"))
    assert [entry.verdict for entry in world.journal] == ["promoted", "waiting", "promoted", "waiting"]
    assert world.slots == {"champion": 2, "previous": 1, "challenger": 3}
    assert world.promote().version == 3
    assert world.rollback().version == 2
    world.check_decisions()


def test_a_person_who_never_rests_always_has_the_last_word(world: World) -> None:
    """Rollbacks at every moment of two experiments, that between the decision and its commit too: none is passed over."""
    world.make(2)
    stop = threading.Event()

    def roll() -> None:
        while not stop.is_set():
            world.rollback()

    person = threading.Thread(target=roll)
    person.start()
    try:
        for number in (3, 4):
            world.ask(f"asked-{number}", world.observations)
            world.serve(verdict=Verdict(policy="always"))
    finally:
        stop.set()
        person.join(20)
    experiments = [entry for entry in world.journal if entry.kind == "experiment"]
    words = [entry for entry in world.journal if entry.kind == "rollback"]
    assert [entry.verdict for entry in experiments] == ["promoted", "promoted", "waiting", "waiting"]
    assert len({entry.id for entry in words}) == len(words) > 10
    assert (world.slots["champion"], world.slots["challenger"]) == (words[-1].version, 4)
    sequences = [version.sequence for version in world.models]
    assert sequences == sorted(set(sequences)), "one decision at a time"


def test_an_experiment_that_kept_the_champion_says_nothing_of_another(world: World) -> None:
    """The challenger lost; who serves meanwhile does not matter."""
    world.make(2)
    world.meanwhile(world.rollback)
    world.observe(40, new)
    world.observe(40)
    world.ask("asked-3", world.observations)
    world.serve(verdict=better())
    assert world.slots == {"champion": 1, "previous": 2}
    assert (world.journal[-1].verdict, world.journal[-1].detail) == ("kept", "")
    world.check_decisions()


def test_after_a_rollback_the_next_experiment_goes_on_as_usual(either: World) -> None:
    """Judged against what serves, promoted over it; the journal knows every version that can come back."""
    either.make(3)
    either.rollback(1)
    either.observe(400, new)
    either.ask("asked-4", either.observations)
    either.serve(verdict=better())
    assert (either.journal[-1].verdict, either.journal[-1].champion_version) == ("promoted", 1)
    assert either.slots == {"champion": 4, "previous": 1}
    assert either.rollback(2).version == 2
    assert either.slots == {"champion": 2, "previous": 4}


@pytest.mark.parametrize(
    ("policy", "verdict", "serves"), [("better", "promoted", 2), ("always", "promoted", 2), ("manual", "waiting", 1)]
)
def test_a_damaged_champion_does_not_stop_the_next_version(world: World, policy: Any, verdict: str, serves: int) -> None:
    """It can defend nothing: a sound challenger takes its place, unless a person decides; the journal says so."""
    world.make(1)
    world.damage(world.models[0].bundle)
    world.observe(10)
    world.ask("asked-2", world.observations)
    world.serve(verdict=Verdict(policy=policy))
    entry = world.journal[-1]
    assert (entry.verdict, entry.version, entry.rows) == (verdict, 2, 240 + 20), "nothing is held out"
    assert entry.detail.startswith("not judged against the champion: bundle ")
    assert "model.txt is not what its manifest says" in entry.detail
    assert world.slots["champion"] == serves


def test_a_champion_that_is_damaged_during_the_search_loses_its_place(world: World) -> None:
    """It was good when the experiment began, and is not when it is to be judged."""
    world.make(1)
    world.meanwhile(lambda: world.damage(world.models[0].bundle))
    world.observe(100)
    world.ask("asked-2", world.observations)
    world.serve(verdict=better())
    entry = world.journal[-1]
    assert (entry.verdict, entry.rows, entry.statistic) == ("promoted", 240 + 110, {})
    assert "model.txt is not what its manifest says" in entry.detail


def test_a_champion_whose_bundle_is_gone_loses_its_place(world: World) -> None:
    """Whoever starts anew could not load it."""
    world.make(1)
    world.store.prune([])
    world.observe(10)
    world.ask("asked-2", world.observations)
    world.serve(verdict=better())
    assert world.slots == {"champion": 2, "previous": 1}
    assert "no bundle" in world.journal[-1].detail


def test_a_label_that_the_schema_no_longer_has_fails_the_experiment(world: World) -> None:
    """In the original data, or among the observations; the champion stays, and the next command is served."""
    world.make(1)
    narrow = msgspec.structs.replace(SCHEMA, classes=("no", "maybe"))
    world.ask("asked-2")
    world.serve(narrow)
    world.rows = Rows(world.rows.columns, ["no", "maybe"] * 120, world.rows.times_ms)
    world.ask("asked-3", 10)
    world.serve(narrow)
    world.ask("asked-4")
    world.serve(narrow)
    failed = world.journal[1:3]
    assert [(entry.id, entry.verdict, entry.version) for entry in failed] == [
        ("asked-2", "failed", 0),
        ("asked-3", "failed", 0),
    ]
    for entry in failed:
        assert "a label of the training data does not fit schema.json" in entry.detail
        assert "'yes' is none of 'no', 'maybe'" in entry.detail
    assert world.journal[3].verdict == "promoted"


def test_a_held_out_label_that_the_schema_no_longer_has_fails_the_experiment(world: World) -> None:
    """The rows that are learnt from have none of them; those that the models are judged on do."""
    world.make(1)
    world.observe(40, lambda age, work: False)
    frame = world.lake.observations(20).with_columns(outcome=pl.lit('"perhaps"'), number=pl.int_range(20) + 50)
    world.lake.append("observations", frame.select(*COLUMNS["observations"]).cast(COLUMNS["observations"]), {"monitor": 70})  # type: ignore[arg-type]
    world.ask("asked-2", 70)
    world.serve(verdict=better(holdout=0.2, holdout_rows_min=5))
    entry = world.journal[-1]
    assert entry.verdict == "failed", entry
    assert "'perhaps' is none of 'no', 'yes'" in entry.detail


@pytest.mark.parametrize("target", [2**53 + 1, "12 apples", float("inf")])
def test_a_target_that_is_no_exact_number_fails_the_experiment(world: World, target: Label) -> None:
    """A regression's label that a float cannot hold."""
    schema = msgspec.structs.replace(SCHEMA, task="regression", classes=())
    world.rows = Rows(world.rows.columns, [*range(239), target], world.rows.times_ms)
    world.ask("first")
    world.serve(schema)
    (entry,) = world.journal
    assert entry.verdict == "failed"
    assert "a label of the training data does not fit schema.json" in entry.detail


def test_a_column_that_is_not_what_the_schema_says_fails_the_experiment(world: World) -> None:
    """Somebody made a number of a category: the journal names the feature."""
    schema = msgspec.structs.replace(SCHEMA, features=(Feature("age", "number"), Feature("work", "number")))
    world.ask("first")
    world.serve(schema)
    (entry,) = world.journal
    assert entry.verdict == "failed"
    assert "feature 'work' of the training data does not fit schema.json" in entry.detail


def test_what_others_wrote_into_the_topics_is_passed_over(world: World) -> None:
    """Junk in ``trials``, ``journal`` and ``models`` neither stops the trainer nor hides what is good."""
    for topic in (TOPICS.trials, TOPICS.journal, TOPICS.models):
        world.log.append([Message(topic, junk, b"first/0") for junk in (b"\xff garbage", b"{}", b"")])
    world.ask("first")
    world.serve()
    assert world.slots == {"champion": 1}
    assert [trial.number for trial in world.trials] == [0, 1]
    for topic in (TOPICS.trials, TOPICS.journal, TOPICS.models):
        world.log.append([Message(topic, b"\xff garbage")])
    world.observe(10)
    world.ask("asked-2", 10)
    world.serve(verdict=Verdict(policy="always"))
    assert world.slots == {"champion": 2, "previous": 1}
    assert [entry.id for entry in world.journal] == ["first", "asked-2"]
