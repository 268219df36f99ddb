"""The main job: ``tidemill demo``, with every role killed once in the middle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tidemill.demo.play import Summary
from tidemill.processes import read_runs

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.alone]
ROLES = ["predictor", "recorder", "monitor", "trainer", "tracker", "app"]
BRISK = ["--rate", "2", "--trials", "5"]
"""The demo's own pace takes 160 s for the 200 requests, this one 100."""
PAUSE = 11.0
"""Seconds between two kills: the six of them fall into the time in which the demo sends its requests."""


def test_the_demo_comes_true_though_every_role_is_killed(tmp_path: Path) -> None:
    """200 answers, 4 retrainings, 5 bundles, 5 MLflow experiments, 4 hashes or more among the answers, nothing lost or
    doubled, the audit clean: after a kill -9 of each role while requests flow.
    """
    folder, summary = tmp_path / "demo", tmp_path / "summary.json"
    command = [sys.executable, "-m", "tidemill", "demo", "adult", "--directory", str(folder), *BRISK]
    command += ["--json", str(summary)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        try:
            killed = kill_each_role(folder, demo)
            printed, _ = demo.communicate(timeout=600)
        finally:
            demo.terminate()
    assert demo.returncode == 0, printed
    assert killed == ROLES
    found = msgspec.json.decode(summary.read_bytes(), type=Summary)
    assert (found.answers, found.dead_letters, found.retrainings, found.bundles) == (200, 0, 4, 5)
    assert found.mlflow_experiments == 5
    assert found.bundles_among_answers >= 4
    assert len(found.versions) >= 4
    assert (found.lost, found.doubled, found.audit_clean) == (0, 0, True)
    assert "tidemill status" in printed


def kill_each_role(folder: Path, demo: subprocess.Popen[str]) -> list[str]:
    """One after the other, from the first swap on; the roles that were alive when it was their turn."""
    wait_for_line(folder / "run.log", "model_swapped", demo)
    killed = []
    for role in ROLES:
        time.sleep(PAUSE)
        if demo.poll() is not None:
            break
        run = next((run for run in read_runs(folder / "run") if run.role == role), None)
        if run is not None:
            os.kill(run.pid, signal.SIGKILL)
            killed.append(role)
    return killed


def wait_for_line(file: Path, text: str, demo: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not (file.exists() and text in file.read_text()):
        assert demo.poll() is None, demo.communicate()[0]
        assert time.monotonic() < deadline, f"no {text} in {file}"
        time.sleep(0.5)
