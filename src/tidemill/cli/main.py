"""The command line: ``tidemill COMMAND``. Commands import what they need when they run, so that --help is quick."""

import argparse
import io
import os
import sys
import traceback
from typing import NoReturn

from tidemill.cli import alarms, backtest, data, demo, drift, log, project, replay, roles, trials
from tidemill.cli.options import GENERAL, Commands, Parser, add_general_options, say
from tidemill.errors import TidemillError

EXTRAS = {
    **dict.fromkeys(("polars", "deltalake", "optuna", "sklearn"), "train"),
    "mlflow": "mlflow",
    "hyperopt": "hyperopt",
    "skopt": "skopt",
    "xgboost": "xgboost",
    "catboost": "catboost",
    "ray": "ray",
    "confluent_kafka": "kafka",
    "plotly": "report",
}
"""What the base install lacks: a predictor needs none of it."""


class ShowVersion(argparse.Action):
    """Looked up only where it is asked for."""

    def __call__(self, *_: object) -> NoReturn:
        from importlib.metadata import version
        from platform import python_version

        say(f"tidemill {version('tidemill')}, Python {python_version()}")
        sys.exit(0)


def declare() -> tuple[Parser, Commands]:
    """The whole command line, and its commands."""
    parser = Parser(
        "tidemill",
        "Real-time predictions from a stream of events, with models that keep learning\nfrom the outcomes.",
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, default=argparse.SUPPRESS, help="show it and end")
    add_general_options(parser)
    commands = Commands(parser)
    for module in (project, roles, replay, data, trials, alarms, drift, backtest, demo, log):
        module.declare(commands)
    return parser, commands


def main() -> None:
    """Run a command; a user's mistake ends in one line and an exit code that a script can use.

    What the output's encoding lacks (a column's name on an ASCII terminal) is shown escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
        sys.exit(code)
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


def _run(arguments: list[str]) -> int:
    """The command's exit code; what holds for every command goes to the environment, for the processes that it starts."""
    parser, _ = declare()
    options = vars(parser.parse_args(arguments))
    for option in GENERAL:
        if options.pop(option, False):
            os.environ[f"TIDEMILL_{option.upper()}"] = "1"
    return options.pop("run")(**options) or 0
