"""What other tools have recorded, as trials of one experiment: HyperparameterHunter's assets, Hyperopt's trials as JSON.

Nothing is unpickled. Parameters get the learner's own names, scores the metric's own direction. What was not recorded there
is empty in a trial's conditions, and what sets the tool's own environments apart stands in their place, so that only those
trials are compared that the tool would compare. What cannot be used is told with its reason.
"""

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from tidemill.core.environment import digest
from tidemill.core.foreign_names import LEARNERS, Misfit, our_metric, our_parameters
from tidemill.core.metrics import METRICS
from tidemill.core.schema import Schema, Task
from tidemill.errors import ConfigError
from tidemill.messages import Conditions, Trial

Format = Literal["hh", "hyperopt"]

PREFIX = "imported-"
"""How the id of an imported experiment begins."""
DESCRIPTIONS, LEADERBOARD = "Experiments/Descriptions/", "Leaderboards/GlobalLeaderboard.csv"
"""Where HyperparameterHunter keeps them, in its assets folder."""
ALGORITHMS = {"LGBM": "lightgbm", "XGB": "xgboost", "CatBoost": "catboost"}
OF_PROBABILITIES = ("auc", "average_precision", "log_loss", "multi_log_loss", "brier")
HELP = "see docs/coming_from.md"


class Reading(Struct, frozen=True):
    """What a person says of the files. ``learner`` and ``metric`` are needed for Hyperopt, whose files tell neither; of
    HyperparameterHunter's metrics ``metric`` is the one to take, by default ``preferred`` or else its first. ``choices`` are
    the values of each ``hp.choice`` by its label, None where the numbers themselves are the values.
    """

    learner: str = ""
    metric: str = ""
    preferred: str = ""
    choices: dict[str, list[Any] | None] = {}


class Imported(Struct, frozen=True):
    """The ``trials`` of one experiment, whose id follows from the files and their reading; by its reason, what was
    ``refused``; what a person should know.
    """

    experiment: str
    trials: list[Trial]
    refused: dict[str, list[str]]
    notes: list[str]


def read(kind: Format, files: Mapping[str, bytes], reading: Reading, schema: Schema, now_ms: int) -> Imported:
    """The trials in files, which are given by their names. ``ConfigError`` where none of it can be read."""
    if reading.learner and reading.learner not in LEARNERS:
        raise ConfigError(f"--learner {reading.learner!r} is not one of {', '.join(LEARNERS)}")
    if kind == "hyperopt" and not reading.learner:
        raise ConfigError(f"Hyperopt's trials do not say whose they are: --learner, one of {', '.join(LEARNERS)}")
    if kind == "hyperopt" and not reading.metric:
        raise ConfigError("Hyperopt's trials do not say what their loss measures: --metric, auc or log_loss for example")
    fitting = sorted(one.name for one in METRICS.values() if schema.task in one.tasks)
    if reading.metric and reading.metric not in fitting:
        raise ConfigError(f"--metric {reading.metric!r} does not fit a {schema.task} target; valid are {', '.join(fitting)}")
    found = _Found(f"{PREFIX}{_digest(files, reading)}", schema, now_ms)
    try:
        (_hunter if kind == "hh" else _hyperopt)(files, reading, found)
    except RecursionError as error:
        raise ConfigError(f"what the files hold is nested too deeply; {HELP}") from error
    return Imported(found.experiment, found.trials, found.refused, found.told())


def _digest(files: Mapping[str, bytes], reading: Reading) -> str:
    how = (reading.learner, reading.metric or reading.preferred, reading.choices)
    content = hashlib.sha256(repr(how).encode(errors="replace"))
    for name in sorted(files):
        content.update(f"\0{name}\0{len(files[name])}\0".encode(errors="replace"))
        content.update(files[name])
    return content.hexdigest()[:12]


class _Found:
    """What was read so far."""

    def __init__(self, experiment: str, schema: Schema, now_ms: int) -> None:
        self.experiment = experiment
        self.task: Task = schema.task
        self.target = schema.target
        self.now_ms = now_ms
        self.trials: list[Trial] = []
        self.refused: dict[str, list[str]] = {}
        self.notes: Counter[str] = Counter()
        self.strange: Counter[str] = Counter()

    def refuse(self, name: str, reason: str) -> None:
        self.refused.setdefault(reason, []).append(name)

    def add(self, learner: str, given: Mapping[str, Any], conditions: Conditions, score: float, **facts: Any) -> None:
        """A trial whose parameters are ``given`` by whatever names."""
        if not math.isfinite(score):
            raise Misfit("its score is no finite number")
        if not METRICS[conditions.metric].possible(score):
            raise Misfit(f"no {conditions.metric} is {score:g}: another metric, or another sign")
        ours = our_parameters(learner, given)
        self.strange.update(ours.strange)
        under = replace(conditions, unbalanced=ours.unbalanced)
        self.trials.append(
            Trial(
                experiment=self.experiment,
                parameters=ours.parameters,
                metric=under.metric,
                score=score,
                environment=digest(under),
                at=self.now_ms,
                learner=learner,
                conditions=under,
                **{"rounds": ours.rounds, "fold_scores": [], "seconds": 0.0, **facts},
            )
        )

    def told(self) -> list[str]:
        notes = [f"{note} ({count} of {len(self.trials)} trials)" for note, count in self.notes.items()]
        if self.strange:
            names = ", ".join(f"{name} ({count})" for name, count in self.strange.most_common())
            notes.append(f"parameters that mean nothing to their learner here were left out: {names}")
        return notes


