"""A project of its own for each policy: the same original data, schema and settings but for what the policy says, an
embedded log that tells the stream's time, and nobody who is told of it.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tidemill import settings
from tidemill.backtest.clock import StreamClock, StreamSeconds
from tidemill.backtest.held import HeldLog
from tidemill.configuration import FILE, Configuration, digest, render
from tidemill.core.policies import Policy
from tidemill.errors import ConfigError
from tidemill.log.base import Log, Topic
from tidemill.messages import Topics
from tidemill.schema_file import render_schema
from tidemill.settings import Settings
from tidemill.wiring import Wiring


class Scratch(Wiring):
    """The project in ``folder``. Its roles are made one by one, for a driver that steps them; the trainer's seconds are the
    machine's, the other roles' pass with the stream.
    """

    def __init__(self, configuration: Configuration, clock: StreamClock) -> None:
        self.configuration = configuration
        self.settings = configuration.settings
        self.topics = Topics.of(self.settings.project.name)
        self.clock = self.stream_clock = clock
        self.role_clock = StreamSeconds(clock)

    def _sqlite_log(self) -> Log:
        from tidemill.log.sqlite import SqliteLog

        return SqliteLog(self.configuration.log_folder, self.settings.stream.durability, clock=self.clock)

    def _topics(self) -> list[Topic]:
        """Without retention: the stream's hours pass in milliseconds, and each append would look for what has expired."""
        return [replace(topic, retention_seconds=None) for topic in super()._topics()]

    @cached_property
    def held(self) -> HeldLog:
        """The log as predictor and monitor see it: without the versions that are not ready yet."""
        return HeldLog(self.log, self.topics.models)

    @property
    def served_log(self) -> Log:
        """Without the versions that are not ready yet."""
        return self.held

    @property
    def watches(self) -> bool:
        """Where an alarm may ask for a model."""
        return "auto" in (self.settings.retrain.drift, self.settings.retrain.drop)

    def close(self) -> None:
        """Release the log and the tables."""
        super().close()
        if "lake" in self.__dict__:
            self.lake.close()


def retrain_settings(own: Settings, policy: Policy) -> settings.Retrain:
    """The section ``[retrain]`` of a policy. Raises ``ConfigError`` where its alarms would have nothing to look at."""
    if policy.watches and not own.drift.window_rows:
        raise ConfigError(f"policy {policy.name!r} needs looks at the data: drift.window_rows is 0")
    return replace(own.retrain, **policy.settings)


def configured(project: Configuration, folder: Path, retrain: settings.Retrain, **tune: Any) -> Configuration:
    """The project's configuration as it is for a backtest in ``folder``; ``tune`` is what its search has of its own.

    A search ends by its trials, never by the clock, so that it is the same each time. Nobody is there to promote: a policy
    that waits for a person's word promotes what is better.
    """
    own = project.settings
    verdict = replace(own.verdict, policy="better") if own.verdict.policy == "manual" else own.verdict
    made: Mapping[str, Any] = {
        "project": replace(own.project, data=str(project.data.absolute()), schema="schema.json"),
        "stream": settings.Stream(durability="normal"),
        "lake": replace(own.lake, path="lake"),
        "bundles": replace(own.bundles, path="bundles"),
        "tracking": replace(own.tracking, tracker="none", uri="sqlite:///mlflow.db"),
        "tune": replace(own.tune, **{"seconds": 0.0, "on_trial": "", "on_experiment": "", **tune}),
        "verdict": verdict,
        "retrain": retrain,
    }
    chosen: Settings = replace(own, **made)
    return replace(project, settings=chosen, root=folder, digest=digest(chosen))


@contextmanager
def opened(configuration: Configuration, clock: StreamClock, seed_folder: Path | None = None) -> Iterator[Scratch]:
    """The project in the configuration's folder, made as a copy of ``seed_folder`` where that is given."""
    folder = configuration.root
    if seed_folder is not None:
        shutil.copytree(seed_folder, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(render(configuration.settings), encoding="utf-8")
    (folder / "schema.json").write_text(render_schema(configuration.schema), encoding="utf-8")
    scratch = Scratch(configuration, clock)
    try:
        yield scratch
    finally:
        scratch.close()
