"""What a model learnt from, in brief: bins, blocks, and what was said of known outcomes."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.reference import (
    BLOCKS_MAX,
    BLOCKS_MIN,
    CATEGORIES,
    Blocks,
    Column,
    Reference,
    Scored,
    Values,
    answer_column,
    answers,
    block_width,
    blocks_of_keys,
    blocks_of_times,
    category_column,
    level,
    number_column,
    reference,
    said,
)
from tidemill.core.schema import Feature, Schema, Task
from tidemill.messages import Label

few = settings(max_examples=30, deadline=None)
DAY_MS = 86_400_000
NAN = float("nan")
numbers = st.one_of(
    st.integers(-3, 3).map(float),
    st.sampled_from([NAN, 0.0, -0.0, 1e300, -1e300, 5e-324, 1e-300, 0.1, 1 / 3]),
    st.floats(-1e300, 1e300),
)
columns_of_numbers = st.lists(numbers, max_size=80)
texts = st.integers(1, 60).map(lambda n: [f"c{i}" for i in range(n)])


def one_block(values: Sequence[float]) -> Blocks:
    return np.zeros(len(values), dtype=np.int64)


def of_numbers(values: Sequence[float]) -> Column:
    return number_column("x", np.array(values, dtype=np.float64), one_block(values))


def of_codes(values: Sequence[float], names: Sequence[str]) -> Column:
    return category_column("x", names, np.array(values, dtype=np.float64), one_block(values))


def label_of(column: Column, value: float) -> str:
    """What the value's bin is called."""
    return column.labels()[int(column.bin_of(np.array([value]))[0])]


def slow_bins(column: Column, value: float) -> list[int]:
    """The bins whose bounds, as ``Column`` describes them, hold the value."""
    bounds = [-math.inf, *column.edges, math.inf]
    inside = [low <= value < high for low, high in pairwise(bounds)]
    return [i for i, holds in enumerate([*inside, math.isnan(value)]) if holds]


# -- numbers


@few
@given(learnt=columns_of_numbers, served=st.lists(numbers, max_size=40))
def test_every_number_falls_into_exactly_one_bin(learnt: list[float], served: list[float]) -> None:
    """Whatever was learnt and whatever comes; edges themselves and their neighbours too."""
    column = of_numbers(learnt)
    near = [float(np.nextafter(edge, end)) for edge in column.edges for end in (-np.inf, np.inf)]
    values = [*learnt, *served, *column.edges, *near, NAN]
    found = column.bin_of(np.array(values))
    assert [[one] for one in found.tolist()] == [slow_bins(column, value) for value in values]
    assert len(column.labels()) == column.bins > found.max()


@few
@given(learnt=columns_of_numbers, blocks=st.integers(1, 7))
def test_the_counts_of_a_reference_add_up_to_the_rows_of_each_block(learnt: list[float], blocks: int) -> None:
    """A row of counts for each block, a count for each bin, and what the whole column's window would count."""
    values, numbered = np.array(learnt), np.arange(len(learnt), dtype=np.int64) % blocks
    column = number_column("x", values, numbered)
    of_block = Counter(numbered.tolist())
    assert [sum(counts) for counts in column.counts] == [of_block[i] for i in range(max(1, len(of_block)))]
    assert {len(counts) for counts in column.counts} == {column.bins}
    assert np.sum(column.counts, axis=0).tolist() == column.count(values).tolist()


@few
@given(learnt=columns_of_numbers)
def test_no_number_of_the_reference_is_out_of_its_range(learnt: list[float]) -> None:
    """The first bin and the last one before the missing are for what comes later."""
    column = of_numbers(learnt)
    (counts,) = column.counts
    known = [value for value in learnt if not math.isnan(value)]
    assert counts[-1] == len(learnt) - len(known)
    assert bool(column.edges) == bool(known)
    if known:
        assert (counts[0], counts[-2]) == (0, 0)
        assert label_of(column, float(np.nextafter(min(known), -np.inf))).startswith("below ")
        assert label_of(column, float(np.nextafter(max(known), np.inf))).startswith("above ")
        assert not label_of(column, max(known)).startswith("above ")


