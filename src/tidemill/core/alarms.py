"""Alarms that mean something: one for all that has shifted at a time, and at most so many false ones a month.

A **look** compares one window with the champion's reference. Each of its findings has a ``p`` from a null that fits its
series (``core/shift.py``) and an effect in the same unit for all. The month's budget of false alarms is shared out over its
looks, and a look's part over the findings: a weighted Bonferroni (Genovese, Roeder and Wasserman 2006), features by their
importance. What passes is an alarm: what outcomes tell first, then features by what they may cost, which is importance
times effect.

An alarm clears by itself: when nothing passes any more, when a person acknowledges it, or when nobody has for so long that
what shifted is taken as the new normal. From then on only a shift away from that is one.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

Kind = Literal["feature", "prediction", "outcome", "calibration", "error"]

MONTH_MS = 30 * 86_400_000
LOOKS_MIN = 30
"""A month has at least so many looks as far as the budget goes: a first look must not have all of it."""
ALPHA_MAX = 0.05
CLEAR_LOOKS = 2
"""Looks in a row at which nothing passes, before an alarm clears."""
SHARES: Mapping[Kind, float] = {"feature": 0.25, "prediction": 0.25, "outcome": 1 / 6, "calibration": 1 / 6, "error": 1 / 6}
"""Of a look's part of the budget: half for what is known when a window was served, half for what its outcomes tell."""
TOLD: tuple[Kind, ...] = ("error", "calibration", "outcome")
"""What only outcomes tell."""
_ORDER: Mapping[Kind, int] = {**dict.fromkeys(TOLD, 0), "feature": 1, "prediction": 2}


class Limits(Struct, frozen=True):
    """The project's settings: false alarms a month, the least effect that matters, how long between two alarms, and after
    how long an alarm that nobody has acknowledged is taken as the new normal.

    An effect of 0.2 is about what a PSI of 0.2, or Cohen's d of 0.2, is. Features matter by their costs together, or one by
    its effect where it has half of an average feature's importance.
    """

    per_month: float = 1.0
    effect_min: float = 0.2
    cooldown_ms: int = 86_400_000
    known_ms: int = 14 * 86_400_000


class Finding(Struct, frozen=True):
    """What a look found of one thing: how often an ordinary stretch is as far (``p``), how far it is (``effect``; of an
    error a rise is positive), its ``importance`` (1 for what is no feature), and what a person reads. ``known``: a state
    that was accepted is as near. ``figures``: other distances of the field, which decide nothing.
    """

    name: str
    kind: Kind
    p: float
    effect: float
    importance: float
    text: str
    known: bool = False
    figures: dict[str, float] = {}

    @property
    def key(self) -> str:
        """A feature may have any name."""
        return f"{self.kind}:{self.name}"

    @property
    def cost(self) -> float:
        """What it may cost: importance times effect."""
        return self.importance * abs(self.effect)


class Alarm(Struct, frozen=True):
    """Raised at look ``look``; ``findings`` are those of the last look at which any passed, ``kinds`` all that ever were."""

    id: str
    look: int
    raised_at: int
    findings: list[Finding]
    kinds: list[Kind] = []

    @property
    def text(self) -> str:
        """One line: the first three, and how many there are besides."""
        more = f", and {len(self.findings) - 3} more" if len(self.findings) > 3 else ""
        return "; ".join(finding.text for finding in self.findings[:3]) + more


class Watch(Struct, frozen=True):
    """The state between looks: what is up, since how many looks nothing passes, when the last alarm was raised."""

    alarm: Alarm | None = None
    quiet: int = 0
    raised_at: int | None = None


class Change(Struct, frozen=True):
    """What a look did to the alarm. ``accept``: what shifted is the new normal. It worsens when outcomes show what was only
    a shift of requests and answers before.
    """

    name: Literal["alarm_raised", "alarm_worsened", "alarm_cleared"]
    alarm: Alarm
    why: str = ""
    accept: bool = False


