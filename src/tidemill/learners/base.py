"""A learner turns a training set into a model, and scores hyper-parameters by cross-validation."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from tidemill.core.metrics import Metric, best_threshold
from tidemill.core.pruning import hopeless
from tidemill.core.schema import Task
from tidemill.core.space import Space

Matrix = NDArray[np.float64]
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Row numbers to train on, row numbers to score."""
Parameters = dict[str, Any]


class Samples(Struct, frozen=True):
    """Rows to learn from: ``matrix`` float64[n, k] (NaN = missing, categories as codes from 0), ``labels`` float64[n] (class
    numbers from 0, or values), ``weights`` float64[n] or None, ``columns`` k names, ``categorical`` numbers of the columns
    that hold codes, ``classes`` how many labels there are (0 for a regression).
    """

    matrix: Matrix
    labels: NDArray[np.float64]
    weights: NDArray[np.float64] | None
    columns: tuple[str, ...]
    categorical: tuple[int, ...]
    task: Task
    classes: int


class Scored(Struct, frozen=True):
    """What a cross-validation found: the metric on each fold at ``rounds``, where the folds' mean was best.

    Where it was ``pruned``, all is of the first fold alone. A metric that decides is scored with the ``threshold`` that is
    best for the folds together.
    """

    fold_scores: list[float]
    score: float
    rounds: int
    pruned: bool = False
    threshold: float = 0.5


class Terms(Struct, frozen=True):
    """How a cross-validation is run: all folds stop once their mean has not improved for ``patience`` rounds, at
    ``rounds_max`` at the latest.

    With a ``bar`` the first fold is trained alone until it has not improved for as long, or is hopeless
    (``core/pruning.py``); where its loss is above the bar, that is all. Else the result is the same as without.
    """

    seed: int = 0
    threads: int = 1
    rounds_max: int = 2000
    patience: int = 30
    bar: float | None = None


class Model(Protocol):
    """Immutable; used by one thread at a time. ``engine`` says what computes its answers: all give the same bits."""

    @property
    def engine(self) -> str: ...

    def predict(self, matrix: Matrix) -> NDArray[np.float64]:
        """float64[n]: the probability of the second class (binary) or the value (regression); float64[n, classes] for
        multiclass.
        """
        ...

    def to_bytes(self) -> bytes:
        """The model in the learner's own text format; ``Learner.load`` of it predicts the same bits."""
        ...

    def edge_rows(self) -> Matrix:
        """float64[n, k]: values beside every limit at which the model tells values apart, missing and unseen ones, to hold
        one engine against another. No rows where the engine does not know.
        """
        ...

    def faster(self) -> "Model | None":
        """The same model on the fastest engine that this machine has, or None where this is it. May take a while the first
        time: call it beside serving.
        """
        ...


class Learner(Protocol):
    """A kind of model. Stateless: every choice is an argument, so what was scored can be fitted again."""

    name: str

    def space(self, task: Task) -> Space:
        """The hyper-parameters that are tuned unless the project says otherwise."""
        ...

    def cross_validate(
        self, samples: Samples, folds: Sequence[Fold], parameters: Parameters, metric: Metric, terms: Terms
    ) -> Scored:
        """Train on each fold, all stopped jointly; see ``Terms``."""
        ...

    def fit(self, samples: Samples, parameters: Parameters, rounds: int, seed: int, threads: int) -> Model:
        """Train on all rows with exactly what ``cross_validate`` scored: parameters, weights, seed, and its rounds."""
        ...

    def load(self, data: bytes) -> Model:
        """A model from ``Model.to_bytes``. The bytes must be trusted: verify their hash first."""
        ...

    def load_checked(self, data: bytes) -> Model | None:
        """The same from bytes that nobody vouches for, ready at once: ``BundleRefused`` where they are damaged, None where
        only the library itself can tell.
        """
        ...

    def load_reference(self, data: bytes) -> Model:
        """The same by the library's own parser and predict, which say what every engine must answer. The bytes must be
        trusted: a damaged model may end the process.
        """
        ...

    def importances(self, data: bytes) -> NDArray[np.float64]:
        """float64[k]: what each column of the matrix brought to the model of these trusted bytes, never below 0, and 0 where
        it is not used. In the learner's own unit (of trees what their splits gained), so only shares of the sum compare.
        """
        ...


def taken(samples: Samples, rows: NDArray[np.intp]) -> Samples:
    """Some of the rows, with their weights."""
    weights = None if samples.weights is None else samples.weights[rows]
    return structs.replace(samples, matrix=samples.matrix[rows], labels=samples.labels[rows], weights=weights)