@few
@given(learnt=columns_of_numbers)
def test_a_frequent_number_has_a_bin_of_its_own(learnt: list[float]) -> None:
    """From a twentieth of the known rows on: neither a neighbour on the number line nor any other value shares it."""
    column = of_numbers(learnt)
    known = Counter(value for value in learnt if not math.isnan(value))
    frequent = [value for value, count in known.items() if count >= 0.05 * known.total()]
    for value in frequent:
        own = slow_bins(column, value)
        near = [float(np.nextafter(value, end)) for end in (-np.inf, np.inf)]
        assert own not in [slow_bins(column, other) for other in (*near, *known) if other != value]


@few
@given(rows=st.integers(100, 400), spread=st.floats(1, 300), seed=st.integers(0, 2**32))
def test_no_bin_of_several_numbers_is_crowded(rows: int, spread: float, seed: int) -> None:
    """It has at most a tenth of the rows and one: a twentieth of a quantile's, another of a tie that is not frequent."""
    learnt = np.random.default_rng(seed).exponential(spread, rows).round().tolist()
    column = of_numbers(learnt)
    held: dict[int, list[float]] = {}
    for value, bin in zip(learnt, column.bin_of(np.array(learnt)).tolist(), strict=True):
        held.setdefault(bin, []).append(value)
    assert all(len(values) <= 0.1 * rows + 1 for values in held.values() if len(set(values)) > 1)


@pytest.mark.parametrize(
    ("learnt", "labels", "counts"),
    [
        ([7.0] * 5, ["below 7", "7", "above 7", "(missing)"], [0, 5, 0, 0]),
        ([NAN] * 4, ["(any)", "(missing)"], [0, 4]),
        ([], ["(any)", "(missing)"], [0, 0]),
        ([1.0, 2.0, 2.0, NAN], ["below 1", "1", "1 to 2", "2", "above 2", "(missing)"], [0, 1, 0, 2, 0, 1]),
        ([-1e300, 1e300], ["below -1e+300", "-1e+300", "-1e+300 to 1e+300", "1e+300", "above 1e+300", "(missing)"], None),
        ([0.0, 5e-324], ["below 0", "0", "4.94066e-324", "above 4.94066e-324", "(missing)"], [0, 1, 1, 0, 0]),
        ([1.0, 2.0, 3.0], ["below 1", "1", "1 to 2", "2", "2 to 3", "3", "above 3", "(missing)"], [0, 1, 0, 1, 0, 1, 0, 0]),
    ],
    ids=["constant", "all missing", "no rows", "two values", "huge", "tiny", "integers"],
)
def test_columns_of_few_values_are_called_by_them(learnt: list[float], labels: list[str], counts: list[int] | None) -> None:
    """Each value is a bin, with what lies between and beyond."""
    column = of_numbers(learnt)
    assert column.labels() == labels
    assert column.counts == [counts or [0, 1, 0, 1, 0, 0]]


def test_a_value_lands_where_the_labels_say() -> None:
    """At an edge, between, below the lowest, above the highest, missing."""
    column = of_numbers([1, 1, 2, 3, 3])
    found = {value: label_of(column, value) for value in (1.0, 1.5, 2.0, 2.9, 3.0, 3.1, 0.9, math.inf, -math.inf, NAN)}
    assert list(found.values()) == [
        "1",
        "1 to 2",
        "2",
        "2 to 3",
        "3",
        "above 3",
        "below 1",
        "above 3",
        "below 1",
        "(missing)",
    ]


def test_what_lies_above_zero_is_called_by_zero() -> None:
    """As a person would: many columns are mostly zero."""
    assert of_numbers([0.0, 0.0, 1.0]).labels() == ["below 0", "0", "0 to 1", "1", "above 1", "(missing)"]


