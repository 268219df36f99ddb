"""Folds for the cross-validation: which rows to train on, which to score."""

from collections.abc import Sequence
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
    later parts and trains on all that came before it. ``stratified``: dealt out by ``seed``, each row is scored once, and
    the classes have the same shares in every fold (a regression: dealt out only). A row keeps its fold when rows are added
    behind it, so that what a trial scored on fewer rows says more of what it will on all. ``ConfigError`` where there are
    too few rows, or too few of a class.
    """
    if split == "time":
        return _time_folds(labels, task, count)
    if task == "regression":
        _need(len(labels), count, "rows")
        dealt = _deal(len(labels), count, (seed,))
    else:
        classes, counts = np.unique(labels, return_counts=True)
        _need(len(classes), 2, "classes")
        _need(int(counts.min()), count, f"rows of the rarest class (number {classes[counts.argmin()]:g})")
        dealt = np.empty(len(labels), dtype=np.intp)
        for label, rows in zip(classes, counts, strict=True):
            dealt[labels == label] = _deal(int(rows), count, (seed, int(label)))
    return [(np.flatnonzero(dealt != fold), np.flatnonzero(dealt == fold)) for fold in range(count)]


def _deal(rows: int, folds: int, seed: Sequence[int]) -> Rows:
    """The fold of each row: every ``folds`` rows that follow each other go to all of them, in random order."""
    blocks = -(-rows // folds)
    return np.random.default_rng(seed).random((blocks, folds)).argsort(axis=1).ravel()[:rows]


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
