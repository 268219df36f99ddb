"""What a proposer takes beside the trials: an ask and a tell in LightGBM's space, by how many trials it was told before.

The machine may be shared, so the processor's time stands beside the clock's.
"""

import time
from statistics import median

from msgspec import Struct

from tidemill.core.space import Space
from tidemill.learners.lightgbm import LightGBM
from tidemill.tuning.base import Proposer
from tidemill.tuning.random import RandomProposer
from tidemill.wiring import PROPOSERS

PAST = (50, 200, 1000)
CALLS = 20
SPACE = Space(LightGBM().space("binary").dimensions)


class Overhead(Struct, frozen=True):
    """Milliseconds of an ask and its tell; ``cpu_ms`` is the median of the processor's."""

    proposer: str
    past: int
    median_ms: float
    worst_ms: float
    cpu_ms: float


def measure() -> list[Overhead]:
    """Every proposer that is installed."""
    return [_overhead(name, PROPOSERS.find(name)(SPACE, 0), past) for name in PROPOSERS.names() for past in PAST]


def _overhead(name: str, proposer: Proposer, past: int) -> Overhead:
    chance = RandomProposer(SPACE, 1)
    for number in range(past):
        proposer.tell(chance.ask(), _loss(number))
    calls = [_call(proposer, _loss(past + number)) for number in range(CALLS)]
    clock, cpu = zip(*calls, strict=True)
    return Overhead(name, past, median(clock), max(clock), median(cpu))


def _loss(number: int) -> float:
    """Anything, without two alike: what a proposer takes does not depend on what it finds."""
    return number * 0.618 % 1


def _call(proposer: Proposer, loss: float) -> tuple[float, float]:
    started, started_cpu = time.perf_counter(), time.process_time()
    proposer.tell(proposer.ask(), loss)
    return (time.perf_counter() - started) * 1e3, (time.process_time() - started_cpu) * 1e3
