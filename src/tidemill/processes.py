"""A project's processes: the lock that one supervisor holds, what runs, and the guard that outlives it."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from tidemill.clock import SystemClock
from tidemill.errors import Broken, ConfigError

Thing = TypeVar("Thing")

GATE = 'read -r go && exec "$@" </dev/null'
"""A shell that waits for a line before it becomes what it is to run: without it (who starts it died) nothing runs."""

GUARD_SECONDS_MAX = 3.0
"""How long a new supervisor waits for a dead one's guard, which gives up after 2 s."""

HEALTHY_SECONDS = 30.0
"""A role that lived so long starts again with the shortest wait, and what ended the one before is past."""

# A killed role may stay a zombie for as long as the machine's first process does not collect it: that is an end too.
_GUARD = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
groups = set()
for line in iter(sys.stdin.buffer.readline, b""):
    word, group = line.split()
    (groups.add if word == b"watch" else groups.discard)(int(group))
until = time.monotonic() + 2
while groups and time.monotonic() < until:
    for group in list(groups):
        try:
            os.killpg(group, signal.SIGKILL)
            with open("/proc/%d/stat" % group, "rb") as stat:
                ended = stat.read().rpartition(b")")[2].split()[0] == b"Z"
        except OSError:
            ended = True
        if ended:
            groups.discard(group)
    time.sleep(0.01)
"""


class RoleRun(Struct, frozen=True):
    """What ``run/<role>.json`` tells others about a role; ``mark`` tells a process from a later one of its pid.

    ``last_line`` is what the process said last that ended by itself, if one did. While the role waits for its restart,
    ``pid`` is that process, and ``supervisor`` the one that will start it.
    """

    role: str
    pid: int
    mark: str
    started_at: int
    restarts: int
    last_line: str = ""
    supervisor: int = 0
    supervisor_mark: str = ""


def run_file(run_dir: Path, role: str) -> Path:
    """Where a role's ``RoleRun`` stands while it runs or waits for its restart."""
    return run_dir / f"{role}.json"


def write_run(run_dir: Path, run: RoleRun) -> bool:
    """Whole or not at all: readers never see half a file. A full disk leaves it out (it only tells ``status``): False."""
    path = run_file(run_dir, run.role)
    draft = path.with_suffix(".draft")
    try:
        draft.write_bytes(msgspec.json.encode(run))
        draft.replace(path)
    except OSError:
        return False
    return True


def read_runs(run_dir: Path) -> list[RoleRun]:
    """The roles that a supervisor started in this project and did not stop, by name; dead ones may be among them."""
    runs = []
    for path in sorted(run_dir.glob("*.json")):
        with suppress(OSError, msgspec.DecodeError):
            runs.append(msgspec.json.decode(path.read_bytes(), type=RoleRun))
    return runs


def process_mark(pid: int) -> str:
    """When the kernel started the process, in its own ticks; empty for a dead one and where there is no /proc."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""


def is_alive(run: RoleRun) -> bool:
    """Whether the very process that the file speaks of still runs."""
    return not run.supervisor and _lives(run.pid, run.mark)


def is_restarting(run: RoleRun) -> bool:
    """Whether the role has ended, and there is still a supervisor that will start it again."""
    return run.supervisor > 0 and _lives(run.supervisor, run.supervisor_mark)


def _lives(pid: int, mark: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not mark or process_mark(pid) == mark


@contextmanager
def project_lock(run_dir: Path) -> Iterator[int]:
    """Hold the project's lock, an open file: it is free again once every process that has it open closes it or dies.

    Raises ``ConfigError`` where another supervisor holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(run_dir / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(lock)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _take(lock: int) -> None:
    """The lock of a killed supervisor is free as soon as its guard has killed the roles: wait for that."""
    clock = SystemClock()
    until = clock.monotonic() + GUARD_SECONDS_MAX
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 20, 0).decode() or "0"
            if process_mark(int(owner)) or clock.monotonic() > until:
                raise ConfigError(f"this project runs already (process {owner}); stop that first") from None
            clock.sleep(0.02)


class Guard:
    """A tiny process that shares the lock and, when this one dies, kills the process groups it was told of."""

    def __init__(self, lock: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[lock],
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        """Kill this group too."""
        self._tell("watch", group)

    def forget(self, group: int) -> None:
        """It has ended: its number may soon be another's."""
        self._tell("forget", group)

    def _tell(self, word: str, group: int) -> None:
        """A guard that was killed is missed only if this process is killed too."""
        with suppress(BrokenPipeError):
            pipe = present(self._process.stdin)
            pipe.write(f"{word} {group}\n".encode())
            pipe.flush()

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            present(self._process.stdin).close()
        self._process.wait()


def present(value: Thing | None) -> Thing:
    """The value, which is there whenever this is called."""
    if value is None:
        raise Broken("the supervisor lost track of a process")
    return value
