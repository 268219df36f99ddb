"""Settings to chosen backends: the only file that names them, importing each on demand."""

import gc
import math
import os
import threading
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.clock import Clock, SystemClock
from tidemill.configuration import Configuration, load
from tidemill.core.metrics import Metric, metric
from tidemill.core.space import Space
from tidemill.errors import ConfigError
from tidemill.executors.base import Executor, MakeExecutor, Work
from tidemill.learners.base import Fold, Learner, Samples
from tidemill.log.base import Log, Topic
from tidemill.messages import JournalEntry, ModelVersion, Topics, Trial
from tidemill.plugins import Plugins, callback
from tidemill.tuning.base import Proposer

if TYPE_CHECKING:
    from tidemill.app.client import Client
    from tidemill.bundles import BundleStore
    from tidemill.lake import Lake
    from tidemill.roles.monitor import Monitor
    from tidemill.roles.predictor import Predictor
    from tidemill.roles.recorder import Recorder
    from tidemill.roles.trainer import Trainer
    from tidemill.roles.watch import Watcher
    from tidemill.tracking.base import Tracker

ROLES = ("predictor", "recorder", "monitor", "trainer", "tracker")
SHARED = ("requests", "predictions", "outcomes", "dead_letters")
"""Topics that have as many partitions as the settings say; of the others the order as a whole counts."""
KEPT = ("retrain", "models", "trials", "journal")
"""Topics without retention."""
LETTER_BYTES_MAX = 3_000_000
"""A dead letter holds a record as large as a broker takes by default, and says what is wrong with it."""


