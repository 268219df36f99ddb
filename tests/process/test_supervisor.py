"""The supervisor over real processes: restart, backoff, stop in order, no orphans, one run a project."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tidemill.processes import RoleRun, is_alive, is_restarting, read_runs, write_run
from tidemill.supervisor import STOP_SECONDS, Supervisor, backoff, failures_in_a_row

pytestmark = pytest.mark.process

DRIVER = """
import json, sys
from pathlib import Path
from tidemill.errors import TidemillError
from tidemill.supervisor import Supervisor

def check():
    from tidemill.errors import ConfigError
    if Path(sys.argv[1], "wrong").exists():
        raise ConfigError("tune.trials: is wrong")

try:
    sys.exit(Supervisor(json.loads(sys.argv[2]), Path(sys.argv[1]), check=check).run())
except TidemillError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""

STEADY = """
import os, signal, sys, time
def leave(*_):
    print("leaving", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
print("up", os.getpid(), flush=True)
while True:
    time.sleep(0.05)
"""

DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: time.sleep(1)"
)

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
print("up", child.pid, flush=True)
time.sleep(600)
"""


def script(text: str) -> list[str]:
    """A role: a bare interpreter with this program."""
    return [sys.executable, "-S", "-c", text]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Until the condition holds; the bound only ends a test that would hang."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """No such process, or a zombie whose parent has not yet noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Run:
    """A supervisor in a process of its own, and the lines that it printed."""

    def __init__(self, run_dir: Path, commands: dict[str, list[str]]) -> None:
        self.run_dir = run_dir
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(run_dir), json.dumps(commands)],
            stdout=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def said(self, text: str) -> int:
        return sum(text in line for line in list(self.lines))

    def wait_until_said(self, text: str, times: int = 1) -> None:
        wait_for(lambda: self.said(text) >= times, f"{times} x {text!r} in {self.lines}")

    def roles(self) -> dict[str, RoleRun]:
        return {run.role: run for run in read_runs(self.run_dir)}

    def ended(self) -> int:
        code = self.process.wait(timeout=20)
        self._thread.join(timeout=20)
        return code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(**commands: list[str]) -> Run:
        runs.append(Run(tmp_path / "run", commands))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.wait()


def test_output_lines_carry_their_role(start: Callable[..., Run]) -> None:
    """Each line is prefixed with the role, those of stderr and an unfinished last one too; a finished app is not dead."""
    run = start(app=script("import sys; print('one'); print('two', file=sys.stderr); print('é end', end='')"))
    assert run.ended() == 0
    assert run.lines == ["app | one", "app | two", "app | é end", "tidemill: app has finished"]


def test_a_killed_role_starts_again(start: Callable[..., Run]) -> None:
    """kill -9 of one role restarts it and leaves the other alone; the run file counts it."""
    run = start(predictor=script(STEADY), recorder=script(STEADY))
    run.wait_until_said("up", times=2)
    before = run.roles()
    os.kill(before["predictor"].pid, signal.SIGKILL)
    run.wait_until_said("up", times=3)
    after = run.roles()
    assert run.said("predictor was killed by SIGKILL after") == 1
    assert (after["predictor"].restarts, after["recorder"]) == (1, before["recorder"])
    assert not is_alive(before["predictor"])
    assert is_alive(after["predictor"])


def test_what_a_killed_role_started_dies_with_it(start: Callable[..., Run]) -> None:
    """A role's own worker process does not outlive it, so the restarted role finds no rival."""
    run = start(trainer=script(PARENT))
    run.wait_until_said("up")
    worker = int(run.lines[0].split()[-1])
    os.kill(run.roles()["trainer"].pid, signal.SIGKILL)
    run.wait_until_said("up", times=2)
    wait_for(lambda: gone(worker), "the worker's end")


def test_a_crash_loop_waits_longer_each_time(start: Callable[..., Run]) -> None:
    """Waits double from 0.2 s; a role that ends with 0 without being one that may finish counts as dead."""
    run = start(monitor=script("pass"), tracker=script("raise SystemExit(3)"))
    for wait in ("0.2", "0.4", "0.8"):
        run.wait_until_said("monitor ended with exit code 0 after")
        run.wait_until_said(f"starts again in {wait} s", times=2)
    assert run.said("tracker ended with exit code 3") >= 3


def test_a_role_that_waits_for_its_restart_is_told(start: Callable[..., Run]) -> None:
    """Its run file says so, with what it said last, for as long as there is a supervisor to start it."""
    failing = "print('one'); print('topic x, offset 5: damaged'); raise SystemExit(4)"
    run = start(predictor=script(STEADY), monitor=script(failing))
    run.wait_until_said("starts again in 1.6 s")
    wait_for(lambda: is_restarting(run.roles()["monitor"]), "the run file")
    role = run.roles()["monitor"]
    assert (is_alive(role), role.restarts, role.last_line) == (False, 4, "topic x, offset 5: damaged")
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    assert not is_restarting(run.roles()["monitor"])


