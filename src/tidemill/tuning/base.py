"""A proposer says which hyper-parameters to try next; the tuner (``roles/tuner.py``) owns everything else."""

from typing import Protocol

from tidemill.learners.base import Parameters


class Proposer(Protocol):
    """Made with a ``Space`` and a seed. Always minimises. ``testing/proposer_contract.py`` says in tests what it owes.

    Space, seed and calls are all that its proposals depend on, in another process too: a killed search is resumed by the
    same calls again. So it draws from a generator of its own, never from a global one, and does not ask for the time.
    """

    def ask(self) -> Parameters:
        """Parameters to try: one value for each of the space's names, of the space's own types. May be called again
        before the earlier ones are told.
        """
        ...

    def tell(self, parameters: Parameters, loss: float) -> None:
        """What parameters came to (lower is better; infinity or NaN: they failed): asked ones, in any order, or ones of an
        earlier run that are remembered. Those that are no point of the space are skipped.
        """
        ...
