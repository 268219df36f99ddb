"""Status over a real log: lag, counts, versions, roles."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tidemill.log.base import Log, Message, Topic
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import Event, JournalEntry, ModelVersion, Topics, to_bytes
from tidemill.processes import RoleRun, process_mark, write_run
from tidemill.roles.promotion import acknowledge
from tidemill.status import Status, render, status
from tidemill.testing.clock import ManualClock

TOPICS = Topics.of("adult")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    found = SqliteLog(tmp_path / "log")
    found.create([Topic(getattr(TOPICS, field)) for field in TOPICS.__struct_fields__])
    yield found
    found.close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_new_project_waits_for_its_first_model(log: Log, tmp_path: Path) -> None:
    """Nothing is there, not even the run folder: zeros, no roles, and the next step is named."""
    found = status(log, TOPICS, tmp_path / "run", ManualClock())
    assert found.waits_for_first_model
    assert (found.roles, found.champion, found.last_decision, found.events) == ([], None, None, {})
    assert set(found.counts.values()) == {0}
    assert {group: (behind.started, behind.total) for group, behind in found.lag.items()} == {
        "predictor": (False, 0),
        "recorder": (False, 0),
        "trainer": (False, 0),
        "tracker": (False, 0),
    }
    text = render(found)
    assert "waiting for the first model (train it: tidemill train)" in text
    assert "start them: tidemill run" in text


def test_lag_is_what_a_group_has_not_taken(log: Log, run_dir: Path) -> None:
    """By group and topic, from the committed positions; counts are the topics' ends."""
    log.append([Message(TOPICS.requests, b"{}", b"%d" % number) for number in range(10)])
    reader = log.join("predictor", [TOPICS.requests])
    taken = len(reader.poll(4, 5.0))
    reader.commit([Message(TOPICS.predictions, b"{}", b"0")])
    reader.close()
    found = status(log, TOPICS, run_dir, ManualClock())
    assert taken == 4
    assert (found.lag["predictor"].started, found.lag["predictor"].records) == (True, {"requests": 6})
    assert found.lag["recorder"].records == {"requests": 10, "predictions": 1, "outcomes": 0, "dead_letters": 0}
    assert (found.counts["requests"], found.counts["predictions"]) == (10, 1)
    assert "requests 10, predictions 1 (none taken yet)" in render(found)


def test_versions_and_the_last_decision(log: Log, run_dir: Path) -> None:
    """The slots with their age, and the newest journal entry."""
    clock = ManualClock(now_ms=10_000_000)
    for version, slot, sequence, at in ((1, "champion", 1, 0), (1, "previous", 2, 1000), (2, "champion", 3, 9_400_000)):
        moved = ModelVersion(version, "uri", f"bundle{version}", "s", slot, 500, "e", at, sequence)  # type: ignore[arg-type]
        log.append([Message(TOPICS.models, to_bytes(moved), slot.encode())])
    for name in ("first", "count-1"):
        entry = JournalEntry(name, "experiment", "count", "promoted", 9_990_000, metric="auc", score=0.92345678, version=2)
        log.append([Message(TOPICS.journal, to_bytes(entry), name.encode())])
    found = status(log, TOPICS, run_dir, clock)
    assert not found.waits_for_first_model
    assert found.champion is not None
    assert (found.champion.version, found.champion.bundle, found.champion.seconds) == (2, "bundle2", 600.0)
    assert found.previous is not None
    assert found.previous.version == 1
    assert found.challenger is None
    text = render(found)
    assert "experiment count-1: promoted, version 2, 10 s ago, auc 0.92346" in text
    assert "for 10 min" in text


def test_the_newest_event_of_each_name(log: Log, run_dir: Path) -> None:
    """Of many measurements the last counts; events of other names are left out, whatever their values say."""
    clock = ManualClock(now_ms=100_000)
    for number in range(3):
        values = {"auc": 0.5 + number / 10, "answers": number, "by": {"1": 0.25}}
        log.append([Message(TOPICS.events, to_bytes(Event("quality_measured", "monitor", 1000 * number, values)))])
        fake = Event("other", "monitor", 5, {"name": "quality_measured"})
        log.append([Message(TOPICS.events, to_bytes(fake))])
    found = status(log, TOPICS, run_dir, clock)
    assert list(found.events) == ["quality_measured"]
    assert found.events["quality_measured"].values["answers"] == 2
    assert "quality_measured  98 s ago  auc 0.7, answers 2, by {1 0.25}" in render(found)


