"""What a tracker shows of an experiment's trials together: their ranks, the best so far, and all of them as one table."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from tidemill.core.metrics import METRICS
from tidemill.messages import Trial

ENVIRONMENT_CHARACTERS = 12
"""Of its hash: as many as ``tidemill trials`` shows."""


def loss(trial: Trial) -> float | None:
    """None where there is no score, or nobody knows which is better."""
    measure = METRICS.get(trial.metric)
    return None if measure is None or trial.score is None else measure.loss(trial.score)


def ranks(trials: Sequence[Trial]) -> dict[int, int]:
    """By number: a trial's place, from 1, among those with a score that can be compared with it."""
    groups: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for trial in trials:
        if (found := loss(trial)) is not None:
            groups.setdefault(_group(trial), []).append((found, trial.number))
    return {number: rank for group in groups.values() for rank, (_, number) in enumerate(sorted(group), 1)}


def best(trials: Sequence[Trial], count: int) -> list[Trial]:
    """The first of those that can be compared with the last trial, the best first: an experiment that is resumed on other
    data begins anew.
    """
    places = ranks([trial for trial in trials if _group(trial) == _group(trials[-1])])
    by_number = {trial.number: trial for trial in trials}
    return [by_number[number] for number in sorted(places, key=places.__getitem__)[:count]]


def best_so_far(trials: Sequence[Trial]) -> dict[int, float]:
    """By number: the best score when that trial had ended, once there was one."""
    leaders: dict[tuple[str, str], tuple[float, float]] = {}
    found = {}
    for trial in trials:
        group, own = _group(trial), loss(trial)
        if own is not None and trial.score is not None:
            leaders[group] = min(leaders.get(group, (math.inf, math.nan)), (own, trial.score), key=lambda pair: pair[0])
        if group in leaders:
            found[trial.number] = leaders[group][1]
    return found


def table(trials: Sequence[Trial]) -> str:
    """JSON as ``mlflow.log_table`` writes it: ``columns``, and ``data`` row by row; the best first, those without a score
    last. Parameters are called ``param.NAME``.
    """
    places = ranks(trials)
    folds = range(max(len(trial.fold_scores) for trial in trials))
    names = sorted({name for trial in trials for name in trial.parameters})
    ordered = sorted(trials, key=lambda trial: (places.get(trial.number, math.inf), trial.number))
    rows = [
        {
            "rank": places.get(trial.number),
            "number": trial.number,
            "score": trial.score,
            "metric": trial.metric,
            "state": trial.state,
            "learner": trial.learner,
            "proposer": trial.proposer,
            "rounds": trial.rounds,
            "seconds": trial.seconds,
            "threshold": trial.threshold,
            **{f"fold_{number + 1}": dict(enumerate(trial.fold_scores)).get(number) for number in folds},
            "environment": trial.environment[:ENVIRONMENT_CHARACTERS],
            "error": trial.error,
            **{f"param.{name}": trial.parameters.get(name) for name in names},
        }
        for trial in ordered
    ]
    return _split(rows)


def _split(rows: Sequence[dict[str, Any]]) -> str:
    return msgspec.json.encode({"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}).decode()


def _group(trial: Trial) -> tuple[str, str]:
    return trial.environment, trial.metric
