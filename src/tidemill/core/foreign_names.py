"""What other tools call our metrics, and what scikit-learn's wrappers call a learner's own parameters."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from tidemill.core.metrics import metric
from tidemill.core.schema import Task
from tidemill.errors import ConfigError

Kind = type[int] | type[float] | type[str] | type[bool]


class Misfit(Exception):
    """A value that its parameter cannot have; the text says which."""


class Names(NamedTuple):
    """A learner's parameters: its own name and the kind by every name that is in use; what the number of rounds is called;
    values that are the library's own anyway, so that they need not be told, of parameters that are rarely searched.
    """

    own: dict[str, tuple[str, Kind]]
    rounds: tuple[str, ...]
    defaults: dict[str, tuple[Any, ...]]


class Translated(NamedTuple):
    """``parameters`` by the learner's own names; ``rounds`` that were asked for (0: not told); whether the classes were
    weighed; the names that have no meaning for the learner.
    """

    parameters: dict[str, Any]
    rounds: int
    unbalanced: bool
    strange: tuple[str, ...]


def _own(kinds: Mapping[Kind, str]) -> dict[str, tuple[str, Kind]]:
    """From words ``own=alias=alias`` by kind."""
    groups = [(kind, word.split("=")) for kind, words in kinds.items() for word in words.split()]
    return {name: (names[0], kind) for kind, names in groups for name in names}


LEARNERS: dict[str, Names] = {
    "lightgbm": Names(
        _own(
            {
                float: """learning_rate=shrinkage_rate=eta lambda_l1=reg_alpha lambda_l2=reg_lambda=lambda
                    feature_fraction=colsample_bytree=sub_feature bagging_fraction=subsample=sub_row=bagging
                    min_gain_to_split=min_split_gain min_sum_hessian_in_leaf=min_child_weight=min_sum_hessian
                    feature_fraction_bynode=colsample_bynode cat_smooth cat_l2 path_smooth scale_pos_weight""",
                int: """num_leaves=num_leaf=max_leaves=max_leaf min_data_in_leaf=min_child_samples=min_data
                    bagging_freq=subsample_freq max_depth max_bin bin_construct_sample_cnt=subsample_for_bin
                    max_cat_threshold max_cat_to_onehot min_data_per_group""",
                str: "boosting=boosting_type=boost objective=application",
                bool: "is_unbalance=unbalance extra_trees",
            }
        ),
        ("n_estimators", "num_iterations", "num_iteration", "num_boost_round", "num_round", "num_trees", "n_iter"),
        {
            "lambda_l1": (0.0,),
            "lambda_l2": (0.0,),
            "min_gain_to_split": (0.0,),
            "min_sum_hessian_in_leaf": (1e-3,),
            "feature_fraction_bynode": (1.0,),
            "path_smooth": (0.0,),
            "scale_pos_weight": (1.0,),
            "max_depth": (-1, 0),
            "max_bin": (255,),
            "bin_construct_sample_cnt": (200_000,),
            "max_cat_threshold": (32,),
            "max_cat_to_onehot": (4,),
            "min_data_per_group": (100,),
            "boosting": ("gbdt",),
            "objective": ("binary", "multiclass", "softmax", "regression", "l2", "mse"),
            "extra_trees": (False,),
        },
    ),
    "xgboost": Names(
        _own(
            {
                float: """learning_rate=eta gamma=min_split_loss min_child_weight subsample colsample_bytree
                    colsample_bylevel colsample_bynode alpha=reg_alpha lambda=reg_lambda max_delta_step scale_pos_weight
                    base_score""",
                int: "max_depth max_leaves max_bin max_cat_to_onehot max_cat_threshold num_parallel_tree",
                str: "booster tree_method grow_policy sampling_method objective",
            }
        ),
        ("n_estimators", "num_boost_round", "num_round"),
        {
            "alpha": (0.0,),
            "gamma": (0.0,),
            "colsample_bylevel": (1.0,),
            "colsample_bynode": (1.0,),
            "max_delta_step": (0.0,),
            "scale_pos_weight": (1.0,),
            "base_score": (0.5,),
            "max_leaves": (0,),
            "max_bin": (256,),
            "num_parallel_tree": (1,),
            "booster": ("gbtree",),
            "tree_method": ("auto", "hist"),
            "grow_policy": ("depthwise",),
            "objective": ("binary:logistic", "multi:softprob", "reg:squarederror", "reg:linear"),
        },
    ),
    "catboost": Names(
        _own(
            {
                float: """learning_rate=eta l2_leaf_reg=reg_lambda random_strength bagging_temperature subsample
                    rsm=colsample_bylevel scale_pos_weight""",
                int: """depth=max_depth border_count=max_bin one_hot_max_size min_data_in_leaf=min_child_samples
                    max_leaves=num_leaves max_ctr_complexity leaf_estimation_iterations""",
                str: "grow_policy bootstrap_type boosting_type leaf_estimation_method loss_function=objective",
            }
        ),
        ("iterations", "n_estimators", "num_boost_round", "num_trees"),
        {
            "scale_pos_weight": (1.0,),
            "grow_policy": ("SymmetricTree",),
            "loss_function": ("Logloss", "MultiClass", "RMSE"),
        },
    ),
}
IDLE = frozenset(
    (
        *("n_jobs", "nthread", "num_threads", "thread_count", "random_state", "random_seed", "seed", "silent", "verbose"),
        *("verbosity", "logging_level", "importance_type", "eval_metric", "metric", "device", "task_type", "missing"),
        *("allow_writing_files", "save_snapshot", "train_dir", "use_label_encoder", "num_class", "classes_count"),
        *("force_col_wise", "force_row_wise", "deterministic", "enable_categorical", "early_stopping_rounds"),
        *("od_type", "od_wait"),
    )
)
"""Parameters that make no difference to what a trial says of the others."""

METRICS: dict[str, tuple[str, ...]] = {
    "auc": ("roc_auc_score", "roc_auc"),
    "average_precision": ("average_precision_score",),
    "log_loss": ("logloss", "binary_logloss"),
    "multi_log_loss": ("multi_logloss", "mlogloss"),
    "brier": ("brier_score_loss", "brier_score"),
    "f1": ("f1_score",),
    "macro_f1": ("f1_macro",),
    "accuracy": ("accuracy_score",),
    "rmse": ("root_mean_squared_error",),
    "mse": ("mean_squared_error",),
    "mae": ("mean_absolute_error",),
    "r2": ("r2_score",),
}
"""By our name, what scikit-learn and the learners call it."""


def our_metric(name: str, task: Task) -> tuple[str, int] | None:
    """Our name of a metric, and -1 where theirs is its negative (``neg_log_loss``), else 1; None where we have none."""
    bare = name.lower().removeprefix("neg_")
    ours = next((ours for ours, theirs in METRICS.items() if bare in (ours, *theirs)), "none")
    if (ours, task) == ("log_loss", "multiclass"):
        ours = "multi_log_loss"
    try:
        return metric(ours, task).name, 1 if bare == name.lower() else -1
    except ConfigError:
        return None


def our_parameters(learner: str, given: Mapping[str, Any]) -> Translated:
    """What a model was made with, in the learner's own names; raises ``Misfit``. None is nothing given."""
    names = LEARNERS[learner]
    own: dict[str, Any] = {}
    rounds, unbalanced, strange = 0, False, []
    for name, value in given.items():
        if value is None or name in IDLE:
            continue
        if name in names.own:
            ours, kind = names.own[name]
            own[ours] = _of_kind(kind, value, name)
        elif name in names.rounds:
            rounds = _of_kind(int, value, name)
        elif str(value).lower() == "balanced" and name in ("class_weight", "auto_class_weights"):
            unbalanced = True
        else:
            strange.append(name)
    if learner == "lightgbm":
        unbalanced = bool(own.pop("is_unbalance", False)) or unbalanced
        if not own.get("bagging_freq"):  # then LightGBM trains on all rows, whatever the fraction
            own |= {"bagging_freq": 1, "bagging_fraction": 1.0}
    told = {name: value for name, value in own.items() if value not in names.defaults.get(name, ())}
    return Translated(told, rounds, unbalanced, tuple(strange))


def _of_kind(kind: Kind, value: Any, name: str) -> Any:
    """The value in its kind: 31.0 is a whole number, and a number may stand in a text."""
    if kind is str and isinstance(value, str):
        return value
    if kind is bool and str(value) in ("True", "False"):
        return str(value) == "True"
    try:
        number = float(value) if kind in (int, float) and not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise Misfit(f"its {name} is {str(value)[:40]!r}, not {_KINDS[kind]}")
    return kind(number)


_KINDS: dict[Kind, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
