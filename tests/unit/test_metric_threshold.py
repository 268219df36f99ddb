"""The threshold of metrics that decide classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from tidemill.core.metrics import METRICS, best_threshold

F1 = METRICS["f1"]


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 1e-9, 0.1, 0.2, 0.30000000000000004, 0.3, 0.7, 1.0])), min_size=1
    )
)
def test_no_threshold_gives_a_better_f1(rows: list[tuple[bool, float]]) -> None:
    """Against every threshold that there is, by scikit-learn's own F1."""
    labels, chances = np.array(rows, dtype=np.float64).T
    found = best_threshold(labels, chances)
    if not labels.any():
        assert found == 0.5
        return
    ours = f1_score(labels, chances > found)
    assert F1.function(labels, F1.at(chances, found)) == pytest.approx(ours)
    for threshold in (-1.0, *chances):
        if threshold >= 0 or chances.min() > 0:
            assert ours >= f1_score(labels, chances > threshold, zero_division=0) - 1e-12


def test_only_metrics_that_decide_heed_the_threshold() -> None:
    """A probability stays one where it is scored as one, and the rounds of a metric that leaps are found by log loss."""
    chances = np.array([0.1, 0.4, 0.6])
    assert [name for name, metric in METRICS.items() if metric.decides] == ["f1"]
    assert METRICS["log_loss"].at(chances, 0.3) is chances
    assert F1.at(chances, 0.3).tolist() == [0, 1, 1]
    assert F1.grows_by is METRICS["log_loss"]
    assert METRICS["auc"].grows_by is METRICS["auc"]
