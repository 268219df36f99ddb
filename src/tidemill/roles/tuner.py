"""The one loop that asks, tries and tells, and the processes that try.

But for the clock, a search is a pure function of its arguments: trials are told in the order of their numbers, and number n
is asked once all up to n - workers are told, however long each takes. So resuming is a replay: the proposer is asked for
the recorded trials too, is told their recorded losses without any work, and goes on as if nobody had been killed.
"""

import math
import multiprocessing
import os
import queue
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import structlog
from msgspec import Struct

from tidemill.clock import Clock
from tidemill.core.metrics import Metric, metric
from tidemill.core.schema import Task
from tidemill.errors import ConfigError
from tidemill.failpoints import failpoint
from tidemill.learners.base import Fold, Learner, Parameters, Samples, Scored
from tidemill.messages import Trial
from tidemill.priority import run_when_idle
from tidemill.tuning.base import Proposer

ATTEMPTS = 3
"""How often a trial is started whose worker is killed; an outsider (the kernel, short of memory) may have done it."""

logger = structlog.get_logger()


class TrialFailed(ConfigError):
    """The learner refuses the parameters or the rows, or its worker process dies of them every time."""


class Budget(Struct, frozen=True):
    """How many trials; and after how many ``seconds`` none is started any more (0: no limit), once one is good."""

    trials: int
    seconds: float = 0.0


def search(
    proposer: Proposer,
    evaluate: Callable[[Parameters], Scored],
    metric: Metric,
    budget: Budget,
    recorded: Sequence[Trial],
    record: Callable[[Trial], None],
    experiment: str,
    environment: str,
    clock: Clock,
    workers: int = 1,
    on_trial: Callable[[Trial], None] | None = None,
) -> Trial:
    """The best trial of the budget; ``ConfigError`` where all of them failed.

    ``recorded`` trials of this experiment and environment count as done, in number and in seconds; those of another
    environment only keep their numbers. Each new trial is handed to ``record``, then to ``on_trial``, in the caller's
    thread. ``evaluate`` is called by ``workers`` threads at the same time; ``TrialFailed`` makes a trial with an error.
    """
    ours = [trial for trial in recorded if trial.experiment == experiment]
    known = {trial.number: trial for trial in ours if trial.environment == environment}
    first = 1 + max((trial.number for trial in ours if trial.environment != environment), default=-1)
    state = _Search(proposer, evaluate, metric, known, experiment, environment, clock)
    spent = sum(trial.seconds for trial in known.values()) / workers
    deadline = clock.monotonic() + budget.seconds - spent if budget.seconds else math.inf
    running: deque[tuple[bool, Future[Trial]]] = deque()

    def settle() -> None:
        new, future = running.popleft()
        trial = future.result()
        if new:
            record(trial)
            if on_trial:
                on_trial(trial)
        state.settle(trial)

    threads = ThreadPoolExecutor(workers, thread_name_prefix="trial")
    try:
        for number in range(first, first + budget.trials):
            if len(running) == workers:
                settle()
            if number not in known and state.good and clock.monotonic() >= deadline:
                break
            running.append((number not in known, threads.submit(state.run, number, proposer.ask())))
        while running:
            settle()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    return state.best()


