"""What the demos print: commands that can be typed, and a table that fits a terminal."""

import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tidemill.cli.demo import typed_command, weeks_table
from tidemill.demo.weeks import Week


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a virtual environment's, whose Python runs; nothing else is on the path."""
    folder = tmp_path / "some where" / "bin"
    folder.mkdir(parents=True)
    (folder / "tidemill").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", os.defpath)
    return folder


def test_a_command_is_shown_as_it_can_be_typed(scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name only where the shell would find this very program; else by its path, seen from here."""
    assert typed_command() == f"'{scripts}/tidemill'"
    monkeypatch.chdir(tmp_path)
    assert typed_command() == "'some where/bin/tidemill'"
    monkeypatch.setenv("PATH", f"{scripts}:{os.defpath}")
    assert typed_command() == "tidemill"
    (tmp_path / "tidemill").touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{scripts}")
    assert typed_command() == "'some where/bin/tidemill'"
    (scripts / "tidemill").unlink()
    assert typed_command() == f"'{scripts}/python' -m tidemill"


def test_the_table_of_weeks_fits_80_columns() -> None:
    """Whatever it holds: no heading and no number is cut."""
    weeks = [Week("2013-01-21", 106_432, 0.2137, 0.4811, 0.4711, 0.6011, 0.7011), Week("all", 99, 1.0, 9.5, 9.5, 0.5, 0.5)]
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(weeks_table(weeks))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    for shown in ("2013-01-21", "106,432", "21.4%", "0.481", "retrained", "frozen", "log loss", "AUC", "flights", "week of"):
        assert shown in text, shown
