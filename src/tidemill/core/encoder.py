"""The encoder: columns of values -> the matrix that a learner takes, the same for training and for answers.

Numbers stay, booleans become 0 and 1, categories and crosses become codes from 0 in the order of their lists; what is
missing becomes NaN. So does an unseen category, which is counted: LightGBM sends a NaN, a negative and an unknown code to
the same side of every categorical split ("not in the set"), so NaN changes no answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.inspection import category_text
from tidemill.core.schema import Schema
from tidemill.errors import BundleRefused

Matrix = NDArray[np.float64]
Counts = NDArray[np.int64]
Joint = tuple[str, ...]

_MISSING, _UNSEEN = -1.0, -2.0


class Encoded(Struct, frozen=True):
    """``matrix`` float64[n, k], rows contiguous, in the order of ``schema.columns``; by column, how many values were
    missing, unseen (categories), and outside the schema's bounds (numbers).
    """

    matrix: Matrix
    missing: Counts
    unseen: Counts
    outside: Counts


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    schema: Schema
    categories: dict[str, list[str]]
    crosses: list[list[Joint]]


@dataclass(frozen=True)
class Encoder:
    """Immutable. ``categories`` has the texts of each category feature, ``crosses`` the joint texts of each cross, both in
    the order of their codes.
    """

    schema: Schema
    categories: dict[str, list[str]]
    crosses: list[list[Joint]]
    _codes: list[dict[Any, float]] = field(init=False, repr=False, compare=False)
    _numeric: list[int] = field(init=False, repr=False, compare=False)
    _bounds: tuple[Matrix, Matrix] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        texts: list[Sequence[Any]] = [self.categories[self.schema.features[i].name] for i in self._category_features()]
        tables = [{None: _MISSING} | {text: float(code) for code, text in enumerate(t)} for t in [*texts, *self.crosses]]
        numeric = [i for i, feature in enumerate(self.schema.features) if feature.type != "category"]
        features = [self.schema.features[i] for i in numeric]
        low = [-np.inf if f.minimum is None else f.minimum for f in features]
        high = [np.inf if f.maximum is None else f.maximum for f in features]
        object.__setattr__(self, "_codes", tables)
        object.__setattr__(self, "_numeric", numeric)
        object.__setattr__(self, "_bounds", (np.array(low).reshape(-1, 1), np.array(high).reshape(-1, 1)))

    @classmethod
    def fit(cls, schema: Schema, columns: Mapping[str, Sequence[Any]]) -> "Encoder":
        """Learn the categories: those of the schema first, then new ones in the order in which they appear."""
        texts = {f.name: _texts(columns.get(f.name, ())) for f in schema.features if f.type == "category"}
        known = {f.name: f.categories for f in schema.features}
        categories = {name: _in_order([*known[name], *column]) for name, column in texts.items()}
        crosses = [_in_order(_joined([texts[part] for part in cross])) for cross in schema.crosses]
        return cls(schema, categories, crosses)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Encoder":
        """The encoder of ``to_bytes``. Raises ``BundleRefused`` for anything else."""
        try:
            file = msgspec.json.decode(data, type=_File)
            return cls(file.schema, file.categories, file.crosses)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError) as error:
            raise BundleRefused(f"these bytes are not an encoder: {error}") from error

    def to_bytes(self) -> bytes:
        """JSON; equal encoders give equal bytes."""
        return msgspec.json.encode(_File(self.schema, self.categories, self.crosses))

    @property
    def categorical(self) -> tuple[int, ...]:
        """The numbers of the matrix's columns that hold codes."""
        return (*self._category_features(), *range(len(self.schema.features), len(self.schema.columns)))

    @property
    def texts(self) -> dict[int, list[str]]:
        """Of each of those columns the texts that its codes stand for, in order; a cross's parts are joined by ``*``."""
        own = [self.categories[self.schema.features[i].name] for i in self._category_features()]
        crosses = [["*".join(joint) for joint in cross] for cross in self.crosses]
        return dict(zip(self.categorical, [*own, *crosses], strict=True))

    def encode(self, columns: Mapping[str, Sequence[Any]]) -> Encoded:
        """Encode columns of equal length; one that is not given is missing in every row."""
        rows = max((len(column) for column in columns.values()), default=0)
        width = len(self.schema.columns)
        encoded = Encoded(np.empty((rows, width)), *(np.zeros(width, dtype=np.int64) for _ in range(3)))
        self._encode_numbers(columns, rows, encoded)
        self._encode_codes(columns, rows, encoded)
        return encoded

    def _encode_numbers(self, columns: Mapping[str, Sequence[Any]], rows: int, into: Encoded) -> None:
        if not self._numeric:
            return
        names = [self.schema.features[i].name for i in self._numeric]
        given = [columns.get(name) for name in names]
        lists = [[None] * rows if column is None else column for column in given]
        # Adding 0.0 turns -0.0 into 0.0, so that equal numbers have equal bits.
        numbers = np.array(lists, dtype=np.float64).reshape(len(names), rows) + 0.0
        low, high = self._bounds
        into.matrix[:, self._numeric] = numbers.T
        into.missing[self._numeric] = np.isnan(numbers).sum(axis=1)
        into.outside[self._numeric] = ((numbers < low) | (numbers > high)).sum(axis=1)

    def _encode_codes(self, columns: Mapping[str, Sequence[Any]], rows: int, into: Encoded) -> None:
        places = list(self.categorical)
        if not places:
            return
        names = [self.schema.features[i].name for i in self._category_features()]
        absent: list[Any] = [None] * rows
        texts: dict[str, Sequence[Any]] = {name: _texts(columns.get(name, absent)) for name in names}
        keys = [*texts.values(), *(_joined([texts[part] for part in cross]) for cross in self.schema.crosses)]
        found = [list(map(table.get, column, repeat(_UNSEEN))) for table, column in zip(self._codes, keys, strict=True)]
        codes = np.array(found, dtype=np.float64).reshape(len(places), rows)
        into.missing[places] = (codes == _MISSING).sum(axis=1)
        into.unseen[places] = (codes == _UNSEEN).sum(axis=1)
        codes[codes < 0] = np.nan
        into.matrix[:, places] = codes.T

    def _category_features(self) -> list[int]:
        return [i for i, feature in enumerate(self.schema.features) if feature.type == "category"]


def _texts(column: Sequence[Any]) -> Sequence[Any]:
    """Category texts, None where missing (a NaN is missing too). Columns of text are passed on as they are."""
    if set(map(type, column)) <= {str, type(None)}:
        return column
    return [None if value is None or value != value else category_text(value) for value in column]  # noqa: PLR0124


def _joined(parts: Sequence[Sequence[Any]]) -> Iterable[Joint | None]:
    """The joint texts of rows, None where any part is missing."""
    return (None if None in joint else joint for joint in zip(*parts, strict=True))


def _in_order(texts: Iterable[Any]) -> list[Any]:
    return [text for text in dict.fromkeys(texts) if text is not None]
