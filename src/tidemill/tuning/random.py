"""Parameters by chance: nothing is learnt, so no trial waits for another, and nothing leads astray."""

import math

import numpy as np

from tidemill.core.space import Choice, Dimension, Integer, Real, Space
from tidemill.tuning.coding import CodedProposer, Point


class RandomProposer(CodedProposer):
    """Every point as likely as any other; on a logarithmic scale where the dimension is."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space)
        self._rng = np.random.default_rng(seed)

    def _propose(self) -> Point:
        return draw(self._dimensions, self._rng)

    def _learn(self, point: Point, loss: float) -> None:
        pass


def draw(dimensions: dict[str, Dimension], rng: np.random.Generator) -> Point:
    """A point of coded dimensions."""
    return {name: _number(dimension, rng) for name, dimension in dimensions.items()}


def _number(dimension: Dimension, rng: np.random.Generator) -> float:
    match dimension:
        case Choice(values):
            return int(rng.integers(len(values)))
        case Integer(low, high):
            return int(rng.integers(low, high + 1))
        case Real(low, high, True):
            return math.exp(rng.uniform(math.log(low), math.log(high)))
        case Real(low, high):
            return float(rng.uniform(low, high))
