"""Trials of other tools: read without unpickling, in our names, with every refusal told."""

import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from tidemill.core.environment import digest
from tidemill.core.foreign_names import Misfit, our_metric, our_parameters
from tidemill.core.importing import DESCRIPTIONS, LEADERBOARD, Imported, Reading, read
from tidemill.core.memory import recall
from tidemill.core.schema import Feature, Schema
from tidemill.errors import ConfigError
from tidemill.learners.lightgbm import LightGBM
from tidemill.messages import Trial

ASSETS = Path(__file__).parents[1] / "data" / "hyperparameter_hunter" / "HyperparameterHunterAssets"
"""Made by hand in the format of HyperparameterHunter 3.0.0, as its recorders write it."""
COMING_FROM = Path(__file__).parents[2] / "docs" / "coming_from.md"
SCHEMA = Schema((Feature("mean radius", "number"),), "diagnosis", "binary", (0, 1))


def assets() -> dict[str, bytes]:
    return {file.relative_to(ASSETS).as_posix(): file.read_bytes() for file in ASSETS.rglob("*.*") if file.is_file()}


def hunter(files: dict[str, bytes] | None = None, metric: str = "", schema: Schema = SCHEMA) -> Imported:
    return read("hh", assets() if files is None else files, Reading(metric=metric, preferred="log_loss"), schema, 1000)


def hyperopt(told: Any, metric: str = "log_loss", learner: str = "lightgbm", **choices: Any) -> Imported:
    data = told if isinstance(told, bytes) else json.dumps(told).encode()
    return read("hyperopt", {"trials.json": data}, Reading(learner, metric, choices=choices), SCHEMA, 1000)


def drawn(loss: Any, status: str = "ok", **values: Any) -> dict[str, Any]:
    """One of Hyperopt's trials, as ``json.dump(trials.trials, file, default=str)`` writes it."""
    vals = {label: [] if value is None else [value] for label, value in values.items()}
    return {"state": 2, "tid": 0, "result": {"loss": loss, "status": status}, "misc": {"tid": 0, "vals": vals}}


def changed(**parameters: Any) -> dict[str, bytes]:
    """The sample's best experiment alone, with other parameters."""
    [(name, told)] = [(name, json.loads(data)) for name, data in assets().items() if "a16ea72b" in name]
    told["hyperparameters"]["model_init_params"] |= parameters
    return {name: json.dumps(told).encode()}


def test_hyperparameter_hunters_experiments_become_trials() -> None:
    """In the order in which they were begun, each with its learner's own names, its folds, seconds and conditions."""
    found = hunter()
    assert found.experiment.startswith("imported-")
    assert len(found.experiment) == len("imported-") + 12
    assert [(trial.number, trial.learner, trial.score) for trial in found.trials] == [
        (0, "lightgbm", 0.985123),
        (1, "lightgbm", 0.991456),
        (2, "lightgbm", 0.979),
        (3, "xgboost", 0.988),
        (4, "catboost", 0.987),
        (8, "lightgbm", 0.93),
    ]
    second = found.trials[1]
    assert second.parameters == {
        "num_leaves": 24,
        "learning_rate": 0.12,
        "min_data_in_leaf": 12,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "feature_fraction": 0.7,
        "lambda_l1": 0.2,
        "lambda_l2": 2.5,
    }
    assert (second.metric, second.rounds, second.seconds, second.at) == ("auc", 100, 0.71, 1000)
    assert second.fold_scores == pytest.approx([0.981456, 0.991456, 1.003456])
    assert second.conditions is not None
    assert second.environment == digest(second.conditions)
    known = second.conditions
    assert (known.task, known.folds, known.seed, known.rows, known.schema) == ("binary", 3, 32, 0, "")
    assert known.features == ("mean radius", "mean texture", "mean perimeter", "mean area")
    assert known.training_set
    assert known.split.startswith("hh-")


def test_each_learner_has_its_own_names() -> None:
    """XGBoost's and CatBoost's; what the library does anyway is left out, and so is what makes no difference."""
    by_learner = {trial.learner: trial for trial in hunter().trials}
    assert by_learner["xgboost"].parameters == {
        "max_depth": 5,
        "learning_rate": 0.1,
        "min_child_weight": 1.0,
        "subsample": 0.75,
        "colsample_bytree": 1.0,
        "alpha": 0.01,
        "lambda": 1.0,
    }
    assert by_learner["catboost"].parameters == {"learning_rate": 0.08, "depth": 6, "l2_leaf_reg": 5.0}
    assert by_learner["catboost"].rounds == 300


