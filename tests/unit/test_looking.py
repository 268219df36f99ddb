"""What one look sees: windows of tallies, and what they are against the champion's reference."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tidemill.core import looking, shift
from tidemill.core.alarms import Finding, Kind, Limits, passing
from tidemill.core.looking import ROWS_STEP, Comparer, Known, Size, Tally, add, told_of, window
from tidemill.core.reference import Column, Reference, Scored, Values, answers, level, number_column, reference
from tidemill.core.schema import Feature, Schema
from tidemill.core.shift import Null, jensen_shannon, measure, move, null_of

few = settings(max_examples=30, deadline=None)
DAY_MS = 86_400_000
EFFECT_MIN = 0.2
LEARNT_ROWS = 4000
SCHEMA = Schema(
    (Feature("x", "number"), Feature("c", "category", ("a", "b", "d"))), target="y", task="binary", classes=("no", "yes")
)


def tally(rows: int, began_at: int, ended_at: int, counts: int = 0) -> Tally:
    return Tally(rows, began_at, ended_at, [[counts, rows]], [counts], [rows], float(counts), float(-counts))


tallies = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 100), st.integers(0, 50), st.integers(0, 9)).map(
        lambda drawn: tally(drawn[0], drawn[1], drawn[1] + drawn[2], drawn[3])
    ),
    max_size=8,
)


class Rows(NamedTuple):
    """Requests, what was answered, and what came of them."""

    matrix: Values
    predictions: Values
    labels: Values

    def seen(self, by: Reference, labelled: bool = True) -> Tally:
        """Counted as a look does, in a day."""
        told = answers("binary", self.labels, self.predictions)
        counted = Tally(
            len(self.labels),
            0,
            DAY_MS,
            [column.count(self.matrix[:, i]).tolist() for i, column in enumerate(by.features)],
            by.predictions[0].count(self.predictions).tolist(),
        )
        if not labelled:
            return counted
        return msgspec.structs.replace(
            counted,
            outcomes=by.outcomes[0].count(self.labels).tolist(),
            errors=float(told.errors.sum()),
            residuals=float(told.residuals.sum()),
        )


def some_rows(rows: int, seed: int, x: float = 0.0, d: float = 0.1, sure: float = 0.0) -> Rows:
    """``x`` is its mean, ``d`` the share of the category d; ``sure`` is added to the chances of what is predicted."""
    rng = np.random.default_rng(seed)
    number = rng.normal(x, 1, rows)
    codes = rng.choice(3, rows, p=[0.6 * (1 - d) / 0.9, 0.3 * (1 - d) / 0.9, d])
    true = 1 / (1 + np.exp(-number))
    return Rows(
        np.column_stack([number, codes.astype(np.float64)]),
        np.clip(true + sure, 0.001, 0.999),
        (rng.random(rows) < true).astype(np.float64),
    )


def learnt(schema: Schema = SCHEMA) -> Reference:
    """Of rows without order."""
    rows, blocks = some_rows(LEARNT_ROWS, 1), np.zeros(LEARNT_ROWS, dtype=np.int64)
    scored = Scored(rows.labels, rows.predictions, blocks, rows.predictions, blocks)
    return reference(schema, rows.matrix, {1: ["a", "b", "d"]}, np.array([3.0, 1.0]), blocks, scored=scored)


REFERENCE = learnt()


@pytest.fixture(scope="module")
def comparer() -> Comparer:
    """It keeps what it has drawn, and is as good as new for that."""
    return Comparer(REFERENCE, 0)


def found(by: Comparer, seen: Tally, known: Known = Known()) -> dict[str, Finding]:  # noqa: B008  # it is frozen
    """By name."""
    return {one.name: one for one in (*by.served(seen, known, EFFECT_MIN), *by.told(seen, known, EFFECT_MIN))}


def of_name(name: str) -> Finding:
    """What a look found of one thing."""
    kinds: dict[str, Kind] = {
        "prediction": "prediction",
        "outcome": "outcome",
        "error": "error",
        "calibration": "calibration",
    }
    return Finding(name, kinds.get(name, "feature"), 0.0, 0.5, 1.0, "")


# -- windows


@few
@given(tallies, st.integers(1, 90), st.integers(0, 100), st.integers(0, 130))
def test_a_window_is_the_newest_that_reaches_back_far_enough(
    given: list[Tally], rows: int, least_ms: int, whole_ms: int
) -> None:
    """The shortest of the last tallies with the rows and the whole time; else all of them, if they have the rows and the
    least time; else none.
    """
    ends = [given[i:] for i in reversed(range(len(given)))]

    def span(taken: Sequence[Tally]) -> int:
        return max(one.ended_at for one in taken) - min(one.began_at for one in taken)

    whole = [end for end in ends if sum(one.rows for one in end) >= rows and span(end) >= whole_ms]
    taken = (whole or ends[-1:] or [[]])[0]
    enough = bool(taken) and sum(one.rows for one in taken) >= rows and span(taken) >= least_ms
    assert window(given, Size(rows, least_ms, whole_ms)) == (add(taken) if enough else None)


def test_without_blocks_of_time_rows_are_enough() -> None:
    """The last look's, or more where it has too few."""
    given = [tally(50, 0, 1), tally(60, 1, 2), tally(100, 2, 3)]
    assert window(given, Size(100, 0, 0)) == given[-1]
    assert window(given, Size(101, 0, 0)) == add(given[1:])
    assert window(given, Size(211, 0, 0)) is None
    assert window([], Size(1, 0, 0)) is None


