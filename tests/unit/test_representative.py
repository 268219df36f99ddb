"""Whether the labelled part looks like the served part."""

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon

from tidemill.core.representative import Representative, representative, served_distance

Values = NDArray[np.float64]


def parts(labelled: int, unlabelled: int, seed: int) -> tuple[Values, Values]:
    """Scores of one distribution."""
    rng = np.random.default_rng(seed)
    return rng.beta(2, 5, labelled), rng.beta(2, 5, unlabelled)


def by_score(strength: float, rows: int, seed: int) -> tuple[Values, Values]:
    """Low scores get their label more often."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(2, 5, rows)
    labelled = rng.random(rows) < np.exp(-strength * scores)
    return scores[labelled], scores[~labelled]


@pytest.mark.parametrize(("labelled", "unlabelled"), [(30, 30), (970, 30), (500, 500), (20_000, 20_000)])
def test_parts_that_are_alike_seldom_raise_an_alarm(labelled: int, unlabelled: int) -> None:
    """At most 4 of 100 windows of scores and ten features (1 % is allowed; more than 4 has a chance of 0.3 %)."""
    alarms = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        features = {
            f"f{n}": (rng.multinomial(labelled, [0.2] * 5), rng.multinomial(unlabelled, [0.2] * 5)) for n in range(10)
        }
        alarms += representative(*parts(labelled, unlabelled, seed), features).verdict == "different"
    assert alarms <= 4


def test_labels_that_come_by_score_are_seen_when_they_matter() -> None:
    """In windows of 4,000: kept with exp(-score), which moves the log loss by 0.02, in 16 or more of 20; with
    exp(-score / 10), which moves it by 0.002, in none.
    """
    strong = [representative(*by_score(1, 4000, seed)).verdict for seed in range(20)]
    weak = [representative(*by_score(0.1, 4000, seed)).verdict for seed in range(20)]
    assert strong.count("different") >= 16
    assert weak.count("different") == 0


def test_the_distance_of_the_limit_is_a_shift_of_the_log_loss_of_about_a_hundredth() -> None:
    """The figure at ``DISTANCE``: labels kept with exp(-0.75 score)."""
    rng = np.random.default_rng(0)
    scores = rng.beta(2, 5, 200_000)
    losses = -np.where(rng.random(200_000) < scores, np.log(scores), np.log1p(-scores))
    kept = rng.random(200_000) < np.exp(-0.75 * scores)
    assert representative(scores[kept], scores[~kept]).looked[0].distance == pytest.approx(0.05, abs=0.005)
    assert losses.mean() - losses[kept].mean() == pytest.approx(0.015, abs=0.005)


def test_a_few_requests_without_outcome_hardly_matter_however_unlike() -> None:
    """2 % that all score high are certain to differ, and yet the labelled look like the served."""
    labelled, _ = parts(9800, 0, 1)
    found = representative(labelled, np.random.default_rng(2).beta(3, 4, 200))
    assert found.looked[0].p < 1e-6
    assert found.verdict == "alike"


def test_a_feature_that_tells_who_gets_labels_is_named() -> None:
    """A carrier whose flights are never reported, though scores are alike; the line names it first."""
    features = {
        "month": (np.array([400, 410]), np.array([195, 205])),
        "carrier": (np.array([800, 10]), np.array([300, 100])),
    }
    found = representative(*parts(810, 400, 3), features)
    assert found.verdict == "different"
    assert found.looked[0].name == "carrier"
    assert found.text.startswith("810 labelled of 1210 served differ in carrier (distance 0.")
    assert "month" not in found.text


def test_too_few_of_either_part_is_said_so() -> None:
    """Whatever they look like; rows that are not finite are none."""
    assert representative(np.zeros(29), np.ones(500)).text == "29 labelled requests are too few to speak for 529 (least 30)"
    nearly = representative(np.zeros(500), np.append(np.ones(29), np.nan))
    assert (nearly.verdict, nearly.unlabelled) == ("too few", 29)
    assert nearly.text == "all but 29 of 529 requests are labelled: too few to differ"
    assert representative(np.array([]), np.array([])).verdict == "too few"


def test_every_class_of_several_is_looked_at() -> None:
    """Scores may be one a class."""
    rng = np.random.default_rng(4)
    found = representative(rng.dirichlet([1, 1, 1], 500), rng.dirichlet([1, 1, 6], 500))
    assert found.verdict == "different"
    assert {one.name for one in found.looked} == {"score 0", "score 1", "score 2"}
    assert found.looked[0].name == "score 2"


def test_constant_scores_and_empty_counts_are_alike() -> None:
    """No division by nothing; a bin that nobody is in says nothing."""
    empty = {"x": (np.zeros(3, dtype=np.int64), np.array([0, 5, 0])), "y": (np.array([100, 0]), np.array([100, 0]))}
    found = representative(np.full(100, 0.5), np.full(100, 0.5), empty)
    assert found.verdict == "alike"
    assert [(one.distance, one.p) for one in found.looked] == [(0.0, 1.0)] * 3


def test_the_distance_is_scipys_but_for_what_chance_makes() -> None:
    """With counts so large that chance makes nothing."""
    labelled, unlabelled = np.array([600, 300, 100]) * 10**9, np.array([100, 300, 100]) * 10**9
    expected = jensenshannon(labelled, labelled + unlabelled, base=2)
    assert served_distance(labelled, unlabelled) == pytest.approx(expected, rel=1e-6)


def test_the_verdict_goes_through_bytes() -> None:
    """And is the same."""
    found = representative(*by_score(1, 4000, 0))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Representative) == found
