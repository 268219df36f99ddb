"""Random forests: scikit-learn grows them, the model is JSON of our own, and NumPy predicts.

scikit-learn has no categories. A code becomes its rank among the column's, in the order of the mean label, so that a split
can part high codes from low ones (for several classes the order is that of Coppersmith, Hong and Hosking, "Partitioning
nominal attributes in decision trees", 1999). A code that the rows did not hold is missing.

Its own format would be a pickle, or skops with a list of trusted types, and its trees believe every number in them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.core.metrics import Metric
from tidemill.core.schema import Task
from tidemill.core.space import Integer, Real, Space
from tidemill.errors import BundleRefused
from tidemill.imports import hidden
from tidemill.learners.base import Fold, Matrix, Model, Parameters, Samples, Scored, Terms, fitted_at_once
from tidemill.learners.inputs import LARGEST, Codes, Floats, Places, check_width, float32

TREES = 100
SMOOTHING = 10.0
"""So many rows of the mean label are added to each code's own."""
CHUNK = 1 << 16
"""Of pairs of a row and a tree, worked on at a time, so that they stay in the processor's cache."""

_NOT_NEEDED = ("pandas", "pyarrow", "matplotlib", "polars")


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """``ranked`` are the codes of each categorical column in the order of their ranks.

    Nodes lie level by level, the first ``trees`` are roots, and the two that follow a node lie side by side, in the order of
    the nodes that they follow; so where they lie needs no telling. ``inputs`` int32[nodes] is 2 * column, and 1 more where
    what is missing goes to the first; ``limits`` float32[nodes] is the largest value that goes there, infinite in a leaf;
    ``answers`` float64[leaves, outputs].
    """

    kind: Literal["forest"]
    task: Task
    outputs: int
    ranked: dict[int, list[int]]
    trees: int
    inputs: bytes
    limits: bytes
    answers: bytes
    importances: list[float]


class _Nodes(Struct, frozen=True):
    """A file's nodes as prediction takes them: of a node its ``first`` follower, or itself where it is a leaf."""

    inputs: Places
    limits: NDArray[np.float32]
    first: Places
    leaf: Places
    answers: Floats
    depth: int


class _Ranks:
    """Codes to ranks."""

    def __init__(self, ranked: Mapping[int, Sequence[int]]) -> None:
        self._codes = Codes({column: sorted(codes) for column, codes in ranked.items()})
        self._ranks = {column: np.append(np.argsort(codes), np.nan) for column, codes in ranked.items()}

    def of(self, matrix: Matrix) -> NDArray[np.float32]:
        """The matrix as trees take it; codes without a rank are missing."""
        matrix = matrix.copy()
        for column, ranks in self._ranks.items():
            matrix[:, column] = ranks[self._codes.places(column, matrix[:, column])]
        return float32(matrix)


