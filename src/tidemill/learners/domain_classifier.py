"""LightGBM as the classifier of the drift estimator: the fast one."""

import numpy as np
from numpy.typing import NDArray

from tidemill.learners.base import Matrix, Samples
from tidemill.learners.lightgbm import LightGBM

ROUNDS = 50
PARAMETERS = {"learning_rate": 0.1, "num_leaves": 15, "min_data_in_leaf": 20}


def lightgbm(
    matrix: Matrix, labels: NDArray[np.float64], scored: Matrix, chance: np.random.RandomState, threads: int = 1
) -> NDArray[np.float64]:
    """A ``core.drift_estimator.Classifier``: the probability of 1, float64[m], of ``scored`` float64[m, k]."""
    columns = tuple(f"column {number}" for number in range(matrix.shape[1]))
    samples = Samples(matrix, labels, None, columns, categorical=(), task="binary", classes=2)
    seed = int(chance.randint(2**31 - 1))
    return LightGBM().fit(samples, PARAMETERS, ROUNDS, seed, threads).predict(scored)
