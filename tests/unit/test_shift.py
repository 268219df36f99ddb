"""Distances against scipy's, and nulls that know how ordinary stretches of the same series differ."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial import distance

from tidemill.core import shift
from tidemill.core.reference import Blocks, Column, Counts, Level, Values, category_column, level, number_column
from tidemill.core.shift import (
    FLOOR,
    Moved,
    Null,
    chi_squared,
    is_unheard_of,
    jensen_shannon,
    kolmogorov_smirnov,
    measure,
    move,
    null_of,
    psi,
    shares,
    wasserstein,
)

few = settings(max_examples=30, deadline=None)


def counts_of(bins: int, least: int = 0) -> st.SearchStrategy[Counts]:
    """Of a window with a row at least."""
    return st.lists(st.integers(least, 300), min_size=bins, max_size=bins).filter(sum).map(np.array)


pairs = st.integers(1, 8).flatmap(lambda bins: st.tuples(counts_of(bins), counts_of(bins)))


class Series(NamedTuple):
    """Of blocks that have something in common: each has a mean of its own, ``alike`` standard deviations of a row apart."""

    alike: float
    block_rows: int
    uneven: float = 0.0

    def blocks(self, rng: np.random.Generator, count: int) -> tuple[Values, Blocks]:
        """So many, and which rows are whose."""
        sizes = np.maximum(1, self.block_rows * np.exp(self.uneven * rng.normal(size=count))).astype(np.int64)
        numbered = np.repeat(np.arange(count), sizes)
        return (self.alike * rng.normal(size=count))[numbered] + rng.normal(size=len(numbered)), numbered

    def window(self, rng: np.random.Generator, rows: int) -> Values:
        """The first rows of as many as it takes."""
        taken, count = np.zeros(0), -(-rows // self.block_rows)
        while len(taken) < rows:
            taken = np.concatenate([taken, self.blocks(rng, count)[0]])
        return taken[:rows]

    def blocks_in(self, rows: int, numbered: Blocks) -> float:
        """In a window of so many rows, by the mean size of those that were learnt."""
        return rows * (int(numbered[-1]) + 1) / len(numbered)


def shift_ps(series: Series, blocked: bool, rows: int, seed: int, blocks: int = 50, references: int = 30) -> Values:
    """The p of ordinary windows: 20 for each of 30 references."""
    rng, found = np.random.default_rng(seed), []
    for draw in range(references):
        values, numbered = series.blocks(rng, blocks)
        column = number_column("x", values, numbered)
        null = null_of(column, rows, series.blocks_in(rows, numbered) if blocked else 0, draw)
        windows = [column.count(series.window(rng, rows)) for _ in range(20)]
        found += ps_of(column, null, windows)
    return np.array(found)


def ps_of(column: Column, null: Null, windows: Sequence[Counts]) -> list[float]:
    squares = jensen_shannon(np.sum(column.counts, axis=0), np.array(windows)) ** 2
    return [null.p(float(squared)) for squared in squares]


def move_ps(series: Series, blocked: bool, rows: int, seed: int, blocks: int = 50, references: int = 60) -> Values:
    """The same of a level: 10 for each of 60."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(references):
        values, numbered = series.blocks(rng, blocks)
        known, count = level("error", values, numbered), series.blocks_in(rows, numbered) if blocked else 0
        found += [move(known, rows, series.window(rng, rows).sum(), count).p for _ in range(10)]
    return np.array(found)


def of_time(learnt: Series, served: Series, blocks: int, seed: int) -> tuple[Values, Values]:
    """The p of shifts and of moves where a window is so many whole blocks, as time has it, of other traffic than was learnt:
    10 windows for each of 40 references of 50 blocks.
    """
    rng = np.random.default_rng(seed)
    shifts: list[float] = []
    moves: list[float] = []
    for draw in range(40):
        values, numbered = learnt.blocks(rng, 50)
        column, known = number_column("x", values, numbered), level("error", values, numbered)
        windows = [served.blocks(rng, blocks)[0] for _ in range(10)]
        null = null_of(column, min(map(len, windows)), blocks, draw)
        shifts += ps_of(column, null, [column.count(window) for window in windows])
        moves += [move(known, len(window), float(window.sum()), blocks).p for window in windows]
    return np.array(shifts), np.array(moves)