def test_what_keeps_a_role_from_its_work_is_shown_while_it_does(log: Log, run_dir: Path) -> None:
    """The newest reason of each, until it is not said again."""
    clock = ManualClock(now_ms=1_000_000)
    for at, name, role, error in (
        (930_000, "recording_paused", "recorder", "the disk is full"),
        (980_000, "monitoring_paused", "monitor", "lake table looks: no"),
        (990_000, "recording_paused", "recorder", "the lake is read-only"),
    ):
        log.append([Message(TOPICS.events, to_bytes(Event(name, role, at, {"error": error})))])
    found = status(log, TOPICS, run_dir, clock)
    assert [(one.role, one.values["error"]) for one in found.paused] == [
        ("monitor", "lake table looks: no"),
        ("recorder", "the lake is read-only"),
    ]
    shown = (
        "PAUSED, and tried again each second\n  monitor   20 s ago  lake table looks: no\n  recorder  10 s ago  the lake is"
    )
    assert shown in render(found)
    clock.advance(85)
    assert [one.role for one in status(log, TOPICS, run_dir, clock).paused] == []


def test_roles_are_alive_or_dead(log: Log, run_dir: Path) -> None:
    """A run file of a living process is alive; of a dead one, or of a pid that is another process now, dead."""
    clock = ManualClock(now_ms=200_000)
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    mine = process_mark(os.getpid())
    write_run(run_dir, RoleRun("predictor", os.getpid(), mine, 80_000, 1))
    write_run(run_dir, RoleRun("monitor", gone.pid, "1", 80_000, 0))
    write_run(run_dir, RoleRun("recorder", os.getpid(), "an earlier process", 80_000, 2))
    (run_dir / "broken.json").write_text("{")
    found = status(log, TOPICS, run_dir, clock)
    assert {role.role: role.alive for role in found.roles} == {"predictor": True, "monitor": False, "recorder": False}
    lines = render(found).splitlines()
    assert f"  predictor  alive  pid {os.getpid()}" in " ".join(lines)
    assert any("recorder" in line and "DEAD" in line and "2 restarts" in line for line in lines)


def test_a_role_that_is_restarted_again_and_again_is_shown(log: Log, run_dir: Path) -> None:
    """With how often, and what it said last; where its supervisor is gone, so is the role."""
    clock = ManualClock(now_ms=200_000)
    mine = process_mark(os.getpid())
    last = "tidemill: topic 'adult.requests', offset 5: damaged"
    write_run(run_dir, RoleRun("monitor", os.getpid(), "gone", 190_000, 12, last, os.getpid(), mine))
    write_run(run_dir, RoleRun("predictor", os.getpid(), "gone", 190_000, 12, last, os.getpid(), "gone too"))
    found = status(log, TOPICS, run_dir, clock)
    assert [(role.role, role.alive, role.restarting, role.last_line) for role in found.roles] == [
        ("monitor", False, True, last),
        ("predictor", False, False, last),
    ]
    [line] = [line for line in render(found).splitlines() if line.startswith("  monitor")]
    assert line.split() == f"monitor restarting 12 restarts, last line: {last}".split()
    line = next(line for line in render(found).splitlines() if line.startswith("  predictor"))
    assert line.split()[:2] == ["predictor", "DEAD"]
    write_run(run_dir, RoleRun("predictor", os.getpid(), mine, 190_000, 12, last))
    assert f"for 10 s  12 restarts, last line: {last}" in render(status(log, TOPICS, run_dir, clock))
    clock.advance(30)
    assert last not in "".join(
        line for line in render(status(log, TOPICS, run_dir, clock)).splitlines() if line.startswith("  predictor")
    )


def test_a_champion_that_was_refused_is_not_shown_as_normal(log: Log, run_dir: Path) -> None:
    """Until the predictor has taken it after all, or another one is the champion."""

    def told(name: str, version: int, **more: str) -> Status:
        values = {"version": version, "bundle": f"bundle{version}", **more}
        log.append([Message(TOPICS.events, to_bytes(Event(name, "predictor", 5, values)))])
        return status(log, TOPICS, run_dir, ManualClock(now_ms=100_000))

    def champion(version: int, sequence: int) -> None:
        moved = ModelVersion(version, "uri", f"bundle{version}", "s", "champion", 0, "e", 0, sequence)
        log.append([Message(TOPICS.models, to_bytes(moved), b"champion")])

    def refused(found: Status) -> str:
        assert found.champion is not None
        return found.champion.refused

    champion(1, 1)
    assert refused(told("model_swapped", 1)) == ""
    champion(2, 2)
    found = told("bundle_refused", 2, error="BundleRefused: model.txt is not what its manifest says")
    assert refused(found) == "BundleRefused: model.txt is not what its manifest says"
    [line] = [line for line in render(found).splitlines() if line.startswith("  champion")]
    assert line.endswith(", REFUSED by the predictor: BundleRefused: model.txt is not what its manifest says")
    assert list(found.events) == []
    assert refused(told("model_swapped", 2)) == ""
    told("bundle_refused", 2, error="again")
    champion(1, 3)
    assert refused(status(log, TOPICS, run_dir, ManualClock())) == ""