def test_an_early_window_may_be_shorter_but_not_too_short() -> None:
    """Between the least and the whole time all tallies are taken."""
    given = [tally(100, day * DAY_MS, (day + 1) * DAY_MS) for day in range(9)]
    size = Size(100, 7 * DAY_MS // 3, 7 * DAY_MS)
    days = [found and (found.ended_at - found.began_at) // DAY_MS for found in (window(given[:n], size) for n in range(10))]
    assert days == [None, None, None, 3, 4, 5, 6, 7, 7, 7]


@few
@given(tallies.filter(bool), st.data())
def test_tallies_add_up_in_any_grouping(given: list[Tally], data: st.DataObject) -> None:
    """And in any order; one alone is itself. The time that parts took adds up as well, without what lies between them."""
    at = data.draw(st.integers(1, len(given)))
    parts = [add(part) for part in (given[:at], given[at:]) if part]
    assert add(parts) == add(given) == add(data.draw(st.permutations(given)))
    assert add(given[:1]) == given[0]
    assert add(given).rows == sum(one.rows for one in given)
    assert add(given).labelled == sum(one.labelled for one in given)
    busy_ms = sum(one.ended_at - one.began_at for one in given)
    assert add(given).ended_at - add(given).began_at - add(given).gaps_ms == busy_ms
    assert add(given).features[0] == [sum(one.features[0][i] for one in given) for i in (0, 1)]


def test_looks_of_a_moment_take_no_time_in_any_grouping() -> None:
    """Where all requests of a look have the same time; what lies between two of them is not theirs."""
    first, second, third = (Tally(5, at, at, [[5]], []) for at in (0, 30 * DAY_MS, 60 * DAY_MS))
    assert add([add([first, second]), third]) == add([first, second, third])
    assert add([first, second, third]).gaps_ms == 60 * DAY_MS


def test_a_tally_without_outcomes_adds_none() -> None:
    """Nor one without predictions; what the others have counts."""
    bare = Tally(5, 0, 9, [[5]], [])
    full = Tally(7, 3, 12, [[7]], [3, 4], [1, 2], 0.5, -0.25)
    assert add([bare, full]) == Tally(12, 0, 12, [[12]], [3, 4], [1, 2], 0.5, -0.25, 12 - 9 - 9)
    assert add([bare, bare]) == Tally(10, 0, 9, [[10]], [], gaps_ms=9 - 9 - 9)
    assert (bare.labelled, full.labelled) == (0, 3)


def test_a_tally_of_an_absurd_outcome_can_be_stored() -> None:
    """A regression's outcome of 1e160 has a squared error that no float holds."""
    with np.errstate(over="ignore"):
        told = answers("regression", np.array([1e160]), np.array([0.0]))
    seen = Tally(1, 0, 0, [], [], [1], float(told.errors.sum()), float(told.residuals.sum()))
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Tally) == seen


# -- findings


def test_ordinary_rows_are_ordinary(comparer: Comparer) -> None:
    """Each thing has a finding; of 20 windows none passes at an alpha of 1 %, whatever the effect. By chance one would with
    18 % of seeds, and these are fixed.
    """
    for seed in range(10, 30):
        findings = found(comparer, some_rows(1000, seed).seen(REFERENCE))
        assert list(findings) == ["x", "c", "prediction", "outcome", "error", "calibration"]
        assert passing(list(findings.values()), 0.01, Limits(effect_min=0.0)) == []


def test_findings_say_what_they_are_of(comparer: Comparer) -> None:
    """Features have the importance that they have for the model, the others 1."""
    findings = found(comparer, some_rows(1000, 10).seen(REFERENCE))
    assert [(one.kind, one.importance) for one in findings.values()] == [
        ("feature", 0.75),
        ("feature", 0.25),
        ("prediction", 1.0),
        ("outcome", 1.0),
        ("error", 1.0),
        ("calibration", 1.0),
    ]
    assert not any(one.known for one in findings.values())


def test_a_number_that_moves_is_found(comparer: Comparer) -> None:
    """By a whole standard deviation: it, and the predictions and outcomes that follow it. Error and calibration do not rise:
    the model is as right as it was.
    """
    findings = found(comparer, some_rows(1000, 10, x=1.0).seen(REFERENCE))
    assert {name for name, one in findings.items() if one.p < 1e-6} == {"x", "prediction", "outcome"}
    assert findings["x"].effect > 0.3
    assert min(findings["error"].p, findings["calibration"].p) > 0.01


def test_a_category_that_grows_is_named(comparer: Comparer) -> None:
    """With its share before and now."""
    seen = some_rows(2000, 10, d=0.7).seen(REFERENCE)
    before = sum(counts[REFERENCE.features[1].labels().index("d")] for counts in REFERENCE.features[1].counts) / LEARNT_ROWS
    now = seen.features[1][REFERENCE.features[1].labels().index("d")] / 2000
    one = found(comparer, seen)["c"]
    assert one.text == f"c: d {before:.1%} before, {now:.1%} now (distance {one.effect:.2f})"
    assert one.p < 1e-9
    assert one.effect > 0.4


@few
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=4, max_size=4))
def test_a_text_names_the_bin_that_moved_most(counts: list[tuple[int, int]]) -> None:
    """The first of equals."""
    before, now = ([pair[i] for pair in counts] for i in (0, 1))
    assume(sum(before) and sum(now))
    column = Column("x", [before], edges=[1.0, 2.0])
    moved = [abs(a / sum(before) - b / sum(now)) for a, b in counts]
    shift = measure(column, np.array(now), Null(0.01, 5.0, 20.0))
    named = [label for label in column.labels() if told_of(column, shift, now).startswith(f"x: {label} ")]
    assert len(named) == 1
    assert moved[column.labels().index(named[0])] == pytest.approx(max(moved))


