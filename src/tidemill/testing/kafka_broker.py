"""A real Kafka broker of one node, for tests and for a first look: KRaft, loopback, all of it in one folder.

``python -m tidemill.testing.kafka_broker`` runs one in the foreground. It needs Java 17 and, the first time, Maven.
"""

import argparse
import os
import random
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tidemill.clock import SystemClock
from tidemill.errors import ConfigError, TidemillError, Unavailable
from tidemill.processes import GATE, Guard, present, project_lock

KAFKA_VERSION = "4.0.2"
"""Not the newest: from 4.1 to 4.4 a node that restarts may drop the end of a transaction (docs/decisions/kafka.md)."""
JAVA_VERSION_MIN = 17

START_SECONDS = 60.0
"""A start takes 2 to 5 s; a busy machine gets this long."""

STOP_SECONDS = 10.0
"""An orderly stop takes 0.5 s; after this long it is a kill."""

PORTS = range(20_000, 32_768)
"""Below those that the kernel gives to clients: one that knocks at a dead broker's port could else take it for itself."""

USER = "tidemill"
"""The one user of the secure listener."""

_POM = Path(__file__).with_name("kafka_pom.xml")
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"

# In the folder, which is the broker's working directory: so no path needs an escape in Java's properties.
_CONFIG = "server.properties"
_KEYS = "broker.p12"

# The small heap is ample for tests.
_JVM = [
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
]

_BRIEF = "-XX:TieredStopAtLevel=1"
"""The quick compiler alone. A broker with both took 46 s of the processor in a demo of 75 s, with this one 29 s of 66."""

SETTINGS = {
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "auto.create.topics.enable": "false",
    "log.cleaner.dedupe.buffer.size": "16777216",
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "1000",
    "num.io.threads": "4",
    "num.network.threads": "2",
}
"""What one node needs to work at all, to answer at once and to stay small; ``settings`` of a broker come on top.

After a kill a start waits until the dead broker's session has ended: 13 s with Kafka's own 9 s, 5 s with these 3 s.
"""


def missing() -> str | None:
    """In one line why no broker can run here and how to mend that, or None; a download may fail all the same."""
    java = _tool("java")
    if java is None:
        return f"no Java: install {JAVA_VERSION_MIN} or newer (Debian: apt install openjdk-17-jre-headless)"
    version = _java_version(java)
    if version < JAVA_VERSION_MIN:
        return f"{java} is Java {version}, Kafka needs {JAVA_VERSION_MIN} or newer: set JAVA_HOME or PATH to such a one"
    if not _jars_folder(None).is_dir() and shutil.which("mvn") is None:
        return f"no Maven, which gets Kafka {KAFKA_VERSION} once: install it (Debian: apt install maven)"
    return None


