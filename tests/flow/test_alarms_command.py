"""``tidemill alarms`` over a project's lake and journal."""

import json
from pathlib import Path

import polars as pl
import pytest

from tidemill.cli.alarms import alarms
from tidemill.core.alarms import Alarm, Change, Finding, Watch
from tidemill.core.inference import Choices
from tidemill.core.looking import Tally
from tidemill.errors import ConfigError
from tidemill.messages import JournalEntry
from tidemill.new_project import init_project
from tidemill.roles.looks import Look, write_look
from tidemill.roles.reading import read_messages
from tidemill.wiring import Wiring

DAY = 86_400_000
FINDING = Finding("heat", "feature", 1e-9, 0.9, 0.4, "heat: above 90 0.0% before, 80.0% now (distance 0.90)")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Three looks: an alarm that was raised and cleared, and one that is up."""
    pl.DataFrame({"heat": [1.0, 2.0] * 20, "late": ["no", "yes"] * 20}).write_parquet(tmp_path / "data.parquet")
    folder = tmp_path / "project"
    init_project(tmp_path / "data.parquet", folder, Choices(target="late"), "demo", {}, False)
    first, second = Alarm("alarm-0", 0, 0, [FINDING]), Alarm("alarm-2", 2, 2 * DAY, [FINDING])
    changes = [
        (Change("alarm_raised", first), Watch(first)),
        (Change("alarm_cleared", first, "back to normal"), Watch()),
        (Change("alarm_raised", second), Watch(second)),
    ]
    wiring = Wiring(folder)
    for number, (change, state) in enumerate(changes):
        tally = Tally(10, number * DAY, number * DAY, [], [])
        look = Look(number, "b", 1, tally, {}, {0: number + 1}, {}, 0, 0, [0] * 345, 0.01, state, change=change)
        write_look(wiring.lake, look, {"watch:requests:0": number + 1}, "b")
    wiring.lake.close()
    wiring.close()
    return folder


def test_alarms_are_listed_with_their_times_and_what_had_shifted(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that was cleared with the reason, one that is up; as JSON with the findings."""
    alarms(project, "", as_json=False)
    cleared, up = capsys.readouterr().out.splitlines()
    assert cleared.startswith(
        "alarm-0  raised 1970-01-01 00:00 UTC, cleared 1970-01-02 00:00 UTC (back to normal): heat: above 90"
    )
    assert up.startswith("alarm-2  raised 1970-01-03 00:00 UTC, UP: heat")
    alarms(project, "", as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["alarm"], row["cleared_at"]) for row in rows] == [("alarm-0", DAY), ("alarm-2", None)]
    assert rows[0]["findings"][0]["name"] == "heat"


def test_a_person_acknowledges_the_one_that_is_up(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It stands in the journal; any other is refused with the name of the one that is up."""
    for wrong in ("alarm-0", "x"):
        with pytest.raises(ConfigError, match="alarm-2 is"):
            alarms(project, wrong, as_json=False)
    alarms(project, "alarm-2", as_json=False)
    assert "acknowledged" in capsys.readouterr().out
    alarms(project, "", as_json=False)
    assert "UP, acknowledged: cleared at the next look: heat" in capsys.readouterr().out
    wiring = Wiring(project)
    (entry,) = read_messages(wiring.log, wiring.topics.journal, JournalEntry)
    wiring.close()
    assert (entry.kind, entry.evidence) == ("acknowledgement", {"alarm": "alarm-2"})


def test_a_project_without_looks_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing was compared yet."""
    pl.DataFrame({"heat": [1.0, 2.0] * 20, "late": ["no", "yes"] * 20}).write_parquet(tmp_path / "data.parquet")
    init_project(tmp_path / "data.parquet", tmp_path / "new", Choices(target="late"), "demo", {}, False)
    alarms(tmp_path / "new", "", as_json=False)
    assert "drift.window_rows" in capsys.readouterr().out
