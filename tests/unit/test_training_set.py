"""The training set is a pure function of original data, observations and window."""

import numpy as np

from tidemill.core.schema import Feature, Schema
from tidemill.core.training_set import Rows, balanced_weights, digest, holdout_rows, training_set

PLAIN = Schema((Feature("x", "number"),), "y", "binary", (0, 1))
TIMED = Schema((Feature("x", "number"),), "y", "binary", (0, 1), time="t")


def rows(*values: tuple[float, int, int]) -> Rows:
    return Rows({"x": [v[0] for v in values]}, [v[1] for v in values], [v[2] for v in values])


ORIGINAL = rows((1.0, 0, 10), (2.0, 1, 30))
OBSERVED = rows((3.0, 1, 20), (4.0, 0, 40))


def test_observations_follow_the_original_data() -> None:
    """Without a time column the rows stand in the order: original, then observed."""
    assert training_set(PLAIN, ORIGINAL, OBSERVED, 0).columns == {"x": [1.0, 2.0, 3.0, 4.0]}


def test_a_time_column_orders_all_rows() -> None:
    """With a time column the rows stand in the order of event times, so that folds can be cut by time."""
    found = training_set(TIMED, ORIGINAL, OBSERVED, 0)
    assert (found.columns["x"], found.times_ms) == ([1.0, 3.0, 2.0, 4.0], [10, 20, 30, 40])


def test_a_window_takes_the_newest_rows() -> None:
    """``window_rows`` keeps the last rows; 0 and more than there are keep all."""
    assert training_set(TIMED, ORIGINAL, OBSERVED, 2).columns == {"x": [2.0, 4.0]}
    assert len(training_set(TIMED, ORIGINAL, OBSERVED, 9)) == 4


def test_a_feature_that_the_data_lacks_is_missing() -> None:
    """A schema may name a feature that older rows do not have."""
    wider = Schema((*PLAIN.features, Feature("z", "number")), "y", "binary", (0, 1))
    assert training_set(wider, ORIGINAL, OBSERVED, 0).columns["z"] == [None] * 4


def test_the_digest_tells_any_change() -> None:
    """One bit of the matrix, a label, a name: each gives another digest; the same input gives the same."""
    matrix, labels = np.array([[1.0, np.nan]]), np.array([0.0])
    found = {
        digest(matrix, labels, ["a", "b"]),
        digest(np.nextafter(matrix, 2), labels, ["a", "b"]),
        digest(matrix, labels + 1, ["a", "b"]),
        digest(matrix, labels, ["b", "a"]),
    }
    assert len(found) == 4
    assert digest(matrix.copy(), labels, ("a", "b")) in found


def test_the_holdout_is_a_share_of_what_the_champion_has_not_seen() -> None:
    """Observations that the champion has learnt from are no judges."""
    assert holdout_rows(observed=1000, champion_data_version=600, share=0.25) == 100
    assert holdout_rows(observed=600, champion_data_version=600, share=0.25) == 0


def test_balanced_weights_let_each_class_count_the_same() -> None:
    """The weights of each class have the same sum, and the mean weight is 1."""
    labels = np.array([0.0, 0, 0, 1])
    weights = balanced_weights(labels, 2)
    assert weights[labels == 0].sum() == weights[labels == 1].sum()
    assert weights.mean() == 1.0
