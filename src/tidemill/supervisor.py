"""Roles as processes on one machine: start, watch, restart, stop in order.

One thread turns a loop over the children's output and a wake-up pipe. Each role is a process group of its own, so Ctrl-C
reaches the supervisor alone. A small guard process knows the groups and shares the project's lock: when the supervisor is
killed, the guard kills every group, grandchildren too, and only then is the project free for another ``run``.
"""

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, TextIO

from msgspec.structs import replace

from tidemill.clock import SystemClock
from tidemill.errors import ConfigError
from tidemill.processes import (
    GATE,
    HEALTHY_SECONDS,
    Guard,
    RoleRun,
    present,
    process_mark,
    project_lock,
    run_file,
    write_run,
)

STOP_STAGES = {"monitor": 1, "recorder": 2, "predictor": 3}
"""When a role stops; all others are 0. First who sends work or burns the processor (app, trainer, tracker), then who
decides, then who writes down, and last who answers: users wait for the predictor alone, the others catch up later."""

STAGE_SECONDS = 1.0
"""A stage that has not ended by then is left behind and the next one told: the predictor hears of it after 3 s at most."""

STOP_SECONDS = 4.5
"""Whatever lives then is killed: 5 s in all, with half a second for the kernel. Nothing is lost by it."""

LINE_BYTES_MAX = 65_536
"""A longer line without an end is printed in pieces."""

SAME_STOP_SECONDS = 0.5
"""A second stop within it is the first one's echo (a wrapper that passes Ctrl-C on); a later one kills at once."""

TURN_SECONDS = 0.1
"""How long a death can go unnoticed where its output stays open (a grandchild holds it)."""

LAST_LINE_CHARACTERS = 500
"""Of what a role said last, as much as ``status`` shows."""

_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92)


def backoff(failures: int) -> float:
    """Seconds to wait before the start after so many failures in a row (at least one)."""
    return float(min(10.0, 0.2 * 2 ** min(failures - 1, 10)))


def failures_in_a_row(before: int, lived: float) -> int:
    """With this one, of a role that lived so many seconds: a healthy life forgives the earlier ones."""
    return 1 if lived >= HEALTHY_SECONDS else before + 1


class _Role:
    """A role and its present process, if there is one; ``due`` is when the next one starts.

    ``run`` is what its run file is to say, None for no file, and ``told`` whether it does.
    """

    def __init__(self, name: str, command: Sequence[str], label: str) -> None:
        self.name = name
        self.command = command
        self.label = label
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.due: float | None = None
        self.failures = 0
        self.starts = 0
        self.pending = b""
        self.last_line = ""
        self.leaving = False
        self.run: RoleRun | None = None
        self.told = True


