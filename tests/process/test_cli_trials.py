"""Leaderboard, trials, report and import as a person or a script meets them."""

import csv
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tidemill.core.environment import digest
from tidemill.core.inference import Choices
from tidemill.log.base import Message
from tidemill.messages import Conditions, JournalEntry, Trial, to_bytes
from tidemill.new_project import init_project
from tidemill.roles.reading import read_messages
from tidemill.wiring import Wiring

pytestmark = pytest.mark.process

ASSETS = Path(__file__).parents[1] / "data" / "hyperparameter_hunter"
BASE = Conditions("log_loss", "binary", 3, "stratified", False, "schema", ("age",), "rows-1", 200, 0)
OTHER = Conditions("log_loss", "binary", 3, "stratified", False, "schema", ("age",), "rows-0", 150, 0)


def tidemill(folder: Path, *arguments: str, code: int = 0, **variables: str) -> str:
    """A command's output; what it says to the error stream, where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "tidemill", *arguments],
        check=False,
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stdout if code < 2 else done.stderr


@contextmanager
def project(folder: Path) -> Iterator[Wiring]:
    wiring = Wiring(folder / "p")
    try:
        yield wiring
    finally:
        wiring.close()


def trials_of(folder: Path) -> list[Trial]:
    with project(folder) as wiring:
        return read_messages(wiring.log, wiring.topics.trials, Trial)


def trial(experiment: str, number: int, score: float | None, under: Conditions, **more: Any) -> Trial:
    point = {"num_leaves": 10 + number, "learning_rate": 0.1 * (number + 1)}
    facts: dict[str, Any] = {"learner": "lightgbm", "conditions": under, "environment": digest(under), **more}
    return Trial(experiment, number, point, "log_loss", score, [], 10, 1.0, at=number, **facts)


def key_of(one: Trial) -> bytes:
    return f"{one.experiment}/{one.number}".encode()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two experiments that cannot be compared, and one of version 0.1; no model."""
    folder = tmp_path_factory.mktemp("trials")
    draw = random.Random(1)
    rows = [f"{(age := draw.randint(17, 90))},{'yes' if age > 50 else 'no'}" for _ in range(200)]
    (folder / "people.csv").write_text("age,income\n" + "\n".join(rows) + "\n")
    init_project(folder / "people.csv", folder / "p", Choices(target="income"), "", {"tune.metric": "log_loss"})
    told = [trial("early", number, 0.5 - number / 100, OTHER) for number in range(3)]
    told += [trial("count-1", number, 0.4 - number / 100, BASE) for number in range(25)]
    told.append(trial("count-1", 25, None, BASE, error="out of memory"))
    old = trial("old", 0, 0.1, BASE, learner="", conditions=None, environment="0.1")
    with project(folder) as wiring:
        topics = wiring.topics
        wiring.log.append([Message(topics.trials, to_bytes(one), key_of(one)) for one in [old, *told]])
        entry = JournalEntry("count-1", "experiment", "count", "kept", 9, experiment="count-1", bundle="b" * 64)
        wiring.log.append([Message(topics.journal, to_bytes(entry), b"count-1")])
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "work"))


def test_the_leaderboard_ranks_the_newest_environment(made: Path) -> None:
    """Twenty lines, the best first; the others are told with their reasons."""
    lines = tidemill(made, "leaderboard", "-p", "p").splitlines()
    assert lines[2].split()[:6] == ["1", "0.16", "lightgbm", "10", "1.0", "count-1/24"]
    assert len([line for line in lines if "count-1/" in line]) == 20
    assert "and 5 trials more: --limit 0 shows all" in lines
    assert "without a score: 1 failed; tidemill trials EXPERIMENT shows them" in lines
    assert lines[-2:] == [
        "left out: 3 trials of experiment early: other training rows",
        "left out: 1 trial of experiment old: its conditions were not recorded",
    ]
    assert len(tidemill(made, "leaderboard", "-p", "p", "--all", "--limit", "0").split("environment ")) == 4
    assert tidemill(made, "leaderboard", "-p", "p", "--metric", "auc") == "there is no trial by auc yet\n"