def numbers(values: Sequence[float], blocks: int = 1) -> Column:
    return number_column("x", np.array(values, dtype=np.float64), np.arange(len(values), dtype=np.int64) % blocks)


def by_hand(edges: list[float], *counts: Sequence[int]) -> Column:
    return Column("x", [list(block) for block in counts], edges=edges)


def ks(left: Sequence[float] | Values, right: Sequence[float] | Values) -> float:
    """Scipy's statistic; its p, which is not asked for, would divide by zero for two rows."""
    with np.errstate(divide="ignore"):
        return float(stats.ks_2samp(left, right, method="asymp").statistic)


# -- distances


@few
@given(pairs)
def test_psi_is_the_sum_of_its_bins(pair: tuple[Counts, Counts]) -> None:
    """By its usual formula, a share of nothing as 0.0001."""
    r, w = ([max(count / counts.sum(), FLOOR) for count in counts.tolist()] for counts in pair)
    expected = sum((b - a) * math.log(b / a) for a, b in zip(r, w, strict=True))
    assert float(psi(*pair)) == pytest.approx(expected, abs=1e-12)


@few
@given(pairs)
def test_jensen_shannon_is_that_of_scipy(pair: tuple[Counts, Counts]) -> None:
    """In bits."""
    expected = distance.jensenshannon(*pair, base=2)
    assert float(jensen_shannon(*pair)) == pytest.approx(0 if math.isnan(expected) else expected, abs=1e-7)


@few
@given(pairs)
def test_both_ways_are_as_far(pair: tuple[Counts, Counts]) -> None:
    """The Jensen-Shannon distance, PSI and chi-squared are symmetric; none is negative."""
    for far in (psi, jensen_shannon, lambda r, w: chi_squared(r, w)[0]):
        there, back = float(far(*pair)), float(far(*pair[::-1]))
        assert there == pytest.approx(back, abs=1e-12)
        assert there >= 0


@few
@given(counts_of(5), st.integers(1, 20))
def test_equal_shares_are_not_apart(counts: Counts, times: int) -> None:
    """Of windows of different sizes, and with empty bins; by every distance."""
    column = by_hand([1.0, 2.0, 3.0], counts.tolist())
    more = counts * times
    assert float(psi(counts, more)) == pytest.approx(0, abs=1e-12)
    assert float(jensen_shannon(counts, more)) == pytest.approx(0, abs=1e-7)
    assert chi_squared(counts, more) == pytest.approx((0, 1))
    assert kolmogorov_smirnov(column, counts, more) == pytest.approx(0, abs=1e-12)
    assert wasserstein(column, counts, more) == pytest.approx(0, abs=1e-12)


@few
@given(counts_of(3), counts_of(4))
def test_disjoint_windows_are_one_apart(left: Counts, right: Counts) -> None:
    """The Jensen-Shannon distance cannot be more."""
    found = jensen_shannon(np.concatenate([left, 0 * right]), np.concatenate([0 * left, right]))
    assert float(found) == pytest.approx(1)


@few
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32))
def test_many_windows_at_once_are_as_one_by_one(rows: int, bins: int, seed: int) -> None:
    """The shares too; each row by itself, also one of nothing."""
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 4, (2, rows, bins))
    for far in (psi, jensen_shannon):
        assert far(left, right).tolist() == [float(far(a, b)) for a, b in zip(left, right, strict=True)]
        assert far(left[0], right).tolist() == [float(far(left[0], b)) for b in right]
    assert shares(left).tolist() == [shares(one).tolist() for one in left]


def test_the_share_of_nothing_is_nothing() -> None:
    """Not NaN."""
    assert shares(np.zeros(3, dtype=np.int64)).tolist() == [0, 0, 0]


@few
@given(pairs)
def test_chi_squared_against_the_formula(pair: tuple[Counts, Counts]) -> None:
    """Sum of (observed - expected)^2 / expected; its p-value is scipy's, with one degree of freedom less than bins that are
    there.
    """
    table = np.array(pair)
    used = table[:, table.sum(axis=0) > 0]
    assume(used.shape[1] > 1)
    expected = np.outer(used.sum(axis=1), used.sum(axis=0)) / used.sum()
    statistic = float(((used - expected) ** 2 / expected).sum())
    found = chi_squared(*pair)
    assert found[0] == pytest.approx(statistic, abs=1e-9)
    assert found[1] == pytest.approx(float(stats.chi2.sf(statistic, used.shape[1] - 1)), abs=1e-9)


