"""Without drift, alarms stay within their budget, whatever the size of the windows: Adult, its rows in a random order, a
model on some and windows of the others. ``bench/drift.py`` is the long version.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

import tidemill
from tidemill.core.alarms import Finding, Limits, passing
from tidemill.core.encoder import Encoder
from tidemill.core.folds import make_folds
from tidemill.core.inference import Choices, infer
from tidemill.core.looking import Comparer, Known, Tally
from tidemill.core.reference import Scored, answers, reference
from tidemill.learners.base import Samples, out_of_fold
from tidemill.learners.lightgbm import LightGBM
from tidemill.tables import columns_for_inference, columns_of, read_table

ADULT = Path(tidemill.__file__).parent / "datasets" / "adult.parquet"
CHOICES = Choices(target="income_over_50k", ignore=("split", "fnlwgt"))
ORDERS, LEARNT, WINDOWS, ALPHA = 2, 15_000, 60, 1 / 30
SIZES = (50, 200, 1000)
PARAMETERS = {"learning_rate": 0.1, "num_leaves": 31}
Looks = dict[int, list[list[Finding]]]


def looks_of(seed: int) -> Looks:
    """By size, what each window's look finds."""
    frame = read_table(ADULT)
    frame = frame[np.random.default_rng(seed).permutation(frame.height)]
    schema = infer(columns_for_inference(frame), CHOICES).schema
    columns = columns_of(frame, schema.columns)
    encoder = Encoder.fit(schema, columns)
    matrix, labels = encoder.encode(columns).matrix, frame["income_over_50k"].to_numpy().astype(np.float64)
    samples = Samples(matrix[:LEARNT], labels[:LEARNT], None, schema.columns, encoder.categorical, "binary", 2)
    folds = make_folds(samples.labels, "binary", 3, "stratified", seed)
    predictions = out_of_fold(LightGBM(), samples, folds, PARAMETERS, 50, seed, 1)
    model = LightGBM().fit(samples, PARAMETERS, 50, seed, 1)
    blocks = np.zeros(LEARNT, dtype=np.int64)
    found = reference(
        schema,
        samples.matrix,
        encoder.texts,
        LightGBM().importances(model.to_bytes()),
        blocks,
        scored=Scored(samples.labels, predictions, blocks, model.predict(samples.matrix), blocks),
    )
    comparer, rest = Comparer(found, seed), np.arange(LEARNT, len(labels))
    served = model.predict(matrix)

    def look(rows: NDArray[np.intp]) -> list[Finding]:
        told = answers("binary", labels[rows], served[rows])
        tally = Tally(
            rows=len(rows),
            began_at=0,
            ended_at=1,
            features=[column.count(matrix[rows, i]).tolist() for i, column in enumerate(found.features)],
            predictions=found.predictions[0].count(served[rows]).tolist(),
            outcomes=found.outcomes[0].count(labels[rows]).tolist(),
            errors=float(told.errors.sum()),
            residuals=float(told.residuals.sum()),
        )
        return comparer.served(tally, Known(), Limits().effect_min) + comparer.told(tally, Known(), Limits().effect_min)

    chance = np.random.default_rng(seed)
    return {size: [look(chance.choice(rest, size, replace=False)) for _ in range(WINDOWS)] for size in SIZES}


@pytest.fixture(scope="module")
def looks() -> Looks:
    orders = [looks_of(seed) for seed in range(ORDERS)]
    return {size: [look for order in orders for look in order[size]] for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
def test_alarms_stay_within_the_budget(looks: Looks, size: int) -> None:
    raised = sum(bool(passing(findings, ALPHA, Limits())) for findings in looks[size])
    assert raised <= stats.binom.isf(0.001, len(looks[size]), ALPHA)


@pytest.mark.parametrize("kind", ["feature", "prediction", "outcome", "error", "calibration"])
@pytest.mark.parametrize("size", SIZES)
def test_a_small_p_is_as_rare_as_it_says(looks: Looks, size: int, kind: str) -> None:
    """Of each kind of finding; fifty outcomes are too few to be compared."""
    assert small(looks[size], kind) == []
    assert any(finding.kind == kind for findings in looks[size] for finding in findings) or size == 50


def small(looks: list[list[Finding]], kind: str) -> list[float]:
    """Levels that more are below than twice their share would be, once in 10,000 times."""
    p = np.array([finding.p for findings in looks for finding in findings if finding.kind == kind])
    return [level for level in (0.05, 0.01, 0.001) if (p <= level).sum() > stats.binom.isf(0.0001, len(p), 2 * level)]