def test_only_an_error_that_rises_is_out_of_the_ordinary(comparer: Comparer) -> None:
    """One-sided: half of p where it rises, the rest of it where it falls. Calibration has both sides."""
    ordinary = some_rows(1000, 10).seen(REFERENCE)
    error = REFERENCE.levels[0]
    for by in (-0.1, -0.01, 0.0, 0.01, 0.1):
        seen = msgspec.structs.replace(ordinary, errors=ordinary.errors + 1000 * by, residuals=1000 * by)
        findings = found(comparer, seen)
        moved = move(error, 1000, seen.errors, 0)
        assert findings["error"].p == pytest.approx(moved.p / 2 if moved.effect > 0 else 1 - moved.p / 2)
        assert findings["error"].effect == moved.effect
        calibration = move(REFERENCE.levels[1], 1000, seen.residuals, 0)
        assert (findings["calibration"].p, findings["calibration"].effect) == (calibration.p, calibration.effect)
    assert found(comparer, msgspec.structs.replace(ordinary, errors=0.0))["error"].p > 0.999
    assert found(comparer, msgspec.structs.replace(ordinary, errors=2 * ordinary.errors))["error"].p < 1e-9


def test_predictions_that_are_too_low_are_found_by_their_outcomes(comparer: Comparer) -> None:
    """The features are as ever; a person reads how many more outcomes there are than predicted."""
    seen = some_rows(2000, 10, sure=-0.3).seen(REFERENCE)
    findings = found(comparer, seen)
    assert {name for name, one in findings.items() if one.p < 1e-6} == {"prediction", "error", "calibration"}
    told = findings["calibration"]
    assert told.effect > EFFECT_MIN
    assert told.text.startswith("calibration: outcomes are 0.2")
    assert told.text.endswith(" more than predicted, on average")
    assert found(comparer, some_rows(2000, 10, sure=0.3).seen(REFERENCE))["calibration"].text.endswith(
        " less than predicted, on average"
    )
    before, now = sum(REFERENCE.levels[0].sums) / LEARNT_ROWS, seen.errors / 2000
    assert findings["error"].text == f"error: mean loss {before:.4g} in training, {now:.4g} now"