@pytest.mark.parametrize(("reference", "window"), [([5, 0], [3, 0]), ([5, 1], [0, 0]), ([0, 0], [0, 0])])
def test_where_nothing_can_differ_chi_squared_finds_nothing(reference: list[int], window: list[int]) -> None:
    """One bin, or no rows."""
    assert chi_squared(np.array(reference), np.array(window)) == (0.0, 1.0)


@st.composite
def binned(draw: st.DrawFn) -> tuple[Column, Counts, Counts]:
    """Rising edges, and two windows of numbers; some may be missing."""
    edges = sorted(draw(st.sets(st.integers(-50, 50), min_size=1, max_size=7)))
    of_bins = counts_of(len(edges) + 1)
    reference, window = (np.append(draw(of_bins), draw(st.integers(0, 50))) for _ in range(2))
    return by_hand([float(edge) for edge in edges], reference.tolist()), reference, window


@few
@given(binned())
def test_kolmogorov_smirnov_is_that_of_scipy_where_edges_tell_all(given: tuple[Column, Counts, Counts]) -> None:
    """Rows lie somewhere within their bins; what is missing does not count."""
    column, reference, window = given
    bounds = np.array([column.edges[0] - 2, *column.edges, column.edges[-1] + 2])
    inside = (bounds[:-1] + bounds[1:]) / 2
    expected = ks(*(np.repeat(inside, counts[:-1]) for counts in (reference, window)))
    assert kolmogorov_smirnov(column, reference, window) == pytest.approx(expected, abs=1e-12)


@few
@given(binned())
def test_wasserstein_is_that_of_scipy_where_rows_lie_on_edges(given: tuple[Column, Counts, Counts]) -> None:
    """At the upper edge of its bin; what lies outside at the end."""
    column, reference, window = given
    places = [*column.edges, column.edges[-1]]
    expected = stats.wasserstein_distance(places, places, reference[:-1], window[:-1])
    assert wasserstein(column, reference, window) == pytest.approx(expected, abs=1e-9)


@few
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=20), st.lists(st.integers(0, 19), min_size=1, max_size=20))
def test_numbers_of_few_values_are_compared_exactly(learnt: list[int], picks: list[int]) -> None:
    """Each has a bin of its own: scipy's two distances, of the rows themselves, where no value is new."""
    served = [learnt[pick % len(learnt)] for pick in picks]
    column = numbers(learnt)
    before, now = np.array(column.counts[0]), column.count(np.array(served, dtype=np.float64))
    assert kolmogorov_smirnov(column, before, now) == pytest.approx(ks(learnt, served), abs=1e-12)
    assert wasserstein(column, before, now) == pytest.approx(stats.wasserstein_distance(learnt, served), abs=1e-12)


def test_categories_have_no_order() -> None:
    """So no distribution function; nor has a number that was never known."""
    codes = category_column("c", ["a", "b"], np.array([0.0, 1.0]), np.zeros(2, dtype=np.int64))
    for column in (codes, numbers([math.nan])):
        window = np.arange(column.bins)
        assert kolmogorov_smirnov(column, window[::-1], window) == wasserstein(column, window[::-1], window) == 0


def test_a_window_without_a_known_number_has_no_distribution_function() -> None:
    """That all are missing is told by another figure; a distance of 46 units is none."""
    column = numbers(np.arange(100.0).tolist())
    found = measure(column, column.count(np.full(10, math.nan)), null_of(column, 10, 0, 0))
    assert (found.missing, found.kolmogorov_smirnov, found.wasserstein) == (1, 0, 0)


# -- nulls


