"""How long a start takes, and what a replica holds: ``tidemill --help``, and the predictor up to its first answer.

Milliseconds and megabytes are medians; a start is warm, its files are in the page cache. The machine may be shared, so the
processor's time stands beside the clock's.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import psutil  # type: ignore[import-untyped]
from msgspec import Struct

from bench.stage import cpu_seconds, end_of, requests, wait_for
from tidemill.wiring import Wiring


class Start(Struct, frozen=True):
    """``first_answer``: from the start of the process to when the answer to a request that waited was seen. ``rss`` counts
    the memory that a replica shares in full, ``pss`` its part of it.
    """

    help_ms: float
    help_cpu_ms: float
    first_answer_ms: float
    first_answer_cpu_ms: float
    rss_mb: float
    pss_mb: float


class _Replica(Struct, frozen=True):
    """One start of the predictor."""

    ms: float
    cpu_ms: float
    rss_mb: float
    pss_mb: float


def measure(wiring: Wiring, helps: int = 10, starts: int = 5) -> Start:
    """On a project with a champion whose predictor does not run."""
    pages = [_help() for _ in range(helps + 1)][1:]
    replicas = [_predictor(wiring) for _ in range(starts + 1)][1:]
    return Start(
        help_ms=statistics.median(wall for wall, _ in pages),
        help_cpu_ms=statistics.median(cpu for _, cpu in pages),
        first_answer_ms=_median(replicas, lambda one: one.ms),
        first_answer_cpu_ms=_median(replicas, lambda one: one.cpu_ms),
        rss_mb=_median(replicas, lambda one: one.rss_mb),
        pss_mb=_median(replicas, lambda one: one.pss_mb),
    )


def _median(replicas: list[_Replica], part: Callable[[_Replica], float]) -> float:
    return statistics.median(part(one) for one in replicas)


def _tidemill(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "tidemill", *arguments], stdout=subprocess.DEVNULL)


def _help() -> tuple[float, float]:
    """Milliseconds by the clock, and of the processor."""
    begin = time.monotonic()
    process = _tidemill("--help")
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    process.returncode = 0
    return 1000 * (time.monotonic() - begin), 1000 * (used.ru_utime + used.ru_stime)


def _predictor(wiring: Wiring) -> _Replica:
    wiring.log.append(requests(wiring, f"start-{time.monotonic_ns()}", 1))
    before = end_of(wiring, wiring.topics.predictions)
    begin = time.monotonic()
    process = _tidemill("predictor", "--project", str(wiring.configuration.root))
    try:
        answered = wait_for(lambda: end_of(wiring, wiring.topics.predictions) > before, pause=0.002)
        cpu_ms, held = 1000 * cpu_seconds(process.pid), psutil.Process(process.pid).memory_full_info()
        return _Replica(1000 * (answered - begin), cpu_ms, held.rss / 2**20, held.pss / 2**20)
    finally:
        process.terminate()
        process.wait()
