"""What every executor must do: subclass ``ExecutorContract`` and give it the ``execute`` fixture."""

# ruff: noqa: S101  a contract asserts

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tidemill.executors.base import Executor, TrialFailed, Work
from tidemill.learners.base import Fold, Samples, out_of_fold
from tidemill.learners.lightgbm import LightGBM
from tidemill.testing.learner_contract import a_table, cross_validated, three_folds

Execute = Callable[[Samples, Sequence[Fold], Work, int], Executor]
SMALL = {"num_leaves": 7, "bagging_fraction": 0.7}
WORK = Work({"lightgbm": LightGBM}, "log_loss", 0, rounds_max=60, patience=10)
ENDLESS = Work({"lightgbm": LightGBM}, "log_loss", 0, rounds_max=10**6, patience=10**6)


class ExecutorContract:
    """``execute(samples, folds, work, workers)`` makes an executor."""

    @pytest.fixture
    def execute(self) -> Execute:
        raise NotImplementedError

    @pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
    def test_a_worker_finds_what_this_process_would(self, execute: Execute, task: str) -> None:
        """The same bits: scores with and without a bar, the model on all rows, the predictions out of fold."""
        samples = a_table(task)  # type: ignore[arg-type]
        folds = three_folds(samples)
        expected = cross_validated(LightGBM(), samples, SMALL)
        metric = {"binary": "log_loss", "multiclass": "multi_log_loss", "regression": "rmse"}[task]
        work = Work({"lightgbm": LightGBM}, metric, 0, rounds_max=60, patience=10)
        with execute(samples, folds, work, 1) as executor:
            assert executor.evaluate("lightgbm", SMALL) == expected
            assert executor.evaluate("lightgbm", SMALL, float("inf")) == expected
            given_up = executor.evaluate("lightgbm", SMALL, float("-inf"))
            data = executor.fit("lightgbm", SMALL, expected.rounds)
            apart = executor.out_of_fold("lightgbm", SMALL, expected.rounds)
        assert given_up.pruned
        assert len(given_up.fold_scores) == 1
        model = LightGBM().load(data)
        ours = LightGBM().fit(samples, SMALL, expected.rounds, seed=0, threads=1)
        assert model.predict(samples.matrix).tobytes() == ours.predict(samples.matrix).tobytes()
        wanted = out_of_fold(LightGBM(), samples, folds, SMALL, expected.rounds, 0, 1)
        assert np.array_equal(apart, wanted)

    def test_what_a_learner_refuses_fails_its_trial_only(self, execute: Execute) -> None:
        """With the learner's own words; a learner that it does not have fails likewise."""
        samples = a_table("binary")
        with execute(samples, three_folds(samples), WORK, 1) as executor:
            with pytest.raises(TrialFailed, match="num_leaves"):
                executor.evaluate("lightgbm", {"num_leaves": -1})
            with pytest.raises(TrialFailed, match="num_leaves"):
                executor.fit("lightgbm", {"num_leaves": -1}, 5)
            with pytest.raises(TrialFailed, match="unknown"):
                executor.evaluate("unknown", {})
            assert executor.evaluate("lightgbm", SMALL) == cross_validated(LightGBM(), samples, SMALL)

    def test_as_many_assignments_at_once_as_there_are_workers(self, execute: Execute) -> None:
        """Asked by several threads; each has its own answer."""
        samples = a_table("binary")
        leaves = [3, 5, 7, 9, 11, 13]
        with execute(samples, three_folds(samples), WORK, 2) as executor, ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda n: executor.evaluate("lightgbm", {"num_leaves": n}), leaves))
        assert found == [cross_validated(LightGBM(), samples, {"num_leaves": n}) for n in leaves]

    def test_what_is_under_way_can_be_given_up(self, execute: Execute) -> None:
        """Who waits is told at once, and the next assignment is carried out."""
        samples = a_table("binary", 20_000)
        with execute(samples, three_folds(samples), ENDLESS, 2) as executor, ThreadPoolExecutor(2) as threads:
            waiting = [threads.submit(executor.evaluate, "lightgbm", SMALL) for _ in range(2)]
            time.sleep(3)
            executor.abandon()
            for one in waiting:
                with pytest.raises(TrialFailed):
                    one.result(timeout=30)
            assert executor.fit("lightgbm", SMALL, 3)

    def test_a_closed_executor_leaves_nobody_waiting(self, execute: Execute) -> None:
        """It ends its workers in the middle of a trial."""
        samples = a_table("binary", 20_000)
        failed: list[Exception] = []
        with execute(samples, three_folds(samples), ENDLESS, 1) as executor:

            def wait() -> None:
                with pytest.raises(TrialFailed) as caught:
                    executor.evaluate("lightgbm", SMALL)
                failed.append(caught.value)

            thread = threading.Thread(target=wait)
            thread.start()
            time.sleep(2)
        thread.join(timeout=30)
        assert failed
