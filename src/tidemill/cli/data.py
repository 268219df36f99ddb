"""Commands that look and judge: status, audit, promote, rollback."""

from pathlib import Path

from tidemill.cli.options import Commands, number, open_project, say


def declare(commands: Commands) -> None:
    """Add them."""
    commands.add("status", status).add_argument("--json", dest="as_json", action="store_true", help="for scripts")
    proof = commands.add("audit", audit)
    proof.add_argument(
        "--sample", type=number(int, 0), default=1000, metavar="N", help="answers to recompute, bit for bit (%(default)s)"
    )
    proof.add_argument("--json", dest="as_json", action="store_true", help="for scripts")
    commands.add("promote", promote)
    back = commands.add("rollback", rollback)
    back.add_argument("--version", type=int, metavar="N", help="by default the one before the champion")


def status(project: Path, as_json: bool) -> None:
    """Show roles, lag, versions and counts."""
    import msgspec

    from tidemill.status import render, status

    with open_project(project) as wiring:
        found = status(wiring.log, wiring.topics, project / "run", wiring.clock)
        say(msgspec.json.encode(found).decode() if as_json else render(found))


def audit(project: Path, sample: int, as_json: bool) -> int:
    """Prove from the log and the lake that nothing was lost, doubled or changed. Exit code 1 if something was."""
    import msgspec

    from tidemill.audit import audit, render

    with open_project(project, "audit") as wiring:
        wait_ms = round(wiring.settings.labels.wait_hours * 3_600_000)
        report = audit(wiring.log, wiring.topics, wiring.lake, wiring.store, sample, labels_wait_ms=wait_ms)
        say(msgspec.json.encode(report).decode() if as_json else render(report))
    return 0 if report.clean else 1


def promote(project: Path) -> None:
    """Make the challenger the champion."""
    from tidemill.roles.promotion import promote

    with open_project(project) as wiring:
        say(f"version {promote(wiring.log, wiring.topics, wiring.store, wiring.clock).version} serves from now on")


def rollback(project: Path, version: int | None) -> None:
    """Make an older version the champion again, at once."""
    from tidemill.roles.promotion import rollback

    with open_project(project) as wiring:
        found = rollback(wiring.log, wiring.topics, wiring.store, wiring.clock, version)
        say(f"version {found.version} serves from now on")
