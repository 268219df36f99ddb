"""The joint drift estimate on UCI Adult, first half against second: our forest, our LightGBM, and MLBox's own file.

MLBox 0.8.5 cannot be installed beside what the project needs (TensorFlow 2.0, scikit-learn 0.22), but its
``mlbox/preprocessing/drift/drift_estimator.py`` loads alone: ``MLBOX_DRIFT_ESTIMATOR`` is the path of it, from the source
distribution on PyPI; without it that way is left out. All have one thread, and take turns.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from bench.scoring import ADULT, _adult
from tidemill.core.drift_estimator import forest, joint_drift
from tidemill.learners.domain_classifier import lightgbm
from tidemill.tables import read_table

ROWS = 32_000
REPEATS = 5
SEED = 1
MLBOX = "MLBOX_DRIFT_ESTIMATOR"
NOT_A_FEATURE = ("income_over_50k", "split")
WEIGHT = "fnlwgt"

Estimator = Callable[[], float]


class DriftEstimate(Struct, frozen=True):
    """Of ``rows`` in two samples: seconds (median and all), the processor's, and the score, which the repeats share."""

    way: str
    rows: int
    columns: int
    median: float
    cpu: float
    seconds: list[float]
    score: float


def measure() -> list[DriftEstimate]:
    """Asserts that MLBox's file gives our forest's figure."""
    matrix = _features()[:ROWS]
    reference, recent = matrix[: ROWS // 2], matrix[ROWS // 2 :]
    ways: dict[str, Estimator] = {
        "tidemill forest": lambda: joint_drift(reference, recent, forest, seed=SEED),
        "tidemill lightgbm": lambda: joint_drift(reference, recent, lightgbm, seed=SEED),
    }
    if path := os.environ.get(MLBOX):
        ways["mlbox"] = _mlbox(Path(path), reference, recent)
    for way in ways.values():
        way()
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            runs[name].append(_timed(way))
    found = []
    for name, timed in runs.items():
        seconds, cpu, scores = zip(*timed, strict=True)
        assert len(set(scores)) == 1, name
        found.append(
            DriftEstimate(name, len(matrix), matrix.shape[1], median(seconds), median(cpu), list(seconds), scores[0])
        )
    scores_of = {one.way: one.score for one in found}
    assert abs(scores_of.get("mlbox", scores_of["tidemill forest"]) - scores_of["tidemill forest"]) < 1e-12
    return found


def _features() -> NDArray[np.float64]:
    """Adult without the census weight, as learners see it."""
    matrix, _, _ = _adult()
    names = [name for name in read_table(ADULT).columns if name not in NOT_A_FEATURE]
    return np.delete(matrix, names.index(WEIGHT), axis=1)


def _mlbox(path: Path, reference: NDArray[np.float64], recent: NDArray[np.float64]) -> Estimator:
    """MLBox's class with its own forest and one thread; it draws from NumPy's global generator."""
    import pandas as pd  # type: ignore[import-untyped]
    from sklearn.ensemble import RandomForestClassifier

    module = _module(path)
    names = [f"column {number}" for number in range(reference.shape[1])]
    train, test = (pd.DataFrame(sample, columns=names) for sample in (reference, recent))
    estimator = RandomForestClassifier(n_estimators=50, n_jobs=1, max_features=1.0, min_samples_leaf=5, max_depth=5)

    def estimate() -> float:
        np.random.seed(SEED)
        return float(module.DriftEstimator(estimator, random_state=SEED).fit(train, test).score())

    return estimate


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("mlbox_drift_estimator", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{MLBOX} {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _timed(way: Estimator) -> tuple[float, float, float]:
    """Seconds, the processor's seconds, and what the way found."""
    started, started_cpu = time.perf_counter(), time.process_time()
    score = way()
    return time.perf_counter() - started, time.process_time() - started_cpu, score
