"""The broker, the recorder, the trainer and all roles at once killed on a real Kafka broker, and records that vanish.

``TIDEMILL_FAULT_FACTOR=3`` runs three times as many of each fault. Every figure is printed beside its limit.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tidemill.audit import Report, audit, render
from tidemill.errors import TidemillError
from tidemill.log.base import Message, lag, read_all
from tidemill.messages import Outcome, Retrain, Trial, to_bytes
from tidemill.processes import read_runs
from tidemill.testing.faults import Crew, Traffic, hanging, quick_project, wait_for
from tidemill.testing.kafka_broker import KafkaBroker
from tidemill.wiring import Wiring

pytestmark = [pytest.mark.kafka, pytest.mark.process, pytest.mark.slow, pytest.mark.alone]

FACTOR = int(os.environ.get("TIDEMILL_FAULT_FACTOR", "1"))
SERVICE_SECONDS = 30.0
"""How long after the broker's return, or a kill of everything, answers must flow again."""
HANGING_SECONDS = 25.0
TRIALS = 3
TRAINER_POINTS = ("trainer.recorded:1", "trainer.recorded:1", "trainer.searched", "bundle.written", "trainer.committed")
COPIED = ("models", "journal", "retrain", "trials")


class Stage:
    """A project on the module's broker."""

    def __init__(self, broker: KafkaBroker, folder: Path, name: str, settings: dict[str, str]) -> None:
        self.folder = folder
        self.project = folder / name
        self.values = quick_project(self.project, name, {"stream.url": f"kafka://{broker.bootstrap}"} | settings)
        self.wiring = Wiring(self.project)
        self.log, self.topics = self.wiring.log, self.wiring.topics
        self.admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})

    def ask(self, names: list[str]) -> None:
        self.log.append([Message(self.topics.requests, self.values[0], name.encode()) for name in names])

    def answers(self) -> Counter[str]:
        """How many each request has."""
        return Counter((record.key or b"").decode() for record in read_all(self.log, self.topics.predictions))

    def check(self) -> Report:
        """What must hold at the end of every test."""
        wait_for(lambda: not hanging(self.log, self.topics), "the end of every transaction", HANGING_SECONDS)
        found = audit(self.log, self.topics, self.wiring.lake, self.wiring.store, sample=300)
        assert found.clean, render(found)
        return found


@pytest.fixture(scope="module")
def broker(new_broker: Callable[..., KafkaBroker]) -> KafkaBroker:
    return new_broker()


