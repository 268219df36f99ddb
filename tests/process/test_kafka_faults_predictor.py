"""Predictors killed, frozen and left dead on a real Kafka broker, under load: nothing is lost, nothing is answered twice.

``TIDEMILL_FAULT_FACTOR=3`` runs three times as many of each fault. Every figure is printed beside its limit.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tidemill.audit import audit, render
from tidemill.testing.faults import Crew, Traffic, hanging, quick_project, wait_for
from tidemill.testing.kafka_broker import KafkaBroker
from tidemill.wiring import Wiring

pytestmark = [pytest.mark.kafka, pytest.mark.process, pytest.mark.slow, pytest.mark.alone]

FACTOR = int(os.environ.get("TIDEMILL_FAULT_FACTOR", "1"))
RATE = 200
OTHER_SECONDS, RESTART_SECONDS, TAKEOVER_SECONDS = 1.0, 5.0, 12.0
"""The longest that partitions may stand still: of an instance that lives, one that starts again, one that stays dead."""
ZOMBIE_SECONDS = 20.0
"""One that froze in its transaction: the broker ends that after 10 s."""
SESSION_SECONDS = 8.0
HANGING_SECONDS = 25.0
ONE, TWO, THREE = "predictor", "predictor-2", "predictor-3"
POINTS = (
    "predictor.polled",
    "predictor.handled",
    "log.commit.begun",
    "log.commit.written",
    "log.commit.positions",
    "log.commit.done",
    "predictor.committed",
)
FREEZER = (
    "import signal, types\n"
    "from tidemill import failpoints\n"
    "failpoints.signal = types.SimpleNamespace(SIGKILL=signal.SIGSTOP)\n"
    "from tidemill.cli.main import main\n"
    "main()\n"
)
"""tidemill, where a failpoint freezes the process instead of killing it."""


class Stage:
    """A project with its first model on a broker of its own, and a crew that tests may do anything to."""

    def __init__(self, broker: KafkaBroker, folder: Path) -> None:
        self.broker = broker
        self.project = folder / "project"
        self.values = quick_project(self.project, "faults", {"stream.url": f"kafka://{broker.bootstrap}"})
        train = [sys.executable, "-m", "tidemill", "train", "--project", str(self.project)]
        subprocess.run(train, check=True, capture_output=True)
        self.wiring = Wiring(self.project)
        self.crew = Crew(self.project, folder / "outputs")
        self.admin = AdminClient({"bootstrap.servers": broker.bootstrap})

    def members(self) -> dict[str, set[int]]:
        """Who is in the predictors' group, by the number of its slot, with its partitions."""
        group = self.admin.describe_consumer_groups(["faults.predictor"])["faults.predictor"].result(10)
        return {
            str(member.group_instance_id).rpartition(".")[2]: {one.partition for one in member.assignment.topic_partitions}
            for member in group.members
        }

    def await_members(self, count: int) -> dict[str, set[int]]:
        """Once so many share the four partitions."""

        def shared() -> bool:
            found = self.members()
            return len(found) == count and sum(map(len, found.values())) == 4 and all(found.values())

        wait_for(shared, f"a group of {count}", 30)
        return self.members()

    def line_up(self, *names: str) -> dict[str, set[int]]:
        """Have exactly these, the first in slot 0, the next in slot 1 and so on; their partitions."""
        self.crew.line_up(names[0])
        for count in range(1, len(names) + 1):
            self.crew.line_up(*names[:count])
            found = self.await_members(count)
        return found

    @contextmanager
    def traffic(self, name: str, rate: float = RATE) -> Iterator[Traffic]:
        """Requests all along; then nothing is lost, doubled or hanging, by our own count and by the audit's."""
        with Traffic(self.wiring.log, self.wiring.topics, self.values, rate, name) as traffic:
            wait_for(lambda: traffic.served_since(0.0), "first answers", 30)
            yield traffic
            traffic.settle(30)
        assert traffic.failure is None
        assert (traffic.lost(), traffic.doubled()) == (set(), {})
        wait_for(lambda: not hanging(self.wiring.log, self.wiring.topics), "the end of every transaction", HANGING_SECONDS)
        found = audit(self.wiring.log, self.wiring.topics, self.wiring.lake, self.wiring.store, sample=300)
        assert found.clean, render(found)
        assert found.answers >= len(traffic.asked) > 0


