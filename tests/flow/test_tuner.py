"""The tuner: what a search records, how it resumes, and what it does about workers that fail or die."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil  # type: ignore[import-untyped]
import pytest

from tidemill.clock import SystemClock
from tidemill.core.folds import make_folds
from tidemill.core.metrics import METRICS
from tidemill.core.space import Choice, Integer, Real, Space
from tidemill.errors import ConfigError
from tidemill.learners.base import Parameters, Scored
from tidemill.learners.lightgbm import LightGBM
from tidemill.messages import Trial
from tidemill.roles.tuner import Budget, TrialFailed, TrialPool, search
from tidemill.testing.learner_contract import a_table, cross_validated
from tidemill.tuning.optuna import OptunaProposer

SPACE = Space({"x": Real(-5.0, 5.0), "n": Integer(0, 20)})
RMSE = METRICS["rmse"]
SMALL = {"num_leaves": 7, "bagging_fraction": 0.7}


class Killed(BaseException):
    """Stands for kill -9 in the process that searches."""


class SlowClock(SystemClock):
    """A second passes at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


def score(parameters: Parameters) -> Scored:
    value = parameters["x"] ** 2 + parameters["n"]
    return Scored([value, value], value, 10)


def run(
    evaluate: Callable[[Parameters], Scored] = score,
    recorded: list[Trial] | None = None,
    trials: int = 12,
    seconds: float = 0.0,
    workers: int = 1,
    environment: str = "same",
) -> tuple[Trial, list[Trial]]:
    """The best trial, and ``recorded`` with what was added."""
    log = [] if recorded is None else recorded
    best = search(
        OptunaProposer(SPACE, 3), evaluate, RMSE, Budget(trials, seconds), list(log), log.append, "e", environment,
        SlowClock(), workers,
    )  # fmt: skip
    return best, log


def tried(trials: list[Trial]) -> list[tuple[int, Parameters]]:
    return [(trial.number, trial.parameters) for trial in trials]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("done", [0, 1, 5, 11, 12])
def test_a_killed_search_goes_on_as_if_nothing_had_been(workers: int, done: int) -> None:
    """Killed after any number of trials and resumed, it has exactly the numbers and parameters of one that was not."""
    expected_best, expected = run(workers=workers)
    log: list[Trial] = list(expected) if done == 12 else []
    seen: list[Trial] = []

    def record(trial: Trial) -> None:
        if len(log) == done:
            raise Killed
        log.append(trial)

    if done < 12:
        with pytest.raises(Killed):
            search(OptunaProposer(SPACE, 3), score, RMSE, Budget(12), [], record, "e", "same", SlowClock(), workers)
    best = search(
        OptunaProposer(SPACE, 3),
        score,
        RMSE,
        Budget(12),
        list(log),
        log.append,
        "e",
        "same",
        SlowClock(),
        workers,
        seen.append,
    )
    assert tried(log) == tried(expected)
    assert [trial.number for trial in seen] == list(range(done, 12))
    assert (best.number, best.score) == (expected_best.number, expected_best.score)
    assert best.score == min(trial.score for trial in log if trial.score is not None)


def test_trials_of_another_environment_keep_their_numbers_and_teach_nothing() -> None:
    """After a change of settings no number is used twice, and the best is one that can be compared."""
    _, log = run(trials=3, environment="old")
    best, log = run(recorded=log, trials=4)
    assert [trial.number for trial in log] == list(range(7))
    assert best.environment == "same"


def test_a_failed_trial_is_recorded_and_the_search_goes_on() -> None:
    """With its error and without a score; only if all fail is it an error, which tells the last one's."""

    def picky(parameters: Parameters) -> Scored:
        if parameters["n"] > 10:
            raise TrialFailed("too many")
        return score(parameters)

    best, log = run(picky, trials=20)
    assert {trial.error for trial in log} == {"", "too many"}
    assert all((trial.score is None) == bool(trial.error) for trial in log)
    assert best.parameters["n"] <= 10

    def never(parameters: Parameters) -> Scored:
        raise TrialFailed("no good")

    with pytest.raises(ConfigError, match="all 4 trials failed; the last: no good"):
        run(never, trials=4)


