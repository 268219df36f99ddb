import datetime as dt
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tidemill.core.inference import Choices, Inferred, infer
from tidemill.core.schema import Feature
from tidemill.errors import ConfigError
from tidemill.tables import columns_for_inference, read_table

DATASETS = Path(__file__).parents[2] / "src/tidemill/datasets"
MANY = 40


def inferred(columns: dict[str, Any], target: str = "y", **choices: Any) -> Inferred:
    return infer(columns_for_inference(pl.DataFrame(columns)), Choices(target=target, **choices))


def with_target(values: list[Any], **choices: Any) -> Inferred:
    return inferred({"x": [i / 7 for i in range(len(values))], "y": values}, **choices)


def refusal(columns: dict[str, Any], target: str = "y", **choices: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        inferred(columns, target, **choices)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([True, False], "binary", (False, True)),
        ([1, 0], "binary", (0, 1)),
        ([1.0, 0.0, None], "binary", (0, 1)),
        ([5, 2], "binary", (2, 5)),
        (["yes", "no"], "binary", ("no", "yes")),
        (["b", "c", "a"], "multiclass", ("a", "b", "c")),
        ([3, 1, 2], "multiclass", (1, 2, 3)),
        ([0.0, 2.0, 1.0, None], "multiclass", (0, 1, 2)),
        ([3, 4, 5], "regression", ()),
        ([0, 1, 2, 4], "regression", ()),
        (list(range(30)), "regression", ()),
        ([0.5, 1.5, 2.5], "regression", ()),
    ],
)
def test_the_task_follows_from_the_target(values: list[Any], task: str, classes: tuple[Any, ...]) -> None:
    """Two values, text and codes that count up are classes in their natural order; other numbers are a regression."""
    schema = with_target(values * MANY).schema
    assert (schema.task, schema.classes) == (task, classes)
    assert [type(label) for label in schema.classes] == [type(label) for label in classes]


def test_the_order_of_classes_does_not_depend_on_their_shares() -> None:
    """More data cannot turn the positive class round."""
    assert with_target(["a"] * 9 + ["b"] * 3).schema.classes == with_target(["a"] * 3 + ["b"] * 9).schema.classes


def test_a_person_can_overrule_task_and_positive_class() -> None:
    """--task and --positive are taken as they are given, where the target allows it."""
    assert with_target([3, 4, 5] * MANY, task="multiclass").schema.classes == (3, 4, 5)
    assert with_target([0, 1, 2] * MANY, task="regression").schema.task == "regression"
    assert with_target([0, 1] * MANY, task="regression").schema.classes == ()
    assert with_target(["gone", "stays"] * MANY, positive="gone").schema.classes == ("stays", "gone")
    assert with_target([False, True] * MANY, positive="false").schema.classes == (True, False)


def test_doubtful_tasks_are_remarked() -> None:
    """Integers that could be classes or numbers are told, with the option that decides otherwise."""
    assert "--task regression" in with_target([0, 1, 2] * MANY).remarks[0]
    assert "--task multiclass" in with_target([3, 4, 5] * MANY).remarks[0]
    assert not with_target([0, 1] * MANY).remarks


@pytest.mark.parametrize(
    ("values", "choices", "expected"),
    [
        ([None, None], {}, "--target y: is empty"),
        ([1, 1], {}, "--target y: has a single value"),
        (["a", "b"] * 3, {"task": "regression"}, "a regression needs numbers, not text"),
        ([1, 2, 3], {"task": "binary"}, "has 3 values, a binary target has exactly 2"),
        ([1, 2], {"task": "multiclass"}, "has 2 values, a multiclass target has 3 or more"),
        ([str(i) for i in range(100)], {}, "100 different values in 100 rows are too many for classes"),
        ([[1], [2]], {}, "--target y: holds lists, records or bytes, not labels or numbers"),
        ([1, 0], {"positive": "2"}, "--positive 2: must be one of the two values of 'y': 0, 1"),
        ([0.5, 1.5, 2.5], {"positive": "1"}, "--positive: a regression has no classes"),
    ],
)
def test_targets_that_cannot_be_learnt_are_refused(values: list[Any], choices: dict[str, Any], expected: str) -> None:
    """A target without labels, or one that does not fit the chosen task, is one clear line."""
    assert expected in refusal({"x": [i / 7 for i in range(len(values))], "y": values}, **choices)


