"""A learner turns a training set into a model, and scores hyper-parameters by cross-validation."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.metrics import Metric
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
    """What a cross-validation found: the metric on each fold at ``rounds``, where the folds' mean was best."""

    fold_scores: list[float]
    score: float
    rounds: int


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
        self,
        samples: Samples,
        folds: Sequence[Fold],
        parameters: Parameters,
        metric: Metric,
        seed: int,
        threads: int,
        rounds_max: int,
        patience: int,
    ) -> Scored:
        """Train on each fold, all stopped jointly once the folds' mean has not improved for ``patience`` rounds."""
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
