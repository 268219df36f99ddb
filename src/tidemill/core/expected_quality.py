"""What a metric will be on requests whose outcomes are not in yet, from the model's own answers.

Classification: confidence-based performance estimation, the idea of NannyML's CBPE (its documentation, 2022; close to
Guillory et al., Predicting with Confidence on Unseen Distributions, ICCV 2021). A score that is calibrated on matured
observations is the chance of each outcome, and so of each value of the metric. Regression: the expected loss by predicted
value, learnt from matured observations (NannyML's direct loss estimation, with one feature: the prediction).

It sees that requests have moved to where the model is less sure. It does NOT see that outcomes have come to depend on
the features in another way (concept drift): flip every label, and the estimate stays as it was. Then only outcomes tell,
and the estimate beside the real metric shows that it happened. Nor does it see labels that come and go together (a storm
delays all flights of a day): rows are taken as independent. Over 150 random windows of 1,000 rows and as many random
calibration sets, an interval of 90 % held the real metric in 82 to 94 % (flights and Adult, 500 and 3,000 calibration rows,
six metrics; least for AUC with 500, for an isotonic map is optimistic). Over the flights' 294 windows in order of time, each
calibrated on 5,000 flights just before, it held the log loss in 23 %. ``widening`` makes of past windows how much wider the
interval must be in this stream: 90 % was 89 % then, and the interval 3 to 7 times as wide.

Why 32 bins made monotone, with lines between: the root mean square error of the expected log loss over 12 draws of a
calibration set, with 30,000 (Adult: 30,000) other rows as the truth, LightGBM of 400 rounds, overconfident by far:

    rows    raw scores  Platt   isotonic  10 bins  20 bins  32 bins  50 bins
    flights  500  .140   .026     .033     .025     .027     .027     .032
    flights 8000  .139   .008     .008     .015     .009     .008     .008
    Adult    500  .099   .031     .040     .033     .037     .036     .038
    Adult   8000  .099   .008     .010     .024     .009     .010     .009

Bins lose nothing to the isotonic map of all rows, and their counts are enough to resample the calibration set.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.metrics import METRICS, Metric
from tidemill.core.schema import Task
from tidemill.errors import ConfigError

Values = NDArray[np.float64]

BINS = 32
ROWS_PER_BIN = 15
LEAST = 100
"""Matured observations before anything is expected."""
DRAWS = 200
"""Of outcomes and calibration sets: the 5 % quantile of 200 draws has a standard error of 1.5 % of the draws."""
CHUNK = 2_000_000
"""Numbers in memory at a time: draws of a long window are made in turns."""
ESTIMATED = {
    "binary": ("log_loss", "brier", "accuracy", "f1", "auc", "average_precision"),
    "multiclass": ("multi_log_loss", "accuracy", "macro_f1"),
    "regression": ("rmse", "mse", "mae"),
}


class ScoreBins(Struct, frozen=True):
    """One class's calibration set by score: of each bin the mean score (rising), the rows, and those of the class."""

    scores: tuple[float, ...]
    rows: tuple[float, ...]
    hits: tuple[float, ...]


class LossBins(Struct, frozen=True):
    """Of one kind of loss: mean and variance by bin of the predicted value."""

    means: tuple[float, ...]
    variances: tuple[float, ...]


class ScoreCalibration(Struct, frozen=True, tag="scores"):
    """Of a classifier: the second class's bins where there are two classes, else every class's."""

    classes: tuple[ScoreBins, ...]


class LossCalibration(Struct, frozen=True, tag="losses"):
    """Of a regression: upper edges of the bins but the last, their rows, and the losses in each."""

    edges: tuple[float, ...]
    rows: tuple[int, ...]
    squared: LossBins
    absolute: LossBins


Calibration = ScoreCalibration | LossCalibration


class Estimate(Struct, frozen=True):
    """The metric expected on ``rows`` requests; with ``confidence`` the real one is from ``low`` to ``high``. All NaN where
    the metric is not defined, or there are no rows.
    """

    metric: str
    rows: int
    expected: float
    low: float
    high: float
    confidence: float


