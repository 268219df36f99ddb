"""The tuner: what a search records, how it resumes, when it ends, and what it does about trials that fail."""

import math
import threading
import time
from collections import Counter

import msgspec
import pytest

from tidemill.clock import SystemClock
from tidemill.core.environment import digest
from tidemill.core.metrics import METRICS
from tidemill.core.pruning import TRIALS_MIN
from tidemill.core.space import Choice, Integer, Real, Space
from tidemill.errors import ConfigError
from tidemill.executors.base import TrialFailed
from tidemill.learners.base import Parameters, Scored
from tidemill.messages import Conditions, Trial
from tidemill.roles.tuner import Budget, Evaluate, Experiment, search
from tidemill.tuning.contest import TURNS, Contest
from tidemill.tuning.optuna import OptunaProposer

SPACE = Space({"x": Real(-5.0, 5.0), "n": Integer(0, 20)})
RMSE = METRICS["rmse"]
TWELVE = Budget(12)


class Killed(BaseException):
    """Stands for kill -9 in the process that searches."""


class SlowClock(SystemClock):
    """A second passes at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


def score(learner: str, parameters: Parameters, bar: float | None = None) -> Scored:
    """Two folds; the first alone where it is above the bar."""
    value = parameters["x"] ** 2 + parameters["n"]
    noise = math.sin(1000 * value)
    if bar is not None and value + noise > bar:
        return Scored([value + noise], value + noise, 10, pruned=True)
    return Scored([value + noise, value - noise], value, 10)


def an_experiment(metric: str = "rmse", rows: int = 100) -> Experiment:
    conditions = Conditions(metric, "regression", 2, "stratified", False, "schema", ("x", "n"), "rows", rows, 0)
    return Experiment("e", conditions, "optuna")


def contest(**learners: Space) -> Contest:
    return Contest({name: OptunaProposer(space, 3) for name, space in (learners or {"lightgbm": SPACE}).items()})


def run(
    evaluate: Evaluate = score,
    recorded: list[Trial] | None = None,
    budget: Budget = TWELVE,
    workers: int = 1,
    prune: bool = False,
    experiment: Experiment | None = None,
    proposers: Contest | None = None,
) -> tuple[Trial, list[Trial]]:
    """The best trial, and ``recorded`` with what was added."""
    log = [] if recorded is None else recorded
    experiment = experiment or an_experiment()
    best, _ = search(
        proposers or contest(), evaluate, RMSE, budget, list(log), log.append, experiment, SlowClock(), workers, prune
    )
    return best, log


def tried(trials: list[Trial]) -> list[tuple[int, Parameters]]:
    return [(trial.number, trial.parameters) for trial in sorted(trials, key=lambda trial: trial.number)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("done", [0, 1, 5, 11, 12])
def test_a_killed_search_goes_on_as_if_nothing_had_been(workers: int, done: int) -> None:
    """Killed after any number of trials and resumed, it has exactly the numbers, parameters and prunings of one that was
    not, with two learners too.
    """
    two = {"lightgbm": SPACE, "other": SPACE}
    expected_best, expected = run(workers=workers, prune=True, proposers=contest(**two))
    log: list[Trial] = list(expected) if done == 12 else []

    def record(trial: Trial) -> None:
        if len(log) == done:
            raise Killed
        log.append(trial)

    if done < 12:
        with pytest.raises(Killed):
            search(
                contest(**two), score, RMSE, Budget(12), [], record, an_experiment(), SlowClock(), workers, prune=True
            )  # fmt: skip
    resumed_from = len(log)
    best, log = run(recorded=log, workers=workers, prune=True, proposers=contest(**two))
    assert tried(log) == tried(expected)
    assert any(trial.pruned for trial in log)
    assert resumed_from == done
    assert (best.number, best.score) == (expected_best.number, expected_best.score)
    assert best.score == min(trial.score for trial in log if trial.score is not None)


def test_trials_of_another_environment_keep_their_numbers_and_teach_nothing() -> None:
    """After a change of settings no number is used twice, and the best is one that can be compared."""
    _, log = run(budget=Budget(3), experiment=an_experiment(rows=99))
    best, log = run(recorded=log, budget=Budget(4))
    assert [trial.number for trial in log] == list(range(7))
    assert best.environment == digest(an_experiment().conditions) != log[0].environment


def test_trials_of_a_learner_that_no_longer_takes_part_keep_their_numbers() -> None:
    """The best is one that can be fitted; what the others came to is kept, and counts."""
    _, log = run(budget=Budget(6), proposers=contest(gone=SPACE, lightgbm=SPACE))
    best, log = run(recorded=log, budget=Budget(5))
    assert [trial.number for trial in log] == list(range(8)), "three of five are known"
    assert best.learner == "lightgbm"
    assert best.score == min(trial.score for trial in log if trial.score is not None and trial.learner == "lightgbm")


def test_a_search_whose_settings_have_changed_tries_nothing_twice_and_leaves_nothing_out() -> None:
    """A learner that joins in begins with its own first point; the recorded trials are told to theirs."""
    _, log = run(budget=Budget(4))
    _, log = run(recorded=log, budget=Budget(10), proposers=contest(lightgbm=SPACE, late=SPACE))
    assert [trial.number for trial in log] == list(range(10))
    assert run(recorded=list(log), budget=Budget(10), proposers=contest(lightgbm=SPACE, late=SPACE))[1] == log
    first = OptunaProposer(SPACE, 3).ask()
    assert next(trial for trial in log if trial.learner == "late").parameters == first
    points = [(trial.learner, *trial.parameters.values()) for trial in log]
    assert len(set(points)) == 10


def test_what_another_experiment_found_in_the_same_environment_is_not_tried_again() -> None:
    """It is a trial of this one too, in no time; on other rows it is tried."""
    _, log = run(budget=Budget(5))
    again = Experiment("f", an_experiment().conditions, "optuna")

    def never(learner: str, parameters: Parameters, bar: float | None) -> Scored:
        raise AssertionError(parameters)

    best, both = run(never, list(log), Budget(5), experiment=again)
    assert [(trial.experiment, trial.number, trial.seconds) for trial in both[5:]] == [
        ("f", number, 0.0) for number in range(5)
    ]
    assert [trial.score for trial in both[5:]] == [trial.score for trial in log]
    assert best.experiment == "f"
    elsewhere = Experiment("f", an_experiment(rows=99).conditions, "optuna")
    assert all(trial.seconds > 0 for trial in run(recorded=list(log), budget=Budget(5), experiment=elsewhere)[1][5:])


def test_a_point_that_is_proposed_twice_is_two_trials() -> None:
    """In a small space it happens; resumed at any trial, the numbers and points are the same."""
    small = Space({"x": Choice((1.0, 2.0)), "n": Choice((1,))})
    _, expected = run(budget=Budget(6), proposers=contest(lightgbm=small))
    for done in range(7):
        assert tried(run(recorded=expected[:done], budget=Budget(6), proposers=contest(lightgbm=small))[1]) == tried(
            expected
        )


def test_every_trial_says_what_made_it() -> None:
    """Learner, proposer, and the conditions whose hash is its environment."""
    _, log = run(budget=Budget(2))
    for trial in log:
        assert (trial.learner, trial.proposer) == ("lightgbm", "optuna")
        assert trial.conditions == an_experiment().conditions
        assert trial.environment == digest(trial.conditions)


def test_a_failed_trial_is_recorded_and_the_search_goes_on() -> None:
    """With its error and without a score; only if all fail is it an error, which tells the last one's."""

    def picky(learner: str, parameters: Parameters, bar: float | None) -> Scored:
        if parameters["n"] > 10:
            raise TrialFailed("too many")
        return score(learner, parameters)

    best, log = run(picky, budget=Budget(20))
    assert {trial.error for trial in log} == {"", "too many"}
    assert all((trial.score is None) == bool(trial.error) for trial in log)
    assert best.parameters["n"] <= 10

    def never(learner: str, parameters: Parameters, bar: float | None) -> Scored:
        raise TrialFailed("no good")

    with pytest.raises(ConfigError, match="all 4 trials failed; the last: no good"):
        run(never, budget=Budget(4))


