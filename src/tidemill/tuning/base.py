"""A proposer says which hyper-parameters to try next; the tuner (``roles/tuner.py``) owns everything else."""

from typing import Protocol

from tidemill.learners.base import Parameters


class Proposer(Protocol):
    """Made with a ``Space`` and a seed; the same seed and the same calls give the same proposals. Always minimises."""

    def ask(self) -> Parameters:
        """Parameters to try: one value for each of the space's names, of the space's own types. May be called again
        before the earlier ones are told.
        """
        ...

    def tell(self, parameters: Parameters, loss: float) -> None:
        """What parameters came to (lower is better): asked ones, or ones of an earlier run that are remembered."""
        ...
