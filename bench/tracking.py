"""What a long experiment costs in MLflow: its export, the store's rows and size, and the search that MLflow's page makes.

By how many trials have runs of their own: as many as there are trials is how version 0.1 did it. The machine may be shared,
so the processor's time stands beside the clock's.
"""

import contextlib
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from bench.proposers import SPACE
from tidemill.clock import SystemClock
from tidemill.log.base import Message, Topic, lag
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Topics, Trial, to_bytes
from tidemill.roles.tracker import GROUP, TrackerRole
from tidemill.testing.tracker_contract import a_decision, a_trial
from tidemill.tracking.mlflow import MlflowTracker, create_store
from tidemill.tuning.random import RandomProposer

TRIALS = 1000
CHILDREN = (0, 50, 200, TRIALS)
CALLS = 10
TOPICS = Topics.of("bench")


class Tracked(Struct, frozen=True):
    """``seconds`` and ``cpu_seconds`` are of the export of all trials and their decision, ``live_ms`` and ``live_cpu_ms`` of
    one trial more that comes alone, ``search_ms`` of MLflow's search for the newest 100 runs, ``search_kb`` what it finds.
    """

    children: int
    seconds: float
    cpu_seconds: float
    live_ms: float
    live_cpu_ms: float
    search_ms: float
    search_kb: float
    runs: int
    params: int
    metrics: int
    tags: int
    database_mb: float
    table_kb: float


def measure(trials: int = TRIALS, children: Sequence[int] = CHILDREN) -> list[Tracked]:
    """Each on a new store. What MLflow needs for its first call is not counted."""
    found = []
    for count in children:
        with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
            found.append(_export(Path(folder), some_trials(trials), count))
    return found


def some_trials(count: int) -> list[Trial]:
    """Points of LightGBM's space, of which nine in ten have a score."""
    proposer = RandomProposer(SPACE, 0)
    scores = [None if number % 10 == 3 else 0.9 - number * 0.618 % 1 / 10 for number in range(count)]
    return [
        replace(
            a_trial(number, error="pruned" if score is None else ""),
            score=score,
            fold_scores=[0.8] if score is None else [score - 0.01, score, score + 0.01],
            pruned=score is None,
            error="",
            parameters=proposer.ask(),
        )
        for number, score in enumerate(scores)
    ]


def _export(root: Path, trials: Sequence[Trial], children: int) -> Tracked:
    uri = f"sqlite:///{root}/mlflow.db"
    create_store(uri)
    tracker = MlflowTracker(uri, "bench", "each", root / "bundles", children)
    tracker.advance({}, {})
    with contextlib.closing(SqliteLog(root / "log")) as log:
        topics = (TOPICS.trials, TOPICS.journal, TOPICS.models)
        log.create([Topic(name) for name in topics])
        log.append([Message(TOPICS.trials, to_bytes(trial)) for trial in trials[:-CALLS]])
        log.append([Message(TOPICS.journal, to_bytes(a_decision()))])
        spent = _timed(lambda: _follow(log, tracker, topics))
    live = [_timed(lambda end=end: tracker.record_trials(trials[:end], {end - 1})) for end in range(-CALLS + 1, 0)]  # type: ignore[misc]
    search, kb = _search(uri)
    table = next(root.glob("mlflow-artifacts/**/trials.json"))
    return Tracked(
        children,
        *spent,
        1000 * median(clock for clock, _ in live),
        1000 * median(cpu for _, cpu in live),
        search,
        kb,
        **_rows(root / "mlflow.db"),
        database_mb=(root / "mlflow.db").stat().st_size / 2**20,
        table_kb=table.stat().st_size / 1024,
    )


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    started, started_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - started_cpu


def _follow(log: SqliteLog, tracker: MlflowTracker, topics: Sequence[str]) -> None:
    stop = threading.Event()
    role = TrackerRole(log, TOPICS, tracker, SystemClock())
    thread = threading.Thread(target=role.run, args=(stop,))
    thread.start()
    while any(lag(log, GROUP, topics).values()):
        time.sleep(0.05)
    stop.set()
    thread.join()


def _search(uri: str) -> tuple[float, float]:
    """Milliseconds, and the size of the answer, as MLflow's page asks for it when an experiment is opened."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("bench/count-1")
    assert experiment is not None
    times, size = [], 0.0
    for _ in range(CALLS):
        started = time.perf_counter()
        runs = client.search_runs([experiment.experiment_id], "", ViewType.ACTIVE_ONLY, 100, ["attributes.start_time DESC"])
        times.append(1000 * (time.perf_counter() - started))
        size = sum(len(str(run.to_dictionary())) for run in runs) / 1024
    return median(times), size


def _rows(store: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(store)) as connection:
        tables = ("runs", "params", "metrics", "tags")
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}
