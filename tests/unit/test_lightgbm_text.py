"""LightGBM's model text: what is read from it, and that no damage gets past its parser or ends the process."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import lightgbm
import numpy as np
import pytest
from numpy.typing import NDArray

from tidemill.errors import BundleRefused
from tidemill.learners.lightgbm_table import NumpyScorer, answers, build_table, edge_rows
from tidemill.learners.lightgbm_text import NotForTable, read_forest

ROWS = 400


@cache
def text(objective: str = "binary", **more: Any) -> str:
    """A small model: two numbers with missing values and a category of 40."""
    random = np.random.default_rng(0)
    matrix = np.column_stack([random.normal(size=ROWS), random.normal(size=ROWS), random.integers(0, 40, ROWS)])
    signal = matrix[:, 0] + 2 * (matrix[:, 2] % 3)
    matrix[random.random(matrix.shape) < 0.1] = np.nan
    labels = {"binary": signal > 1, "multiclass": np.digitize(signal, [0.5, 1.5])}.get(objective, signal)
    classes = {"num_class": 3} if objective == "multiclass" else {}
    parameters = {
        "num_leaves": 7,
        "min_data_in_leaf": 5,
        "min_data_per_group": 1,
        "cat_smooth": 1,
        "verbosity": -1,
        "num_threads": 1,
    }
    data = lightgbm.Dataset(matrix, labels.astype(np.float64), categorical_feature=[2])
    found: str = lightgbm.train(parameters | classes | {"objective": objective} | more, data, 4).model_to_string()
    return found


def resized(model: str) -> bytes:
    """The text with the sizes that its trees have: only what was changed on purpose is wrong."""
    trees = re.findall(r"^Tree=.*?(?=^Tree=|^end of trees)", model, re.DOTALL | re.MULTILINE)
    sizes = " ".join(str(len(tree.encode())) for tree in trees)
    return re.sub(r"tree_sizes=.*", f"tree_sizes={sizes}", model, count=1).encode()


def changed(key: str, change: Callable[[list[str]], list[str]], **more: Any) -> bytes:
    """The text with another value for a key of the first tree."""
    return resized(re.sub(rf"(?<={key}=).*", lambda found: " ".join(change(found[0].split(" "))), text(**more), count=1))


def test_a_text_is_read_as_it_stands() -> None:
    """Trees, nodes and leaves, one behind the other; the numbers are those of the dump that LightGBM makes."""
    forest = read_forest(text().encode())
    dump = lightgbm.Booster(model_str=text()).dump_model()
    leaves = [tree["num_leaves"] for tree in dump["tree_info"]]
    assert (forest.trees, forest.features, forest.outputs) == (4, 3, 1)
    assert np.diff(forest.first_leaf).tolist() == leaves
    assert np.diff(forest.first_node).tolist() == [count - 1 for count in leaves]
    root = dump["tree_info"][0]["tree_structure"]
    assert forest.feature[0] == root["split_feature"]
    assert (forest.transform, forest.sigmoid, forest.average) == ("sigmoid", 1.0, False)
    assert (forest.decision & 1 > 0).any(), "the category is used"
    assert (forest.bits_last > forest.bits_first).any()


@pytest.mark.parametrize(
    ("sigmoid", "value"), [("1", 1.0), ("0.7", 0.7), ("1.23457", 1 + 23457 / 1e5), ("1e-05", 1e-5), ("2.5e+01", 25.0)]
)
def test_the_sigmoids_factor_is_read_as_lightgbm_reads_it(sigmoid: str, value: float) -> None:
    """Digits and fraction apart, each rounded."""
    model = text().replace("sigmoid:1\n", f"sigmoid:{sigmoid}\n")
    assert read_forest(model.encode()).sigmoid == value
    row = np.array([[0.5, 0.5, 3.0]])
    forest = read_forest(model.encode())
    wanted = lightgbm.Booster(model_str=model).predict(row)
    scorer = NumpyScorer(build_table(forest))
    assert answers(forest, scorer(row), scorer.exp).tobytes() == np.asarray(wanted).tobytes()


REFUSED: dict[str, Callable[[], bytes]] = {
    "first line": lambda: b"forest\n" + text().encode(),
    "zero byte": lambda: text().replace("Tree=1", "Tree\0=1").encode(),
    "not UTF-8": lambda: text().encode().replace(b"Column_1", b"Column\xff\xff"),
    "no num_class": lambda: text().replace("num_class=1\n", "", 1).encode(),
    "num_class twice": lambda: text().replace("num_class=1\n", "num_class=1\nnum_class=1\n", 1).encode(),
    "2 entries where 3 belong": lambda: text().replace("Column_0 Column_1", "Column_0", 1).encode(),
    "num_class is 'x'": lambda: text().replace("num_class=1", "num_class=x", 1).encode(),
    "tree 1 is not the": lambda: text().replace("Tree=1", "Tree=7", 1).encode(),
    "tree 0 is not the": lambda: text().replace("shrinkage=", "shrinkage=1", 1).encode(),
    "goes on after tree 3": lambda: text().replace("end of trees", "more", 1).encode(),
    "tree 0 has no threshold": lambda: resized(re.sub("\nthreshold=.*", "", text(), count=1)),
    "leaf_value is not 7 numbers": lambda: changed("leaf_value", lambda values: values[1:]),
    "leaf_value is damaged": lambda: changed("leaf_value", lambda values: ["1..5", *values[1:]]),
    "split_feature has 3": lambda: changed("split_feature", lambda values: ["3", *values[1:]]),
    "split_feature has -1": lambda: changed("split_feature", lambda values: ["-1", *values[1:]]),
    "split_feature is not 6 integers": lambda: changed("split_feature", lambda values: ["1_0", *values[1:]]),
    "has a number that is too large": lambda: changed("split_feature", lambda values: ["9" * 30, *values[1:]]),
    "decision_type has 12": lambda: changed("decision_type", lambda values: ["12", *values[1:]]),
    "left_child leads to 99": lambda: changed("left_child", lambda values: ["99", *values[1:]]),
    "left_child leads to 0": lambda: changed("left_child", lambda values: ["0", *values[1:]]),
    "right_child leads to -99": lambda: changed("right_child", lambda values: ["-99", *values[1:]]),
    "child of 2 nodes": lambda: changed("left_child", lambda values: [*values[:-1], values[0]]),
    "cat_boundaries does not rise": lambda: changed("cat_boundaries", lambda values: ["1", *values[1:]]),
    "names the categories 77": lambda: with_category("77"),
    "names the categories 0.5": lambda: with_category("0.5"),
    "has no leaf": lambda: resized(text().replace("num_leaves=7", "num_leaves=0", 1)),
}


def with_category(number: str) -> bytes:
    """The first categorical node names another set of categories."""
    place = read_forest(text().encode()).decision.tolist().index(9)
    return changed("threshold", lambda values: [*values[:place], number, *values[place + 1 :]])


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_wrong_is_named_with_its_place(reason: str) -> None:
    """By whoever reads the error, the line can be found."""
    with pytest.raises(BundleRefused, match=re.escape(reason)):
        read_forest(REFUSED[reason]())


def test_a_circle_beside_the_tree_is_refused() -> None:
    """Every node has one parent, and yet some are no part of the tree."""
    model = text(num_leaves=4, objective="regression")
    for key, value in {"left_child": "-1 2 1", "right_child": "-2 -3 -4"}.items():
        model = re.sub(rf"(?<={key}=).*", value, model, count=1)
    with pytest.raises(BundleRefused, match="circle"):
        read_forest(resized(model))


def unknown_key() -> bytes:
    return resized(text().replace("is_linear=0", "is_linear=0\nmystery=1", 1))


BEYOND: dict[str, Callable[[], bytes]] = {
    "is_linear=1": lambda: text("regression", linear_tree=True).encode(),
    "2000 leaves": lambda: changed("num_leaves", lambda _: ["2000"]),
    "objective 'mystery'": lambda: text().replace("objective=binary sigmoid:1", "objective=mystery").encode(),
    "format 'v9'": lambda: text().replace("version=v4", "version=v9").encode(),
    "tree 0: unknown key 'mystery'": unknown_key,
    "header: unknown key 'mystery'": lambda: text().replace("num_class=1\n", "num_class=1\nmystery=1\n", 1).encode(),
    "no tree_sizes": lambda: re.sub("tree_sizes=.*\n", "", text()).encode(),
    "a threshold is NaN": lambda: changed("threshold", lambda values: ["nan", *values[1:]], objective="regression"),
    "or a leaf not finite": lambda: changed("leaf_value", lambda values: ["inf", *values[1:]]),
    "2 classes": lambda: text().replace("num_class=1\n", "num_class=2\n", 1).encode(),
}


@pytest.mark.parametrize("reason", BEYOND)
def test_what_the_table_does_not_do_is_not_called_damaged(reason: str) -> None:
    """It goes to LightGBM's own predict."""
    with pytest.raises(NotForTable, match=re.escape(reason)):
        read_forest(BEYOND[reason]())


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """A byte or a few changed, a piece cut or doubled, two lines or two numbers swapped."""
    kind, place = random.integers(7), int(random.integers(len(data)))
    other, length = int(random.integers(len(data))), int(random.integers(1, 200))
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + data[place + length :]
    if kind == 2:
        return data[:place] + data[other : other + length] + data[place:]
    if kind == 3:
        lines = data.split(b"\n")
        one, two = random.integers(min(len(lines), 80), size=2)
        lines[one], lines[two] = lines[two], lines[one]
        return b"\n".join(lines)
    found = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        spot = int(random.integers(len(data)))
        found[spot] = random.choice(list(b"0123456789-+. =\n") if kind > 4 else range(256))
    return resized(found.decode("latin-1")) if kind == 6 else bytes(found)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("objective", ["binary", "multiclass", "regression"])
