"""A project meets a Kafka cluster: topics made as they must be, mistakes told in one line with their exit code."""

import os
import random
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from tidemill.core.inference import Choices
from tidemill.log.base import Message, read_all
from tidemill.messages import Topics
from tidemill.new_project import init_project
from tidemill.wiring import LETTER_BYTES_MAX, Wiring

pytestmark = [pytest.mark.kafka, pytest.mark.process]

SECONDS = 30.0
HOUR_MS = 3_600_000
SHARED = ("requests", "predictions", "outcomes", "dead_letters")
KEPT = ("retrain", "models", "trials", "journal")

MAKER = """
import sys
from pathlib import Path
from tidemill.wiring import Wiring
wiring = Wiring(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(sum(len(wiring.log.bounds(topic)) for topic in (wiring.topics.requests, wiring.topics.models)), flush=True)
wiring.close()
"""


class Project:
    """A small project on the broker, under a name of its own."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.name = f"topics-{uuid.uuid4().hex[:8]}"
        self.folder = folder / "p"
        self.topics = Topics.of(self.name)
        self.admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        draw = random.Random(1)
        rows = [f"{(age := draw.randint(17, 90))},{'yes' if age > 50 else 'no'}" for _ in range(50)]
        (folder / "people.csv").write_text("age,income\n" + "\n".join(rows) + "\n")
        settings = {"stream.url": f"kafka://{bootstrap}", "stream.partitions": "3", "stream.retention_hours": "2"}
        init_project(folder / "people.csv", self.folder, Choices(target="income"), self.name, settings)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """A command, as a script would start it."""
        return subprocess.Popen(
            [sys.executable, "-m", "tidemill", *arguments, "-p", str(self.folder)],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def open(self) -> Wiring:
        """The project, with its log open."""
        wiring = Wiring(self.folder)
        assert wiring.log is not None
        return wiring

    def set(self, old: str, new: str) -> None:
        """Edit tidemill.toml."""
        file = self.folder / "tidemill.toml"
        text = file.read_text()
        assert text.count(old) == 1
        file.write_text(text.replace(old, new))

    def make(self, field: str, partitions: int, **config: str) -> None:
        """A topic as another person would make it."""
        name, given = getattr(self.topics, field), {key.replace("_", "."): value for key, value in config.items()}
        for future in self.admin.create_topics([NewTopic(name, partitions, 1, config=given)]).values():
            future.result(SECONDS)

    def partitions(self, field: str) -> int:
        name = getattr(self.topics, field)
        return len(self.admin.list_topics(name, timeout=SECONDS).topics[name].partitions)

    def config(self, field: str) -> dict[str, str]:
        """What the broker says of a topic."""
        resource = ConfigResource(ResourceType.TOPIC, getattr(self.topics, field))
        (future,) = self.admin.describe_configs([resource]).values()
        return {name: str(entry.value) for name, entry in future.result(SECONDS).items()}


@pytest.fixture
def project(bootstrap: str, tmp_path: Path) -> Project:
    return Project(bootstrap, tmp_path)


def test_topics_are_made_as_they_must_be(project: Project) -> None:
    """Partitions, cleanup, retention, the broker's own time, and room for a dead letter around the largest request."""
    project.open().close()
    for field in project.topics.__struct_fields__:
        config = project.config(field)
        assert project.partitions(field) == (3 if field in SHARED else 1)
        assert config["cleanup.policy"] == ("compact" if field == "models" else "delete")
        assert config["retention.ms"] == ("-1" if field in KEPT else str(2 * HOUR_MS))
        assert config["message.timestamp.type"] == "LogAppendTime"
        assert config["max.message.bytes"] == (str(LETTER_BYTES_MAX) if field == "dead_letters" else "1048588")


def test_a_dead_letter_holds_the_largest_request_that_the_broker_takes(project: Project) -> None:
    """With what is said about it, it is larger than that."""
    wiring = project.open()
    value = os.urandom(1_048_000)
    wiring.log.append([Message(project.topics.requests, value)])
    wiring.log.append([Message(project.topics.dead_letters, value, None, (("detail", b"x" * 70_000),))])
    assert [record.value for record in read_all(wiring.log, project.topics.dead_letters)] == [value]
    wiring.close()


