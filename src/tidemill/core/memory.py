"""What a search remembers of earlier experiments: points to try again on the new data, and what the others came to.

Rules, by what has changed since a trial was made. More rows, another window, folds or seed: it counts, its loss moved by as
much as the points moved that both experiments tried. Another metric: its point may be tried again, its loss says nothing.
A feature more or less: as more rows. A parameter that is new has the value of the space's first point, which is the
learner's own. One that the space has no more is dropped, a value beyond the bounds becomes the nearest one; then, or where
what is fixed has changed, the point may be tried again but its loss says nothing. A choice that is gone, another learner or
task: nothing.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from tidemill.core.metrics import metric
from tidemill.core.schema import Task
from tidemill.core.space import Choice, Dimension, Integer, Space
from tidemill.messages import Trial

RETRIED = 5
"""Of the best points: where rows were added the first alone mostly will do, after a shift it may be any of them."""
TOLD_MAX = 200
"""Trials that a proposer is told of; the best and the newest first."""

Point = dict[str, Any]


class Recalled(Struct, frozen=True):
    """``retry``: points of the space, the most promising first, with the loss that each is expected to have (NaN where that
    is not known). ``told``: points that need not be tried again, and their losses on the same scale.
    """

    retry: list[tuple[Point, float]]
    told: list[tuple[Point, float]]


def recall(past: Sequence[Trial], learner: str, space: Space, metric_name: str, task: Task) -> Recalled:
    """What ``past`` trials, the oldest first, mean for a search of ``learner`` in ``space``."""
    ours = [trial for trial in past if _usable(trial, learner, task)]
    same = [trial for trial in ours if trial.metric == metric_name]
    losses: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    points: dict[tuple[Any, ...], Point] = {}
    exact: set[tuple[Any, ...]] = set()
    for trial, loss in zip(same, _on_one_scale(same), strict=True):
        found = _translated(trial.parameters, space)
        if found is not None:
            point, is_exact = found
            points[_key(point)] = point
            losses[_key(point)].append(loss)
            exact |= {_key(point)} if is_exact else set()
    ranked = sorted(points, key=lambda key: float(np.mean(losses[key])))
    retry = [(points[key], float(np.mean(losses[key]))) for key in ranked[:RETRIED]]
    if not same:
        retry = [(point, math.nan) for point in _best_of_others(ours, space)][:RETRIED]
    newest = list(points)[::-1]
    kept = dict.fromkeys([*ranked[: TOLD_MAX // 2], *newest])
    told = [(points[key], float(np.mean(losses[key]))) for key in list(kept)[:TOLD_MAX] if key in exact]
    return Recalled(retry, told[::-1])


def _usable(trial: Trial, learner: str, task: Task) -> bool:
    known = trial.conditions is not None and trial.conditions.task == task
    return known and trial.learner == learner and trial.score is not None


def _on_one_scale(trials: Sequence[Trial]) -> list[float]:
    """Losses as if all had been made in the newest environment: each environment's are moved by what its points moved that
    the newer ones tried too (the median), or, where there are none, so that the best are equal.
    """
    groups: dict[str, dict[tuple[Any, ...], float]] = {}
    for trial in trials:
        group = groups.pop(trial.environment, {})
        group[_key(trial.parameters)] = _loss(trial)
        groups[trial.environment] = group
    moved: dict[str, float] = {}
    scale: dict[tuple[Any, ...], float] = {}
    for environment in reversed(groups):
        group = groups[environment]
        shared = [scale[key] - group[key] for key in group.keys() & scale.keys()]
        if shared:
            moved[environment] = float(np.median(shared))
        else:
            moved[environment] = min(scale.values()) - min(group.values()) if scale else 0.0
        scale = {key: loss + moved[environment] for key, loss in group.items()} | scale
    return [_loss(trial) + moved[trial.environment] for trial in trials]


def _best_of_others(trials: Sequence[Trial], space: Space) -> Iterable[Point]:
    """Of trials by other metrics: the best of each environment in turn, the newest first."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[trial.environment].append(trial)
    ranked = [sorted(group, key=_loss) for group in reversed(groups.values())]
    seen = set()
    for place in range(RETRIED):
        for group in ranked:
            found = _translated(group[place].parameters, space) if place < len(group) else None
            if found is not None and _key(found[0]) not in seen:
                seen.add(_key(found[0]))
                yield found[0]


def _loss(trial: Trial) -> float:
    assert trial.score is not None  # noqa: S101
    assert trial.conditions is not None  # noqa: S101
    task: Any = trial.conditions.task
    return metric(trial.metric, task).loss(trial.score)


def _translated(parameters: Point, space: Space) -> tuple[Point, bool] | None:
    """The point of the space, and whether it is the very one that was tried; None where there is none."""
    exact = all(name in parameters and parameters[name] == value for name, value in space.fixed.items())
    exact = exact and parameters.keys() <= space.dimensions.keys() | space.fixed.keys()
    point: Point = {}
    for name, dimension in space.dimensions.items():
        if name not in parameters:
            if name not in space.first:
                return None
            point[name] = space.first[name]
        elif dimension.contains(parameters[name]):
            point[name] = parameters[name]
        else:
            nearest = _nearest(dimension, parameters[name])
            if nearest is None:
                return None
            point[name], exact = nearest, False
    return point | space.fixed, exact


def _nearest(dimension: Dimension, value: Any) -> int | float | None:
    if isinstance(dimension, Choice) or not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if isinstance(dimension, Integer):
        steps = round((min(max(value, dimension.low), dimension.highest) - dimension.low) / dimension.step)
        return dimension.low + steps * dimension.step
    return float(min(max(value, dimension.low), dimension.high))


def _key(point: Point) -> tuple[Any, ...]:
    return tuple((name, type(point[name]), point[name]) for name in sorted(point))