def test_features_by_type_with_what_they_held() -> None:
    """Text is a category with its values, true and false a boolean, numbers have their bounds."""
    columns = {"t": ["b", None, "a"], "b": [True, False, None], "i": [3, None, 1], "f": [0.5, None, 1.5], "y": [0, 1, 0]}
    assert inferred(columns).schema.features == (
        Feature("t", "category", ("a", "b")),
        Feature("b", "boolean"),
        Feature("i", "number", minimum=1, maximum=3),
        Feature("f", "number", minimum=0.5, maximum=1.5),
    )


def test_useless_columns_are_ignored_with_their_reason() -> None:
    """What cannot teach anything is no feature, and a person is told why."""
    rows = 3000
    ignored = inferred(
        {
            "x": [i % 7 for i in range(rows)],
            "constant": ["same"] * rows,
            "empty": [None] * rows,
            "list": [[1]] * rows,
            "name": [f"n{i}" for i in range(rows)],
            "mostly": [f"n{i % 1600}" for i in range(rows)],
            "order_id": list(range(rows)),
            "user_id": list(range(rows)),
            "wish": [i / 9 for i in range(rows)],
            "y": [i % 2 for i in range(rows)],
        },
        ignore=("wish",),
    )
    assert ignored.ignored == {
        "wish": "as you asked",
        "constant": "always the same",
        "empty": "empty",
        "list": "neither numbers, text nor true/false",
        "name": "text that never repeats: ids or free text",
        "mostly": "text that hardly repeats: 1600 values in 3000 rows",
        "user_id": "an id: different in every row",
    }
    assert [feature.name for feature in ignored.schema.features] == ["x"]
    assert ignored.schema.id == "order_id"


def test_one_value_with_gaps_is_a_feature() -> None:
    """Whether a value is there can be all that a column says."""
    assert len(inferred({"x": ["set", None, "set"], "y": [0, 1, 0]}).schema.features) == 1


@pytest.mark.parametrize(
    ("columns", "choices", "expected"),
    [
        ({"a_id": [1, 2, 3], "id": [4, 5, 6]}, {}, "id"),
        ({"a_id": ["p", "q", "r"]}, {}, "a_id"),
        ({"a_id": [1, 1, 3]}, {}, ""),
        ({"id": [1, None, 3]}, {}, ""),
        ({"id": [0.1, 0.2, 0.3]}, {}, ""),
        ({"id": [1, 2, 3], "key": [3, 2, 1]}, {"id": "key"}, "key"),
        ({"id": [1, 2, 3]}, {"ignore": ("id",)}, ""),
    ],
)
def test_the_id_is_unique_and_named_so_or_chosen(columns: dict[str, Any], choices: dict[str, Any], expected: str) -> None:
    """The id column has a value in every row, no value twice, and never is a feature."""
    schema = inferred({"x": [1.5, 2, 3], "y": [0, 1, 0]} | columns, **choices).schema
    assert schema.id == expected
    assert schema.id not in {feature.name for feature in schema.features}


def test_the_event_time_is_the_only_one_or_the_chosen_one() -> None:
    """With two columns of times none is guessed, and none of them is ever a feature."""
    times = pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 1, 3), "1d", eager=True)
    table = {"x": [1.5, 2, 3], "y": [0, 1, 0], "asked": times}
    assert inferred(table).schema.time == "asked"
    two = inferred(table | {"came": times})
    assert two.schema.time == ""
    assert "asked, came" in two.remarks[0]
    chosen = inferred(table | {"came": times}, time="came")
    assert chosen.schema.time == "came"
    assert [feature.name for feature in chosen.schema.features] == ["x"]
    assert "asked" in chosen.ignored
    assert inferred(table | {"ms": [1, 2, 3]}, time="ms").schema.time == "ms"


