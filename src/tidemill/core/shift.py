"""How far a window lies from a reference, and whether ordinary stretches of the same series lie as far apart.

The distances are those of the field; all take counts over the same bins. Whether one is out of the ordinary is told by
``Null``: stretches of the window's size made of the reference's own blocks, held against references made the same way (a
block bootstrap: Kuensch 1989; Davison and Hinkley 1997, section 8). Their mean and variance place an F distribution, as the
survey statisticians do for chi-squared tests of clustered rows (Rao and Scott 1984; Thomas and Rao 1990): what 20 blocks
cannot know is in its second degrees of freedom.
"""

from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy import special

from tidemill.core.reference import Column, Counts, Level

Shares = NDArray[np.float64]
DRAWS = 2000
"""With 200 a single column's null may be so far off that one in 10,000 comes 20 times as often; with these, 4 times."""
FLOOR = 1e-4
"""A share of nothing, in PSI: the usual way to keep it finite."""
EXACT = 1_000_000
"""Degrees of freedom where the null is known: rows without blocks are independent."""


def psi(reference: Counts | Shares, window: Counts | Shares) -> NDArray[np.float64]:
    """Population stability index, over the last axis: sum (w - r) ln(w / r). 0.1 is called moderate, 0.2 or 0.25 large."""
    r, w = (np.maximum(shares(counts), FLOOR) for counts in (reference, window))
    found: NDArray[np.float64] = ((w - r) * np.log(w / r)).sum(axis=-1)
    return found


def jensen_shannon(reference: Counts | Shares, window: Counts | Shares) -> NDArray[np.float64]:
    """Jensen-Shannon distance, over the last axis: the root of the divergence in bits, from 0 to 1 (Endres and Schindelin
    2003).
    """
    r, w = shares(reference), shares(window)
    middle = (r + w) / 2
    bits = (special.rel_entr(r, middle) + special.rel_entr(w, middle)).sum(axis=-1) / (2 * np.log(2))
    found: NDArray[np.float64] = np.sqrt(np.maximum(bits, 0))
    return found


def chi_squared(reference: Counts, window: Counts) -> tuple[float, float]:
    """Pearson's statistic for equal shares, and its p-value were all rows independent; int64[bins] each."""
    table = np.array([reference, window])
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or not table.sum(axis=1).all():
        return 0.0, 1.0
    from scipy import stats  # here, for it takes most of a second

    found = stats.chi2_contingency(table, correction=False)
    return float(found.statistic), float(found.pvalue)


def kolmogorov_smirnov(column: Column, reference: Counts, window: Counts) -> float:
    """The largest difference of the two distribution functions at the edges of a number's bins; 0 for a category."""
    return float(np.abs(_steps(column, reference, window)).max(initial=0.0))


def wasserstein(column: Column, reference: Counts, window: Counts) -> float:
    """The area between the two distribution functions in the column's unit, at the edges of its bins; what lies outside
    counts as at its end. 0 for a category.
    """
    steps = _steps(column, reference, window)
    return float((np.abs(steps[:-1]) * np.diff(column.edges)).sum()) if len(steps) > 1 else 0.0


def shares(counts: Counts | Shares) -> Shares:
    """Counts over their sum, along the last axis; zeros where there is nothing."""
    found: Shares = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1e-300)
    return found


def _steps(column: Column, reference: Counts, window: Counts) -> Shares:
    if column.is_category or not column.edges or not reference[:-1].sum() or not window[:-1].sum():
        return np.zeros(0)
    return np.cumsum(shares(window[:-1]) - shares(reference[:-1]))[:-1]


class Shift(Struct, frozen=True):
    """A column of a window against the reference: distances, what is missing, unseen and out of range (shares of the window,
    ``missing_before`` of the reference), and ``p``: how often an ordinary stretch lies as far away. ``effect`` is the
    Jensen-Shannon distance beyond what an ordinary stretch of this size has.
    """

    name: str
    rows: int
    effect: float
    p: float
    psi: float
    jensen_shannon: float
    kolmogorov_smirnov: float
    wasserstein: float
    missing: float
    missing_before: float
    unseen: float
    outside: float


