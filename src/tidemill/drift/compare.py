"""Two tables column by column: how far B lies from A, whether ordinary stretches of A lie as far apart, and which tests say
so. The figures are those of the monitor (``core/shift.py``), so that a comparison and an alarm speak of the same.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from scipy import stats

from tidemill.core.alarms import Limits
from tidemill.core.drift_estimator import ROWS_MAX, Classifier, feature_drifts, forest, joint_drift, sampled
from tidemill.core.encoder import Encoder
from tidemill.core.inference import nearest
from tidemill.core.inspection import category_text
from tidemill.core.looking import told_of
from tidemill.core.outcomes import label_numbers
from tidemill.core.reference import (
    BLOCKS_MAX,
    BLOCKS_MIN,
    Blocks,
    Column,
    Values,
    block_width,
    blocks_of_keys,
    blocks_of_times,
    category_column,
    number_column,
    numbered,
)
from tidemill.core.shift import EXACT, Null, chi_squared, is_unheard_of, jensen_shannon, measure, null_of, shares
from tidemill.drift.tables import Pair, Table
from tidemill.errors import ConfigError

ALPHA = 0.05
"""The chance that any column is called shifted where none is."""
SPLIT_ROWS = 5000
"""An A with so many independent rows at most is held against splits by chance: its bins fit it too well. Of
15 columns of Adult (300 rows a side) some had a corrected p of 0.05 in 35 of 100 comparisons without, and in 3 with it.
"""
SPLITS = 200
HOUR_MS = 3_600_000
Kind = Literal["number", "category"]


class Options(Struct, frozen=True, kw_only=True):
    """``columns`` to compare, all without; ``block_hours``: of A's time are kept together (0: rows are independent). Where
    None is asked for, it is the rows of one value of the feature ``block``, if one is named, else ``usual_hours``, if A has
    times. ``joint`` adds MLBox's estimate by a ``classifier``.
    """

    columns: tuple[str, ...] = ()
    block_hours: float | None = None
    block: str = ""
    usual_hours: float = 24.0
    effect_min: float = Limits().effect_min
    joint: bool = False
    classifier: Literal["forest", "lightgbm"] = "forest"
    seed: int = 1


class Side(Struct, frozen=True):
    """A table: its name, rows, and event times (ms), where it has any."""

    name: str
    rows: int
    since: int | None
    until: int | None


class Bins(Struct, frozen=True):
    """The shares of both sides in the bins that the distances are of."""

    labels: list[str]
    a: list[float]
    b: list[float]


class ColumnShift(Struct, frozen=True, kw_only=True):
    """A column, or the ``target``. ``missing_a`` .. ``outside`` are shares of the rows; ``effect`` is the Jensen-Shannon
    distance beyond that of ordinary stretches, ``p`` how often one lies as far, ``p_holm`` that corrected for the number of
    columns. KS, chi-squared and Wasserstein are of the raw values (chi-squared of the bins); None where they do not apply.
    ``mlbox``: MLBox's drift of the column alone. ``most``: the bin that moved most.
    """

    name: str
    kind: Kind
    target: bool = False
    shifted: bool = False
    rows_a: int
    rows_b: int
    missing_a: float
    missing_b: float
    unseen: float | None
    outside: float | None
    effect: float
    p: float
    p_holm: float = 1.0
    jensen_shannon: float
    psi: float
    ks: float | None = None
    ks_p: float | None = None
    chi_squared: float | None = None
    chi_squared_p: float | None = None
    wasserstein: float | None = None
    mlbox: float | None = None
    most: str
    bins: Bins


class Blocking(Struct, frozen=True):
    """What of A is kept together: ``count`` blocks ``by`` time (of ``hours``) or a feature, ``b`` make a B; of one block
    rows are independent. ``why`` it is so, where that is not plain. ``split``: A is so small that both sides' rows are
    mixed for p.
    """

    count: int
    hours: float = 0.0
    by: str = ""
    why: str = ""
    b: float = 0.0
    split: bool = False


class Comparison(Struct, frozen=True, kw_only=True):
    """All that was found, the columns with the largest distance first."""

    a: Side
    b: Side
    columns: list[ColumnShift]
    blocks: Blocking
    alpha: float
    effect_min: float
    seed: int
    joint: float | None = None
    classifier: str = ""
    notes: list[str] = []

    @property
    def shifted(self) -> list[str]:
        """The columns that are called shifted."""
        return [column.name for column in self.columns if column.shifted]


class _Measured(NamedTuple):
    """A column of both sides: their values, A's blocks, and what makes bins of values and blocks."""

    make: Callable[[Values, Blocks], Column]
    a: Values
    b: Values
    blocks: Blocks
    target: bool = False


