"""Ray against the contract of every executor, in a Ray on this machine, and what it promises besides."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from tidemill.errors import ConfigError
from tidemill.executors.base import TrialFailed, Work
from tidemill.learners.base import Learner, Samples, Scored
from tidemill.learners.lightgbm import LightGBM
from tidemill.testing.ending import ending
from tidemill.testing.executor_contract import SMALL, WORK, Execute, ExecutorContract
from tidemill.testing.faults import wait_for
from tidemill.testing.learner_contract import a_table, cross_validated, three_folds

adapter = pytest.importorskip("tidemill.executors.ray", reason="needs tidemill[ray]")
Ray, ray = adapter.Ray, adapter.ray
pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def local() -> Iterator[None]:
    """A Ray on this machine, for all tests of the module; the executors in them find it and leave it. It ends in order."""
    samples = a_table("binary")
    before = psutil.Process().children(recursive=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        executor = Ray(samples, three_folds(samples), WORK, 2)
    with executor:
        processes = set(psutil.Process().children(recursive=True)) - set(before)
        yield
    assert len(processes) > 4
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


class TestRay(ExecutorContract):
    @pytest.fixture
    def execute(self, local: None) -> Execute:
        return Ray  # type: ignore[no-any-return]


def mortal(lives: Path, deaths: int) -> Callable[[], Learner]:
    """Makes a LightGBM whose first trials end its process. Ray sends a class of a function whole, not by its name."""

    class Mortal(LightGBM):
        def cross_validate(self, *arguments: Any) -> Scored:
            with lives.open("ab", buffering=0) as file:
                file.write(b"x")
                if file.tell() <= deaths:
                    os._exit(1)
            return super().cross_validate(*arguments)

    return Mortal


@pytest.mark.parametrize("deaths", [1, 3])
def test_a_trial_whose_worker_dies_is_tried_again(local: None, tmp_path: Path, deaths: int) -> None:
    """Not for ever; the next trial is carried out."""
    samples, lives = a_table("binary"), tmp_path / "lives"
    work = Work({"mortal": mortal(lives, deaths), "lightgbm": LightGBM}, "log_loss", 0, rounds_max=60, patience=10)
    expected = cross_validated(LightGBM(), samples, SMALL)
    with Ray(samples, three_folds(samples), work) as executor:
        if deaths < 3:
            assert executor.evaluate("mortal", SMALL) == expected
        else:
            with pytest.raises(TrialFailed, match="died 3 times"):
                executor.evaluate("mortal", SMALL)
        assert executor.evaluate("lightgbm", SMALL) == expected
    assert lives.stat().st_size == min(deaths + 1, 3)


def greedy() -> Callable[[], Learner]:
    """Makes a LightGBM that takes 800 MB, and finds its samples in memory that all workers of a machine share."""

    class Greedy(LightGBM):
        def cross_validate(self, samples: Samples, *arguments: Any) -> Scored:
            if samples.matrix.flags.writeable or samples.matrix.flags.owndata:
                raise ValueError("these samples are a copy")
            taken = np.ones(10**8)
            return super().cross_validate(samples, *arguments) if taken.all() else Scored([], 0.0, 0)

    return Greedy


@pytest.mark.parametrize("share", [0, 2_000_000_000, 500_000_000])
def test_a_trial_is_refused_memory_beyond_its_share(local: None, share: int) -> None:
    """It fails with the setting's name, and the next trial has all its share."""
    samples = a_table("binary")
    learners: dict[str, Callable[[], Learner]] = {"greedy": greedy(), "lightgbm": LightGBM}
    work = Work(learners, "log_loss", 0, rounds_max=60, patience=10, memory_bytes=2 * share)
    with Ray(samples, three_folds(samples), work, 2) as executor:
        if share == 500_000_000:
            with pytest.raises(TrialFailed, match=r"out of memory \(trainer.memory_gb gives a worker 0.5 GB\)"):
                executor.evaluate("greedy", SMALL)
        else:
            executor.evaluate("greedy", SMALL)
        assert executor.evaluate("lightgbm", SMALL) == cross_validated(LightGBM(), samples, SMALL)


@pytest.mark.parametrize(
    ("work", "text"),
    [
        (Work({}, "log_loss", 0, threads=1000), "has 1000 processors and 0 GB"),
        (Work({}, "log_loss", 0, memory_bytes=10**15), r"has 1 processor and 1e\+06 GB"),
    ],
)
def test_work_for_which_no_machine_has_room_is_refused(local: None, work: Work, text: str) -> None:
    """It would wait for ever."""
    samples = a_table("binary")
    with pytest.raises(ConfigError, match=text):
        Ray(samples, three_folds(samples), work)


