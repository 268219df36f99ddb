"""A search on real rows, from its rows to what it found: memory, several learners, the threshold, what is kept."""

import msgspec
import numpy as np
import pytest

from tidemill.clock import SystemClock
from tidemill.core.environment import digest
from tidemill.core.memory import RETRIED
from tidemill.core.metrics import METRICS
from tidemill.core.schema import Feature, Schema
from tidemill.core.training_set import Rows
from tidemill.messages import Trial
from tidemill.roles.experiment import Found, Prepared, Search, conditions, prepare, refit, run_search
from tidemill.settings import Tune
from tidemill.wiring import LEARNERS, PROPOSERS, processes

SCHEMA = Schema((Feature("age", "number"), Feature("work", "category")), "income", "binary", ("no", "yes"))
TUNE = Tune(trials=6, folds=2, patience=3, rounds_max=20)


def people(rows: int, share: float = 0.5) -> Rows:
    """Some of whom earn much: the older ones mostly, and those who work as a."""
    rng = np.random.default_rng(1)
    ages, works = rng.integers(17, 91, rows).tolist(), rng.choice(["a", "b", "c"], rows).tolist()
    signal = [age / 40 + (work == "a") + noise for age, work, noise in zip(ages, works, rng.normal(size=rows), strict=True)]
    limit = np.quantile(signal, 1 - share)
    labels = [SCHEMA.classes[int(one > limit)] for one in signal]
    return Rows({"age": ages, "work": works}, labels, list(range(rows)))


def searched(
    experiment: str,
    log: list[Trial],
    tune: Tune = TUNE,
    rows: Rows | None = None,
    learners: str = "lightgbm",
    seed: int = 0,
) -> tuple[Found, Prepared, Search]:
    """A search whose trials are added to the log."""
    names = {name: LEARNERS.find(name) for name in learners.split(",")}
    plan = Search(names, PROPOSERS.find(tune.proposer), processes, tune, seed, SystemClock())
    prepared = prepare(SCHEMA, rows or people(400), tune, seed)
    return run_search(experiment, prepared, plan, list(log), log.append), prepared, plan


@pytest.mark.parametrize("proposer", ["optuna", "hyperopt", "skopt", "skopt_forest", "random"])
def test_a_second_search_begins_with_the_best_of_the_first(proposer: str) -> None:
    """On more rows, and whichever engine: its first trials are the first one's best; without memory they are not."""
    log: list[Trial] = []
    tune = msgspec.structs.replace(TUNE, proposer=proposer, trials=8)
    searched("first", log, tune)
    searched("second", log, tune, people(500))
    searched("third", log, msgspec.structs.replace(tune, memory=False), people(500))
    first, second, third = ([trial for trial in log if trial.experiment == name] for name in ("first", "second", "third"))
    ranked = sorted((trial for trial in first if trial.score is not None), key=lambda trial: trial.score or 0)
    assert [trial.parameters for trial in second[:RETRIED]] == [trial.parameters for trial in ranked[:RETRIED]]
    assert [trial.parameters for trial in third] == [trial.parameters for trial in first]
    assert {trial.proposer for trial in log} == {proposer}


@pytest.mark.parametrize("proposer", ["optuna", "hyperopt", "skopt", "random"])
def test_the_highest_seed_of_a_project_will_do(proposer: str) -> None:
    """In a search that remembers too, whose points by chance are others than those of the first."""
    log: list[Trial] = []
    tune = msgspec.structs.replace(TUNE, proposer=proposer, trials=RETRIED + 3)
    searched("first", log, tune, seed=2**32 - 1)
    first = [trial.parameters for trial in log]
    searched("second", log, tune, people(500), seed=2**32 - 1)
    new = [trial.parameters for trial in log if trial.experiment == "second" and trial.number >= RETRIED]
    assert len(new) == 3
    assert not any(point in first for point in new)


def test_a_search_that_remembers_resumes_to_the_same_end() -> None:
    """Trials that were recorded while it was away by others change nothing."""
    log: list[Trial] = []
    searched("first", log)
    before = list(log)
    expected, _, _ = searched("second", log, rows=people(500))
    whole = [trial for trial in log if trial.experiment == "second"]
    resumed = [*before, *whole[:3], msgspec.structs.replace(before[0], experiment="imported-1", score=0.0001)]
    found, _, _ = searched("second", resumed, rows=people(500))
    again = [trial for trial in resumed if trial.experiment == "second"]
    assert [trial.parameters for trial in again] == [trial.parameters for trial in whole]
    assert found.fitted.model.to_bytes() == expected.fitted.model.to_bytes()


def test_what_is_found_is_fitted_with_what_was_scored() -> None:
    """The trial's own conditions, the model on all rows, and predictions that give its very score."""
    log: list[Trial] = []
    found, prepared, plan = searched("e", log)
    assert found.best.environment == digest(conditions(prepared, TUNE, METRICS["log_loss"], 0))
    scores = [
        METRICS["log_loss"].function(found.out_of_fold.labels[held], found.out_of_fold.predictions[held])
        for _, held in prepared.folds
    ]
    assert scores == pytest.approx(found.best.fold_scores, abs=1e-12)
    again = refit(found.best, prepared, plan)
    assert again.model.to_bytes() == found.fitted.model.to_bytes()


def test_f1_is_scored_with_a_threshold_that_ships() -> None:
    """Where one row in eight is positive it lies well below a half, and beats it."""
    log: list[Trial] = []
    tune = msgspec.structs.replace(TUNE, metric="f1")
    found, prepared, _ = searched("e", log, tune, people(2000, share=0.12))
    labels, chances = found.out_of_fold
    assert found.fitted.threshold == found.best.threshold < 0.45
    measure = METRICS["f1"]
    scores = [measure.function(labels[held], measure.at(chances[held], found.best.threshold)) for _, held in prepared.folds]
    assert scores == pytest.approx(found.best.fold_scores)
    assert found.best.score == pytest.approx(np.mean(scores))
    assert measure.function(labels, measure.at(chances, found.best.threshold)) > measure.function(labels, chances)


def test_learners_are_compared_in_one_search() -> None:
    """Each remembers its own; the trials are comparable, and the best may be of any."""
    log: list[Trial] = []
    tune = msgspec.structs.replace(TUNE, trials=16)
    found, _, _ = searched("e", log, tune, learners="lightgbm,linear,forest")
    assert {trial.learner for trial in log} == {"lightgbm", "linear", "forest"}
    assert len({trial.environment for trial in log}) == 1
    assert not any(trial.error for trial in log)
    best = min((trial for trial in log if trial.score is not None), key=lambda trial: trial.score or 0)
    assert found.best == best
    searched("f", log, tune, people(500), learners="lightgbm,linear,forest")
    second = [trial for trial in log if trial.experiment == "f"]
    for name in ("lightgbm", "linear", "forest"):
        scored = [trial for trial in log if (trial.experiment, trial.learner) == ("e", name) and trial.score is not None]
        first = next(trial for trial in second if trial.learner == name)
        assert first.parameters == min(scored, key=lambda trial: trial.score or 0).parameters
