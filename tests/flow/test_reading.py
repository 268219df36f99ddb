"""A topic of the project's own as messages: what somebody else put there is passed over, and told once."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tidemill.log.base import Message, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.messages import JournalEntry, ModelVersion, Retrain, Topics, Trial, to_bytes
from tidemill.roles.promotion import read_slots
from tidemill.roles.reading import decoded, read_messages, read_trials
from tidemill.status import status
from tidemill.testing.clock import ManualClock

TOPICS = Topics.of("reading")
FOREIGN = [b"\xff garbage", b"", b"null", b"[]", b"{}", b'{"id": 3}', b'{"more":' + b"[" * 100_000]
KINDS = {TOPICS.retrain: Retrain, TOPICS.models: ModelVersion, TOPICS.trials: Trial, TOPICS.journal: JournalEntry}


@pytest.mark.parametrize(("topic", "kind"), KINDS.items(), ids=KINDS)
def test_what_is_no_message_is_passed_over_and_told_once(tmp_path: Path, topic: str, kind: type) -> None:
    """Nor is a message of another kind one; however often the topic is read, each record has one line, with its place."""
    log = SqliteLog(tmp_path / "log", "normal")
    log.create([Topic(topic)])
    other = to_bytes(Retrain("a", "asked", 0, 0)) if kind is not Retrain else b'{"name":"x"}'
    foreign = [*FOREIGN, other]
    log.append([Message(topic, value) for value in foreign])
    with capture_logs() as lines:
        assert [read_messages(log, topic, kind) for _ in range(3)] == [[], [], []]
        assert decoded(read_all(log, topic)[0], kind) is None
    told = [(line["event"], line["topic"], line["offset"], line["expected"]) for line in lines]
    assert told == [("record_skipped", topic, offset, kind.__name__) for offset in range(len(foreign))]
    log.close()


def test_a_repeated_key_is_the_same_trial(tmp_path: Path) -> None:
    """It counts once; a number is an experiment's own."""
    log = SqliteLog(tmp_path / "log", "normal")
    log.create([Topic(TOPICS.trials)])
    for experiment, number in (("a", 0), ("a", 0), ("a", 1), ("b", 0)):
        trial = Trial(experiment, number, {}, "auc", 0.5, [0.5], 1, 1.0, "v", 0)
        log.append([Message(TOPICS.trials, to_bytes(trial), f"{experiment}/{number}".encode())])
    assert [(trial.experiment, trial.number) for trial in read_trials(log, TOPICS)] == [("a", 0), ("a", 1), ("b", 0)]
    log.close()


def test_the_status_is_told_all_the_same(tmp_path: Path) -> None:
    """Of the last decision, the slots and the events it shows what can be read."""
    log = SqliteLog(tmp_path / "log", "normal")
    log.create([Topic(getattr(TOPICS, field)) for field in TOPICS.__struct_fields__])
    log.append([Message(TOPICS.journal, to_bytes(JournalEntry("e", "experiment", "", "failed", 0)))])
    log.append([Message(topic, FOREIGN[0]) for topic in (TOPICS.models, TOPICS.journal, TOPICS.retrain, TOPICS.trials)])
    log.append([Message(TOPICS.events, b'{"name":"quality_measured",garbage')])
    found = status(log, TOPICS, tmp_path / "run", ManualClock())
    assert found.last_decision is not None
    assert (found.last_decision.id, found.champion, found.events) == ("e", None, {})
    log.close()


def test_messages_between_them_keep_their_order(tmp_path: Path) -> None:
    """And the slots are those of the records that are good."""
    log = SqliteLog(tmp_path / "log", "normal")
    log.create([Topic(getattr(TOPICS, field)) for field in TOPICS.__struct_fields__])
    for number in (1, 2):
        log.append([Message(TOPICS.models, FOREIGN[0], b"champion")])
        version = ModelVersion(number, "u", "b", "s", "champion", 0, "e", 0, number)
        log.append([Message(TOPICS.models, to_bytes(version), b"champion")])
        log.append([Message(TOPICS.retrain, FOREIGN[0]), Message(TOPICS.retrain, to_bytes(Retrain(f"c{number}", "", 0, 0)))])
    assert [command.id for command in read_messages(log, TOPICS.retrain, Retrain)] == ["c1", "c2"]
    champion = read_slots(log, TOPICS).champion
    assert champion is not None
    assert champion.version == 2
    log.close()
