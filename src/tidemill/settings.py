"""The settings: every one with its default and its reason, read once at start, checked once, passed in."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from tidemill.messages import Mode

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
HOURS_MAX = 876_000
"""A hundred years: as good as for ever, and no clock or database minds it."""
BATCH_MAX = 1_000_000
"""Records that a role holds in memory at once."""
WINDOW_MAX = 100_000
"""Requests that the monitor decodes at once: some 100 MB."""
Seconds = Annotated[float, Meta(gt=0)]
KafkaValue = str | int | float | bool

KAFKA_OWNED = {
    "bootstrap.servers": "use stream.url",
    "metadata.broker.list": "use stream.url",
    "group.id": "each role is a group of its own",
    "group.instance.id": "use stream.node",
    "group.protocol": "only the classic one takes a restarted member back at once",
    "enable.auto.commit": "a position is committed together with its outputs",
    "auto.commit.enable": "a position is committed together with its outputs",
    "enable.auto.offset.store": "a position is committed together with its outputs",
    "auto.offset.reset": "a position that is lost must be reported, not replaced",
    "isolation.level": "what was not committed must never be read",
    "transactional.id": "use stream.delivery and stream.node",
    "enable.idempotence": "no retry may write a record twice",
    "enable.partition.eof": "reading up to the end rests on it",
    "partition.assignment.strategy": "who may commit depends on how partitions move",
    "partitioner": "the records of a key stay in one partition, whoever writes them",
    "queue.buffering.max.messages": "a batch's answers are handed over together, however many they are",
    "queue.buffering.max.kbytes": "a batch's answers are handed over together, however large they are",
}
"""Settings of librdkafka that a person cannot choose, and why, or what to use instead."""

KAFKA_PATHS = {
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.crl.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "https.ca.location",
    "sasl.kerberos.keytab",
    "sasl.oauthbearer.assertion.file",
    "sasl.oauthbearer.assertion.jwt.template.file",
    "sasl.oauthbearer.assertion.private.key.file",
}
"""Settings of librdkafka that hold the path of a file or folder."""

SECRETS = ("password", "passphrase", "secret", "token", "credential", "key.pem", "jaas", "oauthbearer.config")
"""A setting of librdkafka with one of these in its name is a secret."""

REFERENCES = ("file:", "env:")
"""How a value begins that stands in a file or in a variable."""


def is_hidden(name: str, value: KafkaValue) -> bool:
    """Whether a value of ``stream.kafka`` must never be shown: a secret that is not a reference."""
    return any(word in name for word in SECRETS) and not str(value).startswith(REFERENCES)


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
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1, description="of every random choice")] = 0


class Stream(Section, frozen=True):
    """The log that connects the roles."""

    url: Annotated[Text, Meta(description="sqlite:FOLDER, on a local disk, or kafka://HOST:PORT[,HOST:PORT...]")] = (
        "sqlite:log"
    )
    durability: Annotated[
        Literal["full", "normal"],
        Meta(description="sqlite: full survives a power cut; normal only a killed process, and is faster"),
    ] = "full"
    retention_hours: Annotated[
        float,
        Meta(gt=0, le=HOURS_MAX, description="of requests, predictions, outcomes and events that every role has read"),
    ] = 168.0
    partitions: Annotated[
        Count, Meta(description="kafka: of requests, predictions, outcomes and dead letters; the predictors share them")
    ] = 4
    replication: Annotated[int, Meta(ge=0, description="kafka: copies of each record; 0 takes the broker's default")] = 0
    delivery: Annotated[
        Literal["exactly_once", "at_least_once"],
        Meta(description="kafka: at_least_once answers sooner, and may answer twice after a crash"),
    ] = "exactly_once"
    node: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9._-]{0,100}\Z",
            description="kafka: this machine's name in the groups; empty takes the host's",
            extra={"valid": "up to 100 of the characters A-Z, a-z, 0-9, '.', '_' and '-'"},
        ),
    ] = ""
    kafka: Annotated[
        dict[str, KafkaValue],
        Meta(description='"NAME" = VALUE, for any setting of librdkafka; a secret as "file:PATH" or "env:VARIABLE"'),
    ] = {}

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Every field, without secrets."""
        kafka = {name: "***" if is_hidden(name, value) else value for name, value in self.kafka.items()}
        return [(name, kafka if name == "kafka" else getattr(self, name)) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        return f"Stream({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class Predictor(Section, frozen=True):
    """Answers requests."""

    batch_max: Annotated[Count, Meta(le=BATCH_MAX, description="requests a micro-batch takes at most")] = 1000
    request_bytes_max: Annotated[Count, Meta(description="a larger request becomes a dead letter")] = 262_144
    require_id: Annotated[
        bool, Meta(description="a request without a key or ce_id is a dead letter, not topic-partition-offset")
    ] = False


class Lake(Section, frozen=True):
    """The recorder's tables."""

    path: Annotated[Text, Meta(description="folder of the Delta tables")] = "lake"
    flush_rows: Annotated[Count, Meta(le=BATCH_MAX, description="write once so many records wait")] = 5000
    flush_seconds: Annotated[Seconds, Meta(description="or once the oldest waits so long")] = 1.0
    compact_every: Annotated[Count, Meta(description="commits between compactions of a table")] = 50


class Labels(Section, frozen=True):
    """Joins outcomes with requests."""

    wait_hours: Annotated[
        float, Meta(gt=0, le=HOURS_MAX, description="an outcome that comes later than this is only counted")
    ] = 720.0


class Retrain(Section, frozen=True):
    """When a new model is trained, and how commands queue."""

    every: Annotated[
        int, Meta(ge=0, description="labelled observations between two retrainings; 0: not by their number")
    ] = 1000
    hours: Annotated[
        float, Meta(ge=0, le=HOURS_MAX, description="or once in so many hours of the requests' times; 0: not by time")
    ] = 0.0
    drift: Annotated[
        Mode, Meta(description="on an alarm of what is asked or answered: off, suggest (an event, for a person) or auto")
    ] = "suggest"
    drop: Annotated[Mode, Meta(description="on an alarm of the error or the calibration: off, suggest or auto")] = "suggest"
    cooldown_hours: Annotated[
        float, Meta(ge=0, le=HOURS_MAX, description="between two retrainings that an alarm asks for")
    ] = 24.0
    commands: Annotated[
        Literal["merge", "queue"],
        Meta(description="merge: those that wait become one retraining on the newest data; queue: one each, in order"),
    ] = "merge"
    window_rows: Annotated[int, Meta(ge=0, description="train on the newest rows only; 0 takes all")] = 0
    drop_drifting: Annotated[
        float,
        Meta(ge=0, le=1, description="leave features out that drifted so far since the champion (MLBox takes 0.6); 0: none"),
    ] = 0.0


class Drift(Section, frozen=True):
    """Compares what is served with what the champion learnt from, window by window."""

    window_rows: Annotated[
        int, Meta(ge=0, le=WINDOW_MAX, description="requests between two looks, and in a window at least; 0: no looks")
    ] = 1000
    window_blocks: Annotated[
        Count, Meta(le=1000, description="blocks in a window where there is that much; a third of it is the least")
    ] = 7
    block_hours: Annotated[
        float,
        Meta(gt=0, le=HOURS_MAX, description="of the data's time are one block: its rows are alike, not independent"),
    ] = 48.0
    block: Annotated[str, Meta(description="or a feature: its rows of one value are a block (a customer, a machine)")] = ""
    false_alarms: Annotated[
        float, Meta(gt=0, le=1000, description="a month (30 days), at most, on average, where nothing has changed")
    ] = 1.0
    effect_min: Annotated[
        float, Meta(ge=0, le=1, description="a smaller shift is no alarm; 0.2 is about a PSI of 0.2, or Cohen's d of 0.2")
    ] = 0.2
    cooldown_hours: Annotated[float, Meta(ge=0, le=HOURS_MAX, description="between two alarms")] = 24.0
    known_hours: Annotated[
        float, Meta(gt=0, le=HOURS_MAX, description="an alarm that nobody acknowledges is then taken as the new normal")
    ] = 336.0


class Tune(Section, frozen=True):
    """The search for hyper-parameters."""

    learner: Annotated[
        Text, Meta(description="lightgbm, or several with commas between: they are compared in one search")
    ] = "lightgbm"
    proposer: Annotated[
        Text, Meta(description="what says which parameters to try next: optuna, hyperopt, skopt, skopt_forest, random")
    ] = "optuna"
    memory: Annotated[bool, Meta(description="begin with the best points of earlier experiments")] = True
    prune: Annotated[bool, Meta(description="give a trial up in its first fold where that could not become the best")] = True
    metric: Annotated[
        str, Meta(description="log_loss, auc, f1, accuracy, multi_log_loss, rmse, mae ...; empty: by task")
    ] = ""
    trials: Annotated[Count, Meta(description="parameter sets an experiment tries")] = 20
    seconds: Annotated[
        float, Meta(ge=0, description="the search ends after so long, once a trial is good; 0 has no limit")
    ] = 0.0
    stale: Annotated[int, Meta(ge=0, description="or after so many trials without a better one; 0 tries all")] = 0
    folds: Annotated[int, Meta(ge=2, le=20, description="of the cross-validation")] = 3
    split: Annotated[
        Literal["auto", "stratified", "time"],
        Meta(description="auto: by time where the data has a time column, else stratified (a regression: shuffled)"),
    ] = "auto"
    rounds_max: Annotated[Count, Meta(description="boosting rounds at most")] = 2000
    patience: Annotated[Count, Meta(description="rounds without a better mean before all folds stop")] = 30
    executor: Annotated[
        Literal["processes", "ray"], Meta(description="processes: on this machine; ray: on a Ray cluster")
    ] = "processes"
    workers: Annotated[Count, Meta(description="trials at the same time, one process and thread each")] = 1
    unbalanced: Annotated[bool, Meta(description="weigh the classes so that each counts the same")] = False
    on_trial: Annotated[str, Meta(description="MODULE:FUNCTION of this folder, called with each finished trial")] = ""
    on_experiment: Annotated[str, Meta(description="MODULE:FUNCTION, called with each experiment's journal entry")] = ""

    @property
    def learners(self) -> list[str]:
        """The names in ``learner``, each once."""
        return list(dict.fromkeys(name.strip() for name in self.learner.split(",")))


class Trainer(Section, frozen=True):
    """What training may take of this machine."""

    cores: Annotated[
        int, Meta(ge=0, description="processors; 0: all but one, which is left to the predictor where there are two")
    ] = 0
    memory_gb: Annotated[
        float,
        Meta(ge=0, le=1_000_000, description="of all workers together; a trial that needs more fails; 0 has no limit"),
    ] = 0.0


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
    children: Annotated[
        int, Meta(ge=0, description="trials with a run of their own: the first, and in the end the best; a table has all")
    ] = 50
    report: Annotated[bool, Meta(description="the page of tidemill report beside each experiment, 5 MB")] = True


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of ``tidemill.toml``."""

    project: Project
    stream: Stream = Stream()
    predictor: Predictor = Predictor()
    lake: Lake = Lake()
    labels: Labels = Labels()
    retrain: Retrain = Retrain()
    drift: Drift = Drift()
    tune: Tune = Tune()
    trainer: Trainer = Trainer()
    verdict: Verdict = Verdict()
    bundles: Bundles = Bundles()
    tracking: Tracking = Tracking()
