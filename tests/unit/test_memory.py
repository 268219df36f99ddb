"""What a search makes of earlier trials, rule by rule, and what makes trials comparable."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tidemill.core.environment import WORDS, differences, digest
from tidemill.core.memory import RETRIED, TOLD_MAX, recall
from tidemill.core.space import Choice, Integer, Real, Space
from tidemill.learners.base import Parameters
from tidemill.messages import Conditions, Trial
from tidemill.tuning.random import RandomProposer
from tidemill.tuning.remembering import DISCOUNT, FRESH_EVERY, Remembering, discounted

SPACE = Space(
    {"x": Real(0.0, 1.0), "n": Integer(1, 9, step=2), "c": Choice(("a", "b"))},
    fixed={"f": 1},
    first={"x": 0.5, "n": 5, "c": "a"},
)
BASE = Conditions("log_loss", "binary", 3, "stratified", False, "schema", ("x",), "rows", 100, 0)


def trial(number: int, score: float | None, conditions: Conditions | None = BASE, **changes: Any) -> Trial:
    """One of the space, at x = number / 100."""
    parameters = {"x": number / 100, "n": 3, "c": "a", "f": 1} | changes.pop("parameters", {})
    made = Trial("e", number, parameters, "log_loss", score, [], 5, 1.0, "", 0, learner="lightgbm", conditions=conditions)
    made = replace(made, environment=digest(conditions) if conditions else "old", **changes)
    return replace(made, parameters={name: value for name, value in made.parameters.items() if value is not None})


def points(found: list[tuple[Parameters, float]]) -> list[float]:
    return [parameters["x"] for parameters, _ in found]


def test_the_best_are_tried_again_and_the_others_told() -> None:
    """Best first; what failed, was given up, or is another learner's or task's teaches nothing."""
    past = [trial(number, 0.3 + abs(number - 20) / 1000) for number in range(40)]
    noise = [
        trial(50, None),
        trial(51, None, pruned=True),
        trial(52, 0.01, learner="xgboost"),
        trial(53, 0.01, replace(BASE, task="regression"), metric="rmse"),
        trial(54, 0.01, None),
    ]
    found = recall([*past, *noise], "lightgbm", SPACE, "log_loss", "binary")
    assert points(found.retry)[0] == 0.2
    assert len(found.retry) == RETRIED
    assert [loss for _, loss in found.retry] == sorted(loss for _, loss in found.retry)
    assert sorted(points(found.told)) == [number / 100 for number in range(40)]
    assert dict(zip(points(found.told), [loss for _, loss in found.told], strict=True))[0.35] == pytest.approx(0.315)


def test_losses_of_other_rows_are_moved_to_one_scale() -> None:
    """By what the points moved that both tried; the newest environment's is the scale."""
    newer = replace(BASE, rows=200, training_set="more rows")
    past = [trial(number, 0.5 + number / 1000) for number in range(10)]
    past += [trial(number, 0.3 + number / 1000, newer) for number in (0, 1)]
    found = recall(past, "lightgbm", SPACE, "log_loss", "binary")
    losses = dict(zip(points(found.told), [loss for _, loss in found.told], strict=True))
    assert losses[0.07] == pytest.approx(0.307)
    assert losses[0.0] == pytest.approx(0.3)


def test_without_a_common_point_the_best_of_both_are_taken_as_equal() -> None:
    newer = replace(BASE, rows=200, training_set="more rows")
    past = [trial(number, 0.5 + number / 1000) for number in range(5)]
    past += [trial(number, 0.3 + number / 1000, newer) for number in range(10, 15)]
    found = recall(past, "lightgbm", SPACE, "log_loss", "binary")
    losses = dict(zip(points(found.told), [loss for _, loss in found.told], strict=True))
    assert losses[0.0] == pytest.approx(0.31)
    assert losses[0.04] == pytest.approx(0.314)


def test_of_another_metric_the_points_count_but_not_the_losses() -> None:
    """The best of each environment in turn, the newest first."""
    auc = replace(BASE, metric="auc")
    past = [trial(number, number / 100, auc, metric="auc") for number in range(10)]
    found = recall(past, "lightgbm", SPACE, "log_loss", "binary")
    assert points(found.retry) == [0.09, 0.08, 0.07, 0.06, 0.05]
    assert all(math.isnan(loss) for _, loss in found.retry)
    assert found.told == []
    both = recall([*past, trial(50, 0.4)], "lightgbm", SPACE, "log_loss", "binary")
    assert points(both.retry) == [0.5]


