"""``tidemill log check`` and ``log seek``, on either log."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import polars as pl
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tidemill.core.inference import Choices
from tidemill.log.base import Message
from tidemill.messages import Topics
from tidemill.new_project import init_project
from tidemill.wiring import Wiring

pytestmark = pytest.mark.process


class Project:
    """A project without a model, and the commands that a person gives in its folder."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.name = f"log-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        table = pl.DataFrame({"age": range(100), "label": [n % 2 for n in range(100)]})
        table.write_csv(folder / "data.csv")
        settings = {"stream.url": url, "stream.partitions": "2"}
        init_project(folder / "data.csv", folder, Choices(target="label"), self.name, settings)
        self.topics = Topics.of(self.name)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code, and what was said."""
        done = subprocess.run(
            [sys.executable, "-m", "tidemill", *arguments, "--project", str(self.folder)],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    def read(self, group: str, topic: str, count: int) -> list[bytes]:
        """Fill a topic and let a group read and commit all of it."""
        wiring = Wiring(self.folder)
        wiring.log.append([Message(topic, b"%d" % number, b"%d" % number) for number in range(count)])
        values = self.values(wiring, group, topic, count)
        wiring.close()
        return values

    def values(self, wiring: Wiring, group: str, topic: str, count: int) -> list[bytes]:
        """So many records for a group, committed."""
        reader = wiring.log.join(group, [topic])
        values: list[bytes] = []
        while len(values) < count:
            values += reader.poll(100, 1.0).values
        reader.commit()
        reader.close()
        return values


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    if request.param == "sqlite":
        return Project(tmp_path / "p", "sqlite:log")
    return Project(tmp_path / "p", f"kafka://{request.getfixturevalue('bootstrap')}")


@pytest.fixture
def kafka(bootstrap: str, tmp_path: Path) -> tuple[Project, AdminClient]:
    return Project(tmp_path / "k", f"kafka://{bootstrap}"), AdminClient({"bootstrap.servers": bootstrap})


def test_check_lists_topics_and_groups(project: Project) -> None:
    """Ranges, positions and how far behind; exit code 0 where all is well."""
    project.read("trainer", project.topics.retrain, 5)
    code, said = project.run("log", "check")
    assert (code, said.splitlines()[-1]) == (0, "the log is good")
    assert "offsets 0 to 5" in said
    assert f"{project.topics.retrain}" in said
    assert "position 5, 0 behind" in said


def test_seek_says_where_a_group_goes_on(project: Project) -> None:
    """Back to the beginning, to an offset, to the end; the next member reads from there."""
    topic = project.topics.retrain
    everything = project.read("trainer", topic, 5)
    for to, count in (("beginning", 5), ("3", 2)):
        code, said = project.run("log", "seek", "trainer", "retrain", to)
        assert code == 0, said
        assert "trainer goes on at offset" in said
        wiring = Wiring(project.folder)
        assert project.values(wiring, "trainer", topic, count) == everything[-count:]
        wiring.close()
    assert project.run("log", "seek", "trainer", topic, "beginning")[0] == 0
    assert project.run("log", "seek", "trainer", topic, "end")[0] == 0
    wiring = Wiring(project.folder)
    assert wiring.log.committed("trainer") == {(topic, 0): 5}
    wiring.close()


def test_a_group_that_is_reading_cannot_be_moved(project: Project) -> None:
    """Its member would go on where it was: the command says so, and that it is to be stopped first."""
    project.read("trainer", project.topics.retrain, 5)
    wiring = Wiring(project.folder)
    reader = wiring.log.join("trainer", [project.topics.retrain])
    reader.poll(10, 1.0)
    try:
        code, said = project.run("log", "seek", "trainer", "retrain", "2")
        assert wiring.log.committed("trainer") == {(project.topics.retrain, 0): 5}
    finally:
        reader.close()
        wiring.close()
    assert (code, said.count("\n")) == (2, 1)
    assert "trainer is reading, so it goes on where it was: stop it first" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trainers", "retrain", "end"), "there is no group 'trainers'; there are predictor"),
        (("trainer", "requests", "end"), "does not read"),
        (("trainer", "retrain", "middle"), "neither beginning, end, nor an offset"),
        (("trainer", "retrain", "99"), "offset 99 is not within 0 to 0"),
        (("trainer", "retrain", "0", "--partition", "7"), "has no partition 7"),
    ],
)
def test_a_seek_that_cannot_be_is_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """Which word is wrong, and what would be right; exit code 2."""
    code, line = Project(tmp_path / "p", "sqlite:log").run("log", "seek", *arguments)
    assert code == 2
    assert said in line
    assert line.startswith("tidemill: ")
    assert line.count("\n") == 1


@pytest.mark.kafka
def test_check_tells_of_a_transaction_that_does_not_end(kafka: tuple[Project, AdminClient], bootstrap: str) -> None:
    """It hides what follows it from every reader, in silence; the check names the partition and fails."""
    project, _ = kafka
    Wiring(project.folder).log.close()
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": uuid.uuid4().hex})
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce(project.topics.journal, b"{}")
    producer.flush(10)
    code, said = project.run("log", "check")
    producer.abort_transaction(10)
    assert code == 1
    assert f"topic '{project.topics.journal}', partition 0: 1 records are hidden by a transaction" in said
    assert project.run("log", "check")[0] == 0


@pytest.mark.kafka
def test_check_tells_of_records_that_were_deleted_before_they_were_read(kafka: tuple[Project, AdminClient]) -> None:
    """It names them, and the command that mends it, which does."""
    project, admin = kafka
    topic = project.topics.retrain
    project.read("trainer", topic, 5)
    assert project.run("log", "seek", "trainer", "retrain", "2")[0] == 0
    (future,) = admin.delete_records([TopicPartition(topic, 0, 4)]).values()
    future.result(10)
    code, said = project.run("log", "check")
    assert code == 1
    assert f"records 2 to 3 of topic '{topic}', partition 0, were deleted before they were read" in said
    assert project.run("log", "seek", "trainer", "retrain", "beginning")[0] == 0
    assert project.run("log", "check")[0] == 0


@pytest.mark.kafka
def test_a_predictor_whose_position_was_dropped_stops(kafka: tuple[Project, AdminClient]) -> None:
    """Answers exist and the position is gone, as after a week away: one line, exit code 4; ``log seek`` mends it."""
    project, _ = kafka
    wiring = Wiring(project.folder)
    wiring.log.append([Message(project.topics.predictions, b"{}", b"k"), Message(project.topics.requests, b"{}", b"k")])
    wiring.close()
    code, said = project.run("predictor")
    assert code == 4
    assert "the position up to which requests were answered is gone" in said
    assert f"tidemill log seek predictor {project.topics.requests} end" in said
    assert project.run("log", "seek", "predictor", "requests", "end")[0] == 0
    assert len(Wiring(project.folder).log.committed("predictor")) == 2
