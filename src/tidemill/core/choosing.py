"""Which of several policies to choose, from what each answered to the same requests: a paired block bootstrap over time.

Answers of one day share its weather, and the models that made them: they are no independent draws. So whole blocks of time
are resampled, the same for every policy (Künsch, The jackknife and the bootstrap for general stationary observations, 1989;
here the blocks do not overlap, as in Carlstein, 1986).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.metrics import METRICS, Metric

Values = NDArray[np.float64]
Numbers = NDArray[np.int64]

RESAMPLES = 1000
RESAMPLES_BY_ROWS = 200
"""For a metric that is neither a mean over rows nor the AUC: each resample is computed anew from its rows."""
CONFIDENCE = 0.95
BLOCKS_MIN = 30
"""With fewer an interval says little. The longest of ``LENGTHS_MS`` that gives so many is taken."""
MINUTE_MS = 60_000
LENGTHS_MS = tuple(minutes * MINUTE_MS for minutes in (30 * 1440, 7 * 1440, 1440, 360, 60, 10, 1))


class Interval(Struct, frozen=True):
    """By how much one policy is better than another (its loss is lower), and what holds of it with ``CONFIDENCE``; the ends
    are None where no resample has a score.
    """

    gain: float
    low: float | None
    high: float | None

    @property
    def told_apart(self) -> bool:
        """Whether zero is outside."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


class Standing(Struct, frozen=True):
    """One policy among the others: ``over_baseline`` and ``over_best`` are gains, so the latter is never above 0."""

    score: float
    over_baseline: Interval
    over_best: Interval


class Choice(Struct, frozen=True):
    """``standings`` by policy; ``best`` has the best score, ``chosen`` the fewest trainings of those that cannot be told
    from it, and ``reason`` says in a sentence what that rests on.
    """

    standings: dict[str, Standing]
    baseline: str
    best: str
    chosen: str
    reason: str


def block_length(times_ms: Numbers) -> int:
    """The longest of ``LENGTHS_MS`` that cuts these times into ``BLOCKS_MIN`` blocks at least; else the shortest."""
    return next((length for length in LENGTHS_MS if len(np.unique(times_ms // length)) >= BLOCKS_MIN), LENGTHS_MS[-1])


def choose(
    labels: Values,
    predictions: Mapping[str, Values],
    trainings: Mapping[str, int],
    blocks: Numbers,
    metric: Metric,
    seed: int,
) -> Choice:
    """The choice among policies, each with its ``predictions`` (as ``metric.function`` takes them) for the same rows.

    ``blocks``: the number of each row's block, 0 to B - 1. The first policy is the baseline.
    """
    names = list(predictions)
    scores = {name: metric.function(labels, predictions[name]) for name in names}
    losses = _resampled(labels, [predictions[name] for name in names], blocks, metric, seed)
    drawn = dict(zip(names, losses, strict=True))
    best = min(names, key=lambda name: (metric.loss(scores[name]), trainings[name]))

    def over(name: str, other: str) -> Interval:
        gain = metric.loss(scores[other]) - metric.loss(scores[name])
        return _interval(gain, drawn[other] - drawn[name])

    baseline = names[0]
    standings = {name: Standing(scores[name], over(name, baseline), over(name, best)) for name in names}
    equal = [name for name in names if not standings[name].over_best.told_apart]
    chosen = min(equal, key=lambda name: (trainings[name], metric.loss(scores[name])))
    return Choice(standings, baseline, best, chosen, _reason(names, equal, best, chosen))


def _reason(names: Sequence[str], equal: Sequence[str], best: str, chosen: str) -> str:
    if len(names) == 1:
        return "there is nothing to compare it with"
    if len(equal) == len(names):
        return "no policy can be told from the best: the one with the fewest trainings"
    if len(equal) == 1:
        return "better than each of the others"
    if chosen == best:
        return (
            f"the best; {_listed([name for name in equal if name != best])} cannot be told from it, with no fewer trainings"
        )
    return f"cannot be told from {best}, which has the best score, and has the fewest trainings of those"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _interval(gain: float, drawn: Values) -> Interval:
    """The percentiles of the resampled gains."""
    found = drawn[np.isfinite(drawn)]
    if not len(found):
        return Interval(gain, None, None)
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(gain, float(low), float(high))


def _resampled(
    labels: Values, predictions: Sequence[Values], blocks: Numbers, metric: Metric, seed: int
) -> NDArray[np.float64]:
    """Losses by policy and resample."""
    count = int(blocks.max()) + 1
    by_rows = metric.losses is None and metric is not METRICS["auc"]
    draws = np.random.default_rng(seed).multinomial(
        count, np.full(count, 1 / count), RESAMPLES_BY_ROWS if by_rows else RESAMPLES
    )
    resample: Callable[[Values], Values]
    if by_rows:
        order, starts = np.argsort(blocks, kind="stable"), np.searchsorted(np.sort(blocks), np.arange(count + 1))
        picks = [_rows(order, starts, drawn) for drawn in draws]

        def resample(predicted: Values) -> Values:
            return np.array([metric.loss(metric.function(labels[pick], predicted[pick])) for pick in picks])
    elif metric.losses is not None:
        losses, rows = metric.losses, draws @ np.bincount(blocks, minlength=count)

        def resample(predicted: Values) -> Values:
            return (draws @ np.bincount(blocks, losses(labels, predicted), count)) / rows
    else:

        def resample(predicted: Values) -> Values:
            return -_auc(labels, predicted, blocks, draws)

    return np.array([resample(predicted) for predicted in predictions])


def _rows(order: Numbers, starts: Numbers, drawn: Numbers) -> Numbers:
    """The rows of the blocks that were drawn, as often as they were."""
    return np.concatenate([np.tile(order[starts[b] : starts[b + 1]], times) for b, times in enumerate(drawn) if times])


def _auc(labels: Values, predicted: Values, blocks: Numbers, draws: Numbers) -> Values:
    """The AUC of every resample at once: pairs of a positive and a negative row are counted once, by their two blocks."""
    count, positive = draws.shape[1], labels > 0.5
    order = np.argsort(predicted[positive], kind="stable")
    scores, homes = predicted[positive][order], blocks[positive][order]
    won = np.empty((count, count))
    for block in range(count):
        others = np.sort(predicted[~positive & (blocks == block)])
        below = np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")
        won[:, block] = np.bincount(homes, below / 2, count)
    pairs = (draws @ np.bincount(homes, minlength=count)) * (draws @ np.bincount(blocks[~positive], minlength=count))
    with np.errstate(invalid="ignore"):
        found: Values = ((draws @ won) * draws).sum(axis=1) / pairs
    return found
