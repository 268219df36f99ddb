"""Commands that look and judge: status, audit, promote, rollback."""

from pathlib import Path
from typing import Annotated

import typer

from tidemill.cli.options import ProjectOption, open_project, say

app = typer.Typer()
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
