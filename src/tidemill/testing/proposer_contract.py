"""What every ``Proposer`` must do, as tests: subclass ``ProposerContract`` and give it the ``propose`` fixture.

    class TestMyProposer(ProposerContract):
        @pytest.fixture
        def propose(self):
            return MyProposer

``propose(space, seed)`` makes a proposer, also in another process, so it must be picklable. A proposer that is told in vain,
as one by chance is, says ``learns = False``, and is held to that.
"""

# ruff: noqa: S101  a contract asserts
import math
import random
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import mean
from typing import ClassVar

import msgspec
import numpy as np
import pytest

from tidemill.core.space import Choice, Integer, Real, Space
from tidemill.errors import ConfigError
from tidemill.learners.base import Parameters
from tidemill.tuning.base import Proposer

Propose = Callable[[Space, int], Proposer]
Loss = Callable[[Parameters], float]

EVERY_KIND = Space(
    {
        "real": Real(-2.0, 3.0),
        "real_log": Real(1e-6, 10.0, log=True),
        "real_narrow": Real(1.0, 1.0 + 1e-9),
        "real_single": Real(0.5, 0.5),
        "integer": Integer(-3, 4),
        "integer_log": Integer(1, 1000, log=True),
        "integer_steps": Integer(10, 255, step=32),
        "integer_wide": Integer(-(10**12), 10**12),
        "integer_single": Integer(7, 9, step=5),
        "text": Choice(("gbdt", "dart", "goss")),
        "mixed": Choice((1, True, 1.5, "1", False)),
        "single": Choice(("only",)),
        "a name/ü": Real(0.0, 1.0),
    },
    fixed={"verbosity": -1, "boost_from_average": True},
)
BOWL = Space({"x": Real(-10.0, 10.0), "n": Integer(0, 100), "c": Choice(("near", "far"))})
CHANCE = 54.3
"""What a point of the bowl by chance comes to, in the mean."""
SMALL = [
    Space({"n": Integer(1, 2)}),
    Space({"n": Integer(1, 3, log=True)}),
    Space({"c": Choice(("a", "b", "c"))}),
    Space({"c": Choice((False, True)), "d": Choice(("a", "b")), "s": Choice(("only",))}),
]


def bowl(parameters: Parameters) -> float:
    """A function with its minimum 0 at x = 3, n = 40, c = near."""
    x, n = parameters["x"], parameters["n"]
    return float((x - 3) ** 2 + ((n - 40) / 10) ** 2 + (parameters["c"] == "far") * 5)


def search(proposer: Proposer, loss: Loss, trials: int) -> list[Parameters]:
    """What is asked for, one after the other, each told before the next."""
    asked = []
    for _ in range(trials):
        parameters = proposer.ask()
        asked.append(dict(parameters))
        proposer.tell(parameters, loss(parameters))
    return asked


def play(propose: Propose, seed: int, replayed: bool) -> list[Parameters]:
    """A search with all that may happen in one: three in flight, told out of order; failed trials; those of an earlier run,
    and of another space. Where it is ``replayed``, parameters are told as the log gives them back.
    """
    proposer, asked, running = propose(EVERY_KIND, seed), [], []
    for number in range(16):
        running.append(proposer.ask())
        asked.append(dict(running[-1]))
        if len(running) == 3:
            told = running.pop(number % 3)
            told = msgspec.json.decode(msgspec.json.encode(told)) if replayed else told
            proposer.tell(told, math.inf if number % 5 == 0 else math.sin(number))
        if number % 3 == 0:
            proposer.tell(asked[0] | {"real": number / 10 - 2, "text": "goss"}, math.cos(number))
            proposer.tell(asked[0] | {"real": 99.0}, 0.0)
    return asked


