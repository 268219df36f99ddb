"""Scoring engines over batch and model sizes, on UCI Adult.

Every call of every engine has rows of its own, so that no branch predictor learns them, and the engines take turns, so that
what a neighbour does to one it does to all.
"""

import time
from pathlib import Path
from statistics import median

import lightgbm
import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

import tidemill
from tidemill.learners.base import Model
from tidemill.learners.lightgbm import LightGBM
from tidemill.tables import read_table

SIZES = ((300, 63), (100, 31), (300, 31), (100, 255))
"""Trees and leaves; the first is the one that the ratios are about."""
BATCHES = (1, 8, 64, 512, 4096)
CALLS, ROWS = 60, 20_000
"""Of each engine at each batch size: so many calls, but not many more rows."""
ADULT = Path(tidemill.__file__).parent / "datasets" / "adult.parquet"
TARGET = "income_over_50k"


class Scoring(Struct, frozen=True):
    """Microseconds a row, the median of the calls, one thread; ``llvm`` is None without the extra ``fast``."""

    trees: int
    leaves: int
    batch: int
    lightgbm: float
    numpy: float
    llvm: float | None


def measure() -> list[Scoring]:
    """All sizes, all batches. Asserts that the engines give the same bits."""
    matrix, labels, categories = _adult()
    shuffled = np.random.default_rng(0).permutation(matrix)
    return [
        scoring
        for trees, leaves in SIZES
        for scoring in _of_size(trees, leaves, _text(matrix, labels, categories, trees, leaves), shuffled)
    ]


def _adult() -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """Numbers as they are, categories as codes; what is missing is NaN."""
    frame = read_table(ADULT)
    names = [name for name in frame.columns if name not in (TARGET, "split")]
    categories = [number for number, name in enumerate(names) if frame[name].dtype == pl.String]
    coded = [pl.col(name).rank("dense") - 1 if frame[name].dtype == pl.String else pl.col(name) for name in names]
    matrix = frame.select(
        one.cast(pl.Float64).fill_null(float("nan")).alias(name) for one, name in zip(coded, names, strict=True)
    )
    return np.ascontiguousarray(matrix.to_numpy()), frame[TARGET].to_numpy().astype(np.float64), categories


def _text(matrix: NDArray[np.float64], labels: NDArray[np.float64], categories: list[int], trees: int, leaves: int) -> bytes:
    parameters = {"objective": "binary", "num_leaves": leaves, "verbosity": -1, "num_threads": 1, "seed": 0}
    data = lightgbm.Dataset(matrix, labels, categorical_feature=categories)
    text: str = lightgbm.train(parameters, data, trees).model_to_string()
    return text.encode()


def _of_size(trees: int, leaves: int, text: bytes, matrix: NDArray[np.float64]) -> list[Scoring]:
    learner = LightGBM()
    quick = learner.load(text)
    models = {model.engine: model for model in (learner.load_reference(text), quick, quick.faster()) if model}
    assert set(models) >= {"lightgbm", "numpy"}
    assert len({model.predict(matrix[:5000]).tobytes() for model in models.values()}) == 1
    found = []
    for batch in BATCHES:
        us = _in_turn(models, matrix, batch)
        found.append(Scoring(trees, leaves, batch, us["lightgbm"], us["numpy"], us.get("llvm")))
    return found


def _in_turn(models: dict[str, Model], matrix: NDArray[np.float64], batch: int) -> dict[str, float]:
    """By engine, microseconds a row."""
    calls = max(5, min(CALLS, ROWS // batch))
    seconds: dict[str, list[float]] = {engine: [] for engine in models}
    place = 0
    for _ in range(calls):
        for engine, model in models.items():
            for _warm in range(2):
                place = (place + batch) % (len(matrix) - batch)
                part = matrix[place : place + batch]
                begin = time.perf_counter()
                model.predict(part)
                took = time.perf_counter() - begin
            seconds[engine].append(took)
    return {engine: median(taken) / batch * 1e6 for engine, taken in seconds.items()}