@pytest.mark.parametrize(
    ("parameters", "point", "told"),
    [
        ({}, {"x": 0.2}, True),
        ({"n": None}, {"n": 5}, True),
        ({"gone": 3}, {"x": 0.2}, False),
        ({"x": 1.5}, {"x": 1.0}, False),
        ({"n": 4}, {"n": 5}, False),
        ({"n": 100}, {"n": 9}, False),
        ({"f": 2}, {"f": 1}, False),
        ({"x": None}, {"x": 0.5}, True),
    ],
)
def test_a_space_that_has_changed(parameters: Parameters, point: Parameters, told: bool) -> None:
    """A new parameter has its first value; a lost one, or a value beyond the bounds, leaves a point to try but no loss."""
    found = recall([trial(20, 0.3, parameters=parameters)], "lightgbm", SPACE, "log_loss", "binary")
    [(retry, loss)] = found.retry
    assert SPACE.contains(retry)
    assert retry.items() >= point.items()
    assert loss == 0.3
    assert bool(found.told) == told


def test_a_choice_that_is_gone_is_nothing() -> None:
    found = recall([trial(20, 0.3, parameters={"c": "z"})], "lightgbm", SPACE, "log_loss", "binary")
    assert (found.retry, found.told) == ([], [])


def test_the_past_is_bounded() -> None:
    """The best half and the newest of very many."""
    past = [trial(number, 0.3 + number / 1e5, parameters={"x": number / 2000}) for number in range(1000)]
    told = points(recall(past, "lightgbm", SPACE, "log_loss", "binary").told)
    assert len(told) == TOLD_MAX
    assert {0.0, 0.495} <= set(told)
    assert 0.2 not in told


@given(st.lists(st.tuples(st.integers(0, 60), st.floats(0.1, 0.9), st.integers(0, 3))))
def test_whatever_was_tried_what_is_recalled_is_of_the_space(rows: list[tuple[int, float, int]]) -> None:
    past = [trial(number, score, replace(BASE, rows=100 + rest)) for number, score, rest in rows]
    found = recall(past, "lightgbm", SPACE, "log_loss", "binary")
    assert all(SPACE.contains(point) and math.isfinite(loss) for point, loss in [*found.retry, *found.told])
    assert bool(found.retry) == bool(rows)


class Listening(RandomProposer):
    """Remembers what it is told."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        self.heard: list[tuple[float, float]] = []

    def tell(self, parameters: Parameters, loss: float) -> None:
        self.heard.append((parameters["x"], loss))


def remembering() -> tuple[Remembering, Listening]:
    past = [trial(number, 0.3 + number / 100) for number in range(20)]
    known = Space(SPACE.dimensions, SPACE.fixed)
    engine = Listening(known, 0)
    recalled = recall(past, "lightgbm", SPACE, "log_loss", "binary")
    return Remembering(engine, recalled, RandomProposer(known, 1)), engine


def test_a_search_begins_with_the_best_of_the_past() -> None:
    """Then the engine is told of the others, moved by as much as the retried ones have moved and at a discount, and now
    and then a point comes by chance.
    """
    proposer, engine = remembering()
    for number in range(RETRIED):
        parameters = proposer.ask()
        assert parameters["x"] == number / 100
        proposer.tell(parameters, 0.3 + number / 100 + 0.2)
    assert [x for x, _ in engine.heard] == [number / 100 for number in range(RETRIED)]
    assert [loss for _, loss in engine.heard] == pytest.approx([0.5 + number / 100 for number in range(RETRIED)])
    asked = [proposer.ask() for _ in range(2 * FRESH_EVERY)]
    told = dict(engine.heard[RETRIED:])
    assert sorted(told) == [number / 100 for number in range(RETRIED, 20)]
    middle = 0.3 + 12 / 100
    for x, loss in told.items():
        assert loss == pytest.approx(middle + DISCOUNT * (0.3 + x - middle) + 0.2)
    by_chance = [RandomProposer(Space(SPACE.dimensions, SPACE.fixed), 1).ask()]
    assert asked[FRESH_EVERY - 1] == by_chance[0]
    assert asked[0] != by_chance[0]


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    """A retried point that fails now says nothing of the others."""
    proposer, engine = remembering()
    for _ in range(RETRIED):
        proposer.tell(proposer.ask(), math.inf)
    proposer.ask()
    assert all(math.isfinite(loss) for _, loss in engine.heard[RETRIED:])


def test_nothing_to_discount() -> None:
    assert discounted([], [0.1]) == []


def test_an_environment_is_all_that_makes_trials_comparable() -> None:
    """Any difference gives another hash, and a reason in words."""
    changes: dict[str, Any] = {
        "metric": "auc", "task": "regression", "folds": 5, "split": "time", "unbalanced": True, "schema": "s",
        "features": ("y",), "training_set": "t", "rows": 7, "seed": 1, "rounds_max": 9, "patience": 3,
    }  # fmt: skip
    assert set(changes) == set(WORDS) == set(Conditions.__struct_fields__)
    for name, value in changes.items():
        other = replace(BASE, **{name: value})
        assert digest(other) != digest(BASE)
        assert differences(BASE, other) == [WORDS[name]]
    assert differences(BASE, BASE) == []
    assert differences(BASE, None) == ["its conditions were not recorded"]
    assert differences(BASE, replace(BASE, rows=9, training_set="z")) == ["other training rows"]
