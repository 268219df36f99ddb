"""What learners do with a matrix whose libraries know less of missing values, categories and large numbers than LightGBM."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.errors import BundleRefused
from tidemill.learners.base import Matrix

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

LARGEST = 1e38
"""Of what is told apart: XGBoost sets its last limit at twice the largest value, and that must be a float32 too."""


class Codes:
    """The categories that a model has learnt from: of each categorical column its codes, rising. Any other is answered like
    a missing value.
    """

    def __init__(self, codes: Mapping[int, Sequence[float] | Floats]) -> None:
        self._codes = {column: np.asarray(values, dtype=np.float64) for column, values in codes.items()}
        self._ended = {column: np.append(values, np.nan) for column, values in self._codes.items()}

    @classmethod
    def of(cls, matrix: Matrix, categorical: Sequence[int]) -> "Codes":
        return cls({column: np.unique(matrix[~np.isnan(matrix[:, column]), column]) for column in categorical})

    @property
    def columns(self) -> list[int]:
        return list(self._codes)

    def __getitem__(self, column: int) -> Floats:
        return self._codes[column]

    def places(self, column: int, values: Floats) -> Places:
        """The number of each value among the column's codes; how many there are for any other, NaN too."""
        codes, ended = self._codes[column], self._ended[column]
        places = codes.searchsorted(values)
        places[ended[places] != values] = len(codes)
        return places

    def known(self, matrix: Matrix) -> Matrix:
        """A copy in which all other codes are missing."""
        matrix = matrix.copy()
        for column, ended in self._ended.items():
            matrix[:, column] = ended[self.places(column, matrix[:, column])]
        return matrix

    def to_text(self) -> str:
        return msgspec.json.encode(
            {column: values.astype(np.int64).tolist() for column, values in self._codes.items()}
        ).decode()

    @classmethod
    def from_text(cls, text: str) -> "Codes":
        """Raises ``BundleRefused`` for what is not from ``to_text``."""
        try:
            return cls(msgspec.json.decode(text, type=dict[int, list[int]]))
        except msgspec.MsgspecError as error:
            raise BundleRefused(f"a model's categories cannot be read: {error}") from error


def float32(matrix: Matrix) -> NDArray[np.float32]:
    """The matrix for libraries that count in float32; no number becomes infinite."""
    return np.clip(matrix, -LARGEST, LARGEST).astype(np.float32, order="C")


def check_width(matrix: Matrix, features: int) -> None:
    """Raises ``ValueError`` for a matrix of another width than the model's."""
    if matrix.shape[1:] != (features,):
        raise ValueError(f"a matrix of shape {matrix.shape} for a model of {features} features")