# -- predictions, between two references


def flat(rows: int, seed: int, wide: float) -> Values:
    """Answers of a model that is as sure as ``wide`` says."""
    return 1 / (1 + np.exp(-wide * np.random.default_rng(seed).normal(size=rows)))


def answered(own: Values) -> Reference:
    """The same, but for what the serving model says of rows that it has learnt from."""
    rows, blocks = some_rows(LEARNT_ROWS, 1), np.zeros(LEARNT_ROWS, dtype=np.int64)
    scored = Scored(rows.labels, rows.predictions, blocks, own, np.zeros(len(own), dtype=np.int64))
    return reference(SCHEMA, rows.matrix, {1: ["a", "b", "d"]}, np.array([3.0, 1.0]), blocks, scored=scored)


SURER = answered(flat(1000, 2, 2.5))


def of_predictions(by: Comparer, predictions: Values, known: Known = Known()) -> Finding:  # noqa: B008  # it is frozen
    (one,) = by.served(said_so(predictions), known, EFFECT_MIN)[2:]
    return one


def said_so(predictions: Values) -> Tally:
    seen = some_rows(len(predictions), 10).seen(SURER, labelled=False)
    return msgspec.structs.replace(seen, predictions=SURER.predictions[0].count(predictions).tolist())


@pytest.mark.parametrize("wide", [0.2, 1.0, 1.7, 2.4, 6.0])
@pytest.mark.parametrize("rows", [300, 3000])
def test_predictions_are_held_against_the_nearer_of_two_references(wide: float, rows: int) -> None:
    """Answers to rows that were not learnt from, and to those that were: the larger p and the smaller effect of what is
    found with each alone, and what a person reads is of the nearer.
    """
    predictions = flat(rows, 11, wide)
    alone = [
        of_predictions(Comparer(msgspec.structs.replace(SURER, predictions=[column]), 0), predictions)
        for column in SURER.predictions
    ]
    nearer = min(alone, key=lambda one: one.effect)
    both = of_predictions(Comparer(SURER, 0), predictions)
    assert (both.p, both.effect) == (max(one.p for one in alone), nearer.effect)
    assert (both.name, both.kind, both.importance, both.text) == ("prediction", "prediction", 1.0, nearer.text)