def test_the_engine_of_the_champion_is_shown(log: Log, run_dir: Path) -> None:
    """The one that the predictor named last for this version; nothing before it has said so."""

    def told(name: str, **values: object) -> Status:
        log.append([Message(TOPICS.events, to_bytes(Event(name, "predictor", 5, values)))])
        return status(log, TOPICS, run_dir, ManualClock(now_ms=100_000))

    moved = ModelVersion(1, "uri", "bundle1", "s", "champion", 0, "e", 0, 1)
    log.append([Message(TOPICS.models, to_bytes(moved), b"champion")])
    for name, values, engine in (
        ("requests_answered", {"version": 7, "engine": "lightgbm"}, ""),
        ("model_swapped", {"version": 1, "bundle": "bundle1"}, ""),
        ("model_swapped", {"version": 1, "bundle": "bundle1", "engine": "numpy"}, "numpy"),
        ("engine_swapped", {"version": 7, "engine": "lightgbm"}, "numpy"),
        ("engine_swapped", {"version": 1, "engine": "llvm"}, "llvm"),
        ("model_swapped", {"version": 1, "bundle": "bundle1", "engine": "numpy"}, "numpy"),
        ("requests_answered", {"version": 1, "engine": "llvm"}, "llvm"),
        ("requests_answered", {"answered": 0}, "numpy"),
    ):
        found = told(name, **values)
        assert found.champion is not None
        assert found.champion.engine == engine
    found = told("requests_answered", version=1, engine="llvm")
    [line] = [line for line in render(found).splitlines() if line.startswith("  champion")]
    assert line.endswith(", engine llvm")


def test_a_champion_that_nobody_watches_says_why(log: Log, run_dir: Path) -> None:
    """As long as it is the champion."""
    for version, sequence, line_end in ((1, 1, "NOT WATCHED: bundle b1 has no reference"), (2, 2, " days")):
        moved = ModelVersion(version, "uri", f"b{version}", "s", "champion", 0, "e", 0, sequence)
        told = Event("champion_not_watched", "monitor", 5, {"version": 1, "why": "bundle b1 has no reference"})
        log.append([Message(TOPICS.models, to_bytes(moved), b"champion"), Message(TOPICS.events, to_bytes(told))])
        [line] = [
            line
            for line in render(status(log, TOPICS, run_dir, ManualClock())).splitlines()
            if line.startswith("  champion")
        ]
        assert line.endswith(line_end)


def test_the_alarm_that_is_up_stands_first_with_what_to_do(log: Log, run_dir: Path) -> None:
    """With what it has worsened to and the retraining that is suggested; acknowledged, it waits for the next look."""

    def told(name: str, **values: object) -> str:
        log.append([Message(TOPICS.events, to_bytes(Event(name, "monitor", 5, {"alarm": "alarm-3", **values})))])
        return render(status(log, TOPICS, run_dir, ManualClock(now_ms=65_000)))

    raised = told("alarm_raised", text="heat: above 90").splitlines()
    assert raised[2:5] == [
        "ALARM",
        "  alarm-3, raised 65 s ago: heat: above 90",
        "  if this is how it should be: tidemill alarms --acknowledge alarm-3",
    ]
    assert "alarm-3, raised 65 s ago: error: more" in told("alarm_worsened", text="error: more")
    assert "a retraining is suggested: tidemill train --again" in told("retraining_suggested")
    acknowledge(log, TOPICS, "alarm-3", ManualClock())
    found = status(log, TOPICS, run_dir, ManualClock())
    assert found.acknowledged
    assert "acknowledged: cleared at the next look" in render(found)
    assert "--acknowledge" not in render(found)
    assert "ALARM" not in told("alarm_cleared")


def test_its_json_comes_back_the_same(log: Log, run_dir: Path) -> None:
    """The JSON form holds all of it."""
    found = status(log, TOPICS, run_dir, ManualClock())
    assert msgspec.json.decode(msgspec.json.encode(found), type=Status) == found
