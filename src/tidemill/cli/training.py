"""``tidemill train``: a command to the trainer, served here or by the trainer that runs already, with a progress bar."""

import threading
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tidemill.core.metrics import metric
from tidemill.log.base import Message, read_all
from tidemill.messages import JournalEntry, Retrain, Trial, to_bytes
from tidemill.roles.promotion import read_slots

if TYPE_CHECKING:
    from tidemill.wiring import Wiring


def train_now(wiring: "Wiring", again: bool) -> int:
    """Send a command (once), see it through, and return an exit code: 0 unless the experiment failed."""
    console = Console(highlight=False)
    champion = read_slots(wiring.log, wiring.topics).champion
    if champion is not None and not again:
        console.print(f"version {champion.version} serves already; --again trains a new one on all observations so far")
        return 0
    command = _command(wiring, first=champion is None)
    entry = _follow(wiring, command, console)
    console.print(_sentence(entry))
    return 1 if entry.verdict == "failed" else 0


def _command(wiring: "Wiring", first: bool) -> Retrain:
    """The command ``first``, or one named by its place in the topic; sent unless it stands there already."""
    log, topics = wiring.log, wiring.topics
    sent = [msgspec.json.decode(record.value, type=Retrain) for record in read_all(log, topics.retrain)]
    waiting = next((command for command in sent if first and command.id == "first"), None)
    if waiting is not None:
        return waiting
    observations = 0 if first else wiring.lake.count("observations")
    name = "first" if first else f"asked-{len(sent) + 1}"
    command = Retrain(name, "first" if first else "asked", observations, wiring.clock.now_ms())
    log.append([Message(topics.retrain, to_bytes(command), name.encode())])
    return command


def _follow(wiring: "Wiring", command: Retrain, console: Console) -> JournalEntry:
    """Serve as a trainer until the journal has the command; where another trainer is at work, its trials are shown."""
    stop = threading.Event()
    measure = metric(wiring.settings.tune.metric, wiring.configuration.schema.task)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[best]}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"experiment {command.id}", total=wiring.settings.tune.trials, best="")
        seen: dict[int, Trial] = {}

        def show(trial: Trial) -> None:
            if trial.experiment != command.id:
                return
            seen[trial.number] = trial
            scores = [found.score for found in seen.values() if found.score is not None]
            best = f"best {measure.name} {min(scores, key=measure.loss):.5f}" if scores else ""
            progress.update(bar, completed=len(seen), best=best)

        def look() -> None:
            for record in read_all(wiring.log, wiring.topics.trials):
                show(msgspec.json.decode(record.value, type=Trial))
            if _decided(wiring, command.id) is not None:
                stop.set()

        look()
        wiring.trainer(on_trial=show).run(stop, idle=look)
    entry = _decided(wiring, command.id)
    if entry is None:
        raise AssertionError("the trainer stopped before it had decided")
    return entry


def _decided(wiring: "Wiring", id: str) -> JournalEntry | None:
    for record in read_all(wiring.log, wiring.topics.journal):
        entry = msgspec.json.decode(record.value, type=JournalEntry)
        if id in (entry.id, *entry.merged):
            return entry
    return None


def _sentence(entry: JournalEntry) -> str:
    if entry.verdict == "failed":
        return f"experiment {entry.experiment} failed: {entry.detail}"
    if not entry.version:
        return f"experiment {entry.experiment}: the champion stays, {entry.detail}"
    return (
        f"version {entry.version} {entry.verdict}: {entry.metric} {entry.score:.5f} by cross-validation,"
        f" {entry.rounds} rounds on {entry.rows:,} rows, bundle {entry.bundle[:12]}"
    )
