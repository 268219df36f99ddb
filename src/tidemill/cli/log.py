"""Commands on the log itself: check, repair, seek."""

from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.cli.options import Commands, open_project, say

if TYPE_CHECKING:
    from tidemill.log.base import Log, Positions
    from tidemill.wiring import Wiring


def declare(commands: Commands) -> None:
    """Add them."""
    group = commands.group("log", "The log: its audit, and where a group goes on.")
    for name, run in {"check": check, "repair": repair}.items():
        folder_help = "a SQLite log's folder; by default the project's log"
        group.add(name, run).add_argument("folder", type=Path, nargs="?", help=folder_help)
    to = group.add("seek", seek)
    to.add_argument("group", help="the role: predictor, recorder, trainer or tracker")
    to.add_argument("topic", help="a topic that it reads, with or without the project's prefix")
    to.add_argument("to", help="beginning, end, or an offset")
    to.add_argument("--partition", type=int, metavar="N", help="one partition only; needed for an offset")


def check(folder: Path | None, project: Path) -> int:
    """Audit a log: checksums, offsets, positions; on Kafka, open transactions. Exit code 1 if something is wrong."""
    import os

    from tidemill.configuration import load

    if folder is None and load(project, os.environ).log_kind == "kafka":
        with open_project(project) as wiring:
            problems = _check_kafka(wiring)
    else:
        problems = _check_sqlite(folder or load(project, os.environ).log_folder)
    for problem in problems:
        say(f"problem: {problem}")
    say("the log is good" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


def _check_sqlite(folder: Path) -> list[str]:
    from tidemill.log.sqlite_check import check

    report = check(folder)
    for topic in report.topics:
        say(f"{topic.topic:<28} offsets {topic.first} to {topic.end}, {topic.records} records")
    for group in report.groups:
        say(f"{group.group:<28} {group.topic}: position {group.committed}, {group.lag} behind")
    say(f"{report.root}: {report.file_bytes:,} bytes, SQLite {report.sqlite_version}")
    if report.problems:
        say("damaged records are mended by: tidemill log repair")
    return report.problems


def _check_kafka(wiring: "Wiring") -> list[str]:
    from tidemill.log.kafka import KafkaLog
    from tidemill.log.kafka_check import check
    from tidemill.status import CONSUMERS

    log, topics = wiring.log, wiring.topics
    assert isinstance(log, KafkaLog)  # noqa: S101 (the caller has looked at the settings)
    report = check(log, [getattr(topics, field) for field in topics.__struct_fields__], CONSUMERS)
    for one in report.partitions:
        say(f"{one.topic:<28} partition {one.partition}: offsets {one.first} to {one.end}, {one.hidden} hidden")
    for position in report.positions:
        place = f"{position.topic} partition {position.partition}"
        say(f"{position.group:<28} {place}: position {position.committed}, {position.lag} behind")
    say(f"Kafka at {report.brokers}")
    return report.problems


def repair(folder: Path | None, project: Path) -> int:
    """Mend a damaged SQLite log: what is lost becomes an empty record in its place. Exit code 1 if something is left.

    Whoever reads such a record refuses it (a request: one dead letter). What was found goes to the log's folder quarantine.
    """
    import os

    from tidemill.configuration import load
    from tidemill.log.sqlite_repair import repair

    done = repair(folder or load(project, os.environ).log_folder)
    for damage in done.mended:
        say(f"mended: {damage}")
    if done.mended:
        say(f"what was found there is in {done.quarantine}")
    for problem in done.problems:
        say(f"problem: {problem}")
    say("the log is good" if not done.problems else f"{len(done.problems)} problems are left")
    return 1 if done.problems else 0


def seek(group: str, topic: str, to: str, partition: int | None, project: Path) -> None:
    """Say where a group goes on reading, after its position was lost. Stop the role first.

    What lies between is skipped, or read again: this is the one command that can lose or repeat something.
    """
    from tidemill.errors import ConfigError
    from tidemill.status import CONSUMERS

    if group not in CONSUMERS:
        raise ConfigError(f"there is no group {group!r}; there are {', '.join(CONSUMERS)}")
    with open_project(project) as wiring:
        name = topic if topic.startswith(f"{wiring.settings.project.name}.") else f"{wiring.settings.project.name}.{topic}"
        reads = [getattr(wiring.topics, field) for field in CONSUMERS[group]]
        if name not in reads:
            raise ConfigError(f"{group} does not read {name}; it reads {', '.join(reads)}")
        bounds = {p: found for p, found in wiring.log.bounds(name).items() if partition in (None, p)}
        if not bounds:
            raise ConfigError(f"{name} has no partition {partition}")
        if to not in ("beginning", "end") and len(bounds) > 1:
            raise ConfigError(f"{name} has {len(bounds)} partitions: say which with --partition")
        positions = {(name, p): _offset(to, *found) for p, found in bounds.items()}
        if not _moved(wiring.log, group, positions):
            raise ConfigError(
                f"{group} is reading, so it goes on where it was: stop it first (tidemill status says what runs)"
            )
    for (_, number), offset in positions.items():
        say(f"{group} goes on at offset {offset} of {name}, partition {number}")


def _moved(log: "Log", group: str, positions: "Positions") -> bool:
    """Whether the group stands there now: a member that is reading has the last word."""
    from contextlib import closing

    from tidemill.errors import Broken

    with closing(log.join(group, [topic for topic, _ in positions])) as reader:
        reader.seek(positions)
        try:
            reader.commit()
        except Broken:
            return False
    known = log.committed(group)
    return all(known.get(place) == offset for place, offset in positions.items())


def _offset(to: str, first: int, end: int) -> int:
    from tidemill.errors import ConfigError

    if to in ("beginning", "end"):
        return first if to == "beginning" else end
    if not to.isdecimal():
        raise ConfigError(f"{to!r} is neither beginning, end, nor an offset")
    if not first <= int(to) <= end:
        raise ConfigError(f"offset {to} is not within {first} to {end}, where the records are")
    return int(to)