def out_of_fold(
    learner: Learner,
    samples: Samples,
    folds: Sequence[Fold],
    parameters: Parameters,
    rounds: int,
    seed: int,
    threads: int,
) -> NDArray[np.float64]:
    """float64[n] or float64[n, classes]: for each row the prediction of a model that has not learnt from it, as
    ``cross_validate`` scored them; NaN for rows that no fold scores.
    """
    wide = (samples.classes,) if samples.task == "multiclass" else ()
    found = np.full((len(samples.labels), *wide), np.nan)
    for rows, scored in folds:
        model = learner.fit(taken(samples, rows), parameters, rounds, seed, threads)
        found[scored] = model.predict(samples.matrix[scored])
    return found


class GrowingFold(Protocol):
    """A model of one fold that learns round by round, as far as it is asked about."""

    def score(self, rounds: int) -> float:
        """The metric ``grows_by`` on the fold's other rows after so many rounds; asked for 1, 2, 3 ..."""
        ...

    def predict(self, rounds: int) -> NDArray[np.float64]:
        """The predictions for these rows after so many rounds, as a model's."""
        ...


class FittedFold:
    """A fold of a learner without rounds: fitted at once, and the same after any number of them."""

    def __init__(self, samples: Samples, fold: Fold, metric: Metric, fit: Callable[[Samples], Model]) -> None:
        rows, scored = fold
        self._predictions = fit(taken(samples, rows)).predict(samples.matrix[scored])
        self._score = metric.function(samples.labels[scored], self._predictions)

    def score(self, rounds: int) -> float:
        return self._score

    def predict(self, rounds: int) -> NDArray[np.float64]:
        return self._predictions


def grown(
    make: Callable[[Fold], GrowingFold],
    samples: Samples,
    folds: Sequence[Fold],
    metric: Metric,
    terms: Terms,
) -> Scored:
    """``Learner.cross_validate`` for a learner that learns in rounds; ``make`` begins a fold's model. All folds stop
    together: stopping each alone shifts losses by up to 0.0015.
    """
    growing = [make(folds[0])]
    by = metric.grows_by
    if terms.bar is not None:
        rounds = best_rounds(growing, by, terms, terms.bar if by is metric else math.inf)
        alone = scored_folds(metric, samples, folds[:1], [growing[0].predict(rounds)], rounds, pruned=True)
        if metric.loss(alone.score) > terms.bar:
            return alone
    growing += [make(fold) for fold in folds[1:]]
    rounds = best_rounds(growing, by, terms)
    return scored_folds(metric, samples, folds, [fold.predict(rounds) for fold in growing], rounds)


def fitted_at_once(
    learner: Learner, samples: Samples, folds: Sequence[Fold], parameters: Parameters, metric: Metric, terms: Terms
) -> Scored:
    """``Learner.cross_validate`` for a learner without rounds: ``rounds`` is 1."""

    def fit(part: Samples) -> Model:
        return learner.fit(part, parameters, 1, terms.seed, terms.threads)

    once = structs.replace(terms, rounds_max=1)
    return grown(lambda fold: FittedFold(samples, fold, metric.grows_by, fit), samples, folds, metric, once)


def best_rounds(folds: Sequence[GrowingFold], metric: Metric, terms: Terms, bar: float = math.inf) -> int:
    """Grow until the folds' mean has not improved for ``patience`` rounds, or will stay above the bar; where it was best."""
    best, lowest = 1, math.inf
    fallen: list[float] = []
    for number in range(1, terms.rounds_max + 1):
        loss = metric.loss(float(np.mean([fold.score(number) for fold in folds])))
        if loss < lowest:
            best, lowest = number, loss
        fallen.append(lowest)
        if number - best >= terms.patience or hopeless(fallen, bar):
            break
    return best


def scored_folds(
    metric: Metric,
    samples: Samples,
    folds: Sequence[Fold],
    predictions: Sequence[NDArray[np.float64]],
    rounds: int,
    pruned: bool = False,
) -> Scored:
    """The metric on each fold's scored rows, given their predictions; ``ValueError`` where it is not defined on one."""
    labels = [samples.labels[scored] for _, scored in folds]
    threshold = best_threshold(np.concatenate(labels), np.concatenate(predictions)) if metric.decides else 0.5
    pairs = zip(labels, predictions, strict=True)
    scores = [metric.function(true, metric.at(found, threshold)) for true, found in pairs]
    mean = float(np.mean(scores))
    if not np.isfinite(mean):
        raise ValueError(f"{metric.name} is not defined on some fold: {scores}")
    return Scored(scores, mean, rounds, pruned, threshold)
