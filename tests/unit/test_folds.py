"""Folds: each row scored once, the classes' shares kept, the future never trained on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tidemill.core.folds import Split, make_folds
from tidemill.core.schema import Task
from tidemill.errors import ConfigError


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(0, 3), st.integers(20, 200))
def test_stratified_folds_partition_the_rows(count: int, seed: int, rows: int) -> None:
    """Each row is scored once, by a model that has not seen it, and each fold has each class's share."""
    labels = (np.arange(rows) % 3 == 0).astype(np.float64)
    folds = make_folds(labels, "binary", count, "stratified", seed)
    assert sorted(np.concatenate([scored for _, scored in folds])) == list(range(rows))
    for trained, scored in folds:
        assert not set(trained) & set(scored)
        assert len(trained) + len(scored) == rows
        assert abs(labels[scored].sum() - labels.sum() / count) <= 1


def test_the_seed_shuffles() -> None:
    """The same seed gives the same folds, another seed others; a regression is shuffled too."""
    cases: list[tuple[NDArray[np.float64], Task]] = [(np.arange(60.0) % 2, "binary"), (np.arange(60.0), "regression")]
    for labels, task in cases:
        one, same, other = (make_folds(labels, task, 3, "stratified", seed)[0][1] for seed in (1, 1, 2))
        assert (one == same).all()
        assert not np.array_equal(one, other)


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(0, 3), st.integers(20, 200), st.integers(1, 50))
def test_a_row_keeps_its_fold_when_rows_are_added(count: int, seed: int, rows: int, more: int) -> None:
    """Classes and regression: the folds of the first rows are those that they had without the rest."""
    labels = (np.arange(rows + more) % 3 == 0).astype(np.float64)
    cases: list[Task] = ["binary", "regression"]
    for task in cases:
        old = make_folds(labels[:rows], task, count, "stratified", seed)
        new = make_folds(labels, task, count, "stratified", seed)
        for (_, before), (_, after) in zip(old, new, strict=True):
            assert before.tolist() == after[after < rows].tolist()


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(20, 300))
def test_folds_by_time_never_train_on_the_future(count: int, rows: int) -> None:
    """Every scored row is newer than every row trained on; the newest row is scored; nothing is scored twice."""
    folds = make_folds((np.arange(rows) % 2).astype(np.float64), "binary", count, "time", 0)
    assert len(folds) == count
    for trained, scored in folds:
        assert trained.max() < scored.min()
        assert len(trained) >= rows // (count + 1)
    everything = np.concatenate([scored for _, scored in folds])
    assert len(set(everything)) == len(everything)
    assert everything[-1] == rows - 1


def test_too_little_data_is_refused() -> None:
    """A class with fewer rows than folds, one class only, too few rows: one line that says what to do."""
    rare = np.array([0.0] * 20 + [1.0] * 2)
    cases: list[tuple[NDArray[np.float64], Task, Split]] = [
        (rare, "binary", "stratified"),
        (np.zeros(20), "binary", "stratified"),
        (rare, "binary", "time"),
        (np.arange(2.0), "regression", "stratified"),
        (np.arange(3.0), "regression", "time"),
        (np.array([]), "binary", "stratified"),
    ]
    for labels, task, split in cases:
        with pytest.raises(ConfigError, match=r"tune\.folds"):
            make_folds(labels, task, 3, split, 0)
