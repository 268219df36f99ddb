"""Hyperopt's TPE as a proposer, without its ``fmin``: each proposal is made of the trials so far, in memory."""

import math
from functools import cached_property
from typing import Any

import numpy as np
from hyperopt import JOB_STATE_DONE, Domain, hp, tpe, trials_from_docs

from tidemill.core.space import Choice, Dimension, Integer, Real, Space
from tidemill.tuning.coding import CodedProposer, Point

STARTS = 10
"""Trials by chance before TPE takes over; Hyperopt's own 20 would be all that many a search has."""


class HyperoptProposer(CodedProposer):
    """TPE that models each dimension alone. It takes what runs for bad, and so keeps away from it."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space)
        self._rng = np.random.default_rng(seed)
        self._told: list[dict[str, Any]] = []

    @cached_property
    def _domain(self) -> Domain:
        """Made when there is something to propose: Hyperopt knows no domain of nothing."""
        distributions = {name: _distribution(name, dimension) for name, dimension in self._dimensions.items()}
        return Domain(lambda point: point, distributions)

    def _propose(self) -> Point:
        told = len(self._told)
        running = [_trial(told + number, point, math.inf) for number, point in enumerate(self._in_flight)]
        trials = trials_from_docs(self._told + running, validate=False)
        seed = int(self._rng.integers(2**31))
        [proposed] = tpe.suggest([len(trials)], self._domain, trials, seed, n_startup_jobs=STARTS, verbose=False)
        return {name: value for name, [value] in proposed["misc"]["vals"].items()}

    def _learn(self, point: Point, loss: float) -> None:
        self._told.append(_trial(len(self._told), point, loss))


def _trial(number: int, point: Point, loss: float) -> dict[str, Any]:
    """A trial as TPE reads it. An infinite loss is what it makes of one without any: one that runs, or has failed."""
    idxs, vals = {name: [number] for name in point}, {name: [value] for name, value in point.items()}
    misc = {"tid": number, "idxs": idxs, "vals": vals}
    return {"tid": number, "state": JOB_STATE_DONE, "result": {"loss": loss}, "misc": misc}


def _distribution(name: str, dimension: Dimension) -> Any:
    match dimension:
        case Choice(values):
            return hp.randint(name, len(values))
        case Integer(low, high):  # half a step beyond both ends, the first and the last are as likely as the others
            return hp.quniform(name, low - 0.5, high + 0.5, 1)
        case Real(low, high, True):
            return hp.loguniform(name, math.log(low), math.log(high))
        case Real(low, high):
            return hp.uniform(name, low, high)
