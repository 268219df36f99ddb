"""One experiment in steps: prepare the rows, search, fit, judge. Nothing here knows of the log or of the lake."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from tidemill.bundle_files import OutOfFold
from tidemill.bundles import Bundle
from tidemill.clock import Clock
from tidemill.core import training_set
from tidemill.core.decoding import Decoder
from tidemill.core.drift_estimator import drifting, drop_features, feature_drifts, sampled
from tidemill.core.encoder import Encoder
from tidemill.core.environment import digest
from tidemill.core.folds import Split, make_folds
from tidemill.core.matrix_decoder import DecodedMatrix, MatrixDecoder
from tidemill.core.memory import recall
from tidemill.core.metrics import Metric, metric
from tidemill.core.outcomes import label_numbers
from tidemill.core.reference import Reference, Scored, block_width, blocks_of_keys, blocks_of_times, reference
from tidemill.core.schema import Schema, Task
from tidemill.core.space import Space
from tidemill.core.training_set import Rows, balanced_weights
from tidemill.core.verdict import Comparison, compare
from tidemill.errors import BadRecord, ConfigError
from tidemill.executors.base import Executor, MakeExecutor, Work
from tidemill.learners.base import Fold, Learner, Matrix, Model, Samples
from tidemill.messages import Conditions, Label, Trial
from tidemill.roles.tuner import Budget, Experiment, search
from tidemill.settings import Tune
from tidemill.tuning.base import Proposer
from tidemill.tuning.contest import Contest
from tidemill.tuning.random import RandomProposer
from tidemill.tuning.remembering import Remembering

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
    times_ms: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


class Fitted(NamedTuple):
    """A model with its threshold and what made it, and the rows that a loader must score alike."""

    model: Model
    threshold: float
    encoder: Encoder
    golden: Matrix
    rows: int
    digest: str


class Found(NamedTuple):
    """What a search came to: its best trial, that as a model on all rows, and as predictions for rows not learnt from."""

    best: Trial
    fitted: Fitted
    out_of_fold: OutOfFold


DRIFT_ROWS_MIN = 200
"""On either side, before a feature is left out: with fewer a feature that has not changed scores 0.2 and more."""
OWN_ROWS = 50_000
"""Of a model's training set at most so many are answered for its reference, evenly spaced."""


class Blocking(NamedTuple):
    """What keeps rows together: a feature's value, or so much time."""

    feature: str
    width_ms: int


class Search(NamedTuple):
    """What one search needs besides its data; ``memory_bytes`` is what its workers may take together, 0 has no limit."""

    learners: dict[str, Callable[[], Learner]]
    proposer: Callable[[Space, int], Proposer]
    executor: MakeExecutor
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
    folds = make_folds(labels, schema.task, tune.folds, _split(schema, tune), seed)
    times = np.array(rows.times_ms if schema.time else [], dtype=np.int64)
    return Prepared(encoder, samples, folds, training_set.digest(matrix, labels, schema.columns), times)


def without_drifting(
    schema: Schema, before: Rows, since: Rows, threshold: float, seed: int
) -> tuple[Schema, dict[str, float]]:
    """The schema without the features whose estimate of drift (MLBox's, each by itself) from ``before`` to ``since`` is the
    threshold or more, and their estimates. Nothing is left out where either has fewer than ``DRIFT_ROWS_MIN`` rows.

    Raises ``ConfigError`` where none would be left, and for rows that are not what the schema says.
    """
    if min(len(before), len(since)) < DRIFT_ROWS_MIN:
        return schema, {}
    both = {name: [*before.columns[name], *since.columns[name]] for name in before.columns}
    encoder = Encoder.fit(schema, both)
    older, newer = (sampled(_encoded(encoder, rows)) for rows in (before, since))
    scores = feature_drifts(older, newer, schema.columns, seed=seed)
    dropped = {name: scores[name] for name in drifting(scores, threshold)}
    return drop_features(schema, dropped), dropped


