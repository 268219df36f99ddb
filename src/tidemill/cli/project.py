"""Commands that make and train a project: init, config, train."""

from pathlib import Path
from typing import Any

from tidemill.cli.options import Commands, exit_on_signals, open_project, say


def declare(commands: Commands) -> None:
    """Add them."""
    new = commands.add("init", init)
    new.add_argument("data", type=Path, help="the original data: a CSV or Parquet file")
    new.add_argument("--target", required=True, metavar="COLUMN", help="the column to predict")
    new.add_argument("--name", default="", help="the project's name; by default the folder's")
    new.add_argument("--task", default="", help="binary, multiclass or regression; inferred by default")
    new.add_argument("--id", dest="id_column", default="", metavar="COLUMN", help="the column of the request id, no feature")
    new.add_argument(
        "--time", dest="time_column", default="", metavar="COLUMN", help="the column of the event time, no feature"
    )
    new.add_argument(
        "--ignore", action="append", default=[], metavar="COLUMN", help="a column that is no feature; may be repeated"
    )
    new.add_argument("--positive", default="", metavar="CLASS", help="the class whose probability is answered, of two")
    new.add_argument(
        "--set", dest="setting", action="append", default=[], metavar="SECTION.KEY=VALUE", help="may be repeated"
    )
    new.add_argument("--force", action="store_true", help="overwrite the project's files")
    commands.add("config", config)
    commands.add("train", train).add_argument(
        "--again", action="store_true", help="train even where there is a model already"
    )


def init(
    data: Path,
    target: str,
    project: Path,
    name: str,
    task: str,
    id_column: str,
    time_column: str,
    ignore: list[str],
    positive: str,
    setting: list[str],
    force: bool,
) -> None:
    """Look at a table and write tidemill.toml and schema.json, to be edited."""
    from tidemill.core.inference import Choices
    from tidemill.errors import ConfigError
    from tidemill.new_project import init_project

    if task not in ("", "binary", "multiclass", "regression"):
        raise ConfigError(f"--task {task} is not one of binary, multiclass, regression")
    choices: Any = {"target": target, "task": task, "id": id_column, "time": time_column, "positive": positive}
    made = init_project(data, project, Choices(ignore=tuple(ignore), **choices), name, _settings(setting), force)
    for line in made.summary:
        say(line)


def _settings(given: list[str]) -> dict[str, str]:
    from tidemill.errors import ConfigError

    for item in given:
        if "=" not in item:
            raise ConfigError(f"--set {item} is not of the form SECTION.KEY=VALUE")
    return {key: value for key, _, value in (item.partition("=") for item in given)}


def config(project: Path) -> None:
    """Print every setting that is in force, and where its value comes from."""
    from tidemill.configuration import describe
    from tidemill.wiring import Wiring

    rows = describe(Wiring(project).configuration)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        say(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}")


def train(project: Path, again: bool) -> int:
    """Train the first model (or, with --again, a new one on all observations so far)."""
    from tidemill.cli.training import train_now

    exit_on_signals(unfinished=True)
    with open_project(project, "trainer") as wiring:
        return train_now(wiring, again)
