"""How long outcomes take, learnt from those that came and from those that are still awaited.

A delay is the log time of a request's outcome less that of the request, in milliseconds; an open request has waited for its
age so far. ``Waits`` keeps either as counts in bins on a log scale (as DDSketch has them: Masson, Rim and Lee, VLDB 2019),
wherever they were counted. Open requests are right-censored: ``arrivals`` estimates with Kaplan and Meier (Nonparametric
Estimation from Incomplete Observations, JASA 53, 1958) which share of requests has an outcome by which age.
"""

import math
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

ERROR = 0.04
"""The relative error of a quantile at most: half a bin."""
GROWTH = (1 + ERROR) / (1 - ERROR)
"""Of the bins' upper edges, which begin at 1 ms."""
BINS = 345
"""Up to 31 years; what is longer counts in the last bin."""
EDGES_MS = np.power(GROWTH, np.arange(BINS, dtype=np.float64))
"""Upper edges float64[BINS], in ms: bin i holds waits above edge i - 1 and up to edge i, bin 0 those up to 1 ms."""
LEAST = 30
"""Outcomes before a curve is trusted."""

State = Literal["open", "matured"]


class Waits(Struct, forbid_unknown_fields=True):
    """Counts of waits by bin; mergeable, of a bounded size (345 counts)."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * BINS)

    def __post_init__(self) -> None:
        if len(self.counts) != BINS:
            raise ValueError(f"waits have {BINS} counts, not {len(self.counts)}")

    @property
    def total(self) -> int:
        """How many were counted."""
        return sum(self.counts)

    def add(self, waits_ms: NDArray[np.float64]) -> None:
        """Count float64[n] waits in milliseconds. Those below 1 ms (an outcome can be older than its request where two
        clocks differ) count as 1 ms; NaN is no wait.
        """
        added = np.bincount(_bins(waits_ms[~np.isnan(waits_ms)]), minlength=BINS)
        self.counts = (np.array(self.counts, dtype=np.int64) + added).tolist()

    def merged(self, other: "Waits") -> "Waits":
        """Both counted together; neither is changed."""
        return Waits([ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)])

    def quantiles_ms(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """The waits float64[m] that shares (0 to 1) of all do not exceed, within ``ERROR``; NaN if none was counted."""
        reached = np.cumsum(self.counts)
        if reached[-1] == 0:
            return np.full(len(shares), np.nan)
        ranks = np.maximum(np.ceil(shares * reached[-1]), 1)
        found: NDArray[np.float64] = EDGES_MS[np.searchsorted(reached, ranks)] * (1 - ERROR)
        return found


class Arrivals(Struct, frozen=True):
    """Which share of requests has its outcome by which age.

    ``shares`` are those at ``EDGES_MS``. ``plateau`` is the share that ever gets one; it is 1 (and so nothing matures that
    has not nearly all outcomes) while the open requests have not waited long enough to tell late from never: ``settled``.
    """

    shares: tuple[float, ...]
    plateau: float
    settled: bool
    outcomes: int

    @property
    def never(self) -> float:
        """The share of requests that never get an outcome, as far as is known."""
        return 1 - self.plateau

    def expected_coverage(self, ages_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share float64[n] of requests of those ages expected to have their outcome by now; between edges on a line
        over the logarithm of the age.
        """
        logs = np.log(np.maximum(ages_ms, EDGES_MS[0] / GROWTH))
        edges = np.log(np.append(EDGES_MS[0] / GROWTH, EDGES_MS))
        covered: NDArray[np.float64] = np.interp(logs, edges, np.array([0.0, *self.shares]))
        return covered

    def matured(self, youngest_age_ms: float, share: float = 0.95) -> bool:
        """Whether requests of that age and above have that share of all outcomes that they will ever get."""
        if self.outcomes < LEAST:
            return False
        return bool(self.expected_coverage(np.array([youngest_age_ms]))[0] >= share * self.plateau)

    def matured_after_ms(self, share: float = 0.95) -> float:
        """The age from which requests are matured; infinite where none is known."""
        ages = np.flatnonzero(np.array(self.shares) >= share * self.plateau)
        return float(EDGES_MS[ages[0]]) if len(ages) and self.outcomes >= LEAST else math.inf


class Coverage(Struct, frozen=True):
    """How much of a window's truth is in: labelled of served requests, the share expected by the age of its youngest
    request, and whether its quality may be read.
    """

    served: int
    labelled: int
    expected: float
    state: State

    @property
    def share(self) -> float:
        """Labelled of served; NaN where none was served."""
        return self.labelled / self.served if self.served else math.nan


def arrivals(labelled: Waits, open: Waits) -> Arrivals:
    """Learn from the delays of outcomes that came, and the present ages of all requests that have none (also of those that
    nobody expects one for any more: they are how never is known).

    Within a bin those censored count as at risk for half of it, as in a life table (Cutler and Ederer, J. Chronic Diseases
    8, 1958).
    """
    came, censored = np.array(labelled.counts, dtype=np.float64), np.array(open.counts, dtype=np.float64)
    waiting = np.cumsum((came + censored)[::-1])[::-1]
    risk = waiting - censored / 2
    hazards = np.divide(came, risk, out=np.zeros(BINS), where=risk > 0)
    shares = 1 - np.cumprod(1 - hazards)
    settled = _settled(came, censored)
    plateau = float(shares[-1]) if settled else 1.0
    return Arrivals(tuple(shares.tolist()), plateau, settled, labelled.total)


def coverage(arrivals: Arrivals, served: int, labelled: int, youngest_age_ms: float, share: float = 0.95) -> Coverage:
    """Of one window of requests; ``youngest_age_ms`` is the age of the last that was served. It is matured as soon as its
    youngest request is expected to have ``share`` of the plateau, or every request has its outcome.
    """
    expected = float(arrivals.expected_coverage(np.array([youngest_age_ms]))[0])
    complete = 0 < served <= labelled
    matured = complete or arrivals.matured(youngest_age_ms, share)
    return Coverage(served, labelled, expected, "matured" if matured else "open")


def _bins(waits_ms: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.minimum(np.searchsorted(EDGES_MS, waits_ms), BINS - 1)


def _settled(came: NDArray[np.float64], censored: NDArray[np.float64]) -> bool:
    """Whether the open requests have been followed long enough beyond the last outcome for the rest to be never.

    After Maller and Zhou (Testing for Sufficient Follow-Up and Outliers in Survival Data, JASA 89, 1994): as long as the
    longest wait goes on beyond the latest outcome, so long before it there were three outcomes or more (were outcomes
    still to come, the chance of none would be below exp(-3), 5 %).
    """
    events, waits = np.flatnonzero(came), np.flatnonzero(came + censored)
    if not len(events):
        return False
    latest, longest = EDGES_MS[events[-1]], EDGES_MS[waits[-1]]
    return bool(came[2 * latest - longest < EDGES_MS].sum() >= 3)
