"""``tidemill drift`` as a person or a script meets it: what it prints and writes, its mistakes, and its document."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tidemill.cli.main import main
from tidemill.core.inference import Choices
from tidemill.lake import COLUMNS, Lake
from tidemill.new_project import init_project

pytestmark = pytest.mark.process

DOCUMENT = Path(__file__).parents[2] / "docs" / "drift.md"
HOUR_MS = 3_600_000
Run = Callable[..., str]


def flights(start: int, warmer: float) -> pl.DataFrame:
    """40 days with 20 flights each."""
    rng = np.random.default_rng(start)
    hours = start + np.repeat(np.arange(40) * 24, 20) + np.tile(np.arange(20), 40)
    temp = 36 + warmer + np.repeat(rng.normal(0, 8, 40), 20)
    frame = pl.DataFrame(
        {"at": hours * HOUR_MS, "temp": temp, "carrier": rng.choice(["AA", "UA"], 800), "late": rng.random(800) < 0.2}
    )
    return frame.with_columns(pl.from_epoch("at", time_unit="ms"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, and a project of the first with the second's rows in its lake."""
    folder = tmp_path_factory.mktemp("drift")
    january, april = flights(0, 0.0), flights(40 * 24, 40.0)
    january.write_csv(folder / "january.csv")
    april.write_csv(folder / "april.csv")
    (folder / "damaged.parquet").write_bytes(b"PAR1 no more")
    choices = Choices(target="late", time="at")
    configuration = init_project(
        folder / "january.csv", folder / "flights", choices, "", {"tracking.tracker": "none"}
    ).configuration
    rows = [
        (f"r{n}", 0, n, n, int(at.timestamp() * 1000), json.dumps({"temp": temp, "carrier": carrier}).encode())
        for n, (at, temp, carrier, _) in enumerate(april.with_columns(pl.col("at").dt.replace_time_zone("UTC")).iter_rows())
    ]
    lake = Lake(configuration.lake)
    lake.append("requests", pl.DataFrame(rows, schema=COLUMNS["requests"], orient="row"), {"test": 1})
    lake.close()
    return folder


@pytest.fixture
def tidemill(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``tidemill drift`` in this process: its output, or what it says to the error stream where it fails."""

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["tidemill", "drift", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code == code, err
        return out if code == 0 else err

    return run


def test_two_files_need_no_project(folder: Path) -> None:
    """A real process; the largest distance comes first, and the last lines say what p rests on."""
    command = [sys.executable, "-m", "tidemill", "drift", "january.csv", "april.csv"]
    done = subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        "A  january.csv: 800 rows, 1970-01-01 00:00 to 1970-02-09 19:00 UTC",
        "B  april.csv: 800 rows, 1970-02-10 00:00 to 1970-03-21 19:00 UTC",
    ]
    assert lines[3].split()[:5] == ["column", "shift", "effect", "p", "JS"]
    assert lines[4].split()[:2] == ["temp", "yes"]
    assert "shifted: 1 of 3 columns: temp" in lines
    assert any("stay together in 40 blocks of a day" in line for line in lines)
    assert done.stderr == ""


def test_the_original_data_and_a_time_of_the_lake(tidemill: Run, folder: Path) -> None:
    """By the project's schema; JSON has all of it, and the page's line stays out of it."""
    pytest.importorskip("plotly")
    arguments = ("original", "1970-02-10..1970-03-01", "--project", "flights", "--json", "--html", "x.html")
    found = json.loads(tidemill(*arguments))
    assert [column["name"] for column in found["columns"] if column["shifted"]] == ["temp"]
    assert (found["a"]["rows"], found["b"]["rows"], found["b"]["name"]) == (800, 380, "1970-02-10..1970-03-01")
    temp = found["columns"][0]
    assert (temp["outside"] > 0.3, temp["chi_squared"], len(temp["bins"]["labels"])) == (True, None, len(temp["bins"]["a"]))
    assert found["blocks"] == {"count": 20, "hours": 48.0, "by": "time", "why": "", "b": 10.0, "split": False}
    page = (folder / "x.html").read_text()
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)", page)
    assert "<h3>temp: shifted</h3>" in page
    assert tidemill("original", "..1970-03-01", "-p", "flights", "--html", "x.html").splitlines()[-1].startswith("x.html: ")


def test_the_joint_estimate_comes_with_its_warning(tidemill: Run) -> None:
    """A figure for all columns, one for each; the same seed gives the same."""
    said = tidemill("january.csv", "april.csv", "--joint", "--classifier", "lightgbm", "--seed", "3")
    assert "a joint score near 1 is normal for a time series" in said
    assert said.splitlines()[3].split()[-1] == "MLBox"
    assert tidemill("january.csv", "april.csv", "--joint", "--classifier", "lightgbm", "--seed", "3") == said


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such file": (["january.csv", "may.csv"], "may.csv: no such file"),
    "damaged": (["january.csv", "damaged.parquet"], "damaged.parquet: cannot be read"),
    "wrong name": (["january.csv", "orignal", "-p", "flights"], "did you mean 'original'?"),
    "no project": (["original", "april.csv"], "no tidemill.toml in "),
    "empty range": (
        ["original", "2012-01-01..2012-02-01", "-p", "flights"],
        "the lake's 800 requests are of 1970-02-10 00:00",
    ),
    "no version": (["original", "version:1", "-p", "flights"], "version:1: it has answered no request; nor has any other"),
    "no column": (["january.csv", "april.csv", "--columns", "temp,tmp"], "--columns tmp: not a column"),
    "no time": (["january.csv", "april.csv", "--time", "when"], "--time when: the table has no such column"),
    "time of a project": (["original", "april.csv", "-p", "flights", "--time", "at"], "--time at: is for two files"),
    "no folder": (["january.csv", "april.csv", "--html", "none/x.html"], "none is no folder"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(tidemill: Run, case: str) -> None:
    """With exit code 2."""
    arguments, hint = MISTAKES[case]
    said = tidemill(*arguments, code=2)
    assert len(said.splitlines()) == 1
    assert hint in said


def test_a_page_that_cannot_be_written(tidemill: Run, folder: Path) -> None:
    """Exit code 3: the outside refuses; the comparison was printed before. A folder is told at once."""
    pytest.importorskip("plotly")
    (folder / "page.html").symlink_to("nowhere/page.html")
    assert "page.html cannot be written" in tidemill("january.csv", "april.csv", "--html", "page.html", code=3)
    os.makedirs(folder / "pages.html", exist_ok=True)
    assert "pages.html is a folder" in tidemill("january.csv", "april.csv", "--html", "pages.html", code=2)


def test_the_documents_commands_run(tidemill: Run) -> None:
    """As they stand in docs/drift.md; it names every option."""
    pytest.importorskip("plotly")
    document = DOCUMENT.read_text()
    lines = re.findall(r"^\$ tidemill drift (.*)$", document, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        tidemill(*line.split())
    for option in ("--project", "--columns", "--joint", "--classifier", "--block-hours", "--html", "--json"):
        assert option in document