@pytest.fixture(scope="module")
def stage(new_broker: Callable[..., KafkaBroker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    # A member that is frozen in its transaction keeps others waiting until the broker has looked: every 10 s, unless told.
    broker = new_broker({"transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000"})
    stage = Stage(broker, tmp_path_factory.mktemp("stage"))
    yield stage
    stage.crew.close()
    stage.wiring.close()


def outage_of_kill(stage: Stage, traffic: Traffic, name: str, partitions: set[int]) -> tuple[float, float]:
    """Kill it, wait until its partitions are served again: when that was, and how long they stood still."""
    killed = stage.crew.kill(name)
    # What was committed before the kill is seen within this time.
    wait_for(lambda: traffic.served_since(killed + 0.5, partitions), f"answers after a kill of {name}", 30)
    return killed, traffic.outage(killed, partitions)


def test_one_predictor_killed_ten_times(stage: Stage, tell: Callable[..., None]) -> None:
    """kill -9 under load, started again at once: it serves again within 5 s, each time."""
    stage.line_up(ONE)
    outages = []
    with stage.traffic("one") as traffic:
        for _ in range(10 * FACTOR):
            outages.append(outage_of_kill(stage, traffic, ONE, {0, 1, 2, 3})[1])
            time.sleep(random.uniform(0, 0.5))
    tell("one predictor killed, its outage", outages, RESTART_SECONDS)


def test_of_two_predictors_the_other_does_not_notice(stage: Stage, tell: Callable[..., None]) -> None:
    """Ten kills, in turn: the partitions of the one that lives never stand still for a second; the one that starts again
    takes back its slot and its partitions.
    """
    before = stage.line_up(ONE, TWO)
    own, others = [], []
    with stage.traffic("two") as traffic:
        for number in range(10 * FACTOR):
            mine = before[str(number % 2)]
            killed, outage = outage_of_kill(stage, traffic, (ONE, TWO)[number % 2], mine)
            own.append(outage)
            others.append(traffic.outage(killed, {0, 1, 2, 3} - mine))
            assert stage.members() == before
            time.sleep(random.uniform(0, 0.5))
    tell("two predictors, the killed one's outage", own, RESTART_SECONDS)
    tell("two predictors, the other one's outage", others, OTHER_SECONDS)


def test_killed_at_every_step(stage: Stage) -> None:
    """Between any two steps of a turn and of its commit, in two instances each: the batch comes again, or was answered."""
    stage.line_up(ONE, TWO)
    points = [f"{point}:{random.randint(1, 20)}" for point in POINTS * FACTOR]
    stage.crew.arm(ONE, points)
    stage.crew.arm(TWO, points[::-1])
    with stage.traffic("steps"):
        ends = stage.crew.count(ONE, TWO) + 2 * (1 + len(points))
        stage.crew.kill(ONE, TWO)
        wait_for(lambda: stage.crew.count(ONE, TWO) == ends, "a kill at every step", 120 * FACTOR)
        time.sleep(2.0)
    assert {end.code for end in stage.crew.ends[-2 * len(points) :]} == {-signal.SIGKILL}


def test_a_burst_of_kills_during_start_up(stage: Stage, tell: Callable[..., None]) -> None:
    """Fifteen lives of less than 1.5 s each; the one that is left alone serves."""
    stage.line_up(ONE)
    with stage.traffic("burst", RATE / 4) as traffic:
        for _ in range(15 * FACTOR):
            ends, killed = stage.crew.count(ONE), stage.crew.kill(ONE)
            wait_for(lambda before=ends: stage.crew.count(ONE) > before, "a death", 5)  # type: ignore[misc]
            time.sleep(random.uniform(0, 1.5))
        killed = stage.crew.kill(ONE)
        wait_for(lambda: traffic.served_since(killed + 0.5), "answers after a burst of kills", 30)
        outage = traffic.outage(killed)
    tell("one predictor left alone after 15 kills in its start-up, from the last kill on", [outage], TAKEOVER_SECONDS)


@pytest.mark.parametrize("point", ["predictor.handled", "log.commit.positions"])
def test_a_zombie_cannot_commit(stage: Stage, tell: Callable[..., None], point: str) -> None:
    """An instance freezes with a batch in its hands, or with its transaction open, for longer than the session lasts.
    Another one answers for it; when it wakes, what it wanted to commit is refused, and it ends or starts anew.
    """
    outages = []
    for number in range(FACTOR):
        stage.line_up(ONE)
        with stage.traffic(f"zombie-{point}-{number}") as traffic:
            stage.crew.start(TWO, points=[f"{point}:100"], command=[sys.executable, "-c", FREEZER])
            wait_for(lambda: is_frozen(stage.crew.pid(TWO)), "a frozen predictor", 60)
            frozen, ends, said = time.monotonic(), stage.crew.count(TWO), len(stage.crew.output(TWO))
            wait_for(lambda at=frozen: traffic.served_since(at + 1), "a takeover", 40)  # type: ignore[misc]
            outages.append(traffic.outage(frozen))
            time.sleep(max(0.0, frozen + SESSION_SECONDS + 1 - time.monotonic()))
            stage.crew.signal(TWO, signal.SIGCONT)
            wait_for(lambda before=ends, at=said: refused(stage.crew, before, at), "a refused commit", 20)  # type: ignore[misc]
            stage.await_members(2)
    tell(f"a predictor frozen at {point}, until another serves", outages, ZOMBIE_SECONDS)


def refused(crew: Crew, ends: int, said: int) -> bool:
    """Its positions came too late: it ends with exit code 4. Its transaction was over: it starts anew where the group is."""
    if crew.count(TWO) > ends:
        assert crew.ends[-1].code == 4, crew.output(TWO)
        return True
    return "event=log_unavailable" in crew.output(TWO)[said:]


def is_frozen(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_dead_one_is_replaced_without_a_restart(stage: Stage, tell: Callable[..., None]) -> None:
    """Two of three are killed and stay dead: the third one answers for both within 12 s."""
    outages = []
    for number in range(FACTOR):
        shares = stage.line_up(ONE, TWO, THREE)
        with stage.traffic(f"takeover-{number}") as traffic:
            stage.crew.stay_down(TWO, THREE)
            killed = stage.crew.kill(TWO, THREE)
            wait_for(lambda at=killed: traffic.served_since(at + 0.5), "a takeover", 30)  # type: ignore[misc]
            outages += [traffic.outage(killed, shares[slot]) for slot in ("1", "2")]
    tell("two of three killed for good, the outage of each one's partitions", outages, TAKEOVER_SECONDS)
