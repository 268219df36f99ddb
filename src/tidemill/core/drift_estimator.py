"""MLBox's drift estimator: how well a classifier tells recent rows from those of the training set.

After ``mlbox/preprocessing/drift/drift_estimator.py`` and ``drift_threshold.py`` of MLBox 0.8.5. The figures are its own, to
the last bit with one scikit-learn (``tests/data/mlbox_drift.json``), but for what it leaves open:

- Chance. Its classifiers and its shuffling have no seed, only its folds do, so its figures change from call to call. Here
  all is drawn from ``seed``, as MLBox draws after ``numpy.random.seed(seed)``.
- Threads. Its forest adds up its trees in the order in which they are done, which can show in the last bits. Here one
  thread adds them.
- Missing values. Its thresholder turns a missing number into 0; its scikit-learn refused them elsewhere. Here NaN stays NaN,
  which trees tell from every number, so that a column which goes missing drifts. ``np.nan_to_num`` before gives its figures.
- Large numbers. What is beyond float32 is refused there; here trees take what is beyond 1e30 for that.

An AUC below 0.5 counts as drift too. So the score of samples without drift is not 0 but what luck makes of it: one in twenty
is above 0.05 with 1,000 rows a side, above 0.2 with 50 (normal numbers, 5 columns). And the samples must be disjoint: a row
that is in both is taken for the side on which it was learnt, and 2,000 rows against themselves score 0.23 to 0.43.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from tidemill.core.metrics import METRICS
from tidemill.core.schema import Schema
from tidemill.errors import ConfigError

Matrix = NDArray[np.float64]
Values = NDArray[np.float64]
Rows = NDArray[np.intp]
Classifier = Callable[[Matrix, Values, Matrix, np.random.RandomState], Values]
"""``classifier(matrix[n, k], labels[n], scored[m, k], chance)`` learns labels 0 and 1 from the first rows, and gives of the
others the probability of 1, float64[m]; NaN is a missing value.
"""

THRESHOLD = 0.6
"""The score from which on MLBox drops a feature: an AUC of 0.8, or of 0.2."""
ROWS_MAX = 20_000
"""Rows of each sample that are enough: see ``sampled``."""

_LARGEST = 1e30
"""Of what trees are given: scikit-learn warns where the sum of all is more than a float32."""


def drift_score(aucs: Sequence[float]) -> float:
    """The folds' AUCs as drift from 0 (none) to 1 (all rows told apart): ``(max(mean, 1 - mean) - 0.5) * 2``."""
    mean = float(np.mean(aucs))
    return (max(mean, 1 - mean) - 0.5) * 2


def forest(matrix: Matrix, labels: Values, scored: Matrix, chance: np.random.RandomState, threads: int = 1) -> Values:
    """MLBox's classifier for the joint estimate: 50 trees of all columns, 5 levels, leaves of 5 rows. A ``Classifier``."""
    from sklearn.ensemble import RandomForestClassifier  # here, for it takes a second that a predictor need not wait

    model = RandomForestClassifier(
        n_estimators=50, max_features=1.0, min_samples_leaf=5, max_depth=5, n_jobs=threads, random_state=chance
    )
    model.fit(_finite(matrix), labels)
    found: Values = model.set_params(n_jobs=1).predict_proba(_finite(scored))[:, 1]
    return found


def tree(matrix: Matrix, labels: Values, scored: Matrix, chance: np.random.RandomState) -> Values:
    """MLBox's classifier for one feature: a tree of 6 levels. A ``Classifier``."""
    from sklearn.tree import DecisionTreeClassifier

    model = DecisionTreeClassifier(max_depth=6, random_state=chance).fit(_finite(matrix), labels)
    found: Values = model.predict_proba(_finite(scored))[:, 1]
    return found


def joint_drift(
    reference: Matrix,
    recent: Matrix,
    classifier: Classifier = forest,
    folds: int = 2,
    stratify: bool = True,
    seed: int = 1,
) -> float:
    """The drift of all columns together, from ``reference`` float64[n, k] to ``recent`` float64[m, k]: MLBox's
    ``DriftEstimator(n_folds, stratify, random_state=seed)``.

    ``ConfigError`` where there are fewer than two folds, no columns, or too few rows for both samples to be in every fold.
    """
    return drift_score(_aucs(reference, recent, classifier, folds, stratify, seed, np.random.RandomState(seed)))


