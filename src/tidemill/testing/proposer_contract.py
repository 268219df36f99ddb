"""What every proposer must do: subclass ``ProposerContract`` and give it the ``propose`` fixture."""

# ruff: noqa: S101  a contract asserts

import math
from collections.abc import Callable

import pytest

from tidemill.core.space import Choice, Integer, Real, Space
from tidemill.errors import ConfigError
from tidemill.learners.base import Parameters
from tidemill.tuning.base import Proposer

EVERY_KIND = Space(
    {
        "real": Real(-2.0, 3.0),
        "real_log": Real(1e-6, 10.0, log=True),
        "real_single": Real(0.5, 0.5),
        "integer": Integer(-3, 4),
        "integer_log": Integer(1, 1000, log=True),
        "integer_steps": Integer(10, 255, step=32),
        "text": Choice(("gbdt", "dart", "goss")),
        "mixed": Choice((1, True, 1.5, "1", False)),
        "single": Choice(("only",)),
    },
    fixed={"verbosity": -1, "boost_from_average": True},
)
BOWL = Space({"x": Real(-10.0, 10.0), "n": Integer(0, 100), "c": Choice(("near", "far"))})


def bowl(parameters: Parameters) -> float:
    """A function with its minimum 0 at x = 3, n = 40, c = near."""
    x, n = parameters["x"], parameters["n"]
    return float((x - 3) ** 2 + ((n - 40) / 10) ** 2 + (parameters["c"] == "far") * 5)


class ProposerContract:
    """``propose(space, seed)`` makes a proposer."""

    @pytest.fixture
    def propose(self) -> Callable[[Space, int], Proposer]:
        raise NotImplementedError

    def test_a_proposal_is_a_point_of_the_space(self, propose: Callable[[Space, int], Proposer]) -> None:
        """Every kind of dimension: type, bounds, steps and choices hold, before and after the model takes over."""
        proposer = propose(EVERY_KIND, 0)
        for number in range(30):
            parameters = proposer.ask()
            assert EVERY_KIND.contains(parameters), parameters
            proposer.tell(parameters, float(number % 7))

    def test_the_first_point_is_proposed_first(self, propose: Callable[[Space, int], Proposer]) -> None:
        """A space may name the point to begin with; the proposer goes on from there, and a wrong one is refused."""
        first: dict[str, str | int | float | bool] = {"x": 1.5, "n": 7, "c": "far"}
        proposer = propose(Space(BOWL.dimensions, {"f": 1}, first), 0)
        assert proposer.ask() == first | {"f": 1}
        assert proposer.ask() != first | {"f": 1}
        with pytest.raises(ConfigError, match="first point"):
            propose(Space(BOWL.dimensions, first={"x": 99.0, "n": 7, "c": "far"}), 0)

    def test_integer_steps_are_all_reachable_and_nothing_else_is(self, propose: Callable[[Space, int], Proposer]) -> None:
        """A range whose upper end is not a step ends at the last step."""
        proposer = propose(Space({"n": Integer(1, 10, step=4)}), 1)
        assert {proposer.ask()["n"] for _ in range(60)} == {1, 5, 9}

    def test_every_choice_is_proposed_in_its_own_type(self, propose: Callable[[Space, int], Proposer]) -> None:
        """True and 1 are different choices."""
        proposer = propose(Space({"c": Choice((1, True, "a", 0.5))}), 2)
        asked = [proposer.ask()["c"] for _ in range(80)]
        assert {(type(value), value) for value in asked} == {(int, 1), (bool, True), (str, "a"), (float, 0.5)}

    def test_the_same_seed_gives_the_same_proposals(self, propose: Callable[[Space, int], Proposer]) -> None:
        """And another seed gives others."""

        def run(seed: int) -> list[Parameters]:
            proposer, asked = propose(EVERY_KIND, seed), []
            for number in range(25):
                asked.append(proposer.ask())
                proposer.tell(asked[-1], math.sin(number))
            return asked

        assert run(5) == run(5)
        assert run(5) != run(6)

    def test_asks_may_run_ahead_of_tells(self, propose: Callable[[Space, int], Proposer]) -> None:
        """Several are asked at once, and told in another order; proposals in flight differ from each other."""
        proposer = propose(BOWL, 3)
        for _ in range(6):
            asked = [proposer.ask() for _ in range(4)]
            assert len({tuple(parameters.values()) for parameters in asked}) > 1
            for parameters in reversed(asked):
                proposer.tell(parameters, bowl(parameters))

    def test_parameters_that_were_not_asked_are_learnt_from(self, propose: Callable[[Space, int], Proposer]) -> None:
        """Told 40 trials of an earlier run, the proposer starts near their best, not at random."""
        taught, best = propose(BOWL, 4), []
        for number in range(40):
            foreign: Parameters = {"x": number / 2 - 10, "n": (number * 7) % 101, "c": ("near", "far")[number % 2]}
            taught.tell(foreign, bowl(foreign))
        for _ in range(10):
            parameters = taught.ask()
            best.append(bowl(parameters))
            taught.tell(parameters, best[-1])
        untaught = propose(BOWL, 4)
        assert sum(best) / 10 < sum(bowl(untaught.ask()) for _ in range(10)) / 10

    def test_parameters_of_another_space_are_skipped(self, propose: Callable[[Space, int], Proposer]) -> None:
        """A trial of an older version, with other names or bounds, is no error."""
        proposer = propose(BOWL, 0)
        proposer.tell({"gone": 1}, 0.5)
        proposer.tell({"x": 11.0, "n": 3, "c": "near"}, 0.5)
        proposer.tell({"x": 1.0, "n": 3.5, "c": "near"}, 0.5)
        assert BOWL.contains(proposer.ask())

    def test_a_failed_trial_is_an_infinite_loss(self, propose: Callable[[Space, int], Proposer]) -> None:
        """Even if most fail, the proposer goes on."""
        proposer = propose(BOWL, 0)
        for number in range(30):
            parameters = proposer.ask()
            proposer.tell(parameters, math.inf if number % 3 else bowl(parameters))
        assert BOWL.contains(proposer.ask())

    def test_it_finds_a_minimum(self, propose: Callable[[Space, int], Proposer]) -> None:
        """Of an easy function, 60 trials find a better point than the first 10, and mostly look where it is good."""
        proposer, losses = propose(BOWL, 7), []
        for _ in range(60):
            parameters = proposer.ask()
            losses.append(bowl(parameters))
            proposer.tell(parameters, losses[-1])
        assert min(losses) < min(losses[:10])
        assert sum(losses[-10:]) < sum(losses[:10]) / 3

    def test_a_space_without_dimensions_proposes_what_is_fixed(self, propose: Callable[[Space, int], Proposer]) -> None:
        """Nothing to tune is no error."""
        proposer = propose(Space({}, fixed={"num_leaves": 31}), 0)
        proposer.tell(proposer.ask(), 1.0)
        assert proposer.ask() == {"num_leaves": 31}

    def test_a_space_that_cannot_be_searched_is_refused(self, propose: Callable[[Space, int], Proposer]) -> None:
        """At once, and by the name of its dimension."""
        with pytest.raises(ConfigError, match="leaves"):
            propose(Space({"leaves": Integer(9, 8)}), 0)
