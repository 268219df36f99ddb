"""``tidemill backtest`` as a person or a script meets it: what it prints and writes, its mistakes, and how it ends."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tidemill.cli.main import declare
from tidemill.core.inference import Choices
from tidemill.core.policies import TERMS, parse
from tidemill.new_project import init_project
from tidemill.testing.ending import ending

pytestmark = pytest.mark.process

ROWS, MINUTE_MS = 1200, 60_000
SETTINGS = {
    "tune.trials": "1",
    "tune.rounds_max": "10",
    "tune.folds": "2",
    "tracking.tracker": "none",
    "retrain.every": "300",
}
DATA = ("--data", "stream.parquet", "--outcome-time", "told")
POLICIES = ("--policy", "never", "--policy", "every:400")


def people(rows: int, start: int, turned: bool) -> pl.DataFrame:
    """Who is rich: the older ones, and in the stream, which is ``turned``, the younger ones."""
    rng = np.random.default_rng(start)
    ages = rng.integers(17, 91, rows)
    rich = ((ages > 50) ^ turned ^ (rng.random(rows) < 0.1)).astype(int)
    asked = (start + np.arange(rows)) * MINUTE_MS
    labels = [None if row % 20 == 19 else "yes" if label else "no" for row, label in enumerate(rich.tolist())]
    return pl.DataFrame({"age": ages, "rich": labels, "asked": asked, "told": asked + rng.integers(1, 90, rows) * MINUTE_MS})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project, and a stream that follows on its original data."""
    folder = tmp_path_factory.mktemp("backtest")
    people(400, 0, turned=False).write_parquet(folder / "original.parquet")
    people(ROWS, 400, turned=True).write_parquet(folder / "stream.parquet")
    choices = Choices(target="rich", time="asked", ignore=("told",))
    init_project(folder / "original.parquet", folder / "p", choices, "people", SETTINGS)
    (folder / "tmp").mkdir()
    return folder