def test_where_nothing_was_known_any_number_is_one() -> None:
    """It is not missing, and that is all there is to say."""
    column = of_numbers([NAN, NAN])
    assert label_of(column, 3.0) == "(any)"
    assert column.count(np.array([3.0, -1e300, NAN])).tolist() == [2, 1]


def test_an_endless_number_in_the_reference_is_out_of_its_range() -> None:
    """The bins are those of the finite ones, and the row still counts."""
    column = of_numbers([math.inf, 1.0, 2.0, -math.inf])
    assert column.counts == [[1, 1, 0, 1, 1, 0]]
    assert all(map(math.isfinite, column.edges))


def test_the_highest_float_is_a_number_like_others() -> None:
    """Its column can be stored and read again."""
    with np.errstate(over="ignore"):
        column = of_numbers([1.0, float(np.finfo(np.float64).max)])
    assert msgspec.json.decode(msgspec.json.encode(column), type=Column) == column


def test_a_wide_column_has_a_bin_for_each_twentieth() -> None:
    """A window of 1,000 rows has 50 in each."""
    column = of_numbers(np.random.default_rng(0).normal(size=1000).tolist())
    (counts,) = column.counts
    assert (len(counts), counts[0], counts[-2:]) == (23, 0, [0, 0])
    assert set(counts[1:-2]) <= {49, 50, 51}


# -- categories


@few
@given(names=texts, data=st.data())
def test_every_code_falls_into_the_bin_of_its_text(names: list[str], data: st.DataObject) -> None:
    """The forty most frequent have their own; then others, unseen (never there, or no code) and missing."""
    codes = st.one_of(st.integers(0, len(names) - 1).map(float), st.just(NAN))
    learnt = data.draw(st.lists(codes, max_size=120))
    column = of_codes(learnt, names)
    counts = Counter(int(code) for code in learnt if not math.isnan(code))
    ranked = sorted(counts, key=lambda code: (-counts[code], code))
    own = {code: names[code] for code in ranked[:CATEGORIES]}
    for code in range(len(names)):
        expected = own.get(code, "(others)" if counts[code] else "(unseen)")
        assert label_of(column, code) == expected
    assert label_of(column, -1) == "(unseen)"
    assert label_of(column, NAN) == "(missing)"
    assert len(column.labels()) == column.bins
    assert [sum(block) for block in column.counts] == [len(learnt)]
    assert column.counts[0][-2:] == [0, len(learnt) - counts.total()]


def test_a_category_beyond_the_fortieth_is_one_of_the_others() -> None:
    """Of equals the earlier code has the bin."""
    names = [f"c{i}" for i in range(CATEGORIES + 2)]
    column = of_codes([float(i) for i in range(CATEGORIES + 2)], names)
    assert column.categories == names[:CATEGORIES]
    assert column.counts == [[*[1] * CATEGORIES, 2, 0, 0]]


def test_unseen_texts_are_not_missing_ones() -> None:
    """The matrix has NaN for both; how many are texts is said beside it. A number has none."""
    column = of_codes([0, 0, 1], ["a", "b"])
    assert column.count(np.array([0, 1, NAN, NAN, NAN]), unseen=2).tolist() == [1, 1, 0, 2, 1]
    assert of_numbers([1.0]).count(np.array([1.0, NAN, NAN]), unseen=2).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("names", [[], ["a"]])
def test_a_category_that_never_occurred_has_only_the_common_bins(names: list[str]) -> None:
    """Any text is then unseen."""
    column = of_codes([NAN, NAN], names)
    assert column.is_category
    assert column.labels() == ["(others)", "(unseen)", "(missing)"]
    assert column.count(np.array([0.0, -1.0, NAN])).tolist() == [0, 2, 1]


def test_counts_of_a_category_are_kept_by_block() -> None:
    """In the order of the blocks, also where one has no rows."""
    column = category_column("x", ["a", "b"], np.array([0.0, 1, 1, NAN]), np.array([0, 0, 2, 2]))
    assert column.categories == ["b", "a"]
    assert column.counts == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]]


# -- blocks


