"""Commands that look and judge: status, audit, log check, promote, rollback."""

from pathlib import Path
from typing import Annotated

import typer

from tidemill.cli.options import ProjectOption, open_project, say

app = typer.Typer()
log_app = typer.Typer(help="The embedded log.", no_args_is_help=True)
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]


@app.command()
def status(project: ProjectOption = Path("."), as_json: JsonOption = False) -> None:
    """Show roles, lag, versions and counts."""
    import msgspec

    from tidemill.status import render, status

    with open_project(project) as wiring:
        found = status(wiring.log, wiring.topics, project / "run", wiring.clock)
        say(msgspec.json.encode(found).decode() if as_json else render(found))


@app.command()
def audit(
    project: ProjectOption = Path("."),
    sample: Annotated[int, typer.Option(min=0, help="Answers to recompute, bit for bit.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """Prove from the log and the lake that nothing was lost, doubled or changed. Exit code 1 if something was."""
    import msgspec

    from tidemill.audit import audit, render

    with open_project(project) as wiring:
        wait_ms = round(wiring.settings.labels.wait_hours * 3_600_000)
        report = audit(wiring.log, wiring.topics, wiring.lake, wiring.store, sample, labels_wait_ms=wait_ms)
        say(msgspec.json.encode(report).decode() if as_json else render(report))
    raise typer.Exit(0 if report.clean else 1)


@app.command()
def promote(project: ProjectOption = Path(".")) -> None:
    """Make the challenger the champion."""
    from tidemill.roles.promotion import promote

    with open_project(project) as wiring:
        say(f"version {promote(wiring.log, wiring.topics, wiring.store, wiring.clock).version} serves from now on")


@app.command()
def rollback(
    project: ProjectOption = Path("."),
    version: Annotated[int | None, typer.Option(help="By default the one before the champion.")] = None,
) -> None:
    """Make an older version the champion again, at once."""
    from tidemill.roles.promotion import rollback

    with open_project(project) as wiring:
        found = rollback(wiring.log, wiring.topics, wiring.store, wiring.clock, version)
        say(f"version {found.version} serves from now on")


@log_app.command("check")
def log_check(
    folder: Annotated[Path | None, typer.Argument(help="A log's folder; by default the project's.")] = None,
    project: ProjectOption = Path("."),
) -> None:
    """Audit the files of a log: integrity, checksums, offsets, positions. Exit code 1 if something is wrong."""
    import os

    from tidemill.configuration import load
    from tidemill.log.sqlite_check import check

    report = check(folder or load(project, os.environ).log_folder)
    for topic in report.topics:
        say(f"{topic.topic:<28} offsets {topic.first} to {topic.end}, {topic.records} records")
    for group in report.groups:
        say(f"{group.group:<28} {group.topic}: position {group.committed}, {group.lag} behind")
    say(f"{report.root}: {report.file_bytes:,} bytes, SQLite {report.sqlite_version}")
    for problem in report.problems:
        say(f"problem: {problem}")
    say("the log is good" if not report.problems else f"{len(report.problems)} problems")
    raise typer.Exit(1 if report.problems else 0)
