"""Metrics by their usual names, and the one place that turns a sign round.

A metric that is not defined on some rows (no rows; for ``auc``, ``average_precision`` and ``r2`` rows of one class or
value; for ``f1`` no positive, neither true nor predicted) is NaN there, never a number that looks like a score.
A class is predicted where its probability is the highest, the first of equals: of two classes the second above the
model's threshold, which is 0.5 unless the metric is one that ``decides``.
"""

import math
from collections.abc import Callable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.schema import Task
from tidemill.errors import ConfigError

Values = NDArray[np.float64]


class Metric(Struct, frozen=True):
    """``function(labels float64[n], predictions)`` is the score; predictions as ``Model.predict`` gives them.

    ``losses`` gives each row's own loss (float64[n]) where the metric is a mean over rows, else it is None. One that
    ``decides`` depends on where the second class begins: the threshold is tuned for it, and kept with the model.
    """

    name: str
    tasks: tuple[Task, ...]
    greater_is_better: bool
    function: Callable[[Values, Values], float]
    losses: Callable[[Values, Values], Values] | None = None
    decides: bool = False

    def loss(self, score: float) -> float:
        """The score as something to minimise."""
        return -score if self.greater_is_better else score

    def better(self, score: float, than: float) -> bool:
        """Whether a score beats another."""
        return self.loss(score) < self.loss(than)

    def possible(self, score: float) -> bool:
        """Whether any model can have that score."""
        low = -math.inf if self.name == "r2" else 0.0
        return low <= score <= (1.0 if self.greater_is_better or self.name == "brier" else math.inf)

    def at(self, predictions: Values, threshold: float) -> Values:
        """Predictions as ``function`` takes them for a model of this threshold."""
        return (predictions > threshold).astype(np.float64) if self.decides else predictions

    @property
    def grows_by(self) -> "Metric":
        """The metric by which the number of rounds is found: this one, unless it moves by leaps."""
        return METRICS["log_loss"] if self.decides else self


def metric(name: str, task: Task) -> Metric:
    """The metric of that name, or the task's default for ``""``; ``ConfigError`` where it does not fit the task."""
    found = METRICS.get(name or DEFAULTS[task])
    if found is None or task not in found.tasks:
        valid = ", ".join(sorted(known.name for known in METRICS.values() if task in known.tasks))
        raise ConfigError(f"tune.metric {name!r} does not fit a {task} target; valid are {valid}")
    return found


def log_losses(labels: Values, predictions: Values) -> Values:
    """Probabilities are kept from 0 and 1 by the float64's epsilon, as scikit-learn does."""
    tiny = np.finfo(np.float64).eps
    chances = np.clip(predictions, tiny, 1 - tiny)
    return -np.where(labels > 0.5, np.log(chances), np.log1p(-chances))


def multi_log_losses(labels: Values, predictions: Values) -> Values:
    """Of the classes' probabilities, float64[n, classes]; they too are kept from 0 and 1."""
    tiny = np.finfo(np.float64).eps
    chances = predictions[np.arange(len(labels)), labels.astype(np.intp)]
    losses: Values = -np.log(np.clip(chances, tiny, 1 - tiny))
    return losses


def squared_errors(labels: Values, predictions: Values) -> Values:
    """Of values, float64[n]."""
    squares: Values = (labels - predictions) ** 2
    return squares


def _absolute_errors(labels: Values, predictions: Values) -> Values:
    distances: Values = np.abs(labels - predictions)
    return distances


def _mistakes(labels: Values, predictions: Values) -> Values:
    wrong: Values = (_classes(predictions) != labels).astype(np.float64)
    return wrong


def _classes(predictions: Values) -> Values:
    """Class numbers from probabilities of either shape."""
    chosen = predictions.argmax(axis=1) if predictions.ndim == 2 else predictions > 0.5
    return chosen.astype(np.float64)


