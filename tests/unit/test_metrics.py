"""Metrics against scikit-learn's, and what they say where they are not defined."""

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from tidemill.core.metrics import DEFAULTS, METRICS, metric
from tidemill.errors import ConfigError

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 500).astype(float)
CHANCES = np.clip(LABELS * 0.3 + RNG.random(500) * 0.7, 0, 1)
CHANCES[:2] = 0.0, 1.0
CLASSES = RNG.integers(0, 3, 500).astype(float)
SHARES = RNG.dirichlet([1, 1, 1], 500)
VALUES = RNG.normal(size=500)
GUESSES = VALUES + RNG.normal(size=500)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("log_loss", reference.log_loss(LABELS, CHANCES)),
        ("brier", reference.brier_score_loss(LABELS, CHANCES)),
        ("auc", reference.roc_auc_score(LABELS, CHANCES)),
        ("average_precision", reference.average_precision_score(LABELS, CHANCES)),
        ("f1", reference.f1_score(LABELS, CHANCES > 0.5)),
        ("accuracy", reference.accuracy_score(LABELS, CHANCES > 0.5)),
    ],
)
def test_binary_metrics_are_scikit_learns(name: str, expected: float) -> None:
    """Also where a probability is exactly 0 or 1."""
    assert metric(name, "binary").function(LABELS, CHANCES) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("multi_log_loss", reference.log_loss(CLASSES, SHARES)),
        ("accuracy", reference.accuracy_score(CLASSES, SHARES.argmax(axis=1))),
        ("macro_f1", reference.f1_score(CLASSES, SHARES.argmax(axis=1), average="macro")),
    ],
)
def test_multiclass_metrics_are_scikit_learns(name: str, expected: float) -> None:
    """Predictions are one probability a class."""
    assert metric(name, "multiclass").function(CLASSES, SHARES) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rmse", reference.root_mean_squared_error(VALUES, GUESSES)),
        ("mse", reference.mean_squared_error(VALUES, GUESSES)),
        ("mae", reference.mean_absolute_error(VALUES, GUESSES)),
        ("r2", reference.r2_score(VALUES, GUESSES)),
    ],
)
def test_regression_metrics_are_scikit_learns(name: str, expected: float) -> None:
    """Predictions are values."""
    assert metric(name, "regression").function(VALUES, GUESSES) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("name", "task"), [(m.name, task) for m in METRICS.values() for task in m.tasks])
def test_losses_are_the_rows_shares_of_the_score(name: str, task: str) -> None:
    """Their mean is the metric's loss, up to a constant (1 for accuracy); no rows are NaN."""
    labels, predictions = {"binary": (LABELS, CHANCES), "multiclass": (CLASSES, SHARES), "regression": (VALUES, GUESSES)}[
        task
    ]
    found = METRICS[name]
    assert math.isnan(found.function(labels[:0], predictions[:0]))
    if found.losses:
        loss = found.loss(found.function(labels, predictions))
        mean = found.losses(labels, predictions).mean()
        assert mean == pytest.approx(1 + loss if found.greater_is_better else loss)


def test_what_is_not_defined_is_nan() -> None:
    """One class has no AUC; without any positive, true or predicted, there is no F1; a constant has no R2."""
    ones, zeros, chances = np.ones(4), np.zeros(4), np.array([0.1, 0.2, 0.3, 0.4])
    for name, labels in (("auc", ones), ("auc", zeros), ("average_precision", zeros), ("f1", zeros)):
        assert math.isnan(METRICS[name].function(labels, chances)), name
    assert math.isnan(METRICS["r2"].function(ones, chances))
    assert METRICS["f1"].function(ones, chances) == 0
    assert METRICS["log_loss"].function(ones, chances) > 0


def test_a_name_that_does_not_fit_is_refused_with_those_that_do() -> None:
    """Unknown or of another task; the empty name is the task's default."""
    with pytest.raises(ConfigError, match="rmse"):
        metric("auc", "regression")
    with pytest.raises(ConfigError, match="log_loss"):
        metric("nonsense", "binary")
    assert [metric("", task).name for task in DEFAULTS] == ["log_loss", "multi_log_loss", "rmse"]


def test_the_sign_is_turned_in_one_place() -> None:
    """Better is lower for a loss and higher for a score."""
    assert metric("auc", "binary").better(0.9, than=0.8)
    assert metric("rmse", "regression").better(0.8, than=0.9)
