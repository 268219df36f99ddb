"""Whether the labelled part of a matured window looks like what was served: else its quality is not the window's.

The effect is the Jensen-Shannon distance (Lin, IEEE Transactions on Information Theory 37, 1991; base 2, 0 to 1) between
the labelled and ALL served requests: that 2 % without an outcome are unlike the rest hardly moves a metric. Chance is
judged between the labelled and the others, who share no request: Kolmogorov-Smirnov for scores, chi-squared for counts.
Both must speak: with many rows everything is significant, with few every distance is large.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.shift import chi_squared, jensen_shannon

Values = NDArray[np.float64]
Counts = NDArray[np.int64]

BINS = 10
LEAST = 30
"""Requests in either part."""
DISTANCE = 0.05
"""Labels kept by score so that the distance is 0.05 moved a log loss of 0.52 by 0.015: see the tests."""
CHANCE = 0.01

Verdict = Literal["alike", "different", "too few"]


class Looked(Struct, frozen=True):
    """One thing that was compared: ``p`` of its own, the distance less what chance alone makes of it on average."""

    name: str
    distance: float
    p: float


class Representative(Struct, frozen=True):
    """The verdict over all that was looked at, the farthest first, and one line that says it."""

    verdict: Verdict
    labelled: int
    unlabelled: int
    looked: tuple[Looked, ...]
    text: str


def representative(
    labelled: Values,
    unlabelled: Values,
    features: Mapping[str, tuple[Counts, Counts]] | None = None,
    distance: float = DISTANCE,
    chance: float = CHANCE,
    least: int = LEAST,
) -> Representative:
    """Compare scores float64[n] or [n, classes] of the labelled and of the other requests of one window; rows that are not
    finite do not count.

    ``features`` are counts int64[bins] by name, of the labelled and of the others, in the same bins (a missing value's bin
    is one like any). ``chance`` is of a false alarm in the whole comparison: shared out equally (Bonferroni).
    """
    ours, others = _columns(labelled), _columns(unlabelled)
    if min(len(ours), len(others)) < least:
        return Representative("too few", len(ours), len(others), (), _too_few(len(ours), len(others), least))
    looked = [
        _scores(f"score {c}" if ours.shape[1] > 1 else "score", ours[:, c], others[:, c]) for c in range(ours.shape[1])
    ]
    looked += [_counts(name, *counts) for name, counts in (features or {}).items()]
    looked.sort(key=lambda one: -one.distance)
    unlike = [one for one in looked if one.distance > distance and one.p * len(looked) < chance]
    text = _text(len(ours), len(others), unlike, looked)
    return Representative("different" if unlike else "alike", len(ours), len(others), tuple(looked), text)


def _columns(scores: Values) -> Values:
    columns = scores if scores.ndim == 2 else scores[:, None]
    found: Values = columns[np.isfinite(columns).all(axis=1)]
    return found


def _scores(name: str, ours: Values, others: Values) -> Looked:
    from scipy.stats import ks_2samp  # here, for scipy.stats takes most of a second

    edges = np.unique(np.quantile(np.concatenate([ours, others]), np.arange(1, BINS) / BINS))
    counts = [np.bincount(np.searchsorted(edges, part), minlength=len(edges) + 1) for part in (ours, others)]
    p = float(ks_2samp(ours, others, method="asymp").pvalue)
    return Looked(name, served_distance(counts[0], counts[1]), p)


def _counts(name: str, ours: Counts, others: Counts) -> Looked:
    return Looked(name, served_distance(ours, others), chi_squared(ours, others)[1])


def served_distance(labelled: Counts, unlabelled: Counts) -> float:
    """The Jensen-Shannon distance between the labelled and all, of counts int64[bins]; 0 where a part is empty.

    Less the divergence that chance alone makes on average, (k - 1)(1/n + 1/m) b^2 / (8 ln 2) for k bins in use, n labelled
    and m others, a share b of all (from chi-squared, to which it is close for small distances).
    """
    ours, others = int(labelled.sum()), int(unlabelled.sum())
    if not ours or not others:
        return 0.0
    both = labelled + unlabelled
    expected = (np.count_nonzero(both) - 1) * (1 / ours + 1 / others) * (others / (ours + others)) ** 2 / (8 * np.log(2))
    return float(np.sqrt(max(0.0, float(jensen_shannon(labelled, both)) ** 2 - expected)))


def _too_few(labelled: int, unlabelled: int, least: int) -> str:
    if labelled >= least:
        return f"all but {unlabelled} of {labelled + unlabelled} requests are labelled: too few to differ"
    return f"{labelled} labelled requests are too few to speak for {labelled + unlabelled} (least {least})"


def _text(labelled: int, unlabelled: int, unlike: list[Looked], looked: list[Looked]) -> str:
    parts = f"{labelled} labelled of {labelled + unlabelled} served"
    if not unlike:
        return f"{parts} look alike (farthest: {looked[0].name}, distance {looked[0].distance:.3f}, p {looked[0].p:.2g})"
    names = ", ".join(f"{one.name} (distance {one.distance:.3f}, p {one.p:.2g})" for one in unlike[:3])
    more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
    return f"{parts} differ in {names}{more}: their quality may not be the window's"
