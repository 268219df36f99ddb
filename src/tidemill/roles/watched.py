"""The champion as the watch needs it: how its requests are read, what it learnt from, what its scores mean."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tidemill.bundles import BundleStore
from tidemill.core.expected_quality import Calibration, calibrate
from tidemill.core.looking import Comparer
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.core.reference import said
from tidemill.errors import BundleRefused, UnknownModel
from tidemill.messages import ModelVersion
from tidemill.roles.scores import Scores

SAMPLE_ROWS = 5_000
"""Of a look's rows at most so many are counted, evenly spaced: more would tell no more."""


class Watched:
    """A bundle with its reference. Requests from before it was announced (the log's time, ms) were another's."""

    def __init__(self, store: BundleStore, bundle: str, seed: int, version: ModelVersion | None = None) -> None:
        """Raises ``UnknownModel`` where the bundle is gone or has no reference, ``BundleRefused`` where it is damaged."""
        found, scored = store.reference(bundle), store.out_of_fold(bundle)
        if found is None:
            raise UnknownModel(f"bundle {bundle} has no reference: it was trained before there were any")
        self.bundle = bundle
        self.version = version.version if version else 0
        self.announced_at = version.at if version else 0
        self.threshold = version.threshold if version else 0.5
        self.encoder, self.reference = found
        self.schema = self.encoder.schema
        self.decoder = MatrixDecoder(self.encoder)
        self.scores = Scores(self.schema)
        self.comparer = Comparer(self.reference, seed)
        self.calibration: Calibration | None = None
        if scored is not None:
            self.calibration = calibrate(self.schema.task, scored.predictions, scored.labels)

    def features(self, requests: pl.DataFrame) -> list[list[int]]:
        """By feature, how many of the requests' values fall into each bin."""
        decoded = self.decoder.decode(_some(requests["value"]).to_list())
        columns = self.reference.features
        if not decoded.rows:
            return [[0] * column.bins for column in columns]
        encoded = decoded.encoded
        counts = [column.count(encoded.matrix[:, i], int(encoded.unseen[i])) for i, column in enumerate(columns)]
        return [count.tolist() for count in counts]

    def predictions(self, answers: pl.DataFrame) -> NDArray[np.float64]:
        """What this bundle said in some of the answers, as ``Model.predict`` gives it."""
        scores = self.scores.of(_some(answers.filter(pl.col("bundle") == self.bundle)["value"]))
        return self.scores.predictions(scores[~np.isnan(scores).any(axis=1)])

    def counted(self, predictions: NDArray[np.float64]) -> list[int]:
        """How many of them fall into each bin."""
        columns = self.reference.predictions
        if not columns or not len(predictions):
            return []
        counts: list[int] = columns[0].count(said(self.schema.task, predictions)).tolist()
        return counts


def watched(store: BundleStore, bundle: str, seed: int, version: ModelVersion | None = None) -> tuple[Watched | None, str]:
    """The bundle, or None and why it cannot be watched."""
    try:
        return Watched(store, bundle, seed, version), ""
    except (UnknownModel, BundleRefused) as error:
        return None, str(error)


def _some(values: pl.Series) -> pl.Series:
    return values.gather_every(-(-len(values) // SAMPLE_ROWS) or 1)
