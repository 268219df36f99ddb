"""One experiment in steps: prepare the rows, search, fit, judge. Nothing here knows of the log or of the lake."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.bundles import Bundle
from tidemill.clock import Clock
from tidemill.core.decoding import Decoded, Decoder
from tidemill.core.encoder import Encoder
from tidemill.core.folds import make_folds
from tidemill.core.metrics import Metric, metric
from tidemill.core.outcomes import label_numbers
from tidemill.core.schema import Schema
from tidemill.core.space import Space
from tidemill.core.training_set import Rows, balanced_weights, digest
from tidemill.core.verdict import Comparison, compare
from tidemill.errors import BadRecord, ConfigError
from tidemill.learners.base import Fold, Learner, Matrix, Model, Samples
from tidemill.messages import Label, Trial
from tidemill.roles.tuner import Budget, TrialPool, search
from tidemill.settings import Tune
from tidemill.tuning.base import Proposer

GOLDEN_ROWS = 64


class Observed(NamedTuple):
    """Observations as the lake has them: the requests' bytes, the outcomes, the event times (ms)."""

    features: list[bytes]
    outcomes: list[Label]
    times_ms: list[int]

    def rows(self, schema: Schema) -> Rows:
        """Those that the schema can read, decoded."""
        decoded = Decoder(schema).decode(self.features)
        return Rows(
            {name: list(values) for name, values in decoded.columns.items()},
            [self.outcomes[i] for i in decoded.rows],
            [self.times_ms[i] for i in decoded.rows],
        )

    def split(self, held: int) -> tuple["Observed", "Observed"]:
        """All but the newest ``held``, and those."""
        cut = len(self.outcomes) - held
        learnt = Observed(self.features[:cut], self.outcomes[:cut], self.times_ms[:cut])
        return learnt, Observed(self.features[cut:], self.outcomes[cut:], self.times_ms[cut:])


class Prepared(NamedTuple):
    """A training set as the learner takes it."""

    encoder: Encoder
    samples: Samples
    folds: list[Fold]
    digest: str


class Fitted(NamedTuple):
    """A model with what made it, and the rows that a loader must score alike."""

    model: Model
    encoder: Encoder
    golden: Matrix
    rows: int
    digest: str


class Search(NamedTuple):
    """What one search needs besides its data; ``memory_bytes`` is what its workers may take together, 0 has no limit."""

    learner: Callable[[], Learner]
    proposer: Callable[[Space, int], Proposer]
    settings: Tune
    seed: int
    clock: Clock
    memory_bytes: int = 0


def prepare(schema: Schema, rows: Rows, tune: Tune, seed: int) -> Prepared:
    """Fit the encoder, encode, and cut the folds.

    Raises ``ConfigError`` where the rows are not what the schema says (it was edited, or the data was), or cannot be cut
    into folds (too few of a class).
    """
    encoder = Encoder.fit(schema, rows.columns)
    matrix = _encoded(encoder, rows)
    labels = _labels(schema, rows.outcomes)
    weights = balanced_weights(labels, len(schema.classes)) if tune.unbalanced and schema.classes else None
    samples = Samples(matrix, labels, weights, schema.columns, encoder.categorical, schema.task, len(schema.classes))
    split = tune.split if tune.split != "auto" else ("time" if schema.time else "stratified")
    folds = make_folds(labels, schema.task, tune.folds, split, seed)
    return Prepared(encoder, samples, folds, digest(matrix, labels, schema.columns))


def _encoded(encoder: Encoder, rows: Rows) -> Matrix:
    """What an app sends is judged when it comes; the original data is first judged here."""
    try:
        return encoder.encode(rows.columns).matrix
    except (ValueError, TypeError, OverflowError):
        for name, values in rows.columns.items():
            try:
                encoder.encode({name: values})
            except (ValueError, TypeError, OverflowError) as error:
                text = f"feature {name!r} of the training data does not fit schema.json, mend one of them: {error}"
                raise ConfigError(text) from error
        raise


