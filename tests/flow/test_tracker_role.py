import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from structlog.testing import capture_logs

from tidemill.core.inference import Choices
from tidemill.log.base import Message, Topic, lag
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import JournalEntry, Topics, Trial, to_bytes
from tidemill.new_project import init_project
from tidemill.roles import reading
from tidemill.roles.tracker import GROUP, Report, TrackerRole
from tidemill.testing.clock import ManualClock
from tidemill.testing.tracker_contract import a_decision, a_trial
from tidemill.tracking import mlflow as adapter
from tidemill.tracking.mlflow import MlflowTracker, create_store

TOPICS = Topics.of("adult")
EXPORTED = [TOPICS.trials, TOPICS.journal, TOPICS.models]
TRIALS = 5


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    log = SqliteLog(tmp_path / "log")
    log.create([Topic(name) for name in EXPORTED])
    yield log
    log.close()


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    create_store(f"sqlite:///{file}")
    return file


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


def tracker_of(store: Path) -> MlflowTracker:
    return MlflowTracker(f"sqlite:///{store}", "adult", "each", store.parent / "bundles")


def send(log: SqliteLog, topic: str, *messages: Struct) -> None:
    log.append([Message(topic, to_bytes(message)) for message in messages])


def an_experiment(log: SqliteLog) -> None:
    send(log, TOPICS.trials, *(a_trial(number) for number in range(TRIALS)))
    send(log, TOPICS.journal, a_decision())


def keys(store: Path) -> list[str]:
    """The keys of all finished runs, as they stand in the store."""
    query = "select value from tags join runs using (run_uuid) where key = 'tidemill.key' and status = 'FINISHED'"
    with contextlib.closing(sqlite3.connect(store)) as connection:
        return sorted(key for (key,) in connection.execute(query))


def artifacts(store: Path) -> tuple[int, str]:
    """Of the first experiment: how many rows the parent run's table has, and its report."""
    query = "select artifact_uri from runs join tags using (run_uuid) where key = 'tidemill.key' and value = 'count-1'"
    with contextlib.closing(sqlite3.connect(store)) as connection:
        (uri,) = connection.execute(query).fetchone()
    folder = Path(uri.removeprefix("file://"))
    report = folder / "report.html"
    return len(json.loads((folder / "trials.json").read_text())["data"]), report.read_text() if report.exists() else ""


EXPECTED = sorted(["count-1", *(f"count-1/{number}" for number in range(TRIALS))])


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.02)


