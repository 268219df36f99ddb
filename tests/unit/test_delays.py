"""How long outcomes take: the sketch against numpy, the curve against Kaplan-Meier by hand, and real flights."""

import math
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tidemill.core import delays
from tidemill.core.delays import BINS, EDGES_MS, ERROR, Arrivals, Waits, arrivals, coverage

FLIGHTS = Path(__file__).parents[2] / "src" / "tidemill" / "datasets" / "flights.parquet"
MINUTE = 60_000.0
SHARES = np.array([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])


def waits(values: NDArray[np.float64]) -> Waits:
    found = Waits()
    found.add(values)
    return found


def by_hand(came: list[float], open: list[float]) -> list[tuple[float, float]]:
    """Kaplan-Meier's product, straight from its definition: (delay, share with an outcome by then)."""
    alive, found = 1.0, []
    for delay in sorted(set(came)):
        at_risk = sum(wait >= delay for wait in came) + sum(wait >= delay for wait in open)
        alive *= 1 - came.count(delay) / at_risk
        found.append((delay, 1 - alive))
    return found


@given(st.lists(st.floats(1, 1e11), min_size=1, max_size=300))
def test_quantiles_are_numpys_within_the_stated_error(values: list[float]) -> None:
    """Whatever the delays between a millisecond and three years."""
    exact = np.quantile(values, SHARES, method="inverted_cdf")
    assert waits(np.array(values)).quantiles_ms(SHARES) == pytest.approx(exact, rel=ERROR * 1.0001)


@given(st.lists(st.floats(-1e3, 1e13), max_size=50), st.lists(st.floats(-1e3, 1e13), max_size=50))
def test_sketches_merge_as_if_all_had_been_counted_by_one(some: list[float], others: list[float]) -> None:
    """In any order, and through bytes; the size stays the same."""
    one, other = waits(np.array(some)), waits(np.array(others))
    both = waits(np.array(some + others))
    assert one.merged(other) == other.merged(one) == both
    assert msgspec.json.decode(msgspec.json.encode(both), type=Waits) == both
    assert both.total == len(some) + len(others)
    assert len(both.counts) == BINS


def test_what_is_no_delay_is_not_counted_or_counts_as_the_shortest() -> None:
    """NaN is none; an outcome before its request took a millisecond; a century counts in the last bin."""
    found = waits(np.array([math.nan, -5.0, 0.0, 1.0, 3.2e12]))
    assert found.total == 4
    assert (found.counts[0], found.counts[-1]) == (3, 1)
    assert np.isnan(Waits().quantiles_ms(SHARES)).all()
    with pytest.raises(ValueError, match="345 counts"):
        Waits([1, 2])


def test_the_curve_is_kaplan_and_meiers() -> None:
    """Six outcomes and five open requests, by hand: at risk are 11, 9, 8, 5, 3 and 1; no two share a bin."""
    came = [10.0, 100.0, 200.0, 1000.0, 2000.0, 4000.0]
    still = [50.0, 300.0, 500.0, 1500.0, 3000.0]
    found = arrivals(waits(np.array(came)), waits(np.array(still)))
    expected = by_hand(came, still)
    assert [round(share, 6) for _, share in expected[:3]] == [round(1 - 10 / 11, 6), round(1 - 10 / 11 * 8 / 9, 6), 0.292929]
    ends = EDGES_MS[np.searchsorted(EDGES_MS, [delay for delay, _ in expected])]
    assert found.expected_coverage(ends) == pytest.approx([share for _, share in expected])


