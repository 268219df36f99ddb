"""Sums to probabilities, in the bits that the C library gives: NumPy's own ``exp`` differs in last bits, from processor to
processor too.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EXP_SAFE = 709.0
"""Below this no exp is infinite."""
FEW_ROWS = 4
"""Up to here Python alone is done before NumPy has begun."""


def exp(values: Floats) -> Floats:
    """Of float64[n], n > 0."""
    power = math.exp if values.max() < EXP_SAFE else _exp
    return np.fromiter(map(power, values.tolist()), np.float64, len(values))


def _exp(value: float) -> float:
    """Python raises where C says infinite."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


Exp = Callable[[Floats], Floats]
"""``exp``, or what gives the same in less time."""


def sigmoid(sums: Floats, factor: float = 1.0, exp: Exp = exp) -> Floats:
    """Of float64[n], n > 0."""
    if len(sums) <= FEW_ROWS:
        return np.array([1.0 / (1.0 + _exp(-factor * one)) for one in sums.tolist()])
    return 1.0 / (1.0 + exp(-factor * sums))


def softmax(sums: Floats, exp: Exp = exp) -> Floats:
    """Of float64[n, classes], n > 0. Class by class: the order of a sum decides its last bit."""
    powers = exp((sums - sums.max(axis=1, keepdims=True)).ravel()).reshape(sums.shape)
    return powers / np.add.accumulate(powers, axis=1)[:, -1:]
