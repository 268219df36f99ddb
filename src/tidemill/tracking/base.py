"""A tracker copies experiments to a tool for people. It is written to, never read to decide."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from tidemill.messages import JournalEntry, ModelVersion, Trial

Positions = Mapping[tuple[str, int], int]
"""(topic, partition) -> the offset of the first record that the tool may lack."""


class Tracker(Protocol):
    """Every method may be called again with the same argument after a crash and must then change nothing.

    Each raises ``Unavailable`` where the tool does not answer (locked, read-only, away): the caller tries again later.
    """

    def record_trials(self, trials: Sequence[Trial]) -> None:
        """A child run per trial, under the parent run of its experiment."""
        ...

    def record_decision(self, entry: JournalEntry) -> None:
        """Finish the parent run: data version, trigger, parameters, metric, and the model where there is one."""
        ...

    def record_version(self, version: ModelVersion) -> None:
        """Point the registry's alias of the version's slot at it."""
        ...

    def positions(self) -> Positions:
        """What ``advance`` noted last in the tool's own store: empty for a new tool, older for one put back from a copy."""
        ...

    def advance(self, before: Positions, after: Positions) -> bool:
        """Note that the store holds everything before ``after``, if it stands at ``before``. False, with nothing noted,
        where it does not: it was replaced meanwhile, and may lack what was recorded.
        """
        ...

    def experiments(self) -> int:
        """How many experiments of this project the tool holds."""
        ...