@pytest.fixture
def quick_nulls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 draws and not 2,000: near enough at 0.05, and much quicker where blocks are drawn."""
    monkeypatch.setattr(shift, "DRAWS", 200)


@pytest.mark.usefixtures("quick_nulls")
@pytest.mark.parametrize("rows", [50, 5000])
@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.97, 0.01, 0.01, 0.01], [0.05] * 20], ids=["two", "skew", "twenty"])
def test_p_is_uniform_where_rows_are_independent(rows: int, shares: list[float]) -> None:
    """Of 30 references of 5,000 rows and 100 windows each: 5 % are at most 0.05 and half at most 0.5. Windows of one
    reference err together, so a share has a standard deviation of about 0.01 and 0.03; three of them are allowed, and
    upwards only what is half again as many.
    """
    rng, found = np.random.default_rng(7), []
    edges = list(map(float, range(len(shares) - 1)))
    for seed in range(30):
        column = by_hand(edges, [*rng.multinomial(5000, shares).tolist(), 0])
        null = null_of(column, rows, 0, seed)
        before = np.array(column.counts[0])
        windows = np.column_stack([rng.multinomial(rows, shares, 100), np.zeros(100, dtype=np.int64)])
        found += [null.p(float(squared)) for squared in jensen_shannon(before, windows) ** 2]
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.075
    assert 0.41 < np.mean(np.array(found) <= 0.5) < 0.59


@pytest.mark.parametrize("rows", [50, 5000])
@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.0999, 0.0001], [0.05] * 20], ids=["two", "rare", "twenty"])
def test_what_the_reference_never_held_does_not_make_ordinary_windows_rare(rows: int, shares: list[float]) -> None:
    """Three bins have nothing, and one may: what is as rare as half a row of the reference. By the tolerance above, no more
    are flagged than 5 %.
    """
    rng = np.random.default_rng(7)
    found: list[float] = []
    chances = np.array([0.0, *shares, 0.0, 0.0])
    chances /= chances.sum()
    for seed in range(10):
        column = by_hand(list(map(float, range(len(chances) - 1))), rng.multinomial(5000, chances).tolist())
        found += ps_of(column, null_of(column, rows, 0, seed), list(rng.multinomial(rows, chances, 100)))
    assert np.mean(np.array(found) <= 0.05) < 0.075
    assert np.mean(np.array(found) <= 0.005) < 0.015


@pytest.mark.usefixtures("quick_nulls")
@pytest.mark.parametrize(("rows", "blocks"), [(50, 50), (500, 50), (2000, 20)])
def test_p_knows_that_rows_of_a_block_are_alike(rows: int, blocks: int) -> None:
    """Blocks of 100 rows whose means differ as much as rows do; windows of half a block up to the reference's size.

    Of 600 windows 5 % should be flagged. They share 30 references, so the share's standard deviation is about 0.017 and not
    0.009: up to 0.1 is allowed. Taken as independent, more than half would be.
    """
    series = Series(1.0, 100)
    assert 0.01 < np.mean(shift_ps(series, True, rows, 1, blocks) <= 0.05) < 0.1
    assert np.mean(shift_ps(series, False, rows, 1, blocks, references=5) <= 0.05) > 0.5


@pytest.mark.usefixtures("quick_nulls")
def test_blocks_that_have_nothing_in_common_cost_nothing() -> None:
    """p stays uniform: where rows are independent, that they were kept by block changes little."""
    found = shift_ps(Series(0.0, 100), True, 500, 2)
    assert 0.01 < np.mean(found <= 0.05) < 0.1
    assert 0.35 < np.mean(found <= 0.5) < 0.65


@pytest.mark.usefixtures("quick_nulls")
def test_blocks_may_be_of_uneven_size() -> None:
    """From a third of the usual size to three times it; the same tolerance, for the same reason."""
    assert 0.01 < np.mean(shift_ps(Series(1.0, 100, uneven=1.0), True, 500, 1) <= 0.05) < 0.1


TRAFFIC = [
    (Series(1.0, 100), Series(1.0, 1000), 1),
    (Series(1.0, 100), Series(1.0, 1000), 7),
    (Series(0.3, 100), Series(0.3, 1000), 3),
    (Series(1.0, 100), Series(1.0, 20), 5),
    (Series(1.0, 100, uneven=1.0), Series(1.0, 500, uneven=1.0), 5),
]


@pytest.mark.usefixtures("quick_nulls")
@pytest.mark.parametrize(
    ("learnt", "served", "blocks"),
    TRAFFIC,
    ids=["dense day", "dense week", "dense, less alike", "sparse", "uneven and dense"],
)
def test_other_traffic_than_was_learnt_is_no_shift(learnt: Series, served: Series, blocks: int) -> None:
    """Where a block is a stretch of time, it has as many rows as came: 5 % of windows are flagged of shifts and of moves, up
    to 10 % by chance (400 windows share 40 references, so the share's standard deviation is about 0.016).
    """
    shifts, moves = of_time(learnt, served, blocks, 1)
    assert np.mean(shifts <= 0.05) < 0.1
    assert np.mean(moves <= 0.05) < 0.1


def test_a_shift_is_found_among_blocks_that_differ() -> None:
    """The power that is left: two standard deviations of all rows, in a window of five blocks, in 20 of 20 references."""
    rng, series = np.random.default_rng(3), Series(1.0, 100)
    for seed in range(20):
        column = number_column("x", *series.blocks(rng, 50))
        window = series.window(rng, 500) + 2 * math.sqrt(2)
        assert measure(column, column.count(window), null_of(column, 500, 5, seed)).p < 0.01


@pytest.mark.parametrize(("blocks", "rows"), [(60, 100), (60, 5)])
def test_texts_of_which_new_ones_keep_coming_have_not_shifted(blocks: int, rows: int) -> None:
    """Thousands of rare texts, many of which the reference cannot have: new ones stand where other rare ones would. Of 40
    ordinary windows of a quarter of the reference 6 may be called unusual at 0.05, three times the share.
    """
    chances = 1 / np.arange(1, 3001) ** 1.1
    found = []
    for seed in range(40):
        drawn = np.random.default_rng(seed).choice(3000, (blocks + blocks // 4) * rows, p=chances / chances.sum())
        texts, learnt = np.unique(drawn[: blocks * rows], return_inverse=True)
        code = {text: float(number) for number, text in enumerate(texts.tolist())}
        served = np.array([code.get(text, math.nan) for text in drawn[blocks * rows :].tolist()])
        column = category_column("c", list(map(str, texts)), learnt.astype(float), np.repeat(np.arange(blocks), rows))
        window = column.count(served, int(np.isnan(served).sum()))
        assert is_unheard_of(column, window)
        found.append(measure(column, window, null_of(column, len(served), blocks / 4, 0, unheard=True)).p)
    assert sum(p <= 0.05 for p in found) <= 6


@few
@given(st.floats(1e-6, 1), st.floats(1, 1e3), st.integers(1, 200), st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_p_falls_with_the_distance(mean: float, freedom: float, blocks: int, squares: list[float]) -> None:
    """From 1 at no distance; but for the last bits of the distribution's own arithmetic."""
    found = [Null(mean, freedom, blocks).p(squared) for squared in sorted(squares)]
    assert all(later <= sooner * (1 + 1e-12) for sooner, later in pairwise(found))
    assert all(0 <= p <= 1 for p in found)
    assert Null(mean, freedom, blocks).p(0.0) == 1.0


def test_what_is_one_in_ten_thousand_is_so_by_any_draws() -> None:
    """Forty nulls of one column, each by its own seed: where their median has a p of 0.0001, none has four times as much, or
    a quarter of it. With 200 draws one has six times as much.
    """
    column = number_column("x", *Series(1.0, 20).blocks(np.random.default_rng(0), 30))
    nulls = [null_of(column, 100, 5, seed) for seed in range(40)]
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        seldom = np.median([null.p(middle) for null in nulls]) < 1e-4
        low, high = (low, middle) if seldom else (middle, high)
    found = [null.p(low) for null in nulls]
    assert min(found) > 1e-4 / 4
    assert max(found) < 4e-4


@pytest.mark.parametrize("blocks", [0, 5])
def test_a_null_is_the_same_by_its_seed(blocks: float) -> None:
    """And another by another."""
    column = number_column("x", *Series(1.0, 20).blocks(np.random.default_rng(0), 30))
    assert null_of(column, 100, blocks, 5) == null_of(column, 100, blocks, 5)
    assert null_of(column, 100, blocks, 5) != null_of(column, 100, blocks, 6)


@pytest.mark.parametrize("blocked", [False, True])
def test_a_small_window_varies_more_than_a_large_one(blocked: bool) -> None:
    """Down to what the reference itself leaves open, however much larger the window is."""
    column = number_column("x", *Series(1.0, 20).blocks(np.random.default_rng(0), 30))
    means = [null_of(column, rows, blocked * rows / 20, 0).mean for rows in (1, 10, 100, 1000, 10_000, 100_000)]
    assert means == sorted(means, reverse=True)
    assert means[-1] > 0


def test_a_window_of_few_blocks_varies_more_than_one_of_many() -> None:
    """Of as many rows: that traffic is denser than it was makes a window no surer than its blocks are."""
    column = number_column("x", *Series(1.0, 20).blocks(np.random.default_rng(0), 30))
    means = [null_of(column, 1000, blocks, 0).mean for blocks in (1, 5, 20, 50)]
    assert means == sorted(means, reverse=True)
    assert null_of(column, 10**6, 5, 0).mean > 0.8 * null_of(column, 100, 5, 0).mean


def test_one_block_says_nothing_of_how_blocks_differ() -> None:
    """Its rows are taken as independent."""
    column = numbers(np.random.default_rng(0).normal(size=500).tolist())
    assert null_of(column, 100, 5, 0) == null_of(column, 100, 0, 0)


@few
@given(
    sizes=st.lists(st.integers(0, 30), min_size=2, max_size=8).filter(any),
    rows=st.integers(1, 200),
    blocks=st.floats(0.01, 20),
    seed=st.integers(0, 2**32),
)
def test_any_blocks_have_a_null(sizes: list[int], rows: int, blocks: float, seed: int) -> None:
    """Also where some are empty or there are few rows: its p is one, and its degrees of freedom are positive. Of 200 draws,
    to be quick.
    """
    values = np.random.default_rng(seed).normal(size=sum(sizes))
    column = number_column("x", values, np.repeat(np.arange(len(sizes)), sizes))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shift, "DRAWS", 200)
        null = null_of(column, rows, blocks, seed)
    assert null.mean >= 0
    assert null.freedom > 0
    assert 0 <= null.p(0.5) <= 1