def test_what_either_reference_has_is_ordinary() -> None:
    """Of 20 windows that are as the one or the other, none has a p of 0.001, though they are far from the other one; what
    is surer or less sure than both is always found.
    """
    by = Comparer(SURER, 0)
    far = [Comparer(msgspec.structs.replace(SURER, predictions=[column]), 0) for column in SURER.predictions]
    for seed in range(20, 30):
        for wide, other in ((1.0, far[1]), (2.5, far[0])):
            predictions = flat(1000, seed, wide)
            assert of_predictions(by, predictions).p > 0.001
            assert of_predictions(other, predictions).p < 1e-6
        for wide in (0.3, 12.0):
            assert of_predictions(by, flat(1000, seed, wide)).p < 1e-6


def test_answers_beyond_those_of_the_reference_are_ordinary_if_no_more_than_its_furthest() -> None:
    """The folds' models never said less than 0.02 or more than 0.98, say; as many answers beyond as in the end bins are none
    further. More of them are found.
    """
    by, rng = Comparer(SURER, 0), np.random.default_rng(0)
    edges = SURER.predictions[0].edges
    predictions = some_rows(1000, 12).predictions
    further = np.where(predictions < edges[0], 1e-9, np.where(predictions >= edges[-1], 1 - 1e-9, predictions))
    assert of_predictions(by, further) == of_predictions(by, predictions)
    assert of_predictions(by, further).p > 0.001
    assert of_predictions(by, np.where(rng.random(1000) < 0.8, 1e-9, further)).p < 1e-9


def test_predictions_that_were_accepted_are_known_by_either_reference() -> None:
    """Other windows like the one that was accepted; a further shift is none."""
    by = Comparer(SURER, 0)
    seen = said_so(flat(1000, 13, 12.0))
    known = by.accept(Known(), [of_name("prediction")], seen, None)
    assert of_predictions(by, flat(1000, 14, 12.0), known).known
    assert not of_predictions(by, flat(1000, 14, 0.2), known).known
    uneven = answered(flat(100, 2, 2.5))  # its null is wider than that of the 4,000 that were not learnt from
    each = [Comparer(msgspec.structs.replace(uneven, predictions=[column]), 0) for column in uneven.predictions]
    both, window = Comparer(uneven, 0), said_so(flat(1000, 14, 2.0))
    found = [
        [one.served(window, known, effect_min)[2].known for one in (both, *each)] for effect_min in np.linspace(0, 0.4, 81)
    ]
    assert {tuple(one) for one in found} == {(False, False, False), (True, False, True), (True, True, True)}


# -- outcomes that are few, and what there is none of


@pytest.mark.parametrize(("rows", "told"), [(199, 0), (200, 3)])
def test_few_outcomes_tell_nothing(comparer: Comparer, rows: int, told: int) -> None:
    """Two hundred at least: the mean of fewer errors is far from normal."""
    assert len(comparer.told(some_rows(rows, 10).seen(REFERENCE), Known(), EFFECT_MIN)) == told


def test_what_a_reference_does_not_have_is_not_compared() -> None:
    """Of a model that was never scored on rows it had not learnt from, there are features only; nor is a look without
    predictions held against them.
    """
    bare = Comparer(msgspec.structs.replace(REFERENCE, predictions=[], outcomes=[], levels=[]), 0)
    seen = some_rows(1000, 10).seen(REFERENCE)
    assert list(found(bare, seen)) == ["x", "c"]
    silent = msgspec.structs.replace(seen, predictions=[])
    assert [one.name for one in Comparer(REFERENCE, 0).served(silent, Known(), EFFECT_MIN)] == ["x", "c"]


# -- what is known


def accepted(by: Comparer, seen: Tally) -> Known:
    return by.accept(Known(), list(found(by, seen).values()), seen, seen)


