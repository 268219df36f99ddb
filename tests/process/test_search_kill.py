"""A search in a process of its own, killed with SIGKILL twenty times: no trial is lost, and none is run twice."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tidemill.log.base import Topic
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Topics, Trial
from tidemill.roles.reading import read_trials

pytestmark = [pytest.mark.process, pytest.mark.slow]

KILLS = 20
TRIALS = 60
PATIENCE_SECONDS = 600.0
TOPICS = Topics.of("p")
SEARCHER = """
import os, sys
from pathlib import Path
import msgspec, numpy as np
from tidemill.clock import SystemClock
from tidemill.core.schema import Feature, Schema
from tidemill.core.training_set import Rows
from tidemill.executors.processes import Processes
from tidemill.log.base import Message
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Topics, to_bytes
from tidemill.roles.experiment import Search, find_best, make_executor, prepare
from tidemill.roles.reading import read_trials
from tidemill.settings import Tune
from tidemill.wiring import LEARNERS, PROPOSERS

class Telling(Processes):
    def evaluate(self, learner, parameters, bar=None):
        os.write(begun, msgspec.json.encode(parameters, order="sorted") + b"\\n")
        return super().evaluate(learner, parameters, bar)

def record(trial):
    log.append([Message(topics.trials, to_bytes(trial), f"{trial.experiment}/{trial.number}".encode())])

folder, experiment, rows, trials = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
log, topics = SqliteLog(folder / "log"), Topics.of("p")
begun = os.open(folder / "begun", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
rng = np.random.default_rng(1)
ages, noise = rng.integers(17, 91, rows).tolist(), rng.normal(size=rows).tolist()
labels = ["yes" if age / 40 + more > 1.3 else "no" for age, more in zip(ages, noise, strict=True)]
schema = Schema((Feature("age", "number"),), "income", "binary", ("no", "yes"))
tune = Tune(trials=trials, folds=3, workers=2, patience=20, rounds_max=200)
prepared = prepare(schema, Rows({"age": ages}, labels, list(range(rows))), tune, 0)
plan = Search({"lightgbm": LEARNERS.find("lightgbm")}, PROPOSERS.find("optuna"), Telling, tune, 0, SystemClock())
with make_executor(prepared, plan, 2) as executor:
    find_best(experiment, prepared, plan, read_trials(log, topics), record, executor)
"""


class Place:
    """A folder with a log whose first experiment is over, and the searches that go on in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = SqliteLog(folder / "log")

    def search(self, experiment: str, rows: int, trials: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", SEARCHER, str(self.folder), experiment, str(rows), str(trials)]
        )  # fmt: skip

    def second(self) -> subprocess.Popen[bytes]:
        """More rows, and it remembers the first."""
        return self.search("second", 4000, TRIALS)

    def trials(self) -> list[Trial]:
        """The second's, in the order of their numbers; none has two records."""
        records = [trial for trial in read_trials(self.log, TOPICS) if trial.experiment == "second"]
        return sorted(records, key=lambda trial: trial.number)

    def begun(self) -> list[bytes]:
        """The points whose work was begun, in order, those of the first experiment too."""
        return (self.folder / "begun").read_bytes().splitlines()


def found(trials: list[Trial]) -> list[tuple[object, ...]]:
    """All that a trial says but for its seconds and its time."""
    return [(one.number, one.parameters, one.score, one.fold_scores, one.rounds, one.pruned) for one in trials]


def test_twenty_kills_lose_no_trial_and_run_none_twice(tmp_path: Path) -> None:
    """At any point from its start on. It ends with the very trials of a search that nobody killed; a point whose trial was
    recorded is never begun again.
    """
    draw = random.Random(5)
    (tmp_path / "killed").mkdir()
    killed = Place(tmp_path / "killed")
    killed.log.create([Topic(TOPICS.trials)])
    assert killed.search("first", 3000, 8).wait(60) == 0
    killed.log.close()
    shutil.copytree(tmp_path / "killed", tmp_path / "undisturbed")
    undisturbed, killed = Place(tmp_path / "undisturbed"), Place(tmp_path / "killed")
    assert undisturbed.second().wait(120) == 0
    expected = undisturbed.trials()
    assert len(expected) == TRIALS

    kills, deadline = 0, time.monotonic() + PATIENCE_SECONDS
    while kills < KILLS:
        recorded = {msgspec.json.encode(trial.parameters, order="sorted") for trial in killed.trials()}
        begun = len(killed.begun())
        searcher = killed.second()
        wanted = len(recorded) + draw.randint(0, 2)
        while len(killed.trials()) < wanted:
            assert searcher.poll() is None, "it ended before it was killed often enough"
            assert time.monotonic() < deadline, f"{kills} kills, {len(killed.trials())} trials"
            time.sleep(0.02)
        time.sleep(draw.uniform(0.0, 0.1 if wanted > len(recorded) else 1.5))
        searcher.kill()
        assert searcher.wait() == -signal.SIGKILL
        kills += 1
        assert not recorded & set(killed.begun()[begun:])
    assert killed.second().wait(120) == 0
    assert found(killed.trials()) == found(expected)
    undisturbed.log.close()
    killed.log.close()