def test_no_damage_does_harm(objective: str) -> None:
    """Several hundred damaged texts: refused, left to LightGBM, or scored; no other error, no endless loop, no crash."""
    random = np.random.default_rng(1)
    data = text(objective).encode()
    ends = {"refused": 0, "left": 0, "scored": 0}
    for _ in range(500):
        try:
            forest = read_forest(damaged(data, random))
            table = build_table(forest)
        except BundleRefused:
            ends["refused"] += 1
        except NotForTable:
            ends["left"] += 1
        else:
            scored(table.forest.features, NumpyScorer(table), edge_rows(table))
            ends["scored"] += 1
    assert ends["refused"] > 200
    assert ends["scored"] > 50, "what is beside the trees, or still a tree, does no harm"


def scored(features: int, scorer: NumpyScorer, matrix: NDArray[np.float64]) -> None:
    sums = scorer(matrix)
    assert len(sums) == len(matrix)
    assert np.isfinite(sums).all()


@pytest.mark.parametrize("digits", ["9" * 5000, "\u0663", "", "-3"])
def test_a_number_of_classes_that_is_none_is_not_read(digits: str) -> None:
    """Neither a traceback nor a guess: LightGBM itself may say what it is."""
    damaged = text("multiclass").replace("objective=multiclass num_class:3", f"objective=multiclass num_class:{digits}")
    assert damaged != text("multiclass")
    with pytest.raises((NotForTable, BundleRefused)):
        read_forest(damaged.encode())