class _Search:
    """The trials of one search; ``run`` may be called by several threads."""

    def __init__(
        self,
        proposer: Proposer,
        evaluate: Callable[[Parameters], Scored],
        metric: Metric,
        known: dict[int, Trial],
        experiment: str,
        environment: str,
        clock: Clock,
    ) -> None:
        self.proposer = proposer
        self.evaluate = evaluate
        self.metric = metric
        self.known = known
        self.experiment = experiment
        self.environment = environment
        self.clock = clock
        self.trials = dict(known)

    @property
    def good(self) -> bool:
        """Whether any trial has a score."""
        return any(trial.score is not None for trial in self.trials.values())

    def run(self, number: int, parameters: Parameters) -> Trial:
        """The trial of that number: the recorded one, or a new one."""
        if number in self.known:
            return self.known[number]
        started = self.clock.monotonic()
        scored, error = None, ""
        try:
            scored = self.evaluate(parameters)
        except TrialFailed as failure:
            error = str(failure)
        return Trial(
            experiment=self.experiment,
            number=number,
            parameters=parameters,
            metric=self.metric.name,
            score=scored.score if scored else None,
            fold_scores=scored.fold_scores if scored else [],
            rounds=scored.rounds if scored else 0,
            seconds=self.clock.monotonic() - started,
            environment=self.environment,
            at=self.clock.now_ms(),
            error=error,
        )

    def settle(self, trial: Trial) -> None:
        """Tell the proposer."""
        self.trials[trial.number] = trial
        self.proposer.tell(trial.parameters, self.loss(trial))

    def loss(self, trial: Trial) -> float:
        """A failed trial is as bad as can be."""
        return math.inf if trial.score is None else self.metric.loss(trial.score)

    def best(self) -> Trial:
        """The first of the best."""
        trials = [self.trials[number] for number in sorted(self.trials)]
        if not self.good:
            raise ConfigError(f"all {len(trials)} trials failed; the last: {trials[-1].error if trials else 'none'}")
        return min(trials, key=self.loss)


class _Work(Struct, frozen=True):
    """What a worker process is started with; the arrays are files in ``scratch``."""

    scratch: str
    columns: tuple[str, ...]
    categorical: tuple[int, ...]
    task: Task
    classes: int
    weighted: bool
    folds: int
    learner: Callable[[], Learner]
    metric: str
    seed: int
    threads: int
    rounds_max: int
    patience: int
    memory_bytes: int


class _Request(Struct, frozen=True):
    """Cross-validate the parameters; with ``rounds`` fit them on all rows instead."""

    parameters: Parameters
    rounds: int = 0


class _Reply(Struct, frozen=True, omit_defaults=True):
    scored: Scored | None = None
    model: bytes = b""
    error: str = ""
    out_of_memory: bool = False


class TrialPool:
    """Worker processes that cross-validate and fit, so that the process that owns them stays light and answers signals.

    Each worker has one trial at a time, runs when nobody else wants the processor, reads the samples from memory-mapped
    files, is replaced if killed, and ends with its owner, even by kill -9. Beyond its share of ``memory_bytes`` (0: no
    limit) it is refused memory, which fails the trial. ``learner`` must be picklable (a class, a module's function). Use
    it as a context; ``evaluate`` and ``fit`` may be called by several threads.
    """

    def __init__(
        self,
        samples: Samples,
        folds: Sequence[Fold],
        learner: Callable[[], Learner],
        metric_name: str,
        seed: int,
        threads: int = 1,
        rounds_max: int = 2000,
        patience: int = 30,
        workers: int = 1,
        memory_bytes: int = 0,
    ) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="tidemill-trials-", ignore_cleanup_errors=True)
        _save(Path(self._scratch.name), samples, folds)
        self._work = _Work(
            self._scratch.name,
            samples.columns,
            samples.categorical,
            samples.task,
            samples.classes,
            samples.weights is not None,
            len(folds),
            learner,
            metric_name,
            seed,
            threads,
            rounds_max,
            patience,
            memory_bytes // workers,
        )
        self._closing = threading.Event()
        self._workers = [_Worker(self._work) for _ in range(workers)]
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, whatever they are at, and remove the files."""
        self._closing.set()
        for worker in self._workers:
            worker.kill()
        self._scratch.cleanup()

    def evaluate(self, parameters: Parameters) -> Scored:
        """The learner's cross-validation, in a worker."""
        reply = self._ask(_Request(parameters))
        if reply.scored is None:
            raise TrialFailed(reply.error)
        return reply.scored

    def fit(self, parameters: Parameters, rounds: int) -> bytes:
        """The bytes of the model on all rows, fitted in a worker."""
        reply = self._ask(_Request(parameters, rounds))
        if not reply.model:
            raise TrialFailed(reply.error)
        return reply.model

    def _ask(self, request: _Request) -> _Reply:
        worker = self._free.get()
        try:
            for _ in range(ATTEMPTS):
                reply = worker.ask(request)
                if reply is None and self._closing.is_set():
                    return _Reply(error="the search was stopped")
                if reply is None or reply.out_of_memory:
                    error = reply.error if reply else ""
                    logger.warning("trial_worker_replaced", exit_code=worker.kill(), error=error)
                    worker.start()
                if reply is not None:
                    return reply
            return _Reply(error=f"its worker process died {ATTEMPTS} times; out of memory{_limit(self._work)}?")
        finally:
            self._free.put(worker)


