"""When to train a new model, and what becomes of commands that wait."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from msgspec.structs import replace

from tidemill.core.alarms import Kind
from tidemill.messages import Mode, Retrain

FIRST = "first"
"""The id of the command that asks for a first model from the original data alone; asked for again, it has a number."""
NEVER = 1 << 62
AHEAD_MS = 3_600_000
"""So far a service's clock may be ahead of the log's; a time beyond is taken for this."""


def boundary(observed: int, every: int) -> int:
    """The number of observations at which the next command is due, if ``observed`` have been made; ``NEVER`` without
    ``every``.
    """
    return (observed // every + 1) * every if every else NEVER


def due(observed: int, every: int, sent: Collection[str], now_ms: int) -> Retrain | None:
    """The command for the newest full bucket of ``every`` observations, unless it was sent.

    Its id tells its bucket's end, so that whoever is asked again names the same command. An older bucket that was never
    sent (``every`` has been changed since, or the topic is new) is not made up for: the newest holds its observations too.
    """
    data_version = observed // every * every if every else 0
    id = f"labelled-{data_version}"
    if data_version == 0 or id in sent:
        return None
    return Retrain(id=id, reason="labelled", data_version=data_version, requested_at=now_ms)


def periodic(
    began_ms: int, event_ms: int, hours: float, observed: int, sent: Collection[Retrain], now_ms: int
) -> Retrain | None:
    """The command for the period of ``hours`` that ``event_ms`` is in, unless it is the first one (that of ``began_ms``),
    the command was sent, or nothing was observed since the last command.

    Periods are counted from 1970, so that whoever is asked again names the same command.
    """
    if not hours or not event_ms:
        return None
    width_ms = max(1, round(hours * 3_600_000))
    period, began = event_ms // width_ms, began_ms // width_ms
    id = f"period-{period}"
    learnt = max((command.data_version for command in sent), default=0)
    if period <= began or observed <= learnt or any(command.id == id for command in sent):
        return None
    return Retrain(id=id, reason="period", data_version=observed, requested_at=now_ms)


def for_alarm(
    kinds: Collection[Kind], fresh: bool, asked_at: int | None, at_ms: int, modes: Mapping[str, Mode], cooldown_ms: int
) -> tuple[Literal["drift", "drop"], Mode] | None:
    """What an alarm of these kinds of findings, at ``at_ms``, asks for: the reason, and whether a retraining is to be made
    or suggested; None for nothing.

    It is a drop where the model is wrong, else a drift; ``modes`` says what each leads to. A retraining is asked for as long
    as the alarm is up, but for ``cooldown_ms`` after the last one (``asked_at``); it is suggested when the alarm is
    ``fresh``: has come up, or worsened.
    """
    reason: Literal["drift", "drop"] = "drop" if {"error", "calibration"} & set(kinds) else "drift"
    mode = modes[reason]
    cooling = asked_at is not None and 0 <= at_ms - asked_at < cooldown_ms
    if mode == "off" or (mode == "auto" and cooling) or (mode == "suggest" and not fresh):
        return None
    return reason, mode


def first(champion: bool, sent: Collection[str], now_ms: int, decided: Collection[str] = ()) -> Retrain | None:
    """The command for the first model, unless one serves, or one that was sent waits for its verdict.

    Where all that were ``decided`` have failed it is asked for anew, as ``first-2``, ``first-3`` ...: whoever asks in the
    same moment names the same command.
    """
    asked = [id for id in sent if is_first(id)]
    if champion or any(id not in decided for id in asked):
        return None
    id = f"{FIRST}-{len(asked) + 1}" if asked else FIRST
    return Retrain(id=id, reason="first", data_version=0, requested_at=now_ms)


def is_first(id: str) -> bool:
    """Whether a command asks for a first model."""
    kind, _, number = id.partition("-")
    return kind == FIRST and (id == FIRST or number.isdecimal())


def merge(commands: Sequence[Retrain]) -> Retrain:
    """The one of the waiting commands that stands for all: the newest data version, of those the last. It has every reason,
    and the evidence of the last that has any.
    """
    newest = max(reversed(commands), key=lambda command: command.data_version)
    reasons = ", ".join(dict.fromkeys(command.reason for command in (newest, *commands)))
    seen = next((command.evidence for command in reversed(commands) if command.evidence), {})
    return replace(newest, reason=reasons, evidence=seen)
