"""Commands that run: all roles (run), each role alone, the app's stand-in (replay), MLflow's pages (mlflow)."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tidemill.cli.options import ProjectOption, exit_on_signals, open_project, say, stop_on_signals

app = typer.Typer()
LONG_TURNS = ("trainer", "tracker")
"""An experiment takes minutes, MLflow's first answer 10 s: these end where they are, and go on there when started again."""
NICENESS = {"trainer": 10, "tracker": 10, "recorder": 5, "monitor": 5}
"""Whoever asks waits for the predictor alone: the others yield to it where they share a core."""


def start_logging() -> None:
    """Log lines as key=value (or JSON) on the standard output."""
    import structlog

    as_json = bool(os.environ.get("TIDEMILL_JSON_LOGS"))
    renderer = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )


def _role_command(role: str, text: str) -> Callable[[Path], None]:
    def run_alone(project: ProjectOption = Path(".")) -> None:
        start_logging()
        os.nice(NICENESS.get(role, 0))
        stop = exit_on_signals() if role in LONG_TURNS else stop_on_signals()
        with open_project(project) as wiring:
            wiring.run_role(role, stop)

    run_alone.__doc__ = text
    return run_alone


for _role, _text in {
    "predictor": "Answer requests, in this process.",
    "recorder": "Write the log's records into the lake, in this process.",
    "monitor": "Join outcomes, measure, and command retrainings, in this process.",
    "trainer": "Serve retrain commands, in this process.",
    "tracker": "Copy trials and versions to MLflow, in this process.",
}.items():
    app.command(_role)(_role_command(_role, _text))


@app.command()
def run(
    project: ProjectOption = Path("."),
    replay_file: Annotated[Path | None, typer.Option("--replay", help="Play this data set beside the roles.")] = None,
    replay_options: Annotated[str, typer.Option(help="Options for that replay, as one text.")] = "",
    predictors: Annotated[int, typer.Option(min=1, help="Processes that answer; on SQLite all but one stand by.")] = 1,
) -> None:
    """Run all roles as processes, restart what dies, stop in order on Ctrl-C."""
    import shlex

    from tidemill.configuration import load
    from tidemill.supervisor import Supervisor
    from tidemill.wiring import ROLES

    settings = load(project, os.environ).settings
    roles = [role for role in ROLES if role != "tracker" or settings.tracking.tracker != "none"]
    start = [sys.executable, "-m", "tidemill"]
    copies = {role: predictors if role == "predictor" else 1 for role in roles}
    commands = {
        role if number == 1 else f"{role}-{number}": [*start, role, "--project", str(project)]
        for role in roles
        for number in range(1, copies[role] + 1)
    }
    if replay_file is not None:
        commands["app"] = [*start, "replay", str(replay_file), "--project", str(project), *shlex.split(replay_options)]
    with open_project(project) as wiring:
        wiring.log.bounds(wiring.topics.requests)

    def check() -> None:
        load(project, os.environ)

    supervisor = Supervisor(commands, project / "run", check=check)
    raise typer.Exit(supervisor.run())


@app.command()
def mlflow(
    project: ProjectOption = Path("."),
    port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow's pages of the project, on loopback only."""
    import subprocess

    from tidemill.configuration import load
    from tidemill.tracking.mlflow import start_ui

    command = start_ui(load(project, os.environ).tracking_uri, port)
    say(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    raise typer.Exit(subprocess.run(command, check=False).returncode)