@pytest.mark.parametrize(
    ("theirs", "text"),
    [
        ({"tidemill": "0.0.9"}, r"has tidemill 0.0.9, and this one tidemill 1\.1: install the same"),
        ({}, r"has no tidemill, and this one tidemill 1\.1"),
        ({"tidemill": "1.1", "lightgbm": "3.0"}, r"has lightgbm 3.0, and this one lightgbm 4\.0"),
        ({"tidemill": "1.1"}, ""),
    ],
)
def test_machines_with_other_packages_are_refused(
    local: None, monkeypatch: pytest.MonkeyPatch, theirs: dict[str, str], text: str
) -> None:
    """Only tidemill must be everywhere; a learner that a machine lacks fails its trials."""
    owner = os.getpid()
    ours = {"tidemill": "1.1", "lightgbm": "4.0"}
    monkeypatch.setattr(adapter, "_versions", lambda: lambda: ours if os.getpid() == owner else theirs)
    samples = a_table("binary")
    if not text:
        Ray(samples, three_folds(samples), WORK).close()
        return
    with pytest.raises(ConfigError, match=text):
        Ray(samples, three_folds(samples), WORK)


def test_ray_takes_no_signal_of_this_process(local: None) -> None:
    """By default it catches SIGTERM, prints a stack, and leaves a process without its handler when it shuts down."""
    caught = int(re.findall(r"SigCgt:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
    default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert bool(caught >> (signal.SIGTERM - 1) & 1) != default


def start(code: str, **variables: str) -> "subprocess.Popen[str]":
    """Python code in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | variables
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def test_a_cluster_that_cannot_be_reached_is_told_in_a_line() -> None:
    """And soon, where Ray itself would try for minutes; who ever listens there, the process can end."""
    code = """
        import os, time
        from tidemill.errors import TidemillError
        from tidemill.executors import ray
        from tidemill.testing.executor_contract import WORK
        from tidemill.testing.learner_contract import a_table, three_folds
        ray.OPEN_SECONDS = 1
        samples = a_table("binary")
        folds = three_folds(samples)
        for address in input().split():
            os.environ["RAY_ADDRESS"] = address
            started = time.monotonic()
            try:
                ray.Ray(samples, folds, WORK)
            except TidemillError as error:
                print(f"{time.monotonic() - started < 10} {type(error).__name__}: {error}")
    """
    with socket.create_server(("127.0.0.1", 0)) as mute, socket.create_server(("127.0.0.1", 0)) as closed:
        nobody, somebody = (f"127.0.0.1:{server.getsockname()[1]}" for server in (closed, mute))
        closed.close()
        with ending(start(code)) as process:
            told, _ = process.communicate(f"nowhere host:name {nobody} {somebody}\n", timeout=60)
    hint = "it must be HOST:PORT, ray://HOST:PORT, auto or local"
    assert told.splitlines() == [
        f"True ConfigError: RAY_ADDRESS is 'nowhere': {hint}",
        f"True ConfigError: RAY_ADDRESS is 'host:name': {hint}",
        f"True Unavailable: the Ray cluster at {nobody} (RAY_ADDRESS) does not answer: [Errno 111] Connection refused",
        f"True Unavailable: the Ray cluster at {somebody} (RAY_ADDRESS) is not ready within 1 s",
    ]
    assert process.returncode == 0


OWNER = """
    from tidemill.cli.options import exit_on_signals
    from tidemill.executors.ray import Ray
    from tidemill.testing.executor_contract import ENDLESS
    from tidemill.testing.learner_contract import a_table, three_folds
    exit_on_signals()
    samples = a_table("binary", 20000)
    with Ray(samples, three_folds(samples), ENDLESS, 1) as executor:
        executor.evaluate("lightgbm", {})
"""


def descendants(owner: int, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Those of a process that are wanted; Ray's come and go meanwhile."""
    found = []
    for process in psutil.Process(owner).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if wanted(process):
                found.append(process)
    return found


def busy(owner: int) -> list[psutil.Process]:
    """The descendants of a process that carry out a trial."""
    return descendants(owner, lambda process: "ray::_carry_out" in process.name() and process.cpu_times().user > 1)


def test_a_local_ray_ends_with_its_owner_even_by_kill_9() -> None:
    """In the middle of a trial, and with its folder."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, ending(start(OWNER, TMPDIR=folder)) as owner:
        wait_for(lambda: busy(owner.pid), "a busy worker", 300)
        processes = descendants(owner.pid, lambda process: process.name() != "sh")
        owner.kill()
        _, alive = psutil.wait_procs(processes, timeout=15)
        assert not alive
        wait_for(lambda: not os.listdir(folder), "an empty folder", 15)
    assert len(processes) > 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_trials_on_a_cluster_end_with_who_asked_for_them(local: None, number: signal.Signals) -> None:
    """The cluster goes on. Told to exit, the process ends with its own code, and without Ray's stack."""
    address = ray.get_runtime_context().gcs_address
    with ending(start(OWNER, RAY_ADDRESS=address)) as owner:
        wait_for(lambda: busy(os.getpid()), "a busy worker", 300)
        workers = busy(os.getpid())
        owner.send_signal(number)
        _, told = owner.communicate(timeout=30)
    assert owner.returncode == (0 if number == signal.SIGTERM else -number)
    assert told == ""
    _, alive = psutil.wait_procs(workers, timeout=15)
    assert not alive
    assert ray.nodes()[0]["Alive"]
