"""The command line: ``tidemill COMMAND``. Commands import what they need when they run, so that --help is quick."""

import io
import os
import sys
import traceback
from typing import Annotated

import typer

from tidemill.cli import data, demo, log, project, replay, roles
from tidemill.errors import TidemillError

EXTRAS = {
    **dict.fromkeys(("polars", "deltalake", "optuna", "sklearn"), "train"),
    "mlflow": "mlflow",
    "confluent_kafka": "kafka",
}
"""What the base install lacks: a predictor needs none of it."""

app = typer.Typer(
    name="tidemill",
    help="Real-time predictions from a stream of events, with models that keep learning from the outcomes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
for commands in (project.app, roles.app, replay.app, data.app, demo.app):
    app.registered_commands.extend(commands.registered_commands)
app.add_typer(log.app, name="log")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log lines as JSON.")] = False,
) -> None:
    """Take what holds for every command."""
    if debug:
        os.environ["TIDEMILL_DEBUG"] = "1"
    if json_logs:
        os.environ["TIDEMILL_JSON_LOGS"] = "1"


def main() -> None:
    """Run a command; a user's mistake ends in one line and an exit code that a script can use.

    What the output's encoding lacks (a column's name on an ASCII terminal) is shown escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(demo.with_optional_value(sys.argv[1:]))
    except TidemillError as error:
        if os.environ.get("TIDEMILL_DEBUG"):
            traceback.print_exc()
        sys.stderr.write(f"tidemill: {error}\n")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        sys.stderr.write(f"tidemill: this needs the package {error.name!r}: pip install 'tidemill[{extra}]'\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (| head); a flush at exit would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
