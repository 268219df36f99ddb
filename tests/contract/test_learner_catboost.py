"""CatBoost against the contract, and what is its own."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from tidemill.core.metrics import METRICS
from tidemill.core.schema import Task
from tidemill.learners.base import Learner, Parameters
from tidemill.learners.catboost import OWN_METRICS, CatBoost, _full_parameters, _GrowingFold
from tidemill.testing.learner_contract import TASKS, LearnerContract, a_table, cross_validated, three_folds


class TestCatBoost(LearnerContract):
    sampled: ClassVar[Parameters] = {"subsample": 0.5, "rsm": 0.7}

    @pytest.fixture
    def learner(self) -> Learner:
        return CatBoost()

    @pytest.mark.parametrize("boosting", ["Plain", "Ordered"])
    @pytest.mark.parametrize("task", TASKS)
    def test_how_many_rounds_are_asked_for_changes_none_of_them(self, task: Task, boosting: str) -> None:
        """CatBoost chooses other parameters from 500 rounds on, and another learning rate for every number."""
        samples, parameters = a_table(task), {"boosting_type": boosting, "learning_rate": 0.5}
        whole = cross_validated(CatBoost(), samples, parameters, rounds_max=600, patience=1)
        assert cross_validated(CatBoost(), samples, parameters, rounds_max=whole.rounds, patience=1) == whole

    def test_every_metric_has_one_of_its_own(self) -> None:
        """The best round is found by these alone."""
        assert {known.grows_by.name for known in METRICS.values()} == set(OWN_METRICS)

    def test_a_training_that_ends_by_itself_scores_as_it_ended(self) -> None:
        """CatBoost gives up where its solution is degenerate; nobody waits for a round that does not come."""
        samples = a_table("binary")
        full = _full_parameters(samples, {}, 2, seed=0, threads=1) | {"eval_metric": "Logloss"}
        fold = _GrowingFold(samples, three_folds(samples)[0], full)
        assert fold.score(1) != fold.score(2) == fold.score(3) == fold.score(9)
        fold.close()

    def test_no_thread_is_left_behind(self) -> None:
        """Whether a search ends well, is pruned, or fails in CatBoost or in the metric."""
        samples = a_table("binary")
        cross_validated(CatBoost(), samples, {})
        cross_validated(CatBoost(), samples, {}, bar=0.0)
        with pytest.raises(Exception, match="depth"):
            cross_validated(CatBoost(), samples, {"depth": 99})
        assert "catboost" not in {thread.name for thread in threading.enumerate()}

    def test_it_writes_no_file_and_says_nothing(self, tmp_path: Path) -> None:
        """Left to itself it makes a folder and prints each round. pandas and scikit-learn are not loaded."""
        code = (
            "import sys; from tidemill.learners.catboost import CatBoost;"
            "from tidemill.testing.learner_contract import a_table;"
            "model = CatBoost().fit(a_table('binary'), {}, 5, seed=0, threads=1); CatBoost().importances(model.to_bytes());"
            "assert not {'pandas', 'matplotlib', 'plotly'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)
        assert (done.stdout, done.stderr) == (b"", b"")
        assert list(tmp_path.iterdir()) == []