@pytest.mark.parametrize(
    ("days", "width_days"),
    [(100, 1), (20, 1), (14, 1), (13, 13 / 14), (5, 5 / 14), (1, 1 / 14), (1000, 5), (200, 1), (3650, 18.25)],
)
def test_a_block_is_a_day_unless_that_makes_too_few_or_too_many(days: int, width_days: float) -> None:
    """Fourteen at least, 200 at most; a width is whole milliseconds."""
    assert block_width(np.array([0, days * DAY_MS - 1]) + 1_700_000_000_000, DAY_MS) == int(width_days * DAY_MS)


def test_without_time_there_is_no_width() -> None:
    """No rows, or all at the same moment: one block."""
    assert block_width(np.array([], dtype=np.int64), DAY_MS) == block_width(np.array([5, 5]), DAY_MS) == 0
    assert blocks_of_times(np.array([5, 5]), 0).tolist() == [0, 0]
    assert blocks_of_times(np.array([], dtype=np.int64), 0).tolist() == []


@few
@given(span=st.integers(2, 10**12), block_ms=st.integers(1, 10**11), began=st.integers(-(10**12), 10**13))
def test_there_are_enough_blocks_and_not_too_many(span: int, block_ms: int, began: int) -> None:
    """If each has a row: 14 to 200, or one a millisecond where there are fewer of them."""
    width = block_width(np.array([began + span - 1, began]), block_ms)
    assert min(BLOCKS_MIN, span) <= -(-span // width) <= BLOCKS_MAX


@few
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60), st.integers(1, 900))
def test_rows_of_a_stretch_of_time_are_a_block(times: list[int], width_ms: int) -> None:
    """In the order of time, numbered from 0 without gaps, whatever order they come in."""
    found = blocks_of_times(np.array(times), width_ms).tolist()
    stretches = [(time - min(times)) // width_ms for time in times]
    assert found == [sorted(set(stretches)).index(stretch) for stretch in stretches]


@few
@given(st.lists(st.one_of(st.integers(0, 400).map(float), st.just(NAN)), min_size=1, max_size=500))
def test_rows_of_one_key_are_in_one_block(keys: list[float]) -> None:
    """Missing is a key; with more keys than blocks some share one; numbered from 0 without gaps."""
    found = blocks_of_keys(np.array(keys)).tolist()
    names = [str(key) for key in keys]
    pairs = set(zip(names, found, strict=True))
    assert len(pairs) == len(set(names))
    assert set(found) == set(range(min(BLOCKS_MAX, len(set(names)))))


@few
@given(
    st.lists(st.tuples(st.integers(0, 4), st.one_of(st.integers(-5, 5).map(float), st.just(NAN))), max_size=40),
)
def test_a_level_holds_the_sums_of_its_blocks(rows: list[tuple[int, float]]) -> None:
    """What is not known does not count, nor does a block behind the last known value."""
    found = level("error", np.array([value for _, value in rows]), np.array([block for block, _ in rows], dtype=np.int64))
    known = [(block, value) for block, value in rows if not math.isnan(value)]
    blocks = range(max((block for block, _ in known), default=-1) + 1)
    assert found.rows == [sum(b == block for b, _ in known) for block in blocks]
    assert found.sums == [sum(v for b, v in known if b == block) for block in blocks]
    assert found.squares == [sum(v * v for b, v in known if b == block) for block in blocks]


# -- what was said


@few
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=20))
def test_answers_to_two_classes_against_a_slow_twin(rows: list[tuple[bool, float]]) -> None:
    """The log loss of each row, and the outcome less the probability."""
    labels, chances = np.array([float(hit) for hit, _ in rows]), np.array([chance for _, chance in rows])
    told = answers("binary", labels, chances)
    tiny = float(np.finfo(np.float64).eps)
    kept = [min(max(chance, tiny), 1 - tiny) for chance in chances.tolist()]
    expected = [-math.log(chance) if hit else -math.log1p(-chance) for (hit, _), chance in zip(rows, kept, strict=True)]
    assert told.errors.tolist() == pytest.approx(expected)
    assert told.residuals.tolist() == [hit - chance for hit, chance in rows]
    assert said("binary", chances) is chances


