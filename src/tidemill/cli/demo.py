"""``tidemill demo``: the whole loop on real data, in a folder of its own."""

import shlex
import shutil
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.cli.options import Commands, number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tidemill.audit import Report
    from tidemill.demo.play import Summary
    from tidemill.demo.weeks import Week

MARK = ".tidemill-demo"
OWN_BROKER = "own"
KAFKA_HELP = "play on Apache Kafka: on a broker that runs, or (--kafka alone) on one started for it with Java and Maven."
JSON_HELP = """write the summary to FILE: demo (its name), requests (sent), answers, dead_letters, retrainings (finished,
without the first training), bundles (announced), bundles_among_answers (different hashes), versions (that answered),
mlflow_experiments, lost (requests without answer or dead letter), doubled (answered more than once), audit_clean, seconds,
latency_ms_median (of the newest answers)."""


def declare(commands: Commands) -> None:
    """Add it."""
    parser = commands.add("demo", demo, project=False)
    parser.add_argument("name", nargs="?", default="adult", help="adult (the default) or flights")
    parser.add_argument("--directory", type=Path, metavar="FOLDER", help="its folder; one of an earlier demo is replaced")
    for option, what in {
        "--messages": "requests to play",
        "--every": "labelled observations between retrainings",
        "--trials": "trials a retraining",
    }.items():
        parser.add_argument(option, type=number(int, 0), default=0, metavar="N", help=f"{what}; 0: the demo's own")
    rate_help = "requests a second; 0: the demo's own"
    parser.add_argument("--rate", type=number(float, 0), default=0.0, metavar="N", help=rate_help)
    parser.add_argument("--kafka", nargs="?", const=OWN_BROKER, type=_host_and_port, metavar="HOST:PORT", help=KAFKA_HELP)
    parser.add_argument("--json", dest="json_file", type=Path, metavar="FILE", help=JSON_HELP)


def demo(
    name: str,
    directory: Path | None,
    messages: int,
    every: int,
    trials: int,
    rate: float,
    kafka: str | None,
    json_file: Path | None,
) -> int:
    """Play the whole loop on real data. Exit code 0 only if everything came and the audit is clean."""
    import msgspec
    from rich.console import Console

    from tidemill.demo.plans import PLANS, set_stage
    from tidemill.demo.play import play
    from tidemill.errors import ConfigError

    if name not in PLANS:
        raise ConfigError(f"there is no demo {name!r}; there are {', '.join(PLANS)}")
    plan = PLANS[name]
    folder = directory or Path(f"demo-{name}")
    _clear(folder)
    console = Console(highlight=False)
    with _brokers(kafka, folder, console) as brokers:
        stage = set_stage(plan, folder, messages or plan.messages, every or plan.every, trials or plan.trials, brokers)
        console.print(f"{plan.title}\n{stage.requests:,} requests, {stage.retrainings} retrainings; all in {folder}/")
        summary, report = play(plan, stage, rate or plan.rate, console)
        if name == "flights":
            _print_weeks(folder, console)
        if json_file is not None:
            json_file.write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
        _print_summary(summary, report, folder, console)
    return 0 if _came_true(summary, stage.retrainings) else 1


def _host_and_port(text: str) -> str:
    if text != OWN_BROKER and not all(text.rpartition(":")):
        raise ArgumentTypeError(f"{text!r} is not HOST:PORT; the demo's name stands before the options")
    return text


@contextmanager
def _brokers(kafka: str | None, folder: Path, console: "Console") -> Iterator[str]:
    """The brokers to play on, or an empty text for the embedded log; one that is started here ends with the demo."""
    if kafka != OWN_BROKER:
        yield kafka or ""
        return
    from tidemill.testing.kafka_broker import KafkaBroker

    with KafkaBroker(folder / "kafka") as broker:
        console.print(f"Apache Kafka serves on {broker.bootstrap}")
        yield broker.bootstrap
        python = "python -m tidemill.testing.kafka_broker"
        console.print(
            f"The broker ends with the demo; start it again for these commands:\n"
            f"  {python} --folder {broker.folder} --port {broker.bootstrap.rpartition(':')[2]}",
            markup=False,
            soft_wrap=True,
        )


def _clear(folder: Path) -> None:
    """An earlier demo's folder is removed; anything else stays as it is."""
    from tidemill.errors import ConfigError

    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise ConfigError(f"{folder} holds something that no demo has made: choose another --directory")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def _came_true(summary: "Summary", retrainings: int) -> bool:
    answered = summary.answers + summary.dead_letters >= summary.requests
    return answered and summary.audit_clean and summary.retrainings == retrainings


def _print_weeks(folder: Path, console: "Console") -> None:
    from tidemill.cli.options import open_project
    from tidemill.demo.weeks import weeks

    with open_project(folder) as wiring:
        console.print(weeks_table(weeks(wiring)))


def weeks_table(weeks: Sequence["Week"]) -> "Table":
    """Week by week, at most 80 columns wide."""
    from rich.table import Table

    table = Table(title="The frozen first model, and the one that was retrained")
    measures = [f"{measure}\n{model}" for measure in ("log loss", "AUC") for model in ("frozen", "retrained")]
    for name in ("week of", "flights", "late", *measures):
        table.add_column(name, no_wrap=True, justify="right")
    for week in weeks:
        table.add_row(*_cells(week))
    return table


def _cells(week: "Week") -> list[str]:
    numbers = (week.frozen_log_loss, week.served_log_loss, week.frozen_auc, week.served_auc)
    return [week.week, f"{week.rows:,}", f"{week.positive_share:.1%}", *(f"{number:.3f}" for number in numbers)]


def _print_summary(summary: "Summary", report: "Report", folder: Path, console: "Console") -> None:
    import msgspec
    from rich.table import Table

    from tidemill.audit import render

    table = Table("what", "came to")
    for name, value in msgspec.to_builtins(summary).items():
        table.add_row(name.replace("_", " "), str(value))
    console.print(table)
    if not report.clean:
        console.print(render(report))
    command, project = typed_command(), f"--project {shlex.quote(str(folder))}"
    console.print(
        f"""Next:
  {command} status {project}    lag, versions, counts
  {command} audit {project}     the proof that nothing was lost or doubled
  {command} mlflow {project}    every trial of every retraining, on http://127.0.0.1:5000
  {command} rollback {project}  the version before, at once""",
        markup=False,
        soft_wrap=True,
    )


def typed_command() -> str:
    """How this program is called from here: by its name where the shell finds it under that, else by its path."""
    script = Path(sys.executable).with_name("tidemill")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m tidemill"
    named = shutil.which("tidemill")
    if named is not None and script.samefile(named):
        return "tidemill"
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))
