"""LightGBM, by its native interface: one Booster a fold, stopped jointly; the model is its text.

A model is scored from a table (``lightgbm_table.py``) without the library, unless it holds what the table does not do.
"""

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from tidemill.core.metrics import Metric
from tidemill.core.schema import Task
from tidemill.core.space import Integer, Real, Space
from tidemill.errors import BundleRefused
from tidemill.imports import hidden
from tidemill.learners.base import Fold, Matrix, Model, Parameters, Samples, Scored, Terms, grown
from tidemill.learners.inputs import check_width
from tidemill.learners.lightgbm_table import NumpyScorer, Scorer, Table, answers, build_table, edge_rows
from tidemill.learners.lightgbm_text import NotForTable, read_forest

OBJECTIVES: dict[Task, str] = {"binary": "binary", "multiclass": "multiclass", "regression": "regression"}

OWN_METRICS = {
    "log_loss": "binary_logloss",
    "auc": "auc",
    "average_precision": "average_precision",
    "multi_log_loss": "multi_logloss",
    "rmse": "rmse",
    "mse": "l2",
    "mae": "l1",
}
"""What LightGBM computes itself, at a fraction of the cost, to find the best round. Scores are always by ``Metric``."""

_NOT_NEEDED = ("pandas", "sklearn", "dask", "matplotlib", "graphviz", "pyarrow", "cffi")

logger = structlog.get_logger()


@functools.cache
def _library() -> ModuleType:
    """The library, without what its ``compat`` module would pull in where it is installed.

    Measured: 5.5 s and 191 MB as it comes, 0.95 s and 61 MB so.
    """
    with hidden(*_NOT_NEEDED):
        import lightgbm
    return lightgbm


class LightGBMModel:
    """One Booster, made from its text. Use it in one thread: LightGBM's own locks are not proof (its issue 6142)."""

    engine = "lightgbm"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._booster = _library().Booster(model_str=data.decode())

    def predict(self, matrix: Matrix) -> NDArray[np.float64]:
        """One thread: on small batches more only cost."""
        if len(matrix) == 0:
            classes = self._booster.num_model_per_iteration()
            return np.empty((0, classes) if classes > 1 else 0)
        found: NDArray[np.float64] = self._booster.predict(matrix, num_threads=1)
        return found

    def to_bytes(self) -> bytes:
        return self._data

    def edge_rows(self) -> Matrix:
        return np.empty((0, self._booster.num_feature()))

    def faster(self) -> None:
        return None


class TableModel:
    """A table and what adds up its leaves."""

    def __init__(self, data: bytes, table: Table, scorer: Scorer) -> None:
        self.engine = scorer.engine
        self._data = data
        self._table = table
        self._scorer = scorer

    def predict(self, matrix: Matrix) -> NDArray[np.float64]:
        """Raises ``ValueError`` for a matrix of another width."""
        forest = self._table.forest
        check_width(matrix, forest.features)
        if len(matrix) == 0:
            return np.empty((0, forest.outputs) if forest.outputs > 1 else 0)
        return answers(forest, self._scorer(matrix), self._scorer.exp)

    def to_bytes(self) -> bytes:
        return self._data

    def edge_rows(self) -> Matrix:
        return edge_rows(self._table)

    def faster(self) -> "TableModel | None":
        """With the extra ``fast``; None without it, or where its compiler does not know this machine."""
        if not isinstance(self._scorer, NumpyScorer):
            return None
        try:
            from tidemill.learners.lightgbm_fast import CompiledScorer

            return TableModel(self._data, self._table, CompiledScorer(self._table))
        except ModuleNotFoundError:
            return None
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            logger.warning("compiler_unusable", reason=f"{type(error).__name__}: {error}")
            return None


