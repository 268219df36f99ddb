"""The schema: what a request may hold, what is predicted, and how a person reads it."""

import hashlib
import re
from typing import Literal

import msgspec
from msgspec import Struct

from tidemill.messages import Label

Task = Literal["binary", "multiclass", "regression"]
FeatureType = Literal["number", "boolean", "category"]

UNREADABLE = "a name cannot hold quotes, backslashes or control characters"
_unreadable = re.compile(r'["\\\x00-\x1f\ud800-\udfff]')


def is_readable(name: str) -> bool:
    """Whether a field of this name can be read from a request as quickly as the others: see ``UNREADABLE``."""
    return not _unreadable.search(name)


class Feature(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One field of a request.

    ``number`` takes JSON numbers and numbers in strings, ``boolean`` true and false, ``category`` any scalar, by its text.
    ``minimum`` and ``maximum`` are what the original data held: a value outside is answered and counted.
    """

    name: str
    type: FeatureType
    categories: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


class Schema(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Features in the order of the matrix, the target and its task.

    ``classes`` are the target's labels, the positive one last where there are two; empty for a regression. ``crosses``
    names groups of category features whose combination is a feature of its own, placed after the features.
    ``id`` and ``time`` name the original data's columns of the request id and the event time, if it has them.
    """

    features: tuple[Feature, ...]
    target: str
    task: Task
    classes: tuple[Label, ...] = ()
    crosses: tuple[tuple[str, ...], ...] = ()
    id: str = ""
    time: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the matrix's columns: the features, then the crosses as ``a*b``."""
        return (*(feature.name for feature in self.features), *("*".join(cross) for cross in self.crosses))

    def digest(self) -> str:
        """SHA-256 of the schema, as hexadecimal text."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()
