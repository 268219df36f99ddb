"""What runs show: the metrics, parameters and tags of trials and decisions, by names that MLflow takes."""

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tidemill.core.metrics import METRICS
from tidemill.messages import Conditions, JournalEntry, Trial
from tidemill.tracking.summary import best_so_far

TEXT_CHARACTERS, NAME_CHARACTERS, ID_CHARACTERS = 6000, 250, 200
"""MLflow refuses longer values of parameters, names of them, and (from 500 on) names of experiments."""
METRICS_MAX, PARAMETERS_MAX = 800, 100
"""Of one call: MLflow takes 1,000 things together, tags among them."""
TABLE, REPORT = "trials.json", "report.html"
SHOWN_TABLES = json.dumps([{"path": TABLE, "type": "table"}])
"""By a tag of this value MLflow's pages find the table."""
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
"""As MLflow's own adapter of Optuna has them."""


class Point(NamedTuple):
    """One value of a metric; ``step`` is a trial's number in a history."""

    name: str
    value: float | None
    at: int
    step: int = 0


class Fields(NamedTuple):
    """What is logged of a run."""

    points: Sequence[Point] = ()
    parameters: Mapping[str, Any] = {}
    tags: Mapping[str, str] = {}


def short(id: str) -> str:
    """An experiment's id as MLflow takes it."""
    return id if len(id) <= ID_CHARACTERS else f"{id[:100]}-{hashlib.sha256(id.encode()).hexdigest()}"


def run_tags(key: str, experiment: str) -> dict[str, str]:
    """What every run has from its beginning."""
    return {
        "tidemill.key": key,
        "tidemill.experiment": experiment,
        "mlflow.source.name": "tidemill",
        "mlflow.user": "tidemill",
    }


def of_trial(trial: Trial) -> Fields:
    """Of its own run."""
    folds = {f"{trial.metric}_fold_{number}": score for number, score in enumerate(trial.fold_scores, 1)}
    values = {trial.metric: trial.score, **folds, "rounds": trial.rounds, "seconds": trial.seconds}
    tags = {
        "tidemill.environment": trial.environment,
        "tidemill.state": trial.state,
        "tidemill.proposer": trial.proposer,
        "error": trial.error,
    }
    chosen = _chosen(trial.learner, trial.metric, trial.threshold)
    return Fields(_at(trial.at, values), {**trial.parameters, **chosen}, _given(tags))


def of_parent(trials: Sequence[Trial], new: Collection[int]) -> Fields:
    """Of the parent run while the search goes on: a step a new trial of the best score so far."""
    best = best_so_far(trials)
    fresh = [trial for trial in trials if trial.number in new and trial.number in best]
    points = [Point(f"best_{trial.metric}", best[trial.number], trial.at, trial.number) for trial in fresh]
    return Fields(points, tags={"mlflow.loggedArtifacts": SHOWN_TABLES})


def of_decision(entry: JournalEntry, trials: Sequence[Trial]) -> Fields:
    """Of the parent run."""
    values = {"rounds": entry.rounds, "trials": entry.trials, "seconds": entry.seconds, "rows": entry.rows}
    values |= {f"verdict_{name}": value for name, value in entry.statistic.items()}
    points = _at(entry.at, {entry.metric or "score": entry.score, **values})
    tags = {
        "reason": entry.reason,
        "evidence": json.dumps(entry.evidence) if entry.evidence else "",
        "verdict": entry.verdict,
        "tidemill.bundle": entry.bundle,
        "tidemill.settings": entry.settings,
        "tidemill.environment": entry.environment,
        "mlflow.note.content": entry.detail,
    }
    data = {"data_version": entry.data_version, "rows": entry.rows, "training_set": entry.training_set}
    chosen = _chosen(entry.learner, entry.metric, entry.threshold)
    return Fields(points, {**entry.parameters, **data, **chosen, **_search(entry, trials)}, _given(tags))


def _search(entry: JournalEntry, trials: Sequence[Trial]) -> dict[str, Any]:
    """What the trials that were compared have in common."""
    same = [trial for trial in trials if entry.environment in ("", trial.environment)]
    if not same:
        return {}
    return _given({"proposer": same[-1].proposer}) | (_conditions(same[-1].conditions) if same[-1].conditions else {})


def _conditions(found: Conditions) -> dict[str, Any]:
    return {"metric": found.metric, "folds": found.folds, "split": found.split, "features": len(found.features)}


def _chosen(learner: str, metric: str, threshold: float) -> dict[str, Any]:
    """The threshold only where the metric has one; trials of version 0.1 name no learner."""
    decides = metric in METRICS and METRICS[metric].decides
    return _given({"learner": learner}) | ({"threshold": threshold} if decides else {})


def _at(at: int, values: Mapping[str, float | None]) -> list[Point]:
    return [Point(name, value, at) for name, value in values.items()]


def _given(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: text[:TEXT_CHARACTERS] for name, text in texts.items() if text}


def pieces(fields: Fields) -> Iterator[tuple[list[Any], list[Any], list[Any]]]:
    """Metrics, parameters and tags as MLflow's own, in as few calls as it allows."""
    from mlflow.entities import Metric, Param, RunTag

    metrics = [
        Metric(_name(name), value, at, step)
        for name, value, at, step in fields.points
        if value is not None and math.isfinite(value)
    ]
    texts = {_name(name): _text(value)[:TEXT_CHARACTERS] for name, value in fields.parameters.items()}
    parameters = [Param(name, text) for name, text in texts.items()]
    tags = [RunTag(name, value) for name, value in fields.tags.items()]
    calls = max(1, math.ceil(len(metrics) / METRICS_MAX), math.ceil(len(parameters) / PARAMETERS_MAX))
    for call in range(calls):
        some = slice(METRICS_MAX * call, METRICS_MAX * (call + 1))
        others = slice(PARAMETERS_MAX * call, PARAMETERS_MAX * (call + 1))
        yield metrics[some], parameters[others], [] if call else tags


def _name(name: str) -> str:
    """A learner's parameters may have names that MLflow refuses."""
    return re.sub(r"[^\w. -]|^\.+", "_", name)[:NAME_CHARACTERS] or "_"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
