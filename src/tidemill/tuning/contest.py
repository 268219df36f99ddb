"""Several learners in one search: whose turn it is to be tried."""

from collections.abc import Collection, Mapping
from itertools import cycle

from tidemill.learners.base import Parameters
from tidemill.tuning.base import Proposer

TURNS = 4
"""Trials of each learner before the best one gets more."""


class Contest:
    """A proposer for each learner. They take turns; after ``TURNS`` of each, every other trial is the leader's besides."""

    def __init__(self, proposers: Mapping[str, Proposer]) -> None:
        self._proposers = dict(proposers)
        self._turns = cycle(self._proposers)
        self._best = dict.fromkeys(proposers, float("inf"))
        self._asked = 0

    @property
    def learners(self) -> Collection[str]:
        """Who takes part."""
        return self._proposers.keys()

    def ask(self) -> tuple[str, Parameters]:
        """Whose turn it is, and what to try."""
        warm = self._asked >= TURNS * len(self._proposers)
        learner = min(self._best, key=self._best.__getitem__) if warm and self._asked % 2 else next(self._turns)
        self._asked += 1
        return learner, self._proposers[learner].ask()

    def tell(self, learner: str, parameters: Parameters, loss: float) -> None:
        """What it came to; see ``Proposer.tell``."""
        self._best[learner] = min(self._best[learner], loss)
        self._proposers[learner].tell(parameters, loss)