class Wiring:
    """A project's parts, made when they are first asked for. ``close`` releases the log."""

    def __init__(self, directory: Path) -> None:
        self.configuration: Configuration = load(directory, os.environ)
        self.settings = self.configuration.settings
        self.topics = Topics.of(self.settings.project.name)
        self.clock: Clock = SystemClock()
        self.role_clock = self.clock
        for name in self.settings.tune.learners:
            LEARNERS.check(name, self._place("learner"))
        PROPOSERS.check(self.settings.tune.proposer, self._place("proposer"))

    @property
    def served_log(self) -> Log:
        """The log as predictor and monitor have it."""
        return self.log

    def _place(self, key: str) -> str:
        return f"tune.{key} ({self.configuration.origins[f'tune.{key}']})"

    @cached_property
    def log(self) -> Log:
        """The log, with the project's topics in it."""
        log = self._kafka_log() if self.configuration.log_kind == "kafka" else self._sqlite_log()
        try:
            log.create(self._topics())
        except BaseException:
            log.close()
            raise
        return log

    def _sqlite_log(self) -> Log:
        from tidemill.log.sqlite import SqliteLog

        return SqliteLog(self.configuration.log_folder, self.settings.stream.durability)

    def _kafka_log(self) -> Log:
        from tidemill.log.kafka import KafkaLog

        stream = self.settings.stream
        return KafkaLog(
            self.configuration.brokers,
            self.settings.project.name,
            self.configuration.root / "run" / "slots",
            settings=self.configuration.kafka_settings(),
            delivery=stream.delivery,
            node=stream.node,
            replication=stream.replication,
        )

    @cached_property
    def lake(self) -> "Lake":
        """The recorder's tables."""
        from tidemill.lake import Lake

        return Lake(self.configuration.lake, self.settings.lake.compact_every)

    @cached_property
    def store(self) -> "BundleStore":
        """The bundles."""
        from tidemill.bundles import BundleStore

        return BundleStore(self.configuration.bundles, learner)

    def announced(self) -> list[ModelVersion]:
        """Every version that ever stood in a slot, the oldest first."""
        from tidemill.roles.promotion import announced

        return list(announced(self.log, self.topics).values())

    def close(self) -> None:
        """Release the log, if it was opened."""
        if "log" in self.__dict__:
            self.log.close()

    def run_role(self, role: str, stop: threading.Event) -> None:
        """Run a role in this process until ``stop`` is set."""
        roles: dict[str, Callable[[threading.Event], None]] = {
            "predictor": self._predictor,
            "recorder": lambda stop: self.recorder().run(stop),
            "monitor": lambda stop: self.monitor().run(stop),
            "trainer": lambda stop: self.trainer().run(stop),
            "tracker": self._tracker,
        }
        roles[role](stop)

    def trainer(
        self,
        on_trial: Callable[[Trial], None] = lambda trial: None,
        on_decision: Callable[[JournalEntry], None] = lambda entry: None,
    ) -> "Trainer":
        """The trainer, with what a person may want to be told."""
        from tidemill.original import load_original
        from tidemill.roles.experiment import Search
        from tidemill.roles.trainer import Trainer

        settings, schema = self.settings, self.configuration.schema
        tune = settings.tune
        search = Search(
            {name: LEARNERS.find(name) for name in tune.learners},
            PROPOSERS.find(tune.proposer),
            EXECUTORS[tune.executor],
            tune,
            settings.project.seed,
            self.clock,
            math.ceil(settings.trainer.memory_gb * 1e9),
        )
        root = self.configuration.root
        tell_trial = callback(root, tune.on_trial, "tune.on_trial")
        tell_experiment = callback(root, tune.on_experiment, "tune.on_experiment")

        def tried(trial: Trial) -> None:
            on_trial(trial)
            tell_trial(trial)

        def decided(entry: JournalEntry) -> None:
            on_decision(entry)
            tell_experiment(entry)

        return Trainer(
            self.log,
            self.topics,
            self.lake,
            self.store,
            settings,
            self.configuration.digest,
            schema,
            cache(lambda: load_original(self.configuration.data, schema)),
            search,
            self.clock,
            tried,
            decided,
        )

    def tracker(self) -> "Tracker | None":
        """The copy for people, or None where the project has none."""
        if self.settings.tracking.tracker == "none":
            return None
        from tidemill.tracking.mlflow import MlflowTracker

        tracking, name = self.settings.tracking, self.settings.project.name
        uri, bundles = self.configuration.tracking_uri, self.configuration.bundles
        return MlflowTracker(uri, name, tracking.experiment, bundles, tracking.children)

    def _predictor(self, stop: threading.Event) -> None:
        # A batch makes thousands of objects and lets go of them: to look for circles among all others every 700 objects
        # costs a tenth of the throughput, and now and then 20 ms. A version that goes leaves some (the types of its
        # rows): once a swap, among what is younger than the first model, it takes 2 ms, and 3 more after 2,000 categories.
        gc.set_threshold(50_000, 50, 100)
        first = True

        def look_for_circles() -> None:
            nonlocal first
            gc.collect()
            if first:
                gc.freeze()
            first = False

        self.predictor(look_for_circles).run(stop)

    def predictor(self, after_swap: Callable[[], object] = lambda: None) -> "Predictor":
        """The role, to be run."""
        from tidemill.roles.predictor import Predictor

        return Predictor(self.served_log, self.topics, self.store, self.settings.predictor, self.role_clock, after_swap)

    def recorder(self) -> "Recorder":
        """The role, to be run."""
        from tidemill.roles.recorder import Recorder

        schema, lake = self.configuration.schema, self.settings.lake
        return Recorder(self.log, self.topics, self.lake, schema, lake, self.role_clock)

    def monitor(self) -> "Monitor":
        """The role, to be run."""
        from tidemill.roles.monitor import Monitor

        settings, schema = self.settings, self.configuration.schema
        measure = metric(settings.tune.metric, schema.task)
        parts = self.served_log, self.topics, self.lake
        watcher = self.watcher(measure) if self.watches else None
        return Monitor(*parts, schema, settings.retrain, settings.labels, measure, self.role_clock, watcher)

    @property
    def watches(self) -> bool:
        """Whether the monitor holds what is served against what the champion learnt from."""
        return self.settings.drift.window_rows > 0

    def watcher(self, measure: Metric) -> "Watcher":
        """The monitor's part that does."""
        from tidemill.roles.watch import Watcher

        settings = self.settings
        parts = self.served_log, self.topics, self.lake, self.store
        wait = settings.labels.wait_hours
        return Watcher(*parts, settings.drift, settings.retrain, wait, measure, settings.project.seed, self.role_clock)

    def _tracker(self, stop: threading.Event) -> None:
        from tidemill.roles.tracker import TrackerRole

        tracker = self.tracker()
        if tracker is None:
            raise ConfigError("tracking.tracker is 'none' in tidemill.toml: this project has no tracker to run")
        page = self._page if self.settings.tracking.report else None
        TrackerRole(self.log, self.topics, tracker, self.clock, page).run(stop)

    def _page(self, trials: Sequence[Trial], entry: JournalEntry) -> str:
        from tidemill.report import page

        return page(self.store, trials, entry, self.configuration.schema)

    def _topics(self) -> list[Topic]:
        return [self._topic(field) for field in self.topics.__struct_fields__]

    def _topic(self, field: str) -> Topic:
        shared = field in SHARED and self.configuration.log_kind == "kafka"
        return Topic(
            getattr(self.topics, field),
            partitions=self.settings.stream.partitions if shared else 1,
            retention_seconds=None if field in KEPT else self.settings.stream.retention_hours * 3600,
            compacted=field == "models",
            bytes_max=LETTER_BYTES_MAX if field == "dead_letters" else None,
        )