def _mean(losses: Callable[[Values, Values], Values]) -> Callable[[Values, Values], float]:
    return lambda labels, predictions: float(losses(labels, predictions).mean()) if len(labels) else float("nan")


def _accuracy(labels: Values, predictions: Values) -> float:
    return 1 - _mean(_mistakes)(labels, predictions)


def _rmse(labels: Values, predictions: Values) -> float:
    return float(np.sqrt(_mean(squared_errors)(labels, predictions)))


def _r2(labels: Values, predictions: Values) -> float:
    if len(labels) == 0 or np.ptp(labels) == 0:
        return float("nan")
    return float(1 - squared_errors(labels, predictions).mean() / labels.var())


def _f1(labels: Values, predictions: Values) -> float:
    return _f1_of(labels > 0.5, predictions > 0.5)


def _macro_f1(labels: Values, predictions: Values) -> float:
    """The mean over the classes that occur, or are predicted."""
    chosen = _classes(predictions)
    present = np.union1d(labels, chosen)
    return float(np.mean([_f1_of(labels == c, chosen == c) for c in present])) if len(present) else float("nan")


def _f1_of(true: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> float:
    positives = int(true.sum()) + int(chosen.sum())
    return 2 * int((true & chosen).sum()) / positives if positives else float("nan")


def best_threshold(labels: Values, predictions: Values) -> float:
    """The probability above which the second class is predicted so that F1 is highest, midway between two predictions.

    0.5 where no label is of that class. Lipton, Elkan and Naryanaswamy, Optimal Thresholding of Classifiers to Maximize F1
    Measure, 2014: it is half the best F1 for calibrated probabilities, so never above 0.5; here it is found by trying all.
    """
    order = np.argsort(-predictions, kind="stable")
    chances, hits = predictions[order], np.cumsum(labels[order] > 0.5)
    if not len(hits) or hits[-1] == 0:
        return 0.5
    chosen = np.arange(1, len(hits) + 1)
    following = np.append(chances[1:], 0.0)
    scores = np.where(chances > following, 2 * hits / (chosen + hits[-1]), -1.0)
    best = int(scores.argmax())
    if scores[best] < 0:
        return 0.5
    middle = float((chances[best] + following[best]) / 2)
    return middle if middle < chances[best] else float(following[best])


def _auc(labels: Values, predictions: Values) -> float:
    from sklearn.metrics import roc_auc_score  # here, for it takes a second that a predictor need not wait

    return float(roc_auc_score(labels, predictions)) if len(np.unique(labels)) == 2 else float("nan")


def _average_precision(labels: Values, predictions: Values) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, predictions)) if len(np.unique(labels)) == 2 else float("nan")


_BINARY: tuple[Task, ...] = ("binary",)
_MULTICLASS: tuple[Task, ...] = ("multiclass",)
_REGRESSION: tuple[Task, ...] = ("regression",)

METRICS: dict[str, Metric] = {
    known.name: known
    for known in (
        Metric("log_loss", _BINARY, False, _mean(log_losses), log_losses),
        Metric("brier", _BINARY, False, _mean(squared_errors), squared_errors),
        Metric("auc", _BINARY, True, _auc),
        Metric("average_precision", _BINARY, True, _average_precision),
        Metric("f1", _BINARY, True, _f1, decides=True),
        Metric("accuracy", (*_BINARY, *_MULTICLASS), True, _accuracy, _mistakes),
        Metric("multi_log_loss", _MULTICLASS, False, _mean(multi_log_losses), multi_log_losses),
        Metric("macro_f1", _MULTICLASS, True, _macro_f1),
        Metric("rmse", _REGRESSION, False, _rmse),
        Metric("mse", _REGRESSION, False, _mean(squared_errors), squared_errors),
        Metric("mae", _REGRESSION, False, _mean(_absolute_errors), _absolute_errors),
        Metric("r2", _REGRESSION, True, _r2),
    )
}

DEFAULTS: dict[Task, str] = {"binary": "log_loss", "multiclass": "multi_log_loss", "regression": "rmse"}