def jars(cache: Path | None = None) -> Path:
    """The folder with Kafka's jars, in ``cache`` or the user's own; the first call downloads them (45 MB).

    Whole or not at all; several processes may ask at once. Raises ``ConfigError`` without Maven, ``Unavailable`` if the
    download fails.
    """
    folder = _jars_folder(cache)
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise ConfigError(f"no Maven, which gets Kafka {KAFKA_VERSION} once: install it (Debian: apt install maven)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as draft:
        target = Path(draft) / "jars"
        options = [f"-Dkafka.version={KAFKA_VERSION}", f"-DoutputDirectory={target}"]
        what = f"get Kafka {KAFKA_VERSION} with Maven"
        _run([maven, "-q", "-B", "-f", str(_POM), *options, f"{_PLUGIN}:copy-dependencies"], what)
        with suppress(OSError):
            target.rename(folder)
    if not folder.is_dir():
        raise Unavailable(f"{folder} could not be written")
    return folder


class KafkaBroker:
    """One broker in ``folder`` (data, configuration, log), which runs within ``with`` or from ``start`` to ``stop``.

    The same folder serves again with its old data, by the same object on the same port. ``settings`` override the broker's
    own. ``secure`` adds a second listener, TLS with SCRAM-SHA-512. One that is ``lasting`` is as fast as a real one once it
    is warm; else it is light on a processor that others need. The broker dies with this process, however that ends, and
    does not hear the terminal's Ctrl-C. Not for several threads at once.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, str] | None = None,
        secure: bool = False,
        port: int | None = None,
        lasting: bool = False,
    ) -> None:
        self.folder = folder = folder.resolve()
        self.user = USER
        self.log_file = folder / "broker.log"
        self.ca_file = folder / "ca.pem"
        self._settings = dict(settings or {})
        self._secure = secure
        self._jvm = _JVM if lasting else [*_JVM, _BRIEF]
        self._port, self._controller_port, self._secure_port = _free_ports(port)
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._held = ExitStack()
        self._log_start = 0
        self._clock = SystemClock()

    @property
    def bootstrap(self) -> str:
        """``host:port`` for clients without a password."""
        return f"127.0.0.1:{self._port}"

    @property
    def secure_bootstrap(self) -> str:
        """``host:port`` for clients with ``user``, ``password`` and ``ca_file``; only where ``secure`` was asked for."""
        if not self._secure:
            raise ConfigError("this broker has no secure listener: make it with secure=True")
        return f"127.0.0.1:{self._secure_port}"

    @property
    def password(self) -> str:
        """The user's password: made by the folder's first start, kept in it."""
        return (self.folder / "password").read_text()

    @property
    def pid(self) -> int:
        """The running broker's process; raises ``Unavailable`` if there is none."""
        if self._process is None or self._process.poll() is not None:
            raise Unavailable(f"no broker runs in {self.folder}")
        return self._process.pid

    def is_running(self) -> bool:
        """Whether its process lives; a paused one does."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and return once it serves; nothing happens where it runs already.

        Raises ``ConfigError`` if something is missing or the folder or a port is in use, ``Unavailable`` if it does not
        come up.
        """
        if self.is_running():
            return
        self._release()
        reason = missing()
        if reason is not None:
            raise ConfigError(reason)
        java = [str(_tool("java")), "-cp", f"{jars()}/*"]
        with ExitStack() as stack:
            self._guard = stack.enter_context(Guard(stack.enter_context(_folder_lock(self.folder))))
            self._prepare(java)
            log = stack.enter_context(self.log_file.open("ab"))
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", GATE, "kafka", java[0], *self._jvm, *java[1:], "kafka.Kafka", _CONFIG],
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            self._guard.watch(self._process.pid)
            self._held = stack.pop_all()
        try:
            with suppress(BrokenPipeError), present(self._process.stdin) as gate:
                gate.write(b"go\n")
            self._await_service()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in order, with a kill if that takes too long."""
        try:
            if self.is_running():
                os.kill(self.pid, signal.SIGTERM)
                os.kill(self.pid, signal.SIGCONT)
                with suppress(subprocess.TimeoutExpired):
                    present(self._process).wait(STOP_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        self._release()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after ``pause``."""
        os.kill(self.pid, signal.SIGCONT)

    def wait(self) -> None:
        """Return when it has ended."""
        if self._process is not None:
            self._process.wait()

    def __enter__(self) -> "KafkaBroker":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _release(self) -> None:
        """Let go of the folder's lock and the guard of a process that has ended."""
        if self._process is not None and self._guard is not None:
            self._guard.forget(self._process.pid)
        self._process = self._guard = None
        self._held.close()

    def _prepare(self, java: Sequence[str]) -> None:
        """Write the configuration, and whatever the folder lacks: the password, the certificate, formatted data."""
        if not (self.folder / "password").is_file():
            _write_secret(self.folder / "password", secrets.token_hex(16))
        if self._secure and not self.ca_file.is_file():
            self._make_certificate()
        config = "".join(f"{name}={value}\n" for name, value in self._configuration().items())
        _write_secret(self.folder / _CONFIG, config)
        if not (self.folder / "data" / "meta.properties").is_file():
            self._format(java)

    def _configuration(self) -> dict[str, str]:
        ports = {"PLAINTEXT": self._port, "CONTROLLER": self._controller_port}
        if self._secure:
            ports["SASL_SSL"] = self._secure_port
        for port in ports.values():
            if not _is_free(port):
                raise ConfigError(f"port {port} is in use: end what listens there, or choose another port")
        listeners = {name: f"{name}://127.0.0.1:{port}" for name, port in ports.items()}
        own = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": ",".join(listeners.values()),
            "advertised.listeners": ",".join(listeners[name] for name in listeners if name != "CONTROLLER"),
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
            "log.dirs": "data",
        }
        return own | (self._security() if self._secure else {}) | SETTINGS | self._settings

    def _security(self) -> dict[str, str]:
        return {
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": _KEYS,
            "ssl.keystore.password": self.password,
        }

    def _make_certificate(self) -> None:
        """One certificate, signed by itself: clients trust it as their authority."""
        (self.folder / _KEYS).unlink(missing_ok=True)
        keytool = str(_tool("keytool") or "keytool")
        common = ["-keystore", _KEYS, "-storetype", "PKCS12", "-storepass", self.password, "-alias", "broker"]
        kind = ["-keyalg", "EC", "-groupname", "secp256r1", "-validity", "3650", "-dname", "CN=localhost"]
        names = ["-ext", "san=ip:127.0.0.1,dns:localhost"]
        draft = self.ca_file.with_suffix(".draft")
        _run([keytool, "-genkeypair", *common, *kind, *names], "make a certificate", self.folder)
        _run([keytool, "-exportcert", "-rfc", "-file", draft.name, *common], "export the certificate", self.folder)
        draft.replace(self.ca_file)

    def _format(self, java: Sequence[str]) -> None:
        """``meta.properties`` is what Kafka writes last: data without it is a format that was interrupted."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        cluster = "A" + secrets.token_urlsafe(16)[1:]
        user = f"SCRAM-SHA-512=[name={self.user},password={self.password}]"
        options = ["format", "--cluster-id", cluster, "--config", _CONFIG, "--add-scram", user]
        command = [java[0], _BRIEF, *java[1:], "kafka.tools.StorageTool", *options]
        _run(command, "format the broker's data", self.folder)

    def _await_service(self) -> None:
        until = self._clock.monotonic() + START_SECONDS
        while not self._serves():
            code = present(self._process).poll()
            if code is None and self._clock.monotonic() < until:
                self._clock.sleep(0.02)
                continue
            what = f"did not serve within {START_SECONDS:g} s" if code is None else f"ended with exit code {code}"
            last = _last_error(self.log_file.read_bytes()[self._log_start :].decode(errors="replace"))
            raise Unavailable(f"the Kafka broker {what}: {last} (see {self.log_file})")

    def _serves(self) -> bool:
        return _answers(self._port) and (not self._secure or not _is_free(self._secure_port))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a broker in the foreground until Ctrl-C, SIGTERM or the end of the terminal."""
    parser = argparse.ArgumentParser(prog="python -m tidemill.testing.kafka_broker", description="A Kafka broker at hand.")
    parser.add_argument("--port", type=int, default=9092, help="on 127.0.0.1; default 9092")
    parser.add_argument("--folder", type=Path, default=Path("kafka-data"), help="for its data; default kafka-data")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        if missing() is None and not _jars_folder(None).is_dir():
            print(f"getting Kafka {KAFKA_VERSION} with Maven (45 MB, once) ...", flush=True)
        with KafkaBroker(options.folder, port=options.port, lasting=True) as broker:
            url = f'stream.url = "kafka://{broker.bootstrap}"'
            print(f"Kafka {KAFKA_VERSION} serves: {url}; data in {options.folder}; Ctrl-C ends it", flush=True)
            broker.wait()
            raise Unavailable(f"the Kafka broker ended by itself: see {broker.log_file}")
    except KeyboardInterrupt:
        return 0
    except (TidemillError, OSError) as error:
        print(f"tidemill: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, TidemillError) else ConfigError.exit_code


@contextmanager
def _folder_lock(folder: Path) -> Iterator[int]:
    """The supervisor's lock serves here too: held by this process and its guard, so free once the broker is dead."""
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(project_lock(folder))
        except ConfigError:
            raise ConfigError(f"another broker runs in {folder}: stop that first, or choose another folder") from None
        yield lock


def _jars_folder(cache: Path | None) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidemill"
    return (cache or home) / f"kafka-{KAFKA_VERSION}"


def _tool(name: str) -> Path | None:
    """A program of the JDK: from JAVA_HOME if it is set, else from PATH."""
    home = os.environ.get("JAVA_HOME")
    path = f"{home}/bin{os.pathsep}" if home else ""
    found = shutil.which(name, path=path + os.environ.get("PATH", ""))
    return Path(found) if found else None


def _java_version(java: Path) -> int:
    run = subprocess.run([java, "-version"], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    found = re.search(r'version "(?:1\.)?(\d+)', run.stderr)
    return int(found[1]) if found else 0


def _run(command: Sequence[str], what: str, folder: Path | None = None) -> None:
    try:
        run = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ConfigError(f"cannot {what}: {error}") from error
    if run.returncode != 0:
        raise Unavailable(f"could not {what}: {_last_error(run.stdout + run.stderr)}")


def _last_error(text: str) -> str:
    """Of a program's output the line that says most: the last that speaks of an error, or else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|exception|fatal", line, re.IGNORECASE)]
    return (errors or lines or ["it said nothing"])[-1][:300]


def _write_secret(path: Path, text: str) -> None:
    """Whole or not at all, and readable by its owner alone."""
    draft = path.with_name(path.name + ".draft")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)


def _free_ports(first: int | None) -> tuple[int, int, int]:
    """Three different ports; the first may be given."""
    chance = random.SystemRandom()
    ports = [] if first is None else [first]
    while len(ports) < 3:
        port = chance.choice(PORTS)
        if port not in ports and _is_free(port):
            ports.append(port)
    return ports[0], ports[1], ports[2]


def _is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _answers(port: int) -> bool:
    """Whether a broker answers Kafka's first request, ApiVersions: it does so once it has joined its own cluster."""
    request = struct.pack(">hhih", 18, 0, 1, 0)
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(10, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(answer) == 10 and struct.unpack(">ih", answer[4:]) == (1, 0)


if __name__ == "__main__":
    sys.exit(main())
