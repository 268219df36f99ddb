"""A client that never returns ends its process, which the supervisor starts again: nothing else could."""

import subprocess
import sys
import time

import pytest

from tidemill.errors import Unavailable

pytestmark = pytest.mark.process

HUNG = """
import threading, time
from tidemill.log import kafka_client
kafka_client.HANG_SECONDS = 0.4
watchdog = kafka_client.Watchdog()
with watchdog.limit("a poll", 0.1):
    time.sleep(0.1)
time.sleep(0.8)
print("outside of calls it waits for nothing", flush=True)
with watchdog.limit("a commit", 0.1):
    {hang}
print("it came back")
"""
HANGS = {"blocked": "threading.Event().wait(60)", "spinning": "while True: pass"}


@pytest.mark.parametrize("hang", HANGS)
def test_a_call_that_never_returns_ends_the_process(hang: str) -> None:
    """One line that names the call, the exit code for what is away; a call within its time changes nothing."""
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", HUNG.format(hang=HANGS[hang])], check=False, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == Unavailable.exit_code
    assert run.stdout.splitlines() == ["outside of calls it waits for nothing"]
    assert run.stderr.splitlines() == ["tidemill: Kafka's client does not return from a commit: the process is ended"]
    assert time.monotonic() - started < 10.0
