"""The demo's live view: app, predictor and trainer side by side on a terminal, plain lines elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from tidemill.demo.plans import Plan, Stage
from tidemill.demo.watch import LINES, Watch
from tidemill.messages import JournalEntry, Trial


class View(Protocol):
    """Shows a watch whenever it has changed."""

    def show(self, watch: Watch) -> None:
        """Show it now."""
        ...


@contextmanager
def open_view(console: Console, plan: Plan, stage: Stage) -> Iterator[View]:
    """Panes on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield Lines(console, stage)
        return
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        yield Panes(live, plan, stage)


class Lines:
    """A line for each step worth telling."""

    def __init__(self, console: Console, stage: Stage) -> None:
        self._console = console
        self._stage = stage
        self._told: set[str] = set()

    def show(self, watch: Watch) -> None:
        """Tell what is new."""
        for line in self._news(watch):
            if line not in self._told:
                self._told.add(line)
                self._console.print(line, markup=False, highlight=False)

    def _news(self, watch: Watch) -> Iterator[str]:
        for experiment, trials in watch.trials.items():
            yield from (f"trainer    {experiment}: trial {number + 1}, {_ended(trial)}" for number, trial in trials.items())
        yield from (f"trainer    {_verdict(entry)}" for entry in watch.entries)
        yield from (f"predictor  serves version {event.values.get('version')}" for event in watch.swaps)
        step = max(1, self._stage.requests // 20)
        if watch.answers >= step:
            yield f"app        {watch.answers // step * step:,} of {self._stage.requests:,} requests answered"


class Panes:
    """Three panes and a foot."""

    def __init__(self, live: Live, plan: Plan, stage: Stage) -> None:
        self._live = live
        self._plan = plan
        self._stage = stage

    def show(self, watch: Watch) -> None:
        """Redraw."""
        layout = Layout()
        layout.split_column(Layout(name="top", size=LINES + 2), Layout(self._foot(watch), size=3))
        layout["top"].split_row(
            _pane("app", "\n".join(watch.app) or "waiting for the first model", "cyan"),
            _pane("predictor", self._predictor(watch), "green"),
            _pane("trainer", self._trainer(watch), "yellow"),
        )
        self._live.update(layout)

    def _foot(self, watch: Watch) -> Panel:
        done = len([entry for entry in watch.entries if entry.id != "first"])
        text = (
            f"{watch.answers:,}/{self._stage.requests:,} answers   {watch.outcomes:,}/{self._stage.outcomes:,} outcomes   "
            f"{done}/{self._stage.retrainings} retrainings   {watch.dead_letters} dead letters"
        )
        return Panel(Text(text), title=self._plan.title)

    def _predictor(self, watch: Watch) -> str:
        champion = watch.slots.champion
        lines = [f"champion: version {champion.version}, {champion.bundle[:12]}" if champion else "no model yet", ""]
        lines += [f"version {version}: {count:,} answers" for version, count in sorted(watch.by_version.items())[-6:]]
        if watch.latencies_ms:
            lines += ["", f"newest answers: median {sorted(watch.latencies_ms)[len(watch.latencies_ms) // 2]} ms"]
        return "\n".join(lines)

    def _trainer(self, watch: Watch) -> str:
        lines = [f"{entry.experiment}: v{entry.version} {entry.verdict}{_score_of(entry)}" for entry in watch.entries[-5:]]
        finished = watch.finished()
        for experiment, trials in watch.trials.items():
            if experiment not in finished:
                scores = [trial.score for trial in trials.values() if trial.score is not None]
                lines.append(f"{experiment}: {len(trials)} trials{f', log loss {min(scores):.5f}' if scores else ''}")
        lines += [f"{command}: waits" for command in watch.commands if command not in finished | watch.trials.keys()]
        return "\n".join(lines)


def _pane(title: str, text: str, colour: str) -> Layout:
    """One line a line: a wrapped one would push the newest out of sight."""
    return Layout(Panel(Text(text, no_wrap=True, overflow="ellipsis"), title=title, border_style=colour))


def _ended(trial: Trial) -> str:
    return f"log loss {trial.score:.5f}" if trial.score is not None else "given up" if trial.pruned else "failed"


def _verdict(entry: JournalEntry) -> str:
    score = "" if entry.score is None else f", {entry.metric}{_score_of(entry)}"
    return f"{entry.experiment or entry.kind}: version {entry.version} {entry.verdict}{score}"


def _score_of(entry: JournalEntry) -> str:
    return "" if entry.score is None else f" {entry.score:.5f}"
