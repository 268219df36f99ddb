"""Linear models: scikit-learn fits, the model is JSON of our own, and NumPy predicts.

A number becomes its distance from the mean in standard deviations, the median's where it is missing, and a flag that says
so. A category becomes a flag for each code that the rows held, and one for all others.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from tidemill.core.metrics import Metric
from tidemill.core.schema import Task
from tidemill.core.space import Real, Space
from tidemill.errors import BundleRefused
from tidemill.imports import hidden
from tidemill.learners.base import Fold, Matrix, Model, Parameters, Samples, Scored, Terms, fitted_at_once
from tidemill.learners.inputs import Codes, Floats, check_width
from tidemill.learners.probabilities import sigmoid, softmax

VALUE_MAX = 1e100
"""Larger values are taken for this, so that no square is infinite."""
DEVIATIONS_MAX = 1e9
"""So many standard deviations are the furthest that a value can be, so that no sum is infinite."""
TOLERANCE, STEPS_MAX = 1e-6, 1000
ABSENT = float(np.log(1e-15))
"""The intercept of a class that no row had."""

_NOT_NEEDED = ("pandas", "pyarrow", "matplotlib", "polars")


class _Number(Struct, frozen=True, tag="number", forbid_unknown_fields=True):
    """``parts`` are what a standard deviation brings to each output, and what a missing value does."""

    median: float
    mean: float
    deviation: float
    parts: list[list[float]] = []

    def distances(self, values: Floats) -> Floats:
        """From the mean, in standard deviations; the median's where the value is missing."""
        there = np.clip(np.where(np.isnan(values), self.median, values), -VALUE_MAX, VALUE_MAX)
        with np.errstate(over="ignore"):
            return np.clip((there - self.mean) / self.deviation, -DEVIATIONS_MAX, DEVIATIONS_MAX)


class _Category(Struct, frozen=True, tag="category", forbid_unknown_fields=True):
    """``codes`` rise; ``parts`` are what each of them brings to each output, and last what all others do."""

    codes: list[int]
    parts: list[list[float]] = []


_Column = _Number | _Category


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["linear"]
    task: Task
    intercepts: list[float]
    columns: list[_Column]
    importances: list[float]


class LinearModel:
    """Column by column, so that a row has the same bits however it is batched."""

    engine = "numpy"

    def __init__(self, data: bytes, file: _File) -> None:
        self._data = data
        self._file = file
        self._codes = _codes(file.columns)
        self._parts = [np.array(column.parts) for column in file.columns]

    def predict(self, matrix: Matrix) -> NDArray[np.float64]:
        """Raises ``ValueError`` for a matrix of another width."""
        check_width(matrix, len(self._parts))
        task, intercepts = self._file.task, self._file.intercepts
        if len(matrix) == 0:
            return np.empty((0, len(intercepts)) if task == "multiclass" else 0)
        sums = np.tile(intercepts, (len(matrix), 1))
        for number, (column, parts) in enumerate(zip(self._file.columns, self._parts, strict=True)):
            values = matrix[:, number]
            if isinstance(column, _Category):
                sums += parts[self._codes.places(number, values)]
            else:
                sums += column.distances(values)[:, np.newaxis] * parts[0]
                sums += np.isnan(values)[:, np.newaxis] * parts[1]
        if task == "multiclass":
            return softmax(sums)
        return sigmoid(sums[:, 0]) if task == "binary" else sums[:, 0]

    def to_bytes(self) -> bytes:
        return self._data

    def edge_rows(self) -> Matrix:
        return np.empty((0, len(self._parts)))

    def faster(self) -> None:
        return None


class Linear:
    """The learner ``linear``: logistic, or ridge regression. scikit-learn is imported on first use, and only to fit.

    It has no rounds, no chance, and one thread.
    """

    name = "linear"

    def space(self, task: Task) -> Space:
        """The first point is scikit-learn's default."""
        if task == "regression":
            return Space({"alpha": Real(1e-3, 1e3, log=True)}, first={"alpha": 1.0})
        return Space({"C": Real(1e-3, 1e3, log=True)}, first={"C": 1.0})

    def cross_validate(
        self, samples: Samples, folds: Sequence[Fold], parameters: Parameters, metric: Metric, terms: Terms
    ) -> Scored:
        return fitted_at_once(self, samples, folds, parameters, metric, terms)

    def fit(self, samples: Samples, parameters: Parameters, rounds: int, seed: int, threads: int) -> Model:
        """Raises ``ValueError`` where no finite model comes of it."""
        columns = [_column(samples.matrix[:, i], i in samples.categorical) for i in range(samples.matrix.shape[1])]
        design = _design(samples.matrix, columns)
        intercepts, slopes = _solve(design, samples, parameters)
        if not (np.isfinite(intercepts).all() and np.isfinite(slopes).all()):
            raise ValueError("the coefficients are not finite")
        ends = np.cumsum([_width(column) for column in columns])[:-1]
        parts = np.split(slopes, ends)
        weights = np.split(_deviations(design) * np.abs(slopes).sum(axis=1), ends)
        file = _File(
            "linear",
            samples.task,
            intercepts.tolist(),
            [structs.replace(column, parts=part.tolist()) for column, part in zip(columns, parts, strict=True)],
            [float(weight.sum()) for weight in weights],
        )
        return self.load(msgspec.json.encode(file))

    def load(self, data: bytes) -> Model:
        return self.load_checked(data)

    def load_checked(self, data: bytes) -> Model:
        """The format is our own: no bytes can do harm."""
        return LinearModel(data, _read(data))

    def load_reference(self, data: bytes) -> Model:
        """The same: there is no other engine."""
        return self.load_checked(data)

    def importances(self, data: bytes) -> NDArray[np.float64]:
        """How far a standard deviation of the column, or of its flags, moves the sums."""
        return np.array(_read(data).importances)


