"""A challenger must earn its place."""

import numpy as np
import pytest

from tidemill.core.metrics import metric
from tidemill.core.verdict import Comparison, compare, decide

RNG = np.random.default_rng(0)
LABELS = (RNG.random(400) < 0.3).astype(float)
GOOD = np.clip(0.3 + 0.5 * (LABELS - 0.3) + RNG.normal(0, 0.05, 400), 0.01, 0.99)
POOR = np.full(400, 0.3) + RNG.normal(0, 0.05, 400)


def a_comparison(low: float) -> Comparison:
    return Comparison(100, 0.4, 0.5, 0.1, low, 0.9)


@pytest.mark.parametrize("name", ["log_loss", "auc", "f1"])
def test_a_better_challenger_is_seen_in_either_direction_of_the_metric(name: str) -> None:
    """The improvement is positive when the challenger is better, whether the metric goes up or down."""
    won = compare(LABELS, GOOD, POOR, metric(name, "binary"), 0.9, seed=1)
    lost = compare(LABELS, POOR, GOOD, metric(name, "binary"), 0.9, seed=1)
    assert won.improvement > 0
    assert won.improvement_low > 0
    assert lost.improvement < 0
    assert lost.improvement_low < 0


def test_equal_models_seldom_win() -> None:
    """Of 100 challengers that are as good as the champion, about the share 1 - confidence wins by luck."""
    wins = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        labels = (rng.random(200) < 0.5).astype(float)
        ours, theirs = (np.clip(0.5 + rng.normal(0, 0.1, 200), 0.01, 0.99) for _ in range(2))
        wins += compare(labels, ours, theirs, metric("log_loss", "binary"), 0.9, seed).improvement_low > 0
    assert 2 <= wins <= 20


def test_one_class_only_cannot_be_compared_by_auc() -> None:
    """Where the metric is not defined on the held-out rows, nothing is shown."""
    found = compare(np.zeros(50), GOOD[:50], POOR[:50], metric("auc", "binary"), 0.9, seed=0)
    assert decide("better", True, found) == "kept"


@pytest.mark.parametrize(
    ("policy", "has_champion", "low", "expected"),
    [
        ("better", False, None, "promoted"),
        ("better", True, 0.01, "promoted"),
        ("better", True, -0.01, "kept"),
        ("better", True, None, "kept"),
        ("always", True, -1.0, "promoted"),
        ("manual", True, 1.0, "waiting"),
        ("manual", False, None, "promoted"),
    ],
)
def test_the_policies(policy: str, has_champion: bool, low: float | None, expected: str) -> None:
    """Seed defect k: by default a new model does not go live unless it has won."""
    comparison = None if low is None else a_comparison(low)
    assert decide(policy, has_champion, comparison) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("policy", "expected"), [("better", "promoted"), ("always", "promoted"), ("manual", "waiting")])
def test_a_champion_whose_bundle_is_refused_defends_nothing(policy: str, expected: str) -> None:
    """A sound challenger takes its place, unless a person wants to decide."""
    assert decide(policy, True, None, refused=True) == expected  # type: ignore[arg-type]