@pytest.fixture(scope="module")
def stage(broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The project whose roles are killed. Its first model comes from the first test."""
    stage = Stage(broker, tmp_path_factory.mktemp("stage"), "faults", {"tune.trials": str(TRIALS)})
    yield stage
    stage.wiring.close()


def ensure_model(stage: Stage) -> None:
    """Where the test that makes the first model was not chosen to run."""
    if not read_all(stage.log, stage.topics.models):
        train = [sys.executable, "-m", "tidemill", "train", "--project", str(stage.project)]
        subprocess.run(train, check=True, capture_output=True)


def test_recorder_and_trainer_killed(stage: Stage) -> None:
    """While requests wait for the first model and outcomes come in any order (10 % twice, 20 % before their request, 10 %
    never), the recorder is killed ten times and the trainer five times: no trial is run twice, each request is answered, and
    there is one observation for each that has an outcome.
    """
    draw = random.Random(1)
    messages, observed = traffic_with_outcomes(stage, 4000, draw)
    retrain = Message(stage.topics.retrain, to_bytes(Retrain("first", "first", 0, 0)), b"first")
    stage.log.append([retrain])
    with Crew(stage.project, stage.folder / "outputs") as crew:
        crew.start("trainer", points=TRAINER_POINTS * FACTOR)
        crew.start("recorder", "monitor")
        kills, chunk = 10 * FACTOR, len(messages) // (10 * FACTOR)
        for number in range(kills):
            for message in messages[number * chunk : (number + 1) * chunk if number < kills - 1 else None]:
                stage.log.append([message])
            time.sleep(draw.uniform(0.5, 2.5))
            crew.kill("recorder")
        wait_for(lambda: crew.count("trainer") == len(TRAINER_POINTS) * FACTOR, "five kills of the trainer", 120)
        crew.start("predictor")
        wait_for(lambda: stage.wiring.lake.count("observations") >= observed, "every observation", 60)
        wait_for(lambda: not any(lag(stage.log, "trainer", [stage.topics.retrain]).values()), "the trainer's end", 60)
        crew.stop("trainer", "monitor", "recorder", "predictor")
        assert {end.code for end in crew.ends} <= {-signal.SIGKILL, 0}
        assert crew.count("recorder") == kills + 1
    trials = [msgspec.json.decode(record.value, type=Trial) for record in read_all(stage.log, stage.topics.trials)]
    assert [trial.number for trial in trials] == list(range(TRIALS))
    report = stage.check()
    assert report.observations == observed
    assert report.answers == report.requests == len(stage.answers())


def traffic_with_outcomes(stage: Stage, count: int, draw: random.Random) -> tuple[list[Message], int]:
    """Requests and their outcomes in the order of sending, and how many observations they must come to."""
    timed: list[tuple[float, Message]] = []
    observed = 0
    for number in range(count):
        name = f"outcome-{number}".encode()
        timed.append((number, Message(stage.topics.requests, stage.values[number % len(stage.values)], name)))
        chance = draw.random()
        if chance < 0.1:
            continue
        observed += 1
        outcome = Message(stage.topics.outcomes, to_bytes(Outcome(int(draw.random() < 0.5))), name)
        timed.append((number + draw.uniform(-200, 0) if chance < 0.3 else number + draw.uniform(0, 200), outcome))
        if chance > 0.9:
            timed.append((number + draw.uniform(0, 400), outcome))
    return [message for _, message in sorted(timed, key=lambda one: one[0])], observed


@pytest.fixture(scope="module")
def run(stage: Stage) -> Iterator[Path]:
    """``tidemill run`` with two predictors; the file that it prints to."""
    ensure_model(stage)
    printed = stage.folder / "run.txt"
    command = [sys.executable, "-m", "tidemill", "run", "--predictors", "2", "--project", str(stage.project)]
    with printed.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        yield printed
        process.terminate()
        assert process.wait(15) == 0


@contextmanager
def served(stage: Stage, name: str) -> Iterator[Traffic]:
    """Requests all along, and nothing lost: what was tried again may have been asked twice."""
    with Traffic(stage.log, stage.topics, stage.values, 200, name) as traffic:
        wait_for(lambda: traffic.served_since(0.0), "first answers", SERVICE_SECONDS)
        yield traffic
        traffic.settle(SERVICE_SECONDS)
    assert traffic.failure is None
    assert (traffic.lost(), traffic.doubled()) == (set(), {})


def test_the_broker_killed_and_paused(stage: Stage, broker: KafkaBroker, run: Path, tell: Callable[..., None]) -> None:
    """kill -9 and a start, three times, and frozen for 8 s, three times, with all roles at work: they answer again within
    30 s of the broker's return, and no answer is lost or given twice.
    """
    killed, paused = [], []
    with served(stage, "broker") as traffic:
        for _ in range(3 * FACTOR):
            broker.kill()
            broker.start()
            back = time.monotonic()
            killed.append(wait_for(lambda at=back: traffic.served_since(at), "answers after a kill", SERVICE_SECONDS))  # type: ignore[misc]
            time.sleep(1.0)
        for _ in range(3 * FACTOR):
            broker.pause()
            time.sleep(8.0)
            broker.resume()
            back = time.monotonic()
            paused.append(wait_for(lambda at=back: traffic.served_since(at), "answers after a pause", SERVICE_SECONDS))  # type: ignore[misc]
            time.sleep(1.0)
    tell("the broker killed and started, from its return until answers flow", killed, SERVICE_SECONDS)
    tell("the broker paused for 8 s, from its return until answers flow", paused, SERVICE_SECONDS)
    stage.check()


def test_all_roles_killed_at_once(stage: Stage, run: Path, tell: Callable[..., None]) -> None:
    """Three times every role of a running project dies in the same moment, and the supervisor starts it again."""
    outages = []
    with served(stage, "all") as traffic:
        for _ in range(3 * FACTOR):
            runs = read_runs(stage.project / "run")
            killed = time.monotonic()
            for role in runs:
                os.kill(role.pid, signal.SIGKILL)
            wait_for(lambda at=killed: traffic.served_since(at + 0.5), "answers after a kill of all", SERVICE_SECONDS)  # type: ignore[misc]
            outages.append(traffic.outage(killed))
            assert len(runs) == 5
    stage.check()
    tell("all roles killed at once, until answers flow", outages, SERVICE_SECONDS)


@pytest.fixture
def small(stage: Stage, broker: KafkaBroker, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A project of its own that serves the first project's model, and may lose its topics."""
    ensure_model(stage)
    name = f"faults-{abs(hash(request.node.name)) % 10**6}"
    small = Stage(broker, stage.folder, name, {"bundles.path": str(stage.project / "bundles")})
    for field in COPIED:
        records = read_all(stage.log, getattr(stage.topics, field))
        small.log.append([Message(getattr(small.topics, field), one.value, one.key, one.headers) for one in records])
    yield small
    small.wiring.close()


def answered(stage: Stage, names: set[str]) -> bool:
    return names <= stage.answers().keys()


def test_records_deleted_before_they_were_read(small: Stage) -> None:
    """Retention over a stopped group: the predictor ends with exit code 4 and says which records are gone, rather than skip
    or repeat; once a person has said where to go on, everything that is left is answered, once.
    """
    first, second = ({f"{word}-{number}" for number in range(200)} for word in ("first", "second"))
    small.ask(sorted(first))
    with Crew(small.project, small.folder / "retention") as crew:
        crew.start("predictor")
        wait_for(lambda: answered(small, first), "first answers", 30)
        crew.stop("predictor")
        small.ask(sorted(second))
        position, end = (
            small.log.committed("predictor")[small.topics.requests, 0],
            small.log.bounds(small.topics.requests)[0][1],
        )
        kept = position + (end - position) // 2
        small.admin.delete_records([TopicPartition(small.topics.requests, 0, kept)])
        wait_for(lambda: small.log.bounds(small.topics.requests)[0][0] == kept, "the deletion", 10)
        lost = second - {(one.key or b"").decode() for one in read_all(small.log, small.topics.requests)}
        crew.start("predictor")
        crew.stay_down("predictor")
        wait_for(lambda: crew.ends[1:], "the predictor's end", 30)
        assert crew.ends[-1].code == 4
        said = f"partition 0: records {position} to {kept - 1} were deleted before they were read"
        assert f"topic '{small.topics.requests}', {said}" in crew.output("predictor")
        assert small.answers().keys() == first
        reader = small.log.join("predictor", [small.topics.requests])
        reader.seek({(small.topics.requests, 0): kept})
        reader.commit()
        reader.close()
        crew.start("predictor")
        wait_for(lambda: answered(small, second - lost), "the other answers", 30)
        crew.stop("predictor")
    assert small.answers() == Counter(first | second - lost)
    small.check()


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_topic_deleted_and_made_again(small: Stage, running: bool) -> None:
    """The new topic has other records under the same offsets: the predictor ends with exit code 4 and says so, whether it
    runs or starts, until a person says where to go on.
    """
    topic = small.topics.requests
    first, second = ({f"{word}-{number}" for number in range(400)} for word in ("first", "second"))
    small.ask(sorted(first)[:200])
    with Crew(small.project, small.folder / f"topic-{running}") as crew:
        crew.start("predictor")
        wait_for(lambda: answered(small, set(sorted(first)[:200])), "first answers", 30)
        if not running:
            crew.stop("predictor")
        crew.stay_down("predictor")
        small.admin.delete_topics([topic])[topic].result(10)
        wait_for(lambda: made(small.admin, topic), "a new topic", 10)
        wait_for(lambda: sent(small, sorted(second)), "requests in the new topic", 10)
        if not running:
            crew.start("predictor")
            crew.stay_down("predictor")
        wait_for(lambda: [end for end in crew.ends if end.code], "the predictor's end", 30)
        crew.start("predictor")
        crew.stay_down("predictor")
        wait_for(lambda: len([end for end in crew.ends if end.code]) == 2, "another end", 30)
        assert {end.code for end in crew.ends} <= {0, 4}
        said = crew.output("predictor")
        assert (
            f"topic '{topic}' was deleted and made again" in said
            or "position up to which requests were answered is gone" in said
        )
        before = small.answers()
        assert before.keys() <= first | second
        reader = small.log.join("predictor", [topic])
        reader.seek({(topic, partition): end for partition, (_, end) in small.log.bounds(topic).items()})
        reader.commit()
        reader.close()
        small.ask(["last"])
        crew.start("predictor")
        wait_for(lambda: answered(small, {"last"}), "answers after a person's word", 30)
        crew.stop("predictor")
    assert max(small.answers().values()) == 1


def made(admin: AdminClient, topic: str) -> bool:
    """A topic that is being deleted stands in the way for a moment."""
    try:
        admin.create_topics([NewTopic(topic, 4, 1, config={"message.timestamp.type": "LogAppendTime"})])[topic].result(10)
    except KafkaException:
        return False
    return True


def sent(stage: Stage, names: list[str]) -> bool:
    """A producer that knows the old topic needs a moment, too."""
    try:
        stage.ask(names)
    except TidemillError:
        return False
    return True
