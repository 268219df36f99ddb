"""``tidemill replay``: a data set as the user's service."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.cli.options import Commands, open_project, say, stop_on_signals

if TYPE_CHECKING:
    from tidemill.app.replay import Asked, Summary
    from tidemill.wiring import Wiring


def declare(commands: Commands) -> None:
    """Add it."""
    parser = commands.add("replay", replay)
    parser.add_argument("data", type=Path, help="the data set: a CSV or Parquet file with the schema's columns")
    parser.add_argument("--rate", type=float, default=10.0, metavar="N", help="requests a second (%(default)s)")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="rows to skip")
    parser.add_argument("--limit", type=int, metavar="N", help="rows to play at most")
    time_help = "a column: outcomes come when it says, in the stream's own time"
    parser.add_argument("--outcome-time", default="", metavar="COLUMN", help=time_help)
    parser.add_argument("--delay", type=float, metavar="SECONDS", help="outcomes come so long after their requests")
    step_help = "wait for each retraining that the outcomes cause, and its swap"
    parser.add_argument("--in-step", action="store_true", help=step_help)
    parser.add_argument("--quiet", action="store_true", help="print the summary only")


def replay(
    data: Path,
    project: Path,
    rate: float,
    start: int,
    limit: int | None,
    outcome_time: str,
    delay: float | None,
    in_step: bool,
    quiet: bool,
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
