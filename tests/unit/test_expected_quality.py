"""Quality before outcomes: how often the interval holds the real metric, what it sees, and what it cannot see."""

import math
import time
from functools import cache
from pathlib import Path

import lightgbm as lgb
import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from tidemill.core.expected_quality import (
    ESTIMATED,
    Calibration,
    Estimate,
    ScoreCalibration,
    calibrate,
    expect,
    monotone,
    widened,
    widening,
)
from tidemill.core.metrics import METRICS, metric
from tidemill.errors import ConfigError

Values = NDArray[np.float64]
DATASETS = Path(__file__).parents[2] / "src" / "tidemill" / "datasets"
FITTED = 10_000
NOT_FEATURES = {
    "flights": ["id", "request_time", "outcome_time", "arr_delay", "late"],
    "adult": ["split", "fnlwgt", "income_over_50k"],
}
TARGETS = {"flights": "late", "adult": "income_over_50k"}


@cache
def table(name: str) -> tuple[Values, pl.DataFrame]:
    """Features float64[n, columns] and all columns, the rows with an outcome shuffled: no concept changes in it."""
    rows = pl.read_parquet(DATASETS / f"{name}.parquet").drop_nulls(TARGETS[name]).sample(45_000, shuffle=True, seed=1)
    columns = [
        (c.cast(pl.Categorical).to_physical() if c.dtype == pl.String else c).cast(pl.Float64).fill_null(math.nan).to_numpy()
        for c in rows.drop(NOT_FEATURES[name])
    ]
    return np.column_stack(columns), rows


def fitted(features: Values, labels: Values, **settings: object) -> Values:
    """Answers for all rows of a small LightGBM model that has learnt the first 10,000."""
    parameters = {"num_leaves": 15, "verbose": -1, "num_threads": 1, "seed": 1, "deterministic": True, **settings}
    model = lgb.train(parameters, lgb.Dataset(features[:FITTED], labels[:FITTED]), 60)
    return np.asarray(model.predict(features), dtype=np.float64)


@cache
def answered(name: str) -> tuple[Values, Values]:
    """Scores and labels of rows that the model has not learnt from."""
    features, rows = table(name)
    labels = rows[TARGETS[name]].cast(pl.Float64).to_numpy()
    return fitted(features, labels, objective="binary")[FITTED:], labels[FITTED:]


@cache
def answered_classes() -> tuple[Values, Values]:
    """Flights that are early, about on time, late: three probabilities, and the class."""
    features, rows = table("flights")
    labels = np.digitize(rows["arr_delay"].to_numpy(), [-10, 15]).astype(np.float64)
    return fitted(features, labels, objective="multiclass", num_class=3)[FITTED:], labels[FITTED:]


@cache
def answered_values() -> tuple[Values, Values]:
    """Hours worked a week."""
    features, rows = table("adult")
    labels = rows["hours_per_week"].cast(pl.Float64).to_numpy()
    kept = [n for n, name in enumerate(rows.drop(NOT_FEATURES["adult"]).columns) if name != "hours_per_week"]
    return fitted(features[:, kept], labels, objective="l2")[FITTED:], labels[FITTED:]


def learnt(task: str, scores: Values, labels: Values) -> Calibration:
    found = calibrate(task, scores, labels)  # type: ignore[arg-type]
    assert found is not None
    return found


def held(task: str, name: str, scores: Values, labels: Values, rows: int, threshold: float = 0.5) -> int:
    """In how many of 100 pairs of a random calibration set (of ``rows``) and a random window (of 1,000) the real metric is
    within the interval of 90 %.
    """
    wanted, count = METRICS[name], 0
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(len(labels))
        known, window = order[:rows], order[rows : rows + 1000]
        found = expect(learnt(task, scores[known], labels[known]), scores[window], wanted, 0.9, seed, threshold)
        real = wanted.function(labels[window], wanted.at(scores[window], threshold) if task == "binary" else scores[window])
        count += found.low <= real <= found.high
    return count