class Null(NamedTuple):
    """Of the squared distances of ordinary stretches: their mean, and the degrees of freedom of the F distribution."""

    mean: float
    freedom: float
    blocks_freedom: float

    @classmethod
    def of(cls, squared: NDArray[np.float64], blocks_freedom: float) -> "Null":
        """Of drawn ones, float64[draws]."""
        mean, variance = float(squared.mean()), float(squared.var(ddof=1))
        return cls(mean, 2 * mean**2 / variance if variance > 0 else 1.0, blocks_freedom)

    def p(self, squared: float) -> float:
        """How often an ordinary stretch has at least this squared distance."""
        if squared <= 0 or self.mean <= 0:
            return 1.0 if squared <= 0 else 0.0
        from scipy import stats

        return float(stats.f.sf(squared / self.mean, self.freedom, self.freedom * self.blocks_freedom))


def null_of(column: Column, rows: int, blocks: float, seed: int, unheard: bool = False) -> Null:
    """What windows of ``rows`` rows are like where nothing changed: independent rows, or ``blocks`` blocks where that is not
    0; with ``unheard`` those of them that have something in a bin that the reference has nothing in. Deterministic by
    ``seed``; some milliseconds.
    """
    counts = np.array(column.counts, dtype=np.int64)
    rng = np.random.default_rng(seed)
    blocked = blocks > 0 and len(counts) > 1
    references, windows = _blocks_drawn(counts, rows, blocks, rng) if blocked else _rows_drawn(counts.sum(axis=0), rows, rng)
    if unheard:
        new = _unheard_of(column, counts.sum(axis=0), rows, rng)[: len(windows)]
        windows = windows + new
        if column.is_category:  # a rare text that is new stands where another rare one would
            windows[:, -3] -= np.minimum(new[:, -2], windows[:, -3])
    return Null.of(jensen_shannon(references, windows) ** 2, len(counts) - 1 if blocked else EXACT)


def measure(column: Column, window: Counts, null: Null) -> Shift:
    """A window's counts, int64[bins], against the column's."""
    before = np.array(column.counts, dtype=np.int64).sum(axis=0)
    distance = float(jensen_shannon(before, window)) if window.sum() else 0.0
    before_share, share = shares(before), shares(window)
    return Shift(
        name=column.name,
        rows=int(window.sum()),
        effect=float(np.sqrt(max(0.0, distance**2 - null.mean))),
        p=null.p(distance**2),
        psi=float(psi(before, window)),
        jensen_shannon=distance,
        kolmogorov_smirnov=kolmogorov_smirnov(column, before, window),
        wasserstein=wasserstein(column, before, window),
        missing=float(share[-1]),
        missing_before=float(before_share[-1]),
        unseen=float(share[-2]) if column.is_category else 0.0,
        outside=float(share[0] + share[-2]) if column.edges else 0.0,
    )


def _rows_drawn(total: Counts, rows: int, rng: np.random.Generator) -> tuple[Counts, Counts]:
    """References and windows of independent rows, int64[draws, bins] each."""
    share = shares(total)
    return rng.multinomial(int(total.sum()), share, DRAWS), rng.multinomial(rows, share, DRAWS)


def _blocks_drawn(counts: Counts, rows: int, blocks: float, rng: np.random.Generator) -> tuple[Counts, Counts]:
    """The same of whole blocks. A window with fewer rows than its blocks is thinned; one with more varies as they do."""
    even = np.full(len(counts), 1 / len(counts))
    references = rng.multinomial(len(counts), even, size=DRAWS) @ counts
    windows = rng.multinomial(max(1, round(blocks)), even, size=DRAWS) @ counts
    thinned = [
        rng.multivariate_hypergeometric(drawn, rows) if drawn.sum() > rows else drawn for drawn in windows if drawn.sum()
    ]
    return references[: len(thinned)], np.array(thinned)


