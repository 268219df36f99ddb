"""The encoder: columns of values -> the matrix that a learner takes, the same for training and for answers.

Numbers stay, booleans become 0 and 1, categories and crosses become codes from 0 in the order of their lists; what is
missing becomes NaN. So does an unseen category, which is counted: LightGBM sends a NaN, a negative and an unknown code to
the same side of every categorical split ("not in the set"), so NaN changes no answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
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

UNSEEN = -1.0
"""What stands in a matrix for an unseen category until it is counted."""


class Encoded(Struct, frozen=True):
    """``matrix`` float64[n, k], rows contiguous, in the order of ``schema.columns``; by column, how many values were
    missing, unseen (categories), and outside the schema's bounds (numbers).
    """

    matrix: Matrix
    missing: Counts
    unseen: Counts
    outside: Counts


class _Codes(dict[Any, float]):
    """Texts, or the codes of a cross's parts -> code; of what is not known ``UNSEEN``."""

    def __init__(self, known: Iterable[Any]) -> None:
        super().__init__(zip(known, map(float, count()), strict=False))
        self[None] = np.nan

    def __missing__(self, _: Any) -> float:
        return UNSEEN


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
    _codes: dict[str, _Codes] = field(init=False, repr=False, compare=False)
    _crosses: list[tuple[list[int], _Codes]] = field(init=False, repr=False, compare=False)
    _places: list[int] = field(init=False, repr=False, compare=False)
    _bounds: tuple[Matrix, Matrix] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.schema.features]
        codes = {name: _Codes(self.categories[name]) for name in self._category_names}
        crosses = []
        for cross, known in zip(self.schema.crosses, self.crosses, strict=True):
            tables = [dict(codes[part]) for part in cross]
            joints = [tuple(table[text] for table, text in zip(tables, joint, strict=True)) for joint in known]
            crosses.append(([names.index(part) for part in cross], _Codes(joints)))
        bounds = [(feature.minimum, feature.maximum) for feature in self.schema.features] + [(None, None)] * len(crosses)
        low = np.array([-np.inf if low is None else low for low, _ in bounds])
        high = np.array([np.inf if high is None else high for _, high in bounds])
        object.__setattr__(self, "_codes", codes)
        object.__setattr__(self, "_crosses", crosses)
        object.__setattr__(self, "_places", list(self.categorical))
        object.__setattr__(self, "_bounds", (low, high))

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
            if not file.schema.features:
                raise ValueError("its schema has no features")
            return cls(file.schema, file.categories, file.crosses)
        except (ValueError, RecursionError, KeyError) as error:
            raise BundleRefused(f"these bytes are not an encoder: {error}") from error

    def to_bytes(self) -> bytes:
        """JSON; equal encoders give equal bytes."""
        return msgspec.json.encode(_File(self.schema, self.categories, self.crosses))

    @property
    def categorical(self) -> tuple[int, ...]:
        """The numbers of the matrix's columns that hold codes."""
        own = (i for i, feature in enumerate(self.schema.features) if feature.type == "category")
        return (*own, *range(len(self.schema.features), len(self.schema.columns)))

    @property
    def texts(self) -> dict[int, list[str]]:
        """Of each of those columns the texts that its codes stand for, in order; a cross's parts are joined by ``*``."""
        own = [self.categories[name] for name in self._category_names]
        crosses = [["*".join(joint) for joint in cross] for cross in self.crosses]
        return dict(zip(self.categorical, [*own, *crosses], strict=True))

    def encode(self, columns: Mapping[str, Sequence[Any]]) -> Encoded:
        """Encode columns of equal length; one that is not given is missing in every row."""
        return self.complete(self.own(columns))

    def own(self, columns: Mapping[str, Sequence[Any]]) -> Matrix:
        """The features' own columns of the matrix, float64[n, features], with ``UNSEEN`` for unseen categories."""
        rows = max((len(column) for column in columns.values()), default=0)
        absent: list[None] = [None] * rows
        given = [(feature, columns.get(feature.name, absent)) for feature in self.schema.features]
        numbers = [map(self._codes[f.name].__getitem__, _texts(c)) if f.type == "category" else c for f, c in given]
        flat = np.fromiter(chain.from_iterable(numbers), np.float64, rows * len(given))
        return flat.reshape(len(given), rows).T.copy()

    def complete(self, own: Matrix) -> Encoded:
        """The matrix of the features' own columns, which may be changed: with crosses, counted, NaN for the unseen."""
        # Adding 0.0 turns -0.0 into 0.0, so that equal numbers have equal bits.
        own += 0.0
        crosses = [_crossed(own[:, parts], codes) for parts, codes in self._crosses]
        matrix = np.column_stack([own, *crosses]) if crosses else own
        low, high = self._bounds
        missing = np.isnan(matrix).sum(axis=0)
        outside = ((matrix < low) | (matrix > high)).sum(axis=0)
        unseen = np.zeros(len(missing), dtype=np.int64)
        codes = matrix[:, self._places]
        unknown = codes == UNSEEN
        if unknown.any():
            unseen[self._places] = unknown.sum(axis=0)
            codes[unknown] = np.nan
            matrix[:, self._places] = codes
        return Encoded(matrix, missing, unseen, outside)

    @property
    def _category_names(self) -> list[str]:
        return [feature.name for feature in self.schema.features if feature.type == "category"]


def _crossed(parts: Matrix, codes: _Codes) -> Matrix:
    """The codes of a cross, float64[n], NaN where any part is missing."""
    found = np.fromiter(map(codes.__getitem__, map(tuple, parts.tolist())), np.float64, len(parts))
    return np.where(np.isnan(parts).any(axis=1), np.nan, found)


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
