"""What a model learnt from, in brief: how its rows are spread, stretch by stretch, so that what is served can be held
against it.

A stretch of a time series is more like itself than random rows are (a day has one weather), so counts are kept by blocks:
whole blocks, not rows, tell by how much two ordinary stretches differ. Where rows have no order there are no blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from tidemill.core.inspection import category_text
from tidemill.core.metrics import log_losses, multi_log_losses, squared_errors
from tidemill.core.schema import Schema, Task

Counts = NDArray[np.int64]
Values = NDArray[np.float64]
Blocks = NDArray[np.int64]

BINS = 20
"""Of a number, between its quantiles: a window of 1,000 rows has 50 in each."""
ATOM = 0.05
"""A number with this share of the rows has a bin of its own."""
CATEGORIES = 40
"""The most frequent ones; the rest share a bin."""
BLOCKS_MAX = 200
BLOCKS_MIN = 14
"""With fewer their spread says little of how ordinary stretches differ: blocks are made shorter."""
ANSWER_BINS = 10
"""Of predictions, open at both ends: another model than that of the training's folds serves, and its answers go further."""
FARTHEST = 1e300
"""A cut between two predictions is a number, how far they may lie apart."""
LARGEST = 1e70
"""Of a residual; its fourth power, added up, is still a number."""


_LOSSES: dict[Task, Callable[[Values, Values], Values]] = {
    "binary": log_losses,
    "multiclass": multi_log_losses,
    "regression": squared_errors,
}


class Column(Struct, frozen=True):
    """How one column's values fall into bins.

    Of a number: below the lowest of ``edges``, between each two, from the highest on, missing. Of a category: one bin a text
    of ``categories``, then other texts of the reference, unseen ones, missing. ``counts`` has a row for each block.
    """

    name: str
    counts: list[list[int]]
    edges: list[float] = []
    categories: list[str] = []
    codes: list[int] = []
    """By code of a category, its bin."""
    once: int = 0
    """Texts that one row has: so many rows in as many will have a text that none had (Good, Biometrika 40, 1953)."""

    @property
    def is_category(self) -> bool:
        """Whether the values are codes."""
        return bool(self.codes)

    @property
    def bins(self) -> int:
        """How many there are."""
        return len(self.categories) + 3 if self.is_category else len(self.edges) + 2

    def bin_of(self, values: Values) -> NDArray[np.intp]:
        """The bin of each value, intp[n]; NaN is missing, a code of -1 unseen."""
        missing = np.isnan(values)
        if not self.is_category:
            found = np.searchsorted(self.edges, values, side="right")
        else:
            table = np.array([*self.codes, len(self.categories) + 1])  # the last is that of -1
            found = table[np.where(missing, -1, values).astype(np.intp)]
        return np.where(missing, self.bins - 1, found)

    def count(self, values: Values, unseen: int = 0) -> Counts:
        """int64[bins] of a window's values. ``unseen`` says how many of the missing are texts that no code stands for."""
        found = np.bincount(self.bin_of(values), minlength=self.bins)
        if self.is_category and unseen:
            found[-2] += unseen
            found[-1] -= unseen
        return found

    def labels(self) -> list[str]:
        """What to call the bins."""
        if self.is_category:
            return [*self.categories, "(others)", "(unseen)", "(missing)"]
        if not self.edges:
            return ["(any)", "(missing)"]
        inner = [_span(low, high) for low, high in pairwise(self.edges)]
        return [f"below {self.edges[0]:.6g}", *inner, f"above {np.nextafter(self.edges[-1], -np.inf):.6g}", "(missing)"]


class Level(Struct, frozen=True):
    """A quantity's mean in each block: ``sums`` and ``squares`` of its values, ``rows`` of them."""

    name: str
    rows: list[int]
    sums: list[float]
    squares: list[float]

    @property
    def mean(self) -> float:
        """Over all blocks; NaN without rows."""
        return sum(self.sums) / sum(self.rows) if any(self.rows) else float("nan")


