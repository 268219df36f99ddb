"""What answers say, as numbers."""

from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from tidemill.core.inspection import category_text
from tidemill.core.schema import Schema
from tidemill.messages import Prediction

_decode = msgspec.json.Decoder(Prediction).decode


class Scores:
    """A row of scores an answer: the probability of the second class, the value, or each class's probability."""

    def __init__(self, schema: Schema) -> None:
        self._task = schema.task
        self._labels = [category_text(label) for label in schema.classes]
        self.wide = len(self._labels) if schema.task == "multiclass" else 1

    def of(self, answers: pl.Series) -> NDArray[np.float64]:
        """float64[n, wide] of the answers' bytes; NaN where one is to another schema's task."""
        found: list[Any]
        if self._task == "multiclass":
            found = [self._probabilities(answer) for answer in answers.to_list()]
        elif self._task == "binary":
            found = [_decode(answer).probability for answer in answers.to_list()]
        else:
            found = [_decode(answer).value for answer in answers.to_list()]
        return np.array(found, dtype=np.float64).reshape(len(found), self.wide)

    def predictions(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows of scores as ``Model.predict`` gives them."""
        return scores if self._task == "multiclass" else scores[:, 0]

    def _probabilities(self, answer: bytes) -> list[float | None]:
        said = _decode(answer).probabilities or {}
        scores = [said.get(label) for label in self._labels]
        return [None] * self.wide if None in scores else scores
