"""What one look sees: a window's counts against the champion's reference, as findings.

Counts add up, so a window is the sum of the last looks that reach back far enough: it must hold several blocks, for a block
is what is independent, not a row, and one stormy day is one of a kind.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from tidemill.core.alarms import Finding, Kind
from tidemill.core.reference import Column, Counts, Level, Reference
from tidemill.core.shift import Moved, Null, Shift, is_unheard_of, jensen_shannon, measure, move, null_of, shares

ROWS_STEP = 1.1
"""Nulls are kept for windows of about the same size."""
LABELLED_MIN = 200
"""Outcomes in a window before they are compared: the mean of 50 errors is far from normal."""


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
    gaps_ms: int = 0
    """The time between its parts, in which nothing was asked."""

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
        gaps_ms=_span(tallies) - sum(_busy(one) for one in tallies),
    )


def _busy(tally: Tally) -> int:
    """The time that its parts took; more than the whole where they overlap."""
    return tally.ended_at - tally.began_at - tally.gaps_ms


def _span(tallies: Sequence[Tally]) -> int:
    return max(one.ended_at for one in tallies) - min(one.began_at for one in tallies)


def _sum(counts: Sequence[Sequence[int]]) -> list[int]:
    given = [one for one in counts if one]
    return np.sum(given, axis=0).tolist() if given else []


class Known(Struct, frozen=True):
    """States that a person, or time, has accepted, by the findings' keys: a later one that is near is no finding."""

    counts: dict[str, list[int]] = {}
    means: dict[str, float] = {}


class Comparer:
    """Of one reference; keeps the nulls that it has drawn. Deterministic by ``seed``."""

    def __init__(self, reference: Reference, seed: int) -> None:
        self.reference = reference
        self._seed = seed
        self._nulls: dict[tuple[str, int, int, bool], Null] = {}

    def served(self, found: Tally, known: Known, effect_min: float) -> list[Finding]:
        """What is known when a window was served: features and predictions."""
        reference = self.reference
        pairs = zip(reference.features, reference.importances, found.features, strict=True)
        findings = [
            self._counted(column, "feature", importance, counts, found, known, effect_min)
            for column, importance, counts in pairs
        ]
        if found.predictions and reference.predictions:
            held = [
                self._counted(column, "prediction", 1.0, found.predictions, found, known, effect_min, f"{number}")
                for number, column in enumerate(reference.predictions)
            ]
            nearest = min(held, key=lambda one: one.effect)
            findings.append(replace(nearest, p=max(one.p for one in held), known=any(one.known for one in held)))
        return findings

    def told(self, found: Tally, known: Known, effect_min: float) -> list[Finding]:
        """What its outcomes tell: their own shares, the error, and whether predictions are right on average."""
        if found.labelled < LABELLED_MIN or not self.reference.outcomes:
            return []
        levels = {one.name: one for one in self.reference.levels}
        return [
            self._counted(self.reference.outcomes[0], "outcome", 1.0, found.outcomes, found, known, effect_min),
            self._level(levels["error"], "error", found, found.errors, known, effect_min),
            self._level(levels["calibration"], "calibration", found, found.residuals, known, effect_min),
        ]

    def accept(self, known: Known, findings: Sequence[Finding], served: Tally, told: Tally | None) -> Known:
        """What was found is from now on as the windows have it."""
        counts = {f"feature:{one.name}": value for one, value in zip(self.reference.features, served.features, strict=True)}
        counts |= {"prediction:prediction": served.predictions}
        means: dict[str, float] = {}
        if told is not None and told.labelled:
            counts |= {"outcome:outcome": told.outcomes}
            means = {
                "error:error": told.errors / told.labelled,
                "calibration:calibration": told.residuals / told.labelled,
            }
        keys = [finding.key for finding in findings]
        return Known(
            known.counts | {key: counts[key] for key in keys if counts.get(key)},
            known.means | {key: means[key] for key in keys if key in means},
        )

    def _counted(
        self,
        column: Column,
        kind: Kind,
        importance: float,
        counted: Sequence[int],
        of: Tally,
        known: Known,
        effect_min: float,
        of_several: str = "",
    ) -> Finding:
        counts = np.array(counted, dtype=np.int64)
        null = self._null(kind + of_several, column, int(counts.sum()), self._blocks(of), is_unheard_of(column, counts))
        shift = measure(column, counts, null)
        accepted = known.counts.get(f"{kind}:{column.name}")
        near = accepted is not None and _apart(null, np.array(accepted), counts) <= effect_min
        text = told_of(column, shift, counted)
        return Finding(column.name, kind, shift.p, shift.effect, importance, text, near, _figures(shift))

    def _level(self, level: Level, kind: Kind, of: Tally, total: float, known: Known, effect_min: float) -> Finding:
        moved = move(level, of.labelled, total, self._blocks(of))
        accepted = known.means.get(f"{kind}:{level.name}")
        spread = abs((moved.mean - moved.before) / moved.effect) if moved.effect else np.inf
        near = accepted is not None and abs(moved.mean - accepted) / spread <= effect_min
        p = moved.p
        if kind == "error":  # only a rise matters
            p = moved.p / 2 if moved.effect > 0 else 1 - moved.p / 2
        return Finding(level.name, kind, p, moved.effect, 1.0, _text_of(kind, moved), near)

    def _blocks(self, of: Tally) -> float:
        """How many blocks the window is of; 0 where rows are independent."""
        reference = self.reference
        if not reference.blocked:
            return 0.0
        if reference.block_ms:
            blocks = min(_busy(of), of.ended_at - of.began_at) / reference.block_ms
            return max(1.0, min(blocks, float(of.rows)))
        sizes = np.sum(reference.features[0].counts, axis=1)
        return max(1.0, of.rows / float(sizes.mean()))

    def _null(self, kind: str, column: Column, rows: int, blocks: float, unheard: bool) -> Null:
        """Of a window with a few rows less, and as many blocks at most: it varies as much or more."""
        step = int(np.log(max(rows, 1)) / np.log(ROWS_STEP))
        key = f"{kind}:{column.name}", step, int(blocks), unheard
        if key not in self._nulls:
            rows = max(1, int(ROWS_STEP**step))
            self._nulls[key] = null_of(column, rows, float(int(blocks)), self._seed, unheard)
        return self._nulls[key]


def _figures(shift: Shift) -> dict[str, float]:
    """What a person may want to see beside the effect."""
    return {
        "psi": shift.psi,
        "kolmogorov_smirnov": shift.kolmogorov_smirnov,
        "wasserstein": shift.wasserstein,
        "missing": shift.missing,
        "unseen": shift.unseen,
        "outside": shift.outside,
    }


def _apart(null: Null, accepted: Counts, counts: Counts) -> float:
    """How far two windows lie apart, beyond what two ordinary ones do."""
    return float(np.sqrt(max(0.0, float(jensen_shannon(accepted, counts)) ** 2 - 2 * null.mean)))


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