def facts(trial: Trial) -> tuple[object, ...]:
    """What makes two imported trials one, whichever files they were read from."""
    return trial.environment, trial.learner, trial.metric, trial.score, json.dumps(trial.parameters, sort_keys=True)


def _hunter(files: Mapping[str, bytes], reading: Reading, found: _Found) -> None:
    """One of HyperparameterHunter's experiments is one trial; they are numbered as they were begun."""
    described = {}
    for name in sorted(name for name in files if name.startswith(DESCRIPTIONS)):
        id = name.removeprefix(DESCRIPTIONS).removesuffix(".json")
        try:
            described[id] = _json(files[name])
        except ValueError as error:
            found.refuse(id, f"its description is not JSON: {error}")
    for id in _listed(files.get(LEADERBOARD, b"")):
        if f"{DESCRIPTIONS}{id}.json" not in files:
            found.refuse(id, "it stands on the leaderboard only: without a description its parameters are not known")
    begun = sorted(described, key=lambda id: (str(_at(described[id], "aggregates", "times", "start")), id))
    for number, id in enumerate(begun):
        try:
            _experiment(number, described[id], reading, found)
        except Misfit as misfit:
            found.refuse(id, str(misfit))


def _listed(leaderboard: bytes) -> list[str]:
    try:
        rows = list(csv.DictReader(io.StringIO(leaderboard.decode("utf-8", "replace"))))
    except csv.Error as error:
        raise ConfigError(f"{LEADERBOARD} cannot be read: {error}") from error
    return [row["experiment_id"] for row in rows if row.get("experiment_id")]


def _experiment(number: int, told: Any, reading: Reading, found: _Found) -> None:
    learner = _learner(str(_at(told, "algorithm_name")), found.task)
    theirs, ours, sign, score = _measured(told, reading, found.task)
    given = _at(told, "hyperparameters", "model_init_params")
    if not isinstance(given, dict):
        raise Misfit("its description has no hyperparameters.model_init_params")
    folds = [sign * value for value in _numbers(_at(told, "aggregates", "evaluations", f"oof_{theirs}", "folds"))]
    stopped = _at(told, "hyperparameters", "model_extra_params", "fit", "early_stopping_rounds")
    facts = {
        "number": number,
        "fold_scores": folds,
        "seconds": sum(_numbers(_at(told, "aggregates", "times", "total_elapsed"))),
        "proposer": "hyperparameter_hunter",
        **({} if stopped is None else {"rounds": 0}),  # where it stopped was not recorded
    }
    found.add(learner, given, _conditions(told, ours, found.task, len(folds)), sign * score, **facts)
    if _at(told, "cross_experiment_parameters", "do_predict_proba") is False and ours in OF_PROBABILITIES:
        found.notes[
            f"{ours} of predicted classes, not of probabilities (do_predict_proba was off): only its order counts"
        ] += 1
    target = _list(_at(told, "cross_experiment_parameters", "target_column"))
    if target and found.target not in target:
        found.notes[f"made for the target {_short(target[0])}; this project's is {found.target!r}"] += 1


def _learner(algorithm: str, task: Task) -> str:
    learner = next((ours for start, ours in ALGORITHMS.items() if algorithm.startswith(start)), None)
    if learner is None or not algorithm.endswith(("Classifier", "Regressor")):
        raise Misfit(f"its algorithm is {_short(algorithm)}, and only those of LightGBM, XGBoost and CatBoost are read")
    if algorithm.endswith("Regressor") != (task == "regression"):
        raise Misfit(f"it is a {algorithm}, and this project's task is {task}")
    return learner


def _measured(told: Any, reading: Reading, task: Task) -> tuple[str, str, int, float]:
    """Their name of the metric, ours, the sign between them, and their score."""
    scores = _at(told, "final_evaluations", "oof")
    if not isinstance(scores, dict) or not scores:
        raise Misfit("it has no out-of-fold score")
    usable = {name: known for name in scores if (known := our_metric(name, task)) is not None}
    wanted = [name for name, (ours, _) in usable.items() if ours == (reading.metric or reading.preferred)]
    for theirs in wanted or ([] if reading.metric else usable):
        ours, sign = usable[theirs]
        metrics = _at(told, "cross_experiment_parameters", "metrics_params")
        direction = _at(_at(metrics, "metrics") or _at(metrics, "metrics_map"), theirs, "direction")
        if direction in ("min", "max") and direction != ("max" if METRICS[ours].greater_is_better == (sign > 0) else "min"):
            raise Misfit(f"its {theirs} was to be as {direction} as can be: it is not what its name says")
        return theirs, ours, sign, _number(scores[theirs])
    raise Misfit(f"it was measured by {', '.join(scores)}: no {reading.metric or f'metric of a {task} project'} among them")