def test_scripts_get_all_in_stable_columns(made: Path) -> None:
    """JSON and CSV, of one board or of all; with a limit so many of each."""
    found = json.loads(tidemill(made, "leaderboard", "-p", "p", "--json"))
    assert len(found["boards"][0]["rows"]) == 26
    assert found["left_out"][0] == {"experiments": ["early"], "trials": 3, "reasons": ["other training rows"]}
    rows = list(csv.DictReader(io.StringIO(tidemill(made, "leaderboard", "-p", "p", "--csv", "--all"))))
    assert (len(rows), len({row["environment"] for row in rows})) == (30, 3)
    assert rows[0]["param.num_leaves"] == "34"
    limited = tidemill(made, "trials", "count", "-p", "p", "--csv", "--limit", "2").splitlines()
    assert len(limited) == 3
    assert limited[0].startswith("environment,metric,rank,score,state,learner,rounds,seconds,experiment,number")
    none = json.loads(tidemill(made, "leaderboard", "-p", "p", "--metric", "auc", "--json"))
    assert (none["boards"], len(none["left_out"])) == ([], 1)


def test_an_experiments_trials(made: Path) -> None:
    """By the beginning of its id; what failed stands at the end with its error."""
    lines = tidemill(made, "trials", "c", "-p", "p", "--limit", "0").splitlines()
    assert len([line for line in lines if "count-1/" in line]) == 26
    assert lines[-1] == "without a score: 1 failed"
    assert any(line.startswith("-") and line.endswith("out of memory") for line in lines)
    assert "early/2" in tidemill(made, "trials", "early", "-p", "p")
    assert tidemill(made, "trials", "latest", "-p", "p") == tidemill(made, "trials", "count-1", "-p", "p")
    said = tidemill(made, "trials", "second", "-p", "p", code=2)
    assert said == "tidemill: there is no experiment 'second'; there are count-1, early, old, and latest\n"


def test_what_others_wrote_into_the_topic_is_passed_over(folder: Path) -> None:
    """And an unknown metric spoils no board."""
    with project(folder) as wiring:
        other = to_bytes(trial("junk", 0, 0.1, BASE)).replace(b'"log_loss"', b'"gini"', 1)
        records = [b"\xff", b"{}", other]
        wiring.log.append([Message(wiring.topics.trials, record, b"") for record in records])
    said = tidemill(folder, "leaderboard", "-p", "p")
    assert "left out: 1 trial of experiment junk: a metric that this version does not know" in said
    assert "count-1/24" in said


def test_the_report_is_one_file(folder: Path) -> None:
    """In the folder where one stands, or where it is asked for; a model that is gone is told in the page."""
    pytest.importorskip("plotly")
    said = tidemill(folder, "report", "latest", "-p", "p")
    assert said.startswith("report-count-1.html: 26 trials, ")
    page = (folder / "report-count-1.html").read_text()
    assert "no out-of-fold predictions: no bundle" in page
    assert "Parallel coordinates" in page
    tidemill(folder, "report", "early", "-p", "p", "--output", "x.html")
    assert "the experiment has no verdict yet" in (folder / "x.html").read_text()