def test_the_budget_of_seconds_ends_the_asking_once_a_trial_is_good() -> None:
    """Even a budget that is spent at once brings one good trial; recorded seconds count."""
    failures = iter([True, True])

    def slow_start(parameters: Parameters) -> Scored:
        if next(failures, False):
            raise TrialFailed("not yet")
        return score(parameters)

    best, log = run(slow_start, seconds=0.001)
    assert len(log) == 3
    assert best.number == 2
    assert len(run(recorded=log, seconds=0.001)[1]) == 3


def small_pool(workers: int = 1) -> TrialPool:
    samples = a_table("binary")
    folds = make_folds(samples.labels, "binary", 3, "stratified", 0)
    return TrialPool(samples, folds, LightGBM, "log_loss", 0, rounds_max=60, patience=10, workers=workers)


def test_a_worker_scores_and_fits_what_this_process_would() -> None:
    """The same bits; a parameter that the learner refuses fails its trial only."""
    samples = a_table("binary")
    expected = cross_validated(LightGBM(), samples, SMALL)
    with small_pool() as pool:
        assert pool.evaluate(SMALL) == expected
        with pytest.raises(TrialFailed, match="num_leaves"):
            pool.evaluate({"num_leaves": -1})
        model = LightGBM().load(pool.fit(SMALL, expected.rounds))
    ours = LightGBM().fit(samples, SMALL, expected.rounds, seed=0, threads=1)
    assert model.predict(samples.matrix).tobytes() == ours.predict(samples.matrix).tobytes()


def test_a_killed_worker_is_replaced_and_its_trial_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that die at every second trial cost no trial; one that dies every time fails its trial."""
    space = Space({"num_leaves": Choice((3, 7))})
    for point, failing in (("tuner.tried:2", False), ("tuner.tried:1", True)):
        monkeypatch.setenv("TIDEMILL_FAILPOINT", point)
        with small_pool(workers=2) as pool:
            if failing:
                with pytest.raises(TrialFailed, match="died 3 times"):
                    pool.evaluate({})
                continue
            log: list[Trial] = []
            metric = METRICS["log_loss"]
            search(
                OptunaProposer(space, 0),
                pool.evaluate,
                metric,
                Budget(4),
                [],
                log.append,
                "e",
                "v",
                SystemClock(),
                workers=2,
            )
            assert [(trial.number, trial.error) for trial in log] == [(n, "") for n in range(4)]


def test_workers_end_with_their_owner_even_by_kill_9(tmp_path: Path) -> None:
    """In the middle of a trial too; the files that they read are removed."""
    code = """
        import numpy as np, os, sys
        from tidemill.learners.lightgbm import LightGBM
        from tidemill.core.folds import make_folds
        from tidemill.roles.tuner import TrialPool
        from tidemill.testing.learner_contract import a_table
        if __name__ == "__main__":
            samples = a_table("binary", 20000)
            folds = make_folds(samples.labels, "binary", 3, "stratified", 0)
            pool = TrialPool(samples, folds, LightGBM, "log_loss", 0, rounds_max=10**6, patience=10**6, workers=2)
            print("ready", flush=True)
            pool.evaluate({})
    """
    script = tmp_path / "owner.py"
    script.write_text(textwrap.dedent(code))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        workers = psutil.Process(owner.pid).children(recursive=True)
        wait_for(lambda: any(worker.num_threads() > 1 and worker.cpu_times().user > 1 for worker in workers))
        owner.kill()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert len(gone) >= 2
    assert not list(tmp_path.glob("tidemill-trials-*"))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_trial_survives_its_record() -> None:
    """Parameters keep their types and bits through JSON: what is resumed or refitted is what was scored."""
    _, log = run(trials=5)
    for trial in log:
        again = msgspec.json.decode(msgspec.json.encode(trial), type=Trial)
        assert again == trial
        assert SPACE.contains(again.parameters)
