"""The one loop that asks, tries and tells.

But for the clock, a search is a pure function of its arguments: trials are told in the order in which they were asked for,
and one is asked for once all but a fixed number of those before it are told, however long each takes. So resuming is a
replay: the proposers are asked for the recorded trials too, are told their recorded losses without any work, and go on as if
nobody had been killed.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import chain, count

import msgspec
from msgspec import Struct

from tidemill.clock import Clock
from tidemill.core import pruning
from tidemill.core.environment import digest
from tidemill.core.metrics import Metric
from tidemill.errors import ConfigError
from tidemill.executors.base import TrialFailed
from tidemill.learners.base import Parameters, Scored
from tidemill.messages import Conditions, Trial
from tidemill.tuning.contest import Contest

Evaluate = Callable[[str, Parameters, float | None], Scored]


class Budget(Struct, frozen=True):
    """How many ``trials``; after how many ``seconds`` the search ends, once a trial is good, and ``stale`` trials in a row
    without a better one do the same (0: no limit).
    """

    trials: int
    seconds: float = 0.0
    stale: int = 0


class Experiment(Struct, frozen=True):
    """What every trial of a search says of itself."""

    id: str
    conditions: Conditions
    proposer: str = ""


def search(
    contest: Contest,
    evaluate: Evaluate,
    metric: Metric,
    budget: Budget,
    recorded: Sequence[Trial],
    record: Callable[[Trial], None],
    experiment: Experiment,
    clock: Clock,
    workers: int = 1,
    prune: bool = False,
) -> tuple[Trial, bool]:
    """The best trial of the budget, and whether trials were given up under way; ``ConfigError`` where all have failed.

    What ``recorded`` trials of this experiment and environment came to is not tried again: where their points are asked for,
    they are the answer, and count in number and in seconds. Where others are asked for (the settings have changed since),
    they may still be the best. What was found at a point in this environment, here or in another experiment, is copied: the
    same folds would give the same bits. Each new trial is handed to ``record`` as soon as it ends, in the caller's thread.
    ``evaluate`` is called by ``workers`` threads at the same time; ``TrialFailed`` makes a trial with an error. With
    ``prune`` it is given a bar.
    """
    environment = digest(experiment.conditions)
    ours = [trial for trial in recorded if trial.experiment == experiment.id]
    done = [trial for trial in ours if trial.environment == environment and trial.learner in contest.learners]
    known: dict[bytes, deque[Trial]] = defaultdict(deque)
    for trial in done:
        known[_key(trial.learner, trial.parameters)].append(trial)
    tried = len(done)
    taken = {trial.number for trial in ours}
    numbers = (number for number in count() if number not in taken)
    state = _Search(contest, evaluate, metric, experiment, environment, clock, prune)
    state.found = {
        _key(trial.learner, trial.parameters): trial
        for trial in recorded
        if trial.experiment != experiment.id and trial.environment == environment and trial.score is not None
    }
    state.good = any(trial.score is not None for trial in done)
    deadline = math.inf
    if budget.seconds:
        deadline = clock.monotonic() + budget.seconds - sum(trial.seconds for trial in done) / workers
    running: deque[Trial | Future[Trial]] = deque()
    ahead = 2 * workers - 1  # a worker that ends first has its next trial, and need not wait for the others

    threads = ThreadPoolExecutor(workers, thread_name_prefix="trial")
    try:
        for _ in range(budget.trials):
            if len(running) == ahead and not state.await_oldest(running, deadline, record):
                break
            late = clock.monotonic() >= deadline or state.stale(budget.stale)
            if late and state.good and not tried:
                break
            learner, parameters, bar = state.ask()
            key = _key(learner, parameters)
            before = known[key]
            tried = tried - 1 if before else 0
            if before:
                running.append(before.popleft())
            elif key in state.found:
                running.append(copied := state.copied(next(numbers), state.found[key]))
                record(copied)
                state.good = True
            else:
                running.append(threads.submit(state.run, next(numbers), learner, parameters, bar))
        while running and state.await_oldest(running, deadline, record):
            pass
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    ended = [trial for trial in running if isinstance(trial, Trial)]
    return state.best(chain(*known.values(), ended)), len(ended) < len(running)


def _key(learner: str, parameters: Parameters) -> bytes:
    return learner.encode() + msgspec.json.encode(parameters, order="sorted")


class _Search:
    """The trials of one search that are told, whether any has a score (``good``), and what was ``found`` in its environment,
    by point. ``run`` may be called by several threads.
    """

    def __init__(
        self,
        contest: Contest,
        evaluate: Evaluate,
        metric: Metric,
        experiment: Experiment,
        environment: str,
        clock: Clock,
        prune: bool,
    ) -> None:
        self.contest = contest
        self.evaluate = evaluate
        self.metric = metric
        self.experiment = experiment
        self.environment = environment
        self.clock = clock
        self.prune = prune
        self.settled: list[Trial] = []
        self.last_error = "none"
        self.good = False
        self.found: dict[bytes, Trial] = {}
        self._firsts: list[float] = []
        self._means: list[float] = []

    def stale(self, limit: int) -> bool:
        """Whether the last ``limit`` trials have brought nothing better."""
        since = len(self.settled) - 1 - self.settled.index(self.best()) if self._means else 0
        return 0 < limit <= since

    def ask(self) -> tuple[str, Parameters, float | None]:
        """Learner, parameters and bar of the next trial."""
        return *self.contest.ask(), pruning.bar(self._firsts, self._means) if self.prune else None

    def run(self, number: int, learner: str, parameters: Parameters, bar: float | None) -> Trial:
        """Try it."""
        started = self.clock.monotonic()
        scored, error = None, ""
        try:
            scored = self.evaluate(learner, parameters, bar)
        except TrialFailed as failure:
            error = str(failure)
        return Trial(
            experiment=self.experiment.id,
            number=number,
            parameters=parameters,
            metric=self.metric.name,
            score=None if scored is None or scored.pruned else scored.score,
            fold_scores=scored.fold_scores if scored else [],
            rounds=scored.rounds if scored else 0,
            seconds=self.clock.monotonic() - started,
            environment=self.environment,
            at=self.clock.now_ms(),
            error=error,
            learner=learner,
            pruned=scored is not None and scored.pruned,
            proposer=self.experiment.proposer,
            conditions=self.experiment.conditions,
            threshold=scored.threshold if scored else 0.5,
        )

    def copied(self, number: int, twin: Trial) -> Trial:
        """As a trial of its own."""
        facts = {"experiment": self.experiment.id, "proposer": self.experiment.proposer, "at": self.clock.now_ms()}
        return msgspec.structs.replace(twin, number=number, seconds=0.0, **facts)

    def await_oldest(self, running: deque[Trial | Future[Trial]], deadline: float, record: Callable[[Trial], None]) -> bool:
        """Until the oldest is told; what ends meanwhile is recorded. False at the deadline, once one is good."""
        while isinstance(oldest := running[0], Future):
            unrecorded = [trial for trial in running if isinstance(trial, Future)]
            limited = self.good and deadline < math.inf
            left = max(0.0, deadline - self.clock.monotonic()) if limited else None
            ended, _ = wait(unrecorded, left, FIRST_COMPLETED)
            if not ended:
                return False
            for position, trial in enumerate(list(running)):
                if isinstance(trial, Future) and trial in ended:
                    running[position] = found = trial.result()
                    record(found)
                    self.good |= found.score is not None
        running.popleft()
        self.settle(oldest)
        return True

    def settle(self, trial: Trial) -> None:
        """Tell the contest."""
        self.settled.append(trial)
        self.contest.tell(trial.learner, trial.parameters, self._told(trial))
        if trial.score is not None:
            self.found[_key(trial.learner, trial.parameters)] = trial
            self._firsts.append(self.metric.loss(trial.fold_scores[0]))
            self._means.append(self.metric.loss(trial.score))
        if trial.error:
            self.last_error = trial.error

    def _told(self, trial: Trial) -> float:
        """A failed trial is as bad as can be; one that was given up, as bad as it looked."""
        if trial.score is not None:
            return self.metric.loss(trial.score)
        if trial.pruned and self._means:
            return pruning.expected(self.metric.loss(trial.fold_scores[0]), self._firsts, self._means)
        return math.inf

    def best(self, others: Iterable[Trial] = ()) -> Trial:
        """The first of the best."""
        trials = [*self.settled, *others]
        whole = [(self.metric.loss(trial.score), trial.number, trial) for trial in trials if trial.score is not None]
        if not whole:
            raise ConfigError(f"all {len(trials)} trials failed; the last: {self.last_error}")
        return min(whole, key=lambda one: one[:2])[2]
