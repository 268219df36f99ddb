"""Who gives way to whom where roles share a machine: processor time, processors, memory. Linux; nothing here needs a right.

Whoever asks waits for the predictor alone, so all others are nicer than it, and what works for minutes (training, copying to
MLflow, an audit) keeps off one processor. Linux takes the priority of reads and writes from the same: from the niceness, and
the idle class for ``SCHED_IDLE``.
"""

import os
import resource
from contextlib import suppress
from pathlib import Path

NICENESS = {"trainer": 10, "tracker": 10, "audit": 10, "recorder": 5, "monitor": 5}
"""None of them is at ``SCHED_IDLE``: they write to the log, and who holds its lock must soon run."""
LONG = ("trainer", "tracker", "audit")
"""What works for minutes at a time."""
OOM_SCORE = 1000
"""The kernel, short of memory, ends these processes before all others."""


def be_nice(role: str) -> None:
    """Make this process, and all that it starts, as nice as its role is."""
    os.nice(NICENESS.get(role, 0))


def leave_a_core(role: str, cores: int) -> None:
    """Bind this process, and all that it starts, to the processors that are for a long role (see ``cores_for``).

    Call it before a library counts the processors to start as many threads.
    """
    if role in LONG:
        chosen = cores_for(os.sched_getaffinity(0), cores)
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError):  # it has ended, or a sandbox leaves no choice
                os.sched_setaffinity(int(thread), chosen)


def cores_for(allowed: set[int], cores: int) -> set[int]:
    """The last ``cores`` of the processors that a process may use; with 0 all but the first, where there are two."""
    wanted = cores or max(1, len(allowed) - 1)
    return set(sorted(allowed)[-wanted:])


def run_when_idle(bytes_max: int = 0) -> None:
    """For a process that only computes: it runs when nobody else wants the processor, and is refused memory beyond
    ``bytes_max`` (0: no limit), not counting files that it maps. Where memory is short it is the first to go.
    """
    os.nice(19)
    with suppress(OSError):  # a sandbox may not know it; the niceness stays
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    if bytes_max:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = bytes_max if hard == resource.RLIM_INFINITY else min(bytes_max, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
