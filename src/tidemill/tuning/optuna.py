"""Optuna's TPE as a proposer. The study is in memory: what is remembered are the trials of the log, told again."""

import warnings
from collections import defaultdict
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, create_trial

from tidemill.core.space import Choice, Dimension, Integer, Real, Space
from tidemill.learners.base import Parameters

optuna.logging.set_verbosity(optuna.logging.ERROR)


class OptunaProposer:
    """TPE that models the dimensions together (``multivariate``); while trials run, it keeps away from them
    (``constant_liar``). Use it in one thread.
    """

    def __init__(self, space: Space, seed: int) -> None:
        space.check()
        self._space = space
        self._distributions = {name: _distribution(dimension) for name, dimension in space.dimensions.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        self._study = optuna.create_study(direction="minimize", sampler=sampler)
        if space.first:
            self._study.enqueue_trial({name: _code(space.dimensions[name], value) for name, value in space.first.items()})
        self._asked: dict[tuple[Any, ...], list[Trial]] = defaultdict(list)

    def ask(self) -> Parameters:
        """The next proposal, with the space's fixed parameters."""
        trial = self._study.ask(self._distributions)
        self._asked[_key(trial.params)].append(trial)
        dimensions = self._space.dimensions.items()
        return {name: _value(dimension, trial.params[name]) for name, dimension in dimensions} | self._space.fixed

    def tell(self, parameters: Parameters, loss: float) -> None:
        """Parameters that are not in the space (one of another version) teach nothing and are skipped."""
        if not self._space.contains(parameters):
            return
        coded = {name: _code(dimension, parameters[name]) for name, dimension in self._space.dimensions.items()}
        asked = self._asked.get(_key(coded))
        if asked:
            self._study.tell(asked.pop(0), loss)
        else:
            self._study.add_trial(create_trial(params=coded, distributions=self._distributions, value=loss))


def _key(coded: Parameters) -> tuple[Any, ...]:
    return tuple(coded[name] for name in sorted(coded))


def _distribution(dimension: Dimension) -> BaseDistribution:
    match dimension:
        case Real(low, high, log):
            return FloatDistribution(low, high, log=log)
        case Integer(low, _, step, log):
            return IntDistribution(low, dimension.highest, log=log, step=step)
        case Choice(values):
            return CategoricalDistribution(range(len(values)))


def _code(dimension: Dimension, value: Any) -> Any:
    """Optuna is given a choice's number: among its own choices 1 and True are the same."""
    return dimension.index(value) if isinstance(dimension, Choice) else value


def _value(dimension: Dimension, code: Any) -> Any:
    return dimension.values[code] if isinstance(dimension, Choice) else code
