"""The broker that tests and people start: it serves, survives kills, is safe to leave, and says what it lacks."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tidemill.errors import ConfigError, Unavailable
from tidemill.testing.ending import ending
from tidemill.testing.kafka_broker import KAFKA_VERSION, KafkaBroker, jars, main, missing

pytestmark = [pytest.mark.kafka, pytest.mark.process]

SECONDS = 20.0
QUIET: dict[str, Any] = {"log_level": 0}

OWNER = """
import sys, time
from pathlib import Path
from tidemill.testing.kafka_broker import KafkaBroker
broker = KafkaBroker(Path(sys.argv[1]))
broker.start()
print(broker.pid, flush=True)
time.sleep(600)
"""
MAVEN = """#!/bin/sh
for word; do
  case $word in -DoutputDirectory=*) mkdir "${word#*=}"; : >"${word#*=}/one.jar" ;; esac
done
"""


@pytest.fixture(scope="module")
def broker(new_broker: Callable[..., KafkaBroker]) -> KafkaBroker:
    return new_broker(secure=True)


@pytest.fixture
def topic(broker: KafkaBroker, request: pytest.FixtureRequest) -> str:
    broker.start()
    name = request.node.name
    admin = AdminClient(QUIET | {"bootstrap.servers": broker.bootstrap})
    for made in admin.create_topics([NewTopic(name, 1, 1)]).values():
        made.result(SECONDS)
    return str(name)


def produce(bootstrap: str, topic: str, value: bytes, **settings: str | float) -> None:
    """One record, acknowledged; a ``KafkaException`` if it is not."""
    failures: list[KafkaError] = []
    producer = Producer(QUIET | {"bootstrap.servers": bootstrap} | settings)
    producer.produce(topic, value, on_delivery=lambda error, _: failures.append(error) if error else None)
    left = producer.flush(SECONDS)
    if left or failures:
        raise KafkaException(failures[0] if failures else KafkaError(KafkaError._TIMED_OUT))


def consume(bootstrap: str, topic: str, count: int, **settings: str) -> list[bytes | None]:
    """The topic's first values."""
    consumer = Consumer(QUIET | {"bootstrap.servers": bootstrap, "group.id": "none"} | settings)
    consumer.assign([TopicPartition(topic, 0, 0)])
    until = time.monotonic() + SECONDS
    values: list[bytes | None] = []
    while len(values) < count and time.monotonic() < until:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            values.append(message.value())
    consumer.close()
    return values


def secured(broker: KafkaBroker, password: str) -> dict[str, str]:
    """The settings of a client of the secure listener."""
    return {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(broker.ca_file),
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": broker.user,
        "sasl.password": password,
    }


def test_it_serves(broker: KafkaBroker, topic: str) -> None:
    """What is produced is consumed."""
    produce(broker.bootstrap, topic, b"one")
    assert consume(broker.bootstrap, topic, 1) == [b"one"]


def test_a_killed_one_goes_on_where_it_was(broker: KafkaBroker, topic: str) -> None:
    """After a kill the same port serves the same data, from another process."""
    before = broker.bootstrap, broker.pid
    produce(broker.bootstrap, topic, b"before")
    broker.kill()
    assert not broker.is_running()
    with pytest.raises(Unavailable, match="no broker runs"):
        broker.pause()
    broker.start()
    assert broker.bootstrap == before[0]
    assert broker.pid != before[1]
    produce(broker.bootstrap, topic, b"after")
    assert consume(broker.bootstrap, topic, 2) == [b"before", b"after"]


def test_a_paused_one_answers_later(broker: KafkaBroker, topic: str) -> None:
    """While it is paused nothing is acknowledged; resumed, the record that waited is."""
    acknowledged: list[float] = []
    producer = Producer(QUIET | {"bootstrap.servers": broker.bootstrap})
    producer.produce(topic, b"warm")
    assert producer.flush(SECONDS) == 0
    broker.pause()
    try:
        producer.produce(topic, b"waits", on_delivery=lambda *_: acknowledged.append(time.monotonic()))
        assert producer.flush(1.0) == 1
    finally:
        broker.resume()
    assert producer.flush(SECONDS) == 0
    assert acknowledged
    assert consume(broker.bootstrap, topic, 2) == [b"warm", b"waits"]


def test_a_paused_one_can_be_stopped(broker: KafkaBroker, topic: str) -> None:
    """An end in order, quick, and the next start is as after any other."""
    process = psutil.Process(broker.pid)
    broker.pause()
    since = time.monotonic()
    broker.stop()
    assert time.monotonic() - since < 8
    assert not process.is_running()
    broker.start()


