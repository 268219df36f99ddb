"""``tidemill backtest``: retraining policies by evidence."""

import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.cli.options import Commands, check_page, exit_on_signals, number, open_project, say, write_page

if TYPE_CHECKING:
    from tidemill.backtest.result import Result
    from tidemill.backtest.run import Progress
    from tidemill.backtest.stream import Axis, Span, Stream
    from tidemill.core.policies import Policy
    from tidemill.wiring import Wiring

QUIET_SECONDS = 2.0
"""What is over sooner needs no progress."""
DELAY_MAX = 3_153_600_000
"""Seconds: a hundred years."""
LINE_SECONDS = 30.0
"""Between two lines of progress where the error stream is no terminal."""
MANY_TRAININGS = 50
"""From here on a person is told beforehand how many there will be."""
POLICY_HELP = "may be repeated; by default: never, the project's own, and that three and ten times as rare"


def declare(commands: Commands) -> None:
    """Add it."""
    parser = commands.add("backtest", backtest)
    parser.add_argument("--policy", action="append", default=[], metavar="P", help=POLICY_HELP)
    parser.add_argument("--data", type=Path, metavar="FILE", help="a data set; by default what the project has recorded")
    parser.add_argument(
        "--outcome-time", default="", metavar="COLUMN", help="with --data: the column that says when outcomes were known"
    )
    delay = number(float, 0, DELAY_MAX)
    parser.add_argument("--delay", type=delay, metavar="SECONDS", help="with --data: they were known so long after")
    parser.add_argument("--rows", type=number(int, 1), metavar="N", help="requests to play at most")
    parser.add_argument(
        "--from", dest="since", type=_time, metavar="TIME", help="the first request: 2013-02-01 or with a time"
    )
    parser.add_argument("--until", type=_time, metavar="TIME", help="requests before this time, UTC")
    axis_help = "without --data: whose times are played, the log's or the events' (found out by default)"
    parser.add_argument("--times", dest="axis", choices=("log", "event"), help=axis_help)
    trials_help = "of each retraining (%(default)s: the best parameters known, with new rounds); 0: tune.trials"
    parser.add_argument("--trials", type=number(int, 0), default=1, metavar="N", help=trials_help)
    seconds_help = "what a training takes of the stream's time (%(default)g: new versions serve at once)"
    seconds = number(float, 0, DELAY_MAX)
    parser.add_argument("--training-seconds", type=seconds, default=0.0, metavar="S", help=seconds_help)
    step_help = "events that are let through together at most; 0: 10,000"
    parser.add_argument("--step", type=number(int, 0), default=0, metavar="N", help=step_help)
    block_help = "hours of a block that is resampled, and of a window; 0: by the length of the stream"
    parser.add_argument("--block-hours", type=number(float, 0, DELAY_MAX), default=0.0, metavar="N", help=block_help)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with quality over time")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep each policy's project in this new folder")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="for scripts: all of it")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="for scripts: a line a policy")


def backtest(
    project: Path,
    policy: list[str],
    data: Path | None,
    outcome_time: str,
    delay: float | None,
    rows: int | None,
    since: int | None,
    until: int | None,
    axis: "Axis | None",
    trials: int,
    training_seconds: float,
    step: int,
    block_hours: float,
    html: Path | None,
    work: Path | None,
    form: str | None,
) -> None:
    """Compare retraining policies on what was recorded. Each plays the same requests and outcomes at their times through the
    project's own predictor, monitor and trainer, in a project of its own; then it is told how good the answers were, what
    the trainings cost, and which policy to choose. docs/backtest.md says how to read it.

    A policy is never, every:N (labelled observations), period:HOURS, drift, drop, or several joined by +, and may end in
    /window:N (rows to train on) and /cooldown:HOURS.
    """
    from tidemill.core.policies import parse

    exit_on_signals(unfinished=True)
    chosen = [parse(text) for text in policy]
    check_page(html)
    _log_errors_only()

    from tidemill.backtest.run import Plan
    from tidemill.backtest.run import backtest as run
    from tidemill.backtest.stream import Span

    with open_project(project, "trainer") as wiring:
        stream = _stream(wiring, data, outcome_time, delay, axis, Span(since, until, rows))
        policies = {one.name: one for one in chosen or _usual(wiring, stream)}
        _warn(list(policies.values()), stream.labelled)
        plan = Plan(list(policies.values()), trials, step, block_hours, training_seconds, work)
        with _progress(len(policies)) as tell:
            result = run(wiring.configuration, stream, plan, tell)
    _print(result, form)
    if html is not None:
        from tidemill.backtest.page import page

        write_page(page(result), html, quiet=form is not None)
    if work is not None and form is None:
        say(f"the policies' projects are in {work}; tidemill trials latest -p {work}/1-... shows the newest search")


