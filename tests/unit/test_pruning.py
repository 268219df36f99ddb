"""The bar above which a first fold's trial is given up."""

import numpy as np
import pytest

from tidemill.core.pruning import DEVIATIONS, ROUNDS_MIN, TRIALS_MIN, bar, expected, hopeless


def test_there_is_no_bar_until_the_spread_of_the_folds_is_known() -> None:
    assert bar([0.3] * (TRIALS_MIN - 1), [0.3] * (TRIALS_MIN - 1)) is None
    assert bar([0.3] * TRIALS_MIN, [0.3] * TRIALS_MIN) == 0.3


def test_an_easy_first_fold_lowers_the_bar_and_spread_raises_it() -> None:
    """It stands where the best mean would have its first fold, and some deviations above."""
    means = [0.30, 0.31, 0.32, 0.33, 0.34, 0.35]
    even = bar([mean - 0.1 for mean in means], means)
    assert even == pytest.approx(0.20)
    uneven = bar([mean - 0.1 + apart for mean, apart in zip(means, [0.01, -0.01] * 3, strict=True)], means)
    assert uneven == pytest.approx(0.20 + DEVIATIONS * np.std([0.01, -0.01] * 3, ddof=1))


def test_what_is_given_up_is_told_as_the_mean_that_it_would_have_had() -> None:
    assert expected(0.5, [0.4, 0.2], [0.3, 0.1]) == pytest.approx(0.4)


def test_a_trial_that_would_win_clearly_is_hardly_ever_given_up() -> None:
    """Drawn as folds differ on Adult and flights: trials by 0.003, a first fold from its mean by 0.0014."""
    rng = np.random.default_rng(0)
    behind = []
    for _ in range(2000):
        means = list(0.34 + 0.003 * rng.standard_normal(20))
        firsts = list(np.array(means) + 0.0014 * rng.standard_normal(20))
        limit = bar(firsts[:-1], means[:-1])
        assert limit is not None
        behind.append(max(0.0, min(means[:-1]) - means[-1]) if firsts[-1] > limit else 0.0)
    assert np.mean(behind) < 0.00001
    assert np.mean(np.array(behind) > 0.0005) < 0.005


def test_a_fold_is_hopeless_where_even_its_last_pace_would_not_do() -> None:
    """Losses that near their end as learning does: one that ends below the bar is waited for, a bad one not for long."""
    losses = [0.4 + 0.2 * 0.95**n for n in range(200)]
    assert not any(hopeless(losses[:n], 0.4) for n in range(200))
    given_up = next(n for n in range(200) if hopeless(losses[:n], 0.35))
    assert ROUNDS_MIN < given_up < 60
    assert not hopeless(losses[:ROUNDS_MIN], -1.0)
