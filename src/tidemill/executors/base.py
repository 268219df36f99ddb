"""An executor carries out what a search asks for, in processes on this machine or on others."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import islice
from typing import Literal, Protocol, Self

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from tidemill.core.metrics import metric
from tidemill.errors import ConfigError
from tidemill.learners.base import Fold, Learner, Parameters, Samples, Scored, Terms, out_of_fold

ATTEMPTS = 3
"""How often a trial is started whose worker is killed; an outsider (the kernel, short of memory) may have done it."""


class TrialFailed(ConfigError):
    """The learner refuses the parameters or the rows, or its worker process dies of them every time."""


class Work(Struct, frozen=True):
    """What all assignments of a search share. ``learners``, by name, are classes or functions of modules: another process
    finds them by name. ``memory_bytes`` is what the workers may take together; 0 has no limit.
    """

    learners: dict[str, Callable[[], Learner]]
    metric: str
    seed: int
    rounds_max: int = 2000
    patience: int = 30
    threads: int = 1
    memory_bytes: int = 0


class Executor(Protocol):
    """``workers`` assignments at the same time. Every method but ``close`` may be called by several threads, and waits for a
    worker and for its answer. Use it as a context.
    """

    def evaluate(self, learner: str, parameters: Parameters, bar: float | None = None) -> Scored:
        """The learner's cross-validation. Raises ``TrialFailed``."""
        ...

    def fit(self, learner: str, parameters: Parameters, rounds: int) -> bytes:
        """The bytes of the model on all rows. Raises ``TrialFailed``."""
        ...

    def out_of_fold(self, learner: str, parameters: Parameters, rounds: int) -> NDArray[np.float64]:
        """See ``learners.base.out_of_fold``. Raises ``TrialFailed``."""
        ...

    def abandon(self) -> None:
        """Give up what is under way: who waits for it gets ``TrialFailed``. The executor goes on."""
        ...

    def close(self) -> None:
        """End all workers, whatever they are at."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class MakeExecutor(Protocol):
    """Makes an executor for a training set."""

    def __call__(self, samples: Samples, folds: Sequence[Fold], work: Work, workers: int) -> Executor: ...


class Assignment(Struct, frozen=True, omit_defaults=True):
    """What one worker is asked for; ``bar`` is for ``evaluate``, ``rounds`` for the others."""

    kind: Literal["evaluate", "fit", "out_of_fold"]
    learner: str
    parameters: Parameters
    rounds: int = 0
    bar: float | None = None


class Reply(Struct, frozen=True, omit_defaults=True):
    """What came of it: one of ``scored``, ``model`` and ``predictions`` (the bytes of a float64 array), or ``error``."""

    scored: Scored | None = None
    model: bytes = b""
    predictions: bytes = b""
    error: str = ""
    out_of_memory: bool = False


def carry_out(work: Work, samples: Samples, folds: Sequence[Fold], asked: Assignment) -> Reply:
    """Do it in this process. Whatever a learner raises is this trial's fault, and the next one may be good."""
    try:
        learner = work.learners[asked.learner]()
        if asked.kind == "fit":
            model = learner.fit(samples, asked.parameters, asked.rounds, work.seed, work.threads)
            return Reply(model=model.to_bytes())
        if asked.kind == "out_of_fold":
            found = out_of_fold(learner, samples, folds, asked.parameters, asked.rounds, work.seed, work.threads)
            return Reply(predictions=found.tobytes())
        measure = metric(work.metric, samples.task)
        terms = Terms(work.seed, work.threads, work.rounds_max, work.patience, asked.bar)
        return Reply(learner.cross_validate(samples, folds, asked.parameters, measure, terms))
    except Exception as error:
        return _refusal(error)


def _refusal(error: Exception) -> Reply:
    """Why there is no result. A library in C++ says ``bad_alloc`` where Python has a ``MemoryError``."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "bad_alloc" in text:
        return Reply(error=text, out_of_memory=True)
    return Reply(error=text)


class AskingExecutor(ABC):
    """What executors share whose workers take an ``Assignment`` and give a ``Reply``: who asks, how often, and what a person
    is told. ``_rows`` is how many the samples have, ``_limit`` what a worker may take of memory in bytes (0: no limit).
    """

    _rows: int
    _limit: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """See ``Executor.close``."""

    @abstractmethod
    def _replies(self, asked: Assignment) -> Generator[Reply | None, None, None]:
        """The reply of a worker, again and again for as long as it is asked for; None where it died meanwhile. Raises
        ``TrialFailed`` once the executor is closed, or what is under way given up.
        """

    def evaluate(self, learner: str, parameters: Parameters, bar: float | None = None) -> Scored:
        """See ``Executor.evaluate``."""
        reply = self._ask(Assignment("evaluate", learner, parameters, bar=bar))
        if reply.scored is None:
            raise TrialFailed(reply.error)
        return reply.scored

    def fit(self, learner: str, parameters: Parameters, rounds: int) -> bytes:
        """See ``Executor.fit``."""
        reply = self._ask(Assignment("fit", learner, parameters, rounds))
        if not reply.model:
            raise TrialFailed(reply.error)
        return reply.model

    def out_of_fold(self, learner: str, parameters: Parameters, rounds: int) -> NDArray[np.float64]:
        """See ``Executor.out_of_fold``."""
        reply = self._ask(Assignment("out_of_fold", learner, parameters, rounds))
        if not reply.predictions:
            raise TrialFailed(reply.error)
        found = np.frombuffer(reply.predictions, np.float64).reshape(self._rows, -1)
        return found[:, 0] if found.shape[1] == 1 else found

    def _ask(self, asked: Assignment) -> Reply:
        share = f" (trainer.memory_gb gives a worker {self._limit / 1e9:.3g} GB)" if self._limit else ""
        with closing(self._replies(asked)) as replies:
            reply = next((reply for reply in islice(replies, ATTEMPTS) if reply is not None), None)
        if reply is None:
            raise TrialFailed(f"its worker process died {ATTEMPTS} times; out of memory{share}?")
        if reply.out_of_memory:
            return structs.replace(reply, error=f"out of memory{share}: {reply.error}")
        return reply
