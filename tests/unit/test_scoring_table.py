"""The table and its engines, against a plain walk through the trees and against the C library."""

import math
import re
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from tidemill.learners import lightgbm_table
from tidemill.learners.lightgbm import LightGBM, LightGBMModel, TableModel
from tidemill.learners.lightgbm_table import SLOTS, NumpyScorer, Scorer, Table, answers, build_table, edge_rows
from tidemill.learners.lightgbm_text import Forest, NotForTable, read_forest

Matrix = NDArray[np.float64]


def compiled(table: Table) -> Scorer:
    fast = pytest.importorskip("tidemill.learners.lightgbm_fast", reason="the extra 'fast' is not installed")
    scorer: Scorer = fast.CompiledScorer(table)
    return scorer


ENGINES = pytest.mark.parametrize("engine", [NumpyScorer, compiled])


def a_matrix(rows: int = 500) -> Matrix:
    """A number, a number with zeros and gaps, a category of 70, and a column of no use."""
    random = np.random.default_rng(3)
    matrix = np.column_stack(
        [random.normal(size=rows), random.choice([0.0, 1.0, 2.5], rows), random.integers(0, 70, rows), np.ones(rows)]
    ).astype(np.float64)
    matrix[random.random(rows) < 0.1, 1] = np.nan
    return matrix