def is_unheard_of(column: Column, window: Counts) -> bool:
    """Whether a window, int64[bins], has something in a bin that the reference has nothing in."""
    return bool(window[np.sum(column.counts, axis=0) == 0].any())


def _unheard_of(column: Column, total: Counts, rows: int, rng: np.random.Generator) -> Counts:
    """Rows in bins that the reference has nothing in, one at least: it may have missed what is rarer than half a row of it;
    of texts, as many as it has seen once.
    """
    missed = np.where(total == 0, 0.5, 0.0)
    if column.is_category:
        missed[-2] = max(missed[-2], column.once)
    found = rng.poisson(rows * missed / max(1, int(total.sum())), size=(DRAWS, len(total)))
    none = found.sum(axis=1) == 0
    found[none] = rng.multinomial(1, missed / missed.sum(), size=int(none.sum()))
    return found


class Moved(Struct, frozen=True):
    """A level's mean in a window against the reference. ``effect``: the difference in standard deviations of one row
    (Cohen's d); ``p``: how often an ordinary stretch is as far away, on either side.
    """

    name: str
    rows: int
    mean: float
    before: float
    effect: float
    p: float


def move(reference: Level, rows: int, total: float, blocks: float) -> Moved:
    """A window of ``rows`` values that add up to ``total``: independent rows, or ``blocks`` blocks where that is not 0.

    Its mean varies by what blocks have in common and by single rows (analysis of variance of unequal blocks; Searle, Casella
    and McCulloch 1992, section 3.6), and is compared with Student's t. Blocks of unequal size count as fewer equal ones
    (Kish 1965): the square of their sum over the sum of their squares.
    """
    sizes, sums = np.array(reference.rows, dtype=np.float64), np.array(reference.sums)
    kept = sizes > 0
    sizes, sums, squares = sizes[kept], sums[kept], np.array(reference.squares)[kept]
    count = sizes.sum()
    if not rows or count < 2:
        return Moved(reference.name, rows, float("nan"), float("nan"), 0.0, 1.0)
    mean, before = total / rows, float(sums.sum() / count)
    blocked = blocks > 0 and len(sizes) > 1
    between, within = _components(sizes, sums, squares) if blocked else (0.0, float(squares.sum() / count - before**2))
    within = max(within, 0.0)
    equal = float(count**2 / (sizes**2).sum())
    variance = within / rows + within / count
    if blocked:
        variance += between / max(1.0, blocks * equal / len(sizes)) + between / equal
    if between + within <= 1e-12 * float(squares.sum() / count):  # it never varied, but for rounding
        moved = not np.isclose(mean, before, rtol=1e-6, atol=0)
        return Moved(reference.name, rows, mean, before, float(np.sign(mean - before)) * moved, 0.0 if moved else 1.0)
    from scipy import stats

    freedom = max(1.0, equal - 1) if blocked else EXACT
    p = 2 * float(stats.t.sf(abs(mean - before) / np.sqrt(variance), freedom))
    effect = float((mean - before) / np.sqrt(between + within))
    return Moved(reference.name, rows, float(mean), before, effect, p)


def _components(sizes: NDArray[np.float64], sums: NDArray[np.float64], squares: NDArray[np.float64]) -> tuple[float, float]:
    """The variance that blocks have in common, and that of rows within one."""
    count, blocks = sizes.sum(), len(sizes)
    means, mean = sums / sizes, sums.sum() / sizes.sum()
    if count <= blocks:
        return float(means.var(ddof=1)), 0.0
    within = float((squares - sizes * means**2).sum() / (count - blocks))
    between = float((sizes * (means - mean) ** 2).sum() / (blocks - 1))
    typical = (count - (sizes**2).sum() / count) / (blocks - 1)
    return max(0.0, (between - within) / typical), within
