"""Metrics by their usual names, and the one place that turns a sign round."""

from collections.abc import Callable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.schema import Task

Values = NDArray[np.float64]


class Metric(Struct, frozen=True):
    """``function(labels float64[n], predictions)`` is the score; predictions as ``Model.predict`` gives them.

    ``losses`` gives each row's own loss (float64[n]) where the metric is a mean over rows, else it is None.
    """

    name: str
    tasks: tuple[Task, ...]
    greater_is_better: bool
    function: Callable[[Values, Values], float]
    losses: Callable[[Values, Values], Values] | None = None

    def loss(self, score: float) -> float:
        """The score as something to minimise."""
        return -score if self.greater_is_better else score

    def better(self, score: float, than: float) -> bool:
        """Whether a score beats another."""
        return self.loss(score) < self.loss(than)
