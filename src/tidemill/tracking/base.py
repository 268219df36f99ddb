"""A tracker copies experiments to a tool for people. It is written to, never read to decide."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from tidemill.messages import JournalEntry, ModelVersion, Trial

Positions = Mapping[tuple[str, int], int]
"""(topic, partition) -> the offset of the first record that the tool may lack."""
Page = Callable[[], str]
"""Makes an experiment's report, as HTML; ``""`` where there is none."""


class Tracker(Protocol):
    """Every method may be called again with the same argument after a crash and must then change nothing.

    Each raises ``Unavailable`` where the tool does not answer (locked, read-only, away): the caller tries again later.
    """

    def record_trials(self, trials: Sequence[Trial], new: Collection[int] | None = None, ended: bool = False) -> None:
        """The parent run of an experiment: a table of its trials, and the best score so far after each of them.

        ``trials`` are all that are known of one experiment, in their order; those with the numbers ``new`` (None: all) were
        not given before. The first ones have a run of their own, as many as the tracker was told; once the search has
        ``ended``, as many of the best too.
        """
        ...

    def record_decision(self, entry: JournalEntry, trials: Sequence[Trial] = (), page: Page = lambda: "") -> None:
        """Finish the parent run: data version, trigger, parameters, metric, and the model where there is one; ``trials`` are
        all of the experiment's. ``page`` is called once all else is there, unless the tool has the report.
        """
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