def refer(
    model: Model,
    prepared: Prepared,
    importances: NDArray[np.float64],
    searched: Prepared,
    found: OutOfFold,
    block: Blocking,
) -> Reference:
    """What the monitor holds the served rows against: those that the model learnt from, what it says of them, and what was
    said of those of the search by models that had not learnt from them.
    """
    encoder = prepared.encoder
    feature = block.feature if block.feature in encoder.schema.columns else ""  # it may have been left out for its drift
    width = 0 if feature else block_width(prepared.times_ms, block.width_ms)
    blocks = _blocks(prepared, feature, width)
    return reference(
        encoder.schema,
        prepared.samples.matrix,
        encoder.texts,
        importances,
        blocks,
        width,
        Scored(
            found.labels,
            found.predictions,
            _blocks(searched, feature, width),
            model.predict(sampled(prepared.samples.matrix, OWN_ROWS)),
            sampled(blocks, OWN_ROWS),
        ),
    )


def _blocks(prepared: Prepared, feature: str, width_ms: int) -> NDArray[np.int64]:
    """By the feature that is named, else by time, else none."""
    columns = prepared.encoder.schema.columns
    if not feature:
        times = prepared.times_ms
        return blocks_of_times(times, width_ms) if len(times) else np.zeros(len(prepared.samples.labels), dtype=np.int64)
    return blocks_of_keys(prepared.samples.matrix[:, columns.index(feature)])


def _split(schema: Schema, tune: Tune) -> Split:
    if tune.split != "auto":
        return tune.split
    return "time" if schema.time else "stratified"


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


def conditions(prepared: Prepared, tune: Tune, measure: Metric, seed: int) -> Conditions:
    """What makes this search's trials comparable with others."""
    schema = prepared.encoder.schema
    return Conditions(
        metric=measure.name,
        task=schema.task,
        folds=tune.folds,
        split=_split(schema, tune),
        unbalanced=tune.unbalanced,
        schema=schema.digest(),
        features=schema.columns,
        training_set=prepared.digest,
        rows=len(prepared.samples.labels),
        seed=seed,
        rounds_max=tune.rounds_max,
        patience=tune.patience,
    )


def run_search(
    experiment: str,
    prepared: Prepared,
    plan: Search,
    trials: Sequence[Trial],
    record: Callable[[Trial], None],
) -> Found:
    """The best trial, and the model on all rows with exactly what was scored; see ``find_best``."""
    with make_executor(prepared, plan, plan.settings.workers) as executor:
        best = find_best(experiment, prepared, plan, trials, record, executor)
        return Found(best, _fit(executor, best, prepared, plan), _out_of_fold(executor, best, prepared))


def find_best(
    experiment: str,
    prepared: Prepared,
    plan: Search,
    trials: Sequence[Trial],
    record: Callable[[Trial], None],
    executor: Executor,
) -> Trial:
    """The best trial of the budget. ``trials`` are all that the project has, in the order in which they were recorded."""
    tune = plan.settings
    measure = metric(tune.metric, prepared.samples.task)
    ours = conditions(prepared, tune, measure, plan.seed)
    best, given_up = search(
        _contest(plan, ours, _before(trials, experiment, digest(ours)) if tune.memory else ()),
        executor.evaluate,
        measure,
        Budget(tune.trials, tune.seconds, tune.stale),
        trials,
        record,
        Experiment(experiment, ours, tune.proposer),
        plan.clock,
        tune.workers,
        tune.prune,
    )
    if given_up:
        executor.abandon()
    return best


def _before(trials: Sequence[Trial], experiment: str, environment: str) -> Sequence[Trial]:
    """Those that were there when the experiment began, each experiment's in the order of their numbers (they end in any):
    the same each time it is resumed.
    """
    begun = next(
        (i for i, trial in enumerate(trials) if (trial.experiment, trial.environment) == (experiment, environment)), None
    )
    past = trials[:begun]
    order = {one: place for place, one in enumerate(dict.fromkeys(trial.experiment for trial in past))}
    return sorted(past, key=lambda trial: (order[trial.experiment], trial.number))


