"""``tidemill alarms``: what was raised, why it was cleared, and a person's word on it."""

from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.cli.options import Commands, open_project, say

if TYPE_CHECKING:
    from tidemill.core.alarms import Change
    from tidemill.roles.looks import Look

LOOKS = 100_000
"""Of the history: a look an hour for eleven years."""


def declare(commands: Commands) -> None:
    """Add it."""
    parser = commands.add("alarms", alarms)
    parser.add_argument("--acknowledge", default="", metavar="ALARM", help="its state is how it should be: the new normal")
    parser.add_argument("--json", dest="as_json", action="store_true", help="for scripts: an alarm a line")


def alarms(project: Path, acknowledge: str, as_json: bool) -> None:
    """List alarms, the newest last: when each was raised and cleared (by the requests' times), and what had shifted. With
    --acknowledge the monitor clears the one that is up at its next look, and raises none for that state again.
    """
    from tidemill.roles.looks import read_looks

    with open_project(project) as wiring:
        looks = list(read_looks(wiring.lake, LOOKS)[0].values())
        up = looks[-1].state.alarm if looks else None
        if acknowledge:
            _check(acknowledge, up.id if up else "")
            from tidemill.roles.promotion import acknowledge as tell

            tell(wiring.log, wiring.topics, acknowledge, wiring.clock)
            say(f"{acknowledge} is acknowledged: the monitor clears it at its next look")
            return
        raised = {look.change.alarm.id: look for look in looks if look.change and look.change.name == "alarm_raised"}
        cleared = {look.change.alarm.id: look for look in looks if look.change and look.change.name == "alarm_cleared"}
    for id, look in raised.items():
        say(_json(look, cleared.get(id)) if as_json else _line(id, look, cleared.get(id)))
    if not raised and not as_json:
        say("no alarm was raised yet" if looks else "nothing was compared yet: a look needs drift.window_rows requests")


def _check(given: str, up: str) -> None:
    from tidemill.errors import ConfigError

    if given != up:
        raise ConfigError(f"alarm {given!r} is not up: {f'{up} is' if up else 'none is'}")


def _json(look: "Look", end: "Look | None") -> str:
    import msgspec

    from tidemill.core.alarms import evidence

    change = _change(end or look)
    times = {"raised_at": look.tally.ended_at, "cleared_at": end.tally.ended_at if end else None}
    return msgspec.json.encode({**evidence(change.alarm), **times, "why": change.why, "version": look.version}).decode()


def _line(id: str, look: "Look", end: "Look | None") -> str:
    from tidemill.texts import moment

    change = _change(end or look)
    until = f"cleared {moment(end.tally.ended_at)} UTC ({change.why})" if end else "UP"
    return f"{id}  raised {moment(look.tally.ended_at)} UTC, {until}: {change.alarm.text}"


def _change(look: "Look") -> "Change":
    if look.change is None:
        raise AssertionError(f"look {look.number} changed no alarm")
    return look.change
