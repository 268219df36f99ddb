"""Champion against challenger: the comparison on the same newest observations, and the policies."""

from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.metrics import Metric

Policy = Literal["better", "always", "manual"]
Decision = Literal["promoted", "kept", "waiting"]
RESAMPLES = 500


class Comparison(Struct, frozen=True):
    """Both models' scores on ``rows`` observations that neither has learnt from.

    ``improvement`` is how much lower the challenger's loss is; with ``confidence`` it is at least ``improvement_low``.
    """

    rows: int
    challenger_score: float
    champion_score: float
    improvement: float
    improvement_low: float
    confidence: float


def compare(
    labels: NDArray[np.float64],
    challenger: NDArray[np.float64],
    champion: NDArray[np.float64],
    metric: Metric,
    confidence: float,
    seed: int,
) -> Comparison:
    """Compare predictions (as ``Model.predict`` gives them) of both models for the same rows.

    The lower bound is the one-sided percentile bootstrap over rows, paired (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13). Resamples on which the metric is not defined (one class only) are left out.
    """
    rng = np.random.default_rng(seed)
    improvements = _resampled(labels, challenger, champion, metric, rng)
    low = float(np.quantile(improvements, 1 - confidence)) if len(improvements) else float("-inf")
    scores = metric.function(labels, challenger), metric.function(labels, champion)
    return Comparison(len(labels), *scores, metric.loss(scores[1]) - metric.loss(scores[0]), low, confidence)


def _resampled(
    labels: NDArray[np.float64],
    challenger: NDArray[np.float64],
    champion: NDArray[np.float64],
    metric: Metric,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    rows = len(labels)
    if metric.losses is not None:
        gains = metric.losses(labels, champion) - metric.losses(labels, challenger)
        return np.array([gains[rng.integers(0, rows, rows)].mean() for _ in range(RESAMPLES)])
    values = []
    for _ in range(RESAMPLES):
        pick = rng.integers(0, rows, rows)
        won = metric.loss(metric.function(labels[pick], champion[pick]))
        values.append(won - metric.loss(metric.function(labels[pick], challenger[pick])))
    return np.array([value for value in values if np.isfinite(value)])


def decide(policy: Policy, has_champion: bool, comparison: Comparison | None, refused: bool = False) -> Decision:
    """The verdict. The first model has nobody to beat. ``comparison`` is None where too few observations were held out:
    a challenger that could not show that it is better has not earned the place. A champion whose bundle is ``refused``
    defends nothing: who serves it now could not load it again.
    """
    if not has_champion or policy == "always":
        return "promoted"
    if policy == "manual":
        return "waiting"
    if refused:
        return "promoted"
    return "promoted" if comparison is not None and comparison.improvement_low > 0 else "kept"
