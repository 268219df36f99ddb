"""Every learner against the contract, and what is LightGBM's own."""

import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest

from tidemill.learners.base import Learner, Parameters
from tidemill.learners.lightgbm import LightGBM
from tidemill.testing.learner_contract import LearnerContract, a_table, cross_validated


class TestLightGBM(LearnerContract):
    sampled: ClassVar[Parameters] = {"bagging_fraction": 0.5, "feature_fraction": 0.7}

    @pytest.fixture
    def learner(self) -> Learner:
        return LightGBM()

    def test_the_share_of_rows_is_really_drawn(self) -> None:
        """LightGBM ignores ``bagging_fraction`` without ``bagging_freq``: half and all of the rows must differ."""
        samples = a_table("binary")
        half, all_rows = (cross_validated(LightGBM(), samples, {"bagging_fraction": share}) for share in (0.5, 1.0))
        assert half.fold_scores != all_rows.fold_scores

    def test_the_served_model_tells_the_parameters_that_were_scored(self) -> None:
        """The parameters written in the model's text are those of the trial, each of them."""
        parameters = {"num_leaves": 9, "learning_rate": 0.07, "bagging_fraction": 0.8, "lambda_l2": 1.5, "cat_smooth": 3.0}
        text = LightGBM().fit(a_table("binary"), parameters, 7, seed=11, threads=1).to_bytes().decode()
        written = dict(line[1:-1].split(": ", 1) for line in text.splitlines() if line.startswith("[") and ": " in line)
        for name, value in (parameters | {"seed": 11, "bagging_freq": 1, "deterministic": 1}).items():
            assert float(written[name]) == value, name
        assert text.count("\nTree=") == 7

    def test_importing_it_leaves_the_heavy_libraries_alone(self) -> None:
        """pandas and scikit-learn are not loaded, and can be afterwards."""
        code = (
            "import sys; from tidemill.learners.lightgbm import _library; assert 'lightgbm' not in sys.modules; _library();"
            "assert not {'pandas', 'sklearn', 'matplotlib'} & set(sys.modules); import sklearn.metrics"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_constant_features_and_labels_train(self) -> None:
        """No split is possible: the answer is the mean, not an error."""
        samples = a_table("regression")
        samples.matrix[:] = 1.0
        answers = LightGBM().fit(samples, {}, 5, seed=0, threads=1).predict(samples.matrix)
        assert np.allclose(answers, samples.labels.mean(), atol=1e-6)

    def test_one_thread_is_one_thread(self) -> None:
        """No other thread of the process works: LightGBM's number of threads is a global that any call may set back."""
        code = (
            "import psutil; from tidemill.learners.lightgbm import LightGBM;"
            "from tidemill.testing.learner_contract import a_table, cross_validated;"
            "samples = a_table('binary', 20000); cross_validated(LightGBM(), samples, {});"
            "LightGBM().fit(samples, {}, 30, seed=0, threads=1).predict(samples.matrix);"
            "*others, most = sorted(thread.user_time for thread in psutil.Process().threads());"
            "assert sum(others) < most / 10, (most, others)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
