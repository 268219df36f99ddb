"""The search space: what may be tuned, in types that every proposer returns alike."""

import math
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from tidemill.errors import ConfigError


class Real(Struct, frozen=True, tag="real", forbid_unknown_fields=True):
    """A float in [low, high], searched on a logarithmic scale where ``log``."""

    low: float
    high: float
    log: bool = False

    def contains(self, value: object) -> bool:
        """Whether the value is one of the dimension's, in its type."""
        return type(value) is float and self.low <= value <= self.high

    def fault(self) -> str:
        """What is wrong with the dimension, or ``""``."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return "low and high must be finite"
        return _range_fault(self.low, self.high, self.log)


class Integer(Struct, frozen=True, tag="integer", forbid_unknown_fields=True):
    """An int from low to high in steps: low, low + step, ...; ``high`` is one of them or is never reached."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    @property
    def highest(self) -> int:
        """The last step."""
        return self.low + (self.high - self.low) // self.step * self.step

    def contains(self, value: object) -> bool:
        """Whether the value is one of the dimension's steps, in its type."""
        return type(value) is int and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def fault(self) -> str:
        """What is wrong with the dimension, or ``""``."""
        if self.step < 1:
            return f"step {self.step} is below 1"
        if self.log and self.step != 1:
            return "log and a step other than 1 exclude each other"
        return _range_fault(self.low, self.high, self.log)


class Choice(Struct, frozen=True, tag="choice", forbid_unknown_fields=True):
    """One of some values without order."""

    values: tuple[str | int | float | bool, ...]

    def contains(self, value: object) -> bool:
        """Whether the value is one of the choices, in its type: True is not 1."""
        return (type(value), value) in self._typed()

    def index(self, value: object) -> int:
        """The number of a value, which must be one of the choices."""
        return self._typed().index((type(value), value))

    def _typed(self) -> list[tuple[type, object]]:
        return [(type(value), value) for value in self.values]

    def fault(self) -> str:
        """What is wrong with the dimension, or ``""``."""
        if not self.values:
            return "values is empty"
        return "" if len(set(self._typed())) == len(self.values) else "values holds one twice"


Dimension = Real | Integer | Choice


class Space(Struct, frozen=True):
    """Dimensions by name, ``fixed`` parameters that are passed on as they are, and the ``first`` point to try, a value for
    each dimension (the learner's own defaults, say), or nothing.
    """

    dimensions: dict[str, Dimension]
    fixed: dict[str, str | int | float | bool] = {}
    first: dict[str, str | int | float | bool] = {}

    def contains(self, parameters: Mapping[str, Any]) -> bool:
        """Whether the parameters are a point of the space: exactly its names, each with a value of its own."""
        if parameters.keys() != self.dimensions.keys() | self.fixed.keys():
            return False
        return all(dimension.contains(parameters[name]) for name, dimension in self.dimensions.items()) and all(
            parameters[name] == value for name, value in self.fixed.items()
        )

    def check(self) -> None:
        """Raise ``ConfigError`` for a space that cannot be searched."""
        for name, dimension in self.dimensions.items():
            fault = "it is fixed as well" if name in self.fixed else dimension.fault()
            if fault:
                raise ConfigError(f"search space: {name}: {fault}")
        if self.first and not self.contains(self.first | self.fixed):
            raise ConfigError(f"search space: its first point is not in it: {self.first}")


def _range_fault(low: float, high: float, log: bool) -> str:
    if low > high:
        return f"low {low} is above high {high}"
    return f"log needs a low above 0, not {low}" if log and low <= 0 else ""