def feature_drifts(
    reference: Matrix,
    recent: Matrix,
    columns: Sequence[str],
    classifier: Classifier = tree,
    folds: int = 2,
    stratify: bool = True,
    seed: int = 1,
) -> dict[str, float]:
    """The drift of each column alone, by its name (k ``columns``, in order): MLBox's
    ``DriftThreshold(n_folds=, stratify=, random_state=seed, n_jobs=1)``, which shuffles both samples anew for each.

    Raises as ``joint_drift``.
    """
    chance = np.random.RandomState(seed)
    scores = {}
    for number, name in enumerate(columns):
        before, after = (sample[chance.permutation(len(sample)), number : number + 1] for sample in (reference, recent))
        scores[name] = drift_score(_aucs(before, after, classifier, folds, stratify, seed, chance))
    return scores


def drifting(scores: Mapping[str, float], threshold: float = THRESHOLD) -> list[str]:
    """The features whose score is the threshold or more, in the order given: MLBox's ``Drift_thresholder`` drops these."""
    return [name for name, score in scores.items() if score >= threshold]


def drop_features(schema: Schema, names: Collection[str]) -> Schema:
    """The schema without these features, and without the crosses that use them; a cross can be named too, as ``a*b``.

    ``ConfigError`` for a name that is not among ``schema.columns``, and where no feature would be left.
    """
    unknown = sorted(set(names) - set(schema.columns))
    if unknown:
        raise ConfigError(f"no feature {unknown[0]!r} to drop; there are {', '.join(schema.columns)}")
    features = tuple(feature for feature in schema.features if feature.name not in names)
    if not features:
        raise ConfigError(
            f"all {len(schema.features)} features would be dropped for drift; raise the threshold or name fewer"
        )
    crosses = tuple(cross for cross in schema.crosses if not {*cross, "*".join(cross)} & set(names))
    return replace(schema, features=features, crosses=crosses)


def sampled(matrix: NDArray[Any], rows_max: int = ROWS_MAX) -> NDArray[Any]:
    """At most ``rows_max`` rows of an array, evenly spaced and in order."""
    rows = len(matrix)
    return matrix if rows <= rows_max else matrix[np.arange(rows_max) * rows // rows_max]


def _aucs(
    reference: Matrix,
    recent: Matrix,
    classifier: Classifier,
    folds: int,
    stratify: bool,
    seed: int,
    chance: np.random.RandomState,
) -> list[float]:
    """Of each fold, how often a recent row looks more recent than one of the reference to whom has not seen either."""
    matrix = np.concatenate([reference, recent])
    labels = np.repeat([0.0, 1.0], [len(reference), len(recent)])
    if matrix.shape[1] == 0:
        raise ConfigError("drift needs at least one column")
    auc = METRICS["auc"].function
    return [
        auc(labels[scored], classifier(matrix[learnt], labels[learnt], matrix[scored], chance))
        for learnt, scored in _folds(labels, folds, stratify, seed)
    ]


def _folds(labels: Values, folds: int, stratify: bool, seed: int) -> list[tuple[Rows, Rows]]:
    """scikit-learn's shuffled folds, as MLBox has them: rows to learn from, rows to score."""
    from sklearn.model_selection import KFold, StratifiedKFold

    recent = int(labels.sum())
    counts = f"{len(labels) - recent} rows of the reference and {recent} recent ones"
    if folds < 2:
        raise ConfigError(f"drift by {folds} folds: there must be 2 or more")
    if min(recent, len(labels) - recent) < folds:
        raise ConfigError(f"too few rows for drift: {counts}; {folds} folds need {folds} of each: wait, or lower the folds")
    kind = StratifiedKFold if stratify else KFold
    found = list(kind(n_splits=folds, shuffle=True, random_state=seed).split(labels, labels))
    if any(np.ptp(labels[rows]) == 0 for fold in found for rows in fold):
        raise ConfigError(f"too few rows for drift: of {counts}, a fold has only one kind: wait, or stratify the folds")
    return found


def _finite(matrix: Matrix) -> NDArray[np.float32]:
    """The float32 of scikit-learn's trees; NaN stays."""
    return np.clip(matrix, -_LARGEST, _LARGEST).astype(np.float32)