# -- a column's shift


def test_a_constant_that_stays_has_not_moved() -> None:
    """Where nothing ever varied, nothing is out of the ordinary but what differs."""
    column = numbers([7.0] * 100)
    null = null_of(column, 50, 0, 0)
    same = measure(column, column.count(np.full(50, 7.0)), null)
    assert (same.p, same.effect, same.jensen_shannon) == (1.0, 0.0, 0.0)
    other = measure(column, column.count(np.full(50, 8.0)), null)
    assert other.p < 1e-30
    assert other.effect > 0.99
    assert (other.jensen_shannon, other.outside) == (1.0, 1.0)


def test_a_shift_says_what_is_missing_unseen_and_outside() -> None:
    """As shares of the window; of a category nothing is outside, of a number nothing unseen."""
    column = numbers([1, 2, 3, math.nan])
    found = measure(
        column, column.count(np.array([0.0, 1, 2, 9, 9, math.nan, math.nan, math.nan])), null_of(column, 8, 0, 0)
    )
    assert (found.name, found.rows) == ("x", 8)
    assert (found.missing, found.missing_before, found.outside, found.unseen) == (3 / 8, 1 / 4, 3 / 8, 0)
    codes = category_column("c", ["a", "b"], np.array([0.0, 0, 0, 0]), np.zeros(4, dtype=np.int64))
    counts = codes.count(np.array([0.0, 1, math.nan, math.nan]), unseen=1)
    found = measure(codes, counts, null_of(codes, 4, 0, 0))
    assert (found.missing, found.missing_before, found.outside, found.unseen) == (1 / 4, 0, 0, 1 / 2)