def compare(pair: Pair, options: Options) -> Comparison:
    """B against A. Deterministic by ``options.seed``. Raises ``ConfigError`` for columns that are not there, blocks that A
    cannot have, and, with ``joint``, too few rows.
    """
    schema, a, b = pair.schema, pair.a, pair.b
    names = [feature.name for feature in schema.features]
    encoder = Encoder.fit(schema, {name: [*a.columns[name], *b.columns[name]] for name in names})
    before, after = encoder.encode(a.columns).matrix, encoder.encode(b.columns).matrix
    blocks, blocking = _blocks(a, b, before, schema.columns, options)
    target, notes = _target(pair, blocks)
    chosen = _chosen(options.columns, [*schema.columns, *([schema.target] if target else [])])
    features = [number for number, name in enumerate(schema.columns) if name in chosen]
    makers = _makers(encoder)
    measured = [_Measured(makers[i], before[:, i], after[:, i], blocks) for i in features]
    measured += [target] if target and schema.target in chosen else []
    shifts = _judged([_shift(one, blocking, options.seed) for one in measured], options.effect_min)
    found = Comparison(
        a=_side(a),
        b=_side(b),
        columns=sorted(shifts, key=lambda shift: -shift.jensen_shannon),
        blocks=blocking,
        alpha=ALPHA,
        effect_min=options.effect_min,
        seed=options.seed,
        notes=[*pair.notes, *notes],
    )
    return _with_joint(found, before, after, schema.columns, features, options) if options.joint else found


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the p-values that hold for all together."""
    order = np.argsort(ps, kind="stable")
    factors = np.arange(len(ps), 0, -1)
    corrected = np.empty(len(ps))
    corrected[order] = np.minimum(np.maximum.accumulate(np.array(ps)[order] * factors), 1.0)
    found: list[float] = corrected.tolist()
    return found


def _chosen(asked: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in asked:
        if name not in known:
            hint = nearest(name, known) or f"; there are {', '.join(known)}"
            raise ConfigError(f"--columns {name}: not a column that is compared{hint}")
    return list(asked or known)


def _makers(encoder: Encoder) -> list[Callable[[Values, Blocks], Column]]:
    """Of each column of the matrix. A text that A does not have is unseen, whoever has it."""
    texts = encoder.texts
    return [
        partial(category_column, name, texts[i]) if i in texts else partial(number_column, name)
        for i, name in enumerate(encoder.schema.columns)
    ]


def _blocks(a: Table, b: Table, matrix: Values, columns: Sequence[str], options: Options) -> tuple[Blocks, Blocking]:
    hours, none = options.block_hours, np.zeros(a.rows, dtype=np.int64)
    if hours == 0:
        return none, _independent(a, "as you asked")
    if options.block and hours is None:
        if options.block not in columns:
            raise ConfigError(f"drift.block: no column {options.block!r} is compared; there are {', '.join(columns)}")
        blocks = blocks_of_keys(matrix[:, list(columns).index(options.block)])
        count = int(blocks.max()) + 1
        return blocks, Blocking(count, by=options.block, b=max(1.0, b.rows * count / a.rows))
    if not len(a.times_ms):
        if hours is not None:
            raise ConfigError(f"--block-hours: no column of {a.name} is known to hold event times, to make blocks of")
        return none, _independent(a, "no column of event times is known")
    wanted = max(1, round((options.usual_hours if hours is None else hours) * HOUR_MS))
    width = block_width(a.times_ms, wanted)
    blocks = blocks_of_times(a.times_ms, width)
    count = int(blocks.max()) + 1
    if count == 1:
        return blocks, _independent(a, f"all times of {a.name} are one")
    why = "" if width == wanted else f"fewer than {BLOCKS_MIN}" if width < wanted else f"more than {BLOCKS_MAX}"
    why = why and f"of {wanted / HOUR_MS:g} hours there would be {why}"
    of_b = len(np.unique(b.times_ms // width)) if len(b.times_ms) else max(1.0, b.rows * count / a.rows)
    return blocks, Blocking(count, width / HOUR_MS, "time", why, float(of_b))


def _independent(a: Table, why: str) -> Blocking:
    return Blocking(1, why=why, split=a.rows <= SPLIT_ROWS)


def _target(pair: Pair, blocks: Blocks) -> tuple[_Measured | None, list[str]]:
    """The outcomes, where both sides have any; which share of them is known is told."""
    schema, name = pair.schema, pair.schema.target
    known = [np.array([outcome is not None for outcome in side.outcomes], dtype=bool) for side in (pair.a, pair.b)]
    counts = [int(rows.sum()) for rows in known]
    if not all(counts):
        lacking = "B" if counts[0] else "A"
        return None, [f"{name}: not compared: {lacking} has no outcomes"] if any(counts) else []
    a, b = (
        label_numbers(schema, [outcome for outcome in side.outcomes if outcome is not None]) for side in (pair.a, pair.b)
    )
    texts = [category_text(label) for label in schema.classes]
    make = partial(category_column, name, texts) if texts else partial(number_column, name)
    kept = numbered(blocks[known[0]])
    sides = zip(("A", "B"), counts, (pair.a.rows, pair.b.rows), strict=True)
    notes = [f"{name}: the outcomes of {count:,} of {side}'s {rows:,} rows" for side, count, rows in sides if count < rows]
    return _Measured(make, a, b, kept, target=True), notes


def _side(table: Table) -> Side:
    times = table.times_ms
    return Side(table.name, table.rows, *((int(times.min()), int(times.max())) if len(times) else (None, None)))


def _shift(one: _Measured, blocking: Blocking, seed: int) -> ColumnShift:
    a, b = one.a, one.b
    column = one.make(a, one.blocks)
    before, after = np.array(column.counts, dtype=np.int64).sum(axis=0), column.count(b)
    null = (
        _split_null(one, seed) if blocking.split else null_of(column, len(b), blocking.b, seed, is_unheard_of(column, after))
    )
    found = measure(column, after, null)
    chi = chi_squared(before, after) if column.is_category else (None, None)
    ks, ks_p, wasserstein = (None, None, None) if column.is_category else _raw(a[~np.isnan(a)], b[~np.isnan(b)])
    return ColumnShift(
        name=column.name,
        kind="category" if column.is_category else "number",
        target=one.target,
        rows_a=len(a),
        rows_b=len(b),
        missing_a=found.missing_before,
        missing_b=found.missing,
        unseen=found.unseen if column.is_category else None,
        outside=None if column.is_category else found.outside,
        effect=found.effect,
        p=found.p,
        jensen_shannon=found.jensen_shannon,
        psi=found.psi,
        ks=ks,
        ks_p=ks_p,
        chi_squared=chi[0],
        chi_squared_p=chi[1],
        wasserstein=wasserstein,
        most=told_of(column, found, after.tolist()),
        bins=Bins(column.labels(), shares(before).tolist(), shares(after).tolist()),
    )


def _split_null(one: _Measured, seed: int) -> Null:
    """Of A and B put together and split by chance, the bins made of each A anew: they fit best what they were made of."""
    rows, rng = len(one.a), np.random.default_rng(seed)
    pool, blocks = np.concatenate([one.a, sampled(one.b, SPLIT_ROWS)]), np.zeros(rows, dtype=np.int64)
    squared = np.empty(SPLITS)
    for number in range(SPLITS):
        pool = rng.permutation(pool)
        column = one.make(pool[:rows], blocks)
        squared[number] = jensen_shannon(np.array(column.counts[0]), column.count(pool[rows:])) ** 2
    return Null.of(squared, EXACT)


def _raw(a: Values, b: Values) -> tuple[float | None, float | None, float | None]:
    """KS with its p, and Wasserstein, of the values that are there."""
    if not (len(a) and len(b)):
        return None, None, None
    found = stats.ks_2samp(a, b, method="asymp")  # the exact p is of values that are all different, and warns of others
    return float(found.statistic), float(found.pvalue), float(stats.wasserstein_distance(a, b))


def _judged(shifts: Sequence[ColumnShift], effect_min: float) -> list[ColumnShift]:
    corrected = holm([shift.p for shift in shifts])
    return [
        replace(shift, p_holm=p, shifted=p <= ALPHA and shift.effect >= effect_min)
        for shift, p in zip(shifts, corrected, strict=True)
    ]


def _with_joint(
    found: Comparison, a: Values, b: Values, names: Sequence[str], features: Sequence[int], options: Options
) -> Comparison:
    if not features:
        raise ConfigError("--joint: needs a feature among --columns")
    before, after = (sampled(np.ascontiguousarray(matrix[:, list(features)])) for matrix in (a, b))
    joint = joint_drift(before, after, _classifier(options.classifier), seed=options.seed)
    alone = feature_drifts(before, after, [names[i] for i in features], seed=options.seed)
    columns = [column if column.target else replace(column, mlbox=alone[column.name]) for column in found.columns]
    thinned = [f"MLBox's estimates are of {ROWS_MAX:,} rows a side at most, evenly taken"] * (max(len(a), len(b)) > ROWS_MAX)
    return replace(found, joint=joint, classifier=options.classifier, columns=columns, notes=[*found.notes, *thinned])


def _classifier(name: str) -> Classifier:
    if name == "forest":
        return forest
    from tidemill.learners.domain_classifier import lightgbm

    return partial(lightgbm, threads=1)
