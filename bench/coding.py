"""What a request costs beside its score: JSON to the matrix, at once or by columns, answers to JSON, by batch size."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from bench.stage import champion, requests
from tidemill.core.answers import answer_values
from tidemill.core.decoding import Decoder
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.core.schema import Schema
from tidemill.messages import Prediction, to_bytes
from tidemill.wiring import Wiring

BATCHES = (1, 64, 1000, 5000)
ROWS, TURNS = 40_000, 20


class Coding(Struct, frozen=True):
    """Microseconds a row, the best of twenty turns. ``plain``: from requests that are plain to the matrix, at once; all
    others are decoded, then encoded.
    """

    batch: int
    plain: float
    decode: float
    encode: float
    score: float
    answer: float


def measure(wiring: Wiring) -> list[Coding]:
    """The steps of the predictor's hot path, one after the other, on the model that serves and its fastest engine."""
    values = [message.value for message in requests(wiring, "coding", max(BATCHES))]
    with wiring.store.load(champion(wiring)) as bundle:
        plain, decoder, model = MatrixDecoder(bundle.encoder), Decoder(bundle.schema), bundle.model.faster() or bundle.model
        found = []
        for batch in BATCHES:
            part = values[:batch]
            columns = decoder.decode(part).columns
            matrix = bundle.encoder.encode(columns).matrix
            scores = model.predict(matrix)
            steps: list[Callable[[], object]] = [
                lambda part=part: plain.decode(part),  # type: ignore[misc]
                lambda part=part: decoder.decode(part),  # type: ignore[misc]
                lambda columns=columns: bundle.encoder.encode(columns),  # type: ignore[misc]
                lambda matrix=matrix: model.predict(matrix),  # type: ignore[misc]
                lambda scores=scores: _answers(bundle.schema, bundle.hash, scores),  # type: ignore[misc]
            ]
            found.append(Coding(batch, *_us_a_row(steps, batch)))
    return found


def _answers(schema: Schema, bundle: str, scores: NDArray[np.float64]) -> list[bytes]:
    rows = zip(*answer_values(schema, scores), strict=True)
    return [
        to_bytes(Prediction("coding-1", label, 1, bundle, 0, 0, probability, probabilities, value))
        for label, probability, probabilities, value in rows
    ]


def _us_a_row(steps: Sequence[Callable[[], object]], batch: int) -> list[float]:
    """The steps in turn: the machine is faster at one moment than at the next."""
    times: list[list[float]] = [[] for _ in steps]
    repeats = max(1, ROWS // batch // TURNS)
    for _ in range(TURNS):
        for step, taken in zip(steps, times, strict=True):
            started = time.perf_counter()
            for _ in range(repeats):
                step()
            taken.append((time.perf_counter() - started) / repeats)
    return [min(taken) / batch * 1e6 for taken in times]