def test_what_cannot_be_used_is_told_with_its_reason() -> None:
    """All eleven of the sample are accounted for."""
    found = hunter()
    reasons = {reason.partition(":")[0]: len(names) for reason, names in found.refused.items()}
    assert reasons == {
        "its description is not JSON": 1,
        "it stands on the leaderboard only": 1,
        "its algorithm is 'RandomForestClassifier', and only those of LightGBM, XGBoost and CatBoost are read": 1,
        "it is a LGBMRegressor, and this project's task is binary": 1,
        "its score is no finite number": 1,
    }
    assert len(found.trials) + sum(reasons.values()) == 11


def test_scores_of_classes_are_told_and_never_compared_with_others() -> None:
    """AUC of predicted classes is another thing than AUC of probabilities: its cross-experiment key differs too."""
    found = hunter()
    assert any("of predicted classes" in note and "(1 of 6 trials)" in note for note in found.notes)
    assert found.trials[-1].environment not in {trial.environment for trial in found.trials[:-1]}


def test_class_weights_and_early_stopping() -> None:
    """Weighed classes are another environment; where training stopped early the rounds are not known."""
    found = {trial.number: trial for trial in hunter().trials}
    assert found[2].conditions is not None
    assert found[2].conditions.unbalanced
    assert found[2].rounds == 0
    assert found[2].environment != found[1].environment


def test_the_metric_is_the_asked_one_or_the_projects_or_the_first() -> None:
    """F1 is among the sample's; log loss, which the project prefers, is not."""
    assert {trial.metric for trial in hunter().trials} == {"auc"}
    assert {trial.metric for trial in hunter(metric="f1").trials} == {"f1"}
    refused = hunter(metric="accuracy").refused
    assert "it was measured by roc_auc_score, f1_score: no accuracy among them" in refused
    assert hunter(metric="f1").experiment != hunter().experiment


def test_a_direction_that_its_name_denies_is_refused() -> None:
    """Who minimised what is called AUC has measured something else."""
    files = {name: data.replace(b'"direction": "max"', b'"direction": "min"') for name, data in changed().items()}
    assert any("its roc_auc_score was to be as min as can be" in reason for reason in hunter(files).refused)


def test_another_target_is_told() -> None:
    """It may be a column that was renamed: a person decides."""
    other = Schema(SCHEMA.features, "malignant", "binary", (0, 1))
    assert any(
        "made for the target 'diagnosis'; this project's is 'malignant'" in note for note in hunter(schema=other).notes
    )


def test_the_same_files_are_the_same_experiment() -> None:
    """The time does not matter; any byte does."""
    files = assets()
    again = read("hh", files, Reading(preferred="log_loss"), SCHEMA, 2000)
    assert again.experiment == hunter().experiment
    files[LEADERBOARD] += b"\n"
    assert hunter(files).experiment != again.experiment


def test_a_search_tries_the_imported_points_again() -> None:
    """``recall`` gives the best of them, in LightGBM's own space; the best of all first."""
    space = LightGBM().space("binary")
    found = recall(hunter().trials, "lightgbm", space, "auc", "binary")
    points = [point for point, _ in found.retry]
    assert len(points) == 4
    assert all(space.contains(point) for point in points)
    [best] = [point for point in points if point["num_leaves"] == 24]
    assert (best["learning_rate"], best["min_data_in_leaf"], best["lambda_l2"]) == (0.12, 12, 2.5)
    assert best in points[:2]
    assert best in [point for point, _ in found.told]
    assert all(math.isfinite(loss) for _, loss in found.retry)


def test_a_search_by_another_metric_tries_them_too() -> None:
    """What their losses were says nothing then."""
    space = LightGBM().space("binary")
    found = recall(hunter().trials, "lightgbm", space, "log_loss", "binary")
    assert found.retry
    assert all(math.isnan(loss) for _, loss in found.retry)
    assert found.told == []


def test_without_a_bagging_frequency_lightgbm_takes_all_rows() -> None:
    """So the fraction that was given counts for nothing, as in the program that tidemill comes from."""
    [trial] = hunter(changed(subsample=0.5, subsample_freq=0)).trials
    assert (trial.parameters["bagging_fraction"], trial.parameters["bagging_freq"]) == (1.0, 1)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"num_leaves": {"__tuple__": [1, 2]}}, "its num_leaves is \"{'__tuple__': [1, 2]}\", not a whole number"),
        ({"num_leaves": 31.5}, "its num_leaves is '31.5', not a whole number"),
        ({"learning_rate": True}, "its learning_rate is 'True', not a number"),
        ({"boosting_type": 7}, "its boosting_type is '7', not a text"),
        ({"learning_rate": "1e999"}, "its learning_rate is '1e999', not a number"),
    ],
)
def test_a_value_that_cannot_be(parameters: dict[str, Any], reason: str) -> None:
    """Its trial is refused, with the parameter's own name."""
    found = hunter(changed(**parameters))
    assert found.trials == []
    assert list(found.refused) == [reason]


