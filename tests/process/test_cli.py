"""The command line as a person meets it: mistakes in one line with their exit code, and roles that end when told to."""

import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tidemill.core.inference import Choices
from tidemill.log.base import Message, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import JournalEntry, Retrain, Topics, Trial
from tidemill.new_project import init_project
from tidemill.roles.reading import decoded
from tidemill.wiring import ROLES, Wiring

pytestmark = pytest.mark.process

COMMANDS = (
    *("init", "config", "train", "predictor", "recorder", "monitor", "trainer", "tracker", "run", "mlflow", "replay"),
    *("status", "audit", "promote", "rollback", "demo", "log", "leaderboard", "trials", "report", "import"),
)


def tidemill(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder, as a script would start it."""
    return subprocess.run(
        [sys.executable, "-m", "tidemill", *arguments],
        check=False,
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a project ``p`` that has no model yet."""
    folder = tmp_path_factory.mktemp("cli")
    draw = random.Random(1)
    rows = [f"{(age := draw.randint(17, 90))},{draw.choice('abc')},{'yes' if age > 50 else 'no'}" for _ in range(200)]
    (folder / "people.csv").write_text("age,work,income\n" + "\n".join(rows) + "\n")
    init_project(folder / "people.csv", folder / "p", Choices(target="income"), "", {"tune.trials": "2"})
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "letter.txt").write_text("dear")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "work"))


@contextmanager
def project(folder: Path, name: str) -> Iterator[Wiring]:
    """The project's parts, in this process."""
    wiring = Wiring(folder / name)
    try:
        yield wiring
    finally:
        wiring.close()


def messages(folder: Path, name: str, topic: str, kind: type[Any]) -> list[str]:
    """The keys of a topic's records that are of this kind."""
    with project(folder, name) as wiring:
        records = read_all(wiring.log, getattr(wiring.topics, topic))
        return [(record.key or b"").decode() for record in records if decoded(record, kind) is not None]


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def flip_a_byte(project: Path) -> None:
    """Damage one record's value in the log's file."""
    topics = Topics.of("p")
    log = SqliteLog(project / "log")
    log.create([Topic(getattr(topics, field)) for field in topics.__struct_fields__])
    log.append([Message(topics.models, b'{"marked": "by the test that damages it"}', b"champion")])
    log.close()
    file = project / "log" / "log.db"
    data = file.read_bytes()
    assert data.count(b"by the test") == 1
    file.write_bytes(data.replace(b"by the test", b"by the tesT"))


def nothing(project: Path) -> None:
    """Leave the project as it is."""


def unknown_setting(project: Path) -> None:
    file = project / "tidemill.toml"
    file.write_text(file.read_text().replace("patience ", "patients ", 1))


def spoil_schema(project: Path) -> None:
    (project / "schema.json").write_text('{"features": [')


def lose_data(project: Path) -> None:
    file = project / "tidemill.toml"
    file.write_text(file.read_text().replace("people.csv", "gone.csv"))


def find_data(project: Path) -> None:
    file = project / "tidemill.toml"
    file.write_text(file.read_text().replace("gone.csv", "people.csv"))


