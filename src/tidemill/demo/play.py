"""Plays a demo: starts ``tidemill run``, watches until all has come, stops it, audits, and sums up."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct
from rich.console import Console

from tidemill.audit import Report, audit
from tidemill.demo.plans import Plan, Stage
from tidemill.demo.view import open_view
from tidemill.demo.watch import Follower, Watch
from tidemill.errors import TidemillError
from tidemill.log.base import lag
from tidemill.wiring import Wiring

QUIET_SECONDS_MAX = 240.0
"""A demo that shows nothing new for so long has failed."""
STOP_SECONDS_MAX = 15.0


class DemoFailed(TidemillError):
    """The demo did not come to its end; the text says where it stood."""


class Summary(Struct, frozen=True):
    """What a demo came to. ``--json FILE`` writes it."""

    demo: str
    requests: int
    answers: int
    dead_letters: int
    retrainings: int
    bundles: int
    bundles_among_answers: int
    versions: list[int]
    mlflow_experiments: int
    lost: int
    doubled: int
    audit_clean: bool
    seconds: float
    latency_ms_median: float


def play(plan: Plan, stage: Stage, rate: float, console: Console) -> tuple[Summary, Report]:
    """Run it to its end. Raises ``DemoFailed`` where it does not get there."""
    started = time.monotonic()
    wiring = Wiring(stage.directory)
    try:
        watch = Watch(wiring.topics)
        with _running(stage, plan, rate) as process, open_view(console, plan, stage) as view:
            _watch(wiring, watch, stage, process, view.show)
        report = audit(wiring.log, wiring.topics, wiring.lake, wiring.store)
        return _summary(plan, stage, wiring, watch, report, time.monotonic() - started), report
    finally:
        wiring.close()


@contextmanager
def _running(stage: Stage, plan: Plan, rate: float) -> Iterator[subprocess.Popen[bytes]]:
    """``tidemill run`` with the stream as its app; its output goes to a file."""
    options = f"--rate {rate} {plan.replay_options}"
    command = [sys.executable, "-m", "tidemill", "run", "--project", str(stage.directory)]
    command += ["--replay", str(stage.stream), "--replay-options", options]
    with _log_file(stage).open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()


def _log_file(stage: Stage) -> Path:
    return stage.directory / "run.log"


def _watch(
    wiring: Wiring, watch: Watch, stage: Stage, process: subprocess.Popen[bytes], show: Callable[[Watch], None]
) -> None:
    follower = Follower(wiring.log, watch)
    pause = threading.Event()
    heard = time.monotonic()
    while not _over(wiring, watch, stage):
        if follower.step():
            heard = time.monotonic()
            show(watch)
        if process.poll() is not None:
            raise DemoFailed(f"tidemill run ended with {process.returncode}; its last line: {_last_line(stage)}")
        if time.monotonic() - heard > QUIET_SECONDS_MAX:
            raise DemoFailed(f"nothing new for {QUIET_SECONDS_MAX:.0f} s: {_standing(watch, stage)}; see {_log_file(stage)}")
        pause.wait(0.1)


def _over(wiring: Wiring, watch: Watch, stage: Stage) -> bool:
    """Everything asked is answered, written, joined and copied, and every retraining has its verdict."""
    log, topics = wiring.log, wiring.topics
    if watch.answers + watch.dead_letters < stage.requests or watch.outcomes < stage.outcomes:
        return False
    if len(watch.finished() - {"first"}) < stage.retrainings:
        return False
    written = lag(log, "recorder", [topics.requests, topics.predictions, topics.outcomes, topics.dead_letters])
    copied = lag(log, "tracker", [topics.trials, topics.journal, topics.models])
    return not any(written.values()) and not any(copied.values()) and wiring.lake.count("observations") >= stage.outcomes


def _standing(watch: Watch, stage: Stage) -> str:
    return (
        f"{watch.answers} of {stage.requests} answers, {watch.outcomes} of {stage.outcomes} outcomes,"
        f" verdicts {sorted(watch.finished())}"
    )


def _last_line(stage: Stage) -> str:
    lines = _log_file(stage).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "none"


def _summary(plan: Plan, stage: Stage, wiring: Wiring, watch: Watch, report: Report, seconds: float) -> Summary:
    tracker = wiring.tracker()
    latencies = sorted(watch.latencies_ms)
    return Summary(
        demo=plan.name,
        requests=stage.requests,
        answers=report.answers,
        dead_letters=report.dead_letters,
        retrainings=report.retrainings,
        bundles=report.bundles,
        bundles_among_answers=len(watch.bundles),
        versions=report.versions,
        mlflow_experiments=tracker.experiments() if tracker else 0,
        lost=report.lost,
        doubled=report.doubled,
        audit_clean=report.clean,
        seconds=round(seconds, 1),
        latency_ms_median=float(latencies[len(latencies) // 2]) if latencies else 0.0,
    )