def calibrate(task: Task, scores: Values, labels: Values) -> Calibration | None:
    """Learn from matured observations, or out-of-fold predictions: never from rows that the model was fitted to.

    ``scores`` as ``Model.predict`` gives them, float64[n] or [n, classes]; ``labels`` float64[n], class numbers or values.
    Rows with anything that is not finite do not count; None with fewer than 100 that do.
    """
    usable = _finite(scores) & np.isfinite(labels)
    scores, labels = scores[usable], labels[usable]
    if len(labels) < LEAST:
        return None
    if task == "regression":
        return _loss_calibration(scores, labels)
    if task == "binary":
        return ScoreCalibration((_score_bins(scores, labels > 0.5),))
    return ScoreCalibration(tuple(_score_bins(scores[:, c], labels == c) for c in range(scores.shape[1])))


def expect(
    calibration: Calibration, scores: Values, metric: Metric, confidence: float, seed: int, threshold: float = 0.5
) -> Estimate:
    """The metric on requests of these scores, float64[n] or [n, classes]; rows that are not finite do not count.
    ``ConfigError`` for a metric that is not ``ESTIMATED``.

    The interval is the central one of ``DRAWS`` draws, each of a calibration set (bootstrapped; Efron and Tibshirani 1993)
    and of the outcomes it then makes likely. ``threshold`` is the model's, for a metric that decides.
    """
    scores = scores[_finite(scores)]
    if not len(scores):
        return Estimate(metric.name, 0, math.nan, math.nan, math.nan, confidence)
    rng = np.random.default_rng(seed)
    if isinstance(calibration, LossCalibration):
        expected, draws = _losses(calibration, scores, _known(metric, "regression"), rng)
    elif scores.ndim == 2:
        expected, draws = _multiclass(calibration, scores, _known(metric, "multiclass"), rng)
    else:
        expected, draws = _binary(calibration, scores, _known(metric, "binary"), threshold, rng)
    return Estimate(metric.name, len(scores), *_summary(expected, draws, confidence), confidence)


def widening(estimates: list[Estimate], reals: list[float]) -> float:
    """By how much intervals must be stretched about their expected value to hold the real metrics of past windows as often
    as they say: split conformal prediction with normalised errors (Papadopoulos et al., ECML 2002). 1 at least, also
    where there are too few windows (fewer than 1 / (1 - confidence)) to tell.
    """
    pairs = [(e, r) for e, r in zip(estimates, reals, strict=True) if math.isfinite(r) and e.low < e.expected < e.high]
    ratios = sorted((r - e.expected) / ((e.high if r > e.expected else e.low) - e.expected) for e, r in pairs)
    rank = math.ceil((len(ratios) + 1) * pairs[0][0].confidence) if pairs else 1
    return max(1.0, ratios[rank - 1]) if rank <= len(ratios) else 1.0


def widened(estimate: Estimate, factor: float) -> Estimate:
    """The estimate with its interval stretched; it may then leave what the metric can be."""
    low, high = (estimate.expected + factor * (end - estimate.expected) for end in (estimate.low, estimate.high))
    return Estimate(estimate.metric, estimate.rows, estimate.expected, low, high, estimate.confidence)


def monotone(values: Values, weights: Values) -> Values:
    """The isotonic regression of each row of float64[m, k], weights > 0 alike: the min-max formula of Robertson, Wright and
    Dykstra (Order Restricted Statistical Inference, 1988, theorem 1.4.4), for all rows at once: O(k^2), fine for 32.
    """
    size = values.shape[1]
    mass = np.pad(np.cumsum(weights.T, axis=0), ((1, 0), (0, 0)))
    total = np.pad(np.cumsum((values * weights).T, axis=0), ((1, 0), (0, 0)))
    fitted = np.full((size, len(values)), -np.inf)
    for first in range(size):
        means = (total[first + 1 :] - total[first]) / (mass[first + 1 :] - mass[first])
        lowest = np.minimum.accumulate(means[::-1], axis=0)[::-1]
        np.maximum(fitted[first:], lowest, out=fitted[first:])
    return np.ascontiguousarray(fitted.T)


