"""CatBoost: one training a fold, held after each round so that all stop jointly; the model is its binary format, ``cbm``.

Its JSON would be text, but its sums differ in the last bit. A model knows the codes of its training rows by an entry of its
metadata, and answers any other like a missing value.
"""

import functools
import queue
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.metrics import Metric
from tidemill.core.schema import Task
from tidemill.core.space import Choice, Integer, Real, Space
from tidemill.errors import BundleRefused
from tidemill.imports import hidden
from tidemill.learners.base import Fold, Matrix, Model, Parameters, Samples, Scored, Terms, grown, taken
from tidemill.learners.inputs import Codes, check_width, float32

LOSSES: dict[Task, str] = {"binary": "Logloss", "multiclass": "MultiClass", "regression": "RMSE"}

OWN_METRICS = {
    "log_loss": "Logloss",
    "brier": "BrierScore",
    "auc": "AUC",
    "average_precision": "PRAUC",
    "accuracy": "Accuracy",
    "multi_log_loss": "MultiClass",
    "macro_f1": "TotalF1:average=Macro",
    "rmse": "RMSE",
    "mse": "RMSE",
    "mae": "MAE",
    "r2": "R2",
}
"""Nobody else sees a model while it is trained, so the best round is found by these. Scores are always by ``Metric``."""

PINNED = {"learning_rate": 0.1, "max_ctr_complexity": 1, "boosting_type": "Plain"}
LEAF_STEPS: dict[Task, int] = {"binary": 10, "multiclass": 1, "regression": 1}
"""With these, what CatBoost would choose by the number of rounds that it is asked for: a refit would not be what was scored.
As it chooses from 500 rounds on, but without combinations of categories, which double the time for 0.0015 of log loss
(Adult, 10,000 rows).
"""

ABOUT = "tidemill"
_NOT_KEPT = ("train_finish_time", "model_guid", "training", "output_options")
"""Metadata that differ between two trainings of one model, or tell of files that were not written."""
_NOT_NEEDED = ("pandas", "pyarrow", "plotly", "matplotlib", "graphviz", "sklearn", "IPython")


class _About(Struct, frozen=True):
    """What a model tells of itself in its metadata."""

    task: Task
    classes: int
    features: int
    codes: str


@functools.cache
def _library() -> ModuleType:
    """The library, without what it would import only because it is installed (Polars it does not miss gracefully).

    Measured: 3.6 s and 162 MB as it comes, 2.8 s and 98 MB so.
    """
    with hidden(*_NOT_NEEDED):
        import catboost
    module: ModuleType = catboost
    return module


class CatBoostModel:
    """One model, made from its bytes."""

    engine = "catboost"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._model = _library().CatBoost()
        self._model.load_model(blob=data)
        self._about = msgspec.json.decode(self._model.get_metadata()[ABOUT], type=_About)
        self._pools = _Pools(self._about.features, Codes.from_text(self._about.codes))

    def predict(self, matrix: Matrix) -> NDArray[np.float64]:
        """One thread: on small batches more only cost. Raises ``ValueError`` for a matrix of another width."""
        check_width(matrix, self._about.features)
        if len(matrix) == 0:
            return np.empty((0, self._about.classes) if self._about.task == "multiclass" else 0)
        return _predictions(self._model, self._pools.of(matrix), self._about.task)

    def to_bytes(self) -> bytes:
        return self._data

    def edge_rows(self) -> Matrix:
        return np.empty((0, self._about.features))

    def faster(self) -> None:
        return None

    def importances(self) -> NDArray[np.float64]:
        found = np.empty(self._about.features)
        found[self._pools.order] = self._model.get_feature_importance(thread_count=1)
        return found