def _time(text: str) -> int:
    from tidemill.texts import milliseconds

    try:
        return milliseconds(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no date or time like 2013-02-01 or 2013-02-01T06:30") from None


def _log_errors_only() -> None:
    """The roles' lines are of another day: only what goes wrong is told, on the error stream."""
    import logging

    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _stream(
    wiring: "Wiring", data: Path | None, outcome_time: str, delay: float | None, axis: "Axis | None", span: "Span"
) -> "Stream":
    from tidemill.backtest.stream import Stream, of_lake, of_table
    from tidemill.errors import ConfigError
    from tidemill.tables import read_table

    if data is not None:
        schema = wiring.configuration.schema
        return Stream(of_table(read_table(data), data.stem, schema, wiring.topics, outcome_time, delay), span)
    if outcome_time or delay is not None:
        raise ConfigError("--outcome-time and --delay say when the outcomes of --data FILE were known")
    return Stream(of_lake(wiring.lake, wiring.topics, axis), span)


def _usual(wiring: "Wiring", stream: "Stream") -> "list[Policy]":
    import msgspec

    from tidemill.core.policies import of_settings, usual

    return usual(of_settings(msgspec.structs.asdict(wiring.settings.retrain)), stream.labelled)


def _warn(policies: "list[Policy]", labelled: int) -> None:
    """Before hours of work, not after them."""
    trainings = sum(labelled // one.every for one in policies if one.every)
    if trainings >= MANY_TRAININGS:
        names = ", ".join(one.name for one in policies)
        sys.stderr.write(f"some {trainings:,} retrainings to come ({names}); --policy and --rows make them fewer\n")


@contextmanager
def _progress(policies: int) -> "Iterator[Callable[[Progress], None]]":
    """What is done, on the error stream, from the third second on: a line that changes, or, where that is no terminal, one
    every half minute.
    """
    started = shown = time.monotonic()
    seen: list[str] = []
    policy_started = started
    terminal = sys.stderr.isatty()

    def tell(progress: "Progress") -> None:
        nonlocal shown, policy_started
        now = time.monotonic()
        if progress.policy not in seen:
            seen.append(progress.policy)
        if progress.played is None or not progress.played.done:
            policy_started = now
        if now - started < QUIET_SECONDS or now - shown < (0.2 if terminal else LINE_SECONDS):
            return
        shown = now
        text = f"{len(seen)}/{policies} {progress.policy}: {_state(progress, now - policy_started)}"
        sys.stderr.write(f"\r\x1b[K{text[:100]}" if terminal else f"{text}\n")
        sys.stderr.flush()

    try:
        yield tell
    finally:
        if terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _state(progress: "Progress", seconds: float) -> str:
    played = progress.played
    if played is None:
        return "the first model"
    rate = f", {played.done / seconds:,.0f} a second" if seconds > 0 else ""
    return f"{played.done:,} of {played.all:,} events{rate}, {played.trainings} retrainings"


def _print(result: "Result", form: str | None) -> None:
    import msgspec

    from tidemill.backtest.text import render, to_csv

    if form == "json":
        say(msgspec.json.encode(result).decode())
    elif form == "csv":
        say(to_csv(result).rstrip("\n"))
    else:
        say(render(result))