class Supervisor:
    """Runs ``commands`` (role -> argument list, in the order of starting) until told to stop.

    ``run_dir`` holds the lock and one JSON file a role. A role that ends is started again after a wait that doubles from
    0.2 to 10 s, except with exit code 2 at its first start (a wrong setting: everything stops), or with 0 if it is in
    ``may_finish``. ``check`` is called before a restart of all roles; its ``ConfigError`` is printed and the running ones
    stay.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        run_dir: Path,
        *,
        output: TextIO | None = None,
        may_finish: Collection[str] = ("app",),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._output = output or sys.stdout
        self._run_dir = run_dir
        self._may_finish = may_finish
        self._check = check
        self._clock = SystemClock()
        width = max((len(name) for name in commands), default=0)
        colours = self._output.isatty() and "NO_COLOR" not in os.environ
        self._roles = [
            _Role(name, command, _label(name, width, _COLOURS[place % len(_COLOURS)] if colours else None))
            for place, (name, command) in enumerate(commands.items())
        ]
        self._selector = selectors.DefaultSelector()
        self._orders: deque[str] = deque()
        self._bell, self._button = socket.socketpair()
        self._bell.setblocking(False)
        self._button.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._exit_code: int | None = None
        self._farewell = ""
        self._ending_since = 0.0
        self._had_terminal = False

    def run(self) -> int:
        """Start all, watch, and return the exit code once all have ended: 0, or 2 for a wrong setting.

        Raises ``ConfigError`` where another supervisor runs the project. In the main thread SIGINT and SIGTERM stop in
        order (a second one at once), SIGHUP restarts; elsewhere only ``stop`` and ``restart`` do.
        """
        with project_lock(self._run_dir) as lock, Guard(lock) as self._guard, self._signals():
            try:
                for role in self._roles:
                    self._start(role)
                while self._exit_code is None:
                    self._turn(self._patience())
                    self._obey()
                    if all(role.process is None and role.due is None for role in self._roles):
                        self._end(0)
                self._stop_all()
            finally:
                self._kill_all()
        if self._farewell:
            self._say(self._farewell)
        return self._exit_code

    def stop(self) -> None:
        """Ask ``run`` to stop all in order and return; from any thread or signal handler. Asked twice, it kills."""
        self._order("stop")

    def restart(self) -> None:
        """Ask for a restart of every role, one after the other; from any thread or signal handler."""
        self._order("restart")

    def _order(self, order: str) -> None:
        self._orders.append(order)
        with suppress(OSError):
            self._button.send(b"!")

    def _obey(self) -> None:
        while self._orders and self._exit_code is None:
            if self._orders.popleft() == "stop" or self._terminal_is_gone():
                self._end(0)
                return
            self._restart_all()

    def _end(self, code: int, farewell: str = "") -> None:
        if self._exit_code is None:
            self._exit_code, self._farewell = code, farewell

    def _patience(self) -> float:
        waits = [role.due - self._clock.monotonic() for role in self._roles if role.due is not None]
        return max(0.0, min([TURN_SECONDS, *waits]))

    # One turn: print what came, notice who died.

    def _turn(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                self._bell.recv(4096)
            else:
                self._read(key.data)
        for role in self._roles:
            if role.process is not None and role.process.poll() is not None:
                self._bury(role)
            elif role.due is not None and role.due <= self._clock.monotonic() and self._exit_code is None:
                self._start(role)
            elif not role.told:
                self._tell(role, role.run)

    def _read(self, role: _Role) -> bool:
        """Print the whole lines that have come; False when there is no more for now, or ever."""
        stream = _stdout(role)
        try:
            piece = os.read(stream.fileno(), LINE_BYTES_MAX)
        except BlockingIOError:
            return False
        if not piece:
            with suppress(KeyError):
                self._selector.unregister(stream)
            return False
        *lines, role.pending = (role.pending + piece).split(b"\n")
        if len(role.pending) > LINE_BYTES_MAX:
            lines, role.pending = [*lines, role.pending], b""
        for line in lines:
            self._print(role, line)
        return True

    def _print(self, role: _Role, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        role.last_line = text or role.last_line
        self._write(f"{role.label} {text}")

    def _say(self, text: str) -> None:
        self._write(f"tidemill: {text}")

    def _write(self, text: str) -> None:
        """A terminal or pipe that has gone away ends the run in order instead of breaking it."""
        try:
            print(text, file=self._output, flush=True)
        except (OSError, ValueError):
            self._end(0)

    # Life and death of one role.

    def _start(self, role: _Role) -> None:
        """The process first waits at its gate, until the guard knows of it."""
        role.due = None
        role.process = subprocess.Popen(
            ["/bin/sh", "-c", GATE, role.name, *role.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            process_group=0,
        )
        self._guard.watch(role.process.pid)
        with suppress(BrokenPipeError):
            _open_gate(role.process)
        role.started = self._clock.monotonic()
        role.starts += 1
        stream = _stdout(role)
        os.set_blocking(stream.fileno(), False)
        self._selector.register(stream, selectors.EVENT_READ, role)
        pid, said = role.process.pid, role.last_line[:LAST_LINE_CHARACTERS] if role.failures else ""
        self._tell(role, RoleRun(role.name, pid, process_mark(pid), self._clock.now_ms(), role.starts - 1, said))

    def _tell(self, role: _Role, run: RoleRun | None) -> None:
        """Say it in the role's run file; what a full disk does not take is said at a later turn."""
        role.run = run
        if run is None:
            run_file(self._run_dir, role.name).unlink(missing_ok=True)
        role.told = run is None or write_run(self._run_dir, run)

    def _bury(self, role: _Role) -> None:
        """Take note of an ended process, kill what it left behind, and decide what follows."""
        process = present(role.process)
        self._signal(role, signal.SIGKILL)
        while self._read(role):
            pass
        if role.pending:
            self._print(role, role.pending)
            role.pending = b""
        stream = _stdout(role)
        with suppress(KeyError):
            self._selector.unregister(stream)
        stream.close()
        self._guard.forget(process.pid)
        role.process = None
        if not role.leaving:
            self._after_death(role, process.returncode)
        self._tell(role, None if role.due is None else self._waiting(role))

    def _waiting(self, role: _Role) -> RoleRun:
        return replace(
            present(role.run),
            restarts=role.starts,
            last_line=role.last_line[:LAST_LINE_CHARACTERS],
            supervisor=os.getpid(),
            supervisor_mark=process_mark(os.getpid()),
        )

    def _after_death(self, role: _Role, code: int) -> None:
        if code == ConfigError.exit_code and role.starts == 1:
            self._end(code, f"stopped, because {role.name} cannot run: {role.last_line or 'exit code 2'}")
        elif code == 0 and role.name in self._may_finish:
            self._say(f"{role.name} has finished")
        else:
            lived = self._clock.monotonic() - role.started
            role.failures = failures_in_a_row(role.failures, lived)
            wait = backoff(role.failures)
            role.due = self._clock.monotonic() + wait
            self._say(f"{role.name} {_ending(code)} after {lived:.1f} s; starts again in {wait:g} s")

    def _signal(self, role: _Role, number: signal.Signals) -> None:
        if role.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                if number == signal.SIGKILL:
                    os.killpg(role.process.pid, number)
                else:
                    role.process.send_signal(number)

    # All roles.

    def _stop_all(self) -> None:
        """Tell stage after stage, wait a little for each, kill what is left when the time is up."""
        start = self._ending_since = self._clock.monotonic()
        for role in self._roles:
            role.leaving, role.due = True, None
            if role.process is None:
                self._tell(role, None)
        for stage in sorted({_stage(role) for role in self._roles}):
            roles = [role for role in self._roles if _stage(role) == stage]
            for role in roles:
                self._signal(role, signal.SIGTERM)
            self._wait(roles, min(start + STOP_SECONDS, self._clock.monotonic() + STAGE_SECONDS))
        self._wait(self._roles, start + STOP_SECONDS)

    def _wait(self, roles: Sequence[_Role], until: float) -> None:
        """Turn until these roles have ended, time is up, or somebody is impatient."""
        while any(role.process for role in roles) and not self._interrupted():
            left = until - self._clock.monotonic()
            if left <= 0:
                return
            self._turn(min(left, TURN_SECONDS / 5))

    def _interrupted(self) -> bool:
        """A restart breaks off when all is to end; an orderly end when somebody asks for it again."""
        if not self._ending_since:
            return self._exit_code is not None or "stop" in self._orders
        if self._clock.monotonic() < self._ending_since + SAME_STOP_SECONDS:
            self._orders.clear()
        return "stop" in self._orders

    def _kill_all(self) -> None:
        for role in self._roles:
            role.leaving = True
            if role.process is not None:
                self._say(f"{role.name} did not stop; killed")
                self._signal(role, signal.SIGKILL)
        for role in self._roles:
            if role.process is not None:
                role.process.wait()
                self._bury(role)

    def _restart_all(self) -> None:
        """One after the other, in the order of starting, so that most of the roles work at any moment."""
        try:
            self._check()
        except ConfigError as error:
            self._say(f"not restarted: {error}")
            return
        self._say("restarting every role")
        for role in self._roles:
            self._restart_one(role)
            if self._orders or self._exit_code is not None:
                return

    def _restart_one(self, role: _Role) -> None:
        """Role by role this may take a while, so an order to stop breaks it off."""
        role.leaving, role.due = True, None
        self._signal(role, signal.SIGTERM)
        self._wait([role], self._clock.monotonic() + STOP_SECONDS)
        if self._interrupted():
            return
        if role.process is not None:
            self._signal(role, signal.SIGKILL)
            role.process.wait()
            self._bury(role)
        role.leaving, role.failures = False, 0
        self._start(role)

    # What surrounds a run.

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, _: FrameType | None) -> None:
            self._order("restart" if number == signal.SIGHUP else "stop")

        self._had_terminal = sys.stdin is not None and sys.stdin.isatty()
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _terminal_is_gone(self) -> bool:
        """The kernel sends SIGHUP when a terminal closes too: then there is nobody left to run for."""
        return self._had_terminal and not os.isatty(0)


def _stage(role: _Role) -> int:
    return STOP_STAGES.get(role.name.partition("-")[0], 0)


def _label(name: str, width: int, colour: int | None) -> str:
    text = f"{name:<{width}} |"
    return text if colour is None else f"\x1b[{colour}m{text}\x1b[0m"


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _stdout(role: _Role) -> IO[bytes]:
    return present(present(role.process).stdout)


def _open_gate(process: subprocess.Popen[bytes]) -> None:
    with present(process.stdin) as gate:
        gate.write(b"go\n")
