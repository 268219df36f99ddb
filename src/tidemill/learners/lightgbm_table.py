"""QuickScorer as a table: a LightGBM model scored without a branch or a pointer, exact to the last bit.

After Lucchese et al., "QuickScorer: a fast algorithm to rank documents with additive ensembles of regression trees" (SIGIR
2015): number a tree's leaves from left to right; a node that sends a row one way rules out the leaves on its other side;
what all nodes of a tree leave over is one leaf. There a value is compared with every threshold. Here it first becomes a
code, its rank among the bounds at which the model tells values of that feature apart, and the table holds for each code what
the nodes of that feature leave over: a row of words, a bit a leaf. The answer's leaves are the AND of one table row a
feature. Missing values, default directions and categories are settled while the table is built.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.learners.base import Matrix
from tidemill.learners.lightgbm_text import (
    CATEGORICAL,
    DEFAULT_LEFT,
    MISSING_NAN,
    MISSING_ZERO,
    Floats,
    Forest,
    Integers,
    NotForTable,
)
from tidemill.learners.probabilities import FEW_ROWS, Exp, exp, sigmoid, softmax

WORD = 64
SLOTS = WORD + 1
"""Of a word's values: one for each bit that may be left, and 0.0 where none is (the leaf is in another word of its tree)."""
COLUMNS_MULTIPLE = 8
"""Columns come in so many, the last ones empty: a compiled loop takes them together."""
TABLE_BYTES_MAX = 64 << 20
CATEGORIES_MAX = 1 << 15
"""Of a feature: each has a code of its own, which is filled by itself."""
ZERO = float(np.float32(1e-35))
"""LightGBM takes a value up to this size for zero (``kZeroThreshold``)."""
CHUNK_BYTES = 1 << 18
"""Of words that are worked on at a time, so that they stay in the processor's second cache."""

Words = NDArray[np.uint64]


class Table(Struct, frozen=True):
    """What a model's predictions need; no array is ever written again.

    ``words`` uint64[R, C]: a row for each code of each feature; a column for each 64 leaves of a tree, the trees of the
    first output first, empty ones last. ``features`` are the columns of the matrix that matter; a value of one has the row
    ``first_row`` + the number of its ``bounds`` that are below the value, NaN being above all. ``values`` float64[C * SLOTS]
    are the leaves.
    ``first_column`` int64[outputs + 1] says which columns add up to which output.
    """

    forest: Forest
    features: Integers
    bounds: tuple[Floats, ...]
    first_row: Integers
    words: Words
    values: Floats
    first_column: Integers


def build_table(forest: Forest) -> Table:
    """Raises ``NotForTable`` where it would be too large, or a feature is a number to one tree and a category to another.

    In steps of NumPy, which let other threads run: 100 ms for 300 trees of 63 leaves.
    """
    columns = _columns(forest)
    sides = _sides(forest)
    parts = _parts(forest, sides, columns)
    used = np.unique(forest.feature)
    bounds = tuple(_bounds(forest, feature) for feature in used)
    first_row = np.concatenate([[0], np.cumsum([len(bound) + 1 for bound in bounds])]).astype(np.int64)
    rows, width = int(first_row[-1]), len(columns.leaves)
    if rows * width * 8 > TABLE_BYTES_MAX:
        raise NotForTable(f"the table would have {rows} x {width} words")
    words = np.tile(columns.leaves, (max(rows, 1), 1))
    for number, feature in enumerate(used):
        mine = parts.select(forest.feature[parts.node] == feature)
        _fill(forest, mine, bounds[number], words[first_row[number] : first_row[number + 1]])
    for array in (words, columns.values):
        array.flags.writeable = False
    return Table(forest, used, bounds, first_row[:-1], words, columns.values, columns.first_column)


class _Columns(Struct, frozen=True):
    """Where trees lie: tree t has the columns from ``first[t]``; ``leaves`` uint64[C] a bit for each leaf of a column."""

    first: Integers
    leaves: Words
    values: Floats
    first_column: Integers


