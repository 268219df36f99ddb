"""What a demo has seen so far: the replay of the project's topics, for the live view and for knowing when it is over."""

from collections import Counter, deque
from collections.abc import Iterable

import msgspec
from msgspec import Struct, field

from tidemill.core.versions import Slots
from tidemill.log.base import Log, Record
from tidemill.messages import Event, JournalEntry, ModelVersion, Prediction, Retrain, Topics, Trial

LINES = 12


class Watch(Struct):
    """Apply the records of a project's topics; the fields are what the view shows."""

    topics: Topics
    requests: int = 0
    answers: int = 0
    outcomes: int = 0
    dead_letters: int = 0
    by_version: Counter[int] = field(default_factory=Counter)
    bundles: set[str] = field(default_factory=set)
    latencies_ms: deque[int] = field(default_factory=lambda: deque(maxlen=50))
    commands: list[str] = field(default_factory=list)
    entries: list[JournalEntry] = field(default_factory=list)
    trials: dict[str, dict[int, Trial]] = field(default_factory=dict)
    slots: Slots = field(default_factory=Slots)
    swaps: list[Event] = field(default_factory=list)
    app: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))

    def apply(self, record: Record) -> None:
        """Take one record of any topic."""
        handler = {
            self.topics.requests: self._request,
            self.topics.predictions: self._prediction,
            self.topics.outcomes: self._outcome,
            self.topics.dead_letters: self._dead_letter,
            self.topics.retrain: self._command,
            self.topics.journal: self._entry,
            self.topics.trials: self._trial,
            self.topics.models: self._model,
            self.topics.events: self._event,
        }[record.topic]
        handler(record)

    def finished(self) -> set[str]:
        """The commands whose verdict stands in the journal."""
        return {id for entry in self.entries for id in (entry.id, *entry.merged)}

    def swapped(self) -> bool:
        """Whether the champion is the version that answers."""
        champion = self.slots.champion
        return champion is not None and bool(self.swaps) and self.swaps[-1].values.get("bundle") == champion.bundle

    def _request(self, record: Record) -> None:
        self.requests += 1

    def _prediction(self, record: Record) -> None:
        answer = msgspec.json.decode(record.value, type=Prediction)
        self.answers += 1
        self.by_version[answer.version] += 1
        self.bundles.add(answer.bundle)
        self.latencies_ms.append(answer.predicted_at - answer.requested_at)
        self.app.append(f"{answer.request_id:<10} {_score(answer)}  v{answer.version}")

    def _outcome(self, record: Record) -> None:
        self.outcomes += 1

    def _dead_letter(self, record: Record) -> None:
        self.dead_letters += 1

    def _command(self, record: Record) -> None:
        self.commands.append(msgspec.json.decode(record.value, type=Retrain).id)

    def _entry(self, record: Record) -> None:
        self.entries.append(msgspec.json.decode(record.value, type=JournalEntry))

    def _trial(self, record: Record) -> None:
        trial = msgspec.json.decode(record.value, type=Trial)
        self.trials.setdefault(trial.experiment, {})[trial.number] = trial

    def _model(self, record: Record) -> None:
        self.slots.apply(msgspec.json.decode(record.value, type=ModelVersion))

    def _event(self, record: Record) -> None:
        event = msgspec.json.decode(record.value, type=Event)
        if event.name == "model_swapped":
            self.swaps.append(event)


def _score(answer: Prediction) -> str:
    if answer.probability is not None:
        return f"{answer.prediction!s:<2} p={answer.probability:.3f}"
    return f"{answer.prediction!s:<5}"


class Follower:
    """Feeds a ``Watch`` from the log, a step at a time."""

    def __init__(self, log: Log, watch: Watch, topics: Iterable[str] | None = None) -> None:
        self._watch = watch
        names = topics or [getattr(watch.topics, field) for field in watch.topics.__struct_fields__]
        self._followed = [log.follow(name, timeout=0.0) for name in names]

    def step(self) -> bool:
        """Take what has come since the last step; whether there was anything."""
        found = False
        for records in self._followed:
            for chunk in records:
                if not chunk:
                    break
                found = True
                for record in chunk:
                    self._watch.apply(record)
        return found
