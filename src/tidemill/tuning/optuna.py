"""Optuna's TPE as a proposer. The study is in memory: what is remembered are the trials of the log, told again."""

import warnings

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, create_trial

from tidemill.core.space import Choice, Dimension, Integer, Real, Space
from tidemill.tuning.coding import CodedProposer, Point

optuna.logging.set_verbosity(optuna.logging.ERROR)


class OptunaProposer(CodedProposer):
    """TPE that models the dimensions together (``multivariate``); while trials run, it keeps away from them
    (``constant_liar``).
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space)
        self._distributions = {name: _distribution(dimension) for name, dimension in self._dimensions.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        self._study = optuna.create_study(direction="minimize", sampler=sampler)
        self._running: list[tuple[Point, Trial]] = []

    def _propose(self) -> Point:
        trial = self._study.ask(self._distributions)
        self._running.append((self._rounded(trial.params), trial))
        return trial.params

    def _learn(self, point: Point, loss: float) -> None:
        for number, (asked, trial) in enumerate(self._running):
            if asked == point:
                del self._running[number]
                self._study.tell(trial, loss)
                return
        self._study.add_trial(create_trial(params=point, distributions=self._distributions, value=loss))


def _distribution(dimension: Dimension) -> BaseDistribution:
    match dimension:
        case Choice(values):
            return CategoricalDistribution(values)
        case Integer(low, high):
            return IntDistribution(low, high)
        case Real(low, high, log):
            return FloatDistribution(low, high, log=log)
