"""XGBoost against the contract, and what is its own."""

import subprocess
import sys
from typing import ClassVar

import pytest

from tidemill.learners.base import Learner, Parameters
from tidemill.learners.xgboost import XGBoost
from tidemill.testing.learner_contract import LearnerContract, a_table, cross_validated


class TestXGBoost(LearnerContract):
    sampled: ClassVar[Parameters] = {"subsample": 0.5, "colsample_bytree": 0.7}

    @pytest.fixture
    def learner(self) -> Learner:
        return XGBoost()

    def test_importing_it_leaves_the_heavy_libraries_alone(self) -> None:
        """pandas and scikit-learn are not loaded, and can be afterwards."""
        code = (
            "import sys; from tidemill.learners.xgboost import _library; assert 'xgboost' not in sys.modules; _library();"
            "assert not {'pandas', 'sklearn', 'matplotlib'} & set(sys.modules); import sklearn.metrics"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_one_thread_is_one_thread(self) -> None:
        """No other thread of the process works, not even to predict, though XGBoost's default is all processors. What was
        imported has started threads of its own, which look for work for a moment: that is before.
        """
        code = (
            "import psutil; from tidemill.learners.xgboost import XGBoost;"
            "from tidemill.testing.learner_contract import a_table, cross_validated;"
            "samples = a_table('binary', 5000); cross_validated(XGBoost(), samples, {});"
            "took = lambda: {thread.id: thread.user_time for thread in psutil.Process().threads()}; before = took();"
            "cross_validated(XGBoost(), samples, {});"
            "model = XGBoost().fit(samples, {}, 30, seed=0, threads=1); [model.predict(samples.matrix) for _ in range(60)];"
            "*others, most = sorted(time - before.get(id, 0.0) for id, time in took().items());"
            "assert sum(others) < most / 10, (most, others)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_its_own_metric_finds_the_round_that_ours_finds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is read from text; the scores are ours either way."""
        samples = a_table("binary")
        quick = cross_validated(XGBoost(), samples, {}, rounds_max=200)
        monkeypatch.setattr("tidemill.learners.xgboost.OWN_METRICS", {})
        assert cross_validated(XGBoost(), samples, {}, rounds_max=200) == quick