def test_a_state_that_was_accepted_is_known(comparer: Comparer) -> None:
    """Other rows of the same kind: nothing of them passes, though all of it is as far from the reference as before."""
    known = accepted(comparer, some_rows(1000, 10, x=1.5, d=0.7, sure=-0.3).seen(REFERENCE))
    again = found(comparer, some_rows(1500, 11, x=1.5, d=0.7, sure=-0.3).seen(REFERENCE), known)
    assert all(one.known for one in again.values())
    assert sum(one.p < 1e-6 for one in again.values()) >= 4
    assert passing(list(again.values()), 0.05, Limits()) == []


def test_a_further_shift_is_not_known(comparer: Comparer) -> None:
    """What has moved on is a finding, what has not is known."""
    known = accepted(comparer, some_rows(1000, 10, x=1.5, d=0.7).seen(REFERENCE))
    further = found(comparer, some_rows(1000, 11, x=4.0, d=0.7).seen(REFERENCE), known)
    assert not further["x"].known
    assert further["c"].known
    assert "x" in {one.name for one in passing(list(further.values()), 0.05, Limits())}


def test_what_goes_back_to_normal_is_no_finding(comparer: Comparer) -> None:
    """It is far from what was accepted, and as the reference has it."""
    known = accepted(comparer, some_rows(1000, 10, x=1.5, d=0.7, sure=-0.3).seen(REFERENCE))
    back = found(comparer, some_rows(1000, 11).seen(REFERENCE), known)
    assert not back["x"].known
    assert passing(list(back.values()), 0.05, Limits()) == []


@pytest.mark.parametrize("by", [-1.0, 1.0])
def test_a_level_that_was_accepted_may_move_by_less_than_matters(comparer: Comparer, by: float) -> None:
    """A fifth of a standard deviation of rows, on either side of what was accepted."""
    error = REFERENCE.levels[0]
    mean = sum(error.sums) / sum(error.rows)
    spread = math.sqrt(sum(error.squares) / sum(error.rows) - mean**2)
    ordinary = some_rows(1000, 10).seen(REFERENCE)

    def at(steps: float) -> Tally:
        return msgspec.structs.replace(ordinary, errors=1000 * (mean + steps * spread))

    known = accepted(comparer, at(2.0))
    assert found(comparer, at(2.0 + by * 0.19), known)["error"].known
    assert not found(comparer, at(2.0 + by * 0.21), known)["error"].known


def test_only_what_is_named_is_accepted(comparer: Comparer) -> None:
    """The rest stays as it was accepted before; a later state of the same replaces it. Known states are stored as JSON."""
    first, second = (some_rows(1000, seed, x=seed / 10).seen(REFERENCE) for seed in (10, 20))
    known = comparer.accept(Known(), [of_name("x"), of_name("error")], first, first)
    assert (set(known.counts), set(known.means)) == ({"feature:x"}, {"error:error"})
    known = comparer.accept(known, [of_name("x"), of_name("outcome"), of_name("calibration")], second, second)
    assert known.counts == {"feature:x": second.features[0], "outcome:outcome": second.outcomes}
    assert known.means == {"error:error": first.errors / 1000, "calibration:calibration": second.residuals / 1000}
    assert msgspec.json.decode(msgspec.json.encode(known), type=Known) == known


def test_what_was_not_counted_cannot_be_accepted(comparer: Comparer) -> None:
    """Outcomes that are not in, predictions that there were none of, names of nothing."""
    silent = msgspec.structs.replace(some_rows(100, 10).seen(REFERENCE, labelled=False), predictions=[])
    findings = [of_name(name) for name in ("x", "prediction", "outcome", "error", "calibration", "nothing")]
    assert comparer.accept(Known(), findings, silent, None) == Known({"feature:x": silent.features[0]})
    assert comparer.accept(Known(), findings, silent, silent) == Known({"feature:x": silent.features[0]})


