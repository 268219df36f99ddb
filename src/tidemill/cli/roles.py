"""Commands that run: all roles (run), each role alone, the app's stand-in (replay), MLflow's pages (mlflow)."""

import os
import sys
from pathlib import Path

from tidemill.cli.options import Commands, Run, exit_on_signals, number, open_project, say, stop_on_signals

LONG_TURNS = ("trainer", "tracker")
"""An experiment takes minutes, MLflow's first answer 10 s: these end where they are, and go on there when started again."""


def start_logging() -> None:
    """Log lines as key=value (or JSON) on the standard output."""
    from tidemill.imports import hidden

    with hidden("rich"):  # 0.13 s, for tracebacks in colour that are not shown
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


def declare(commands: Commands) -> None:
    """Add them."""
    for role, text in {
        "predictor": "Answer requests, in this process.",
        "recorder": "Write the log's records into the lake, in this process.",
        "monitor": "Join outcomes, measure, and command retrainings, in this process.",
        "trainer": "Serve retrain commands, in this process.",
        "tracker": "Copy trials and versions to MLflow, in this process.",
    }.items():
        commands.add(role, _role_command(role), text)
    all_roles = commands.add("run", run)
    all_roles.add_argument(
        "--replay", dest="replay_file", type=Path, metavar="DATA", help="play this data set beside the roles"
    )
    options_help = "options for that replay, as one text: --replay-options='--rate 100 --quiet'"
    all_roles.add_argument("--replay-options", default="", metavar="TEXT", help=options_help)
    predictors_help = "processes that answer (%(default)s); on SQLite all but one stand by"
    all_roles.add_argument("--predictors", type=number(int, 1), default=1, metavar="N", help=predictors_help)
    port = number(int, 1, 65535)
    commands.add("mlflow", mlflow).add_argument(
        "--port", type=port, default=5000, metavar="N", help="on 127.0.0.1 (%(default)s)"
    )


def _role_command(role: str) -> Run:
    def run_alone(project: Path) -> None:
        start_logging()
        stop = exit_on_signals() if role in LONG_TURNS else stop_on_signals()
        with open_project(project, role) as wiring:
            wiring.run_role(role, stop)

    return run_alone


def run(project: Path, replay_file: Path | None, replay_options: str, predictors: int) -> int:
    """Run all roles as processes, restart what dies, stop in order on Ctrl-C. SIGHUP restarts them one by one, with what
    tidemill.toml says by then.
    """
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
    return supervisor.run()


def mlflow(project: Path, port: int) -> int:
    """Open MLflow's pages of the project, on loopback only."""
    import signal
    import subprocess
    from contextlib import suppress

    from tidemill.configuration import load
    from tidemill.tracking.mlflow import start_ui

    _check_free(port)
    command = start_ui(load(project, os.environ).tracking_uri, port)
    stop = stop_on_signals()
    with subprocess.Popen(command, process_group=0) as process:  # it has children that a signal to it alone leaves behind
        say(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
        try:
            while process.poll() is None and not stop.wait(0.2):
                pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
    return 0 if stop.is_set() else process.returncode or 1


def _check_free(port: int) -> None:
    """Raises ``ConfigError``: MLflow itself says it in its own words, after half a minute, with exit code 0."""
    import socket

    from tidemill.errors import ConfigError

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"port {port} cannot be used ({error.strerror}): give another one with --port") from error
