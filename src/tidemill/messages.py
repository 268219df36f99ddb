"""What flows: one struct a message, and the topics that carry them.

All values are JSON in UTF-8. Times are whole milliseconds since 1970-01-01 UTC and end in ``_at``. A new field gets a
default, an unknown one is skipped, a type never changes: old bytes must load for ever (``tests/data``).
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Label = str | int | float | bool
"""A class label or a regression value, as JSON has it."""
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""What a table's column can hold; JSON's numbers know no end."""


class Prediction(Struct, frozen=True, omit_defaults=True, gc=False):
    """The answer to one request record; ``probability`` (binary: of the second class), ``probabilities`` (multiclass, by
    label) or ``value`` (regression) is set, by task. The log took the request at ``requested_at``.
    """

    request_id: str
    prediction: Label
    version: Whole
    bundle: str
    requested_at: Whole
    predicted_at: Whole
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    value: float | None = None


class Outcome(Struct, frozen=True, omit_defaults=True):
    """The truth about one request; its record's key is the request id, ``time`` (ms) when it became true."""

    outcome: Label
    time: int | None = None


class Retrain(Struct, frozen=True):
    """A command to the trainer. ``id`` is derived from the trigger, so a repeated one is the same command.

    ``data_version`` is the number of observations to train on: observations are append-only and first-wins, so the first
    ``data_version`` of them are the same for ever. ``evidence`` says what an alarm saw.
    """

    id: str
    reason: str
    data_version: int
    requested_at: int
    evidence: dict[str, Any] = {}


Slot = Literal["champion", "challenger", "previous"]
Mode = Literal["off", "suggest", "auto"]
"""What an alarm leads to: nothing, an event that suggests a retraining, a retraining."""


class ModelVersion(Struct, frozen=True):
    """What a slot holds from here on; the record's key is the slot. The last record of ``champion`` serves.

    ``sequence`` is higher than all that its writer had read: it rises, but for two who wrote at the same moment.
    """

    version: int
    uri: str
    bundle: str
    schema: str
    state: Slot
    data_version: int
    experiment: str
    at: int
    sequence: int
    threshold: float = 0.5


class Conditions(Struct, frozen=True):
    """What makes two trials comparable, in full; its hash is a trial's ``environment``. ``training_set`` is the hash of its
    ``rows``, ``schema`` that of ``features`` and target, ``split`` how the ``folds`` are cut.
    """

    metric: str
    task: str
    folds: int
    split: str
    unbalanced: bool
    schema: str
    features: tuple[str, ...]
    training_set: str
    rows: int
    seed: int
    rounds_max: int = 0
    patience: int = 0


class Trial(Struct, frozen=True):
    """One set of hyper-parameters evaluated by cross-validation; the record's key is ``experiment/number``.

    ``score`` is the metric's mean over ``fold_scores`` in the metric's own direction, with ``threshold`` where the metric
    decides classes; ``rounds`` the boosting rounds that early stopping found; ``error`` is set, and ``score`` is None, where
    the learner failed. A ``pruned`` trial was given up after its first fold: it has no ``score`` either. ``learner`` is
    empty, and there are no ``conditions``, in trials of version 0.1.
    """

    experiment: str
    number: int
    parameters: dict[str, Any]
    metric: str
    score: float | None
    fold_scores: list[float]
    rounds: int
    seconds: float
    environment: str
    at: int
    error: str = ""
    learner: str = ""
    pruned: bool = False
    proposer: str = ""
    conditions: Conditions | None = None
    threshold: float = 0.5

    @property
    def state(self) -> Literal["complete", "pruned", "failed"]:
        """How it ended."""
        return "pruned" if self.pruned else "failed" if self.score is None else "complete"


class JournalEntry(Struct, frozen=True):
    """One decision: an experiment with its verdict, a person's promotion, rollback or acknowledgement of an alarm. The
    record's key is ``id``.
    """

    id: str
    kind: Literal["experiment", "promotion", "rollback", "acknowledgement"]
    reason: str
    verdict: Literal["promoted", "kept", "waiting", "failed", "acknowledged"]
    at: int
    experiment: str = ""
    data_version: int = 0
    rows: int = 0
    training_set: str = ""
    settings: str = ""
    environment: str = ""
    metric: str = ""
    score: float | None = None
    parameters: dict[str, Any] = {}
    rounds: int = 0
    trials: int = 0
    seconds: float = 0.0
    version: int = 0
    bundle: str = ""
    champion_version: int = 0
    champion_bundle: str = ""
    statistic: dict[str, float] = {}
    merged: list[str] = []
    detail: str = ""
    threshold: float = 0.5
    learner: str = ""
    evidence: dict[str, Any] = {}


class Event(Struct, frozen=True):
    """Something that people may want to see: a short past-tense name and its values. Retention, not truth."""

    name: str
    role: str
    at: int
    values: dict[str, Any] = {}


class Topics(Struct, frozen=True):
    """The full names of a project's topics."""

    requests: str
    predictions: str
    outcomes: str
    retrain: str
    models: str
    trials: str
    journal: str
    events: str
    dead_letters: str

    @classmethod
    def of(cls, project: str) -> "Topics":
        """The names with the project's prefix: ``adult.requests`` ... ``adult.dead-letters``."""
        return cls(*(f"{project}.{name.replace('_', '-')}" for name in cls.__struct_fields__))


def to_bytes(message: Struct) -> bytes:
    """The JSON of a message. Non-finite floats must not be in it (msgspec would write null)."""
    return _encoder.encode(message)


def to_lines(messages: Sequence[Struct]) -> list[bytes]:
    """The JSON of each message: what ``to_bytes`` gives, in one go."""
    return _encoder.encode_lines(messages).splitlines()


_encoder = msgspec.json.Encoder()
