"""Which model version stands in which slot: the replay of the ``models`` topic, and the moves between slots.

    a new version is promoted   challenger or nothing -> champion, the old champion -> previous
    a new version must wait     -> challenger
    a rollback                  an older version -> champion, the old champion -> previous

The order of the log is the truth: the last record of a slot holds. The log may have removed those before it, and two who
decide at the same moment may have read the same slots and taken the same sequence: every reader still sees the same.
"""

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from tidemill.messages import JournalEntry, ModelVersion, Slot


class Slots(Struct):
    """The replay so far; ``apply`` each record of ``models`` in the order of the log."""

    champion: ModelVersion | None = None
    challenger: ModelVersion | None = None
    previous: ModelVersion | None = None
    sequence: int = 0

    @classmethod
    def of(cls, values: Iterable[bytes]) -> "Slots":
        """The slots after the records with these values."""
        slots = cls()
        for value in values:
            slots.apply(_decoder.decode(value))
        return slots

    def apply(self, version: ModelVersion) -> None:
        """Take one record; ``sequence`` is the highest so far, for whoever writes the next."""
        setattr(self, version.state, version)
        self.sequence = max(self.sequence, version.sequence)

    def held(self) -> list[ModelVersion]:
        """The versions that stand in a slot now."""
        return [version for version in (self.champion, self.challenger, self.previous) if version is not None]

    def promote(self, version: ModelVersion, at: int) -> list[ModelVersion]:
        """The records that make ``version`` the champion and the champion ``previous``."""
        demoted = [] if self.champion is None else [self._move(self.champion, "previous", 1, at)]
        return [*demoted, self._move(version, "champion", 1 + len(demoted), at)]

    def challenge(self, version: ModelVersion, at: int) -> list[ModelVersion]:
        """The record that makes ``version`` wait as the challenger."""
        return [self._move(version, "challenger", 1, at)]

    def _move(self, version: ModelVersion, slot: str, step: int, at: int) -> ModelVersion:
        return msgspec.structs.replace(version, state=slot, sequence=self.sequence + step, at=at)


def announced(models: Iterable[ModelVersion], journal: Iterable[JournalEntry]) -> dict[int, ModelVersion]:
    """Every version that ever stood in a slot, by its number, the oldest first.

    ``models`` may have lost records, the journal is kept for ever; what is known from the journal alone has no ``schema``.
    """
    found: dict[int, ModelVersion] = {}
    for entry in journal:
        if entry.verdict in ("promoted", "waiting") and entry.bundle:
            found.setdefault(entry.version, _told(entry))
    found |= {version.version: version for version in models}
    return dict(sorted(found.items()))


def _told(entry: JournalEntry) -> ModelVersion:
    slot: Slot = "champion" if entry.verdict == "promoted" else "challenger"
    place = (entry.version, entry.bundle, entry.bundle, "", slot)
    return ModelVersion(*place, entry.data_version, entry.experiment, entry.at, sequence=0, threshold=entry.threshold)


_decoder = msgspec.json.Decoder(ModelVersion)
