"""The watch over a table, as the monitor has it: a model, its reference, and the looks that are taken."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

import tidemill
from tidemill.core.alarms import Change, Finding, Limits, Watch, alpha_of, look, passing
from tidemill.core.encoder import Encoder
from tidemill.core.folds import Split, make_folds
from tidemill.core.inference import Choices, infer
from tidemill.core.looking import Comparer, Known, Tally
from tidemill.core.reference import Blocks, Reference, Scored, answers, reference, said
from tidemill.core.schema import Schema
from tidemill.learners.base import Model, Samples, out_of_fold
from tidemill.learners.lightgbm import LightGBM
from tidemill.tables import columns_for_inference, columns_of, read_table

Matrix = NDArray[np.float64]
Values = NDArray[np.float64]
Rows = NDArray[np.intp]

DATASETS = Path(tidemill.__file__).parent / "datasets"
PARAMETERS = {"learning_rate": 0.1, "num_leaves": 31}
ROUNDS = 60


class Table(NamedTuple):
    """A data set as the project reads it: values by feature, labels (NaN where there is none), times."""

    schema: Schema
    frame: pl.DataFrame
    labels: Values
    times_ms: NDArray[np.int64]


class Learnt(NamedTuple):
    """A model and what it learnt from: ``rows`` of the table, with ``predictions`` of models that had not seen them;
    ``matrix`` is all of the table, with -1 for an unseen category.
    """

    table: Table
    encoder: Encoder
    model: Model
    importances: Values
    matrix: Matrix
    rows: Rows
    predictions: Values
    split: Split
    seed: int

    def refer(self, blocks: Blocks, block_ms: int = 0) -> Comparer:
        """As the trainer writes the reference, by the block of each row."""
        schema, labels, texts = self.table.schema, self.table.labels[self.rows], self.encoder.texts
        scored = Scored(labels, self.predictions, blocks, self.model.predict(self.matrix[self.rows]), blocks)
        found = reference(schema, self.matrix[self.rows], texts, self.importances, blocks, block_ms, scored)
        return Comparer(found, self.seed)

    def apart(self) -> Comparer:
        """Of rows without an order."""
        return self.refer(np.zeros(len(self.rows), dtype=np.int64))


class Counted(NamedTuple):
    """Rows, ready to be counted: by feature and for what the model says the bin of each; of the outcomes too, and how far
    the model was off (anything where there is no label: ``labelled``).
    """

    features: NDArray[np.intp]
    predictions: NDArray[np.intp]
    outcomes: NDArray[np.intp]
    errors: Values
    residuals: Values
    labelled: NDArray[np.bool_]
    widths: tuple[list[int], int, int]

    def tally(self, rows: Rows, began_at: int = 0, ended_at: int = 1) -> Tally:
        """As the watch has it once the outcomes are in."""
        wide, predictions, outcomes = self.widths
        known = rows[self.labelled[rows]]
        return Tally(
            len(rows),
            began_at,
            ended_at,
            [np.bincount(self.features[rows, i], minlength=bins).tolist() for i, bins in enumerate(wide)],
            np.bincount(self.predictions[rows], minlength=predictions).tolist(),
            np.bincount(self.outcomes[known], minlength=outcomes).tolist(),
            float(self.errors[known].sum()),
            float(self.residuals[known].sum()),
        )


def adult() -> Table:
    """Without the census weight. There is no time in it."""
    frame = read_table(DATASETS / "adult.parquet")
    choices = Choices(target="income_over_50k", ignore=("split", "fnlwgt"))
    schema = infer(columns_for_inference(frame), choices).schema
    return Table(schema, frame, frame["income_over_50k"].to_numpy().astype(np.float64), np.zeros(frame.height, np.int64))


def learn(table: Table, rows: Rows, split: Split, seed: int) -> Learnt:
    """LightGBM on the rows, with out-of-fold predictions of three folds, and the whole table encoded."""
    names = [feature.name for feature in table.schema.features]
    encoder = Encoder.fit(table.schema, columns_of(table.frame[rows], names))
    matrix = encoder.encode(columns_of(table.frame, names)).matrix
    for i in encoder.categorical:
        unseen = np.isnan(matrix[:, i]) & table.frame[names[i]].is_not_null().to_numpy()
        matrix[unseen, i] = -1
    samples = Samples(matrix[rows], table.labels[rows], None, table.schema.columns, encoder.categorical, "binary", 2)
    learner = LightGBM()
    folds = make_folds(samples.labels, "binary", 3, split, seed)
    predictions = out_of_fold(learner, samples, folds, PARAMETERS, ROUNDS, seed, 1)
    model = learner.fit(samples, PARAMETERS, ROUNDS, seed, 1)
    return Learnt(table, encoder, model, learner.importances(model.to_bytes()), matrix, rows, predictions, split, seed)


def count(learnt: Learnt, found: Reference, matrix: Matrix, labels: Values) -> Counted:
    """Rows as they are served, and their labels, NaN where there is none."""
    plain = matrix.copy()
    for i in learnt.encoder.categorical:
        plain[plain[:, i] < 0, i] = np.nan
    predictions = learnt.model.predict(plain)
    labelled = ~np.isnan(labels)
    known = np.where(labelled, labels, 0.0)
    told = answers("binary", known, predictions)
    return Counted(
        np.column_stack([column.bin_of(matrix[:, i]) for i, column in enumerate(found.features)]),
        found.predictions[0].bin_of(said("binary", predictions)),
        found.outcomes[0].bin_of(known),
        told.errors,
        told.residuals,
        labelled,
        ([column.bins for column in found.features], found.predictions[0].bins, found.outcomes[0].bins),
    )


class Watching:
    """What ``roles/watch.py`` decides at each look, without its tables: outcomes are in at once."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.state = Watch()
        self.known = Known()
        self._number = 0
        self._ended: list[int] = []

    def renew(self) -> None:
        """Another model serves."""
        self.known = Known()

    def look(self, at_ms: int, findings: Sequence[Finding]) -> tuple[list[Finding], Change | None, float]:
        """What passes, what became of the alarm, and the look's part of the budget."""
        recent = self._ended[-100:]
        alpha = alpha_of(self.limits, len(recent), at_ms - recent[0] if recent else 0)
        self._ended.append(at_ms)
        passed = passing(findings, alpha, self.limits)
        self.state, change = look(self.state, self._number, at_ms, passed, self.limits)
        self._number += 1
        return passed, change, alpha

    def accept(self, change: Change, comparer: Comparer, served: Tally, told: Tally | None) -> None:
        """What a cleared alarm leaves behind."""
        if change.accept:
            self.known = comparer.accept(self.known, change.alarm.findings, served, told)
