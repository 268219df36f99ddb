"""Folds for the cross-validation: which rows to train on, which to score."""

from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tidemill.core.schema import Task
from tidemill.errors import ConfigError

Split = Literal["stratified", "time"]
Rows = NDArray[np.intp]


def make_folds(labels: NDArray[np.float64], task: Task, count: int, split: Split, seed: int) -> list[tuple[Rows, Rows]]:
    """``count`` pairs of (row numbers to train on, row numbers to score).

    ``time``: rows must be in the order of time, and are cut into ``count + 1`` equal parts; each fold scores one of the
    later parts and trains on all that came before it. ``stratified``: shuffled by ``seed``, each row is scored once, and the
    classes have the same shares in every fold (a regression: shuffled only). ``ConfigError`` where there are too few rows,
    or too few of a class.
    """
    if split == "time":
        return _time_folds(labels, task, count)
    from sklearn.model_selection import KFold, StratifiedKFold  # here, for it takes a second that a predictor need not wait

    if task == "regression":
        _need(len(labels), count, "rows")
        return list(KFold(count, shuffle=True, random_state=seed).split(labels))
    classes, counts = np.unique(labels, return_counts=True)
    _need(len(classes), 2, "classes")
    _need(int(counts.min()), count, f"rows of the rarest class (number {classes[counts.argmin()]:g})")
    return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels))


def _time_folds(labels: NDArray[np.float64], task: Task, count: int) -> list[tuple[Rows, Rows]]:
    _need(len(labels), count + 1, "rows")
    bounds = [len(labels) * part // (count + 1) for part in range(1, count + 2)]
    if task != "regression":
        _need(len(np.unique(labels[: bounds[0]])), 2, f"classes among the oldest {bounds[0]} rows, the first fold's,")
    rows = np.arange(len(labels))
    return [(rows[:start], rows[start:stop]) for start, stop in pairwise(bounds)]


def _need(found: int, wanted: int, what: str) -> None:
    if found < wanted:
        raise ConfigError(f"too little data for the folds: {what} {found}, needed {wanted}; lower tune.folds or add data")
