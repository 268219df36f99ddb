"""The training set: original data and observations, a pure function of (original data, data version, window)."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.schema import Schema
from tidemill.messages import Label


class Rows(Struct, frozen=True):
    """Labelled rows: a list of values for each feature, outcomes, and event times (ms; 0 where the data has none)."""

    columns: dict[str, list[Any]]
    outcomes: list[Label]
    times_ms: list[int]

    def __len__(self) -> int:
        return len(self.outcomes)

    def take(self, numbers: Sequence[int]) -> "Rows":
        """The rows with these numbers, in this order."""
        return Rows(
            {name: [values[i] for i in numbers] for name, values in self.columns.items()},
            [self.outcomes[i] for i in numbers],
            [self.times_ms[i] for i in numbers],
        )


def training_set(schema: Schema, original: Rows, observed: Rows, window_rows: int) -> Rows:
    """Original rows, then observations in the order in which they were joined; sorted by event time (ties stay in that
    order) where the schema names a time. With ``window_rows``, the last ones only.
    """
    rows = Rows(
        {feature.name: [*_column(original, feature.name), *_column(observed, feature.name)] for feature in schema.features},
        [*original.outcomes, *observed.outcomes],
        [*original.times_ms, *observed.times_ms],
    )
    if schema.time:
        rows = rows.take(np.argsort(np.array(rows.times_ms), kind="stable").tolist())
    return rows.take(range(len(rows))[-window_rows:]) if 0 < window_rows < len(rows) else rows


def _column(rows: Rows, name: str) -> list[Any]:
    return rows.columns.get(name) or [None] * len(rows)


def digest(matrix: NDArray[np.float64], labels: NDArray[np.float64], columns: Sequence[str]) -> str:
    """SHA-256 of what the learner sees: shape, column names, matrix and labels, as hexadecimal text."""
    found = hashlib.sha256(repr((matrix.shape, tuple(columns))).encode())
    found.update(np.ascontiguousarray(matrix).tobytes())
    found.update(np.ascontiguousarray(labels).tobytes())
    return found.hexdigest()


def holdout_rows(observed: int, champion_data_version: int, share: float) -> int:
    """How many of the newest observations are kept apart to judge on: a share of those the champion has not learnt from."""
    return round(max(0, observed - champion_data_version) * share)


def balanced_weights(labels: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """float64[n] that lets each class count the same, with mean 1: n / (classes x count of the row's class)."""
    counts = np.bincount(labels.astype(np.intp), minlength=classes)
    return len(labels) / (classes * counts)[labels.astype(np.intp)]