@contextlib.contextmanager
def running(log: SqliteLog, tracker: MlflowTracker, report: Report | None = None) -> Iterator[None]:
    """The role in a thread, with a clock whose waits take no time; stopped in order at the end."""
    stop = threading.Event()
    role = TrackerRole(log, TOPICS, tracker, ManualClock(), report)
    thread = threading.Thread(target=role.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def all_exported(log: SqliteLog) -> bool:
    return not any(lag(log, GROUP, EXPORTED).values())


def test_a_locked_store_is_waited_for(log: SqliteLog, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another program holds MLflow's store, nothing is committed; it is told once, and all is exported later."""
    monkeypatch.setattr(adapter, "LOCK_SECONDS", 0.05)
    an_experiment(log)
    with capture_logs() as logged, contextlib.closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with running(log, tracker_of(store)):
            until(lambda: logged)
            assert not log.committed(GROUP)
            other.execute("ROLLBACK")
            until(lambda: all_exported(log))
    assert keys(store) == EXPECTED
    assert [line["event"] for line in logged] == ["tracking_unavailable", "tracking_resumed"]
    assert "locked" in logged[0]["detail"]


def test_a_read_only_store_is_waited_for(log: SqliteLog, store: Path) -> None:
    """A store that takes no writes loses nothing: what is missing is exported once it does."""
    an_experiment(log)
    write_version(store, 3)
    with capture_logs() as logged, running(log, tracker_of(store)):
        until(lambda: logged)
        assert "readonly" in logged[0]["detail"]
        assert not log.committed(GROUP)
        write_version(store, 2)
        until(lambda: all_exported(log))
    assert keys(store) == EXPECTED


def write_version(store: Path, version: int) -> None:
    """SQLite takes a file whose 19th byte is above 2 for one that it may only read, whoever asks (root has no others)."""
    with store.open("r+b") as file:
        file.seek(18)
        file.write(bytes([version]))


def test_an_absent_folder_is_waited_for(log: SqliteLog, store: Path) -> None:
    """A disk that is not there yet is not an end."""
    an_experiment(log)
    folder, ready, mount = store.parent / "disk", store.parent / "ready", store.parent / "mount"
    folder.symlink_to(store)  # a file: nothing can be made in it
    ready.mkdir()
    shutil.copy(store, ready / "mlflow.db")
    mount.symlink_to(ready)
    with capture_logs() as logged, running(log, tracker_of(folder / "mlflow.db")):
        until(lambda: logged)
        mount.replace(folder)
        until(lambda: all_exported(log))
    assert keys(folder / "mlflow.db") == EXPECTED


def test_a_stop_in_the_middle_commits_nothing(log: SqliteLog, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to stop while the store is away, the role leaves at once, and the next one exports everything."""
    monkeypatch.setattr(adapter, "LOCK_SECONDS", 0.05)
    an_experiment(log)
    with capture_logs() as logged, contextlib.closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with running(log, tracker_of(store)):
            until(lambda: logged)
    assert logged[-1]["event"] == "tracker_stopped"
    assert not log.committed(GROUP)
    with running(log, tracker_of(store)):
        until(lambda: all_exported(log))
    assert keys(store) == EXPECTED


def test_a_record_that_is_no_message_is_skipped(log: SqliteLog, store: Path) -> None:
    """One bad record stops nobody: it is told with its place, and the rest is exported."""
    reading._tell.cache_clear()
    log.append([Message(TOPICS.trials, b"{"), Message(TOPICS.journal, b"\xff"), Message(TOPICS.models, b"[" * 100_000)])
    an_experiment(log)
    with capture_logs() as logged, running(log, tracker_of(store)):
        until(lambda: all_exported(log))
    assert keys(store) == EXPECTED
    assert sorted((line["event"], line["topic"], line["offset"]) for line in logged) == [
        ("record_skipped", topic, 0) for topic in sorted(EXPORTED)
    ]


def test_a_search_is_followed_in_parts(log: SqliteLog, store: Path) -> None:
    """Trials that come one by one, to this process or to the next, are all in the table, and in the end the best are runs;
    another experiment's between them changes nothing.
    """
    few = MlflowTracker(f"sqlite:///{store}", "adult", "each", store.parent / "bundles", 2)
    with running(log, few):
        for number in range(3):
            send(log, TOPICS.trials, a_trial(number))
            until(lambda: all_exported(log))
    assert artifacts(store) == (3, "")
    with running(log, few):
        for number in range(3, 6):
            send(log, TOPICS.trials, a_trial(number), a_trial(number, experiment="imported-1"))
            until(lambda: all_exported(log))
        send(log, TOPICS.journal, a_decision())
        until(lambda: all_exported(log))
    assert artifacts(store) == (6, "")
    runs = {f"count-1/{number}" for number in (0, 1, 4, 5)} | {f"imported-1/{number}" for number in (3, 4, 5)}
    assert keys(store) == sorted({"count-1", "imported-1"} | runs)


def test_without_its_packages_the_report_is_left_out(log: SqliteLog, store: Path) -> None:
    """It is told once, for all experiments; everything else is exported."""

    def draw(trials: Sequence[Trial], entry: JournalEntry) -> str:
        raise ModuleNotFoundError("No module named 'plotly'")

    send(log, TOPICS.trials, a_trial(0), a_trial(0, experiment="count-2"))
    send(log, TOPICS.journal, a_decision(), a_decision(experiment="count-2"))
    with capture_logs() as logged, running(log, tracker_of(store), draw):
        until(lambda: all_exported(log))
    assert [(line["event"], line["detail"]) for line in logged] == [("reports_left_out", "No module named 'plotly'")]
    assert keys(store) == ["count-1", "count-1/0", "count-2", "count-2/0"]


def test_a_report_that_cannot_be_drawn_stops_nothing(log: SqliteLog, store: Path) -> None:
    """What its code raises is told, with the experiment; the next one is tried again. Without a trial there is none."""

    def draw(trials: Sequence[Trial], entry: JournalEntry) -> str:
        raise ZeroDivisionError("no rows")

    send(log, TOPICS.trials, a_trial(0), a_trial(0, experiment="count-2"))
    entries = (a_decision(experiment=f"count-{number}") for number in (1, 2, 3))
    send(log, TOPICS.journal, *entries)
    with capture_logs() as logged, running(log, tracker_of(store), draw):
        until(lambda: all_exported(log))
    told = [(line["event"], line["experiment"], line["error"]) for line in logged]
    assert told == [("report_failed", f"count-{number}", "ZeroDivisionError: no rows") for number in (1, 2)]
    assert keys(store) == ["count-1", "count-1/0", "count-2", "count-2/0", "count-3"]


def test_without_mlflow_the_role_says_so_and_waits(log: SqliteLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project whose extra is not installed gets one line with what to install; nothing else stops."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    an_experiment(log)
    with capture_logs() as logged, running(log, tracker_of(tmp_path / "mlflow.db")):
        until(lambda: logged)
    assert [line["event"] for line in logged] == ["tracker_gave_up"]
    assert "pip install 'tidemill[mlflow]'" in logged[0]["detail"]
    assert not log.committed(GROUP)


def remove(store: Path) -> None:
    """As a person does it: rm mlflow.db*"""
    for file in store.parent.glob(store.name + "*"):
        file.unlink()


def test_a_store_that_is_removed_is_filled_again(log: SqliteLog, store: Path) -> None:
    """While the role runs: soon, without anything new to export, and what comes later goes there too."""
    an_experiment(log)
    with capture_logs() as logged, running(log, tracker_of(store)):
        until(lambda: all_exported(log))
        remove(store)
        until(lambda: store.exists() and store.stat().st_size and keys(store) == EXPECTED)
        assert [line["event"] for line in logged] == ["tracking_starts_over"]
        send(log, TOPICS.trials, a_trial(9))
        until(lambda: all_exported(log))
    assert keys(store) == sorted([*EXPECTED, "count-1/9"])


def test_a_store_that_was_removed_before_is_filled_from_the_start(log: SqliteLog, store: Path) -> None:
    """While no role runs, and of the file alone: what SQLite left beside it does no harm to the new one."""
    an_experiment(log)
    with running(log, tracker_of(store)):
        until(lambda: all_exported(log))
    store.unlink()
    for ending in ("-wal", "-shm"):
        store.with_name(store.name + ending).write_bytes(b"of the old one")
    with running(log, tracker_of(store)):
        until(lambda: store.exists() and keys(store) == EXPECTED)


def test_an_older_copy_of_the_store_is_brought_up_to_date(log: SqliteLog, store: Path) -> None:
    """A backup that a person puts back lacks the newest experiments: exactly those are exported again."""
    an_experiment(log)
    with running(log, tracker_of(store)):
        until(lambda: all_exported(log))
    shutil.copy(store, store.with_name("backup"))
    send(log, TOPICS.trials, *(a_trial(number) for number in range(10, 40)))
    with capture_logs() as logged, running(log, tracker_of(store)):
        until(lambda: all_exported(log))
        remove(store)
        shutil.copy(store.with_name("backup"), store)
        until(lambda: len(keys(store)) == len(EXPECTED) + 30)
    assert [line["positions"] for line in logged] == [{f"{TOPICS.trials}:0": TRIALS}]


def test_a_store_that_is_removed_in_the_middle_of_a_batch_is_filled_again(log: SqliteLog, store: Path) -> None:
    """Half of the batch went to the old store, half to the new one: the whole comes again."""

    class Removed(MlflowTracker):
        def record_decision(self, entry: JournalEntry, *arguments: Any) -> None:
            if not times:
                remove(store)
            times.append(entry)
            super().record_decision(entry, *arguments)

    times: list[JournalEntry] = []
    an_experiment(log)
    with running(log, Removed(f"sqlite:///{store}", "adult", "each", store.parent / "bundles")):
        until(lambda: len(times) == 2 and all_exported(log))
    assert keys(store) == EXPECTED


def test_an_empty_file_is_no_store(log: SqliteLog, store: Path) -> None:
    """SQLite makes one when a store vanishes in the middle of a write."""
    store.write_bytes(b"")
    assert tracker_of(store).experiments() == 0
    an_experiment(log)
    with running(log, tracker_of(store)):
        until(lambda: all_exported(log))
    assert keys(store) == EXPECTED


CHILD = """
import sys, threading
from pathlib import Path
from tidemill.clock import SystemClock
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Topics
from tidemill.roles.tracker import TrackerRole
from tidemill.tracking.mlflow import MlflowTracker
root = Path(sys.argv[1])
tracker = MlflowTracker(f"sqlite:///{root / 'mlflow.db'}", "adult", "each", root / "bundles", 3)
page = lambda trials, entry: f"{entry.experiment}: {len(trials)}"
TrackerRole(SqliteLog(root / "log"), Topics.of("adult"), tracker, SystemClock(), page).run(threading.Event())
"""
POINTS = ["parent_created:1", "run_created:5", "table_written:1", "report_written:1", "handled:1"]


@pytest.mark.process
@pytest.mark.parametrize("failpoint", POINTS)
def test_killed_in_the_middle_it_leaves_no_doubles(log: SqliteLog, store: Path, failpoint: str) -> None:
    """After kill -9 in the middle of a batch, or before its commit, the next one finishes the same runs."""
    send(log, TOPICS.trials, *(a_trial(number) for number in range(10)))
    send(log, TOPICS.journal, a_decision())
    environ = os.environ | {"TIDEMILL_FAILPOINT": f"tracker.{failpoint}"}
    ended = subprocess.run([sys.executable, "-c", CHILD, store.parent], env=environ, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not log.committed(GROUP)
    tracker = MlflowTracker(f"sqlite:///{store}", "adult", "each", store.parent / "bundles", 3)
    with running(log, tracker, lambda trials, entry: f"{entry.experiment}: {len(trials)}"):
        until(lambda: all_exported(log))
    expected = sorted(["count-1", *(f"count-1/{number}" for number in (0, 1, 2, 7, 8, 9))])
    assert keys(store) == expected
    assert artifacts(store) == (10, "count-1: 10")
    with contextlib.closing(sqlite3.connect(store)) as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (len(expected),)
        history = "select count(*), count(distinct step) from metrics where key = 'best_auc'"
        assert connection.execute(history).fetchone() == (10, 10)


def test_several_processes_make_one_store(tmp_path: Path) -> None:
    """Whoever comes first makes the store, the others find it whole, and what a killed one left is swept."""
    (tmp_path / "mlflow.db.draft").write_bytes(b"half a store")
    threads = [threading.Thread(target=create_store, args=(f"sqlite:///{tmp_path}/mlflow.db",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracker_of(tmp_path / "mlflow.db").record_trials([a_trial(0)])
    assert {path.name for path in tmp_path.glob("*.draft*")} == set()


def status_of(port: int, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": host})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def listening(session: int) -> set[tuple[str, int]]:
    """Where the processes of a session listen (Linux): IPv4 by its dots, IPv6 as it stands in /proc."""
    held = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(process.name)) == session:
                held |= {os.readlink(link) for link in process.joinpath("fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for row in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = row.split()
            address, port = fields[1].split(":")
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in held:
                ip = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if table == "tcp" else address
                found.add((ip, int(port, 16)))
    return found


@pytest.mark.process
@pytest.mark.slow
def test_the_pages_start_for_a_new_project_on_loopback_only(tmp_path: Path) -> None:
    """MLflow's server answers for a project without any run, to its own host names, on 127.0.0.1 and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "d.csv").write_text("x,y\n" + "1,0\n2,1\n" * 20)
    init_project(tmp_path / "d.csv", tmp_path / "p", Choices(target="y"), "", {}, False)
    command = [sys.executable, "-m", "tidemill", "mlflow", "--project", str(tmp_path / "p"), "--port", str(port)]
    with (tmp_path / "out").open("wb") as out:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out, start_new_session=True)
    try:
        until(lambda: status_of(port, f"127.0.0.1:{port}") == 200, 120)
        assert status_of(port, f"localhost:{port}") == 200
        assert status_of(port, f"evil.example:{port}") == 403
        assert status_of(port, f"192.168.1.7:{port}") == 403
        assert listening(server.pid) == {("127.0.0.1", port)}
        second = subprocess.run(command, check=False, capture_output=True, text=True)
        said = f"tidemill: port {port} cannot be used (Address already in use): give another one with --port\n"
        assert (second.returncode, second.stderr) == (2, said)
    finally:
        server.terminate()
        assert server.wait(30) == 0
    until(lambda: not taken(port), 20)


def taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