class CatBoost:
    """The learner ``catboost``. The library is imported on first use."""

    name = "catboost"

    def space(self, task: Task) -> Space:
        """The first point is CatBoost's defaults, and what is pinned. Ordered boosting takes four times as long, and the log
        loss on Adult (10,000 rows) from 0.291 to 0.286.
        """
        return Space(
            {
                "learning_rate": Real(0.07, 0.3, log=True),
                "depth": Integer(4, 8),
                "l2_leaf_reg": Real(1.0, 30.0, log=True),
                "random_strength": Real(0.1, 10.0, log=True),
                "rsm": Real(0.4, 1.0),
                "subsample": Real(0.5, 1.0),
                "one_hot_max_size": Integer(2, 64, log=True),
                "boosting_type": Choice(("Plain", "Ordered")),
            },
            first={
                "learning_rate": 0.1,
                "depth": 6,
                "l2_leaf_reg": 3.0,
                "random_strength": 1.0,
                "rsm": 1.0,
                "subsample": 0.8,
                "one_hot_max_size": 2,
                "boosting_type": "Plain",
            },
        )

    def cross_validate(
        self, samples: Samples, folds: Sequence[Fold], parameters: Parameters, metric: Metric, terms: Terms
    ) -> Scored:
        full = _full_parameters(samples, parameters, terms.rounds_max, terms.seed, terms.threads)
        full["eval_metric"] = OWN_METRICS[metric.grows_by.name]
        with ExitStack() as stack:

            def start(fold: Fold) -> _GrowingFold:
                growing = _GrowingFold(samples, fold, full)
                stack.callback(growing.close)
                return growing

            return grown(start, samples, folds, metric, terms)

    def fit(self, samples: Samples, parameters: Parameters, rounds: int, seed: int, threads: int) -> Model:
        codes, features = Codes.of(samples.matrix, samples.categorical), samples.matrix.shape[1]
        model = _library().CatBoost(_full_parameters(samples, parameters, rounds, seed, threads))
        model.fit(_Pools(features, codes).of(samples.matrix, samples.labels, samples.weights, threads))
        return self.load(_to_bytes(model, _About(samples.task, samples.classes, features, codes.to_text())))

    def load(self, data: bytes) -> Model:
        return self.load_reference(data)

    def load_checked(self, data: bytes) -> Model | None:
        return None

    def load_reference(self, data: bytes) -> Model:
        """``BundleRefused`` where it is no model; a damaged one may also end the process."""
        try:
            return CatBoostModel(data)
        except (_library().CatBoostError, msgspec.MsgspecError, UnicodeDecodeError, KeyError) as error:
            raise BundleRefused(f"not a CatBoost model: {error}") from error

    def importances(self, data: bytes) -> NDArray[np.float64]:
        """CatBoost's own: by how much the predictions change with the column, of 100 for all together."""
        return CatBoostModel(data).importances()


def _full_parameters(samples: Samples, parameters: Parameters, rounds: int, seed: int, threads: int) -> dict[str, Any]:
    """What CatBoost is given, for scoring and for the final fit alike."""
    full = {
        "loss_function": LOSSES[samples.task],
        "leaf_estimation_iterations": LEAF_STEPS[samples.task],
        "iterations": rounds,
        "bootstrap_type": "MVS",
        "random_seed": seed,
        "thread_count": threads,
        "allow_writing_files": False,
        "logging_level": "Silent",
        **PINNED,
        **parameters,
    }
    if samples.task == "multiclass":
        full["classes_count"] = samples.classes
    return full


class _Pools:
    """Rows as CatBoost takes them: numbers first, as float32, then categories as texts, one of which stands for all codes
    that the model has not learnt from.
    """

    def __init__(self, features: int, codes: Codes) -> None:
        self._codes = codes
        self._numbers = [column for column in range(features) if column not in codes.columns]
        self._texts = {column: _texts(codes[column]) for column in codes.columns}
        self.order = [*self._numbers, *codes.columns]

    def of(
        self,
        matrix: Matrix,
        labels: NDArray[np.float64] | None = None,
        weights: NDArray[np.float64] | None = None,
        threads: int = 1,
    ) -> Any:
        numbers = float32(matrix[:, self._numbers]) if self._numbers else None
        texts = [found[self._codes.places(column, matrix[:, column])] for column, found in self._texts.items()]
        data = _library().FeaturesData(numbers, np.column_stack(texts) if texts else None)
        return _library().Pool(data, labels, weight=weights, thread_count=threads)