def test_the_budget_of_seconds_ends_the_asking_once_a_trial_is_good() -> None:
    """Even a budget that is spent at once brings one good trial; recorded seconds count."""
    failures = iter([True, True])

    def slow_start(learner: str, parameters: Parameters, bar: float | None) -> Scored:
        if next(failures, False):
            raise TrialFailed("not yet")
        return score(learner, parameters)

    best, log = run(slow_start, budget=Budget(12, seconds=0.001))
    assert len(log) == 3
    assert best.number == 2
    assert len(run(recorded=log, budget=Budget(12, seconds=0.001))[1]) == 3


def test_at_the_deadline_a_search_does_not_wait_for_what_is_under_way() -> None:
    """Once a trial is good; what is given up is not recorded, and the caller is told that there is something."""
    released = threading.Event()

    def second_hangs(learner: str, parameters: Parameters, bar: float | None) -> Scored:
        if started:
            released.wait(60)
        started.append(learner)
        return score(learner, parameters)

    started: list[str] = []
    log: list[Trial] = []
    begin = time.monotonic()
    clock, budget = SystemClock(), Budget(12, seconds=1)
    best, given_up = search(contest(), second_hangs, RMSE, budget, [], log.append, an_experiment(), clock)
    assert time.monotonic() - begin < 30
    released.set()
    assert given_up
    assert (best.number, [trial.number for trial in log]) == (0, [0])