class ProposerContract:
    """The tests; a subclass gives them its proposer."""

    learns: ClassVar[bool] = True

    @pytest.fixture
    def propose(self) -> Propose:
        """Makes a proposer of a space and a seed."""
        raise NotImplementedError

    def test_a_proposal_is_a_point_of_the_space(self, propose: Propose) -> None:
        """Every kind of dimension: type, bounds, steps and choices hold, before and after the model takes over."""
        proposer = propose(EVERY_KIND, 0)
        for number in range(20):
            parameters = proposer.ask()
            assert EVERY_KIND.contains(parameters), parameters
            proposer.tell(parameters, float(number % 7))

    def test_the_first_point_is_proposed_first(self, propose: Propose) -> None:
        """A space may name the point to begin with; the proposer goes on from there, and a wrong one is refused."""
        first: dict[str, str | int | float | bool] = {"x": 1.5, "n": 7, "c": "far"}
        proposer = propose(Space(BOWL.dimensions, {"f": 1}, first), 0)
        assert proposer.ask() == first | {"f": 1}
        assert proposer.ask() != first | {"f": 1}
        with pytest.raises(ConfigError, match="first point"):
            propose(Space(BOWL.dimensions, first={"x": 99.0, "n": 7, "c": "far"}), 0)

    def test_integer_steps_are_all_reachable_and_nothing_else_is(self, propose: Propose) -> None:
        """A range whose upper end is not a step ends at the last step; on a logarithmic scale both ends are met as well."""
        proposer = propose(Space({"n": Integer(1, 10, step=4), "log": Integer(1, 4, log=True)}), 1)
        asked = [proposer.ask() for _ in range(80)]
        assert {parameters["n"] for parameters in asked} == {1, 5, 9}
        assert {parameters["log"] for parameters in asked} == {1, 2, 3, 4}

    def test_every_choice_is_proposed_in_its_own_type(self, propose: Propose) -> None:
        """True and 1 are different choices."""
        proposer = propose(Space({"c": Choice((1, True, "a", 0.5))}), 2)
        asked = [proposer.ask()["c"] for _ in range(80)]
        assert {(type(value), value) for value in asked} == {(int, 1), (bool, True), (str, "a"), (float, 0.5)}

    def test_a_replay_in_another_process_asks_the_same(self, propose: Propose, monkeypatch: pytest.MonkeyPatch) -> None:
        """A killed search is resumed by the same calls: space, seed and calls are all that a proposal depends on."""
        asked = play(propose, 5, replayed=False)
        monkeypatch.setenv("PYTHONHASHSEED", "54321")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as another:
            assert another.submit(play, propose, 5, replayed=True).result() == asked
        assert propose(EVERY_KIND, 6).ask() != asked[0]

    def test_global_chance_is_neither_used_nor_moved(self, propose: Propose) -> None:
        """What its process draws, and which proposers it has besides, is nothing to a proposer, nor the other way round."""
        random.seed(1)
        np.random.seed(1)
        another = propose(BOWL, 8)
        asked = search(propose(BOWL, 8), bowl, 14)
        drawn = random.random(), np.random.random()
        random.seed(1)
        np.random.seed(1)
        assert (random.random(), np.random.random()) == drawn
        assert search(another, bowl, 14) == asked

    def test_asks_may_run_ahead_of_tells(self, propose: Propose) -> None:
        """Several are asked at once, and told in another order; proposals in flight differ from each other."""
        proposer = propose(BOWL, 3)
        for _ in range(5):
            asked = [proposer.ask() for _ in range(4)]
            assert len({tuple(parameters.values()) for parameters in asked}) == 4
            for parameters in reversed(asked):
                proposer.tell(parameters, bowl(parameters))

    def test_a_proposal_is_its_receivers_own(self, propose: Propose) -> None:
        """What becomes of the dict after ``ask`` or ``tell`` does not change the proposer's mind."""
        proposer, asked = propose(BOWL, 8), []
        for _ in range(14):
            parameters = proposer.ask()
            asked.append(dict(parameters))
            loss = bowl(parameters)
            parameters.clear()
            told = dict(asked[-1])
            proposer.tell(told, loss)
            told["x"] = 99.0
        assert asked == search(propose(BOWL, 8), bowl, 14)

    def test_parameters_that_were_not_asked_are_learnt_from(self, propose: Propose) -> None:
        """Told 40 trials of an earlier run, a proposer that learns starts near their best, not at random."""
        proposer = propose(BOWL, 4)
        for number in range(60):
            foreign: Parameters = {"x": number / 3 - 10, "n": (number * 7) % 101, "c": ("near", "far")[number % 2]}
            proposer.tell(foreign, bowl(foreign))
        asked = search(proposer, bowl, 20)
        if self.learns:
            assert mean(map(bowl, asked)) < 0.8 * CHANCE
        else:
            assert asked == search(propose(BOWL, 4), bowl, 20)

    def test_neighbouring_steps_are_alike(self, propose: Propose) -> None:
        """An integer has an order: told some steps, but none near the best, a proposer that learns soon looks there."""
        proposer = propose(Space({"n": Integer(0, 32_000, step=32)}), 4)
        for step in range(0, 1001, 16):
            if abs(step - 500) > 20:
                proposer.tell({"n": 32 * step}, abs(step - 500) / 10)
        asked = search(proposer, lambda found: abs(found["n"] / 32 - 500) / 10, 3)
        assert min(abs(found["n"] / 32 - 500) for found in asked) < 40 or not self.learns

    def test_parameters_of_another_space_are_skipped(self, propose: Propose) -> None:
        """A trial of an older version, with other names, bounds or types, is no error, and teaches nothing."""
        proposer = propose(BOWL, 8)
        for foreign in (
            {"gone": 1},
            {},
            {"x": 11.0, "n": 3, "c": "near"},
            {"x": 1.0, "n": 3.5, "c": "near"},
            {"x": 1.0, "n": True, "c": "near"},
            {"x": math.nan, "n": 3, "c": "near"},
            {"x": 1.0, "n": 3, "c": ["near"]},
            {"x": 1.0, "n": 3, "c": "near", "more": 1},
        ):
            proposer.tell(foreign, 0.5)
        assert search(proposer, bowl, 14) == search(propose(BOWL, 8), bowl, 14)

    @pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan, 1e308, 1e-308, 0.0])
    def test_no_loss_breaks_it(self, propose: Propose, loss: float) -> None:
        """Nor does one that is always the same, before or after the first good one."""
        proposer = propose(BOWL, 0)
        search(proposer, lambda _: loss, 12)
        for number in range(4):
            search(proposer, bowl if number % 2 else lambda _: loss, 1)
        assert BOWL.contains(proposer.ask())

    def test_a_region_that_fails_is_left(self, propose: Propose) -> None:
        """A failed trial has an infinite loss, or none at all (NaN); a proposer that learns keeps away from more of them."""
        asked = search(
            propose(BOWL, 1),
            lambda found: bowl(found) if found["x"] > 0 else math.inf if found["x"] > -5 else math.nan,
            35,
        )
        failed = sum(found["x"] <= 0 for found in asked[-20:])
        assert failed <= 8 if self.learns else 0 < failed < 20

    def test_it_looks_where_it_is_good(self, propose: Propose) -> None:
        """A proposer that learns is better than chance; one that does not asks whatever it would have."""
        asked = search(propose(BOWL, 7), bowl, 40)
        if self.learns:
            assert mean(map(bowl, asked[-20:])) < 0.8 * CHANCE
        else:
            assert asked == search(propose(BOWL, 7), lambda _: math.inf, 40)

    @pytest.mark.parametrize("space", SMALL)
    def test_a_space_may_be_tried_out(self, propose: Propose, space: Space) -> None:
        """When every point is told, and again, the proposer goes on, with what there is."""
        proposer = propose(space, 0)
        asked = search(proposer, lambda parameters: float(len(str(parameters))), 16)
        assert all(space.contains(parameters) for parameters in asked)

    def test_a_space_of_single_points_is_proposed_as_it_is(self, propose: Propose) -> None:
        """Nothing to tune is no error: without dimensions, and with those of one value each."""
        singles = Space({"n": Integer(3, 3), "log": Integer(4, 4, log=True), "c": Choice((False,))}, fixed={"f": "x"})
        for space, point in [
            (Space({}, fixed={"num_leaves": 31}), {"num_leaves": 31}),
            (singles, {"n": 3, "log": 4, "c": False, "f": "x"}),
        ]:
            assert search(propose(space, 0), lambda _: 1.0, 12) == [point] * 12

    def test_it_is_quiet(self, propose: Propose, capfd: pytest.CaptureFixture[str]) -> None:
        """Nothing is printed and nothing is warned of; what its library says is not the user's business."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            search(propose(EVERY_KIND, 0), lambda _: 1.0, 14)
            search(propose(SMALL[0], 0), lambda _: 1.0, 14)
        assert capfd.readouterr() == ("", "")

    def test_a_space_that_cannot_be_searched_is_refused(self, propose: Propose) -> None:
        """At once, and by the name of its dimension."""
        with pytest.raises(ConfigError, match="leaves"):
            propose(Space({"leaves": Integer(9, 8)}), 0)