def test_a_role_that_waits_leaves_no_run_file(start: Callable[..., Run]) -> None:
    """Stopped in order, nothing is left that would tell of it."""
    run = start(monitor=script("raise SystemExit(4)"))
    run.wait_until_said("starts again in 0.8 s")
    run.process.terminate()
    assert run.ended() == 0
    assert run.roles() == {}


def test_what_a_full_disk_left_out_is_told_later(start: Callable[..., Run], tmp_path: Path) -> None:
    """Once there is space again, ``status`` knows of every role that was started meanwhile."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "predictor.draft").mkdir()  # as good as a full disk: nothing can be written there
    run = start(predictor=script(STEADY))
    run.wait_until_said("up")
    assert run.roles() == {}
    (tmp_path / "run" / "predictor.draft").rmdir()
    wait_for(run.roles, "the run file")
    assert is_alive(run.roles()["predictor"])


def test_backoff_and_its_forgiveness() -> None:
    """0.2 s doubling to 10 s at most, and back to 0.2 s after thirty seconds of life."""
    assert [backoff(count) for count in (1, 2, 3, 6, 7, 1000)] == [0.2, 0.4, 0.8, 6.4, 10.0, 10.0]
    assert (failures_in_a_row(5, 29.9), failures_in_a_row(5, 30.0)) == (6, 1)


def test_a_wrong_setting_stops_everything(start: Callable[..., Run]) -> None:
    """Exit code 2 is not tried again: the others stop in order, the role's own line comes last, the code is 2."""
    run = start(predictor=script(STEADY), monitor=script("import sys; sys.exit(print('no such metric: f2') or 2)"))
    assert run.ended() == 2
    assert run.lines[-1] == "tidemill: stopped, because monitor cannot run: no such metric: f2"
    assert run.roles() == {}


def test_a_setting_that_goes_wrong_later_stops_its_role_only(start: Callable[..., Run], tmp_path: Path) -> None:
    """Somebody edits a file while a role starts again: it waits and is tried again, and serves once the file is right."""
    good = tmp_path / "good"
    good.touch()
    refused = f"if not os.path.exists({str(good)!r}): sys.exit(print('no such metric: f2') or 2)"
    run = start(predictor=script(STEADY), monitor=script(f"import os, sys\n{refused}\n{STEADY}"))
    run.wait_until_said("up", times=2)
    good.unlink()
    os.kill(run.roles()["monitor"].pid, signal.SIGKILL)
    run.wait_until_said("no such metric: f2", times=2)
    assert run.process.poll() is None
    assert run.roles()["predictor"].restarts == 0
    good.touch()
    wait_for(lambda: is_alive(run.roles()["monitor"]), "the monitor")
    run.process.send_signal(signal.SIGTERM)
    assert run.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_stop_in_order(start: Callable[..., Run], number: signal.Signals) -> None:
    """One signal: app and trainer leave first, then monitor, recorder, predictor; exit code 0, nothing left over."""
    names = ("predictor", "recorder", "monitor", "trainer", "app")
    run = start(**{name: script(STEADY) for name in names})
    run.wait_until_said("up", times=5)
    pids = [role.pid for role in run.roles().values()]
    os.kill(run.process.pid, number)
    assert run.ended() == 0
    order = [line.split()[0] for line in run.lines if "leaving" in line]
    assert sorted(order[:2]) == ["app", "trainer"]
    assert order[2:] == ["monitor", "recorder", "predictor"]
    assert run.roles() == {}
    assert all(map(gone, pids))
    assert run.said("interrupted") == 0


def test_a_deaf_role_is_killed_in_time(start: Callable[..., Run]) -> None:
    """A role that ignores SIGTERM holds up nobody: the others leave in order meanwhile, and it is killed within 5 s."""
    run = start(predictor=script(STEADY), trainer=script(DEAF))
    run.wait_until_said("up", times=2)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.process.wait(timeout=STOP_SECONDS + 3) == 0
    run.ended()
    assert run.lines[-1] == "tidemill: trainer did not stop; killed"
    assert run.said("leaving") == 1


def test_a_second_stop_does_not_wait(start: Callable[..., Run]) -> None:
    """Ctrl-C again, once the first has been seen at work, kills what is left."""
    run = start(trainer=script(DEAF), app=script(STEADY))
    run.wait_until_said("up", times=2)
    os.kill(run.process.pid, signal.SIGINT)
    run.wait_until_said("leaving")
    begin = time.monotonic()
    while run.process.poll() is None and time.monotonic() < begin + 4:
        os.kill(run.process.pid, signal.SIGINT)
        time.sleep(0.1)
    assert run.ended() == 0
    assert run.said("trainer did not stop; killed") == 1


