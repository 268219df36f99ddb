"""How good the answers of each model version were on its newest observations."""

import math
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from msgspec import Struct

from tidemill.core.metrics import Metric
from tidemill.core.schema import Schema

WINDOW_ROWS = 1000
"""Enough for a log loss to tell .34 from .36 (its standard error on Adult is about .015), few enough to notice a change."""


class Measured(Struct, frozen=True):
    """A version's score over its newest ``rows`` observations."""

    version: int
    score: float
    rows: int


class Quality:
    """Windows of labels and scores, one a version."""

    def __init__(self, metric: Metric, schema: Schema, rows: int = WINDOW_ROWS) -> None:
        self._metric = metric
        self._schema = schema
        self._rows = rows
        self._numbers = {msgspec.json.encode(label).decode(): float(i) for i, label in enumerate(schema.classes)}
        self._windows: dict[int, deque[tuple[float, Sequence[float]]]] = {}

    @property
    def labels(self) -> list[str]:
        """The outcomes that count, as the observations have them; none for a regression, where any number does."""
        return list(self._numbers)

    def add(self, version: int, outcome: str, scores: Sequence[float]) -> None:
        """One observation, in the order of their numbers. Those without scores, or whose label the schema does not know
        (it was another's), do not count.
        """
        number = self._numbers.get(outcome) if self._schema.classes else float(outcome)
        if number is not None and scores:
            self._windows.setdefault(version, deque(maxlen=self._rows)).append((number, scores))

    def measured(self, thresholds: Mapping[int, float] = {}) -> list[Measured]:
        """The score of every version for which the metric is defined, oldest version first; each at its own threshold."""
        found = [self._measure(version, thresholds.get(version, 0.5)) for version in sorted(self._windows)]
        return [one for one in found if math.isfinite(one.score)]

    def _measure(self, version: int, threshold: float) -> Measured:
        window = self._windows[version]
        labels = np.array([number for number, _ in window])
        scores = np.array([scores for _, scores in window], dtype=np.float64)
        if self._schema.task != "multiclass":
            scores = scores[:, 0]
        return Measured(version, float(self._metric.function(labels, self._metric.at(scores, threshold))), len(window))