def a_text(rounds: int = 10, **more: Any) -> str:
    matrix = a_matrix()
    labels = np.nan_to_num(matrix[:, 0] + matrix[:, 1]) + 2 * (matrix[:, 2] % 3)
    parameters = {
        "objective": "regression",
        "min_data_in_leaf": 2,
        "min_data_per_group": 1,
        "cat_smooth": 1,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(matrix, labels, categorical_feature=[2])
    text: str = lightgbm.train(parameters | {"num_threads": 1} | more, data, rounds).model_to_string()
    return text


def a_table(text: str) -> Table:
    return build_table(read_forest(text.encode()))


def walked(forest: Forest, row: list[float]) -> list[float]:
    """The leaf of each tree, by the rules of LightGBM's ``Tree::Decision``, one node after the other."""
    leaves = []
    for tree in range(forest.trees):
        node = int(forest.first_node[tree])
        if forest.first_node[tree + 1] == node:
            node = -1 - int(forest.first_leaf[tree])
        while node >= 0:
            goes = goes_left(forest, node, row[forest.feature[node]])
            node = int((forest.left if goes else forest.right)[node])
        leaves.append(float(forest.leaf_value[-1 - node]))
    return leaves


def goes_left(forest: Forest, node: int, value: float) -> bool:
    decision, missing = int(forest.decision[node]), int(forest.decision[node]) >> 2
    value = 0.0 if abs(value) <= float(np.float32(1e-35)) else value
    if decision & 1:
        code = -1 if math.isnan(value) or abs(value) >= 2**31 else int(value)
        words = forest.bitset[forest.bits_first[node] : forest.bits_last[node]].tolist()
        return 0 <= code < 32 * len(words) and bool(words[code // 32] >> code % 32 & 1)
    if math.isnan(value) and missing != 2:
        value = 0.0
    if (missing == 1 and value == 0) or (missing == 2 and math.isnan(value)):
        return decision & 2 > 0
    return value <= float(forest.threshold[node])


@ENGINES
@pytest.mark.parametrize(
    "more", [{}, {"num_leaves": 200}, {"zero_as_missing": True}, {"use_missing": False, "num_leaves": 2}]
)
def test_it_finds_the_leaves_that_a_walk_finds(engine: Callable[[Table], Scorer], more: dict[str, Any]) -> None:
    """And adds them one after the other, from zero."""
    table = a_table(a_text(**more))
    matrix = edge_rows(table)
    sums = engine(table)(matrix)
    for row, total in zip(matrix.tolist(), sums.tolist(), strict=True):
        expected = 0.0
        for leaf in walked(table.forest, row):
            expected += leaf
        assert [expected] == total


@ENGINES
def test_a_row_has_one_answer_in_any_batch_and_layout(engine: Callable[[Table], Scorer]) -> None:
    """One to seventy rows at a time, turned round, every other row, and more than one step's."""
    table = a_table(a_text())
    scorer, matrix = engine(table), np.tile(a_matrix(), (3, 1))
    together = scorer(matrix)
    for rows in range(1, 71):
        assert scorer(matrix[:rows]).tobytes() == together[:rows].tobytes()
    assert scorer(np.asfortranarray(matrix)).tobytes() == together.tobytes()
    assert scorer(matrix[::2]).tobytes() == together[::2].tobytes()
    assert scorer(matrix[::-1]).tobytes() == together[::-1].tobytes()


@ENGINES
def test_sums_are_not_pairwise(engine: Callable[[Table], Scorer]) -> None:
    """Of numbers whose sum depends on the order, as many as make NumPy split them; for one row, two, and many."""
    table = a_table(a_text(300, num_leaves=2))
    values = np.where(np.arange(table.values.size) % SLOTS < 2, np.random.default_rng(0).normal(size=table.values.size), 0.0)
    values *= 10.0 ** np.random.default_rng(1).integers(-8, 8, values.size)
    odd = Table(**{field: getattr(table, field) for field in Table.__struct_fields__} | {"values": values})
    matrix = a_matrix()
    words = NumpyScorer(odd)._left(matrix)
    leaves = values[np.bitwise_count(words - np.uint64(1)) + np.arange(words.shape[1]) * SLOTS][:, :300]
    expected = []
    for row in leaves.tolist():
        total = 0.0
        for leaf in row:
            total += leaf
        expected.append(total)
    assert np.array(expected).tolist() != leaves.sum(axis=1).tolist()
    for rows in (1, 2, 5, len(matrix)):
        assert engine(odd)(matrix[:rows]).ravel().tolist() == expected[:rows]


@ENGINES
def test_trees_without_a_split_are_scored(engine: Callable[[Table], Scorer]) -> None:
    """No feature matters, and there is nothing to look up."""
    text = a_text(3, min_data_in_leaf=10_000)
    table = a_table(text)
    assert len(table.features) == 0
    scorer = engine(table)
    found = answers(table.forest, scorer(a_matrix()), scorer.exp)
    assert found.tobytes() == np.asarray(lightgbm.Booster(model_str=text).predict(a_matrix())).tobytes()


def test_many_leaves_take_several_words() -> None:
    """A word for 64 leaves each, and the leaves lie where the words say."""
    table = a_table(a_text(num_leaves=200, min_data_in_leaf=1))
    leaves = np.diff(table.forest.first_leaf)
    assert leaves.max() > 128
    assert table.first_column[-1] == sum(-(-leaves // 64))
    assert table.words.shape[1] % 8 == 0


def test_nothing_writes_to_a_table() -> None:
    """Its arrays refuse it."""
    table = a_table(a_text())
    for array in (table.words, table.values):
        with pytest.raises(ValueError, match="read-only"):
            array[:1] = 0


def test_a_table_that_would_be_too_large_is_left_to_lightgbm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is in bytes; the learner then answers by the library, with the same bits."""
    text, matrix = a_text(), a_matrix()
    assert isinstance(LightGBM().load(text.encode()), TableModel)
    monkeypatch.setattr(lightgbm_table, "TABLE_BYTES_MAX", 1000)
    with pytest.raises(NotForTable, match="the table would have"):
        a_table(text)
    model = LightGBM().load(text.encode())
    assert isinstance(model, LightGBMModel)
    assert model.engine == "lightgbm"
    assert model.predict(matrix).tobytes() == np.asarray(lightgbm.Booster(model_str=text).predict(matrix)).tobytes()


def test_a_compiler_that_does_not_know_the_machine_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged once a model, and NumPy goes on."""
    fast = pytest.importorskip("tidemill.learners.lightgbm_fast", reason="the extra 'fast' is not installed")

    def unknown() -> None:
        raise RuntimeError("no target")

    monkeypatch.setattr(fast, "_compiled", unknown)
    model = LightGBM().load(a_text().encode())
    with capture_logs() as logs:
        assert model.faster() is None
    assert [(log["event"], log["reason"]) for log in logs] == [("compiler_unusable", "RuntimeError: no target")]


def test_a_feature_that_is_a_number_and_a_category_is_left_to_lightgbm() -> None:
    """Its values would need two codes."""
    forest = read_forest(a_text().encode())
    fields = {field: getattr(forest, field) for field in Forest.__struct_fields__}
    categories = forest.decision & 1 > 0
    assert categories.any()
    mixed = np.where(categories, 0, forest.feature)
    with pytest.raises(NotForTable, match="feature 0 is a number and a category"):
        build_table(Forest(**fields | {"feature": mixed}))


def test_more_categories_than_a_table_is_made_for_are_left_to_lightgbm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is filled by itself: a short text could else keep a process busy for seconds."""
    monkeypatch.setattr(lightgbm_table, "CATEGORIES_MAX", 10)
    with pytest.raises(NotForTable, match=r"^a feature has \d+ categories$"):
        a_table(a_text())


@ENGINES
@pytest.mark.parametrize("transform", ["none", "square", "exp", "sigmoid", "softmax", "log1p_exp"])
def test_transforms_are_the_c_librarys(transform: str, engine: Callable[[Table], Scorer]) -> None:
    """Bit for bit on sums of every size, alone and many together; what overflows is infinite, or a sure answer."""
    values = np.concatenate([np.random.default_rng(0).normal(scale=20, size=900), [0.0, 709.7, 709.8, 800.0, -750.0, 1e300]])
    outputs = 3 if transform == "softmax" else 1
    table = a_table(a_text(3))
    fields = {field: getattr(table.forest, field) for field in Forest.__struct_fields__}
    forest, exp = Forest(**fields | {"transform": transform, "outputs": outputs, "sigmoid": 0.7}), engine(table).exp

    def power(value: float) -> float:
        return math.inf if value > 709.79 else math.exp(value)

    one: dict[str, Callable[[float], float]] = {
        "none": lambda value: value,
        "square": lambda value: math.copysign(1.0, value) * value * value,
        "exp": power,
        "sigmoid": lambda value: 1.0 / (1.0 + power(-0.7 * value)),
        "log1p_exp": lambda value: math.log1p(power(value)),
    }
    sums = values.reshape(-1, outputs)
    expected: list[Any]
    if transform == "softmax":
        shifted = [[power(value - max(row)) for value in row] for row in sums.tolist()]
        expected = [[value / (row[0] + row[1] + row[2]) for value in row] for row in shifted]
    else:
        expected = [one[transform](value) for value in values.tolist()]
    with np.errstate(over="ignore"):
        assert answers(forest, sums, exp).tobytes() == np.array(expected).tobytes()
        for rows in (1, 60):
            few = [answers(forest, sums[first : first + rows], exp) for first in range(0, len(sums), rows)]
            assert np.concatenate(few).tobytes() == np.array(expected).tobytes()


def test_edge_rows_hold_every_bound_and_its_neighbours() -> None:
    """Of each feature that matters, in a number of rows that does not grow without end; the same ones each time."""
    table = a_table(a_text())
    matrix = edge_rows(table)
    assert matrix.tobytes() == edge_rows(table).tobytes()
    for feature, bounds in zip(table.features, table.bounds, strict=True):
        values = set(matrix[:, feature].tolist())
        assert set(bounds.tolist()) | set(np.nextafter(bounds, np.inf).tolist()) <= values
        assert {0.0, -1.0, -0.5, 2.0**31, math.inf} <= values
        assert np.isnan(matrix[:, feature]).any()
    assert set(range(4)) - set(table.features.tolist()) == {3}
    assert np.isnan(matrix[:, 3]).all()


def test_a_category_that_only_looks_like_one_is_no_category() -> None:
    """-0.5 is the first (LightGBM cuts off the fraction), -1 and 2**31 are none, as NaN is."""
    text = a_text()
    model, matrix = LightGBM().load(text.encode()), np.tile(a_matrix(1), (8, 1))
    matrix[:, 2] = [0.0, -0.5, 0.9, np.nan, -1.0, 2.0**31, 1e300, -np.inf]
    found = model.predict(matrix).tolist()
    assert found[0] == found[1] == found[2]
    assert len(set(found[3:])) == 1
    assert re.search("cat_threshold", text)