def test_parameters_without_a_meaning_are_counted() -> None:
    """They are left out, and named."""
    found = hunter(changed(kernel="rbf"))
    assert found.notes == ["parameters that mean nothing to their learner here were left out: kernel (1)"]


@pytest.mark.parametrize(
    "told",
    [
        b"[]",
        b"{}",
        b"null",
        b'{"final_evaluations": {"oof": [1]}, "algorithm_name": "LGBMClassifier"}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_description_that_is_none_is_refused(told: bytes) -> None:
    """Whatever it holds, the others are read."""
    found = hunter({**changed(), f"{DESCRIPTIONS}x.json": told})
    assert len(found.trials) == 1
    assert [name for names in found.refused.values() for name in names] == ["x"]


@pytest.mark.parametrize(
    ("name", "task", "ours"),
    [
        ("roc_auc_score", "binary", ("auc", 1)),
        ("log_loss", "binary", ("log_loss", 1)),
        ("log_loss", "multiclass", ("multi_log_loss", 1)),
        ("neg_log_loss", "binary", ("log_loss", -1)),
        ("f1_score", "binary", ("f1", 1)),
        ("f1_score", "multiclass", None),
        ("neg_root_mean_squared_error", "regression", ("rmse", -1)),
        ("RMSE", "regression", ("rmse", 1)),
        ("roc_auc_score", "regression", None),
        ("my_score", "binary", None),
    ],
)
def test_metrics_by_the_names_of_others(name: str, task: Any, ours: tuple[str, int] | None) -> None:
    """With the sign between theirs and ours; what does not fit the task is none."""
    assert our_metric(name, task) == ours


def test_a_texts_number_is_a_number() -> None:
    """NumPy's integers come out of ``json.dump(default=str)`` as texts."""
    found = our_parameters("lightgbm", {"num_leaves": "31", "lambda": "0.5", "is_unbalance": "True", "n_estimators": 80.0})
    assert found.parameters == {"num_leaves": 31, "lambda_l2": 0.5, "bagging_fraction": 1.0, "bagging_freq": 1}
    assert (found.rounds, found.unbalanced, found.strange) == (80, True, ())
    with pytest.raises(Misfit):
        our_parameters("lightgbm", {"num_leaves": "many"})


def test_hyperopts_trials_become_trials() -> None:
    """``quniform`` draws 31.0 for 31; parameters that were not drawn are absent."""
    found = hyperopt([drawn(0.4, num_leaves=31.0, reg_alpha=0.5, lr=None), drawn(0.3, num_leaves=20.0)])
    assert [(trial.number, trial.score, trial.parameters["num_leaves"]) for trial in found.trials] == [
        (0, 0.4, 31),
        (1, 0.3, 20),
    ]
    assert found.trials[0].parameters["lambda_l1"] == 0.5
    assert found.notes == ["log_loss is the loss (2 of 2 trials)"]
    assert {trial.proposer for trial in found.trials} == {"hyperopt"}
    assert {trial.environment for trial in found.trials} != {hyperopt([drawn(0.4, num_leaves=9.0)]).trials[0].environment}


@pytest.mark.parametrize(
    ("losses", "scores", "how"), [([-0.9, -0.7], [0.9, 0.7], "-loss"), ([0.1, 0.3], [0.9, 0.7], "1 - loss")]
)
def test_a_loss_of_a_metric_to_maximise(losses: list[float], scores: list[float], how: str) -> None:
    """It is the negative where any is below zero, else what is missing to 1; how it was read is told."""
    found = hyperopt([drawn(loss, num_leaves=31.0) for loss in losses], "auc")
    assert [trial.score for trial in found.trials] == pytest.approx(scores)
    assert found.notes == [f"auc is {how} (2 of 2 trials)"]


def test_a_score_that_the_objective_returned_by_name_counts() -> None:
    """Before any reading of the loss."""
    told = drawn(0.25, num_leaves=31.0)
    told["result"]["roc_auc"] = "0.93"
    assert [trial.score for trial in hyperopt([told], "auc").trials] == [0.93]


def test_a_choice_is_a_number_and_never_taken_for_a_value() -> None:
    """It needs its values, or a point that ``space_eval`` has made."""
    told = [drawn(0.4, num_leaves="1", learning_rate=0.1), drawn(0.3, num_leaves=7, learning_rate=0.1)]
    assert all("its num_leaves may be the number of a choice" in reason for reason in hyperopt(told).refused)
    found = hyperopt(told, num_leaves=[15, 31])
    assert [trial.parameters["num_leaves"] for trial in found.trials] == [31]
    assert found.refused == {"its num_leaves is choice 7 of 2": ["trial 1"]}
    assert [trial.parameters["num_leaves"] for trial in hyperopt(told[1:], num_leaves=None).trials] == [7]
    evaluated = told[0] | {"point": {"model": "lgbm", "params": {"num_leaves": 63, "eta": 0.2}}}
    [trial] = hyperopt([evaluated]).trials
    assert (trial.parameters["num_leaves"], trial.parameters["learning_rate"]) == (63, 0.2)


def test_hyperopts_failures_are_told() -> None:
    """By status and by score."""
    told = [drawn(0.4, "fail", num_leaves=31.0), drawn(math.nan, num_leaves=31.0), drawn("?", num_leaves=31.0), drawn(0.4)]
    found = hyperopt(told)
    assert found.refused == {"its status is 'fail'": ["trial 0"], "its score is no finite number": ["trial 1", "trial 2"]}
    assert len(found.trials) == 1


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (pickle.dumps([drawn(0.1)]), "is a pickle, which can run anything when it is read"),
        (b"{", "trials.json is not JSON"),
        (b'{"a": 1}', "is not a list of Hyperopt's trials"),
        (b"[1]", "is not a list of Hyperopt's trials"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_a_file_that_is_none_of_hyperopts_is_one_line(told: bytes, text: str) -> None:
    """It says what is wrong, and where the help is."""
    with pytest.raises(ConfigError, match=text) as raised:
        hyperopt(told)
    assert "\n" not in str(raised.value)


def test_hyperopt_needs_a_learner_and_a_metric() -> None:
    """Its files name neither, and a guess could spoil every later search."""
    with pytest.raises(ConfigError, match="--learner, one of lightgbm, xgboost, catboost"):
        hyperopt([], learner="")
    with pytest.raises(ConfigError, match="--learner 'svm' is not one of lightgbm, xgboost, catboost"):
        hyperopt([], learner="svm")
    with pytest.raises(ConfigError, match="--metric, auc or log_loss"):
        hyperopt([], metric="")
    with pytest.raises(ConfigError, match="does not fit a binary target"):
        hyperopt([], metric="rmse")


def test_a_real_search_of_hyperopt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trials, written as ``docs/coming_from.md`` says, are read with their choices and become points to try again."""
    library = pytest.importorskip("hyperopt")
    import numpy as np

    hp = library.hp
    space = {
        "num_leaves": hp.quniform("num_leaves", 8, 64, 1),
        "learning_rate": hp.loguniform("learning_rate", np.log(0.07), np.log(0.2)),
        "min_child_samples": hp.choice("min_child_samples", [10, 20, 40]),
        "max_bin": hp.randint("max_bin", 100, 200),
    }
    trials = library.Trials()

    def objective(point: dict[str, Any]) -> dict[str, Any]:
        return {"loss": np.float32(point["learning_rate"]), "status": "ok"}

    seeded = np.random.default_rng(0)
    library.fmin(objective, space, library.rand.suggest, 6, trials=trials, rstate=seeded, show_progressbar=False)
    plain = json.dumps(trials.trials, default=str).encode()
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", COMING_FROM.read_text(), re.DOTALL)
    exec(code, {"trials": trials, "space": space})
    full = (tmp_path / "trials.json").read_bytes()
    assert all("may be the number of a choice" in reason for reason in hyperopt(plain).refused)
    by_choices = hyperopt(plain, min_child_samples=[10, 20, 40], max_bin=None)
    by_points = hyperopt(full)
    assert len(by_points.trials) == 6
    assert [parameters(trial) for trial in by_choices.trials] == [parameters(trial) for trial in by_points.trials]
    found = recall(by_points.trials, "lightgbm", LightGBM().space("binary"), "log_loss", "binary")
    best = min(by_points.trials, key=lambda trial: trial.score or 0.0)
    assert found.retry[0][0]["num_leaves"] == best.parameters["num_leaves"]


def parameters(trial: Trial) -> dict[str, Any]:
    return trial.parameters
