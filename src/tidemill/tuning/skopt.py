"""scikit-optimize as a proposer: a Gaussian process, or a forest, fitted anew for each proposal."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import skopt
from skopt.utils import cook_estimator
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from tidemill.core.space import Choice, Dimension, Integer, Real, Space
from tidemill.tuning.coding import CodedProposer, Point
from tidemill.tuning.random import draw

STARTS = 10
"""Trials by chance before the model takes over."""
PAST_MAX = 80
"""Trials that a model is fitted to: a Gaussian process takes the cube of their number."""
CANDIDATES = 2000
"""Points by chance among which the most promising is looked for, and from which the search for a better one begins."""

Told = tuple[Point, float]


class SkoptProposer(CodedProposer):
    """``estimator`` is one of skopt's: ``GP``, a Gaussian process, or the forests ``ET`` and ``RF``. A failed trial is to it
    as bad as the worst that did not fail, and one that runs as good as the best: there is nothing more to find there.
    """

    def __init__(self, space: Space, seed: int, estimator: str = "GP") -> None:
        super().__init__(space)
        self._rng = np.random.default_rng(seed)
        self._estimator = estimator
        self._told: list[Told] = []

    def _propose(self) -> Point:
        good = [loss for _, loss in self._told if loss < math.inf]
        if len(self._told) < STARTS or not good:
            return draw(self._dimensions, self._rng)
        past = [(point, min(loss, max(good))) for point, loss in thinned(self._told)]
        past += [(point, min(good)) for point in self._in_flight]
        return self._promising(past)

    def _learn(self, point: Point, loss: float) -> None:
        self._told.append((point, loss))

    def _promising(self, past: Sequence[Told]) -> Point:
        seed = int(self._rng.integers(2**31))
        dimensions = [_dimension(dimension) for dimension in self._dimensions.values()]
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")
            estimator = cook_estimator(self._estimator, dimensions, random_state=seed)
            if self._estimator == "GP":
                estimator.set_params(n_restarts_optimizer=0)
            optimizer = skopt.Optimizer(
                dimensions,
                estimator,
                n_initial_points=0,
                acq_func="EI",
                acq_optimizer_kwargs={"n_points": CANDIDATES},
                random_state=seed,
            )
            optimizer.tell([list(point.values()) for point, _ in past], [loss for _, loss in past])
            return dict(zip(self._dimensions, optimizer.ask(), strict=True))


def thinned(told: Sequence[Told]) -> list[Told]:
    """At most ``PAST_MAX``: half of them the best, a sixth the newest, and of the others some of each quality."""
    newest = range(max(0, len(told) - PAST_MAX // 6), len(told))
    ranked = sorted(range(newest.start), key=lambda number: told[number][1])
    best, others = ranked[: PAST_MAX // 2], ranked[PAST_MAX // 2 :]
    places = np.linspace(0, len(others) - 1, min(len(others), PAST_MAX - len(best) - len(newest)))
    return [told[number] for number in sorted([*best, *(others[round(place)] for place in places), *newest])]


def _dimension(dimension: Dimension) -> skopt.space.Dimension:
    match dimension:
        case Choice(values):
            return skopt.space.Categorical(values)
        case Integer(low, high):
            return skopt.space.Integer(low, high)
        case Real(low, high, log):
            return skopt.space.Real(low, high, prior="log-uniform" if log else "uniform")
