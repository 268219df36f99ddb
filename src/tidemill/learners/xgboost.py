"""XGBoost, by its native interface: one Booster a fold, stopped jointly; the model is its JSON.

XGBoost sends a category that a node does not name to the left, a missing value wherever it learnt to. A model knows the
codes of its training rows by an attribute in its JSON, and answers any other like a missing value.
"""

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.metrics import Metric
from tidemill.core.schema import Task
from tidemill.core.space import Integer, Real, Space
from tidemill.errors import BundleRefused
from tidemill.imports import hidden
from tidemill.learners.base import Fold, Matrix, Model, Parameters, Samples, Scored, Terms, grown
from tidemill.learners.inputs import Codes, check_width, float32

OBJECTIVES: dict[Task, str] = {
    "binary": "binary:logistic",
    "multiclass": "multi:softprob",
    "regression": "reg:squarederror",
}

OWN_METRICS = {"log_loss": "logloss", "auc": "auc", "multi_log_loss": "mlogloss", "rmse": "rmse", "mae": "mae"}
"""What XGBoost computes itself, at a fifth of the cost, to find the best round. Scores are always by ``Metric``."""

CODES = "tidemill_codes"
_NOT_NEEDED = ("pandas", "sklearn", "dask", "matplotlib", "graphviz", "pyarrow")


class _Shape(Struct):
    num_feature: str
    num_class: str


class _Contents(Struct):
    attributes: dict[str, str]
    learner_model_param: _Shape


class _File(Struct):
    """What is looked at of XGBoost's JSON before XGBoost sees it: it ends the process where that is no JSON object."""

    learner: _Contents
    version: list[int]


@functools.cache
def _library() -> ModuleType:
    """The library, without what it would import only because it is installed.

    Measured: 6 s and 193 MB as it comes, 1.1 s and 64 MB so.
    """
    with hidden(*_NOT_NEEDED):
        import xgboost
    return xgboost


class XGBoostModel:
    """One Booster, made from its JSON."""

    engine = "xgboost"

    def __init__(self, data: bytes, shape: _Shape, codes: Codes) -> None:
        self._data = data
        self._codes = codes
        self._features, self._classes = int(shape.num_feature), int(shape.num_class)
        self._booster = _library().Booster({"nthread": 1, "verbosity": 0}, model_file=bytearray(data))

    def predict(self, matrix: Matrix) -> NDArray[np.float64]:
        """One thread: on small batches more only cost. Raises ``ValueError`` for a matrix of another width."""
        check_width(matrix, self._features)
        if len(matrix) == 0:
            return np.empty((0, self._classes) if self._classes else 0)
        found: NDArray[np.float32] = self._booster.inplace_predict(float32(self._codes.known(matrix)))
        return found.astype(np.float64)

    def to_bytes(self) -> bytes:
        return self._data

    def edge_rows(self) -> Matrix:
        return np.empty((0, self._features))

    def faster(self) -> None:
        return None


