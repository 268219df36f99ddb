"""The documents say what the code does: README's blocks run, and what a person can meet is in the reference."""

import re
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import typer.main

from tidemill.cli.main import app
from tidemill.core.inspection import REASONS
from tidemill.messages import Topics
from tidemill.tables import read_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
ADULT = ROOT / "src" / "tidemill" / "datasets" / "adult.parquet"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Every command, those of groups too."""
    group = typer.main.get_command(app)
    names = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        names += [f"{name} {inner}" for inner in getattr(command, "commands", {})] or [name]
    return names


@pytest.mark.process
def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The console block makes, trains and runs a project; the Python block gets an answer from it."""
    table = read_table(ADULT).select("age", "workclass", pl.col("income_over_50k").alias("income")).head(2000)
    table.write_csv(tmp_path / "people.csv")
    monkeypatch.chdir(tmp_path)
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    tidemill = [line.split()[1:] for line in lines if line.startswith("tidemill")]
    assert [line[0] for line in tidemill] == ["init", "train", "run"]
    for arguments in tidemill[:-1]:
        subprocess.run([sys.executable, "-m", "tidemill", *arguments], check=True, capture_output=True)
    with subprocess.Popen([sys.executable, "-m", "tidemill", *tidemill[-1]], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            while "model_swapped" not in process.stdout.readline():
                assert process.poll() is None
            (code,) = blocks("python")
            told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        finally:
            process.terminate()
            started = time.monotonic()
            process.communicate()
    label, probability, version = told.split()
    assert (label, version) in {("0", "1"), ("1", "1")}
    assert 0 < float(probability) < 1
    assert time.monotonic() - started < 10, "it must stop in order"


@pytest.mark.parametrize("command", commands())
def test_every_command_is_in_the_readme(command: str) -> None:
    """A command that a person can type stands in README's table."""
    assert re.search(rf"`(tidemill )?{command}`", README), command


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_in_the_reference(reason: str) -> None:
    """Whoever finds a reason in a dead letter can look it up."""
    assert f"| `{reason}` |" in REFERENCE


def test_every_topic_is_in_the_reference() -> None:
    """Whoever reads the log can look up each topic."""
    for name in Topics.__struct_fields__:
        assert f"| `{name.replace('_', '-')}` |" in REFERENCE


def test_every_event_is_in_the_reference() -> None:
    """Events are named in code as ``Event("name"``, or through a role's own function for them."""
    source = "\n".join(path.read_text() for path in (ROOT / "src" / "tidemill" / "roles").glob("*.py"))
    names = set(re.findall(r'(?:Event\(|_event\(|_emit\()\s*"([a-z_]+)"', source))
    assert {"model_swapped", "experiment_started"} <= names
    for name in names:
        assert f"| `{name}` |" in REFERENCE, name


def test_links_lead_somewhere() -> None:
    """Every relative link of every document is a file."""
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_invariant_names_tests_that_exist() -> None:
    """ARCHITECTURE.md's table names a file, or a shipped contract."""
    rows = [line for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if "| Invariant: " in line]
    assert len(rows) >= 10
    for row in rows:
        named = re.findall(r"`(tests/[^`]+)`", row)
        assert named or "Contract" in row, row
        for file in named:
            assert (ROOT / file).exists(), file


def test_the_documents_speak_of_the_project_only() -> None:
    """No path of a machine stands in a tracked text."""
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        assert str(ROOT) not in document.read_text()
