"""Engines against ``Booster.predict``: models of every kind, rows of every kind, the same bits."""

from typing import Any

import lightgbm
import numpy as np
import pytest
from numpy.typing import NDArray

from tidemill.learners.base import Model
from tidemill.learners.lightgbm import LightGBM, TableModel

OBJECTIVES = (
    *("binary", "multiclass", "multiclassova", "regression", "regression_l1", "huber", "fair", "poisson", "quantile"),
    *("mape", "gamma", "tweedie", "cross_entropy", "cross_entropy_lambda"),
)
SEEDS = range(8)
ROWS = 400
ZERO = float(np.float32(1e-35))
ODD = np.array(
    [
        *(np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, 1e-36, 1e-35, -1e-35, ZERO, -ZERO, np.nextafter(ZERO, 1.0)),
        *(-0.5, -1.0, 0.999, 31.0, 32.0, 399.0, 400.0, 1e300, 2.0**31, -(2.0**31), 2.0**53),
    ]
)
"""What a request should not hold, and what lies beside zero, beside a category, and beside an integer's end."""


def features(random: np.random.Generator) -> NDArray[np.float64]:
    """Numbers on three scales, small whole numbers, and two categories: few, and up to 400. With gaps and zeros."""
    categories = int(random.choice([3, 33, 400]))
    matrix = np.column_stack(
        [
            random.normal(size=ROWS),
            random.integers(-3, 4, ROWS),
            random.integers(0, categories, ROWS),
            random.choice([0.0, 1e-36, -1e-36, 1e-35, 2.0, np.nan], ROWS),
            random.normal(size=ROWS) * 1e-34,
            random.integers(0, 4, ROWS),
        ]
    ).astype(np.float64)
    matrix[random.random(matrix.shape) < 0.1] = np.nan
    matrix[random.random(matrix.shape) < 0.1] = 0.0
    return matrix


def labels(objective: str, signal: NDArray[np.float64]) -> NDArray[np.float64]:
    if objective == "binary":
        return (signal > 0.5).astype(np.float64)
    if objective.startswith("multiclass"):
        return np.digitize(signal, [-0.5, 1.0]).astype(np.float64)
    if objective.startswith("cross_entropy"):
        return 1 / (1 + np.exp(-signal))
    return np.exp(signal / 2) + 0.01 if objective in ("poisson", "gamma", "tweedie") else signal


def parameters(objective: str, random: np.random.Generator) -> dict[str, Any]:
    """A kind of boosting, of trees, of missing values, of splits by category."""
    found: dict[str, Any] = {
        "objective": objective,
        "verbosity": -1,
        "num_threads": 1,
        "seed": int(random.integers(1_000_000)),
        "boosting": str(random.choice(["gbdt", "dart", "rf"])),
        "num_leaves": int(random.choice([2, 5, 31, 64, 65, 130])),
        "min_data_in_leaf": int(random.choice([1, 5, 20, 10_000], p=[0.4, 0.3, 0.25, 0.05])),
        "zero_as_missing": bool(random.random() < 0.3),
        "use_missing": bool(random.random() < 0.7),
        "max_cat_to_onehot": int(random.choice([1, 4, 100])),
        "min_data_per_group": int(random.choice([1, 20])),
        "cat_smooth": 1.0,
        "sigmoid": float(random.choice([1.0, 0.7, 1.23457, 0.05, 12.5])),
        "reg_sqrt": bool(random.random() < 0.3),
        "max_bin": int(random.choice([4, 255, 1000])),
    }
    sampled = {"bagging_freq": 1, "bagging_fraction": 0.6} if found["boosting"] == "rf" else {}
    return found | sampled | ({"num_class": 3} if objective.startswith("multiclass") else {})


def a_booster(objective: str, random: np.random.Generator, **more: Any) -> lightgbm.Booster:
    matrix = features(random)
    filled = np.nan_to_num(matrix)
    signal = filled[:, 0] + filled[:, 2] % 2 + 0.3 * filled[:, 1] + (filled[:, 5] == 2) + random.normal(scale=0.1, size=ROWS)
    data = lightgbm.Dataset(matrix, labels(objective, signal), categorical_feature=[2, 5])
    return lightgbm.train(parameters(objective, random) | more, data, int(random.choice([1, 3, 20])))


def engines(data: bytes) -> list[Model]:
    """All that take a model's text, but LightGBM itself."""
    model = LightGBM().load_checked(data)
    assert isinstance(model, TableModel)
    faster = model.faster()
    return [model, *([faster] if faster else [])]


def rows(model: Model, random: np.random.Generator) -> NDArray[np.float64]:
    """The model's own limits, odd values in any company, and rows like those that it learnt from."""
    return np.concatenate([model.edge_rows(), random.choice(ODD, (300, 6)), features(random)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_engines_answer_as_booster_predict(objective: str, seed: int) -> None:
    """To the last bit: together and one by one, of a text that was written once or read and written again."""
    random = np.random.default_rng([seed, OBJECTIVES.index(objective)])
    booster = a_booster(objective, random)
    again = lightgbm.Booster(model_str=booster.model_to_string())
    for model in [*engines(booster.model_to_string().encode()), *engines(again.model_to_string().encode())]:
        matrix = rows(model, random)
        wanted = np.asarray(again.predict(matrix, num_threads=1))
        found = model.predict(matrix)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        assert found.tobytes() == wanted.tobytes(), model.engine
        some = random.integers(0, len(matrix), 30)
        alone = np.concatenate([model.predict(matrix[one : one + 1]) for one in some])
        assert alone.tobytes() == wanted[some].tobytes(), model.engine


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
def test_linear_trees_are_answered_by_lightgbm(seed: int) -> None:
    """With its own bits; the checked parser leaves them alone."""
    random = np.random.default_rng(seed)
    booster = a_booster(
        "regression", random, linear_tree=True, boosting="gbdt", min_data_in_leaf=5, num_leaves=8, zero_as_missing=False
    )
    data = booster.model_to_string().encode()
    assert LightGBM().load_checked(data) is None
    model, matrix = LightGBM().load(data), features(random)
    assert model.engine == "lightgbm"
    assert model.predict(matrix).tobytes() == np.asarray(booster.predict(matrix, num_threads=1)).tobytes()


@pytest.mark.filterwarnings("ignore")
def test_a_model_without_an_objective_gives_its_sums() -> None:
    """As one that was trained with a loss of the user's own does."""
    booster = a_booster("regression", np.random.default_rng(0), reg_sqrt=False)
    text = booster.model_to_string().replace("objective=regression\n", "", 1)
    again = lightgbm.Booster(model_str=text)
    for model in engines(text.encode()):
        matrix = rows(model, np.random.default_rng(1))
        assert model.predict(matrix).tobytes() == np.asarray(again.predict(matrix, num_threads=1)).tobytes()