def test_what_ends_behind_a_slow_trial_is_recorded_at_once() -> None:
    """A search that is killed while the first trial runs has lost nothing but that: it keeps its number, and nothing else
    is tried again.
    """
    _, expected = run(budget=Budget(6), workers=2)
    released = threading.Event()
    again: list[Parameters] = []
    log: list[Trial] = []

    def first_hangs(learner: str, parameters: Parameters, bar: float | None) -> Scored:
        if parameters == expected[0].parameters:
            released.wait(60)
        return score(learner, parameters)

    def record(trial: Trial) -> None:
        log.append(trial)
        raise Killed

    with pytest.raises(Killed):
        search(contest(), first_hangs, RMSE, Budget(6), [], record, an_experiment(), SystemClock(), 2)
    assert [trial.number for trial in log] == [1]
    released.set()

    def counted(learner: str, parameters: Parameters, bar: float | None) -> Scored:
        again.append(parameters)
        return score(learner, parameters)

    _, log = run(counted, recorded=log, budget=Budget(6), workers=2)
    assert tried(log) == tried(expected)
    assert len(again) == 5


def test_at_the_deadline_the_best_may_be_one_that_ended_behind_a_slow_one() -> None:
    """The slow one is the oldest, and is given up."""
    _, expected = run(budget=Budget(2), workers=2)
    released = threading.Event()

    def first_hangs(learner: str, parameters: Parameters, bar: float | None) -> Scored:
        if parameters == expected[0].parameters:
            released.wait(60)
        return score(learner, parameters)

    log: list[Trial] = []
    clock, budget = SystemClock(), Budget(12, seconds=0.5)
    best, given_up = search(contest(), first_hangs, RMSE, budget, [], log.append, an_experiment(), clock, 2)
    released.set()
    assert given_up
    assert 0 not in [trial.number for trial in log]
    assert best == min(log, key=lambda trial: trial.score or 0)


def test_a_search_that_finds_nothing_better_may_end_early() -> None:
    """After so many trials in a row; on resuming it ends at the same one."""
    budget = Budget(200, stale=6)
    best, log = run(budget=budget)
    assert len(log) == best.number + 1 + 6
    assert len(run(recorded=list(log), budget=budget)[1]) == len(log)


def test_hopeless_trials_are_given_up_after_their_first_fold() -> None:
    """They have no score and cannot win; the best is the one that a search without pruning finds among the same points."""
    best, log = run(budget=Budget(40), prune=True)
    pruned = [trial for trial in log if trial.pruned]
    assert len(pruned) >= 5
    assert all(trial.score is None and len(trial.fold_scores) == 1 and not trial.error for trial in pruned)
    assert not any(trial.pruned for trial in log[:TRIALS_MIN])
    assert best.score == min(score("", trial.parameters).score for trial in log)


def test_learners_compete_in_one_search() -> None:
    """All have their turns, the better one more of them, and the best may be of any."""

    def second_is_better(learner: str, parameters: Parameters, bar: float | None) -> Scored:
        found = score(learner, parameters)
        return found if learner == "second" else Scored([x + 50 for x in found.fold_scores], found.score + 50, 10)

    best, log = run(second_is_better, budget=Budget(30), proposers=contest(first=SPACE, second=SPACE))
    turns = Counter(trial.learner for trial in log)
    assert best.learner == "second"
    assert turns["second"] > turns["first"] >= TURNS


def test_a_trial_survives_its_record() -> None:
    """Parameters keep their types and bits through JSON: what is resumed or refitted is what was scored."""
    _, log = run(budget=Budget(5))
    for trial in log:
        again = msgspec.json.decode(msgspec.json.encode(trial), type=Trial)
        assert again == trial
        assert SPACE.contains(again.parameters)