@few
@given(counts_of(6, least=1), counts_of(6))
def test_a_shift_has_the_distances_of_its_counts(before: Counts, window: Counts) -> None:
    """Each by its own function; the effect is what the distance has beyond the null's."""
    column = by_hand([1.0, 2.0, 3.0, 5.0], before.tolist())
    null = Null(0.01, 5.0, 20.0)
    found = measure(column, window, null)
    assert found.psi == float(psi(before, window))
    assert found.jensen_shannon == float(jensen_shannon(before, window))
    assert found.kolmogorov_smirnov == kolmogorov_smirnov(column, before, window)
    assert found.wasserstein == wasserstein(column, before, window)
    assert found.effect**2 == pytest.approx(max(0, found.jensen_shannon**2 - 0.01), abs=1e-9)
    assert found.p == null.p(found.jensen_shannon**2)


def test_the_counts_of_all_blocks_are_the_reference() -> None:
    """A window is held against them together."""
    values = np.random.default_rng(0).normal(size=300)
    null = Null(0.01, 5.0, 20.0)
    one, ten = numbers(values.tolist()), numbers(values.tolist(), blocks=10)
    assert measure(one, one.count(values[:50]), null) == measure(ten, ten.count(values[:50]), null)


def test_a_window_of_nothing_has_not_shifted() -> None:
    """As where no request of a look could be decoded."""
    column = numbers([7.0] * 100)
    found = measure(column, np.zeros(column.bins, dtype=np.int64), null_of(column, 1, 0, 0))
    assert (found.p, found.effect) == (1.0, 0.0)


