"""What works beside the predictor gives way to it: niceness, processors and memory of real processes, as /proc tells."""

import importlib
import math
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import psutil  # type: ignore[import-untyped]
import pytest

import tidemill.wiring
from tidemill.core.folds import make_folds
from tidemill.executors.base import TrialFailed, Work
from tidemill.executors.processes import Processes
from tidemill.learners.base import Learner
from tidemill.log.base import Message, read_all
from tidemill.messages import JournalEntry, Retrain, Trial, to_bytes
from tidemill.plugins import Plugins
from tidemill.priority import OOM_SCORE, cores_for
from tidemill.roles.reading import decoded
from tidemill.testing.faults import quick_project, wait_for
from tidemill.testing.learner_contract import a_table
from tidemill.wiring import Wiring

pytestmark = pytest.mark.process

ENDLESS = {"tune.trials": "1000", "tune.workers": "2", "trainer.memory_gb": "4"}


@contextmanager
def running(project: Path, *command: str, **variables: str) -> Iterator[psutil.Process]:
    """A command of the project, killed afterwards with all that it started."""
    arguments = [sys.executable, "-m", "tidemill", *command, "-p", str(project)]
    process = subprocess.Popen(arguments, env={**os.environ, **variables}, stdout=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def workers(process: psutil.Process) -> list[int]:
    """Its children that have come to rest at the lowest priority."""
    return [child.pid for child in process.children() if os.sched_getscheduler(child.pid) == os.SCHED_IDLE]


def data_limit(pid: int) -> str:
    """The most that it may have of memory of its own, in bytes."""
    found = re.search(r"^Max data size +(\S+)", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_a_predictor_is_left_a_processor_where_there_are_two() -> None:
    """The first of those that this process may use, whatever their numbers; a person's own number holds, up to all."""
    assert cores_for({0, 1, 2, 3}, 0) == {1, 2, 3}
    assert cores_for({4, 6}, 0) == {6}
    assert cores_for({5}, 0) == {5}
    assert cores_for({0, 1, 2, 3}, 2) == {2, 3}
    assert cores_for({0, 1}, 64) == {0, 1}


@pytest.mark.parametrize("command", [["trainer"], ["train"]])
def test_a_training_gives_way(tmp_path: Path, command: list[str]) -> None:
    """As a role and as a command: nice itself, its workers idle and limited, all of them off the predictor's processor."""
    quick_project(tmp_path, "p", ENDLESS)
    wiring = Wiring(tmp_path)
    wiring.log.append([Message(wiring.topics.retrain, to_bytes(Retrain("first", "first", 0, 0)), b"first")])
    wiring.close()
    chosen = cores_for(os.sched_getaffinity(0), 0)
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    with running(tmp_path, *command) as process:
        wait_for(lambda: len(workers(process)) == 2, "two workers", 60)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(19, niceness + 10)
        assert os.sched_getscheduler(process.pid) == os.SCHED_OTHER, "it takes the log's lock: it must not be starved"
        assert {frozenset(os.sched_getaffinity(thread.id)) for thread in process.threads()} == {frozenset(chosen)}
        assert data_limit(process.pid) == "unlimited"
        for worker in workers(process):
            assert os.getpriority(os.PRIO_PROCESS, worker) == 19
            assert os.sched_getaffinity(worker) == chosen
            wait_for(lambda worker=worker: data_limit(worker) == "2000000000", "its limit", 10)  # type: ignore[misc]
            assert Path(f"/proc/{worker}/oom_score_adj").read_text() == f"{OOM_SCORE}\n"


@pytest.mark.parametrize(("role", "more"), [("predictor", 0), ("recorder", 5), ("monitor", 5)])
def test_other_roles_have_all_processors_and_their_niceness(tmp_path: Path, role: str, more: int) -> None:
    """The predictor's is the one that the supervisor has."""
    quick_project(tmp_path, "p", {})
    expected = min(19, os.getpriority(os.PRIO_PROCESS, 0) + more)
    with running(tmp_path, role) as process:
        wait_for(lambda: any(file.path.endswith("log.db") for file in process.open_files()), "the open log", 60)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == expected
        assert os.sched_getaffinity(process.pid) == os.sched_getaffinity(0)


HUNGRY = """
import numpy
from tidemill.learners.lightgbm import LightGBM

class Hungry(LightGBM):
    def cross_validate(self, samples, folds, parameters, *rest):
        eaten = numpy.ones(int(parameters.get("eats", 1_000_000_000)) // 8)
        return super().cross_validate(samples, folds, {"num_leaves": 7}, *rest)

class Clumsy(LightGBM):
    def cross_validate(self, *rest):
        raise RuntimeError("std::bad_alloc")
"""
"""Learners whose trials run out of memory: in Python, with 1 GB unless told otherwise, and in a library in C++."""


@pytest.fixture
def hungry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with them that a worker finds too."""
    (tmp_path / "hungry.py").write_text(HUNGRY)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("hungry")


def small_pool(learner: Callable[[], Learner]) -> Processes:
    """Workers that may take 0.5 GB."""
    samples = a_table("binary")
    folds = make_folds(samples.labels, "binary", 3, "stratified", 0)
    work = Work({"it": learner}, "log_loss", 0, rounds_max=20, patience=5, memory_bytes=500_000_000)
    return Processes(samples, folds, work)


def test_a_trial_that_wants_too_much_memory_fails_and_says_so(hungry: ModuleType) -> None:
    """Its worker is refused the memory, not killed; the next trial and the owner know nothing of it."""
    own = resource.getrlimit(resource.RLIMIT_DATA)
    reason = r"^out of memory \(trainer\.memory_gb gives a worker 0\.5 GB\): .*MemoryError"
    with small_pool(hungry.Hungry) as pool:
        with pytest.raises(TrialFailed, match=reason):
            pool.evaluate("it", {"eats": 1_000_000_000})
        assert math.isfinite(pool.evaluate("it", {"eats": 1_000_000}).score)
    assert resource.getrlimit(resource.RLIMIT_DATA) == own


def test_a_library_that_is_refused_memory_is_understood(hungry: ModuleType) -> None:
    """What C++ calls it, in LightGBM's own error."""
    with small_pool(hungry.Clumsy) as pool, pytest.raises(TrialFailed, match=r"^out of memory \(trainer\.memory_gb"):
        pool.evaluate("it", {})


def test_an_experiment_that_runs_out_of_memory_fails_in_one_line(
    tmp_path: Path, hungry: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer goes on: the trials and the journal say which setting to mend."""
    monkeypatch.setattr(tidemill.wiring, "LEARNERS", Plugins("learner", {"lightgbm": hungry.Hungry}))
    quick_project(tmp_path / "p", "p", {"tune.trials": "2", "trainer.memory_gb": "0.5"})
    wiring, stop = Wiring(tmp_path / "p"), threading.Event()
    try:
        wiring.log.append([Message(wiring.topics.retrain, to_bytes(Retrain("first", "first", 0, 0)), b"first")])
        wiring.trainer(on_decision=lambda entry: stop.set()).run(stop)
        [entry] = [decoded(record, JournalEntry) for record in read_all(wiring.log, wiring.topics.journal)]
        trials = [decoded(record, Trial) for record in read_all(wiring.log, wiring.topics.trials)]
    finally:
        wiring.close()
    assert entry is not None
    assert entry.verdict == "failed"
    assert entry.detail.startswith("all 2 trials failed; the last: out of memory (trainer.memory_gb gives a worker 0.5 GB)")
    assert "\n" not in entry.detail
    assert [trial.error.partition(" (")[0] for trial in trials if trial] == ["out of memory"] * 2
