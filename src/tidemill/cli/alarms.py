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
    from tidemill.messages import JournalEntry
    from tidemill.roles.looks import read_looks
    from tidemill.roles.promotion import acknowledged
    from tidemill.roles.reading import read_messages

    with open_project(project) as wiring:
        looks = list(read_looks(wiring.lake, LOOKS)[0].values())
        up = looks[-1].state.alarm if looks else None
        if acknowledge:
            _check(acknowledge, up.id if up else "")
            from tidemill.roles.promotion import acknowledge as tell

            tell(wiring.log, wiring.topics, acknowledge, wiring.clock)
            say(f"{acknowledge} is acknowledged: the monitor clears it at its next look")
            return
        known = acknowledged(read_messages(wiring.log, wiring.topics.journal, JournalEntry))
    told = [(look, look.change) for look in looks if look.change]
    raised = {change.alarm.id: look for look, change in told if change.name == "alarm_raised"}
    last = {change.alarm.id: (look, change) for look, change in told}
    for id, look in raised.items():
        say((_json if as_json else _line)(look, *last[id], acknowledged=id in known))
    if not raised and not as_json:
        say("no alarm was raised yet" if looks else "nothing was compared yet: a look needs drift.window_rows requests")


def _check(given: str, up: str) -> None:
    from tidemill.errors import ConfigError

    if given != up:
        raise ConfigError(f"alarm {given!r} is not up: {f'{up} is' if up else 'none is'}")


def _json(raised: "Look", last: "Look", change: "Change", acknowledged: bool) -> str:
    import msgspec

    from tidemill.core.alarms import evidence

    cleared_at = last.tally.ended_at if change.name == "alarm_cleared" else None
    times = {"raised_at": raised.tally.ended_at, "cleared_at": cleared_at}
    told = {"why": change.why, "acknowledged": acknowledged, "version": raised.version}
    row = {**evidence(change.alarm), **times, **told}
    return msgspec.json.encode(row).decode()


def _line(raised: "Look", last: "Look", change: "Change", acknowledged: bool) -> str:
    from tidemill.texts import moment

    if change.name == "alarm_cleared":
        until = f"cleared {moment(last.tally.ended_at)} UTC ({change.why})"
    else:
        until = "UP, acknowledged: cleared at the next look" if acknowledged else "UP"
    return f"{change.alarm.id}  raised {moment(raised.tally.ended_at)} UTC, {until}: {change.alarm.text}"