class Reference(Struct, frozen=True):
    """A model's training rows by column, with their ``importances`` for it (shares that add up to 1), and how it did on rows
    that it had not learnt from (``predictions``, ``outcomes``, ``levels``). ``blocked``: the counts' rows are blocks, each
    of ``block_ms`` of time where that is not 0.
    """

    features: list[Column]
    importances: list[float]
    predictions: list[Column] = []
    outcomes: list[Column] = []
    levels: list[Level] = []
    blocked: bool = False
    block_ms: int = 0


class Scored(NamedTuple):
    """Labels, and predictions of models that had not learnt from the rows, NaN where there is none; the rows' blocks. And
    what the model that serves says of rows that it has learnt from (``own``), with their blocks.
    """

    labels: Values
    predictions: Values
    blocks: Blocks
    own: Values
    own_blocks: Blocks


class Answers(NamedTuple):
    """What a model said of rows whose outcome is known: ``errors`` are the rows' own losses (the log loss, or the squared
    error), ``residuals`` what they had more of than was expected: the outcome less the prediction; of several classes, a
    hit less the chosen class's probability. float64[n] each.
    """

    errors: Values
    residuals: Values


def answers(task: Task, labels: Values, predictions: Values) -> Answers:
    """Of labels (class numbers or values) and predictions as ``Model.predict`` gives them."""
    if task == "multiclass":
        chosen = predictions.argmax(axis=1)
        residuals = (chosen == labels) - predictions[np.arange(len(labels)), chosen]
    else:
        residuals = labels - predictions
    return Answers(np.minimum(_LOSSES[task](labels, predictions), LARGEST**2), np.clip(residuals, -LARGEST, LARGEST))


def said(task: Task, predictions: Values) -> Values:
    """What of predictions is compared: the probability or the value; of several classes the chosen one. float64[n]."""
    return predictions.argmax(axis=1).astype(np.float64) if task == "multiclass" else predictions


def reference(
    schema: Schema,
    matrix: Values,
    categories: Mapping[int, Sequence[str]],
    importances: Values,
    blocks: Blocks,
    block_ms: int = 0,
    scored: Scored | None = None,
) -> Reference:
    """Of a training set: ``matrix`` float64[n, k] in the order of ``schema.columns``, the texts of the columns that hold
    codes, each column's importance, each row's block.
    """
    features = [
        category_column(name, categories[i], matrix[:, i], blocks)
        if i in categories
        else number_column(name, matrix[:, i], blocks)
        for i, name in enumerate(schema.columns)
    ]
    total = importances.sum()
    shares = importances / total if total > 0 else np.full(len(features), 1 / max(1, len(features)))
    blocked = len(np.unique(blocks)) > 1
    if scored is None:
        return Reference(features, shares.tolist(), blocked=blocked, block_ms=block_ms)
    kept = np.isfinite(scored.predictions if scored.predictions.ndim == 1 else scored.predictions.sum(axis=1))
    labels, predictions, blocks = scored.labels[kept], scored.predictions[kept], numbered(scored.blocks[kept])
    told = answers(schema.task, labels, predictions)
    texts = [category_text(label) for label in schema.classes]
    return Reference(
        features,
        shares.tolist(),
        _said_columns(
            schema.task, texts, (said(schema.task, predictions), blocks), (said(schema.task, scored.own), scored.own_blocks)
        ),
        [answer_column("multiclass" if texts else "regression", "outcome", labels, texts, blocks)],
        [level("error", told.errors, blocks), level("calibration", told.residuals, blocks)],
        blocked,
        block_ms,
    )


def _said_columns(
    task: Task, texts: Sequence[str], unlearnt: tuple[Values, Blocks], own: tuple[Values, Blocks]
) -> list[Column]:
    """Of rows that were not learnt from, and of the serving model's own, in the same bins: what is served lies between."""
    if task == "multiclass":
        first = category_column("prediction", texts, *unlearnt)
    else:
        known = np.clip(unlearnt[0], -FARTHEST, FARTHEST)
        cuts = np.quantile(known, np.arange(1, ANSWER_BINS) / ANSWER_BINS) if len(known) else known
        first = _counted(Column("prediction", [], edges=np.unique(cuts).tolist()), *unlearnt)
    return [first, _counted(replace(first, counts=[]), *own)]