def test_a_killed_supervisor_leaves_no_orphan(start: Callable[..., Run]) -> None:
    """kill -9 of the supervisor ends its roles, deaf ones and their children too, and frees the project."""
    run = start(predictor=script(STEADY), trainer=script(PARENT), recorder=script(DEAF))
    run.wait_until_said("up", times=3)
    pids = [role.pid for role in run.roles().values()]
    pids.append(next(int(line.split()[-1]) for line in run.lines if line.startswith("trainer")))
    os.kill(run.process.pid, signal.SIGKILL)
    wait_for(lambda: all(map(gone, pids)), "the end of every role")
    run.process.wait()
    again = start(app=script("print('here')"))
    assert again.ended() == 0
    assert again.said("app | here") == 1


def test_a_supervisor_killed_while_it_starts_leaves_no_orphan(start: Callable[..., Run], tmp_path: Path) -> None:
    """At whatever point of starting it is killed, no role goes on without it: each waits until the guard knows it."""
    for number in range(8):
        note = tmp_path / f"pids{number}"
        program = f"import os, time\nopen({str(note)!r}, 'a').write(f'{{os.getpid()}} ')\ntime.sleep(600)"
        run = start(**{f"role{place}": script(program) for place in range(4)})
        wait_for((tmp_path / "run" / "role0.json").exists, "the first role")
        time.sleep(0.002 * number)
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        start().ended()  # takes the lock, so the guard has ended
        pids = [int(pid) for pid in note.read_text().split()] if note.exists() else []
        wait_for(lambda pids=pids: all(map(gone, pids)), "the end of every role")  # type: ignore[misc]
        for path in (tmp_path / "run").glob("*.json"):
            path.unlink()


def test_a_second_run_is_refused(start: Callable[..., Run]) -> None:
    """Another run of the same project ends with one line and code 2; the first does not notice."""
    first = start(predictor=script(STEADY))
    first.wait_until_said("up")
    second = start(predictor=script(STEADY))
    assert second.ended() == 2
    assert second.lines == [f"this project runs already (process {first.process.pid}); stop that first"]
    assert first.process.poll() is None


def test_sighup_restarts_every_role_in_order(start: Callable[..., Run], tmp_path: Path) -> None:
    """Each role leaves and starts before the next one leaves; a wrong setting keeps the running ones."""
    run = start(predictor=script(STEADY), recorder=script(STEADY))
    run.wait_until_said("up", times=2)
    before = run.roles()
    os.kill(run.process.pid, signal.SIGHUP)
    run.wait_until_said("up", times=4)
    after = run.roles()
    assert all(after[name].pid != before[name].pid for name in before)
    leaving = [line.split()[0] for line in run.lines if "leaving" in line]
    assert leaving == ["predictor", "recorder"]
    assert run.said("starts again") == 0

    (tmp_path / "run" / "wrong").touch()
    os.kill(run.process.pid, signal.SIGHUP)
    run.wait_until_said("not restarted: tune.trials: is wrong")
    assert run.roles() == after


def test_stop_from_another_thread(tmp_path: Path) -> None:
    """Outside the main thread there are no signal handlers; ``stop`` ends the run all the same."""
    with (tmp_path / "output").open("w+") as output:
        supervisor = Supervisor({"predictor": script(STEADY)}, tmp_path / "run", output=output)
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(supervisor.run()))
        thread.start()
        wait_for(lambda: "up" in (tmp_path / "output").read_text(), "the role")
        supervisor.stop()
        thread.join(timeout=20)
        assert codes == [0]
        assert "leaving" in (tmp_path / "output").read_text()


def test_output_that_goes_away_ends_the_run(start: Callable[..., Run]) -> None:
    """When the pipe that it prints to is closed, the supervisor stops its roles in order instead of breaking."""
    run = start(predictor=script(STEADY.replace("time.sleep(0.05)", "time.sleep(0.05); print('on')")))
    run.wait_until_said("on")
    pid = run.roles()["predictor"].pid
    closing = run.process.stdout
    assert closing is not None
    os.dup2(os.open(os.devnull, os.O_RDONLY), closing.fileno())
    wait_for(lambda: gone(pid), "the role's end")
    run.process.wait(timeout=20)


def test_a_disk_that_is_full_does_not_end_the_supervisor(tmp_path: Path) -> None:
    """What tells ``status`` about a role is left out where it cannot be written."""
    write_run(tmp_path / "gone", RoleRun("predictor", 1, "", 0, 0))
    assert read_runs(tmp_path / "gone") == []
