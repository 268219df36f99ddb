"""``tidemill train``: a command to the trainer, served here or by the trainer that runs already, with a progress bar."""

import threading
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tidemill.core import retraining
from tidemill.core.metrics import metric
from tidemill.log.base import Message
from tidemill.messages import JournalEntry, Retrain, Trial, to_bytes
from tidemill.roles.promotion import new_id, read_slots
from tidemill.roles.reading import decided_commands, read_messages

if TYPE_CHECKING:
    from tidemill.wiring import Wiring


def train_now(wiring: "Wiring", again: bool) -> int:
    """Send a command (once), see it through, and return an exit code: 0 unless the experiment failed."""
    console = Console(highlight=False, soft_wrap=True)
    wiring.trainer()  # what it cannot be made of is said before a command waits for it
    champion = read_slots(wiring.log, wiring.topics).champion
    if champion is not None and not again:
        console.print(f"version {champion.version} serves already; --again trains a new one on all observations so far")
        return 0
    command = _first(wiring) if champion is None else _asked(wiring)
    entry = _follow(wiring, command, console)
    trials = read_messages(wiring.log, wiring.topics.trials, Trial)
    tried = len({trial.number for trial in trials if trial.experiment == entry.experiment})
    if 0 < tried < (wanted := entry.trials):
        console.print(f"the search ended after {tried} of {wanted} trials, by tune.seconds or tune.stale")
    console.print(sentence(entry))
    return 1 if entry.verdict == "failed" else 0


def _first(wiring: "Wiring") -> Retrain:
    """The command for a first model: the one that waits for its verdict, or a new one."""
    sent = {command.id: command for command in read_messages(wiring.log, wiring.topics.retrain, Retrain)}
    decided = decided_commands(wiring.log, wiring.topics)
    command = retraining.first(False, sent, wiring.clock.now_ms(), decided)
    if command is None:
        return next(sent[id] for id in sent if retraining.is_first(id) and id not in decided)
    return _send(wiring, command)


def _asked(wiring: "Wiring") -> Retrain:
    """A person's own command, on all observations so far."""
    observations = wiring.lake.count("observations")
    id = new_id("asked", len(read_messages(wiring.log, wiring.topics.retrain, Retrain)) + 1)
    return _send(wiring, Retrain(id, "asked", observations, wiring.clock.now_ms()))


def _send(wiring: "Wiring", command: Retrain) -> Retrain:
    wiring.log.append([Message(wiring.topics.retrain, to_bytes(command), command.id.encode())])
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
            for trial in read_messages(wiring.log, wiring.topics.trials, Trial):
                show(trial)
            if _decided(wiring, command.id) is not None:
                stop.set()

        look()
        wiring.trainer(on_trial=show).run(stop, idle=look)
    entry = _decided(wiring, command.id)
    if entry is None:
        raise AssertionError("the trainer stopped before it had decided")
    return entry


def _decided(wiring: "Wiring", id: str) -> JournalEntry | None:
    journal = read_messages(wiring.log, wiring.topics.journal, JournalEntry)
    return next((entry for entry in journal if id in (entry.id, *entry.merged)), None)


def sentence(entry: JournalEntry) -> str:
    """What became of a command, for whoever sent it."""
    if entry.verdict == "failed":
        return f"experiment {entry.experiment} failed: {entry.detail}"
    if not entry.version:
        return f"experiment {entry.experiment}: the champion stays, {entry.detail}"
    if entry.verdict == "kept":
        known = entry.statistic
        stays = f"experiment {entry.experiment}: the champion, version {entry.champion_version}, stays"
        if known:
            stays += (
                f": its {entry.metric} is {known['champion_score']:.5g}, the new model's {known['challenger_score']:.5g}"
                f" on the newest {known['rows']:,.0f} observations"
            )
        return f"{stays}; {entry.detail}" if entry.detail else stays
    text = (
        f"version {entry.version} {entry.verdict}: {entry.metric} {entry.score:.5f} by cross-validation,"
        f" {entry.rounds} rounds on {entry.rows:,} rows, bundle {entry.bundle[:12]}"
    )
    return f"{text}; {entry.detail}" if entry.detail else text
