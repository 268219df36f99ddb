"""The settings: every one with its default and its reason, read once at start, checked once, passed in."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of ``tidemill.toml``; the docstring and each field's ``Meta(description)`` become its comments."""


class Project(Section, frozen=True):
    """What the project is about."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z][a-z0-9-]{0,40}$",
            description="prefix of every topic",
            extra={"valid": "1 to 41 of the characters a-z, 0-9 and -, a letter first"},
        ),
    ]
    data: Annotated[Text, Meta(description="the original data: a CSV or Parquet file")]
    schema: Annotated[Text, Meta(description="features, types and categories; edit it by hand")] = "schema.json"
    seed: Annotated[int, Meta(ge=0, description="of every random choice")] = 0


class Stream(Section, frozen=True):
    """The log that connects the roles."""

    url: Annotated[Text, Meta(description="sqlite:FOLDER, on a local disk")] = "sqlite:log"
    durability: Annotated[
        Literal["full", "normal"],
        Meta(description="full survives a power cut; normal only a killed process, and is faster"),
    ] = "full"
    retention_hours: Annotated[
        float, Meta(gt=0, description="of requests, predictions, outcomes and events that every role has read")
    ] = 168.0


class Predictor(Section, frozen=True):
    """Answers requests."""

    batch_max: Annotated[Count, Meta(description="requests a micro-batch takes at most")] = 1000
    request_bytes_max: Annotated[Count, Meta(description="a larger request becomes a dead letter")] = 262_144
    require_id: Annotated[bool, Meta(description="a request without a key is a dead letter, not topic-partition-offset")] = (
        False
    )


class Lake(Section, frozen=True):
    """The recorder's tables."""

    path: Annotated[Text, Meta(description="folder of the Delta tables")] = "lake"
    flush_rows: Annotated[Count, Meta(description="write once so many records wait")] = 5000
    flush_seconds: Annotated[Seconds, Meta(description="or once the oldest waits so long")] = 1.0
    compact_every: Annotated[Count, Meta(description="commits between compactions of a table")] = 50


class Labels(Section, frozen=True):
    """Joins outcomes with requests."""

    wait_hours: Annotated[float, Meta(gt=0, description="an outcome that comes later than this is only counted")] = 720.0


class Retrain(Section, frozen=True):
    """When a new model is trained, and how commands queue."""

    every: Annotated[Count, Meta(description="labelled observations between two retrainings")] = 1000
    commands: Annotated[
        Literal["merge", "queue"],
        Meta(description="merge: those that wait become one retraining on the newest data; queue: one each, in order"),
    ] = "merge"
    window_rows: Annotated[int, Meta(ge=0, description="train on the newest rows only; 0 takes all")] = 0


class Tune(Section, frozen=True):
    """The search for hyper-parameters."""

    learner: Annotated[Literal["lightgbm"], Meta(description="the kind of model")] = "lightgbm"
    proposer: Annotated[Literal["optuna"], Meta(description="what says which parameters to try next")] = "optuna"
    metric: Annotated[
        str, Meta(description="log_loss, auc, f1, accuracy, multi_log_loss, rmse, mae ...; empty: by task")
    ] = ""
    trials: Annotated[Count, Meta(description="parameter sets an experiment tries")] = 20
    seconds: Annotated[float, Meta(ge=0, description="stop trying after so long; 0 has no limit")] = 0.0
    folds: Annotated[int, Meta(ge=2, le=20, description="of the cross-validation")] = 3
    split: Annotated[
        Literal["auto", "stratified", "time"],
        Meta(description="auto: by time where the data has a time column, else stratified (a regression: shuffled)"),
    ] = "auto"
    rounds_max: Annotated[Count, Meta(description="boosting rounds at most")] = 2000
    patience: Annotated[Count, Meta(description="rounds without a better mean before all folds stop")] = 30
    workers: Annotated[Count, Meta(description="trials at the same time, one process and thread each")] = 1
    unbalanced: Annotated[bool, Meta(description="weigh the classes so that each counts the same")] = False


class Verdict(Section, frozen=True):
    """Whether a new model replaces the one that serves."""

    policy: Annotated[
        Literal["better", "always", "manual"],
        Meta(description="better: only if it beats the champion on newer observations; manual: tidemill promote"),
    ] = "better"
    holdout: Annotated[
        float, Meta(gt=0, le=1, description="share of the observations since the champion's that both are judged on")
    ] = 0.25
    holdout_rows_min: Annotated[Count, Meta(description="with fewer the champion stays")] = 50
    confidence: Annotated[float, Meta(gt=0.5, lt=1, description="that it is better, one-sided")] = 0.9


class Bundles(Section, frozen=True):
    """Where model versions live."""

    path: Annotated[Text, Meta(description="folder of the bundles")] = "bundles"
    keep: Annotated[Count, Meta(description="past versions that stay; one that serves always does")] = 10


class Tracking(Section, frozen=True):
    """The copy for people."""

    tracker: Annotated[Literal["mlflow", "none"], Meta(description="mlflow, or none")] = "mlflow"
    uri: Annotated[Text, Meta(description="MLflow's tracking store")] = "sqlite:///mlflow.db"
    experiment: Annotated[
        Literal["each", "one"], Meta(description="an MLflow experiment each retraining, or one for all")
    ] = "each"


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of ``tidemill.toml``."""

    project: Project
    stream: Stream = Stream()
    predictor: Predictor = Predictor()
    lake: Lake = Lake()
    labels: Labels = Labels()
    retrain: Retrain = Retrain()
    tune: Tune = Tune()
    verdict: Verdict = Verdict()
    bundles: Bundles = Bundles()
    tracking: Tracking = Tracking()