class ForestModel:
    """All trees at once, a level at a time."""

    engine = "numpy"

    def __init__(self, data: bytes, file: _File, nodes: _Nodes) -> None:
        self._data = data
        self._file = file
        self._nodes = nodes
        self._features = len(file.importances)
        self._ranks = _Ranks(file.ranked)

    def predict(self, matrix: Matrix) -> NDArray[np.float64]:
        """Raises ``ValueError`` for a matrix of another width."""
        check_width(matrix, self._features)
        step = max(1, CHUNK // self._file.trees)
        parts = [self._means(matrix[start : start + step]) for start in range(0, len(matrix), step)]
        found = np.concatenate([np.empty((0, self._file.outputs)), *parts])
        return found if self._file.task == "multiclass" else found[:, 0]

    def _means(self, matrix: Matrix) -> Floats:
        """float64[n, outputs]. ``accumulate`` adds one tree after the other, however many rows there are."""
        leaves = self._nodes.leaf.take(self._places(matrix))
        sums: Floats = np.add.accumulate(self._nodes.answers[leaves], axis=0)[-1]
        return sums / self._file.trees

    def _places(self, matrix: Matrix) -> Places:
        """intp[trees, n]: the leaf of each row in each tree. Missing values are infinite, on the side to which they go."""
        nodes, numbers = self._nodes, self._ranks.of(matrix)
        missing = np.isnan(numbers)
        sides = np.stack([np.where(missing, np.inf, numbers), np.where(missing, -np.inf, numbers)], axis=2).ravel()
        start = np.arange(len(matrix)) * (2 * self._features)
        places = np.repeat(np.arange(self._file.trees)[:, np.newaxis], len(matrix), axis=1)
        for _ in range(nodes.depth):
            above = sides.take(start + nodes.inputs.take(places)) > nodes.limits.take(places)
            places = nodes.first.take(places) + above
        return places

    def to_bytes(self) -> bytes:
        return self._data

    def edge_rows(self) -> Matrix:
        return np.empty((0, self._features))

    def faster(self) -> None:
        return None


class Forest:
    """The learner ``forest``. scikit-learn is imported on first use, and only to fit. It has no rounds: its number of trees
    is a parameter.
    """

    name = "forest"

    def space(self, task: Task) -> Space:
        """The first point is scikit-learn's defaults, but for leaves of 5 rows: those of one take the log loss on Adult
        (10,000 rows) from 0.31 to 0.35, and make the model three times as large.
        """
        return Space(
            {
                "min_samples_leaf": Integer(2, 100, log=True),
                "max_features": Real(0.1, 1.0),
                "max_samples": Real(0.3, 1.0),
            },
            fixed={"n_estimators": TREES},
            first={
                "min_samples_leaf": 5,
                "max_features": 1.0 if task == "regression" else 0.3,
                "max_samples": 1.0,
            },
        )

    def cross_validate(
        self, samples: Samples, folds: Sequence[Fold], parameters: Parameters, metric: Metric, terms: Terms
    ) -> Scored:
        return fitted_at_once(self, samples, folds, parameters, metric, terms)

    def fit(self, samples: Samples, parameters: Parameters, rounds: int, seed: int, threads: int) -> Model:
        ranked = _ranked(samples)
        forest = _estimator(samples.task)(random_state=seed, n_jobs=threads, **({"n_estimators": TREES} | parameters))
        forest.fit(_Ranks(ranked).of(samples.matrix), samples.labels, samples.weights)
        return self.load(msgspec.json.encode(_file(forest, samples, ranked)))

    def load(self, data: bytes) -> Model:
        return self.load_checked(data)

    def load_checked(self, data: bytes) -> Model:
        """The format is our own: no bytes can do harm."""
        file = _read(data)
        return ForestModel(data, file, _nodes(file))

    def load_reference(self, data: bytes) -> Model:
        """The same: there is no other engine."""
        return self.load_checked(data)

    def importances(self, data: bytes) -> NDArray[np.float64]:
        """By how much the splits of each column made the labels of a node more alike, a tree."""
        return np.array(_read(data).importances)


def _read(data: bytes) -> _File:
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleRefused(f"not a forest: {error}") from error


def _nodes(file: _File) -> _Nodes:
    """Raises ``BundleRefused`` where a path could leave its tree or not end, or an answer is no number."""
    try:
        inputs, limits = np.frombuffer(file.inputs, "<i4").astype(np.intp), np.frombuffer(file.limits, "<f4")
        answers = np.frombuffer(file.answers, "<f8").reshape(-1, file.outputs)
    except ValueError as error:
        raise BundleRefused(f"not a forest: {error}") from error
    here, inner = np.arange(len(limits)), np.isfinite(limits)
    before = np.concatenate([[0], np.cumsum(inner)])
    first = np.where(inner, file.trees + 2 * before[:-1], here)
    features = len(file.importances)
    whole = {
        "outputs": (file.outputs > 1) == (file.task == "multiclass"),
        "ranked": all(column in range(features) and len(codes) == len(set(codes)) for column, codes in file.ranked.items()),
        "trees": file.trees > 0 and len(limits) == file.trees + 2 * before[-1] and bool((first > here)[inner].all()),
        "inputs": inputs.shape == limits.shape and bool(((inputs >= 0) & (inputs < 2 * features)).all()),
        "limits": bool((limits > -np.inf).all()),
        "answers": len(answers) == len(limits) - before[-1] and bool(np.isfinite(answers).all()),
    }
    if not all(whole.values()):
        raise BundleRefused(f"not a forest: {', '.join(name for name, good in whole.items() if not good)} not whole")
    return _Nodes(inputs, limits, first, here - before[:-1], answers, _depth(file.trees, before))


def _depth(trees: int, before: Places) -> int:
    """How many levels are below the first; ``before`` is how many of the nodes before each have followers."""
    levels, start, end = -1, 0, trees
    while start < end:
        levels, start, end = levels + 1, trees + 2 * int(before[start]), trees + 2 * int(before[end])
    return levels


def _estimator(task: Task) -> Any:
    with hidden(*_NOT_NEEDED):
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    return RandomForestRegressor if task == "regression" else RandomForestClassifier


def _ranked(samples: Samples) -> dict[int, list[int]]:
    """Of each categorical column its codes, from low to high."""
    codes, labels = Codes.of(samples.matrix, samples.categorical), samples.labels
    targets = np.eye(samples.classes)[labels.astype(np.intp)] if samples.task == "multiclass" else labels[:, np.newaxis]
    mean = targets.mean(axis=0)
    ranked = {}
    for column in samples.categorical:
        places = codes.places(column, samples.matrix[:, column])
        sums, counts = np.zeros((len(codes[column]) + 1, len(mean))), np.zeros(len(codes[column]) + 1)
        np.add.at(sums, places, targets)
        np.add.at(counts, places, 1.0)
        apart = (sums + SMOOTHING * mean) / (counts + SMOOTHING)[:, np.newaxis] - mean
        order = np.argsort(_along(apart[:-1], counts[:-1]), kind="stable")
        ranked[column] = [int(code) for code in codes[column][order]]
    return ranked


def _along(apart: Floats, counts: Floats) -> Floats:
    """float64[c]: points float64[c, outputs] along the direction in which they lie furthest apart."""
    if apart.shape[1] == 1:
        return apart[:, 0]
    direction = np.linalg.eigh((apart * counts[:, np.newaxis]).T @ apart).eigenvectors[:, -1]
    found: Floats = apart @ (direction * np.sign(direction[np.abs(direction).argmax()]))
    return found


def _file(forest: Any, samples: Samples, ranked: dict[int, list[int]]) -> _File:
    trees = [estimator.tree_ for estimator in forest.estimators_]
    starts = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]
    left, right = (
        np.concatenate([np.where(side < 0, -1, side + start) for side, start in zip(sides, starts, strict=True)])
        for sides in ([tree.children_left for tree in trees], [tree.children_right for tree in trees])
    )
    order = _by_level(starts, left, right)
    inner = left[order] >= 0
    columns, limits, missing = (
        np.concatenate([getattr(tree, name) for tree in trees])[order]
        for name in ("feature", "threshold", "missing_go_to_left")
    )
    inputs = np.where(inner, 2 * columns + missing, 0)
    values = np.concatenate([tree.value[:, 0] for tree in trees])[order[~inner]]
    importances = np.mean([tree.compute_feature_importances(normalize=False) for tree in trees], axis=0)
    answers = _answers(forest, samples, values)
    return _File(
        "forest",
        samples.task,
        answers.shape[1],
        ranked,
        len(trees),
        inputs.astype("<i4").tobytes(),
        np.where(inner, _below(limits), np.inf).astype("<f4").tobytes(),
        answers.astype("<f8").tobytes(),
        importances.tolist(),
    )


def _by_level(roots: Places, left: Places, right: Places) -> Places:
    """Node numbers, level by level, the two that follow a node side by side."""
    levels = [roots]
    while len(levels[-1]):
        inner = levels[-1][left[levels[-1]] >= 0]
        levels.append(np.column_stack([left[inner], right[inner]]).ravel())
    return np.concatenate(levels)


def _below(limits: Floats) -> NDArray[np.float32]:
    """The largest float32 up to each, which parts float32 numbers in the same way. An infinite one parts numbers from what
    is missing.
    """
    near = np.minimum(limits, LARGEST).astype(np.float32)
    return np.where(near > limits, np.nextafter(near, np.float32(-np.inf)), near)


def _answers(forest: Any, samples: Samples, values: Floats) -> Floats:
    """float64[leaves, outputs] of scikit-learn's values: for each class of the task, though it knows only those that a row
    has, and of two the second.
    """
    if samples.task == "regression":
        return values
    answers = np.zeros((len(values), samples.classes))
    answers[:, forest.classes_.astype(np.intp)] = values
    return answers[:, 1:] if samples.task == "binary" else answers
