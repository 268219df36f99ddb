"""How a project stands: roles, lag, versions, counts, and the latest that was measured.

Reads positions and the small topics only, so it is quick beside a log of any size.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from tidemill.clock import Clock
from tidemill.log.base import Log, Record, lag
from tidemill.messages import Event, JournalEntry, ModelVersion, Topics
from tidemill.processes import HEALTHY_SECONDS, is_alive, is_restarting, read_runs
from tidemill.roles.pauses import AGAIN_SECONDS
from tidemill.roles.promotion import acknowledged, read_slots
from tidemill.roles.reading import decoded, read_messages

ANSWERED = "requests_answered"
SHOWN_EVENTS = (ANSWERED, "observations_joined", "quality_measured", "window_compared", "window_matured")
"""The newest of each is shown."""
LOADED, REFUSED, QUICKENED = "model_swapped", "bundle_refused", "engine_swapped"
"""What the predictor says of a bundle that was announced."""
RAISED, WORSENED, CLEARED = "alarm_raised", "alarm_worsened", "alarm_cleared"
SUGGESTED = "retraining_suggested"
"""What the monitor says of an alarm."""
UNWATCHED = "champion_not_watched"
"""What the monitor says of a champion that it cannot hold against anything."""
PAUSED = ("recording_paused", "monitoring_paused")
PAUSED_SECONDS = 1.5 * AGAIN_SECONDS
"""A role that is kept from its work says so again sooner."""

KNOWN_EVENTS = (*SHOWN_EVENTS, LOADED, REFUSED, QUICKENED, RAISED, WORSENED, CLEARED, SUGGESTED, UNWATCHED, *PAUSED)


class RoleState(Struct, frozen=True):
    """A role that a supervisor started; one that it stopped in order is not listed.

    One that is ``restarting`` has ended by itself and will be started again; ``last_line`` is what the ended one said last.
    """

    role: str
    alive: bool
    pid: int
    started_at: int
    seconds: float
    restarts: int
    restarting: bool = False
    last_line: str = ""


class Behind(Struct, frozen=True):
    """By topic, how many records a group has not taken yet; ``started`` is False where it never took any."""

    started: bool
    records: dict[str, int]
    total: int


class Slot(Struct, frozen=True):
    """A version in a slot; ``seconds`` since it came there. Of the champion, ``refused`` says why the predictor does not
    take it, if so, ``engine`` what computes its answers, as far as it has told, and ``unwatched`` why no alarm can come
    of it.
    """

    version: int
    bundle: str
    data_version: int
    at: int
    seconds: float
    refused: str = ""
    engine: str = ""
    unwatched: str = ""


class Status(Struct, frozen=True):
    """All of it; its JSON is what ``tidemill status --json`` prints. Topics go by their names in ``messages.Topics``. The
    ``alarm`` is the one that is up; for it a retraining may be ``suggested``, and it may be ``acknowledged``. ``paused``:
    what has kept roles from their work in the last minute or so, newest last.
    """

    project: str
    at: int
    waits_for_first_model: bool
    roles: list[RoleState]
    lag: dict[str, Behind]
    counts: dict[str, int]
    champion: Slot | None
    challenger: Slot | None
    previous: Slot | None
    last_decision: JournalEntry | None
    events: dict[str, Event]
    alarm: Event | None = None
    suggested: bool = False
    acknowledged: bool = False
    paused: list[Event] = []


def status(log: Log, topics: Topics, run_dir: Path, clock: Clock) -> Status:
    """Look now. Parts are read one after the other, so counts of a busy project may differ by what came meanwhile."""
    now = clock.now_ms()
    names = {field: getattr(topics, field) for field in topics.__struct_fields__}
    slots = read_slots(log, topics)
    events = _latest_events(log, topics)
    alarm = _alarm(events)
    journal = read_messages(log, topics.journal, JournalEntry)
    return Status(
        project=topics.requests.rpartition(".")[0],
        at=now,
        waits_for_first_model=slots.champion is None,
        roles=_roles(run_dir, now),
        lag={group: _behind(log, group, fields, names) for group, fields in CONSUMERS.items()},
        counts={field: sum(end for _, end in log.bounds(name).values()) for field, name in names.items()},
        champion=_champion(slots.champion, now, events),
        challenger=_slot(slots.challenger, now),
        previous=_slot(slots.previous, now),
        last_decision=next((entry for entry in reversed(journal) if entry.kind != "acknowledgement"), None),
        events={name: events[name] for name in SHOWN_EVENTS if name in events},
        alarm=alarm,
        suggested=alarm is not None and _of(alarm, events.get(SUGGESTED)),
        acknowledged=alarm is not None and alarm.values.get("alarm") in acknowledged(journal),
        paused=[one for one in events.values() if one.name in PAUSED and now - one.at < PAUSED_SECONDS * 1000],
    )


CONSUMERS = {
    "predictor": ("requests",),
    "recorder": ("requests", "predictions", "outcomes", "dead_letters"),
    "trainer": ("retrain",),
    "tracker": ("trials", "journal", "models"),
}
"""Each consumer group and its topics."""


def _roles(run_dir: Path, now: int) -> list[RoleState]:
    return [
        RoleState(
            role=run.role,
            alive=is_alive(run),
            pid=run.pid,
            started_at=run.started_at,
            seconds=(now - run.started_at) / 1000,
            restarts=run.restarts,
            restarting=is_restarting(run),
            last_line=run.last_line,
        )
        for run in read_runs(run_dir)
    ]


def _behind(log: Log, group: str, fields: tuple[str, ...], names: Mapping[str, str]) -> Behind:
    found = lag(log, group, [names[field] for field in fields])
    records = {field: found[names[field]] for field in fields}
    return Behind(bool(log.committed(group)), records, sum(records.values()))


def _slot(version: ModelVersion | None, now: int) -> Slot | None:
    if version is None:
        return None
    return Slot(version.version, version.bundle, version.data_version, version.at, (now - version.at) / 1000)


def _champion(version: ModelVersion | None, now: int, events: Mapping[str, Event]) -> Slot | None:
    """With what the predictor said last of its bundle, where that was no, and of its engine, and what the monitor said."""
    slot = _slot(version, now)
    if slot is None:
        return None
    unwatched = events.get(UNWATCHED)
    why = str(unwatched.values.get("why")) if unwatched and unwatched.values.get("version") == slot.version else ""
    slot = replace(slot, engine=_engine(slot, events), unwatched=why)
    said = [name for name in events if name in (LOADED, REFUSED) and events[name].values.get("bundle") == slot.bundle]
    if said[-1:] != [REFUSED]:
        return slot
    return replace(slot, refused=str(events[REFUSED].values.get("error")))


def _engine(slot: Slot, events: Mapping[str, Event]) -> str:
    """What the predictor named last; it may change while a version serves."""
    version = ("version", slot.version)
    mine: dict[str, tuple[str, object]] = {LOADED: ("bundle", slot.bundle), ANSWERED: version, QUICKENED: version}
    told = ""
    for name, event in events.items():
        if name in mine and event.values.get(mine[name][0]) == mine[name][1]:
            told = str(event.values.get("engine", told))
    return told


def _alarm(events: Mapping[str, Event]) -> Event | None:
    """The one that was raised last, unless it was cleared; it says what it has found since it worsened, where it has."""
    raised, worsened = events.get(RAISED), events.get(WORSENED)
    if raised is None or _of(raised, events.get(CLEARED)):
        return None
    return replace(raised, values=worsened.values) if worsened is not None and _of(raised, worsened) else raised


def _of(alarm: Event, other: Event | None) -> bool:
    return other is not None and other.values.get("alarm") == alarm.values.get("alarm")


def _latest_events(log: Log, topics: Topics) -> dict[str, Event]:
    """The newest of each name, in their order. Only those are decoded: the log can be followed from its ends alone, and
    100,000 events of other names or older ones must not cost more than their reading.
    """
    starts = {name: f'{{"name":"{name}",'.encode() for name in KNOWN_EVENTS}
    latest: dict[str, Record] = {}
    for records in log.follow(topics.events):
        if not records:
            break
        for record in records:
            for name in [name for name, start in starts.items() if record.value.startswith(start)]:
                latest.pop(name, None)
                latest[name] = record
    found = {name: decoded(record, Event) for name, record in latest.items()}
    return {name: event for name, event in found.items() if event is not None}


def render(found: Status) -> str:
    """For a terminal: a block a subject."""
    blocks = [
        [f"project {found.project}"],
        ["roles", *(_rows([_role_cells(role) for role in found.roles]) or ["  none run here; start them: tidemill run"])],
        ["models", *_rows([_slot_cells(name, getattr(found, name)) for name in ("champion", "challenger", "previous")])],
        [
            "topics, by their last offsets",
            *_rows([(name.replace("_", "-"), str(count)) for name, count in found.counts.items()]),
        ],
        ["waiting records", *_rows([_behind_cells(group, behind) for group, behind in found.lag.items()])],
        ["last decision", f"  {_decision(found)}"],
        ["measured", *(_rows([_event_cells(event, found.at) for event in found.events.values()]) or ["  nothing yet"])],
    ]
    if found.alarm:
        blocks.insert(1, ["ALARM", *_alarm_lines(found.alarm, found)])
    if found.paused:
        blocks.insert(
            1, ["PAUSED, and tried again each second", *_rows([_paused_cells(one, found.at) for one in found.paused])]
        )
    if found.waits_for_first_model:
        blocks[-5].insert(1, "  waiting for the first model (train it: tidemill train); requests stay in the log until then")
    return "\n\n".join("\n".join(block) for block in blocks)


def _rows(rows: list[tuple[str, ...]]) -> list[str]:
    """Cells in columns, as wide as they need."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _role_cells(role: RoleState) -> tuple[str, ...]:
    restarts = f"{role.restarts} restarts" if role.restarts != 1 else "1 restart"
    if role.last_line and (role.restarting or role.seconds < HEALTHY_SECONDS):
        restarts += f", last line: {role.last_line}"
    if role.restarting:
        return role.role, "restarting", "", "", restarts
    if not role.alive:
        return role.role, "DEAD", f"pid {role.pid}", "", restarts
    return role.role, "alive", f"pid {role.pid}", f"for {_duration(role.seconds)}", restarts