@given(
    st.lists(st.integers(0, BINS // 2 - 1), min_size=1, max_size=60),
    st.lists(st.integers(0, BINS // 2 - 1), max_size=60),
)
def test_the_curve_is_kaplan_and_meiers_whatever_came(came: list[int], still: list[int]) -> None:
    """Where outcomes and open requests lie in bins of their own (even and odd), the share at each bin's end is exact."""
    times, ages = EDGES_MS[2 * np.array(came, dtype=np.intp)], EDGES_MS[2 * np.array(still, dtype=np.intp) + 1]
    found = arrivals(waits(times * 0.999), waits(ages * 0.999))
    expected = by_hand(times.tolist(), ages.tolist())
    ends = np.array([delay for delay, _ in expected])
    assert found.expected_coverage(ends) == pytest.approx([share for _, share in expected])


def a_stream(never: float, rows: int, span_ms: float, seed: int) -> tuple[Waits, Waits, NDArray[np.float64]]:
    """Requests evenly over the time up to now, delays log-normal with median 3 h; those whose outcome is not in are open."""
    rng = np.random.default_rng(seed)
    ages = rng.uniform(0, span_ms, rows)
    delays = rng.lognormal(math.log(180 * MINUTE), 0.6, rows)
    came = (delays <= ages) & (rng.random(rows) >= never)
    return waits(delays[came]), waits(ages[~came]), delays


@pytest.mark.parametrize("never", [0.0, 0.03, 0.3])
@pytest.mark.parametrize("span_days", [2, 30])
def test_the_share_that_never_gets_an_outcome_is_found(never: float, span_days: int) -> None:
    """Although each open request might yet get one: within 0.012 of 20,000 requests (3 standard errors); and the curve."""
    came, still, delays = a_stream(never, 20_000, span_days * 1440 * MINUTE, seed=1)
    found = arrivals(came, still)
    assert found.settled or never == 0
    assert found.never == pytest.approx(never, abs=0.012)
    ages = np.array([60.0, 120, 180, 300, 500, 900]) * MINUTE
    true = [(1 - never) * (delays <= age).mean() for age in ages]
    assert found.expected_coverage(ages) == pytest.approx(true, abs=0.02)


def test_open_requests_that_are_left_out_would_bias_the_curve() -> None:
    """What came so far is short: on a stream of six hours the median of the delays that came is 30 % below the true one,
    while the curve's is within 5 %.
    """
    came, still, _ = a_stream(0.0, 20_000, 360 * MINUTE, seed=2)
    found = arrivals(came, still)
    assert came.quantiles_ms(np.array([0.5]))[0] < 0.75 * 180 * MINUTE
    assert found.expected_coverage(np.array([180 * MINUTE]))[0] == pytest.approx(0.5, abs=0.025)


def test_a_young_stream_does_not_know_never_and_nothing_is_matured() -> None:
    """Where none has waited longer than outcomes take, late cannot be told from never, and the plateau is taken as 1."""
    came, still, _ = a_stream(0.03, 5000, 200 * MINUTE, seed=3)
    found = arrivals(came, still)
    assert not found.settled
    assert found.plateau == 1
    assert not found.matured(200 * MINUTE)
    assert found.matured_after_ms() == math.inf


def test_too_few_outcomes_mature_nothing() -> None:
    """Below 30, and of course with none; a window whose requests all have their outcome is matured for all that."""
    few = arrivals(waits(np.full(29, 100.0)), waits(np.full(3, 1e6)))
    assert not few.matured(1e12)
    assert arrivals(waits(np.full(30, 100.0)), waits(np.full(3, 1e6))).matured(1e5)
    none = arrivals(Waits(), Waits())
    assert none.expected_coverage(np.array([1e9]))[0] == 0
    assert not none.matured(1e12)
    assert coverage(none, 5, 5, 10.0).state == "matured"
    assert math.isnan(coverage(none, 0, 0, 10.0).share)
    assert coverage(none, 0, 0, 10.0).state == "open"


def test_a_window_is_matured_once_its_youngest_request_is() -> None:
    """With 20 % that never get an outcome, a window matures though it will never have 95 % of them."""
    came, still, delays = a_stream(0.2, 20_000, 30 * 1440 * MINUTE, seed=4)
    found = arrivals(came, still)
    age = float(np.quantile(delays, 0.95))
    assert found.matured_after_ms() == pytest.approx(age, rel=0.09)
    early, late = coverage(found, 1000, 500, age * 0.8), coverage(found, 1000, 780, age * 1.2)
    assert (early.state, late.state) == ("open", "matured")
    assert late.share == 0.78
    assert late.expected == pytest.approx(0.78, abs=0.02)
    assert coverage(found, 1000, 780, age * 1.2, share=0.999).state == "open"


def test_a_curve_goes_through_bytes() -> None:
    """And is the same."""
    came, still, _ = a_stream(0.1, 1000, 1440 * MINUTE, seed=5)
    found = arrivals(came, still)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Arrivals) == found


@pytest.fixture(scope="module")
def flights() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Request times and delays in milliseconds; a delay is NaN where no outcome ever came."""
    table = pl.read_parquet(FLIGHTS, columns=["request_time", "outcome_time"])
    requests = table["request_time"].dt.epoch("ms").cast(pl.Float64)
    delays = (table["outcome_time"].dt.epoch("ms").cast(pl.Float64) - requests).fill_null(math.nan)
    return requests.to_numpy(), delays.to_numpy()


def test_flights_delays_are_those_of_the_data_card(flights: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    """Median 170 minutes, 5th to 95th percentile 64 to 385, within the sketch's error."""
    found = waits(flights[1]).quantiles_ms(np.array([0.05, 0.5, 0.95])) / MINUTE
    assert found == pytest.approx([64, 170, 385], rel=ERROR * 1.1)


@pytest.mark.parametrize("days", [7, 60, 200])
def test_flights_that_never_land_are_known_from_what_has_come_so_far(
    flights: tuple[NDArray[np.float64], NDArray[np.float64]], days: int
) -> None:
    """On any day the plateau is the share of the flights so far that have an outcome in the end, within 0.1 %; and windows
    of 500 requests that are called matured have 95 % of their outcomes.
    """
    requests, delays = flights
    now = requests[0] + timedelta(days=days) / timedelta(milliseconds=1)
    known = requests <= now
    ages, waited = now - requests[known], delays[known]
    came = waited <= ages
    found = arrivals(waits(waited[came]), waits(ages[~came]))
    assert found.settled
    assert found.plateau == pytest.approx((~np.isnan(waited)).mean(), abs=0.001)
    for start in range(max(0, len(ages) - 5000), len(ages) - 499, 500):
        part = slice(start, start + 500)
        seen = coverage(found, 500, int(came[part].sum()), ages[part].min())
        if seen.state == "matured":
            assert came[part].sum() >= 0.95 * (~np.isnan(waited[part])).sum()
        else:
            assert ages[part].min() < delays_limit(found)


def delays_limit(found: Arrivals) -> float:
    return found.matured_after_ms() * delays.GROWTH