@few
@given(st.integers(2, 5), st.integers(0, 20), st.integers(0, 2**32))
def test_answers_to_several_classes_against_a_slow_twin(classes: int, rows: int, seed: int) -> None:
    """The log loss of each row, and a hit less the chosen class's probability."""
    rng = np.random.default_rng(seed)
    labels, chances = rng.integers(classes, size=rows).astype(np.float64), rng.dirichlet(np.ones(classes), rows)
    told = answers("multiclass", labels, chances)
    chosen = [row.index(max(row)) for row in chances.tolist()]
    assert said("multiclass", chances).tolist() == chosen
    assert told.errors.tolist() == pytest.approx([-math.log(chances[i, int(labels[i])]) for i in range(rows)])
    assert told.residuals.tolist() == pytest.approx([(chosen[i] == labels[i]) - max(chances[i]) for i in range(rows)])


@few
@given(st.lists(st.tuples(st.integers(-100, 100), st.integers(-100, 100)), max_size=20))
def test_answers_of_a_value_against_a_slow_twin(rows: list[tuple[int, int]]) -> None:
    """The squared error of each row, and the outcome less the prediction."""
    labels, values = (np.array([row[i] for row in rows], dtype=np.float64) for i in (0, 1))
    told = answers("regression", labels, values)
    assert told.errors.tolist() == [(label - value) ** 2 for label, value in rows]
    assert told.residuals.tolist() == [label - value for label, value in rows]
    assert said("regression", values) is values


@pytest.mark.parametrize(
    ("task", "names", "labels"),
    [("multiclass", ["no", "yes"], ["yes", "no", "(others)", "(unseen)", "(missing)"]), ("regression", [], None)],
)
def test_answers_are_counted_as_classes_or_as_numbers(task: Task, names: list[str], labels: list[str] | None) -> None:
    """Classes by their texts."""
    column = answer_column(task, "outcome", np.array([1.0, 1.0, 0.0]) + (not names), names, one_block([0, 0, 0]))
    assert column.name == "outcome"
    assert column.labels() == (labels or ["below 1", "1", "1 to 2", "2", "above 2", "(missing)"])


# -- the whole