def _slot_cells(name: str, slot: Slot | None) -> tuple[str, ...]:
    if slot is None:
        return name, "none", "", "", ""
    learned = f"{slot.data_version} observations"
    engine = f", engine {slot.engine}" if slot.engine else ""
    refused = f", REFUSED by the predictor: {slot.refused}" if slot.refused else ""
    unwatched = f", NOT WATCHED: {slot.unwatched}" if slot.unwatched else ""
    said = f"{engine}{refused}{unwatched}"
    return name, f"version {slot.version}", slot.bundle[:12], learned, f"for {_duration(slot.seconds)}{said}"


def _behind_cells(group: str, behind: Behind) -> tuple[str, ...]:
    parts = ", ".join(f"{name.replace('_', '-')} {count}" for name, count in behind.records.items() if count)
    return group, str(behind.total), parts if behind.started else f"{parts} (none taken yet)".strip()


def _decision(found: Status) -> str:
    entry = found.last_decision
    if entry is None:
        return "none yet"
    text = (
        f"{entry.kind} {entry.id}: {entry.verdict}, version {entry.version}, {_duration((found.at - entry.at) / 1000)} ago"
    )
    if entry.score is not None:
        text += f", {entry.metric} {entry.score:.5g}"
    return f"{text}; {entry.detail}" if entry.detail else text


def _event_cells(event: Event, now: int) -> tuple[str, ...]:
    values = ", ".join(f"{name} {_shown(value)}" for name, value in event.values.items())
    return event.name, f"{_duration((now - event.at) / 1000)} ago", values


def _paused_cells(event: Event, now: int) -> tuple[str, ...]:
    return event.role, f"{_duration((now - event.at) / 1000)} ago", str(event.values.get("error"))


def _alarm_lines(alarm: Event, found: Status) -> list[str]:
    id = alarm.values.get("alarm")
    lines = [f"  {id}, raised {_duration((found.at - alarm.at) / 1000)} ago: {alarm.values.get('text')}"]
    if found.suggested:
        lines.append("  a retraining is suggested: tidemill train --again")
    if found.acknowledged:
        return [*lines, "  acknowledged: cleared at the next look"]
    return [*lines, f"  if this is how it should be: tidemill alarms --acknowledge {id}"]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items()) + "}"
    return str(value)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
