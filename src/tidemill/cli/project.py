"""Commands that make and train a project: init, config, train."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tidemill.cli.options import ProjectOption, exit_on_signals, open_project, say

app = typer.Typer()


@app.command()
def init(
    data: Annotated[Path, typer.Argument(help="The original data: a CSV or Parquet file.")],
    target: Annotated[str, typer.Option(help="The column to predict.")],
    project: ProjectOption = Path("."),
    name: Annotated[str, typer.Option(help="The project's name; by default the folder's.")] = "",
    task: Annotated[str, typer.Option(help="binary, multiclass or regression; inferred by default.")] = "",
    id_column: Annotated[str, typer.Option("--id", help="The column of the request id, no feature.")] = "",
    time_column: Annotated[str, typer.Option("--time", help="The column of the event time, no feature.")] = "",
    ignore: Annotated[list[str] | None, typer.Option(help="A column that is no feature; may be repeated.")] = None,
    positive: Annotated[str, typer.Option(help="The class whose probability is answered, of two.")] = "",
    setting: Annotated[list[str] | None, typer.Option("--set", help="SECTION.KEY=VALUE; may be repeated.")] = None,
    force: Annotated[bool, typer.Option(help="Overwrite the project's files.")] = False,
) -> None:
    """Look at a table and write tidemill.toml and schema.json, to be edited."""
    from tidemill.core.inference import Choices
    from tidemill.errors import ConfigError
    from tidemill.new_project import init_project

    if task not in ("", "binary", "multiclass", "regression"):
        raise ConfigError(f"--task {task} is not one of binary, multiclass, regression")
    choices: Any = {"target": target, "task": task, "id": id_column, "time": time_column, "positive": positive}
    made = init_project(data, project, Choices(ignore=tuple(ignore or ()), **choices), name, _settings(setting or []), force)
    for line in made.summary:
        say(line)


def _settings(given: list[str]) -> dict[str, str]:
    from tidemill.errors import ConfigError

    for item in given:
        if "=" not in item:
            raise ConfigError(f"--set {item} is not of the form SECTION.KEY=VALUE")
    return {key: value for key, _, value in (item.partition("=") for item in given)}


@app.command()
def config(project: ProjectOption = Path(".")) -> None:
    """Print every setting that is in force, and where its value comes from."""
    import os

    from tidemill.configuration import describe, load

    rows = describe(load(project, os.environ))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        say(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}")


@app.command()
def train(
    project: ProjectOption = Path("."),
    again: Annotated[bool, typer.Option(help="Train even where there is a model already.")] = False,
) -> None:
    """Train the first model (or, with --again, a new one on all observations so far)."""
    from tidemill.cli.training import train_now

    exit_on_signals(unfinished=True)
    with open_project(project) as wiring:
        raise typer.Exit(train_now(wiring, again))
