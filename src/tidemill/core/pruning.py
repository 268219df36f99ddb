"""When a trial is given up after its first fold: where the other folds could not make it the best but by rare luck."""

from collections.abc import Sequence

import numpy as np

TRIALS_MIN = 5
"""Whole trials before any is given up: with fewer the spread of the folds is not known."""
DEVIATIONS = 2.0
"""How unlucky a first fold may be: of a normal spread one in 44 is unluckier."""


def bar(firsts: Sequence[float], means: Sequence[float]) -> float | None:
    """The loss on the first fold above which a trial is given up; None while too few are known.

    ``firsts`` and ``means``: the losses of whole trials of the search, on the first fold and as the mean of all. A trial
    whose first fold lies at f has a mean of about f - d, where d is how far the first fold lies above the mean in other
    trials: in pairs it varies by a tenth of what either does (0.0027 on Adult at 10,000 rows).
    """
    if len(means) < TRIALS_MIN:
        return None
    apart = np.subtract(firsts, means)
    return float(min(means) + apart.mean() + DEVIATIONS * apart.std(ddof=1))


def expected(first: float, firsts: Sequence[float], means: Sequence[float]) -> float:
    """The mean loss that a trial would have had which was given up at ``first``."""
    return first - float(np.subtract(firsts, means).mean())