def _labels(schema: Schema, outcomes: Sequence[Label]) -> NDArray[np.float64]:
    try:
        return label_numbers(schema, outcomes)
    except BadRecord as error:
        raise ConfigError(f"a label of the training data does not fit schema.json, mend one of them: {error}") from error


def environment(schema: Schema, tune: Tune, measure: Metric, seed: int, training: str) -> str:
    """SHA-256 of what makes two trials comparable: metric, folds, schema, learner, seed, training set."""
    facts = [measure.name, tune.folds, tune.split, tune.learner, tune.unbalanced, schema.digest(), seed, training]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()


def run_search(
    experiment: str,
    prepared: Prepared,
    plan: Search,
    recorded: Sequence[Trial],
    record: Callable[[Trial], None],
) -> tuple[Trial, bytes]:
    """The best trial, and the model's bytes: fitted on all rows with exactly what was scored."""
    tune, samples = plan.settings, prepared.samples
    measure = metric(tune.metric, samples.task)
    with _pool(prepared, plan, tune.workers) as pool:
        best = search(
            plan.proposer(plan.learner().space(samples.task), plan.seed),
            pool.evaluate,
            measure,
            Budget(tune.trials, tune.seconds),
            recorded,
            record,
            experiment,
            environment(prepared.encoder.schema, tune, measure, plan.seed, prepared.digest),
            plan.clock,
            workers=tune.workers,
        )
        return best, pool.fit(best.parameters, best.rounds)


def refit(best: Trial, prepared: Prepared, plan: Search) -> Fitted:
    """A model on other rows, with exactly what was scored; in a worker too, so that it gives way as the trials do."""
    with _pool(prepared, plan, workers=1) as pool:
        data = pool.fit(best.parameters, best.rounds)
    return fitted(plan.learner().load(data), prepared)


def _pool(prepared: Prepared, plan: Search, workers: int) -> TrialPool:
    tune = plan.settings
    return TrialPool(
        prepared.samples,
        prepared.folds,
        plan.learner,
        metric(tune.metric, prepared.samples.task).name,
        plan.seed,
        rounds_max=tune.rounds_max,
        patience=tune.patience,
        workers=workers,
        memory_bytes=plan.memory_bytes,
    )


def fitted(model: Model, prepared: Prepared) -> Fitted:
    """The model with evenly spaced golden rows of its training set."""
    matrix = prepared.samples.matrix
    golden = matrix[:: max(1, len(matrix) // GOLDEN_ROWS)][:GOLDEN_ROWS]
    return Fitted(model, prepared.encoder, golden, len(matrix), prepared.digest)


def judge(
    challenger: Fitted, champion: Bundle, held: Observed, measure: Metric, confidence: float, seed: int
) -> Comparison | None:
    """Both models on the same held-out observations, each from the stored bytes through its own decoder and encoder.

    None where no held-out row can be read by both. Raises ``ConfigError`` for a label that the schema does not have.
    """
    ours = Decoder(challenger.encoder.schema).decode(held.features)
    theirs = Decoder(champion.schema).decode(held.features)
    both = sorted(set(ours.rows) & set(theirs.rows))
    if not both:
        return None
    labels = _labels(champion.schema, [held.outcomes[i] for i in both])
    challenging = _predict(challenger.model, challenger.encoder, ours, both)
    defending = _predict(champion.model, champion.encoder, theirs, both)
    return compare(labels, challenging, defending, measure, confidence, seed)


def _predict(model: Model, encoder: Encoder, decoded: Decoded, wanted: list[int]) -> NDArray[np.float64]:
    """Predictions for the rows that are wanted, of those that were decoded."""
    return model.predict(encoder.encode(decoded.columns).matrix)[np.searchsorted(decoded.rows, wanted)]


def comparable(champion: Schema, challenger: Schema) -> bool:
    """Whether both answer the same question."""
    return (champion.task, champion.classes) == (challenger.task, challenger.classes)
