"""When a trial is given up on its first fold: where the other folds could not make it the best but by luck."""

from collections.abc import Sequence

import numpy as np

TRIALS_MIN = 5
"""Whole trials before any is given up: with fewer the spread of the folds is not known."""
DEVIATIONS = 0.5
"""How unlucky a first fold may be: three in ten are unluckier, but seldom are these the best. Six searches of 50 trials on
Adult and flights: 36 % of the rounds, 0.00016 behind (at one deviation 43 % and 0.00007, at two 64 %).
"""
ROUNDS_MIN = 20
"""Rounds that show how the loss falls."""
LATELY = 10
"""The rounds over which it is looked at."""


def bar(firsts: Sequence[float], means: Sequence[float]) -> float | None:
    """The loss on the first fold above which a trial is given up; None while too few are known.

    ``firsts`` and ``means``: the losses of whole trials of the search, on the first fold and as the mean of all. A trial
    whose first fold lies at f has a mean of about f - d, where d is how far the first fold lies above the mean in other
    trials: in pairs it varies by 0.0010 to 0.0018, where means vary by 0.0017 to 0.0051 (Adult and flights, 10,000 rows).
    """
    if len(means) < TRIALS_MIN:
        return None
    apart = np.subtract(firsts, means)
    return float(min(means) + apart.mean() + DEVIATIONS * apart.std(ddof=1))


def hopeless(lowest: Sequence[float], bar: float) -> bool:
    """Whether a first fold that is being learnt will stay above the bar. ``lowest``: its lowest loss after each round.

    It falls ever more slowly: if it fell as fast as lately for as many rounds again, and that is not enough, nothing is.
    """
    if len(lowest) <= ROUNDS_MIN:
        return False
    falls = (lowest[-1 - LATELY] - lowest[-1]) / LATELY
    return lowest[-1] - len(lowest) * falls > bar


def expected(first: float, firsts: Sequence[float], means: Sequence[float]) -> float:
    """The mean loss that a trial would have had which was given up at ``first``."""
    return first - float(np.subtract(firsts, means).mean())
