"""A backtest: one policy after another over the same stream, each in a project of its own, and which of them to choose."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from tidemill.backtest.clock import StreamClock
from tidemill.backtest.play import Pace, Played, play, train_first
from tidemill.backtest.result import Answers, PolicyResult, Result, Training, answers_of, by_window, trainings_of
from tidemill.backtest.scratch import Scratch, configured, opened, retrain_settings
from tidemill.backtest.stream import HOUR_MS, Stream
from tidemill.configuration import Configuration
from tidemill.core.choosing import CONFIDENCE, RESAMPLES, RESAMPLES_BY_ROWS, block_length, choose
from tidemill.core.metrics import METRICS, Metric, metric
from tidemill.core.policies import Policy
from tidemill.errors import ConfigError
from tidemill.messages import JournalEntry
from tidemill.original import load_original
from tidemill.roles.reading import read_messages
from tidemill.settings import Retrain
from tidemill.temporary import TemporaryFolder

STEP = 10_000
"""Events of a step at most: each costs some 0.1 s, and nothing is decided in between."""
STEPS_A_PERIOD = 20
"""A periodical retraining comes at most a twentieth of its period late."""


class Plan(Struct, frozen=True):
    """How to play. ``trials`` of each retraining; 0 is the project's own number. ``step`` 0 and ``block_hours`` 0: as the
    policy, and the stream's length, want it. A training takes ``training_seconds`` of the stream. ``work`` is a folder for
    the projects, which stay there; None: a temporary one.
    """

    policies: Sequence[Policy]
    trials: int = 1
    step: int = 0
    block_hours: float = 0.0
    training_seconds: float = 0.0
    work: Path | None = None


class Progress(Struct, frozen=True):
    """Which policy, and how far it is; None while the first model is trained."""

    policy: str
    played: Played | None = None


class _Done(Struct, frozen=True):
    policy: Policy
    answers: Answers
    trainings: list[Training]
    seconds: float


def backtest(
    project: Configuration, stream: Stream, plan: Plan, tell: Callable[[Progress], None] = lambda progress: None
) -> Result:
    """Play the stream for each policy, and compare. The same each time but for the seconds.

    The first model is made once, with the project's own search, for all policies that make it of the same rows. Nothing
    stays, however this ends, unless ``plan.work`` is given.
    """
    retrain = {policy.name: retrain_settings(project.settings, policy) for policy in plan.policies}
    measure = metric(project.settings.tune.metric, project.schema.task)
    if plan.work is not None and plan.work.exists() and (not plan.work.is_dir() or any(plan.work.iterdir())):
        raise ConfigError(f"{plan.work} is no empty folder: give --work another one")
    if plan.work is not None and not os.access(plan.work.absolute().parent, os.W_OK):
        raise ConfigError(f"{plan.work.absolute().parent} is no folder that can be written to: give --work another one")
    with TemporaryFolder("tidemill-backtest-", plan.work and plan.work.parent) as temporary:
        bench = _Bench(project, stream, plan, temporary, measure, tell)
        done = [bench.run(number, policy, retrain[policy.name]) for number, policy in enumerate(plan.policies, 1)]
    return _result(project, stream, plan, measure, done, bench.notes())


class _Bench:
    """Where policies are run, one after another, and the first models that were made for them."""

    def __init__(
        self,
        project: Configuration,
        stream: Stream,
        plan: Plan,
        temporary: Path,
        measure: Metric,
        tell: Callable[[Progress], None],
    ) -> None:
        self._project = project
        self._stream = stream
        self._plan = plan
        self._temporary = temporary
        self._measure = measure
        self._tell = tell
        self._original = load_original(project.data, project.schema)
        self._firsts: dict[int, Path] = {}

    def run(self, number: int, policy: Policy, retrain: Retrain) -> _Done:
        """Play one policy; its project goes when it is done."""
        started = time.monotonic()
        first = self._first(policy, retrain)
        tune: dict[str, Any] = {"trials": self._plan.trials, "memory": True} if self._plan.trials else {}
        name = f"{number}-{policy.name.translate(str.maketrans(':/+', '---'))}"
        folder = (self._plan.work or self._temporary) / name
        self._tell(Progress(policy.name, Played(0, len(self._stream), 0)))
        with opened(configured(self._project, folder, retrain, **tune), self._clock(), first) as scratch:
            play(scratch, self._stream, self._pace(policy), lambda played: self._tell(Progress(policy.name, played)))
            answers = answers_of(scratch, self._stream, self._measure)
            trainings = trainings_of(scratch)
        if self._plan.work is None:
            shutil.rmtree(folder, ignore_errors=True)
        return _Done(policy, answers, trainings, time.monotonic() - started)

    def _first(self, policy: Policy, retrain: Retrain) -> Path:
        """A project whose first model is made of the rows that the policy would take. Its log is closed."""
        rows = retrain.window_rows if 0 < retrain.window_rows < len(self._original) else 0
        if rows not in self._firsts:
            self._tell(Progress(policy.name))
            folder = self._temporary / f"first-{rows}"
            with opened(configured(self._project, folder, retrain), self._clock()) as scratch:
                train_first(scratch)
                [training] = trainings_of(scratch)
                if training.verdict != "promoted":
                    of = f"the newest {rows:,} rows of the original data, which the policy's window takes," if rows else ""
                    raise ConfigError(f"{of or 'the original data'} give no first model: {_detail(scratch)}")
            self._firsts[rows] = folder
        return self._firsts[rows]

    def _clock(self) -> StreamClock:
        return StreamClock(int(self._stream.times[0]))

    def _pace(self, policy: Policy) -> Pace:
        looks = self._project.settings.drift.window_rows if policy.watches else 0
        hours, seconds = policy.hours / STEPS_A_PERIOD, self._plan.training_seconds
        return Pace(self._plan.step or STEP, hours, policy.every, looks, seconds)

    def notes(self) -> list[str]:
        """What a person should know of the stream."""
        newest = max(self._original.times_ms, default=0)
        old = int((self._stream.asked <= newest).sum())
        if not old:
            return []
        text = "requests are not newer than the newest row of the original data: the first model may have learnt from them"
        return [f"{old:,} {text} (--from says where to begin)"]


def _detail(scratch: Scratch) -> str:
    return read_messages(scratch.log, scratch.topics.journal, JournalEntry)[-1].detail


def _result(
    project: Configuration, stream: Stream, plan: Plan, measure: Metric, done: Sequence[_Done], notes: list[str]
) -> Result:
    """Compare, on the requests that every policy has answered and whose outcome every one has observed."""
    shared = reduce(np.intersect1d, (one.answers.places for one in done))
    if not len(shared):
        raise ConfigError("no request was answered and observed under every policy: nothing can be compared")
    taken = {one.policy.name: one.answers.take(shared) for one in done}
    labels = taken[done[0].policy.name].labels
    asked = stream.asked[shared]
    block_ms = round(plan.block_hours * HOUR_MS) or block_length(asked)
    starts, blocks = np.unique(asked // block_ms, return_inverse=True)
    choice = choose(
        labels,
        {name: answers.predictions for name, answers in taken.items()},
        {one.policy.name: len(one.trainings) for one in done},
        blocks,
        measure,
        project.settings.project.seed,
    )
    counted = measure.losses is not None or measure is METRICS["auc"]
    return Result(
        project=project.settings.project.name,
        source=stream.name,
        metric=measure.name,
        greater_is_better=measure.greater_is_better,
        requests=stream.requests,
        labelled=stream.labelled,
        scored=len(shared),
        since=int(stream.times[0]),
        until=int(stream.times[-1]),
        trials=plan.trials or project.settings.tune.trials,
        ready_after_seconds=plan.training_seconds,
        seed=project.settings.project.seed,
        block_hours=block_ms / HOUR_MS,
        resamples=RESAMPLES if counted else RESAMPLES_BY_ROWS,
        confidence=CONFIDENCE,
        windows=(starts * block_ms).tolist(),
        rows=np.bincount(blocks).tolist(),
        baseline=choice.baseline,
        best=choice.best,
        chosen=choice.chosen,
        reason=choice.reason,
        notes=notes,
        policies=[
            PolicyResult(
                policy=one.policy.name,
                settings=one.policy.settings,
                score=choice.standings[one.policy.name].score,
                scores=by_window(taken[one.policy.name], blocks, len(starts), measure),
                gain_over_baseline=choice.standings[one.policy.name].over_baseline,
                gain_over_best=choice.standings[one.policy.name].over_best,
                trainings=one.trainings,
                versions=len(np.unique(one.answers.versions)),
                training_seconds=sum(training.seconds for training in one.trainings),
                seconds=one.seconds,
            )
            for one in done
        ],
    )
