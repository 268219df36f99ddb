"""What each demo plays: its data, its project's settings, and when it is over."""

import uuid
from collections.abc import Callable
from pathlib import Path

import polars as pl
from msgspec import Struct

from tidemill.core.inference import Choices
from tidemill.new_project import init_project
from tidemill.tables import read_table

DATASETS = Path(__file__).parents[1] / "datasets"
FLIGHTS_ORIGINAL_OUTCOMES = 20_000
FLIGHTS_END = pl.datetime(2013, 5, 11, time_zone="UTC")


class Plan(Struct, frozen=True):
    """A demo: ``prepare`` splits the shipped table into original data and a stream; the rest is how it is played."""

    name: str
    title: str
    choices: Choices
    settings: dict[str, str]
    prepare: Callable[[int], tuple[pl.DataFrame, pl.DataFrame]]
    messages: int
    every: int
    trials: int
    rate: float
    replay_options: str = ""
    outcomes_column: str = ""


def _adult(messages: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The original train file, and the first rows of the test file as the stream."""
    table = read_table(DATASETS / "adult.parquet")
    return table.filter(pl.col("split") == "train"), table.filter(pl.col("split") == "test").head(messages)


def _flights(messages: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What was known when 20,000 outcomes had come (24 January), and the flights from then to 10 May."""
    table = read_table(DATASETS / "flights.parquet").sort("id")
    known = table["outcome_time"].drop_nulls().sort()[FLIGHTS_ORIGINAL_OUTCOMES - 1]
    original = table.filter(pl.col("outcome_time") <= known)
    stream = table.filter((pl.col("request_time") > known) & (pl.col("request_time") < FLIGHTS_END))
    return original, stream.head(messages)


ADULT = Plan(
    name="adult",
    title="UCI Adult: does a person earn more than 50,000 dollars a year?",
    choices=Choices(target="income_over_50k", ignore=("split", "fnlwgt")),
    settings={"retrain.commands": "queue", "verdict.policy": "always", "lake.flush_seconds": "0.5", "tune.workers": "2"},
    prepare=_adult,
    messages=200,
    every=50,
    trials=10,
    rate=1.25,
)
FLIGHTS = Plan(
    name="flights",
    title="Flights from New York, 2013: will it arrive 15 or more minutes late?",
    choices=Choices(target="late", id="id", time="request_time", ignore=("arr_delay", "outcome_time")),
    settings={
        "retrain.commands": "queue",
        "verdict.policy": "always",
        "retrain.window_rows": "20000",
        "lake.flush_seconds": "0.5",
    },
    prepare=_flights,
    messages=1_000_000,
    every=10_000,
    trials=5,
    rate=3000.0,
    replay_options="--outcome-time outcome_time --in-step --quiet",
    outcomes_column="outcome_time",
)
PLANS = {plan.name: plan for plan in (ADULT, FLIGHTS)}


class Stage(Struct, frozen=True):
    """A demo's folder, ready to run, and what it must come to."""

    directory: Path
    stream: Path
    requests: int
    outcomes: int
    retrainings: int


def set_stage(plan: Plan, directory: Path, messages: int, every: int, trials: int, brokers: str = "") -> Stage:
    """Write the data and the project into ``directory``; with ``brokers`` its log is on Kafka.

    Raises ``ConfigError`` where it holds a project already.
    """
    original, stream = plan.prepare(messages)
    settings = plan.settings | {"retrain.every": str(every), "tune.trials": str(trials)}
    name = plan.name
    if brokers:
        settings["stream.url"] = f"kafka://{brokers}"
        name += f"-{uuid.uuid4().hex[:6]}"  # an earlier demo's topics may be there
    directory.mkdir(parents=True, exist_ok=True)
    original.write_parquet(directory / "original.parquet")
    stream.write_parquet(directory / f"{plan.name}.parquet")
    init_project(directory / "original.parquet", directory, plan.choices, name, settings)
    outcomes = stream[plan.choices.target].drop_nulls().len()
    return Stage(directory, directory / f"{plan.name}.parquet", len(stream), outcomes, outcomes // every)
