"""Linear models against the contract, and what is their own."""

import subprocess
import sys

import numpy as np
import pytest

from tidemill.core.schema import Task
from tidemill.errors import BundleRefused
from tidemill.learners.base import Learner
from tidemill.learners.linear import Linear
from tidemill.testing.learner_contract import TASKS, LearnerContract, a_table


class TestLinear(LearnerContract):
    grows = False
    own = True

    @pytest.fixture
    def learner(self) -> Learner:
        return Linear()

    @pytest.mark.parametrize("task", TASKS)
    def test_it_answers_as_scikit_learn_does(self, task: Task) -> None:
        """On the same columns, written out here by hand."""
        from sklearn.linear_model import LogisticRegression, Ridge

        samples = a_table(task)
        numbers, codes = samples.matrix[:, :2], samples.matrix[:, 2]
        missing = np.isnan(numbers)
        there = np.where(missing, np.nanmedian(numbers, axis=0), numbers)
        flags = [codes == code for code in range(6)]
        design = np.column_stack([(there - there.mean(axis=0)) / there.std(axis=0), missing, *flags, np.isnan(codes)])
        if task == "regression":
            wanted = Ridge().fit(design, samples.labels).predict(design)
        else:
            wanted = LogisticRegression(tol=1e-8, max_iter=1000).fit(design, samples.labels).predict_proba(design)
        found = Linear().fit(samples, {}, 1, seed=0, threads=1).predict(samples.matrix)
        assert np.allclose(found, wanted[:, 1] if task == "binary" else wanted, atol=1e-4)

    def test_a_value_far_out_moves_no_further_than_a_number_can(self) -> None:
        """Every answer is finite, and a probability."""
        model = Linear().fit(a_table("multiclass"), {"C": 1e3}, 1, seed=0, threads=1)
        rows = np.array([[1e308, -1e308, 0.0], [np.inf, np.inf, np.nan], [-np.inf, 5e-324, 1e308]])
        assert np.allclose(model.predict(rows).sum(axis=1), 1.0)

    def test_a_damaged_model_is_refused_by_its_shape(self) -> None:
        """Whatever is cut from the lists, or put in the wrong order."""
        data = Linear().fit(a_table("binary"), {}, 1, seed=0, threads=1).to_bytes()
        for old, new in (
            (b'"codes":[0,1', b'"codes":[1,0'),
            (b'"codes":[0,1,', b'"codes":[0,'),
            (b'"intercepts":[', b'"intercepts":[1.0,'),
            (b'"importances":[', b'"importances":[1.0,'),
            (b'"task":"binary"', b'"task":"multiclass"'),
        ):
            assert data.count(old) == 1
            with pytest.raises(BundleRefused):
                Linear().load_checked(data.replace(old, new))

    def test_it_serves_without_scikit_learn(self) -> None:
        """Which, with what it imports, takes a hundred megabytes."""
        data = Linear().fit(a_table("binary"), {}, 1, seed=0, threads=1).to_bytes()
        code = (
            "import sys; sys.modules['sklearn'] = sys.modules['scipy'] = None;"
            "import numpy; from tidemill.learners.linear import Linear;"
            f"print(Linear().load({data!r}).predict(numpy.zeros((1, 3)))[0] > 0)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"True\n"