def _contest(plan: Search, ours: Conditions, past: Sequence[Trial]) -> Contest:
    proposers: dict[str, Proposer] = {}
    for name, make in plan.learners.items():
        space = make().space(cast(Task, ours.task))
        recalled = recall(past, name, space, ours.metric, cast(Task, ours.task))
        if recalled.retry:
            known = Space(space.dimensions, space.fixed)
            # The project's own would draw the points of the first experiment again; NumPy's seeds end at 2**32.
            seed = (plan.seed + len(past)) % 2**32
            proposers[name] = Remembering(plan.proposer(known, seed), recalled, RandomProposer(known, seed + 1))
        else:
            proposers[name] = plan.proposer(space, plan.seed)
    return Contest(proposers)


def refit(best: Trial, prepared: Prepared, plan: Search) -> Fitted:
    """A model on other rows, with exactly what was scored; in a worker too, so that it gives way as the trials do."""
    with make_executor(prepared, plan, workers=1) as executor:
        return _fit(executor, best, prepared, plan)


def make_executor(prepared: Prepared, plan: Search, workers: int) -> Executor:
    """For the prepared rows and the plan's learners."""
    tune, samples = plan.settings, prepared.samples
    work = Work(
        plan.learners,
        metric(tune.metric, samples.task).name,
        plan.seed,
        tune.rounds_max,
        tune.patience,
        memory_bytes=plan.memory_bytes,
    )
    return plan.executor(samples, prepared.folds, work, min(workers, tune.trials))


def _fit(executor: Executor, best: Trial, prepared: Prepared, plan: Search) -> Fitted:
    model = plan.learners[best.learner]().load(executor.fit(best.learner, best.parameters, best.rounds))
    return fitted(model, prepared, best.threshold)


def fitted(model: Model, prepared: Prepared, threshold: float = 0.5) -> Fitted:
    """The model with evenly spaced golden rows of its training set."""
    matrix = prepared.samples.matrix
    golden = matrix[:: max(1, len(matrix) // GOLDEN_ROWS)][:GOLDEN_ROWS]
    return Fitted(model, threshold, prepared.encoder, golden, len(matrix), prepared.digest)


def _out_of_fold(executor: Executor, best: Trial, prepared: Prepared) -> OutOfFold:
    predictions = executor.out_of_fold(best.learner, best.parameters, best.rounds)
    return OutOfFold(prepared.samples.labels, predictions)


def judge(
    challenger: Fitted, champion: Bundle, held: Observed, measure: Metric, confidence: float, seed: int
) -> Comparison | None:
    """Both models on the same held-out observations, each from the stored bytes, as it answers.

    None where no held-out row can be read by both. Raises ``ConfigError`` for a label that the schema does not have.
    """
    ours = MatrixDecoder(challenger.encoder).decode(held.features)
    theirs = MatrixDecoder(champion.encoder).decode(held.features)
    both = sorted(set(ours.rows) & set(theirs.rows))
    if not both:
        return None
    labels = _labels(champion.schema, [held.outcomes[i] for i in both])
    challenging = measure.at(_predict(challenger.model, ours, both), challenger.threshold)
    defending = measure.at(_predict(champion.model, theirs, both), champion.threshold)
    return compare(labels, challenging, defending, measure, confidence, seed)


def _predict(model: Model, decoded: DecodedMatrix, wanted: list[int]) -> NDArray[np.float64]:
    """Predictions for the rows that are wanted, of those that were decoded."""
    return model.predict(decoded.encoded.matrix)[np.searchsorted(decoded.rows, wanted)]


def comparable(champion: Schema, challenger: Schema) -> bool:
    """Whether both answer the same question."""
    return (champion.task, champion.classes) == (challenger.task, challenger.classes)
