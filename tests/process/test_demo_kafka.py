"""``tidemill demo --kafka``: the same demo, shorter, on a broker that it starts and ends itself."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tidemill.demo.play import Summary

pytestmark = [pytest.mark.process, pytest.mark.kafka, pytest.mark.slow]


def test_the_demo_on_a_broker_of_its_own(tmp_path: Path, kafka_possible: None) -> None:
    """Everything comes, the audit is clean, and the last lines say how the broker is started again."""
    folder, summary = tmp_path / "demo", tmp_path / "summary.json"
    small = ["--messages", "60", "--every", "30", "--trials", "2", "--rate", "4"]
    command = [sys.executable, "-m", "tidemill", "demo", "adult", "--kafka", "--directory", str(folder), *small]
    run = subprocess.run(
        [*command, "--json", str(summary)], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert run.returncode == 0, run.stdout
    found = msgspec.json.decode(summary.read_bytes(), type=Summary)
    assert (found.requests, found.answers, found.dead_letters, found.retrainings) == (60, 60, 0, 2)
    assert (found.lost, found.doubled, found.audit_clean) == (0, 0, True)
    assert f"python -m tidemill.testing.kafka_broker --folder {folder}" in run.stdout
    assert (folder / "kafka" / "data" / "meta.properties").exists()