# -- levels


def of_rows(values: NDArray[np.float64], blocks: int = 1) -> Level:
    return level("error", values, np.arange(len(values), dtype=np.int64) % blocks)


@few
@given(shift=st.floats(-0.3, 0.3), rows=st.integers(50, 3000), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**32))
def test_without_blocks_it_is_the_t_test(shift: float, rows: int, scale: float, seed: int) -> None:
    """Scipy's, of a window with the reference's own spread: alike to 2 % for 3,000 rows, and in p where that is not tiny."""
    known = np.random.default_rng(seed).normal(size=3000) * scale
    mean = float(known.mean()) + shift * scale
    found = move(of_rows(known), rows, mean * rows, 0)
    sd = float(known.std(ddof=1))
    expected = stats.ttest_ind_from_stats(mean, sd, rows, float(known.mean()), sd, 3000)
    assert found.p == pytest.approx(float(expected.pvalue), rel=0.02, abs=1e-4)
    assert found.effect == pytest.approx((mean - known.mean()) / sd, rel=0.02, abs=1e-9)
    assert (found.mean, found.before) == pytest.approx((mean, float(known.mean())), abs=1e-6 * scale)


@few
@given(st.floats(0.01, 100), st.sampled_from([0.0, 0.5, 5.0]))
def test_the_sign_of_an_effect_is_that_of_the_move(by: float, blocks: float) -> None:
    """On either side it is as seldom."""
    known = of_rows(np.random.default_rng(0).normal(size=400), 20)
    before = sum(known.sums) / 400
    up, down = (move(known, 100, 100 * (before + by * sign), blocks) for sign in (1, -1))
    assert up.effect > 0 > down.effect
    assert up.effect == pytest.approx(-down.effect)
    assert up.p == pytest.approx(down.p)


@pytest.mark.parametrize(("rows", "blocks"), [(50, 50), (500, 50), (500, 3), (4000, 20)])
def test_a_level_knows_that_rows_of_a_block_are_alike(rows: int, blocks: int) -> None:
    """Of 600 windows 5 % should be flagged. They share 60 references, so the share's standard deviation is about 0.014; up
    to 0.1 is allowed. Taken as independent, more than half would be.
    """
    series = Series(1.0, 100)
    assert 0.01 < np.mean(move_ps(series, True, rows, 1, blocks) <= 0.05) < 0.1
    assert np.mean(move_ps(series, False, rows, 1, blocks, references=5) <= 0.05) > 0.5


def test_a_level_of_blocks_that_have_nothing_in_common() -> None:
    """By block or not, p is uniform."""
    for blocked in (True, False):
        found = move_ps(Series(0.0, 100), blocked, 500, 1)
        assert 0.02 < np.mean(found <= 0.05) < 0.085
        assert 0.4 < np.mean(found <= 0.5) < 0.6