def _conditions(told: Any, ours: str, task: Task, folds: int) -> Conditions:
    """Its cross-experiment key, which sums up all but the model, stands in ``split``; engineered features are a hash."""
    steps = _at(told, "hyperparameters", "feature_engineer", "steps")
    under = _at(told, "cross_experiment_parameters")
    return Conditions(
        metric=ours,
        task=task,
        folds=_whole(_at(under, "cv_params", "n_splits")) or folds,
        split=f"hh-{str(_at(told, 'cross_experiment_key'))[:12]}",
        unbalanced=False,
        schema=hashlib.sha256(json.dumps(steps).encode()).hexdigest() if steps else "",
        features=tuple(map(str, _list(_at(told, "hyperparameters", "feature_selector")))),
        training_set=str(_at(under, "train_dataset") or ""),
        rows=0,
        seed=_whole(_at(under, "cross_experiment_params", "global_random_seed")),
    )


def _hyperopt(files: Mapping[str, bytes], reading: Reading, found: _Found) -> None:
    """One file: a JSON list of ``Trials().trials``, whose key ``point`` may hold what ``space_eval`` makes of a trial."""
    [(name, data)] = files.items()
    told = _documents(name, data)
    losses = [_number(_at(one, "result", "loss")) for one in told]
    mirrored = METRICS[reading.metric].greater_is_better and not any(loss < 0 for loss in losses)
    under = Conditions(reading.metric, found.task, 0, found.experiment, False, "", (), "", 0, 0)
    for number, (one, loss) in enumerate(zip(told, losses, strict=True)):
        try:
            if one["result"].get("status") != "ok":
                raise Misfit(f"its status is {_short(one['result'].get('status'))}")
            score, how = _score(one["result"], loss, reading.metric, found.task, mirrored)
            found.add(reading.learner, _point(one, reading.choices), under, score, number=number, proposer="hyperopt")
            found.notes[how] += 1
        except Misfit as misfit:
            found.refuse(f"trial {number}", str(misfit))


def _documents(name: str, data: bytes) -> list[Any]:
    if data[:1] == b"\x80":
        raise ConfigError(f"{name} is a pickle, which can run anything when it is read: write JSON ({HELP})")
    try:
        told = _json(data)
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON: {error}; {HELP}") from error
    if not isinstance(told, list) or not all(isinstance(_at(one, "result"), dict) for one in told):
        raise ConfigError(f"{name} is not a list of Hyperopt's trials: {HELP}")
    return told


def _score(result: Mapping[str, Any], loss: float, wanted: str, task: Task, mirrored: bool) -> tuple[float, str]:
    """By the metric's own name, where the objective returned it, or from the loss; and how it was read."""
    for theirs, value in result.items():
        ours, sign = our_metric(theirs, task) or ("", 1)
        if ours == wanted:
            return sign * _number(value), f"{wanted} is the result's {theirs}"
    if mirrored:
        return 1 - loss, f"{wanted} is 1 - loss"
    return (-loss, f"{wanted} is -loss") if METRICS[wanted].greater_is_better else (loss, f"{wanted} is the loss")


def _point(told: Any, choices: Mapping[str, list[Any] | None]) -> dict[str, Any]:
    """The parameters: the ``point``, or the labels' values. Of an ``hp.choice`` there is a whole number only."""
    point = _at(told, "point")
    if isinstance(point, dict):
        return dict(_flat(point))
    values = _at(told, "misc", "vals")
    if not isinstance(values, dict):
        raise Misfit("it has neither a point nor misc.vals")
    drawn = {label: one[0] for label, one in values.items() if isinstance(one, list) and one}
    return {label: _chosen(label, value, choices) for label, value in drawn.items()}


def _chosen(label: str, value: Any, choices: Mapping[str, list[Any] | None]) -> Any:
    if isinstance(value, float):
        return value
    options = choices.get(label)
    if label not in choices:
        raise Misfit(f"its {label} may be the number of a choice: export it with space_eval, or give --choices ({HELP})")
    if options is None:
        return value
    number = _number(value)
    if number not in range(len(options)):
        raise Misfit(f"its {label} is choice {_short(value)} of {len(options)}")
    return options[int(number)]


def _flat(point: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Parameters of nested groups by their own names."""
    for name, value in point.items():
        yield from _flat(value) if isinstance(value, dict) else [(name, value)]


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _at(tree: Any, *path: str) -> Any:
    """What stands there, or None."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _number(value: Any) -> float:
    """NaN for what is none. NumPy's numbers may stand there as texts."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _numbers(tree: Any) -> list[float]:
    """The finite numbers of nested lists."""
    if isinstance(tree, list):
        return [number for one in tree for number in _numbers(one)]
    number = _number(tree)
    return [number] if math.isfinite(number) else []


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _short(value: Any) -> str:
    return repr(value)[:60]