def answer_column(task: Task, name: str, values: Values, texts: Sequence[str], blocks: Blocks) -> Column:
    """Class numbers, or numbers."""
    return category_column(name, texts, values, blocks) if task == "multiclass" else number_column(name, values, blocks)


def block_width(times_ms: NDArray[np.int64], block_ms: int) -> int:
    """How long a block is: ``block_ms``, or shorter where that makes too few to compare, or longer where it makes too many;
    0 where there is no time.
    """
    if not len(times_ms) or times_ms.max() == times_ms.min():
        return 0
    span = int(times_ms.max() - times_ms.min()) + 1
    return min(max(block_ms, -(-span // BLOCKS_MAX)), max(1, span // BLOCKS_MIN))


def blocks_of_times(times_ms: NDArray[np.int64], width_ms: int) -> Blocks:
    """The block of each row, int64[n] from 0; all 0 without a width."""
    return numbered((times_ms - times_ms.min()) // width_ms) if width_ms else np.zeros(len(times_ms), dtype=np.int64)


def blocks_of_keys(keys: Values) -> Blocks:
    """One block a value of ``keys`` (missing is a value), put together where there are too many; rows of a value stay
    together.
    """
    return numbered(keys) % BLOCKS_MAX


def numbered(blocks: Blocks | Values) -> Blocks:
    """The same from 0, without gaps, in rising order."""
    return np.unique(blocks, return_inverse=True)[1].astype(np.int64)


def number_column(name: str, values: Values, blocks: Blocks) -> Column:
    """Of numbers, float64[n] with NaN for missing. Bins lie between quantiles; frequent values have their own."""
    known = values[np.isfinite(values)]
    return _counted(Column(name, [], edges=_edges(known)), values, blocks)


def category_column(name: str, texts: Sequence[str], values: Values, blocks: Blocks) -> Column:
    """Of codes from 0, float64[n]; ``texts`` in their order. The most frequent texts have bins of their own."""
    known = values[~np.isnan(values)].astype(np.intp)
    counts = np.bincount(known, minlength=len(texts))
    order = np.argsort(-counts, kind="stable")
    kept = [int(code) for code in order[:CATEGORIES] if counts[code]]
    codes = np.where(counts > 0, len(kept), len(kept) + 1)  # a text that was never there is as good as unseen
    codes[kept] = np.arange(len(kept))
    kept_texts, once = [texts[code] for code in kept], int((counts == 1).sum())
    column = Column(name, [], categories=kept_texts, codes=codes.tolist() or [1], once=once)
    return _counted(column, values, blocks)


def level(name: str, values: Values, blocks: Blocks) -> Level:
    """Of a quantity, float64[n]; NaN does not count."""
    kept = np.isfinite(values)
    values, blocks = values[kept], blocks[kept]
    size = int(blocks.max(initial=-1)) + 1
    return Level(
        name,
        np.bincount(blocks, minlength=size).tolist(),
        np.bincount(blocks, values, minlength=size).tolist(),
        np.bincount(blocks, values * values, minlength=size).tolist(),
    )


def _counted(column: Column, values: Values, blocks: Blocks) -> Column:
    size = int(blocks.max(initial=0)) + 1
    flat = np.bincount(blocks * column.bins + column.bin_of(values), minlength=size * column.bins)
    counts = flat.reshape(size, column.bins).tolist()
    return replace(column, counts=counts)


def _edges(known: Values) -> list[float]:
    """Rising; the first is the lowest value, the last lies just above the highest."""
    if not len(known):
        return []
    values, counts = np.unique(known, return_counts=True)
    atoms = values[counts >= ATOM * len(known)]
    cuts = np.quantile(known, np.linspace(0, 1, BINS + 1)[:-1], method="lower")
    ends = np.nextafter(np.concatenate([atoms, values[-1:]]), np.inf)
    edges = np.unique(np.concatenate([cuts, atoms, ends]))
    return [float(edge) for edge in edges if edge <= ends[-1] and np.isfinite(edge)]


def _span(low: float, high: float) -> str:
    """An atom, or from where to where; just above an atom its own value reads better than the next float."""
    if np.nextafter(low, np.inf) == high:
        return f"{low:.6g}"
    return f"{np.nextafter(low, -np.inf) if low else low:.6g} to {high:.6g}"