def tidemill(folder: Path, *arguments: str, code: int = 0) -> str:
    """The output of ``tidemill backtest -p p``; what it says to the error stream, where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "tidemill", "backtest", "-p", "p", *arguments],
        check=False,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert list((folder / "tmp").iterdir()) == []
    return done.stdout if code == 0 else done.stderr


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_seconds(inner) for name, inner in value.items() if not name.endswith("seconds")}
    return [without_seconds(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def result(folder: Path) -> Any:
    return json.loads(tidemill(folder, *DATA, *POLICIES, "--json"))


def test_a_policy_is_chosen_by_what_it_would_have_been_worth(result: Any) -> None:
    """The stream has turned round: who never learns from it is wrong nearly always."""
    never, often = result["policies"]
    assert (result["best"], result["chosen"]) == ("every:400", "every:400")
    assert never["score"] > 1.2 * often["score"]
    assert often["gain_over_baseline"]["low"] > 0
    assert [training["reason"] for training in often["trainings"]] == ["first", "labelled", "labelled"]
    assert [training["rows"] for training in often["trainings"]] == [380, 780, 1180]
    assert len(often["scores"]) == len(result["windows"]) == len(result["rows"])
    assert (result["requests"], result["labelled"]) == (ROWS, ROWS - ROWS // 20)
    assert result["notes"] == []


def test_the_same_again_with_a_page_that_asks_the_network_for_nothing(folder: Path, result: Any) -> None:
    """The same JSON but for the seconds; the page shows each policy over time, and where new versions begin to serve."""
    pytest.importorskip("plotly")
    again = json.loads(tidemill(folder, *DATA, *POLICIES, "--json", "--html", "page.html"))
    assert without_seconds(again) == without_seconds(result)
    page = (folder / "page.html").read_text()
    assert asked_for(page) == []
    assert "default-src 'none'" in page
    figures = json.loads(re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page)[0])
    over_time = {trace["name"]: trace for trace in figures[0]["data"]}
    assert list(over_time) == ["never", "never: new version", "every:400", "every:400: new version"]
    assert over_time["every:400"]["y"] == result["policies"][1]["scores"]
    assert len(over_time["every:400: new version"]["x"]) == 2
    assert over_time["never: new version"]["x"] == []


def asked_for(page: str) -> list[str]:
    """What a browser would fetch."""
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data"))

    Reader().feed(page)
    return found


def test_people_get_a_table_and_scripts_a_line_a_policy(folder: Path) -> None:
    """With what it rests on; a span of the stream, a fixed delay, and projects that are kept."""
    span = ("--from", "1970-01-01T08:00", "--until", "1970-01-01T20:00:00+00:00", "--rows", "600")
    told = tidemill(folder, "--data", "stream.parquet", "--delay", "60", *span, "--policy", "never", "--work", "kept")
    lines = told.splitlines()
    assert lines[0].startswith("requests    600 of stream, 1970-01-01 08:00 to 1970-01-01 17:59 UTC")
    assert any(line.startswith("never ") for line in lines)
    assert "chosen: never (there is nothing to compare it with)" in lines
    assert (folder / "kept" / "1-never" / "tidemill.toml").exists()
    again = ("--data", "stream.parquet", "--delay", "60", "--policy", "never", "--work", "kept")
    assert "kept is no empty folder" in tidemill(folder, *again, code=2)
    rows = list(csv.DictReader(io.StringIO(tidemill(folder, *DATA, "--rows", "300", "--policy", "never", "--csv"))))
    assert [(row["policy"], row["chosen"], row["trainings"]) for row in rows] == [("never", "1", "1")]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((*DATA, "--policy", "evry:10"), "did you mean 'every'?; valid are never, every:N"),
        ((), "the lake has no recorded requests to play: run the project first, or give --data FILE"),
        (("--data", "stream.parquet"), "Give --outcome-time COLUMN (of age, rich, asked, told) or --delay SECONDS"),
        (("--data", "targetless.parquet", "--delay", "1"), "the table has no column 'rich'; it has age, asked"),
        ((*DATA, "--from", "soon"), "'soon' is no date or time like 2013-02-01"),
        ((*DATA, "--html", "nowhere/page.html"), "nowhere is no folder"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_would_be_valid(folder: Path, arguments: tuple[str, ...], reason: str) -> None:
    """Exit code 2, before any work is done."""
    people(10, 0, turned=False).drop("rich", "told").write_parquet(folder / "targetless.parquet")
    told = tidemill(folder, *arguments, code=2)
    assert reason in told
    assert len(told.strip().splitlines()) == 1 or told.startswith("usage:")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(folder: Path, tmp_path: Path, number: int) -> None:
    """Neither files nor processes; the exit code says that it did not come to its end."""
    command = [sys.executable, "-m", "tidemill", "backtest", "-p", "p", *DATA, "--step", "20"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    started = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    with ending(started) as process:
        end = time.monotonic() + 120
        while not list(tmp_path.glob("tidemill-backtest-*/1-never/lake/requests")):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert list(tmp_path.iterdir()) == []
    while alive(process.pid):
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(group: int) -> list[str]:
    """The processes of a group, but for those that nobody has reaped yet."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, fields = stat.read_text().rpartition(")")
            state, _, its_group = fields.split()[:3]
            found += [name] if int(its_group) == group and state != "Z" else []
    return found


def test_the_pages_commands_and_policies_are_ones() -> None:
    """What docs/backtest.md shows can be typed, and its table has every word that a policy can have."""
    page = (Path(__file__).parents[2] / "docs" / "backtest.md").read_text()
    shown = [line.partition("#")[0].split()[1:] for line in page.splitlines() if line.startswith("tidemill backtest")]
    assert len(shown) == 3
    for arguments in shown:
        for policy in declare()[0].parse_args(arguments).policy:
            parse(policy)
    for word, term in TERMS.items():
        assert re.search(rf"`[./]*{word}\b", page), word
        assert f"`{term.setting} = " in page, term.setting