def test_every_difference_of_standing_topics_is_named_in_one_line(project: Project) -> None:
    """Exit code 2, and nothing is changed, not even what would be taken over alone."""
    project.make("events", 1, retention_ms="1000", message_timestamp_type="LogAppendTime")
    project.make("requests", 2, message_timestamp_type="LogAppendTime")
    project.make("predictions", 3)
    project.make("models", 1, cleanup_policy="delete", message_timestamp_type="LogAppendTime")
    project.make("dead_letters", 4, cleanup_policy="compact,delete")
    process = project.start("status")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = said.splitlines()
    topics = project.topics
    for difference in (
        f"{topics.requests} has 2 partitions, not 3",
        f"{topics.predictions} has message.timestamp.type=CreateTime, not LogAppendTime",
        f"{topics.models} has cleanup.policy=delete, not compact",
        f"{topics.dead_letters} has 4 partitions, not 3",
        f"{topics.dead_letters} has cleanup.policy=compact,delete, not delete",
        f"{topics.dead_letters} has max.message.bytes=1048588, not {LETTER_BYTES_MAX}",
        f"{topics.dead_letters} has message.timestamp.type=CreateTime, not LogAppendTime",
    ):
        assert difference in line
    assert topics.events not in line
    assert project.config("events")["retention.ms"] == "1000"


def test_standing_topics_take_over_the_retention_and_keep_what_does_no_harm(project: Project) -> None:
    """A setting of ours that has changed, one that another person made, and a limit that is higher than ours."""
    project.make("dead_letters", 3, max_message_bytes="5000000", message_timestamp_type="LogAppendTime")
    project.make("journal", 1, retention_ms="1000", message_timestamp_type="LogAppendTime", segment_bytes="2000000")
    project.open().close()
    assert project.config("dead_letters")["retention.ms"] == str(2 * HOUR_MS)
    assert project.config("dead_letters")["max.message.bytes"] == "5000000"
    assert (project.config("journal")["retention.ms"], project.config("journal")["segment.bytes"]) == ("-1", "2000000")
    project.set("retention_hours = 2.0", "retention_hours = 0.5")
    project.open().close()
    assert {project.config(field)["retention.ms"] for field in (*SHARED, "events")} == {str(HOUR_MS // 2)}
    assert {project.config(field)["retention.ms"] for field in KEPT} == {"-1"}


def test_processes_that_start_at_once_make_each_topic_once(project: Project) -> None:
    """As the roles of a new project do: whoever comes second finds it made."""
    command = [sys.executable, "-c", MAKER, str(project.folder)]
    makers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for maker in makers:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "ready\n"
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("go\n")
        maker.stdin.flush()
    assert [maker.communicate(timeout=60)[0] for maker in makers] == ["4\n"] * 4
    assert [maker.returncode for maker in makers] == [0] * 4
    assert project.partitions("requests") == 3


class Mistake(NamedTuple):
    """A variable, the exit code that it leads to, and what the line says."""

    name: str
    value: str
    code: int
    hints: tuple[str, ...]


@pytest.fixture(scope="module")
def stranger() -> Iterator[Callable[[bytes], str]]:
    """Starts servers that are no brokers: they say something to whoever connects, and listen."""
    servers: list[socketserver.ThreadingTCPServer] = []

    def start(says: bytes) -> str:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    self.request.sendall(says)
                    while self.request.recv(65_536):
                        pass

        servers.append(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler))
        servers[-1].daemon_threads = True
        servers[-1].block_on_close = False
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"kafka://127.0.0.1:{servers[-1].server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_mistake_is_one_line_and_an_exit_code(project: Project, stranger: Callable[[bytes], str]) -> None:
    """Which setting librdkafka does not know or take; which broker does not answer, and why: soon, all at the same time."""
    mistakes = [
        Mistake("TIDEMILL_STREAM__KAFKA__NO_SUCH_SETTING", "1", 2, ("stream.kafka", '"no.such.setting"')),
        Mistake(
            "TIDEMILL_STREAM__KAFKA__SOCKET_KEEPALIVE_ENABLE", "perhaps", 2, ('"socket.keepalive.enable"', "true or false")
        ),
        Mistake("TIDEMILL_STREAM__KAFKA__SECURITY_PROTOCOL", "SSL", 3, ("does not answer", "SSL connection closed")),
        Mistake("TIDEMILL_STREAM__URL", "kafka://127.0.0.1:1", 3, ("127.0.0.1:1 does not answer", "refused")),
        Mistake("TIDEMILL_STREAM__URL", "kafka://no.such.host.invalid:9092", 3, ("no.such.host.invalid", "resolve")),
        Mistake("TIDEMILL_STREAM__URL", stranger(b""), 3, ("does not answer",)),
        Mistake("TIDEMILL_STREAM__URL", stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n"), 3, ("does not answer",)),
    ]
    started = time.monotonic()
    processes = [project.start("status", **{mistake.name: mistake.value}) for mistake in mistakes]
    for mistake, process in zip(mistakes, processes, strict=True):
        out, said = process.communicate(timeout=60)
        lines = said.splitlines()
        assert len(lines) == 1, (mistake, said)
        assert lines[0].startswith("tidemill: ")
        assert all(hint in lines[0] for hint in mistake.hints), (mistake, lines)
        assert (process.returncode, out) == (mistake.code, "")
    assert time.monotonic() - started < 25.0