def test_without_its_extra_the_report_names_it(made: Path) -> None:
    """One line, and how to install it; the tables need no extra at all."""
    hide = "import sys; sys.modules.update(dict.fromkeys({})); from tidemill.cli.main import main; main()"

    def run(hidden: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", hide.format(hidden), *arguments, "-p", "p"]
        return subprocess.run(command, check=False, cwd=made, capture_output=True, text=True, timeout=120)

    done = run("['plotly']", "report", "latest")
    assert done.returncode == 2
    assert done.stderr.startswith("tidemill: this needs the package 'plotly")
    assert done.stderr.endswith("pip install 'tidemill[report]'\n")
    base = "['polars', 'deltalake', 'optuna', 'sklearn', 'rich', 'plotly']"
    for arguments in (["leaderboard"], ["trials", "latest"], ["trials", "latest", "--csv"]):
        assert run(base, *arguments).returncode == 0


def test_an_import_adds_trials_once(folder: Path) -> None:
    """They are listed with what was not used; the second time nothing is added, after half an import the rest."""
    said = tidemill(folder, "import", str(ASSETS), "-p", "p")
    assert "6 trials added (4 lightgbm by auc, 1 xgboost by auc, 1 catboost by auc)" in said
    assert said.count("not used, 1: ") == 5
    experiment = said.partition(":")[0]
    assert f"tidemill trials {experiment} lists them" in said
    before = trials_of(folder)
    assert "its 6 trials are there already, nothing was added" in tidemill(folder, "import", str(ASSETS), "-p", "p")
    assert trials_of(folder) == before
    assert f"{experiment}/1" in tidemill(folder, "trials", "latest", "-p", "p")
    assert "nothing was added" in tidemill(folder, "import", str(ASSETS / "HyperparameterHunterAssets"), "-p", "p")
    assert tidemill(folder, "audit", "-p", "p", code=0).rstrip().endswith("clean")


def test_half_an_import_is_finished_by_the_next(folder: Path, tmp_path: Path) -> None:
    """Kafka may have taken some of the records when the command was killed."""
    tidemill(folder, "import", str(ASSETS), "-p", "p")
    whole = [one for one in trials_of(folder) if one.experiment.startswith("imported-")]
    copy = init_project(
        folder / "people.csv", tmp_path / "q" / "p", Choices(target="income"), "", {"tune.metric": "log_loss"}
    )
    assert copy.summary
    with project(tmp_path / "q") as wiring:
        wiring.log.append([Message(wiring.topics.trials, to_bytes(one), key_of(one)) for one in whole[:2]])
    assert "4 trials added" in tidemill(tmp_path / "q", "import", str(ASSETS), "-p", "p")
    assert sorted(one.number for one in trials_of(tmp_path / "q")) == [one.number for one in whole]


def test_hyperopts_trials_are_imported_with_their_choices(folder: Path) -> None:
    """What the loss is and whose parameters they are must be said."""
    told = [
        {"result": {"loss": 0.3, "status": "ok"}, "misc": {"vals": {"num_leaves": ["1"], "learning_rate": [0.1]}}},
        {"result": {"status": "fail"}, "misc": {"vals": {}}},
    ]
    (folder / "trials.json").write_text(json.dumps(told))
    (folder / "choices.json").write_text('{"num_leaves": [15, 31]}')
    arguments = ("import", "trials.json", "-p", "p", "--learner", "lightgbm", "--metric", "log_loss")
    said = tidemill(folder, *arguments, code=1)
    assert "nothing of it can be used" in said
    assert "not used, 1: its num_leaves may be the number of a choice" in said
    said = tidemill(folder, *arguments, "--choices", "choices.json")
    assert "1 trials added (1 lightgbm by log_loss)" in said
    assert "not used, 1: its status is 'fail' (trial 1)" in said
    assert trials_of(folder)[-1].parameters["num_leaves"] == 31


MISTAKES: dict[str, tuple[list[str], str]] = {
    "whose": (["import", "t.pkl"], "--learner, one of"),
    "no such folder": (["report", "latest", "--output", "none/x.html"], "none is no folder"),
    "gone": (["import", "gone.json", "--learner", "lightgbm", "--metric", "auc"], "gone.json: No such file"),
    "no assets": (["import", "p"], "p is no HyperparameterHunterAssets folder: it has no Experiments/Descriptions/"),
    "a pickle": (["import", "t.pkl", "--learner", "lightgbm", "--metric", "auc"], "is a pickle, which can run anything"),
    "a folder for a file": (
        ["import", "p", "--format", "hyperopt", "--learner", "lightgbm", "--metric", "auc"],
        "directory",
    ),
    "bad metric": (["import", "t.pkl", "--learner", "lightgbm", "--metric", "rmse"], "does not fit a binary target"),
    "bad choices": (
        ["import", "t.pkl", "--learner", "lightgbm", "--metric", "auc", "--choices", "people.csv"],
        "people.csv is not JSON of lists by label",
    ),
    "unknown metric": (["leaderboard", "--metric", "gini"], "--metric 'gini' is not one of accuracy"),
    "ambiguous": (["trials", ""], "may be old, early, count-1"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(made: Path, case: str) -> None:
    """With exit code 2; nothing is unpickled."""
    arguments, hint = MISTAKES[case]
    (made / "t.pkl").write_bytes(pickle.dumps([1]))
    said = tidemill(made, *arguments, "-p", "p", code=2)
    assert len(said.splitlines()) == 1
    assert hint in said


def test_two_forms_exclude_each_other(made: Path) -> None:
    """As does a limit below zero."""
    for arguments in (["leaderboard", "--json", "--csv"], ["trials", "early", "--limit", "-1"]):
        assert "Error: " in tidemill(made, *arguments, "-p", "p", code=2)


@pytest.mark.slow
def test_a_search_begins_with_what_was_imported(made: Path, tmp_path: Path) -> None:
    """The best of the imported points are among the first trials of a new project's experiment."""
    init_project(made / "people.csv", tmp_path / "p", Choices(target="income"), "", {"tune.trials": "4"})
    tidemill(tmp_path, "import", str(ASSETS), "-p", "p")
    tidemill(tmp_path, "train", "-p", "p")
    tried = [one.parameters for one in trials_of(tmp_path) if one.experiment == "first"]
    assert (24, 0.12) in [(point["num_leaves"], point["learning_rate"]) for point in tried]
