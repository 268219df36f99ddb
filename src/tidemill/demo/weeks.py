"""The flights demo's table: week by week, the frozen first model beside the one that was retrained."""

import msgspec
import numpy as np
import polars as pl
from msgspec import Struct

from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.core.metrics import metric
from tidemill.core.outcomes import label_numbers
from tidemill.wiring import Wiring


class Week(Struct, frozen=True):
    """One week of requests with outcomes: the share of positive ones, and both models' log loss and AUC."""

    week: str
    rows: int
    positive_share: float
    frozen_log_loss: float
    served_log_loss: float
    frozen_auc: float
    served_auc: float


def weeks(wiring: Wiring) -> list[Week]:
    """By week of the request's event time; the last item, ``all``, is the whole stream."""
    frame = wiring.lake.observations(None).with_columns(
        pl.from_epoch("event_at", time_unit="ms").dt.truncate("1w").dt.strftime("%Y-%m-%d").alias("week")
    )
    schema = wiring.configuration.schema
    frame = frame.with_columns(
        pl.Series("label", label_numbers(schema, [msgspec.json.decode(text) for text in frame["outcome"]])),
        pl.Series("frozen", frozen_scores(wiring, frame["features"].to_list())),
        pl.col("scores").list.first().alias("served"),
    )
    parts = [(str(name[0]), part) for name, part in frame.sort("week").group_by("week", maintain_order=True)]
    return [_week(name, part) for name, part in [*parts, ("all", frame)]]


def frozen_scores(wiring: Wiring, features: list[bytes]) -> "np.typing.NDArray[np.float64]":
    """What the first version would have answered: probabilities of the second class."""
    first = min(wiring.announced(), key=lambda version: version.version)
    bundle = wiring.store.load(first.bundle)
    try:
        return bundle.model.predict(MatrixDecoder(bundle.encoder).decode(features).encoded.matrix)
    finally:
        bundle.close()


def _week(name: str, part: pl.DataFrame) -> Week:
    labels, frozen, served = (part[column].to_numpy() for column in ("label", "frozen", "served"))
    log_loss, auc = metric("log_loss", "binary").function, metric("auc", "binary").function
    return Week(
        week=name,
        rows=len(part),
        positive_share=float(labels.mean()),
        frozen_log_loss=log_loss(labels, frozen),
        served_log_loss=log_loss(labels, served),
        frozen_auc=auc(labels, frozen),
        served_auc=auc(labels, served),
    )