class XGBoost:
    """The learner ``xgboost``. The library is imported on first use."""

    name = "xgboost"

    def space(self, task: Task) -> Space:
        """The first point is XGBoost's defaults, but for zeros, which a logarithmic scale does not have, and for a learning
        rate of 0.3: 0.1 takes the log loss from 0.297 to 0.292 (Adult, 10,000 rows) in twice the time.
        """
        return Space(
            {
                "learning_rate": Real(0.05, 0.3, log=True),
                "max_depth": Integer(3, 10),
                "min_child_weight": Real(0.5, 50.0, log=True),
                "alpha": Real(1e-3, 1.0, log=True),
                "lambda": Real(1e-2, 10.0, log=True),
                "colsample_bytree": Real(0.4, 1.0),
                "subsample": Real(0.5, 1.0),
                "max_cat_to_onehot": Integer(2, 64, log=True),
            },
            first={
                "learning_rate": 0.1,
                "max_depth": 6,
                "min_child_weight": 1.0,
                "alpha": 1e-3,
                "lambda": 1.0,
                "colsample_bytree": 1.0,
                "subsample": 1.0,
                "max_cat_to_onehot": 4,
            },
        )

    def cross_validate(
        self, samples: Samples, folds: Sequence[Fold], parameters: Parameters, metric: Metric, terms: Terms
    ) -> Scored:
        by = metric.grows_by
        full = _full_parameters(samples, parameters, terms.seed, terms.threads)
        if by.name in OWN_METRICS:
            full["eval_metric"] = OWN_METRICS[by.name]
        return grown(lambda fold: _GrowingFold(samples, fold, full, by), samples, folds, metric, terms)

    def fit(self, samples: Samples, parameters: Parameters, rounds: int, seed: int, threads: int) -> Model:
        codes = Codes.of(samples.matrix, samples.categorical)
        data = _data(samples, slice(None), codes, threads, samples.weights)
        booster = _library().Booster(_full_parameters(samples, parameters, seed, threads), [data])
        for number in range(rounds):
            booster.update(data, number)
        booster.set_attr(**{CODES: codes.to_text()})
        return self.load(bytes(booster.save_raw("json")))

    def load(self, data: bytes) -> Model:
        return self.load_reference(data)

    def load_checked(self, data: bytes) -> Model | None:
        return None

    def load_reference(self, data: bytes) -> Model:
        """``BundleRefused`` where it is no model; a damaged one may also end the process."""
        try:
            contents = msgspec.json.decode(data, type=_File).learner
            codes = Codes.from_text(contents.attributes[CODES])
            return XGBoostModel(data, contents.learner_model_param, codes)
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, ValueError) as error:
            raise BundleRefused(f"not an XGBoost model: {error}") from error

    def importances(self, data: bytes) -> NDArray[np.float64]:
        """What the splits of each column gained."""
        booster = _library().Booster(model_file=bytearray(data))
        found = booster.get_score(importance_type="total_gain")
        return np.array([found.get(f"f{column}", 0.0) for column in range(booster.num_features())])


def _full_parameters(samples: Samples, parameters: Parameters, seed: int, threads: int) -> dict[str, Any]:
    """What XGBoost is given, for scoring and for the final fit alike.

    All Boosters of a thread draw from one generator. So that a fold draws the same rows beside others and alone, it is
    seeded anew each round.
    """
    full = {
        "objective": OBJECTIVES[samples.task],
        "seed": seed,
        "seed_per_iteration": True,
        "nthread": threads,
        "verbosity": 0,
        **parameters,
    }
    if samples.task == "multiclass":
        full["num_class"] = samples.classes
    return full


def _data(samples: Samples, rows: Any, codes: Codes, threads: int, weights: NDArray[np.float64] | None) -> Any:
    """Some of the rows, as XGBoost takes them."""
    return _library().DMatrix(
        float32(codes.known(samples.matrix[rows])),
        samples.labels[rows],
        weight=None if weights is None else weights[rows],
        feature_types=["c" if column in samples.categorical else "q" for column in range(len(samples.columns))],
        enable_categorical=True,
        nthread=threads,
    )


class _GrowingFold:
    """A Booster on the fold's training rows, and the others, which have no weights: a score counts rows."""

    def __init__(self, samples: Samples, fold: Fold, full: dict[str, Any], metric: Metric) -> None:
        rows, scored = fold
        codes = Codes.of(samples.matrix[rows], samples.categorical)
        self._train = _data(samples, rows, codes, full["nthread"], samples.weights)
        self._held = _data(samples, scored, codes, full["nthread"], None)
        self._booster = _library().Booster(full, [self._train, self._held])
        self._labels, self._metric = samples.labels[scored], metric
        self._scores: list[float] = []

    def score(self, rounds: int) -> float:
        while len(self._scores) < rounds:
            self._booster.update(self._train, len(self._scores))
            self._scores.append(self._evaluation())
        return self._scores[rounds - 1]

    def _evaluation(self) -> float:
        """XGBoost tells its own metric as text, ``[0]  fold-auc:0.75``, with all digits."""
        if self._metric.name not in OWN_METRICS:
            return self._metric.function(self._labels, self.predict(len(self._scores) + 1))
        text: str = self._booster.eval_set([(self._held, "fold")])
        return float(text.rpartition(":")[2])

    def predict(self, rounds: int) -> NDArray[np.float64]:
        found: NDArray[np.float32] = self._booster.predict(self._held, iteration_range=(0, rounds))
        return found.astype(np.float64)