def alpha_of(limits: Limits, looks: int, span_ms: int) -> float:
    """A look's part of the budget, where ``looks`` took ``span_ms``: a chance of a false alarm."""
    a_month = looks * MONTH_MS / span_ms if span_ms > 0 else LOOKS_MIN
    return min(ALPHA_MAX, limits.per_month / max(LOOKS_MIN, a_month))


def passing(findings: Sequence[Finding], alpha: float, limits: Limits) -> list[Finding]:
    """The findings that are an alarm, none where they matter too little: what outcomes tell, then features, then
    predictions, which follow from them; each the costliest first.
    """
    features = sum(finding.kind == "feature" for finding in findings)
    found = [one for one in findings if not one.known and one.p <= alpha * _share(one, features)]
    shifted = [one for one in found if one.kind == "feature"]
    matter = [one for one in found if _matters(one, features, limits)]
    if not matter and sum(one.cost for one in shifted) < limits.effect_min:
        return []
    kept = [one for one in found if one in matter or one.kind == "feature"]
    return sorted(kept, key=lambda one: (_ORDER[one.kind], -one.cost))


def _share(finding: Finding, features: int) -> float:
    share = SHARES[finding.kind]
    return share * (finding.importance + 1 / features) / 2 if finding.kind == "feature" else share


def _matters(finding: Finding, features: int, limits: Limits) -> bool:
    """An error that falls is no reason for an alarm; nor is a feature that the model hardly uses."""
    effect = finding.effect if finding.kind == "error" else abs(finding.effect)
    return effect >= limits.effect_min and (finding.kind != "feature" or finding.importance >= 0.5 / features)


def look(
    watch: Watch,
    number: int,
    at_ms: int,
    passed: Sequence[Finding],
    limits: Limits,
    acknowledged: Collection[str] = (),
) -> tuple[Watch, Change | None]:
    """The state after look ``number``, made at ``at_ms``, and what became of the alarm."""
    alarm = watch.alarm
    if alarm is None:
        since = None if watch.raised_at is None else at_ms - watch.raised_at
        if not passed or (since is not None and 0 <= since < limits.cooldown_ms):
            return watch, None
        raised = Alarm(f"alarm-{number}", number, at_ms, list(passed), _kinds(passed))
        return Watch(raised, 0, at_ms), Change("alarm_raised", raised)
    kinds = list(dict.fromkeys([*alarm.kinds, *_kinds(passed)]))
    worse = not set(TOLD) & set(alarm.kinds) and bool(set(TOLD) & set(kinds))
    alarm = replace(alarm, findings=list(passed) or alarm.findings, kinds=kinds)
    quiet = 0 if passed else watch.quiet + 1
    cleared = _cleared(alarm, at_ms, quiet, limits, acknowledged)
    if cleared:
        return replace(watch, alarm=None, quiet=0), cleared
    return replace(watch, alarm=alarm, quiet=quiet), Change("alarm_worsened", alarm) if worse else None


def _kinds(findings: Sequence[Finding]) -> list[Kind]:
    return list(dict.fromkeys(finding.kind for finding in findings))


def _cleared(alarm: Alarm, at_ms: int, quiet: int, limits: Limits, acknowledged: Collection[str]) -> Change | None:
    if alarm.id in acknowledged:
        return Change("alarm_cleared", alarm, "acknowledged", accept=True)
    if quiet >= CLEAR_LOOKS:
        return Change("alarm_cleared", alarm, "back to normal")
    if at_ms - alarm.raised_at >= limits.known_ms:
        return Change("alarm_cleared", alarm, "taken as the new normal: nobody has acknowledged it", accept=True)
    return None


def evidence(alarm: Alarm) -> dict[str, Any]:
    """For a retraining's command, the journal and MLflow: what the alarm is about, in plain values."""
    return {
        "alarm": alarm.id,
        "text": alarm.text,
        "findings": [
            {
                "name": one.name,
                "kind": one.kind,
                "p": one.p,
                "effect": one.effect,
                "cost": one.cost,
                **one.figures,
            }
            for one in alarm.findings[:20]
        ],
    }