# Of 100 windows an interval that holds 90 % holds fewer than 80 with a chance of 0.08 %, and all with one of 0.003 %.
# Measured with 3,000 calibration rows: 86 to 91 for two classes, 87 and 88 for three, 89 to 92 for the regression.
HELD_MIN, HELD_MAX = 80, 99


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flights", "adult"])
@pytest.mark.parametrize("measure", ESTIMATED["binary"])
def test_the_real_metric_is_within_the_interval_about_as_often_as_stated(name: str, measure: str) -> None:
    """Of 100 windows without concept change, for two classes and each metric."""
    assert HELD_MIN <= held("binary", measure, *answered(name), 3000, 0.3 if measure == "f1" else 0.5) <= HELD_MAX


@pytest.mark.slow
@pytest.mark.parametrize("measure", ESTIMATED["multiclass"])
def test_of_several_classes_too(measure: str) -> None:
    """Early, on time, late."""
    assert HELD_MIN <= held("multiclass", measure, *answered_classes(), 3000) <= HELD_MAX


@pytest.mark.slow
@pytest.mark.parametrize("measure", ESTIMATED["regression"])
def test_of_a_regression_too(measure: str) -> None:
    """Hours a week, by predicted value."""
    assert HELD_MIN <= held("regression", measure, *answered_values(), 3000) <= HELD_MAX


@pytest.mark.parametrize("measure", ["log_loss", "accuracy"])
def test_a_shift_to_requests_that_are_harder_is_seen(measure: str) -> None:
    """Adult, of the married only: the metric is far from that of all, and the estimate goes there, without an outcome."""
    scores, labels = answered("adult")
    _, rows = table("adult")
    married = (rows["marital_status"] == "Married-civ-spouse").to_numpy()[FITTED:]
    known, wanted = learnt("binary", scores[:3000], labels[:3000]), METRICS[measure]
    scores, labels, married = scores[3000:], labels[3000:], married[3000:]
    usual = expect(known, scores, wanted, 0.9, 0)
    found = expect(known, scores[married], wanted, 0.9, 0)
    real = wanted.function(labels[married], scores[married])
    assert wanted.loss(found.expected) - wanted.loss(usual.expected) > 0.08
    assert found.expected == pytest.approx(real, abs=0.03)
    assert found.low > usual.high or found.high < usual.low


def test_labels_that_flip_are_not_seen() -> None:
    """The estimate is of the scores alone: with every label turned round it is the same to the last bit, and wrong."""
    scores, labels = answered("adult")
    found = expect(learnt("binary", scores[:3000], labels[:3000]), scores[3000:5000], METRICS["log_loss"], 0.9, 0)
    assert METRICS["log_loss"].function(labels[3000:5000], scores[3000:5000]) < found.high
    assert METRICS["log_loss"].function(1 - labels[3000:5000], scores[3000:5000]) > found.high + 1


def test_a_model_that_is_too_sure_is_not_believed() -> None:
    """Scores pushed to the ends: what they claim is half the real loss; the calibrated estimate is within 5 %."""
    scores, labels = answered("flights")
    sure = scores**4 / (scores**4 + (1 - scores) ** 4)
    claimed = -(sure * np.log(sure) + (1 - sure) * np.log1p(-sure)).mean()
    real = METRICS["log_loss"].function(labels[8000:], sure[8000:])
    found = expect(learnt("binary", sure[:8000], labels[:8000]), sure[8000:], METRICS["log_loss"], 0.9, 0)
    assert claimed < 0.5 * real
    assert found.expected == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("name", ["auc", "average_precision", "f1", "log_loss", "accuracy", "brier"])
