"""Changes of the mean of a stream of numbers, found as the numbers come: ADWIN and Page-Hinkley.

Both find what river 0.26 finds, value for value (``tests/unit/test_change.py``). A detector is its own state: encode it with
msgspec, decode it as ``Detector``, and it goes on as if it had never stopped. Numbers that are not finite are passed over.
After a change a detector forgets all it has seen, at the next number; until then its mean and width are those of the
change. So each finds the next change against what came since the last, and river's ADWIN does the same, although the paper
keeps the newer part of the window.
"""

import math
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray


class Adwin(Struct, tag="adwin"):
    """ADWIN2 (Bifet and Gavalda, Learning from Time-Changing Data with Adaptive Windowing, SDM 2007).

    A window of the newest values, kept as sums of 1, 2, 4, 8 ... values: at most ``buckets_max`` of a size, so its memory is
    the logarithm of its width. Every ``clock`` values the mean of each older part is compared with that of the rest (the
    paper's normal bound, section 4.1); where they differ, oldest sums are dropped and a change is told. Both parts have
    ``part_min`` values or more, the window more than ``grace``. ``delta`` bounds the chance of a false alarm, far from
    tightly: none in a million values of zeros and ones at 0.002, 11 at 0.06.

    The bound is made for values between 0 and 1. Of values without an upper end one huge one can tell a change: 125 false
    alarms in a million losses of a Pareto tail (2.2), none once they are clipped at 4 and divided by 4.
    """

    delta: float = 0.002
    clock: int = 32
    buckets_max: int = 5
    part_min: int = 5
    grace: int = 10
    width: int = 0
    total: float = 0.0
    squares: float = 0.0
    """The sum of the squared distances from the mean."""
    seen: int = 0
    changed: bool = False
    sums: list[list[float]] = msgspec.field(default_factory=lambda: [[]])
    """By size (1, 2, 4 ...), each the oldest first; ``spreads`` has the squared distances within each."""
    spreads: list[list[float]] = msgspec.field(default_factory=lambda: [[]])

    def __post_init__(self) -> None:
        if not (0 < self.delta < 1 and self.buckets_max >= 2 and min(self.clock, self.part_min) >= 1 and self.grace >= 0):
            raise ValueError("ADWIN needs 0 < delta < 1, buckets_max >= 2, clock and part_min >= 1, grace >= 0")

    @property
    def mean(self) -> float:
        """Of the window; NaN when it is empty."""
        return self.total / self.width if self.width else math.nan

    def update(self, value: float) -> bool:
        """Take one value; whether it told a change."""
        if not math.isfinite(value):
            return False
        if self.changed:
            self._forget()
        self._insert(value)
        self.seen += 1
        self.changed = self.seen % self.clock == 0 and self.width > max(self.grace, 1) and self._shrink()
        return self.changed

    def feed(self, values: NDArray[np.float64]) -> list[int]:
        """Take float64[n], in order; the indices, among them, at which a change was told."""
        return [index for index, value in enumerate(values.tolist()) if self.update(value)]

    def _forget(self) -> None:
        self.width, self.total, self.squares, self.seen, self.changed = 0, 0.0, 0.0, 0, False
        self.sums, self.spreads = [[]], [[]]

    def _insert(self, value: float) -> None:
        """One value as a new sum of one; squared distances after Welford (1962)."""
        width = self.width
        if width:
            distance = value - self.total / width
            self.squares += width * distance * distance / (width + 1)
        self.width = width + 1
        self.total += value
        self.sums[0].append(value)
        self.spreads[0].append(0.0)
        if len(self.sums[0]) > self.buckets_max:
            self._merge()

    def _merge(self) -> None:
        """The two oldest sums of each size that has too many become one of the next size."""
        level, size = 0, 1
        while len(self.sums[level]) > self.buckets_max:
            if level + 1 == len(self.sums):
                self.sums.append([])
                self.spreads.append([])
            sums, spreads = self.sums[level], self.spreads[level]
            distance = sums[0] / size - sums[1] / size
            self.sums[level + 1].append(sums[0] + sums[1])
            self.spreads[level + 1].append(spreads[0] + spreads[1] + size * size * distance * distance / (size + size))
            del sums[:2], spreads[:2]
            level, size = level + 1, size * 2

    def _shrink(self) -> bool:
        """Drop the oldest sums while any cut of the window shows two means; whether any did."""
        found = False
        while self.width > 1 and self._cut():
            self._drop_oldest()
            found = True
        return found

    def _cut(self) -> bool:
        """Whether somewhere the means of the older and the newer part differ by more than the paper's epsilon."""
        part_min, rest = self.part_min, self.width
        older, older_total, newer_total = 0, 0.0, self.total
        confidence = math.log(2 * math.log(self.width) / self.delta)
        noise = 2 * max(self.squares, 0.0) / self.width * confidence
        bias = 2 / 3 * confidence
        size = 1 << len(self.sums)
        for sums in reversed(self.sums):
            size >>= 1
            for total in sums:
                older += size
                rest -= size
                older_total += total
                newer_total -= total
                if rest < part_min:
                    return False
                if older < part_min:
                    continue
                scale = 1 / (older - part_min + 1) + 1 / (rest - part_min + 1)
                if abs(older_total / older - newer_total / rest) > math.sqrt(scale * noise) + bias * scale:
                    return True
        return False

    def _drop_oldest(self) -> None:
        size = 1 << (len(self.sums) - 1)
        total, spread = self.sums[-1].pop(0), self.spreads[-1].pop(0)
        self.width -= size
        self.total -= total
        distance = total / size - self.total / self.width
        self.squares -= spread + size * self.width * distance * distance / (size + self.width)
        if not self.sums[-1] and len(self.sums) > 1:
            self.sums.pop()
            self.spreads.pop()


