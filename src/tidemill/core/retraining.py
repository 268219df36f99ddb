"""When to train a new model, and what becomes of commands that wait."""

from collections.abc import Collection, Sequence

from tidemill.messages import Retrain

FIRST = "first"
"""The id of the command that asks for a first model from the original data alone."""


def boundary(observed: int, every: int) -> int:
    """The number of observations at which the next command is due, if ``observed`` have been made."""
    return (observed // every + 1) * every


def due(observed: int, every: int, sent: Collection[str], now_ms: int) -> Retrain | None:
    """The command for the newest full bucket of ``every`` observations, unless it was sent.

    Its id tells its bucket's end, so that whoever is asked again names the same command. An older bucket that was never
    sent (``every`` has been changed since, or the topic is new) is not made up for: the newest holds its observations too.
    """
    data_version = observed // every * every
    id = f"labelled-{data_version}"
    if data_version == 0 or id in sent:
        return None
    return Retrain(id=id, reason="labelled", data_version=data_version, requested_at=now_ms)


def first(champion: bool, sent: Collection[str], now_ms: int) -> Retrain | None:
    """The command for the first model, unless one serves or it was sent."""
    return None if champion or FIRST in sent else Retrain(id=FIRST, reason="first", data_version=0, requested_at=now_ms)


def merge(commands: Sequence[Retrain]) -> Retrain:
    """The one of the waiting commands that stands for all: the newest data version, of those the last."""
    return max(reversed(commands), key=lambda command: command.data_version)
