"""Every executor against the contract, and what worker processes on this machine promise besides."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tidemill.executors.base import TrialFailed
from tidemill.executors.processes import Processes
from tidemill.testing.ending import ending
from tidemill.testing.executor_contract import WORK, Execute, ExecutorContract
from tidemill.testing.faults import wait_for
from tidemill.testing.learner_contract import a_table, three_folds


class TestProcesses(ExecutorContract):
    @pytest.fixture
    def execute(self) -> Execute:
        return Processes


@pytest.mark.parametrize(("point", "dies"), [("tuner.tried:2", False), ("tuner.tried:1", True)])
def test_a_killed_worker_is_replaced_and_its_trial_tried_again(
    monkeypatch: pytest.MonkeyPatch, point: str, dies: bool
) -> None:
    """Workers that die at every second trial cost no trial; one that dies every time fails its trial."""
    monkeypatch.setenv("TIDEMILL_FAILPOINT", point)
    samples = a_table("binary")
    with Processes(samples, three_folds(samples), WORK) as pool:
        if dies:
            with pytest.raises(TrialFailed, match="died 3 times"):
                pool.evaluate("lightgbm", {})
            return
        scores = [pool.evaluate("lightgbm", {"num_leaves": leaves}).score for leaves in (3, 7, 3, 7)]
    assert scores[:2] == scores[2:]


def test_workers_end_with_their_owner_even_by_kill_9(tmp_path: Path) -> None:
    """In the middle of a trial too; the files that they read are removed. No worker runs the owner's script, which has no
    guard.
    """
    code = """
        from tidemill.executors.processes import Processes
        from tidemill.testing.executor_contract import ENDLESS
        from tidemill.testing.learner_contract import a_table, three_folds
        samples = a_table("binary", 20000)
        pool = Processes(samples, three_folds(samples), ENDLESS, 2)
        print("ready", flush=True)
        pool.evaluate("lightgbm", {})
    """
    script = tmp_path / "owner.py"
    script.write_text(textwrap.dedent(code))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with ending(subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment)) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        workers = psutil.Process(owner.pid).children(recursive=True)
        busy = lambda: any(worker.num_threads() > 1 and worker.cpu_times().user > 1 for worker in workers)  # noqa: E731
        wait_for(busy, "a busy worker", 300)
        owner.kill()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert len(gone) >= 2
    assert not list(tmp_path.glob("tidemill-trials-*"))