def _finite(scores: Values) -> NDArray[np.bool_]:
    columns = scores if scores.ndim == 2 else scores[:, None]
    finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(columns), axis=1)
    return finite


def _known(metric: Metric, task: Task) -> Metric:
    if metric.name not in ESTIMATED[task]:
        raise ConfigError(f"{metric.name} cannot be expected before outcomes; valid are {', '.join(ESTIMATED[task])}")
    return metric


def _summary(expected: float, draws: Values, confidence: float) -> tuple[float, float, float]:
    """Expected, low and high. Draws on which the metric is not defined do not count, unless they are most."""
    defined = draws[np.isfinite(draws)]
    if len(defined) * 2 <= len(draws) or not math.isfinite(expected):
        return math.nan, math.nan, math.nan
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return expected, float(low), float(high)


def _edges(values: Values) -> Values:
    """Inner edges of bins with about as many rows each."""
    bins = min(BINS, max(1, len(values) // ROWS_PER_BIN))
    return np.unique(np.quantile(values, np.arange(1, bins) / bins))


def _score_bins(scores: Values, of_class: NDArray[np.bool_]) -> ScoreBins:
    bins = np.searchsorted(_edges(scores), scores)
    rows = np.bincount(bins)
    filled = rows > 0
    means = np.bincount(bins, scores)[filled] / rows[filled]
    hits = np.bincount(bins, of_class)[filled]
    return ScoreBins(tuple(means.tolist()), tuple(rows[filled].astype(float).tolist()), tuple(hits.tolist()))


def _chances(bins: ScoreBins, scores: Values) -> Callable[[Values], Values]:
    """How to read maps float64[m, bins] at scores: float64[m, n]; on lines between the bins' mean scores, level beyond."""
    knots = np.array(bins.scores)
    right = np.clip(np.searchsorted(knots, scores), 1, max(len(knots) - 1, 1))
    if len(knots) == 1:
        return lambda maps: np.repeat(maps, len(scores), axis=1)
    width = np.maximum(knots[right] - knots[right - 1], 1e-300)
    share = np.clip((scores - knots[right - 1]) / width, 0, 1)
    return lambda maps: maps[:, right - 1] * (1 - share) + maps[:, right] * share


def _map(bins: ScoreBins, rows: Values, hits: Values) -> Values:
    """Monotone chances float64[m, bins]. Each bin has one row more, a hit as often as its score says: no chance is 0 or 1
    for want of rows.
    """
    return monotone((hits + np.clip(np.array(bins.scores), 0, 1)) / (rows + 1), rows + 1)


def _main_map(bins: ScoreBins) -> Values:
    return _map(bins, np.array([bins.rows]), np.array([bins.hits]))


def _drawn_maps(bins: ScoreBins, rng: np.random.Generator) -> Values:
    """Maps float64[DRAWS, bins] of calibration sets with as many rows, drawn from this one."""
    rows, hits = np.array(bins.rows), np.array(bins.hits)
    chance = (hits + np.clip(np.array(bins.scores), 0, 1)) / (rows + 1)
    cells = np.concatenate([rows * chance, rows * (1 - chance)]) / rows.sum()
    drawn = rng.multinomial(int(rows.sum()), cells / cells.sum(), size=DRAWS).astype(np.float64)
    return _map(bins, drawn[:, : len(rows)] + drawn[:, len(rows) :], drawn[:, : len(rows)])


def _turns(rows: int) -> list[slice]:
    step = max(1, CHUNK // rows)
    return [slice(start, start + step) for start in range(0, DRAWS, step)]


def _binary(
    calibration: ScoreCalibration, scores: Values, metric: Metric, threshold: float, rng: np.random.Generator
) -> tuple[float, Values]:
    bins = calibration.classes[0]
    scores = np.sort(scores)
    score = _score_of(metric, scores, threshold)
    chances, maps = _chances(bins, scores), _drawn_maps(bins, rng)
    draws = []
    for turn in _turns(len(scores)):
        likely = chances(maps[turn])
        draws.append(score((rng.random(likely.shape) < likely).astype(np.float64)))
    drawn = np.concatenate(draws)
    if metric.name == "average_precision":  # the only one that chances in place of outcomes would flatter
        return _mean(drawn), drawn
    return float(score(chances(_main_map(bins)))[0]), drawn


def _mean(draws: Values) -> float:
    return float(draws[np.isfinite(draws)].mean()) if np.isfinite(draws).any() else math.nan


def _score_of(metric: Metric, scores: Values, threshold: float) -> Callable[[Values], Values]:
    """The metric of outcomes, or of their chances, float64[m, n] at scores that rise: float64[m]."""
    if metric.losses is not None:
        if_not, if_so = (metric.losses(np.full(len(scores), label), metric.at(scores, threshold)) for label in (0.0, 1.0))
        return partial(_mean_loss, if_not=if_not, more=if_so - if_not, sign=metric.loss(1.0), offset=_offset(metric))
    if metric.name == "f1":
        return partial(_f1, chosen=scores > threshold)
    starts = np.flatnonzero(np.diff(scores, prepend=-np.inf))
    return partial(_auc if metric.name == "auc" else _average_precision, starts=starts)


def _offset(metric: Metric) -> float:
    """What the score is where nothing is lost."""
    return 1.0 if metric.greater_is_better else 0.0


def _mean_loss(outcomes: Values, if_not: Values, more: Values, sign: float, offset: float) -> Values:
    found: Values = offset + sign * (if_not.mean() + outcomes @ more / len(more))
    return found


def _f1(outcomes: Values, chosen: NDArray[np.bool_]) -> Values:
    positives = outcomes.sum(axis=1) + chosen.sum()
    return _ratio(2 * (outcomes @ chosen.astype(np.float64)), positives)


def _auc(outcomes: Values, starts: NDArray[np.intp]) -> Values:
    """The share of pairs of a positive and a negative in which the positive's score is higher, equal ones half. For chances
    the expected number of such pairs over that of all pairs; no row makes a pair with itself.
    """
    positives, negatives = (np.add.reduceat(rows, starts, axis=1) for rows in (outcomes, 1 - outcomes))
    below = np.cumsum(negatives, axis=1) - negatives
    with_itself = (outcomes * (1 - outcomes)).sum(axis=1)
    won = (positives * (below + negatives / 2)).sum(axis=1) - with_itself / 2
    pairs = positives.sum(axis=1) * negatives.sum(axis=1) - with_itself
    return _ratio(won, pairs)


def _average_precision(outcomes: Values, starts: NDArray[np.intp]) -> Values:
    """The mean over positives of the precision among the scores as high or higher."""
    positives = np.add.reduceat(outcomes, starts, axis=1)[:, ::-1]
    chosen = outcomes.shape[1] - starts[::-1]
    precision = np.cumsum(positives, axis=1) / chosen
    return _ratio((positives * precision).sum(axis=1), positives.sum(axis=1))


def _ratio(above: Values, below: Values) -> Values:
    found: Values = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 1e-12)
    return found


def _multiclass(
    calibration: ScoreCalibration, scores: Values, metric: Metric, rng: np.random.Generator
) -> tuple[float, Values]:
    """Each class against the rest, then made to sum to 1; classes are resampled apart."""
    readers = [_chances(bins, scores[:, c]) for c, bins in enumerate(calibration.classes)]
    drawn_maps = [_drawn_maps(bins, rng) for bins in calibration.classes]
    score = _macro_f1(scores) if metric.losses is None else _expected_loss(metric, scores)
    draws = []
    for turn in _turns(scores.size):
        likely = _shares([read(maps[turn]) for read, maps in zip(readers, drawn_maps, strict=True)])
        drawn = (rng.random(likely.shape[1:]) > np.cumsum(likely[:-1], axis=0)).sum(axis=0, dtype=np.int16)
        draws.append(score(np.stack([drawn == c for c in range(len(readers))]).astype(np.float64)))
    main = _shares([read(_main_map(bins)) for read, bins in zip(readers, calibration.classes, strict=True)])
    return float(score(main)[0]), np.concatenate(draws)


def _shares(chances: list[Values]) -> Values:
    """Chances float64[classes, m, n] that sum to 1."""
    stacked = np.stack(chances)
    shares: Values = stacked / np.maximum(stacked.sum(axis=0), 1e-300)
    return shares


def _expected_loss(metric: Metric, scores: Values) -> Callable[[Values], Values]:
    """The metric of outcomes, or of their chances, float64[classes, m, n]: float64[m]."""
    assert metric.losses is not None  # noqa: S101
    losses = np.stack([metric.losses(np.full(len(scores), float(c)), scores) for c in range(scores.shape[1])])

    def score(outcomes: Values) -> Values:
        sums: Values = sum(of_class @ loss for of_class, loss in zip(outcomes, losses, strict=True))
        return _offset(metric) + metric.loss(1.0) * sums / len(scores)

    return score


def _macro_f1(scores: Values) -> Callable[[Values], Values]:
    """The mean over the classes that occur, or are predicted."""
    chosen = np.stack([scores.argmax(axis=1) == c for c in range(scores.shape[1])])

    def score(outcomes: Values) -> Values:
        each = np.stack([_f1(of_class, predicted) for of_class, predicted in zip(outcomes, chosen, strict=True)])
        found: Values = np.nanmean(each, axis=0)
        return found

    return score


def _loss_calibration(predicted: Values, labels: Values) -> LossCalibration:
    edges = _edges(predicted)
    bins = np.searchsorted(edges, predicted)
    squared, absolute = METRICS["mse"].losses, METRICS["mae"].losses
    assert squared is not None  # noqa: S101
    assert absolute is not None  # noqa: S101
    rows = np.bincount(bins, minlength=len(edges) + 1)
    kinds = [_loss_bins(bins, losses(labels, predicted), rows) for losses in (squared, absolute)]
    return LossCalibration(tuple(edges.tolist()), tuple(rows.tolist()), *kinds)


def _loss_bins(bins: NDArray[np.intp], losses: Values, rows: NDArray[np.intp]) -> LossBins:
    """An empty bin has the losses of all."""
    means = _by_bin(bins, losses, rows, float(losses.mean()))
    variances = _by_bin(bins, (losses - means[bins]) ** 2, rows, float(losses.var()))
    return LossBins(tuple(means.tolist()), tuple(variances.tolist()))


def _by_bin(bins: NDArray[np.intp], values: Values, rows: NDArray[np.intp], empty: float) -> Values:
    found: Values = np.divide(np.bincount(bins, values, len(rows)), rows, out=np.full(len(rows), empty), where=rows > 0)
    return found


def _losses(
    calibration: LossCalibration, predicted: Values, metric: Metric, rng: np.random.Generator
) -> tuple[float, Values]:
    """A sum of losses is drawn from the gamma distribution of their mean and variance: never below 0, and skewed as sums of
    losses are.
    """
    kind = calibration.absolute if metric.name == "mae" else calibration.squared
    means, variances = np.array(kind.means), np.array(kind.variances)
    learnt = np.maximum(np.array(calibration.rows, dtype=np.float64), 1)
    rows = np.bincount(np.searchsorted(np.array(calibration.edges), predicted), minlength=len(means))
    likely = _gamma(np.broadcast_to(means, (DRAWS, len(means))), variances / learnt, rng)
    sums = _gamma(likely * rows, variances * rows, rng).sum(axis=1)
    expected, draws = means @ rows / len(predicted), sums / len(predicted)
    return (float(np.sqrt(expected)), np.sqrt(draws)) if metric.name == "rmse" else (float(expected), draws)


def _gamma(means: Values, variances: Values, rng: np.random.Generator) -> Values:
    """Gamma variables of these means and variances; where either is 0, the mean."""
    certain = (means <= 0) | (variances <= 0)
    scale = np.where(certain, 1.0, variances / np.where(certain, 1.0, means))
    return np.where(certain, means, rng.gamma(np.where(certain, 1.0, means / scale), scale))
