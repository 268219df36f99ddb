"""A project on a broker with TLS and a password: it works, mistakes are told, and the password is never shown."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tidemill.core.inference import Choices
from tidemill.log.base import Message, lag, read_all
from tidemill.new_project import init_project
from tidemill.testing.kafka_broker import KafkaBroker
from tidemill.wiring import Wiring

pytestmark = [pytest.mark.kafka, pytest.mark.process]

VARIABLE = "TIDEMILL_STREAM__KAFKA__SASL_PASSWORD"
WRONG = "not-the-password"
ANOTHER_CA = """\
-----BEGIN CERTIFICATE-----
MIIBezCCASGgAwIBAgIUdECB/ok9sFnhUBWz5MveLbN0FmUwCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHYW5vdGhlcjAgFw0yNjExMjQxMzU4NTJaGA8yMTI2MTAzMTEz
NTg1MlowEjEQMA4GA1UEAwwHYW5vdGhlcjBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABF0RkMllVSPRrOzF22hMTZQr1Way8DZwU7wONklEkbt75IPjLhKGzpeTpC7u
B7yqzqzI8ZlrFmNDBn4fdd2M4jWjUzBRMB0GA1UdDgQWBBSpiZlSGJ5U/ZDsgw/8
tmI+mUdZvDAfBgNVHSMEGDAWgBSpiZlSGJ5U/ZDsgw/8tmI+mUdZvDAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQC38FkGotW4BDtzo9xss1THD+Lw
4eGZU8tpc7ap9A2DmwIgGxEtSy2sKkIGDj62QzjC1eNY400wneiUfDi25BvV/XY=
-----END CERTIFICATE-----
"""
"""Somebody else's, of whom nothing here is signed."""


@pytest.fixture(scope="module")
def broker(new_broker: Callable[..., KafkaBroker]) -> KafkaBroker:
    return new_broker(secure=True)