def test_a_level_of_blocks_of_uneven_size() -> None:
    """From a fifth of the usual size to five times it: 5 % of windows, up to 10 % by chance, and not 19 %."""
    assert np.mean(move_ps(Series(1.0, 100, uneven=1.5), True, 1500, 1) <= 0.05) < 0.1


def test_the_spread_is_that_of_rows_and_blocks_together() -> None:
    """An analysis of variance of 2,000 blocks finds both: 1 and 4, within 10 %."""
    known = level("error", *Series(2.0, 10).blocks(np.random.default_rng(0), 2000))
    found = move(known, 100, 100 * 3.0, 10)
    assert found.effect == pytest.approx((3.0 - found.before) / math.sqrt(5), rel=0.05)


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("values", [[], [3.0]])
def test_too_little_says_nothing(values: list[float], blocks: float) -> None:
    """Fewer than two rows to compare with, or none that are compared."""
    found = move(of_rows(np.array(values)), 10, 20.0, blocks)
    assert (found.p, found.effect, found.rows) == (1.0, 0.0, 10)
    nothing = move(of_rows(np.arange(4.0), 2), 0, 0.0, blocks)
    assert (nothing.p, nothing.effect) == (1.0, 0.0)


@pytest.mark.parametrize("blocks", [0, 1])
def test_a_level_that_never_varied(blocks: float) -> None:
    """The same again is ordinary, anything else is not."""
    known = of_rows(np.full(40, 0.5), 4)
    assert move(known, 10, 5.0, blocks) == Moved("error", 10, 0.5, 0.5, 0.0, 1.0)
    assert move(known, 10, 6.0, blocks).p == 0.0


@few
@given(
    value=st.one_of(st.sampled_from([0.0, 0.1, -0.1, 1e-9, 1e60]), st.floats(1e-3, 1e3)),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=9).filter(lambda sizes: sum(sizes) > 1),
    rows=st.integers(1, 5000),
    blocks=st.sampled_from([0.0, 0.3, 1.0, 7.0]),
)
def test_a_level_that_never_varied_and_rises_has_an_effect(value: float, sizes: list[int], rows: int, blocks: float) -> None:
    """An error that was always 0 and is now 1 is the plainest case of all: an effect of 1, or -1 where it falls, whatever
    the value, and how sums of it are rounded.
    """
    known = level("error", np.full(sum(sizes), value), np.repeat(np.arange(len(sizes)), sizes))
    for step, expected in ((0.0, (0.0, 1.0)), (1.0, (1.0, 0.0)), (-0.5, (-1.0, 0.0))):
        found = move(known, rows, rows * (value + step * (abs(value) or 1)), blocks)
        assert (found.effect, found.p) == expected


@pytest.mark.parametrize("spread", [1e-3, 1e-6])
def test_a_level_that_varies_little_is_no_constant(spread: float) -> None:
    """About a mean of 1. Of 200 ordinary windows, each of a reference of its own, 5 % have a p of 0.05; three standard
    deviations of 0.015 are allowed.
    """
    rng = np.random.default_rng(0)
    pairs = [1 + spread * rng.normal(size=(2, 1000)) for _ in range(200)]
    found = [move(of_rows(learnt), 1000, float(served.sum()), 0).p for learnt, served in pairs]
    assert np.mean(np.array(found) <= 0.05) < 0.095


def test_blocks_of_one_row_each() -> None:
    """All the spread is that of blocks; the t-test with their number less one."""
    values = np.random.default_rng(1).normal(size=30)
    found = move(level("error", values, np.arange(30)), 10, 10 * float(values.mean() + 1), 10)
    sd = float(values.std(ddof=1))
    t = 1 / (sd * math.sqrt(1 / 10 + 1 / 30))
    assert found.effect == pytest.approx(1 / sd)
    assert found.p == pytest.approx(2 * float(stats.t.sf(t, 29)))


def test_blocks_without_rows_do_not_count() -> None:
    """As where a day has no outcome."""
    with_gaps = Level("error", [0, 3, 0, 3, 3, 0], [0.0, 1, 0, 2, 3, 0], [0.0, 1, 0, 2, 4, 0])
    without = Level("error", [3, 3, 3], [1.0, 2, 3], [1.0, 2, 4])
    assert move(with_gaps, 5, 4.0, 2) == move(without, 5, 4.0, 2)
