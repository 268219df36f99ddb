"""The search space: what may be tuned, in types that every proposer returns alike."""

from msgspec import Struct


class Real(Struct, frozen=True, tag="real", forbid_unknown_fields=True):
    """A float in [low, high], searched on a logarithmic scale where ``log``."""

    low: float
    high: float
    log: bool = False


class Integer(Struct, frozen=True, tag="integer", forbid_unknown_fields=True):
    """An int from low to high in steps: low, low + step, ...; ``high`` is one of them or is never reached."""

    low: int
    high: int
    step: int = 1
    log: bool = False


class Choice(Struct, frozen=True, tag="choice", forbid_unknown_fields=True):
    """One of some values without order."""

    values: tuple[str | int | float | bool, ...]


Dimension = Real | Integer | Choice


class Space(Struct, frozen=True):
    """Dimensions by name, and ``fixed`` parameters that are passed on as they are."""

    dimensions: dict[str, Dimension]
    fixed: dict[str, str | int | float | bool] = {}