def test_a_guessed_event_time_is_told() -> None:
    """A birth date would order the folds: a person is told which column it is and what else can be done."""
    table = {"x": [1.5, 2, 3], "y": [0, 1, 0], "born": [dt.date(1980, 1, 1), dt.date(1970, 1, 1), dt.date(1990, 1, 1)]}
    [remark] = inferred(table).remarks
    assert remark.startswith("'born' is taken as the event time")
    assert "--ignore born" in remark
    assert not inferred(table, time="born").remarks
    assert inferred(table, ignore=("born",)).schema.time == ""


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\tb"])
def test_a_name_that_no_request_can_have_is_refused(name: str) -> None:
    """Where the project is made, with what to do; such a column can be left out, or be the target."""
    columns = {"x": [1.5, 2, 3], "y": [0, 1, 0], name: [3, 1, 4]}
    text = refusal(columns)
    assert text.startswith(f"column {name!r}: a name cannot hold quotes, backslashes")
    assert "rename it in the data and in the requests, or leave it out with --ignore" in text
    assert [feature.name for feature in inferred(columns, ignore=(name,)).schema.features] == ["x"]


@pytest.mark.parametrize(
    ("target", "choices", "expected"),
    [
        ("zz", {}, "--target zz: the table has no such column; there are x, y, t"),
        ("target", {}, "--target target: the table has no such column; there are x, y, t"),
        ("y", {"ignore": ("X",)}, "--ignore X: the table has no such column"),
        ("y", {"id": "x"}, "--id x: needs integers or text, in every row, and no value twice"),
        ("y", {"time": "t"}, "--time t: holds text, not dates, times or milliseconds"),
        ("y", {"id": "y"}, "column 'y' is given for more than one of"),
        ("y", {"ignore": ("y",)}, "column 'y' is given for more than one of"),
        ("y", {"ignore": ("x", "t")}, "no column is left to learn 'y' from: x (as you asked), t (as you asked)"),
    ],
)
def test_choices_that_do_not_fit_the_table_are_refused(target: str, choices: dict[str, Any], expected: str) -> None:
    """A wrong option is one clear line that names it and what there is."""
    assert expected in refusal({"x": [1.5, 1.5, 3], "y": [0, 1, 0], "t": ["a", "a", "b"]}, target, **choices)


def test_a_mistyped_column_is_offered_its_nearest() -> None:
    """A typing slip gets the right name back."""
    assert "did you mean 'income'?" in refusal({"income": [0, 1], "x": [1, 2]}, "incom")


def test_flights() -> None:
    """The shipped flights: features from carrier to visib, nothing that is known only later."""
    columns = columns_for_inference(read_table(DATASETS / "flights.parquet"))
    ignore = ("arr_delay", "outcome_time")
    found = infer(columns, Choices(target="late", id="id", time="request_time", ignore=ignore))
    schema = found.schema
    assert (schema.task, schema.classes, schema.id, schema.time) == ("binary", (0, 1), "id", "request_time")
    names = [column.name for column in columns]
    assert list(schema.columns) == names[names.index("carrier") : names.index("visib") + 1]
    assert len(schema.features[2].categories) == 105
    assert not found.remarks
    assert "outcome_time" in infer(columns, Choices(target="late", time="request_time", ignore=ignore[:1])).ignored


def test_adult() -> None:
    """The shipped census: no time, no id, text as categories."""
    columns = columns_for_inference(read_table(DATASETS / "adult.parquet"))
    schema = infer(columns, Choices(target="income_over_50k", ignore=("split", "fnlwgt"))).schema
    assert (schema.task, schema.classes, schema.id, schema.time) == ("binary", (0, 1), "", "")
    types = [feature.type for feature in schema.features]
    assert (types.count("number"), types.count("category")) == (5, 8)