def test_with_certain_outcomes_the_estimate_is_the_metric(name: str) -> None:
    """Where calibrated chances are nearly 0 or 1, also with equal scores: the formulas are those of the metrics."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 20, 400) / 19
    labels = (scores > 0.4).astype(np.float64)
    many = np.tile(scores, 500)
    found = expect(learnt("binary", many, np.tile(labels, 500)), scores, METRICS[name], 0.9, 0, 0.2)
    assert found.expected == pytest.approx(METRICS[name].function(labels, METRICS[name].at(scores, 0.2)), abs=0.02)


def test_the_expected_auc_is_that_of_drawn_outcomes() -> None:
    """The formula over chances against scikit-learn's AUC over outcomes drawn from them, equal scores among them."""
    rng = np.random.default_rng(1)
    scores = np.round(rng.beta(2, 3, 500), 2)
    labels = (rng.random(500) < scores).astype(np.float64)
    found = expect(learnt("binary", scores, labels), scores, METRICS["auc"], 0.9, 3)
    assert found.low < found.expected < found.high
    assert METRICS["auc"].function(labels, scores) == pytest.approx(found.expected, abs=0.01)


def test_no_rows_and_scores_that_are_not_numbers_count_for_nothing() -> None:
    """No estimate without rows; NaN among the scores changes nothing, at calibration nor after."""
    scores, labels = answered("adult")
    known = learnt("binary", scores[:1000], labels[:1000])
    nothing = expect(known, np.array([math.nan]), METRICS["auc"], 0.9, 0)
    assert nothing.rows == 0
    assert math.isnan(nothing.expected)
    assert math.isnan(nothing.low)
    holes = np.insert(scores[:1000], [3, 500], math.nan)
    assert learnt("binary", holes, np.insert(labels[:1000], [3, 500], 1.0)) == known
    assert expect(known, holes, METRICS["auc"], 0.9, 0) == expect(known, scores[:1000], METRICS["auc"], 0.9, 0)


def test_too_few_matured_observations_calibrate_nothing() -> None:
    """99 are, 100 are not."""
    scores, labels = answered("adult")
    assert calibrate("binary", scores[:99], labels[:99]) is None
    assert calibrate("binary", scores[:100], labels[:100]) is not None
    assert calibrate("regression", np.array([]), np.array([])) is None


def test_constant_scores_and_one_class_give_what_they_can() -> None:
    """A constant score: its share of outcomes; one class only: no AUC of constant scores, and a small loss."""
    labels = (np.arange(1000) < 300).astype(np.float64)
    constant = learnt("binary", np.full(1000, 0.1), labels)
    window = np.full(500, 0.1)
    assert expect(constant, window, METRICS["accuracy"], 0.9, 0).expected == pytest.approx(0.7, abs=0.001)
    assert expect(constant, window, METRICS["auc"], 0.9, 0).expected == pytest.approx(0.5)
    never = learnt("binary", np.linspace(0, 0.2, 1000), np.zeros(1000))
    found = expect(never, np.linspace(0, 0.2, 500), METRICS["accuracy"], 0.9, 0)
    assert found.expected > 0.99
    assert math.isnan(expect(never, np.full(1, 0.1), METRICS["auc"], 0.9, 0).expected)
    single = learnt("regression", np.full(200, 5.0), np.full(200, 5.0))
    assert expect(single, np.full(10, 5.0), METRICS["rmse"], 0.9, 0) == Estimate("rmse", 10, 0.0, 0.0, 0.0, 0.9)


def test_a_class_that_was_never_seen_is_not_expected() -> None:
    """Of three classes one without a row: shares still sum to 1."""
    scores = np.random.default_rng(0).dirichlet([4, 4, 0.1], 600)
    labels = (np.random.default_rng(1).random(600) < scores[:, 1]).astype(np.float64)
    found = expect(learnt("multiclass", scores, labels), scores, METRICS["multi_log_loss"], 0.9, 0)
    assert found.expected == pytest.approx(METRICS["multi_log_loss"].function(labels, scores), abs=0.1)


