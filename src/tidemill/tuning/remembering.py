"""A proposer that begins with what earlier experiments found, around any other."""

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from tidemill.core.memory import Recalled
from tidemill.learners.base import Parameters
from tidemill.tuning.base import Proposer

DISCOUNT = 0.5
"""By how much a remembered loss is drawn to the middle of all that are: a point that was measured today says more."""
FRESH_EVERY = 4
"""Each fourth proposal after the remembered ones is drawn by chance: after a shift the past may point the wrong way."""


class Remembering:
    """First the points to ``retry``. Then ``proposer`` is told what else is remembered, moved by as much as the retried
    points' losses have moved, and asked; now and then ``chance`` is.
    """

    def __init__(self, proposer: Proposer, recalled: Recalled, chance: Proposer) -> None:
        self._proposer = proposer
        self._chance = chance
        self._retry = deque(recalled.retry)
        self._told = list(recalled.told)
        self._expected = [(parameters, loss) for parameters, loss in recalled.retry if math.isfinite(loss)]
        self._moved: list[float] = []
        self._asked = 0

    def ask(self) -> Parameters:
        """See ``Proposer.ask``."""
        if self._retry:
            return self._retry.popleft()[0]
        self._teach()
        self._asked += 1
        return self._chance.ask() if self._asked % FRESH_EVERY == 0 else self._proposer.ask()

    def tell(self, parameters: Parameters, loss: float) -> None:
        """See ``Proposer.tell``."""
        self._moved += [loss - then for point, then in self._expected if point == parameters and math.isfinite(loss)]
        self._proposer.tell(parameters, loss)

    def _teach(self) -> None:
        """Once. What was retried is known better by then, and is left out."""
        told, self._told = self._told, []
        retried = [parameters for parameters, _ in self._expected]
        for parameters, loss in discounted([(point, loss) for point, loss in told if point not in retried], self._moved):
            self._proposer.tell(parameters, loss)


def discounted(told: Sequence[tuple[Parameters, float]], moved: Sequence[float]) -> list[tuple[Parameters, float]]:
    """Remembered losses as a proposer is told them."""
    if not told:
        return []
    middle = float(np.median([loss for _, loss in told]))
    shift = float(np.median(moved)) if len(moved) else 0.0
    return [(parameters, middle + (1 - DISCOUNT) * (loss - middle) + shift) for parameters, loss in told]