class LightGBM:
    """The learner ``lightgbm``. The library is imported on first use."""

    name = "lightgbm"

    def space(self, task: Task) -> Space:
        """The learning rate stays near 0.1: lower ones cost in proportion and gain little. Measured on Adult (32,561 rows, 3
        folds, one thread): 1 to 3 s a trial, 1.9 s on average. The first point is
        LightGBM's defaults, which few trials beat.
        """
        return Space(
            {
                "learning_rate": Real(0.07, 0.2, log=True),
                "num_leaves": Integer(8, 64, log=True),
                "min_data_in_leaf": Integer(5, 200, log=True),
                "lambda_l1": Real(1e-3, 1.0, log=True),
                "lambda_l2": Real(1e-3, 10.0, log=True),
                "feature_fraction": Real(0.4, 1.0),
                "bagging_fraction": Real(0.5, 1.0),
                "cat_smooth": Real(1.0, 100.0, log=True),
                "cat_l2": Real(1.0, 100.0, log=True),
            },
            fixed={"bagging_freq": 1},
            first={
                "learning_rate": 0.1,
                "num_leaves": 31,
                "min_data_in_leaf": 20,
                "lambda_l1": 1e-3,
                "lambda_l2": 1e-3,
                "feature_fraction": 1.0,
                "bagging_fraction": 1.0,
                "cat_smooth": 10.0,
                "cat_l2": 10.0,
            },
        )

    def cross_validate(
        self, samples: Samples, folds: Sequence[Fold], parameters: Parameters, metric: Metric, terms: Terms
    ) -> Scored:
        by = metric.grows_by
        full = _full_parameters(samples, parameters, terms.seed, terms.threads)
        full["metric"] = OWN_METRICS.get(by.name, "None")
        return grown(lambda fold: _GrowingFold(samples, fold, full, by), samples, folds, metric, terms)

    def fit(self, samples: Samples, parameters: Parameters, rounds: int, seed: int, threads: int) -> Model:
        booster = _booster(samples, slice(None), _full_parameters(samples, parameters, seed, threads))
        for _ in range(rounds):
            booster.update()
        return self.load(booster.model_to_string().encode())

    def load(self, data: bytes) -> Model:
        """``BundleRefused`` where it is no model. What only LightGBM can read may end the process where it is damaged."""
        return self.load_checked(data) or self.load_reference(data)

    def load_checked(self, data: bytes) -> Model | None:
        try:
            table = build_table(read_forest(data))
        except NotForTable as error:
            logger.info("model_needs_lightgbm", reason=str(error))
            return None
        return TableModel(data, table, NumpyScorer(table))

    def load_reference(self, data: bytes) -> Model:
        """``BundleRefused`` where LightGBM says that it is no model; a damaged one may also end the process."""
        try:
            return LightGBMModel(data)
        except (_library().basic.LightGBMError, UnicodeDecodeError) as error:
            raise BundleRefused(f"not a LightGBM model: {error}") from error

    def importances(self, data: bytes) -> NDArray[np.float64]:
        """What the splits of each column gained."""
        found: NDArray[np.float64] = _library().Booster(model_str=data.decode()).feature_importance("gain")
        return found


def _full_parameters(samples: Samples, parameters: Parameters, seed: int, threads: int) -> dict[str, Any]:
    """What LightGBM is given, for scoring and for the final fit alike.

    ``bagging_fraction`` does nothing without ``bagging_freq``. The histogram's layout is fixed: else it is chosen by a race
    of two timings, and results differ in the last bits from run to run. The number of threads is one global of the library,
    which every call sets, so every call must be given it: left out once, two threads that wait by spinning took 20 times as
    long beside busy neighbours.
    """
    full = {
        "objective": OBJECTIVES[samples.task],
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": threads,
        "verbosity": -1,
        **parameters,
    }
    if samples.task == "multiclass":
        full["num_class"] = samples.classes
    if "bagging_fraction" in full:
        full.setdefault("bagging_freq", 1)
    return full


def _booster(samples: Samples, rows: Any, full: dict[str, Any]) -> Any:
    """A Booster that has learnt nothing yet, over some of the rows, with their weights."""
    weights = None if samples.weights is None else samples.weights[rows]
    library = _library()
    data = library.Dataset(
        samples.matrix[rows],
        samples.labels[rows],
        weight=weights,
        feature_name=_feature_names(samples.columns),
        categorical_feature=list(samples.categorical),
        params=full,
    )
    return library.Booster(full, data)


def _feature_names(columns: Sequence[str]) -> list[str]:
    """LightGBM refuses JSON's special characters in names, and names that are equal; the schema has the true ones."""
    return [
        f"{number}_{''.join(c if c.isascii() and c.isalnum() else '_' for c in name)}" for number, name in enumerate(columns)
    ]


class _GrowingFold:
    """A Booster on the fold's training rows that evaluates on the others; these have no weights: a score counts rows."""

    def __init__(self, samples: Samples, fold: Fold, full: dict[str, Any], metric: Metric) -> None:
        rows, scored = fold
        self._samples, self._scored = samples, scored
        self._threads = full["num_threads"]
        self._booster = _booster(samples, rows, full)
        data = self._booster.train_set.create_valid(samples.matrix[scored], samples.labels[scored], params=full)
        self._booster.add_valid(data, "fold")
        self._custom = None if metric.name in OWN_METRICS else _evaluation(metric)
        self._scores: list[float] = []

    def score(self, rounds: int) -> float:
        while len(self._scores) < rounds:
            self._booster.update()
            self._scores.append(self._booster.eval_valid(self._custom)[0][2])
        return self._scores[rounds - 1]

    def predict(self, rounds: int) -> NDArray[np.float64]:
        held = self._samples.matrix[self._scored]
        found: NDArray[np.float64] = self._booster.predict(held, num_iteration=rounds, num_threads=self._threads)
        return found


def _evaluation(metric: Metric) -> Callable[[NDArray[np.float64], Any], tuple[str, float, bool]]:
    """A metric in the shape of LightGBM's ``feval``."""
    return lambda predictions, data: (
        metric.name,
        metric.function(data.get_label().astype(np.float64), predictions),
        metric.greater_is_better,
    )
