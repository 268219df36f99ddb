"""What a backtest comes to, as one value: what is printed, drawn and written as JSON is all in it."""

from typing import Any

import msgspec
import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.backtest.scratch import Scratch
from tidemill.backtest.stream import Stream
from tidemill.core.choosing import Interval
from tidemill.core.metrics import Metric, Values
from tidemill.core.outcomes import label_numbers
from tidemill.errors import ConfigError
from tidemill.messages import JournalEntry
from tidemill.roles.promotion import announced
from tidemill.roles.reading import read_messages


class Training(Struct, frozen=True):
    """One experiment: at which time of the stream, why, on how many rows, what became of it, and the trainer's seconds."""

    at: int
    experiment: str
    reason: str
    verdict: str
    version: int
    rows: int
    seconds: float


class Answers(Struct, frozen=True):
    """What a policy's versions answered, of the requests that have an outcome: ``places`` among the stream's requests,
    rising, and for each the label, the prediction as the metric takes it, and the version.
    """

    places: NDArray[np.int64]
    labels: Values
    predictions: Values
    versions: NDArray[np.int64]

    def take(self, places: NDArray[np.int64]) -> "Answers":
        """Those to some of them."""
        at = np.searchsorted(self.places, places)
        return Answers(places, self.labels[at], self.predictions[at], self.versions[at])


class PolicyResult(Struct, frozen=True):
    """One policy: its ``score`` over all answers, and by window (None where the metric is not defined there).

    ``gain_*``: by how much its loss is lower, with an interval. ``trainings`` has the first model's too.
    """

    policy: str
    settings: dict[str, Any]
    score: float
    scores: list[float | None]
    gain_over_baseline: Interval
    gain_over_best: Interval
    trainings: list[Training]
    versions: int
    training_seconds: float
    seconds: float


class Result(Struct, frozen=True):
    """The whole. ``windows`` are the starts (ms) of the blocks of ``block_hours`` that were resampled, ``rows`` how many
    answers with an outcome each has. A new version serves ``ready_after_seconds`` after its training began.
    """

    project: str
    source: str
    metric: str
    greater_is_better: bool
    requests: int
    labelled: int
    scored: int
    since: int
    until: int
    trials: int
    ready_after_seconds: float
    seed: int
    block_hours: float
    resamples: int
    confidence: float
    windows: list[int]
    rows: list[int]
    baseline: str
    best: str
    chosen: str
    reason: str
    notes: list[str]
    policies: list[PolicyResult]


def answers_of(scratch: Scratch, stream: Stream, measure: Metric) -> Answers:
    """From the observations of a play."""
    schema = scratch.configuration.schema
    rows = scratch.lake.scan("observations").select("request_id", "version", "outcome", "scores")
    place_of = {id: place for place, id in enumerate(stream.ids)}
    found = scratch.lake.read(rows.filter(pl.col("scores").list.len() > 0))
    if not found.height:
        raise ConfigError("no request has both an answer and an outcome: nothing can be compared")
    places = np.array([place_of[id] for id in found["request_id"].to_list()], np.int64)
    order = np.argsort(places)
    labels = label_numbers(schema, [msgspec.json.decode(text) for text in found["outcome"].to_list()])
    scores = np.array(found["scores"].to_list(), np.float64)
    versions = found["version"].to_numpy()
    predictions = scores if schema.task == "multiclass" else scores[:, 0]
    if measure.decides:
        thresholds = {number: version.threshold for number, version in announced(scratch.log, scratch.topics).items()}
        bars = np.array([thresholds[version] for version in versions.tolist()])
        predictions = (predictions > bars).astype(np.float64)
    return Answers(places[order], labels[order], predictions[order], versions[order])


def trainings_of(scratch: Scratch) -> list[Training]:
    """The experiments in the journal, the first model's first."""
    entries = read_messages(scratch.log, scratch.topics.journal, JournalEntry)
    return [
        Training(entry.at, entry.experiment, entry.reason, entry.verdict, entry.version, entry.rows, entry.seconds)
        for entry in entries
        if entry.kind == "experiment"
    ]


def by_window(answers: Answers, blocks: NDArray[np.int64], count: int, measure: Metric) -> list[float | None]:
    """The score of each block."""
    order = np.argsort(blocks, kind="stable")
    starts = np.searchsorted(blocks[order], np.arange(count + 1))
    found = []
    for block in range(count):
        rows = order[starts[block] : starts[block + 1]]
        score = measure.function(answers.labels[rows], answers.predictions[rows])
        found.append(float(score) if np.isfinite(score) else None)
    return found