MISTAKES: dict[str, tuple[Callable[[Path], None], list[str], dict[str, str], int, str]] = {
    "no project": (nothing, ["status", "-p", "empty"], {}, 2, "run tidemill init"),
    "unknown setting": (unknown_setting, ["config", "-p", "p"], {}, 2, "did you mean 'patience'"),
    "bad variable": (nothing, ["config", "-p", "p"], {"TIDEMILL_TUNE__TRIALS": "none"}, 2, "a whole number from 1 on"),
    "unknown variable": (nothing, ["config", "-p", "p"], {"TIDEMILL_TUNE__TRAILS": "3"}, 2, "did you mean 'TRIALS'"),
    "one underscore": (nothing, ["config", "-p", "p"], {"TIDEMILL_TUNE_TRIALS": "3"}, 2, "TIDEMILL_TUNE__TRIALS"),
    "unknown learner": (nothing, ["config", "-p", "p"], {"TIDEMILL_TUNE__LEARNER": "lightgbn"}, 2, "lightgbm"),
    "unknown proposer": (nothing, ["config", "-p", "p"], {"TIDEMILL_TUNE__PROPOSER": "optina"}, 2, "optuna"),
    "no table": (nothing, ["drift", "people.csv", "people.txt"], {}, 2, "'people.txt' is nothing to compare"),
    "no data file": (nothing, ["init", "nobody.csv", "--target", "x", "-p", "q"], {}, 2, "nobody.csv: no such file"),
    "unknown target": (nothing, ["init", "people.csv", "--target", "incom", "-p", "q"], {}, 2, "no such column"),
    "bad task": (nothing, ["init", "people.csv", "--target", "income", "--task", "rank", "-p", "q"], {}, 2, "binary"),
    "bad --set": (nothing, ["init", "people.csv", "--target", "income", "--set", "seed", "-p", "q"], {}, 2, "SECTION.KEY"),
    "project is there": (nothing, ["init", "people.csv", "--target", "income", "-p", "p"], {}, 2, "--force"),
    "corrupt schema": (spoil_schema, ["status", "-p", "p"], {}, 2, "schema.json"),
    "unknown demo": (nothing, ["demo", "titanic"], {}, 2, "adult, flights"),
    "folder of others": (nothing, ["demo", "adult", "--directory", "full"], {}, 2, "choose another --directory"),
    "nothing to roll back": (nothing, ["rollback", "-p", "p"], {}, 2, "no version before"),
    "nothing to promote": (nothing, ["promote", "-p", "p"], {}, 2, "no challenger waits"),
    "no log": (nothing, ["log", "check", "empty"], {}, 2, "there is no log"),
    "damaged log": (flip_a_byte, ["status", "-p", "p"], {}, 4, "offset 0"),
    "no tracker": (nothing, ["tracker", "-p", "p"], {"TIDEMILL_TRACKING__TRACKER": "none"}, 2, "no tracker"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_an_exit_code(folder: Path, case: str) -> None:
    """What, where and what would be valid; no traceback; the code that ``errors.py`` says."""
    spoil, arguments, variables, code, hint = MISTAKES[case]
    spoil(folder / "p")
    done = tidemill(folder, *arguments, **variables)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("tidemill: ")
    assert hint in lines[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert done.returncode == code
    assert (folder / "full" / "letter.txt").exists()


def test_data_that_was_lost_later_fails_the_experiment(folder: Path) -> None:
    """The project is there, its table is not: the experiment fails, says which file, and the exit code is 1. Once the table
    is back, the same command gives a model.
    """
    lose_data(folder / "p")
    done = tidemill(folder, "train", "-p", "p")
    assert done.returncode == 1
    assert "gone.csv: no such file" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr + done.stdout
    find_data(folder / "p")
    done = tidemill(folder, "train", "-p", "p")
    assert done.returncode == 0, done.stdout
    assert "version 1 promoted" in done.stdout


def test_a_first_training_that_failed_is_done_again_with_other_settings(folder: Path) -> None:
    """With and without --again; every command has its verdict, and the audit is clean."""
    rows = [f"{age},{'yes' if age in (7, 9) else 'no'}" for age in range(400)]
    (folder / "rare.csv").write_text("age,income\n" + "\n".join(rows) + "\n")
    init_project(folder / "rare.csv", folder / "q", Choices(target="income"), "q", {"tune.trials": "1"})
    for arguments in (["train", "-p", "q"], ["train", "-p", "q", "--again"]):
        done = tidemill(folder, *arguments)
        assert done.returncode == 1
        assert "lower tune.folds or add data" in " ".join(done.stdout.split())
    done = tidemill(folder, "train", "-p", "q", TIDEMILL_TUNE__FOLDS="2")
    assert done.returncode == 0, done.stdout
    assert messages(folder, "q", "retrain", Retrain) == ["first", "first-2", "first-3"]
    assert messages(folder, "q", "journal", JournalEntry) == ["first", "first-2", "first-3"]
    assert tidemill(folder, "audit", "-p", "q").returncode == 0


def test_what_others_wrote_into_the_topics_does_not_keep_one_from_training(folder: Path) -> None:
    """Junk everywhere: a model comes of it, the status is shown, and the audit says which records cannot be read."""
    names = ("retrain", "models", "trials", "journal")
    with project(folder, "p") as wiring:
        wiring.log.append([Message(getattr(wiring.topics, name), b"\xff garbage", b"first") for name in names])
    done = tidemill(folder, "train", "-p", "p")
    assert done.returncode == 0, done.stdout
    assert all(done.stdout.count(f"topic=p.{name}") <= 2 for name in names), "not told again and again"
    assert tidemill(folder, "status", "-p", "p").returncode == 0
    done = tidemill(folder, "audit", "-p", "p")
    assert done.returncode == 1
    assert done.stdout.rstrip().endswith("broken: readable")


def test_three_who_train_again_at_once_send_three_commands(folder: Path) -> None:
    """Each its own: none is lost in another's, and the audit is clean."""
    assert tidemill(folder, "train", "-p", "p").returncode == 0
    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(lambda _: tidemill(folder, "train", "--again", "-p", "p"), range(3)))
    assert [one.returncode for one in done] == [0, 0, 0], [one.stdout for one in done]
    ids = messages(folder, "p", "retrain", Retrain)
    assert len(set(ids)) == 4
    assert tidemill(folder, "audit", "-p", "p").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_was_ended_by_a_signal_did_not_succeed(folder: Path, number: signal.Signals) -> None:
    """``train && run`` must not go on without a model: 128 and the signal's number."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tidemill", "train", "-p", "p"],
        cwd=folder,
        env={**os.environ, "TIDEMILL_TUNE__TRIALS": "1000"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: messages(folder, "p", "trials", Trial))
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said, said


def test_a_damaged_record_is_found_by_the_check(folder: Path) -> None:
    """``log check`` names the topic and the offset and exits with 1; a good log exits with 0."""
    flip_a_byte(folder / "p")
    done = tidemill(folder, "log", "check", "-p", "p")
    assert done.returncode == 1
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem:")]
    assert len(problems) == 1
    assert "p.models" in problems[0]
    assert "offset 0" in problems[0]


def test_an_unknown_command_or_option_is_refused(folder: Path) -> None:
    """With the usage, code 2 and no traceback."""
    for arguments in (["frobnicate"], ["train", "--bogus"], ["init"], ["rollback", "--version", "x"]):
        done = tidemill(folder, *arguments)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("Error: ")
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--debug", "status"), ("status", "--debug")])
def test_debug_shows_the_traceback(folder: Path, arguments: tuple[str, ...]) -> None:
    """For those who want it, before the command or after."""
    done = tidemill(folder, *arguments, "-p", "empty")
    assert "Traceback" in done.stderr
    assert done.returncode != 0


def test_the_version_is_the_installed_one(folder: Path) -> None:
    """What a report of a fault begins with."""
    done = tidemill(folder, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"tidemill {version('tidemill')}, Python {platform.python_version()}\n"


def test_help_lists_every_command(folder: Path) -> None:
    """Each with a line."""
    done = tidemill(folder, "--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\w", done.stdout, re.MULTILINE), command


def catches_sigterm(pid: int) -> bool:
    """Whether the process has its handler: a signal before that is the kernel's to deal with."""
    found = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_ends_when_told(folder: Path, role: str) -> None:
    """SIGTERM at once after the start, and in the middle of whatever it does a second later: exit code 0, in 5 s."""
    for seconds in (0.0, 1.0):
        process = subprocess.Popen(
            [sys.executable, "-m", "tidemill", role, "-p", "p"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            until = time.monotonic() + 30
            while not catches_sigterm(process.pid):
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.01)
            time.sleep(seconds)
            process.terminate()
            said, _ = process.communicate(timeout=5)
        finally:
            process.kill()
        assert process.returncode == 0, said
        assert "Traceback" not in said, said
