"""What one look sees: a window's counts against the champion's reference, as findings.

Counts add up, so a window is the sum of the last looks that reach back far enough: it must hold several blocks, for a block
is what is independent, not a row, and one stormy day is one of a kind.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from tidemill.core.alarms import Finding, Kind
from tidemill.core.reference import Column, Counts, Level, Reference
from tidemill.core.shift import Moved, Null, Shift, jensen_shannon, measure, move, null_of, shares

ROWS_STEP = 1.1
"""Nulls are kept for windows of about the same size."""
LABELLED_MIN = 50
"""Outcomes in a window before they are compared."""


class Tally(Struct, frozen=True):
    """What was counted of some requests: of each feature, of the predictions, and, once their outcomes are in, of these and
    of the errors and residuals (their sums). ``rows`` requests from ``began_at`` to ``ended_at`` (event time, ms).
    """

    rows: int
    began_at: int
    ended_at: int
    features: list[list[int]]
    predictions: list[int]
    outcomes: list[int] = []
    errors: float = 0.0
    residuals: float = 0.0

    @property
    def labelled(self) -> int:
        """Requests with an outcome."""
        return sum(self.outcomes)


class Size(NamedTuple):
    """What a window must hold: rows, and time where the reference has blocks of time."""

    rows: int
    least_ms: int
    whole_ms: int


def window(tallies: Sequence[Tally], size: Size) -> Tally | None:
    """The sum of the last tallies that reach back ``whole_ms``, and have the rows; None where there is too little yet."""
    taken: list[Tally] = []
    for tally in reversed(tallies):
        if taken and _span(taken) >= size.whole_ms and sum(one.rows for one in taken) >= size.rows:
            break
        taken.append(tally)
    if not taken or sum(one.rows for one in taken) < size.rows or _span(taken) < size.least_ms:
        return None
    return add(taken)


def add(tallies: Sequence[Tally]) -> Tally:
    """All counted together."""
    return Tally(
        rows=sum(one.rows for one in tallies),
        began_at=min(one.began_at for one in tallies),
        ended_at=max(one.ended_at for one in tallies),
        features=[np.sum(counts, axis=0).tolist() for counts in zip(*(one.features for one in tallies), strict=True)],
        predictions=_sum([one.predictions for one in tallies]),
        outcomes=_sum([one.outcomes for one in tallies]),
        errors=sum(one.errors for one in tallies),
        residuals=sum(one.residuals for one in tallies),
    )


def _span(tallies: Sequence[Tally]) -> int:
    return max(one.ended_at for one in tallies) - min(one.began_at for one in tallies)


def _sum(counts: Sequence[Sequence[int]]) -> list[int]:
    given = [one for one in counts if one]
    return np.sum(given, axis=0).tolist() if given else []


class Known(Struct, frozen=True):
    """States that a person, or time, has accepted: a later one that is near is no finding."""

    counts: dict[str, list[int]] = {}
    means: dict[str, float] = {}


class Comparer:
    """Of one reference; keeps the nulls that it has drawn. Deterministic by ``seed``."""

    def __init__(self, reference: Reference, seed: int) -> None:
        self.reference = reference
        self._seed = seed
        self._nulls: dict[tuple[str, int], Null] = {}

    def shifts(self, found: Tally) -> list[Shift]:
        """Of each feature that has counts."""
        return [
            self._shift(column, np.array(counts))
            for column, counts in zip(self.reference.features, found.features, strict=True)
        ]

    def served(self, found: Tally, known: Known, effect_min: float) -> list[Finding]:
        """What is known when a window was served: features and predictions."""
        findings = [
            self._counted(column, "feature", importance, counts, known, effect_min)
            for column, importance, counts in zip(
                self.reference.features, self.reference.importances, found.features, strict=True
            )
        ]
        if found.predictions and self.reference.predictions:
            findings.append(
                self._counted(self.reference.predictions[0], "prediction", 1.0, found.predictions, known, effect_min)
            )
        return findings

    def told(self, found: Tally, known: Known, effect_min: float) -> list[Finding]:
        """What its outcomes tell: their own shares, the error, and whether predictions are right on average."""
        if found.labelled < LABELLED_MIN or not self.reference.outcomes:
            return []
        levels = {one.name: one for one in self.reference.levels}
        return [
            self._counted(self.reference.outcomes[0], "outcome", 1.0, found.outcomes, known, effect_min),
            self._level(levels["error"], "error", found.labelled, found.errors, known, effect_min),
            self._level(levels["calibration"], "calibration", found.labelled, found.residuals, known, effect_min),
        ]

    def accept(self, known: Known, names: Sequence[str], served: Tally, told: Tally | None) -> Known:
        """What has these names is from now on as the windows have it."""
        counts = {column.name: value for column, value in zip(self.reference.features, served.features, strict=True)}
        counts |= {"prediction": served.predictions}
        means: dict[str, float] = {}
        if told is not None and told.labelled:
            counts |= {"outcome": told.outcomes}
            means = {"error": told.errors / told.labelled, "calibration": told.residuals / told.labelled}
        return Known(
            known.counts | {name: counts[name] for name in names if counts.get(name)},
            known.means | {name: means[name] for name in names if name in means},
        )

    def _counted(
        self, column: Column, kind: Kind, importance: float, counts: Sequence[int], known: Known, effect_min: float
    ) -> Finding:
        shift = self._shift(column, np.array(counts, dtype=np.int64))
        accepted = known.counts.get(column.name)
        near = accepted is not None and self._far(column, np.array(accepted), np.array(counts)) < effect_min
        return Finding(column.name, kind, shift.p, shift.effect, importance, told_of(column, shift, counts), near)

    def _level(self, level: Level, kind: Kind, rows: int, total: float, known: Known, effect_min: float) -> Finding:
        moved = move(level, rows, total, self.reference.blocked)
        accepted = known.means.get(level.name)
        spread = abs((moved.mean - moved.before) / moved.effect) if moved.effect else np.inf
        near = accepted is not None and abs(moved.mean - accepted) / spread < effect_min
        p = moved.p
        if kind == "error":  # only a rise matters
            p = moved.p / 2 if moved.effect > 0 else 1 - moved.p / 2
        return Finding(level.name, kind, p, moved.effect, 1.0, _text_of(kind, moved), near)

    def _shift(self, column: Column, counts: Counts) -> Shift:
        return measure(column, counts, self._null(column, int(counts.sum())))

    def _far(self, column: Column, accepted: Counts, counts: Counts) -> float:
        """How far two windows lie apart, beyond what two ordinary ones do."""
        null = self._null(column, int(counts.sum()))
        return float(np.sqrt(max(0.0, float(jensen_shannon(accepted, counts)) ** 2 - 2 * null.mean)))

    def _null(self, column: Column, rows: int) -> Null:
        """Of a window a little smaller: it varies as much or more."""
        step = int(np.log(max(rows, 1)) / np.log(ROWS_STEP))
        key = column.name, step
        if key not in self._nulls:
            self._nulls[key] = null_of(column, max(1, int(ROWS_STEP**step)), self.reference.blocked, self._seed)
        return self._nulls[key]


def told_of(column: Column, shift: Shift, counts: Sequence[int]) -> str:
    """One line: the bin that moved most, and from which share to which."""
    before = shares(np.array(column.counts, dtype=np.int64).sum(axis=0))
    now = shares(np.array(counts, dtype=np.int64))
    bin = int(np.abs(now - before).argmax())
    label = column.labels()[bin]
    return f"{column.name}: {label} {before[bin]:.1%} before, {now[bin]:.1%} now (distance {shift.effect:.2f})"


def _text_of(kind: Kind, moved: Moved) -> str:
    if kind == "error":
        return f"error: mean loss {moved.before:.4g} in training, {moved.mean:.4g} now"
    more = "more" if moved.mean > moved.before else "less"
    return f"calibration: outcomes are {abs(moved.mean - moved.before):.3g} {more} than predicted, on average"
