"""Retraining policies as text: ``never``, ``every:10000``, ``every:10000/window:50000``, ``drift+drop`` ...

Triggers are joined by ``+``, and whichever is due first asks for a new model; what holds for all of them stands behind
``/``. What a policy does not name is as the project's settings have it.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec import Struct

from tidemill.core.inference import nearest
from tidemill.errors import ConfigError

NEVER = "never"
HOURS_MIN = 0.001
MOST = 10**12
"""Of rows or hours: what is beyond is never."""


class Term(NamedTuple):
    """One word of a policy: the setting of ``[retrain]`` that it gives, and what its number is (None: it has none)."""

    setting: str
    number: type[int] | type[float] | None = None
    trigger: bool = True


TERMS = {
    "every": Term("every", int),
    "period": Term("hours", float),
    "drift": Term("drift"),
    "drop": Term("drop"),
    "window": Term("window_rows", int, trigger=False),
    "cooldown": Term("cooldown_hours", float, trigger=False),
}
"""The one table from a policy's words to the settings."""
OFF: Mapping[str, Any] = {"every": 0, "hours": 0.0, "drift": "off", "drop": "off"}
"""No trigger at all."""
ON = "auto"
VALID = "never, every:N, period:HOURS, drift, drop, several of them joined by +, and behind them /window:N, /cooldown:HOURS"


class Policy(Struct, frozen=True):
    """``name`` is the text in one form for all ways to write it; ``settings`` are those of ``[retrain]`` that it gives."""

    name: str
    settings: dict[str, Any]

    @property
    def every(self) -> int:
        """Labelled observations between two retrainings, 0 where they do not count."""
        return int(self.settings["every"])

    @property
    def hours(self) -> float:
        """Hours between two retrainings, 0 where they do not count."""
        return float(self.settings["hours"])

    @property
    def watches(self) -> bool:
        """Whether a decision may fall at any time, by what the data look like."""
        return ON in (self.settings["drift"], self.settings["drop"])

    @property
    def retrains(self) -> bool:
        """Whether it has any trigger."""
        return any(self.settings[name] != off for name, off in OFF.items())


def parse(text: str) -> Policy:
    """The policy of a text. Raises ``ConfigError``, which says what would be valid."""
    triggers, *options = [part.strip() for part in text.split("/")]
    words = [(word.strip(), True) for word in triggers.split("+")] + [(word, False) for word in options]
    found: dict[str, Any] = {}
    for word, trigger in words:
        if word == NEVER and len(words) == 1:
            break
        name, value = _term(text, word, trigger)
        if name in found:
            raise ConfigError(f"policy {text!r}: {name} stands there twice")
        found[name] = value
    settings = {**OFF, **{TERMS[name].setting: value for name, value in found.items()}}
    return Policy(_name(found), settings)


def _term(text: str, word: str, trigger: bool) -> tuple[str, Any]:
    """A word's name and value, where it may stand."""
    name, colon, number = word.partition(":")
    if name not in TERMS or TERMS[name].trigger is not trigger:
        if name == NEVER:
            raise ConfigError(f"policy {text!r}: {NEVER} stands alone, for it has no trigger; valid are {VALID}")
        hint = f"{name!r} is no {'trigger' if trigger else 'option'}"
        raise ConfigError(f"policy {text!r}: {hint}{_nearest(name, trigger)}; valid are {VALID}")
    kind = TERMS[name].number
    if kind is None:
        if colon:
            raise ConfigError(f"policy {text!r}: {name} takes no number; valid are {VALID}")
        return name, ON
    value = _number(kind, number)
    least = 0 if name == "window" else 1 if kind is int else HOURS_MIN
    if value is None or not least <= value <= MOST:
        wanted = f"a whole number from {least} on" if kind is int else f"a number from {least:g} on"
        raise ConfigError(f"policy {text!r}: {name}:{number or '...'} needs {wanted}; valid are {VALID}")
    return name, value


def _nearest(name: str, trigger: bool) -> str:
    return nearest(name, [known for known, term in TERMS.items() if term.trigger is trigger])


def _number(kind: type[int] | type[float], text: str) -> int | float | None:
    try:
        value = kind(text.replace("_", "").replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _name(found: Mapping[str, Any]) -> str:
    """The words in the table's order."""
    words = {name: name if found[name] == ON else f"{name}:{found[name]:g}" for name in TERMS if name in found}
    words |= {name: f"{name}:{found[name]}" for name in words if TERMS[name].number is int}
    triggers = [text for name, text in words.items() if TERMS[name].trigger]
    return "/".join(["+".join(triggers) or NEVER, *(text for name, text in words.items() if not TERMS[name].trigger)])


def of_settings(settings: Mapping[str, Any]) -> Policy:
    """The policy that a project's ``[retrain]`` settings are. What it does not do by itself (``suggest``) is off."""
    found: dict[str, Any] = {}
    for name, term in TERMS.items():
        value = settings[term.setting]
        if value == ON or (term.number and value):
            found[name] = value
    if ON not in (found.get("drift"), found.get("drop")):
        found.pop("cooldown", None)
    return Policy(_name(found), {**OFF, **{TERMS[name].setting: value for name, value in found.items()}})


def usual(own: Policy, labelled: int) -> list[Policy]:
    """What to compare where nobody says: no retraining, the project's own policy, and rarer ones of its kind that come to
    one retraining at least.
    """
    found = [parse(NEVER), own]
    for factor in (3, 10):
        rows = factor * own.every
        if 0 < rows <= labelled // 2:
            window = f"/window:{own.settings['window_rows']}" if own.settings.get("window_rows") else ""
            found.append(parse(f"every:{rows}{window}"))
    return list({policy.name: policy for policy in found}.values())