def _texts(codes: NDArray[np.float64]) -> NDArray[np.object_]:
    return np.array([*(b"%d" % int(code) for code in codes), b"other"], dtype=np.object_)


def _predictions(model: Any, pool: Any, task: Task, rounds: int = 0) -> NDArray[np.float64]:
    """After so many rounds; 0 are all."""
    kind = "RawFormulaVal" if task == "regression" else "Probability"
    found: NDArray[np.float64] = model.predict(pool, prediction_type=kind, ntree_end=rounds, thread_count=1)
    return np.ascontiguousarray(found[:, 1]) if task == "binary" else found


def _to_bytes(model: Any, about: _About) -> bytes:
    """The same for the same model, whenever and wherever it was trained."""
    metadata = model.get_metadata()
    for name in _NOT_KEPT:
        del metadata[name]
    metadata[ABOUT] = msgspec.json.encode(about).decode()
    with tempfile.TemporaryDirectory(prefix="tidemill-catboost-") as folder:
        file = Path(folder) / "model.cbm"
        model.save_model(str(file))
        return file.read_bytes()


class _GrowingFold:
    """A fold's model as CatBoost trains it; see ``_Training``. It must be closed."""

    def __init__(self, samples: Samples, fold: Fold, full: dict[str, Any]) -> None:
        rows, scored = fold
        train = taken(samples, rows)
        pools = _Pools(samples.matrix.shape[1], Codes.of(train.matrix, samples.categorical))
        threads = full["thread_count"]
        self._train = pools.of(train.matrix, train.labels, train.weights, threads)
        self._held = pools.of(samples.matrix[scored], samples.labels[scored], threads=threads)
        self._task = samples.task
        self._parameters = full
        self._training = self._begin()

    def _begin(self) -> "_Training":
        self._scores: list[float] = []
        return _Training(self._parameters, self._train, self._held)

    def score(self, rounds: int) -> float:
        """Of the last round where CatBoost has ended before. After ``predict`` it begins anew, and scores the same."""
        if rounds > len(self._scores) and self._training.closing:
            self._training = self._begin()
        while len(self._scores) < rounds and (score := self._training.next_score()) is not None:
            self._scores.append(score)
        return self._scores[min(rounds, len(self._scores)) - 1]

    def predict(self, rounds: int) -> NDArray[np.float64]:
        self.close()
        return _predictions(self._training.model, self._held, self._task, rounds)

    def close(self) -> None:
        self._training.close()


class _Training:
    """A training in a thread of its own: CatBoost cannot be asked for one more round, but calls back after each, and is held
    there until the next is asked for. So of all folds one works at a time. ``model`` may be used once it is closed.
    """

    def __init__(self, full: dict[str, Any], train: Any, held: Any) -> None:
        self.model = _library().CatBoost(full)
        self.closing = False
        self._pools = train, held
        self._metric = full["eval_metric"]
        self._asked = threading.Semaphore(0)
        self._told: queue.SimpleQueue[float | BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="catboost", daemon=True)
        self._thread.start()

    def next_score(self) -> float | None:
        """The metric after one more round; None where there are no more. Raises what CatBoost does."""
        self._asked.release()
        told = self._told.get()
        if isinstance(told, BaseException):
            raise told
        if told is None:
            self._told.put(None)  # for whoever asks again
        return told

    def close(self) -> None:
        """End it after the round that it is at; may be called again."""
        self.closing = True
        self._asked.release()
        self._thread.join()

    def _work(self) -> None:
        self._asked.acquire()
        if self.closing:
            return
        train, held = self._pools
        try:
            self.model.fit(train, eval_set=held, use_best_model=False, callbacks=[self])
            self._told.put(None)
        except BaseException as error:
            self._told.put(error)

    def after_iteration(self, info: Any) -> bool:
        """CatBoost's callback: whether to go on, once that is known."""
        self._told.put(info.metrics["validation"][self._metric][-1])
        self._asked.acquire()
        return not self.closing