def test_the_secure_listener_takes_the_right_password_over_tls(broker: KafkaBroker, topic: str) -> None:
    """librdkafka trusts the exported certificate, and its host name check holds."""
    client = secured(broker, broker.password)
    produce(broker.secure_bootstrap, topic, b"secret", **client)
    assert consume(broker.secure_bootstrap, topic, 1, **client) == [b"secret"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sasl.password": "wrong"}, KafkaError._AUTHENTICATION),
        ({"security.protocol": "PLAINTEXT"}, KafkaError._ALL_BROKERS_DOWN),
        ({"ssl.ca.location": None}, KafkaError._SSL),
    ],
    ids=["password", "plaintext", "certificate"],
)
def test_the_secure_listener_refuses_others(broker: KafkaBroker, change: dict[str, str | None], code: int) -> None:
    """Neither a wrong password nor plain text gets in, and a client without the certificate does not trust it."""
    broker.start()
    errors: list[KafkaError] = []
    settings = QUIET | secured(broker, broker.password) | change
    settings |= {"bootstrap.servers": broker.secure_bootstrap, "error_cb": errors.append}
    client = AdminClient({name: value for name, value in settings.items() if value is not None})
    with pytest.raises(KafkaException):
        client.list_topics(timeout=1.0)
    until = time.monotonic() + SECONDS
    while code not in {error.code() for error in errors} and time.monotonic() < until:
        client.poll(0.1)
    assert code in {error.code() for error in errors}


def test_a_folder_has_one_broker(broker: KafkaBroker) -> None:
    """A second one on the same folder, or on the same port, is refused in one line; the first goes on."""
    broker.start()
    with pytest.raises(ConfigError, match="another broker runs in"):
        KafkaBroker(broker.folder).start()
    port = int(broker.bootstrap.partition(":")[2])
    with pytest.raises(ConfigError, match=f"port {port} is in use"):
        KafkaBroker(broker.folder.with_name("other"), port=port).start()
    AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics(timeout=SECONDS)


@pytest.mark.usefixtures("kafka_possible")
def test_a_killed_owner_takes_its_broker_along(tmp_path: Path) -> None:
    """No Java outlives the process that started it, however that ends; the folder is free at once."""
    with ending(subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)) as owner:
        assert owner.stdout is not None
        broker = psutil.Process(int(owner.stdout.readline()))
        assert "kafka.Kafka" in broker.cmdline()
        assert os.getpgid(broker.pid) == broker.pid
        owner.kill()
    with KafkaBroker(tmp_path):
        assert not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE


@pytest.mark.usefixtures("kafka_possible")
def test_a_thread_that_ends_leaves_the_broker_alone(tmp_path: Path) -> None:
    """The broker belongs to the process, not to the thread that started it."""
    broker = KafkaBroker(tmp_path)
    thread = threading.Thread(target=broker.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.5)
        assert broker.is_running()
    finally:
        broker.stop()


@pytest.mark.usefixtures("kafka_possible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    """One line says what to set; Ctrl-C and SIGTERM end both in order, with exit code 0."""
    port = KafkaBroker(tmp_path).bootstrap.partition(":")[2]
    command = [sys.executable, "-m", "tidemill.testing.kafka_broker", "--port", port, "--folder", str(tmp_path)]
    with ending(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)) as process:
        assert process.stdout is not None
        assert f'stream.url = "kafka://127.0.0.1:{port}"' in process.stdout.readline()
        java = next(child for child in psutil.Process(process.pid).children() if "kafka.Kafka" in child.cmdline())
        process.send_signal(number)
        assert process.stdout.read() == ""
        assert process.wait(SECONDS) == 0
    assert not java.is_running()


@pytest.mark.usefixtures("kafka_possible")
def test_a_setting_that_kafka_refuses_is_named(tmp_path: Path) -> None:
    """A broker that cannot start says why in one line, and its folder can be used again."""
    with pytest.raises(Unavailable, match=r"num\.io\.threads") as caught:
        KafkaBroker(tmp_path, settings={"num.io.threads": "many"}).start()
    assert "\n" not in str(caught.value)
    with KafkaBroker(tmp_path) as broker:
        assert broker.is_running()


def test_a_machine_without_java_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line that names what is missing and how to mend it; exit code 2."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    reason = missing()
    assert reason is not None
    assert reason.startswith("no Java: install 17 or newer")
    with pytest.raises(ConfigError, match="no Java"):
        KafkaBroker(tmp_path / "broker").start()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert main(["--folder", str(tmp_path / "broker")]) == ConfigError.exit_code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capfd.readouterr() == ("", f"tidemill: {reason}\n")


def test_an_old_java_or_no_maven_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka 4 needs Java 17; Maven is needed only as long as the jars are not there."""
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert missing() == f"{java} is Java 11, Kafka needs 17 or newer: set JAVA_HOME or PATH to such a one"
    java.write_text(java.read_text().replace("11.0.2", "21"))
    reason = missing()
    assert reason is not None
    assert reason.startswith("no Maven")
    with pytest.raises(ConfigError, match="no Maven"):
        jars()
    (tmp_path / "tidemill" / f"kafka-{KAFKA_VERSION}").mkdir(parents=True)
    assert missing() is None


def test_a_download_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Maven that fails half-way leaves nothing behind, and its own words are passed on in one line."""
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    maven.write_text(MAVEN + "echo '[ERROR] no network'; exit 1\n")
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{maven.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(Unavailable, match=r"could not get Kafka 4\.\S+ with Maven: \[ERROR\] no network$"):
        jars(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    maven.write_text(MAVEN)
    assert [path.name for path in jars(tmp_path / "cache").iterdir()] == ["one.jar"]
    maven.unlink()
    assert jars(tmp_path / "cache").is_dir()
