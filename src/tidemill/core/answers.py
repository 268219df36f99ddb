"""From the bytes of requests to the answers: the one path that the predictor takes and the audit takes again.

"Bundle + the bytes of a request -> answer" is a pure function of its input, bit for bit, whatever else is in the batch.
"""

from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.encoder import Encoded
from tidemill.core.inspection import category_text
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.core.schema import Schema
from tidemill.errors import BadRecord
from tidemill.messages import Label, Prediction

Scores = NDArray[np.float64]
Predict = Callable[[NDArray[np.float64]], Scores]
"""What a model does: float64[n, k] -> float64[n], or float64[n, classes] for multiclass."""


class Answers(Struct, frozen=True):
    """Good requests as ``rows`` (their places) with an answer each, bad ones with their places, and what was counted.

    By task one of ``probability``, ``probabilities`` and ``value`` has an element for each row; the others have None there.
    """

    rows: list[int]
    predictions: list[Label]
    probability: list[float | None]
    probabilities: list[dict[str, float] | None]
    value: list[float | None]
    bad: list[tuple[int, BadRecord]]
    encoded: Encoded


class Answerer(Struct, frozen=True):
    """A decoder, a model and its threshold that belong together. Used by one thread at a time (the model is)."""

    decoder: MatrixDecoder
    predict: Predict
    threshold: float = 0.5

    def answer(self, values: Sequence[bytes]) -> Answers:
        """Decode, encode and score a batch; scores that are not finite make their requests bad (JSON would write null)."""
        schema, decoded = self.decoder.encoder.schema, self.decoder.decode(values)
        encoded, rows, bad = decoded.encoded, decoded.rows, decoded.bad
        wide = (len(schema.classes),) if schema.task == "multiclass" else ()
        scores = self.predict(encoded.matrix) if rows else np.empty((0, *wide))
        finite = np.isfinite(scores).all(axis=1) if wide else np.isfinite(scores)
        if not finite.all():
            refused = [rows[place] for place in np.flatnonzero(~finite)]
            bad = [*bad, *((row, BadRecord("non_finite_score", "", "the model's answer is not finite")) for row in refused)]
            rows, scores = [rows[place] for place in np.flatnonzero(finite)], scores[finite]
        return Answers(rows, *answer_values(schema, scores, self.threshold), bad, encoded)


def answer_values(
    schema: Schema, scores: Scores, threshold: float = 0.5
) -> tuple[list[Label], list[float | None], list[dict[str, float] | None], list[float | None]]:
    """Scores -> predictions, probability, probabilities, value: lists of equal length.

    Binary: the second class where its probability is above the threshold. Multiclass: the most probable class, the first of
    equals; probabilities are keyed by the labels' text.
    """
    nothing: list[None] = [None] * len(scores)
    if schema.task == "regression":
        values = scores.tolist()
        return values, list(nothing), list(nothing), values
    if schema.task == "binary":
        labels = [schema.classes[number] for number in (scores > threshold).tolist()]
        return labels, scores.tolist(), list(nothing), list(nothing)
    names = [category_text(label) for label in schema.classes]
    labels = [schema.classes[number] for number in scores.argmax(axis=1).tolist()]
    return labels, list(nothing), [dict(zip(names, row, strict=True)) for row in scores.tolist()], list(nothing)


def scores_of(prediction: Prediction, schema: Schema) -> list[float]:
    """The scores behind an answer, exactly: one number, or one for each class. The inverse of ``answer_values``.

    Raises ``ValueError`` for an answer to another task, ``KeyError`` for one with other classes.
    """
    if schema.task == "multiclass" and prediction.probabilities is not None:
        return [prediction.probabilities[category_text(label)] for label in schema.classes]
    score = prediction.probability if schema.task == "binary" else prediction.value
    if score is None:
        raise ValueError(f"the answer to {prediction.request_id!r} has no score for a {schema.task} task")
    return [score]