@pytest.fixture(scope="module")
def project(broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project with the broker's authority and a file with the password beside its settings."""
    folder = tmp_path_factory.mktemp("secure")
    draw = random.Random(1)
    rows = [f"{(age := draw.randint(17, 90))},{'yes' if age > 50 else 'no'}" for _ in range(50)]
    (folder / "people.csv").write_text("age,income\n" + "\n".join(rows) + "\n")
    settings = {
        "stream.url": f"kafka://{broker.secure_bootstrap}",
        "stream.kafka.security.protocol": "SASL_SSL",
        "stream.kafka.sasl.mechanism": "SCRAM-SHA-512",
        "stream.kafka.sasl.username": broker.user,
        "stream.kafka.sasl.password": "file:kafka.password",
        "stream.kafka.ssl.ca.location": "ca.pem",
    }
    init_project(folder / "people.csv", folder / "p", Choices(target="income"), "secure", settings)
    shutil.copy(broker.ca_file, folder / "p" / "ca.pem")
    (folder / "p" / "another.pem").write_text(ANOTHER_CA)
    (folder / "p" / "kafka.password").write_text(f"{broker.password}\n")
    return folder / "p"


@pytest.fixture(scope="module")
def talkative(project: Path) -> Path:
    """The same project, whose client tells all that it does."""
    folder = Path(shutil.copytree(project, project.with_name("talkative")))
    file, last = folder / "tidemill.toml", '"ssl.ca.location" = "ca.pem"\n'
    text = file.read_text()
    assert text.count(last) == 1
    file.write_text(text.replace(last, last + '"debug" = "all"\n"log_level" = 7\n'))
    return folder


class Ended(NamedTuple):
    """What became of a command."""

    code: int
    out: str
    said: str


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """A command of a project, as a script would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tidemill", *arguments, "-p", str(folder)],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> Ended:
    """Its end, with patience."""
    try:
        out, said = process.communicate(timeout=60)
    finally:
        process.kill()
    return Ended(process.returncode, out, said)


def test_the_whole_log_works_with_tls_and_a_password(project: Path) -> None:
    """Topics are made; producers, members of groups, transactions and followers all get in."""
    wiring = Wiring(project)
    log, topics = wiring.log, wiring.topics
    log.append([Message(topics.requests, b"%d" % number, b"%d" % number) for number in range(20)])
    log.append([Message(topics.retrain, b"both"), Message(topics.journal, b"both")])
    reader = log.join("copier", [topics.requests])
    found: list[bytes] = []
    while len(found) < 20:
        batch = reader.poll(7, 5.0)
        found += batch.values
        reader.commit([Message(topics.predictions, value) for value in batch.values])
    copied = [record.value for record in read_all(log, topics.predictions)]
    assert sorted(copied) == sorted(found) == sorted(b"%d" % number for number in range(20))
    assert lag(log, "copier", [topics.requests]) == {topics.requests: 0}
    assert sum(log.committed("copier").values()) == 20
    assert [record.value for record in read_all(log, topics.journal)] == [b"both"]
    wiring.close()


@pytest.mark.parametrize("reference", ["", "env:"])
def test_the_password_may_come_from_the_environment(
    broker: KafkaBroker, project: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    """From the variable of the setting itself, or from one that it names; the file is not read then."""
    monkeypatch.setenv("BROKERS_PASSWORD", broker.password)
    monkeypatch.setenv(VARIABLE, "env:BROKERS_PASSWORD" if reference else broker.password)
    (project / "kafka.password").rename(project / "kafka.password.away")
    wiring = Wiring(project)
    try:
        assert wiring.log.bounds(wiring.topics.retrain).keys() == {0}
    finally:
        wiring.close()
        (project / "kafka.password.away").rename(project / "kafka.password")


def test_no_command_shows_the_password(broker: KafkaBroker, project: Path, talkative: Path) -> None:
    """Not ``config``, from wherever the password comes, and no log line, though the client tells all that it does."""
    from_variable = {VARIABLE: broker.password}
    started = [start(project, "config"), start(project, "config", **from_variable)]
    started += [start(talkative, "--debug", "status"), start(talkative, "--debug", "status", **from_variable)]
    commands = [ended(process) for process in started]
    assert [command.code for command in commands] == [0, 0, 0, 0], commands
    shown = [next(line.split() for line in command.out.splitlines() if "sasl.password" in line) for command in commands[:2]]
    name = 'stream.kafka."sasl.password"'
    assert shown == [[name, '"file:kafka.password"', "tidemill.toml"], [name, "***", VARIABLE]]
    assert all("SASL" in command.said for command in commands[2:])
    assert all(broker.password not in command.out + command.said for command in commands)


class Mistake(NamedTuple):
    """The setting that is wrong, and what the line says."""

    name: str
    value: str
    hints: tuple[str, ...]


MISTAKES = [
    Mistake("SASL_PASSWORD", WRONG, ("authentication", "invalid credentials", "[stream.kafka]")),
    Mistake("SASL_MECHANISM", "PLAIN", ("SASL PLAIN", "SCRAM-SHA-512", "[stream.kafka]")),
    Mistake("SSL_CA_LOCATION", "another.pem", ("certificate", "ssl.ca.location", "[stream.kafka]")),
    Mistake("SSL_CA_LOCATION", "nowhere.pem", ("stream.kafka", "ssl.ca.location")),
]


def test_a_mistake_is_told_in_one_line_without_the_password(broker: KafkaBroker, project: Path, talkative: Path) -> None:
    """A password, a mechanism, an authority that is wrong: exit code 2. With --debug, and a client that tells all,
    there are more lines, and the password is in none of them.
    """
    given = [{f"TIDEMILL_STREAM__KAFKA__{mistake.name}": mistake.value} for mistake in MISTAKES]
    quiet = [start(project, "status", **variables) for variables in given]
    loud = [start(talkative, "--debug", "status", **variables) for variables in (given[0], given[2])]
    for mistake, process in zip(MISTAKES, quiet, strict=True):
        command = ended(process)
        lines = command.said.splitlines()
        assert len(lines) == 1, (mistake, command)
        assert lines[0].startswith("tidemill: ")
        assert all(hint in lines[0] for hint in mistake.hints), (mistake, command)
        assert (command.code, command.out) == (2, "")
        assert broker.password not in command.said
        assert WRONG not in command.said
    for command in map(ended, loud):
        assert command.code == 2
        assert "Traceback" in command.said
        assert "tidemill: Kafka at" in command.said
        assert broker.password not in command.out + command.said
        assert WRONG not in command.out + command.said