class PageHinkley(Struct, tag="page_hinkley"):
    """The two-sided cumulative sum test of Page (Continuous Inspection Schemes, Biometrika 41, 1954), in Hinkley's form.

    Sums up how far values are from their mean so far, less ``delta`` (in the values' unit) each; a change is told when the
    sum has risen (``up``), fallen (``down``) or either (``both``) by more than ``threshold`` from its lowest or highest.
    ``alpha`` forgets old distances (1: never). Nothing is told within the first ``least`` values.
    """

    least: int = 30
    delta: float = 0.005
    threshold: float = 50.0
    alpha: float = 0.9999
    mode: Literal["up", "down", "both"] = "both"
    width: int = 0
    """Values since the last change."""
    average: float = 0.0
    risen: float = 0.0
    risen_min: float = 0.0
    fallen: float = 0.0
    fallen_max: float = 0.0
    changed: bool = False

    def __post_init__(self) -> None:
        if not (self.delta >= 0 and self.threshold > 0 and 0 < self.alpha <= 1 and self.mode in ("up", "down", "both")):
            raise ValueError("Page-Hinkley needs delta >= 0, threshold > 0, 0 < alpha <= 1, and mode up, down or both")

    @property
    def mean(self) -> float:
        """Of the values since the last change; NaN before the first."""
        return self.average if self.width else math.nan

    def update(self, value: float) -> bool:
        """Take one value; whether it told a change."""
        if not math.isfinite(value):
            return False
        if self.changed:
            self._forget()
        self._add(value)
        self.changed = self.width >= self.least and self._beyond()
        return self.changed

    def feed(self, values: NDArray[np.float64]) -> list[int]:
        """Take float64[n], in order; the indices, among them, at which a change was told."""
        return [index for index, value in enumerate(values.tolist()) if self.update(value)]

    def _forget(self) -> None:
        self.width, self.average, self.changed = 0, 0.0, False
        self.risen = self.risen_min = self.fallen = self.fallen_max = 0.0

    def _add(self, value: float) -> None:
        self.width += 1
        self.average += (value - self.average) / self.width
        distance = value - self.average
        self.risen = self.alpha * self.risen + distance - self.delta
        self.fallen = self.alpha * self.fallen + distance + self.delta
        self.risen_min = min(self.risen_min, self.risen)
        self.fallen_max = max(self.fallen_max, self.fallen)

    def _beyond(self) -> bool:
        up = self.mode != "down" and self.risen - self.risen_min > self.threshold
        return up or (self.mode != "up" and self.fallen_max - self.fallen > self.threshold)


Detector = Adwin | PageHinkley