@pytest.mark.parametrize(("task", "name"), [("binary", "auc"), ("multiclass", "accuracy"), ("regression", "rmse")])
def test_the_same_seed_gives_the_same_estimate_through_bytes_too(task: str, name: str) -> None:
    """A calibration that was stored and read is the same; another seed moves the interval a little."""
    scores, labels = {"binary": answered("adult"), "multiclass": answered_classes(), "regression": answered_values()}[task]
    known = learnt(task, scores[:2000], labels[:2000])
    stored = msgspec.json.encode(known)
    read = msgspec.json.decode(stored, type=Calibration)
    found = expect(read, scores[2000:3000], METRICS[name], 0.9, 7)
    assert read == known
    assert found == expect(known, scores[2000:3000], METRICS[name], 0.9, 7)
    assert found.low != expect(known, scores[2000:3000], METRICS[name], 0.9, 8).low
    assert len(stored) < 8000


def test_a_metric_that_cannot_be_expected_is_refused() -> None:
    """R2 needs the spread of outcomes, which no score tells; the error names those that can."""
    scores, labels = answered_values()
    with pytest.raises(ConfigError, match="rmse, mse, mae"):
        expect(learnt("regression", scores[:500], labels[:500]), scores[:10], metric("r2", "regression"), 0.9, 0)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 50)), min_size=1, max_size=32))
def test_what_is_made_monotone_is_scipys_isotonic_regression(points: list[tuple[float, float]]) -> None:
    """For any values and weights."""
    values, weights = (np.array(column) for column in zip(*points, strict=True))
    expected = isotonic_regression(values, weights=weights).x
    assert monotone(values[None, :], weights[None, :])[0] == pytest.approx(expected, abs=1e-9)


def test_chances_rise_with_the_score_and_are_never_certain() -> None:
    """Whatever the calibration set."""
    rng = np.random.default_rng(5)
    known = learnt("binary", rng.random(500), (rng.random(500) < 0.02).astype(np.float64))
    assert isinstance(known, ScoreCalibration)
    at = [expect(known, np.full(1, s), METRICS["brier"], 0.9, 0).expected for s in (0.001, 0.5, 0.999)]
    assert all(0 < value < 1 for value in at)


def an_estimate(low: float, expected: float, high: float, confidence: float = 0.9) -> Estimate:
    return Estimate("log_loss", 1000, expected, low, high, confidence)


def test_past_windows_say_how_much_wider_the_interval_must_be() -> None:
    """Real metrics twice as far off as the interval allows double it; with nine, or good ones, it stays."""
    past = [an_estimate(0.4, 0.5, 0.6)] * 19
    far = [0.5 + 0.2 * (-1) ** n * (n + 1) / 18 for n in range(18)] + [math.nan]
    assert widening(past, far) == pytest.approx(2.0)
    assert widening(past[:8], far[:8]) == 1.0
    assert widening(past, [0.51] * 19) == 1.0
    assert widening([], []) == 1.0
    wider = widened(an_estimate(0.4, 0.5, 0.7), 2.0)
    assert (wider.low, wider.high) == pytest.approx((0.3, 0.9))


@pytest.mark.alone
def test_an_estimate_of_a_thousand_requests_takes_milliseconds() -> None:
    """Below 50 ms of processor time, whichever task and metric; a long window is cut into turns."""
    for task, (scores, labels) in {
        "binary": answered("adult"),
        "multiclass": answered_classes(),
        "regression": answered_values(),
    }.items():
        known = learnt(task, scores[:3000], labels[:3000])
        for name in ESTIMATED[task]:
            spent = []
            for _ in range(5):
                start = time.process_time()
                expect(known, scores[:1000], METRICS[name], 0.9, 0)
                spent.append(time.process_time() - start)
            assert min(spent) < 0.05, name
    assert expect(known, scores, METRICS["rmse"], 0.9, 0).rows == len(scores)