def _columns(forest: Forest) -> _Columns:
    leaves = np.diff(forest.first_leaf)
    count = -(-leaves // WORD)
    order = np.arange(forest.trees).reshape(-1, forest.outputs).T.ravel()
    first = np.empty(forest.trees, dtype=np.int64)
    ends = np.cumsum(count[order])
    first[order] = ends - count[order]
    first_column = np.concatenate([[0], ends[forest.trees // forest.outputs - 1 :: forest.trees // forest.outputs]])
    tree = np.repeat(order, count[order])
    there = np.zeros(len(tree) + -len(tree) % COLUMNS_MULTIPLE, dtype=np.int64)
    there[: len(tree)] = np.clip(leaves[tree] - WORD * (np.arange(len(tree)) - first[tree]), 0, WORD)
    tree_of_leaf = np.repeat(np.arange(forest.trees), leaves)
    position = _sides(forest).position
    values = np.zeros((len(tree) + -len(tree) % COLUMNS_MULTIPLE, SLOTS))
    # -0.0 becomes 0.0, as it does when it is added to LightGBM's first sum.
    values[first[tree_of_leaf] + position // WORD, position % WORD] = forest.leaf_value + 0.0
    return _Columns(first, _ones(there), values.ravel(), first_column.astype(np.int64))


class _Sides(Struct, frozen=True):
    """Leaves from left to right: node j has [low, high), of which [low, middle) on its left; leaf -> its ``position``."""

    low: Integers
    middle: Integers
    high: Integers
    position: Integers


def _sides(forest: Forest) -> _Sides:
    """Level by level, all trees at once: down to find them, up to count leaves, down to place them."""
    left, right = forest.left, forest.right
    levels = [forest.first_node[:-1][np.diff(forest.first_node) > 0]]
    while len(levels[-1]):
        below = np.concatenate([left[levels[-1]], right[levels[-1]]])
        levels.append(below[below >= 0])
    size = np.zeros(len(left) + 1, dtype=np.int64)
    size[-1] = 1  # every leaf's
    for level in reversed(levels):
        size[level] = size[np.maximum(left[level], -1)] + size[np.maximum(right[level], -1)]
    low, position = np.zeros(len(left), dtype=np.int64), np.zeros(len(forest.leaf_value), dtype=np.int64)
    for level in levels:
        for child, start in ((left[level], low[level]), (right[level], low[level] + size[np.maximum(left[level], -1)])):
            node = child >= 0
            low[child[node]] = start[node]
            position[-1 - child[~node]] = start[~node]
    return _Sides(low, low + size[np.maximum(left, -1)], low + size[:-1], position)


class _Parts(Struct, frozen=True):
    """What nodes rule out, a word at a time: node, column, and the bits that stay where a row goes left, or right."""

    node: Integers
    column: Integers
    left: Words
    right: Words

    def select(self, which: NDArray[np.bool_]) -> "_Parts":
        return _Parts(self.node[which], self.column[which], self.left[which], self.right[which])


def _parts(forest: Forest, sides: _Sides, columns: _Columns) -> _Parts:
    first, last = sides.low // WORD, (sides.high - 1) // WORD
    node = np.repeat(np.arange(len(first)), last - first + 1)
    word = np.arange(len(node)) - np.repeat(np.cumsum(last - first + 1) - (last - first + 1), last - first + 1) + first[node]
    tree = np.repeat(np.arange(forest.trees), np.diff(forest.first_node))[node]
    low, middle, high = (_ones(np.clip(edge[node] - WORD * word, 0, WORD)) for edge in (sides.low, sides.middle, sides.high))
    return _Parts(node, columns.first[tree] + word, ~(high ^ middle), ~(middle ^ low))


def _ones(count: Integers) -> Words:
    """Words with so many lowest bits set, up to 64."""
    return _LOWEST[count]


_LOWEST = np.array([(1 << count) - 1 for count in range(WORD + 1)], dtype=np.uint64)


def _bounds(forest: Forest, feature: int) -> Floats:
    """The values, rising, at which codes of a feature end: x has the code "how many bounds are below x", NaN the last.

    Of a number: its thresholds, and zero's two edges. Of a category: the two ends of each that some node names.
    """
    nodes = np.flatnonzero(forest.feature == feature)
    kinds = forest.decision[nodes] & CATEGORICAL > 0
    if kinds.any() != kinds.all():
        raise NotForTable(f"feature {feature} is a number and a category")
    if kinds.any():
        named = _named(forest, nodes)
        return np.unique(np.concatenate([_end(named - 1), _end(named), [np.inf]]))
    thresholds = forest.threshold[nodes]
    edges = [np.nextafter(-ZERO, -np.inf), ZERO, np.inf]
    return np.unique(np.concatenate([thresholds[np.abs(thresholds) > ZERO], edges]))


def _named(forest: Forest, nodes: Integers) -> Integers:
    """The categories that any of the nodes names, rising. Raises ``NotForTable`` for more than the table is made for."""
    first, length = forest.bits_first[nodes], (forest.bits_last - forest.bits_first)[nodes]
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    words = np.zeros(int(length.max()), dtype="<u4")
    np.bitwise_or.at(words, within, forest.bitset[np.repeat(first, length) + within])
    named = np.bitwise_count(words).sum()
    if named > CATEGORIES_MAX:
        raise NotForTable(f"a feature has {named} categories")
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))


def _end(category: Integers) -> Floats:
    """The last value that is cut off to a category; -1.0 for -1, as -0.5 is cut off to 0."""
    return np.where(category < 0, -1.0, np.nextafter(category + 1.0, 0.0))


def _fill(forest: Forest, parts: _Parts, bounds: Floats, words: Words) -> None:
    """Take out of one feature's rows what its nodes rule out."""
    if forest.decision[parts.node[0]] & CATEGORICAL:
        _fill_categories(forest, parts, bounds, words)
    else:
        _fill_numbers(forest, parts, bounds, words)


def _fill_numbers(forest: Forest, parts: _Parts, bounds: Floats, words: Words) -> None:
    """Codes rise with values: what a node rules out for one code it does for all on that side of its threshold. Zero and NaN
    go their own way.
    """
    threshold, decision = forest.threshold[parts.node], forest.decision[parts.node]
    missing, default = decision >> 2, decision & DEFAULT_LEFT > 0
    zero, whole = int(np.searchsorted(bounds, ZERO)), words[0].copy()
    last = np.searchsorted(bounds, np.where(np.abs(threshold) > ZERO, threshold, ZERO))
    for side, code in ((parts.left, last), (parts.right, last + 1)):
        out = np.full_like(words, ~np.uint64(0))
        np.bitwise_and.at(out.reshape(-1), code * words.shape[1] + parts.column, side)
        turned = out[::-1] if side is parts.left else out
        np.bitwise_and.accumulate(turned, axis=0, out=turned)
        words &= out
    goes_left = np.where(missing == MISSING_ZERO, default, threshold >= 0)
    for row, goes in ((words[zero], goes_left), (words[-1], np.where(missing == MISSING_NAN, default, goes_left))):
        row[:] = whole
        np.bitwise_and.at(row, parts.column, np.where(goes, parts.left, parts.right))


def _fill_categories(forest: Forest, parts: _Parts, bounds: Floats, words: Words) -> None:
    """A category goes left where its bit is set; what no node names, and what is no category, goes right."""
    first, last = forest.bits_first[parts.node], forest.bits_last[parts.node]
    named = _named(forest, np.unique(parts.node))
    whole = words[0].copy()
    np.bitwise_and.at(words[0], parts.column, parts.right)
    words[1:] = words[0]
    for category, code in zip(named.tolist(), np.searchsorted(bounds, _end(named)).tolist(), strict=True):
        place, bit = divmod(category, 32)
        there = first + place < last
        goes = np.zeros(len(first), dtype=np.bool_)
        goes[there] = forest.bitset[first[there] + place] >> np.uint32(bit) & np.uint32(1) > 0
        words[code] = whole
        np.bitwise_and.at(words[code], parts.column, np.where(goes, parts.left, parts.right))


EDGE_ROWS_MAX, EDGE_VALUES_MAX = 4096, 1 << 22
_ODD = (np.nan, 0.0, -0.0, 1e-35, -1e-35, -0.5, -1.0, 1e300, -1e300, 2.0**31, -(2.0**31), np.inf, -np.inf)


def edge_rows(table: Table) -> Matrix:
    """float64[n, features]: of each feature every bound, its two neighbours, and odd values, as often as they fit; n is what
    the longest list needs, up to 4,096. Which values meet in a row is drawn, always in the same way.
    """
    random = np.random.default_rng(0)
    lists = [
        np.concatenate([_ODD, bounds, *(np.nextafter(bounds, to) for to in (-np.inf, np.inf))]) for bounds in table.bounds
    ]
    most = min(EDGE_ROWS_MAX, max(len(_ODD), EDGE_VALUES_MAX // table.forest.features))
    rows = min(most, max(map(len, lists), default=len(_ODD)))
    matrix = np.full((rows, table.forest.features), np.nan)
    for feature, values in zip(table.features, lists, strict=True):
        times = -(-rows // len(values))
        matrix[:, feature] = np.concatenate([random.permutation(values) for _ in range(times)])[:rows]
    return matrix


class Scorer(Protocol):
    """Sums of leaves: float64[n, features], in any layout and n > 0, to float64[n, outputs]."""

    @property
    def engine(self) -> str: ...

    def __call__(self, matrix: Matrix) -> Floats: ...

    def exp(self, values: Floats) -> Floats:
        """See ``tidemill.learners.probabilities.exp``."""
        ...


class NumpyScorer:
    """Sums of leaves by NumPy alone."""

    engine = "numpy"
    exp = staticmethod(exp)

    def __init__(self, table: Table) -> None:
        self._table = table
        self._offsets = np.arange(table.words.shape[1])[:, np.newaxis] * SLOTS
        self._step = max(2, CHUNK_BYTES // (8 * table.words.shape[1]))
        places = zip(table.features.tolist(), table.bounds, table.first_row.tolist(), strict=True)
        self._places = [(feature, bounds.tolist(), len(bounds), first) for feature, bounds, first in places]

    def __call__(self, matrix: Matrix) -> Floats:
        if len(matrix) <= FEW_ROWS:
            return self._sums(np.array([self._left_of_one(row) for row in matrix.tolist()]))
        steps = range(0, len(matrix), self._step)
        return np.concatenate([self._sums(self._left(matrix[start : start + self._step])) for start in steps])

    def _left_of_one(self, row: list[float]) -> Words:
        """The leaves that one row comes to, uint64[C]; NaN, which alone differs from itself, is above all bounds. Bisect is
        quicker here than NumPy's call for each feature.
        """
        rows = [
            first + (bisect_left(bounds, value) if (value := row[feature]) == value else most)
            for feature, bounds, most, first in self._places
        ]
        left: Words = np.bitwise_and.reduce(self._table.words.take(rows or [0], 0), axis=0)
        return left

    def _left(self, matrix: Matrix) -> Words:
        """The leaves that rows come to, uint64[n, C]: in each column a bit at most."""
        words, rows = self._table.words, self._rows(matrix)
        left = words.take(next(rows, np.zeros(len(matrix), dtype=np.int64)), 0)
        other = np.empty_like(left)
        for code in rows:
            words.take(code, 0, other, "clip")
            np.bitwise_and(left, other, left)
        return left

    def _rows(self, matrix: Matrix) -> Iterator[Integers]:
        """For each feature the table's row for each of the matrix's."""
        for feature, bounds, first in zip(self._table.features, self._table.bounds, self._table.first_row, strict=True):
            yield bounds.searchsorted(matrix[:, feature]) + first

    def _sums(self, left: Words) -> Floats:
        """The number of a word's one bit is the count of the bits below it. Leaves are added one after the other, as
        LightGBM does: ``reduce`` is pairwise along a contiguous axis, so it takes the other, and ``accumulate`` one row's.
        """
        slots = np.ascontiguousarray(np.bitwise_count(left - np.uint64(1)).T) + self._offsets
        values = self._table.values.take(slots)
        columns = self._table.first_column.tolist()
        sums = np.empty((len(left), len(columns) - 1))
        for number, (first, last) in enumerate(pairwise(columns)):
            if len(left) == 1:
                sums[0, number] = np.add.accumulate(values[first:last, 0])[-1]
            else:
                np.add.reduce(values[first:last], axis=0, out=sums[:, number])
        return sums


def answers(forest: Forest, sums: Floats, exp: Exp) -> Floats:
    """What ``Booster.predict`` makes of sums float64[n, outputs]: float64[n], or float64[n, outputs]."""
    if forest.average:
        sums = sums / (forest.trees // forest.outputs)
    if forest.transform == "softmax":
        return softmax(sums, exp)
    found = _TRANSFORMS[forest.transform](sums.ravel(), forest.sigmoid, exp)
    return found.reshape(sums.shape) if forest.outputs > 1 else found


_TRANSFORMS: dict[str, Callable[[Floats, float, Exp], Floats]] = {
    "none": lambda sums, _, exp: sums,
    "square": lambda sums, _, exp: np.sign(sums) * sums * sums,
    "exp": lambda sums, _, exp: exp(sums),
    "sigmoid": sigmoid,
    "log1p_exp": lambda sums, _, exp: np.fromiter(map(math.log1p, exp(sums).tolist()), np.float64, len(sums)),
}
