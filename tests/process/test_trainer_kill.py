"""A real trainer killed with SIGKILL wherever it hurts: the same trials, one decision, one champion, the same bundle."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tidemill.audit import audit
from tidemill.core.inference import Choices
from tidemill.log.base import Message, read_all
from tidemill.messages import JournalEntry, ModelVersion, Retrain, Trial, to_bytes
from tidemill.new_project import init_project
from tidemill.wiring import Wiring

pytestmark = [pytest.mark.process, pytest.mark.slow]

TRIALS = 3
SETTINGS = {"tune.trials": str(TRIALS), "tune.folds": "2", "tune.patience": "5", "tune.rounds_max": "60"}
POINTS = (
    "trainer.recorded:2",
    "trainer.searched",
    "bundle.written",
    "trainer.bundled",
    "trainer.handled",
    "trainer.committed",
)


def make_project(folder: Path) -> Path:
    """A project that has been asked for its first model; everything in it is the same each time."""
    folder.mkdir()
    draw = random.Random(1)
    rows = [
        f"{(age := draw.randint(17, 90))},{draw.choice('abc')},{'yes' if (age > 50) != (draw.random() < 0.1) else 'no'}"
        for _ in range(300)
    ]
    (folder / "people.csv").write_text("age,work,income\n" + "\n".join(rows) + "\n")
    init_project(folder / "people.csv", folder, Choices(target="income"), "people", SETTINGS)
    wiring = Wiring(folder)
    wiring.log.append([Message(wiring.topics.retrain, to_bytes(Retrain("first", "first", 0, 0)), b"first")])
    wiring.close()
    return folder


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.02)


def start(project: Path, point: str = "") -> subprocess.Popen[bytes]:
    """A trainer that leads a process group of its own, so that its children can be found."""
    command = [sys.executable, "-m", "tidemill", "trainer", "--project", str(project)]
    variables = {**os.environ, "TIDEMILL_FAILPOINT": point}
    return subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, start_new_session=True)


def members(group: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def kill(trainer: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the trainer alone; its children must end by themselves."""
    trainer.kill()
    trainer.wait()
    wait_for(lambda: not members(trainer.pid), "the end of a killed trainer's children", 15)


def catches_sigterm(pid: int) -> bool:
    """Whether the process has its handler: before that the signal ends it as the kernel does."""
    found = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


def finish(project: Path) -> str:
    """Let an undisturbed trainer end the work; prove what must hold, and return the champion's bundle."""
    trainer = start(project)
    wiring = Wiring(project)
    try:
        wait_for(lambda: read_all(wiring.log, wiring.topics.journal) or trainer.poll() is not None, "the decision")
        assert trainer.poll() is None
        wait_for(lambda: catches_sigterm(trainer.pid), "the trainer's handler")
        trainer.send_signal(signal.SIGTERM)
        assert trainer.wait(10) == 0
        wait_for(lambda: not members(trainer.pid), "the end of a stopped trainer's children", 15)
        trials = [msgspec.json.decode(record.value, type=Trial) for record in read_all(wiring.log, wiring.topics.trials)]
        assert sorted({trial.number for trial in trials}) == list(range(TRIALS))
        assert len(trials) == TRIALS, "a recorded trial is not tried again"
        (entry,) = [
            msgspec.json.decode(record.value, type=JournalEntry) for record in read_all(wiring.log, wiring.topics.journal)
        ]
        (champion,) = [
            msgspec.json.decode(record.value, type=ModelVersion) for record in read_all(wiring.log, wiring.topics.models)
        ]
        assert (entry.verdict, entry.version, champion.version) == ("promoted", 1, 1)
        assert entry.bundle == champion.bundle
        assert wiring.store.bundles() == [champion.bundle]
        report = audit(wiring.log, wiring.topics, wiring.lake, wiring.store)
        assert report.clean, report.checks
        return champion.bundle
    finally:
        trainer.kill()
        trainer.wait()
        wiring.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundle of a run that nobody killed."""
    return finish(make_project(tmp_path_factory.mktemp("kill") / "undisturbed"))


def test_killed_at_every_step_it_ends_with_the_same_bundle(tmp_path: Path, undisturbed: str) -> None:
    """One project, whose trainer dies at each named place in turn: in mid-search, between search and bundle, around the
    commit.
    """
    project = make_project(tmp_path / "p")
    for point in POINTS:
        trainer = start(project, point)
        try:
            assert trainer.wait(60) == -signal.SIGKILL, point
        finally:
            kill(trainer)
    assert finish(project) == undisturbed


def test_killed_at_random_moments_it_ends_with_the_same_bundle(tmp_path: Path, undisturbed: str) -> None:
    """From the first import to the commit; what it had recorded is not done again."""
    draw = random.Random(3)
    project = make_project(tmp_path / "p")
    for _ in range(3):
        trainer = start(project)
        time.sleep(draw.uniform(1.0, 4.0))
        kill(trainer)
    assert finish(project) == undisturbed


def test_a_trainer_killed_in_a_trial_leaves_no_worker(tmp_path: Path) -> None:
    """Workers notice the death of their owner, even in the middle of a fit."""
    trainer = start(make_project(tmp_path / "p"))
    try:
        wait_for(lambda: len(members(trainer.pid)) > 2, "workers beside the trainer")
    finally:
        kill(trainer)