def test_a_state_can_be_accepted_where_any_effect_matters(comparer: Comparer) -> None:
    """``drift.effect_min = 0`` is allowed: an acknowledged alarm must not come again with the very same window."""
    seen = some_rows(1000, 10, x=1.5).seen(REFERENCE)
    known = comparer.accept(Known(), [of_name("x")], seen, None)
    assert comparer.served(seen, known, 0.0)[0].known


@pytest.mark.parametrize("name", ["prediction", "outcome", "error", "calibration"])
def test_a_feature_may_be_called_as_anything_else_is(name: str) -> None:
    """What is accepted of it is its own, and nothing else's."""
    features = (Feature(name, "number"), SCHEMA.features[1])
    by = Comparer(learnt(msgspec.structs.replace(SCHEMA, features=features)), 0)
    seen = some_rows(1000, 10, x=1.5, sure=-0.3).seen(by.reference)
    alone = Comparer(REFERENCE, 0).served(seen, Known(), EFFECT_MIN)
    assert [one.p for one in by.served(seen, Known(), EFFECT_MIN)] == [one.p for one in alone]
    known = by.accept(Known(), by.served(seen, Known(), EFFECT_MIN)[:1], seen, seen)
    findings = [*by.served(seen, known, EFFECT_MIN), *by.told(seen, known, EFFECT_MIN)]
    assert [one.kind for one in findings if one.known] == ["feature"]


# -- nulls


def test_findings_are_the_same_by_the_seed(comparer: Comparer) -> None:
    """Whatever was looked at before, as after a restart; another seed draws others."""
    seen = some_rows(777, 10, x=0.1).seen(REFERENCE)
    assert found(comparer, seen) == found(Comparer(REFERENCE, 0), seen)
    assert found(Comparer(REFERENCE, 1), seen) != found(comparer, seen)


def test_a_null_is_of_a_window_at_most_a_tenth_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never of a larger one, which would vary less; and few are drawn: 121 for all windows up to 100,000 rows."""
    asked: list[int] = []

    def drawn(column: Column, rows: int, blocks: float, seed: int, unheard: bool) -> Null:
        asked.append(rows)
        return Null(1 / rows, 5.0, 20.0)

    monkeypatch.setattr(looking, "null_of", drawn)
    column = Column("x", [[0, 1, 0, 0]], edges=[1.0, 2.0])
    by = Comparer(Reference([column], [1.0]), 0)
    for rows in (*range(1, 500), *range(500, 100_001, 251)):
        (one,) = by.served(Tally(rows, 0, 0, [[0, 0, rows, 0]], []), Known(), EFFECT_MIN)
        null_rows = 1 / (1 - one.effect**2)  # the distance is 1
        assert round(null_rows) <= rows < ROWS_STEP * (round(null_rows) + 1)
    assert len(asked) <= 121


@pytest.mark.parametrize(
    ("block_ms", "days", "busy_days", "rows", "blocks"),
    [
        (DAY_MS, 7, 7, 10, 7),
        (DAY_MS, 7, 7, 10**6, 7),  # however many rows a day has
        (DAY_MS, 7, 2, 10, 2),  # five days lie between its looks
        (DAY_MS, 2, 7, 10, 2),  # looks that lie over each other
        (DAY_MS, 7.9, 7.9, 10, 7),
        (DAY_MS, 0.1, 0.1, 10, 1),
        (DAY_MS, 0, 0, 10, 1),
        (2 * DAY_MS, 7, 7, 10, 3),
        (0, 7, 7, 11, 2),  # blocks of keys: of five rows, and of three
        (0, 7, 7, 3, 1),
        (None, 7, 7, 40, 0),  # rows without order
    ],
)
def test_a_null_is_of_the_blocks_that_a_window_holds(
    block_ms: int | None, days: float, busy_days: float, rows: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole ones, one at least: by the time that its looks took where blocks are of time, else by a block's mean size."""
    asked: list[float] = []

    def drawn(column: Column, rows: int, blocks: float, seed: int, unheard: bool) -> Null:
        asked.append(blocks)
        return Null(0.1, 5.0, 20.0)

    monkeypatch.setattr(looking, "null_of", drawn)
    column = Column("x", [[0, 5, 0, 0], [0, 3, 0, 0]], edges=[1.0, 2.0])
    by = Comparer(Reference([column], [1.0], blocked=block_ms is not None, block_ms=block_ms or 0), 0)
    gaps_ms = int(days * DAY_MS) - int(busy_days * DAY_MS)
    seen = Tally(rows, 0, int(days * DAY_MS), [[0, 0, rows, 0]], [], gaps_ms=gaps_ms)
    by.served(seen, Known(), EFFECT_MIN)
    assert asked == [blocks]