def _read(data: bytes) -> _File:
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleRefused(f"not a linear model: {error}") from error
    outputs = len(file.intercepts)
    for number, column in enumerate(file.columns):
        rising = isinstance(column, _Number) or column.codes == sorted(set(column.codes))
        if not rising or [len(part) for part in column.parts] != [outputs] * _width(column):
            raise BundleRefused(f"not a linear model: column {number} is not whole")
    if (outputs > 1) != (file.task == "multiclass") or not outputs or len(file.importances) != len(file.columns):
        raise BundleRefused(f"not a linear model: {outputs} outputs, {len(file.importances)} importances")
    return file


def _codes(columns: Sequence[_Column]) -> Codes:
    return Codes({number: column.codes for number, column in enumerate(columns) if isinstance(column, _Category)})


def _width(column: _Column) -> int:
    """How many columns of the design one of the matrix's has."""
    return 2 if isinstance(column, _Number) else len(column.codes) + 1


def _column(values: Floats, categorical: bool) -> _Column:
    """How a column is read; a number that never varies, or never is there, is 0 deviations from its mean."""
    there = values[~np.isnan(values)]
    if categorical:
        return _Category([int(code) for code in np.unique(there)])
    median = float(np.median(there)) if len(there) else 0.0
    found = np.clip(np.where(np.isnan(values), median, values), -VALUE_MAX, VALUE_MAX)
    return _Number(median, float(found.mean()), float(found.std()) or 1.0)


def _design(matrix: Matrix, columns: Sequence[_Column]) -> Any:
    """float64[n, p], sparse: of each number the distance and whether it is missing, of each category a flag a code."""
    from scipy.sparse import csr_array, hstack

    codes, rows = _codes(columns), np.arange(len(matrix))
    blocks = []
    for number, column in enumerate(columns):
        values = matrix[:, number]
        if isinstance(column, _Category):
            flags = np.ones(len(rows)), (rows, codes.places(number, values))
            blocks.append(csr_array(flags, shape=(len(rows), _width(column))))
        else:
            blocks.append(csr_array(np.column_stack([column.distances(values), np.isnan(values)])))
    return hstack(blocks, format="csr")


def _deviations(design: Any) -> Floats:
    """float64[p]: the standard deviation of each column of the design."""
    means, squares = (np.asarray(one.mean(axis=0)).ravel() for one in (design, design.multiply(design)))
    found: Floats = np.sqrt(np.maximum(squares - means**2, 0.0))
    return found


def _solve(design: Any, samples: Samples, parameters: Parameters) -> tuple[Floats, Floats]:
    """Intercepts float64[outputs] and slopes float64[p, outputs], the same however many threads there are."""
    with hidden(*_NOT_NEEDED):
        from sklearn.linear_model import LogisticRegression, Ridge
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if samples.task == "regression":
            ridge = Ridge(solver="sparse_cg", tol=TOLERANCE, **parameters).fit(design, samples.labels, samples.weights)
            return np.array([ridge.intercept_]), ridge.coef_[:, np.newaxis]
        model = LogisticRegression(tol=TOLERANCE, max_iter=STEPS_MAX, **parameters)
        model.fit(design, samples.labels, samples.weights)
    if samples.task == "binary":
        return model.intercept_, model.coef_.T
    return _of_classes(model, samples.classes)


def _of_classes(model: Any, classes: int) -> tuple[Floats, Floats]:
    """For each class of the task, though scikit-learn leaves out those that no row has, and of two the first."""
    there = model.classes_.astype(np.intp)
    two = len(there) == 2
    intercepts, slopes = np.full(classes, ABSENT), np.zeros((model.coef_.shape[1], classes))
    intercepts[there] = [0.0, model.intercept_[0]] if two else model.intercept_
    slopes[:, there[1:] if two else there] = model.coef_.T
    return intercepts, slopes