def lightgbm() -> Learner:
    """LightGBM; a plain function, as all of these, so that a child process finds it by name."""
    from tidemill.learners.lightgbm import LightGBM

    return LightGBM()


def xgboost() -> Learner:
    """XGBoost."""
    from tidemill.learners.xgboost import XGBoost

    return XGBoost()


def catboost() -> Learner:
    """CatBoost."""
    from tidemill.learners.catboost import CatBoost

    return CatBoost()


def linear() -> Learner:
    """The logistic and the ridge regression of scikit-learn."""
    from tidemill.learners.linear import Linear

    return Linear()


def forest() -> Learner:
    """The forests of scikit-learn."""
    from tidemill.learners.forest import Forest

    return Forest()


def optuna(space: Space, seed: int) -> Proposer:
    """Optuna's TPE."""
    from tidemill.tuning.optuna import OptunaProposer

    return OptunaProposer(space, seed)


def hyperopt(space: Space, seed: int) -> Proposer:
    """Hyperopt's TPE."""
    from tidemill.tuning.hyperopt import HyperoptProposer

    return HyperoptProposer(space, seed)


def skopt(space: Space, seed: int) -> Proposer:
    """The Gaussian process of scikit-optimize."""
    from tidemill.tuning.skopt import SkoptProposer

    return SkoptProposer(space, seed)


def skopt_forest(space: Space, seed: int) -> Proposer:
    """The forest of scikit-optimize."""
    from tidemill.tuning.skopt import SkoptProposer

    return SkoptProposer(space, seed, "ET")


def random(space: Space, seed: int) -> Proposer:
    """Points by chance."""
    from tidemill.tuning.random import RandomProposer

    return RandomProposer(space, seed)


def processes(samples: Samples, folds: Sequence[Fold], work: Work, workers: int) -> Executor:
    """Worker processes on this machine."""
    from tidemill.executors.processes import Processes

    return Processes(samples, folds, work, workers)


def ray(samples: Samples, folds: Sequence[Fold], work: Work, workers: int) -> Executor:
    """A Ray cluster."""
    from tidemill.executors.ray import Ray

    return Ray(samples, folds, work, workers)


LEARNERS: Plugins[Callable[[], Learner]] = Plugins(
    "learner", {"lightgbm": lightgbm, "xgboost": xgboost, "catboost": catboost, "linear": linear, "forest": forest}
)
PROPOSERS: Plugins[Callable[[Space, int], Proposer]] = Plugins(
    "proposer", {"optuna": optuna, "hyperopt": hyperopt, "skopt": skopt, "skopt_forest": skopt_forest, "random": random}
)
EXECUTORS: dict[str, MakeExecutor] = {"processes": processes, "ray": ray}


def learner(name: str) -> Learner:
    """The learner that a manifest names. Raises ``ConfigError`` for one that this installation does not have."""
    return LEARNERS.find(name)()


def connect(project: str | Path = ".") -> "Client":
    """A client for the user's service: ``with tidemill.connect("adult") as client: client.predict({...})``."""
    from tidemill.app.client import Client

    wiring = Wiring(Path(project))
    return Client(wiring.log, wiring.topics, on_close=wiring.close)