class _Worker:
    """One child process and the pipe to it."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self.start()

    def start(self) -> None:
        """Spawned, not forked: LightGBM's OpenMP threads do not survive a fork, and hang."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._work, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, request: _Request) -> _Reply | None:
        """The answer, or None where the process died."""
        try:
            self._pipe.send_bytes(msgspec.msgpack.encode(request))
            return msgspec.msgpack.decode(self._pipe.recv_bytes(), type=_Reply)
        except (EOFError, OSError):
            return None

    def kill(self) -> int | None:
        """End the process; its exit code."""
        self._process.kill()
        self._process.join()
        return self._process.exitcode


def _save(scratch: Path, samples: Samples, folds: Sequence[Fold]) -> None:
    np.save(scratch / "matrix.npy", samples.matrix)
    np.save(scratch / "labels.npy", samples.labels)
    if samples.weights is not None:
        np.save(scratch / "weights.npy", samples.weights)
    for number, (rows, scored) in enumerate(folds):
        np.save(scratch / f"rows-{number}.npy", rows)
        np.save(scratch / f"scored-{number}.npy", scored)


def _open(work: _Work) -> tuple[Samples, list[Fold]]:
    def array(name: str) -> Any:
        return np.load(Path(work.scratch) / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    samples = Samples(
        array("matrix"),
        array("labels"),
        array("weights") if work.weighted else None,
        work.columns,
        work.categorical,
        work.task,
        work.classes,
    )
    return samples, [(array(f"rows-{number}"), array(f"scored-{number}")) for number in range(work.folds)]


def _serve(work: _Work, pipe: Connection) -> None:
    """A worker's whole life: requests until the pipe closes. Ctrl-C is for the owner to act upon."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_when_idle(work.memory_bytes)
    threading.Thread(target=_end_with_owner, args=(work.scratch,), daemon=True).start()
    samples, folds = _open(work)
    learner = work.learner()
    while True:
        try:
            request = msgspec.msgpack.decode(pipe.recv_bytes(), type=_Request)
        except (EOFError, OSError):
            return
        try:
            reply = _answer(work, learner, samples, folds, request)
        except Exception as error:  # whatever a learner raises is this trial's fault, and the next one may be good
            reply = _refusal(error, work)
        failpoint("tuner.tried")
        pipe.send_bytes(msgspec.msgpack.encode(reply))


def _answer(work: _Work, learner: Learner, samples: Samples, folds: list[Fold], request: _Request) -> _Reply:
    if request.rounds:
        model = learner.fit(samples, request.parameters, request.rounds, work.seed, work.threads)
        return _Reply(model=model.to_bytes())
    measure = metric(work.metric, work.task)
    return _Reply(
        learner.cross_validate(
            samples, folds, request.parameters, measure, work.seed, work.threads, work.rounds_max, work.patience
        )
    )


def _refusal(error: Exception, work: _Work) -> _Reply:
    """Why there is no result. A library in C++ says ``bad_alloc`` where Python has a ``MemoryError``."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "bad_alloc" in text:
        return _Reply(error=f"out of memory{_limit(work)}: {text}", out_of_memory=True)
    return _Reply(error=text)


def _limit(work: _Work) -> str:
    """What a worker may take, in brackets."""
    return f" (trainer.memory_gb gives a worker {work.memory_bytes / 1e9:.3g} GB)" if work.memory_bytes else ""


def _end_with_owner(scratch: str) -> None:
    """Even in the middle of a trial: LightGBM lets go of the interpreter's lock while it works."""
    owner = multiprocessing.parent_process()
    assert owner is not None  # noqa: S101  only ever called in a child
    owner.join()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)