def a_reference(task: Task, rows: int = 60, blocks: int = 6, seed: int = 0) -> tuple[Reference, Values]:
    """Of a number and a category, with their importances, and the matrix; a tenth of the rows was never predicted, but the
    model that serves answers them all.
    """
    rng = np.random.default_rng(seed)
    matrix = np.column_stack([rng.normal(size=rows), rng.integers(0, 3, rows)])
    classes: tuple[Label, ...] = {"binary": (False, True), "multiclass": (1.0, 2, "c"), "regression": ()}[task]
    schema = Schema((Feature("x", "number"), Feature("c", "category", ("a", "b", "d"))), "y", task, classes)
    labels = rng.integers(len(classes), size=rows).astype(np.float64) if classes else rng.normal(size=rows)
    predictions = rng.dirichlet(np.ones(3), rows) if task == "multiclass" else rng.random(rows)
    predictions[: rows // 10] = NAN
    numbered = np.arange(rows) * blocks // rows
    scored = Scored(labels, predictions, numbered, np.where(np.isnan(predictions), 0.5, predictions), numbered)
    found = reference(schema, matrix, {1: ["a", "b", "d"]}, np.array([3.0, 1.0]), numbered, DAY_MS, scored)
    return found, matrix


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_reference_is_the_same_after_it_was_stored(task: Task) -> None:
    """As JSON; every column bins what comes as it did before."""
    found, matrix = a_reference(task)
    again = msgspec.json.decode(msgspec.json.encode(found), type=Reference)
    assert again == found
    for i, column in enumerate(again.features):
        assert column.count(matrix[:, i]).tolist() == np.sum(found.features[i].counts, axis=0).tolist()


@pytest.mark.parametrize(
    ("task", "outcomes"),
    [
        ("binary", {"false", "true", "(others)", "(unseen)", "(missing)"}),
        ("multiclass", {"1", "2", "c", "(others)", "(unseen)", "(missing)"}),
    ],
)
def test_outcomes_of_classes_are_called_by_their_texts(task: Task, outcomes: set[str]) -> None:
    """And so are predictions, where one of several is chosen; of two it is the probability that is compared."""
    found, _ = a_reference(task)
    assert set(found.outcomes[0].labels()) == outcomes
    assert found.predictions[0].is_category == (task == "multiclass")


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_only_rows_that_were_predicted_tell_of_answers(task: Task) -> None:
    """Six of 60 were not; features count them all, and so does what the serving model says of them. What was told is by
    block, without those that had no prediction.
    """
    found, _ = a_reference(task, rows=60, blocks=10)
    counts = [np.sum(column.counts) for column in (*found.features, *found.predictions, *found.outcomes)]
    assert counts == [60, 60, 54, 60, 54]
    assert [one.name for one in found.levels] == ["error", "calibration"]
    assert [one.rows for one in found.levels] == [[6] * 9] * 2
    assert [len(column.counts) for column in (*found.features, *found.predictions, *found.outcomes)] == [10, 10, 9, 10, 9]


def of_answers(
    unlearnt: Values, own: Values, blocks: Blocks | None = None, own_blocks: Blocks | None = None
) -> list[Column]:
    """A regression's predictions: of rows that were not learnt from, and the serving model's own."""
    schema = Schema((Feature("x", "number"),), "y", "regression")
    blocks = one_block(unlearnt.tolist()) if blocks is None else blocks
    own_blocks = one_block(own.tolist()) if own_blocks is None else own_blocks
    scored = Scored(np.zeros(len(unlearnt)), unlearnt, blocks, own, own_blocks)
    matrix, of_rows = np.zeros((len(unlearnt), 1)), one_block(unlearnt.tolist())
    return reference(schema, matrix, {}, np.ones(1), of_rows, scored=scored).predictions


finite = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e100, 1e100))


@few
@given(
    unlearnt=st.lists(finite, min_size=1, max_size=60),
    own=st.lists(finite, max_size=60),
    blocks=st.integers(1, 5),
    own_blocks=st.integers(1, 5),
)
def test_both_references_of_answers_have_the_same_bins(
    unlearnt: list[float], own: list[float], blocks: int, own_blocks: int
) -> None:
    """Those of the rows that were not learnt from, ten at most and what is missing; each has the counts of its own rows, by
    its own blocks, and a column finds the same of a window as the other.
    """
    answered = [np.array(unlearnt), np.array(own)]
    numbered = [np.arange(len(unlearnt)) % blocks, np.arange(len(own)) % own_blocks]
    with np.errstate(over="ignore"):
        first, second = of_answers(*answered, *numbered)
    assert (first.name, first.edges, first.labels()) == (second.name, second.edges, second.labels())
    assert first.bins <= 11
    for column, values, blocked in zip((first, second), answered, numbered, strict=True):
        found = [column.count(values[blocked == i]).tolist() for i in range(int(blocked.max(initial=0)) + 1)]
        assert column.counts == found


def test_what_lies_beyond_the_references_answers_falls_in_the_end_bins() -> None:
    """Its ends are open, a tenth of the answers lies in each bin: another model than the folds' serves, whose answers go
    further, and these are as ordinary as the furthest that were seen.
    """
    unlearnt = np.random.default_rng(0).permutation(np.arange(200.0))
    first, second = of_answers(unlearnt, np.array([-50.0, -1e300, 500.0, 1e300, 1e9]))
    assert first.counts == [[20] * 10 + [0]]
    assert second.counts == [[2, *[0] * 8, 3, 0]]
    for column in (first, second):
        assert column.bin_of(np.array([-math.inf, -1.0, 0.0, 199.0, 200.0, math.inf])).tolist() == [0, 0, 0, 9, 9, 9]


