"""What the engines share: a space as all of them can search it, the first point, and what was asked and is not told yet."""

from abc import ABC, abstractmethod
from typing import Any

from tidemill.core.space import Choice, Dimension, Integer, Real, Space
from tidemill.learners.base import Parameters

LOSS_MAX = 1e100
"""Beyond, an engine's squares would overflow."""

Point = dict[str, Any]
"""A number for each coded dimension: a float for a Real, an int for an Integer or a Choice."""


class CodedProposer(ABC):
    """A proposer whose engine knows points only. It says which point is next (``_propose``), and learns what one came to
    (``_learn``), whoever proposed it. Use it in one thread.

    ``_dimensions`` are of three kinds: a Real, an Integer that counts steps 0, 1, 2 ..., and a Choice of 0, 1, 2 ...; those
    of a single value are left out, since engines refuse them. ``_in_flight`` are the points that are asked and not told.
    """

    def __init__(self, space: Space) -> None:
        space.check()
        self._space = space
        coded = {name: _coded(dimension) for name, dimension in space.dimensions.items() if not _single(dimension)}
        self._dimensions: dict[str, Dimension] = coded
        self._first = space.first
        self._in_flight: list[Point] = []

    def ask(self) -> Parameters:
        """The space's first point, then the engine's, with the space's fixed parameters."""
        first, self._first = self._first, {}
        point = self._point(first) if first else self._propose() if self._dimensions else {}
        parameters = self._parameters(point)
        self._in_flight.append(self._point(parameters))
        return parameters

    def tell(self, parameters: Parameters, loss: float) -> None:
        """Parameters that are not in the space (one of another version) teach nothing and are skipped."""
        if not self._space.contains(parameters):
            return
        point = self._point(parameters)
        if point in self._in_flight:
            self._in_flight.remove(point)
        self._learn(point, loss if abs(loss) < LOSS_MAX else float("inf"))

    @abstractmethod
    def _propose(self) -> Point:
        """A number for each dimension; it is rounded where it must be an int, and moved into the bounds."""

    @abstractmethod
    def _learn(self, point: Point, loss: float) -> None:
        """What a point came to; infinity where it failed."""

    def _rounded(self, point: Point) -> Point:
        """The point as it will be told."""
        return self._point(self._parameters(point))

    def _parameters(self, point: Point) -> Parameters:
        dimensions = self._space.dimensions.items()
        return {name: _value(dimension, point.get(name, 0)) for name, dimension in dimensions} | self._space.fixed

    def _point(self, parameters: Parameters) -> Point:
        return {name: _code(self._space.dimensions[name], parameters[name]) for name in self._dimensions}


def _coded(dimension: Dimension) -> Dimension:
    """On a logarithmic scale an int is a float to be rounded, from half a step before the first to half a step after the
    last, so that none is met less often; engines that know ints there are slower at them by far.
    """
    match dimension:
        case Integer(low, high, _, True):
            return Real(low - 0.5, high + 0.5, log=True)
        case Integer(low, _, step):
            return Integer(0, (dimension.highest - low) // step)
        case Choice(values):
            return Choice(tuple(range(len(values))))
        case _:
            return dimension


def _single(dimension: Dimension) -> bool:
    match dimension:
        case Choice(values):
            return len(values) == 1
        case Integer(low):
            return low == dimension.highest
        case _:
            return dimension.low == dimension.high


def _code(dimension: Dimension, value: Any) -> Any:
    match dimension:
        case Integer(_, _, _, True):
            return float(value)
        case Integer(low, _, step):
            return (value - low) // step
        case Choice():
            return dimension.index(value)
        case _:
            return value


def _value(dimension: Dimension, code: Any) -> Any:
    match dimension:
        case Real(low, high):
            return min(max(float(code), low), high)
        case Integer(low, high, step, log):
            value = round(code) if log else low + round(code) * step
            return min(max(value, low), dimension.highest)
        case Choice(values):
            return values[int(code)]