@pytest.mark.parametrize("blocked", [False, True])
def test_a_kept_null_is_as_wide_as_that_of_the_window(blocked: bool) -> None:
    """Or wider: of 15 sizes, in the mean; each within what 2,000 draws leave open (five standard deviations of some 1 %)."""
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(40), 50)
    column = number_column("x", 0.3 * rng.normal(size=40)[blocks] + rng.normal(size=2000), blocks)
    by = Comparer(Reference([column], [1.0], blocked=blocked), 0)
    ratios = []
    for rows in range(20, 1520, 100):
        counts = [0] * (column.bins - 1) + [rows]
        (one,) = by.served(Tally(rows, 0, 0, [counts], []), Known(), EFFECT_MIN)
        kept = jensen_shannon(np.sum(column.counts, axis=0), np.array(counts)) ** 2 - one.effect**2
        ratios.append(float(kept) / null_of(column, rows, blocked * rows / 50, 0).mean)
    assert np.mean(ratios) >= 1
    assert min(ratios) > 0.95


def test_more_rows_a_day_are_not_more_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where requests come ten times as often as in training, a window of a day holds one block; it tells so by its time.

    Of 400 ordinary windows 5 % should have a p of 0.05, by each finding; 10 % are allowed, as in test_shift. Nulls are of
    200 draws, to be quick: at 0.05 that is near enough.
    """
    monkeypatch.setattr(shift, "DRAWS", 200)
    rng, ps = np.random.default_rng(0), []

    def days(count: int, rows: int) -> Values:
        return np.repeat(rng.normal(size=count), rows) + rng.normal(size=count * rows)

    blocks = np.repeat(np.arange(50), 100)
    for _ in range(20):
        values = days(50, 100)
        column = number_column("x", values, blocks)
        levels = [level(name, values, blocks) for name in ("error", "calibration")]
        outcomes = [msgspec.structs.replace(column, name="outcome")]
        by = Comparer(Reference([column], [1.0], [], outcomes, levels, True, DAY_MS), 0)
        for _ in range(20):
            served = days(1, 1000)
            counts, total = column.count(served).tolist(), float(served.sum())
            seen = Tally(1000, 0, DAY_MS, [counts], [], counts, total, total)
            ps.append([one.p for one in found(by, seen).values()])
    assert [0.01 < share < 0.1 for share in np.mean(np.array(ps) <= 0.05, axis=0)] == [True] * 4


@pytest.mark.parametrize("rows", [50, 5000])
@pytest.mark.parametrize("at", [0, 1])
def test_values_that_go_missing_are_found_at_any_size(comparer: Comparer, rows: int, at: int) -> None:
    """Of a number and of a category."""
    counts = [[rows, *[0] * (column.bins - 1)] for column in REFERENCE.features]
    counts[at] = [*[0] * (REFERENCE.features[at].bins - 1), rows]
    one = comparer.served(Tally(rows, 0, 0, counts, []), Known(), EFFECT_MIN)[at]
    assert one.p < 1e-6
    assert f"{one.name}: (missing) 0.0% before, 100.0% now" in one.text