def test_outcomes_have_ends() -> None:
    """Unlike answers: an outcome beyond those that were learnt has a bin that had none."""
    outcomes = a_reference("regression")[0].outcomes[0]
    assert outcomes.count(np.array([-1e9, 1e9])).tolist() == [1, *[0] * (outcomes.bins - 3), 1, 0]
    assert [block[0] + block[-2] for block in outcomes.counts] == [0] * len(outcomes.counts)


@pytest.mark.parametrize("own", ["yes", "no"])
def test_a_class_that_only_the_serving_model_chooses_is_unseen(own: str) -> None:
    """Of classes, too, both references have the bins of the rows that were not learnt from."""
    schema = Schema((Feature("x", "number"),), "y", "multiclass", ("no", "yes", "may"))
    chances = np.tile([[0.2, 0.5, 0.3]], (4, 1))
    served = np.eye(3)[[schema.classes.index(own)] * 6]
    scored = Scored(np.zeros(4), chances, one_block([0] * 4), served, one_block([0] * 6))
    first, second = reference(schema, np.zeros((4, 1)), {}, np.ones(1), one_block([0] * 4), scored=scored).predictions
    assert first.labels() == second.labels() == ["yes", "(others)", "(unseen)", "(missing)"]
    assert first.counts == [[4, 0, 0, 0]]
    assert second.counts == ([[6, 0, 0, 0]] if own == "yes" else [[0, 0, 6, 0]])


def test_importances_are_shares() -> None:
    """They add up to 1, also where the model has used no feature."""
    schema = Schema((Feature("x", "number"), Feature("z", "number")), "y", "binary", (0, 1))
    matrix, blocks = np.zeros((4, 2)), one_block([0, 0, 0, 0])
    assert reference(schema, matrix, {}, np.array([3.0, 1.0]), blocks).importances == [0.75, 0.25]
    assert reference(schema, matrix, {}, np.zeros(2), blocks).importances == [0.5, 0.5]


def test_one_block_is_none() -> None:
    """Where all rows are of one block, how stretches differ is not known."""
    assert not a_reference("binary", blocks=1)[0].blocked
    assert a_reference("binary", blocks=2)[0].blocked
    assert a_reference("binary")[0].block_ms == DAY_MS


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_where_nothing_was_predicted_there_is_nothing_to_tell(task: Task) -> None:
    """The reference is made all the same, with empty columns, whether or not the serving model has said anything."""
    schema = Schema(
        (Feature("x", "number"),), "y", task, () if task == "regression" else (0, 1, 2)[: 2 + (task != "binary")]
    )
    predictions = np.full((4, 3), NAN) if task == "multiclass" else np.full(4, NAN)
    for rows in (0, 4):
        own = np.zeros_like(predictions)[:rows]
        scored = Scored(np.zeros(4), predictions, one_block([0] * 4), own, one_block([0] * rows))
        found = reference(schema, np.zeros((4, 1)), {}, np.ones(1), one_block([0] * 4), scored=scored)
        assert np.sum(found.predictions[0].counts) == np.sum(found.outcomes[0].counts) == 0
        assert np.sum(found.predictions[1].counts) == rows
        assert [one.rows for one in found.levels] == [[], []]


def test_a_level_has_a_mean() -> None:
    """Over all of its rows, whatever their blocks; of none it is not a number."""
    assert level("error", np.array([1.0, 2.0, 6.0, NAN]), one_block([0, 0, 0, 0])).mean == 3.0
    assert math.isnan(level("error", np.zeros(0), one_block([])).mean)


def test_one_absurd_outcome_does_not_make_a_reference_unreadable() -> None:
    """A target of 1e80 has an error of 1e160, whose square no float holds."""
    schema = Schema((Feature("x", "number"),), "y", "regression")
    scored = Scored(np.array([0.0, 1.0, 1e80]), np.zeros(3), one_block([0] * 3), np.zeros(3), one_block([0] * 3))
    with np.errstate(over="ignore"):
        found = reference(schema, np.zeros((3, 1)), {}, np.ones(1), one_block([0] * 3), scored=scored)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Reference) == found
