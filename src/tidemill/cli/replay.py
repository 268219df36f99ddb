"""``tidemill replay``: a data set as the user's service."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.cli.options import ProjectOption, open_project, say, stop_on_signals

if TYPE_CHECKING:
    from tidemill.app.replay import Asked, Summary
    from tidemill.wiring import Wiring

app = typer.Typer()


@app.command()
def replay(
    data: Annotated[Path, typer.Argument(help="The data set: a CSV or Parquet file with the schema's columns.")],
    project: ProjectOption = Path("."),
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 10.0,
    start: Annotated[int, typer.Option(help="Rows to skip.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Rows to play at most.")] = None,
    outcome_time: Annotated[str, typer.Option(help="A column: outcomes come when it says, in the stream's own time.")] = "",
    delay: Annotated[float | None, typer.Option(help="Outcomes come so many seconds after their requests.")] = None,
    in_step: Annotated[bool, typer.Option(help="Wait for each retraining that the outcomes cause, and its swap.")] = False,
    quiet: Annotated[bool, typer.Option(help="Print the summary only.")] = False,
) -> None:
    """Play a data set as the service: send requests, receive answers, report outcomes. Started again, it goes on."""
    import msgspec

    from tidemill.app.data_set import Options
    from tidemill.app.replay import Replay
    from tidemill.tables import read_table

    stop = stop_on_signals()
    options = Options(rate=rate, start=start, limit=limit, outcome_time=outcome_time, delay=delay)
    with open_project(project) as wiring:
        frame = read_table(data)
        _wait_for_model(wiring, stop)
        gate = _in_step(wiring) if in_step else lambda summary: True
        told = _nothing if quiet else _tell
        playing = Replay(
            wiring.log, wiring.topics, wiring.configuration.schema, frame, data.stem, options, wiring.clock, told, gate
        )
        summary = playing.run(stop)
    for name, value in msgspec.to_builtins(summary).items():
        shown = f"{value:,.1f}" if isinstance(value, float) else value
        say(f"{name.replace('_', ' '):<18} {shown}")


def _wait_for_model(wiring: "Wiring", stop: threading.Event) -> None:
    from tidemill.roles.promotion import read_slots

    if read_slots(wiring.log, wiring.topics).champion is None:
        say("waiting for the first model")
        while read_slots(wiring.log, wiring.topics).champion is None and not stop.wait(0.25):
            pass


def _nothing(asked: "Asked") -> None:
    pass


def _tell(asked: "Asked") -> None:
    """One line: who asked, what, the answer, and the truth."""
    from tidemill.errors import BadRecord

    features = " ".join(f"{name}={value}" for name, value in list(asked.features.items())[:4])
    if isinstance(asked.answer, BadRecord):
        say(f"{asked.id}  {features} ...  refused: {asked.answer}")
        return
    answer = asked.answer
    score = f" p={answer.probability:.3f}" if answer.probability is not None else ""
    truth = "" if asked.truth is None else f"  truth {asked.truth}"
    said = f"{answer.prediction}{score}  version {answer.version}  {asked.latency_ms:.0f} ms{truth}"
    say(f"{asked.id}  {features} ...  -> {said}")


def _in_step(wiring: "Wiring") -> Callable[["Summary"], bool]:
    """Open while the outcomes sent so far have had their retrainings, and the champion is the version that answers."""
    from tidemill.demo.watch import Follower, Watch

    watch = Watch(wiring.topics)
    follower = Follower(wiring.log, watch, [wiring.topics.journal, wiring.topics.models, wiring.topics.events])
    every = wiring.settings.retrain.every

    def gate(summary: "Summary") -> bool:
        due = {f"labelled-{rows}" for rows in range(every, summary.outcomes + summary.skipped_outcomes + 1, every)}
        if due <= watch.finished() and watch.swapped():
            return True
        follower.step()
        return due <= watch.finished() and watch.swapped()

    return gate
