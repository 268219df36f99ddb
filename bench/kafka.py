"""On a real broker, in one run: librdkafka's own echo, tidemill's predictor, and Quix Streams with the same model.

Throughput is read off the broker's own record times once the answers stand, so that nobody watches meanwhile. Latency is
open loop: from when a request was due to when a reader of committed records saw its answer.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from msgspec import Struct

from bench.stage import SECONDS_MAX, open_stage, requests, wait_for
from bench.throughput import score_us_a_row
from tidemill.log.base import Message, Topic
from tidemill.roles.promotion import read_slots
from tidemill.testing.kafka_broker import KafkaBroker
from tidemill.wiring import Wiring

ROOT = Path(__file__).parents[1]
QUIX_ENVIRONMENT = ROOT / ".venv-quix"
QUIX_VERSION = "3.28.1"
BATCH = 1000
PARTITIONS = 4

Start = Callable[[str, str], "subprocess.Popen[bytes]"]
"""Starts a program that answers what stands in one topic into another."""


class Latency(Struct, frozen=True):
    """Milliseconds at an offered rate (a second)."""

    program: str
    rate: int
    p50: float
    p99: float
    unanswered: int


class Results(Struct, frozen=True):
    """Requests a second with a backlog by program, and latencies."""

    backlog: int
    throughput: dict[str, float]
    score_us_a_row: float
    latency_ms: list[Latency]


def measure(backlog: int, rates: Sequence[int], seconds: float, with_quix: bool) -> Results:
    """All of it, one after the other, each program alone."""
    with (
        tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder,
        KafkaBroker(Path(folder)) as broker,
        open_stage(broker.bootstrap) as wiring,
    ):
        bench = _Bench(broker.bootstrap, wiring)
        programs = _programs(bench, with_quix)
        throughput = {name: bench.throughput(start, backlog) for name, start in programs.items()}
        latencies = [bench.latency(name, start, rate, seconds) for rate in rates for name, start in programs.items()]
        return Results(backlog, throughput, score_us_a_row(wiring), latencies)


def _programs(bench: "_Bench", with_quix: bool) -> dict[str, Start | None]:
    """None is the predictor, which reads and writes its project's own topics."""
    programs: dict[str, Start | None] = {
        "raw echo, at least once": bench.echo("at_least_once"),
        "raw echo, exactly once": bench.echo("exactly_once"),
        "tidemill predictor": None,
    }
    if with_quix:
        _make_quix_environment()
        programs["Quix Streams, defaults"] = bench.quix(0, 5.0, 0)
        programs["Quix Streams, best settings"] = bench.quix(BATCH, 1.0, 1)
    return programs


class _Bench:
    """Topics, senders and readers on one broker."""

    def __init__(self, brokers: str, wiring: Wiring) -> None:
        self._brokers = brokers
        self._wiring = wiring
        self._values = [message.value for message in requests(wiring, "value", 16_000)]

    def echo(self, guarantee: str) -> Start:
        """See ``bench/echo.py``."""

        def start(source: str, sink: str) -> "subprocess.Popen[bytes]":
            return _process([sys.executable, "-m", "bench.echo", self._brokers, source, sink, guarantee, str(BATCH)])

        return start

    def quix(self, commit_every: int, commit_seconds: float, backoff_ms: int) -> Start:
        """See ``bench/quix.py``."""
        champion = read_slots(self._wiring.log, self._wiring.topics).champion
        if champion is None:
            raise LookupError("no model")
        last = [champion.bundle, str(commit_every), str(commit_seconds), str(backoff_ms)]

        def start(source: str, sink: str) -> "subprocess.Popen[bytes]":
            python = str(QUIX_ENVIRONMENT / "bin" / "python")
            root = str(self._wiring.configuration.root)
            return _process([python, "-m", "bench.quix", self._brokers, source, sink, root, *last])

        return start

    def throughput(self, start: Start | None, backlog: int) -> float:
        """Between the first and the last answer, by the broker's times."""
        source, sink = self._topics(start)
        before = self._read(sink)
        self._send(source, uuid.uuid4().hex, range(backlog))
        with self._running(start, source, sink):
            wait_for(lambda: self._end(sink) >= len(before) + backlog, pause=0.1)
            times: list[int] = []
            deadline = time.monotonic() + SECONDS_MAX
            while len(times) < backlog and time.monotonic() < deadline:
                times = self._read(sink)[len(before) :]
        return backlog / ((max(times) - min(times)) / 1000)

    def latency(self, name: str, start: Start | None, rate: int, seconds: float) -> Latency:
        """Open loop: a request is due on an absolute schedule, whatever the answers do."""
        source, sink = self._topics(start)
        prefix, count = uuid.uuid4().hex, int(rate * seconds)
        seen: dict[bytes, float] = {}
        stop, warm = threading.Event(), threading.Event()
        reader = threading.Thread(target=self._watch, args=(sink, seen, stop, warm))
        with self._running(start, source, sink):
            reader.start()
            self._send(source, "warm", range(10))
            if not warm.wait(SECONDS_MAX):
                raise TimeoutError(f"{name} does not answer")
            due = self._send_at(source, prefix, count, rate)
            deadline = time.monotonic() + 15.0
            while time.monotonic() < deadline and not all(key in seen for key in due):
                time.sleep(0.1)
            stop.set()
            reader.join()
        settled = list(due.items())[rate:]
        delays = np.array([seen[key] - at for key, at in settled if key in seen]) * 1000
        p50, p99 = np.percentile(delays, [50, 99]) if len(delays) else (np.nan, np.nan)
        return Latency(name, rate, float(p50), float(p99), sum(key not in seen for key in due))

    def _topics(self, start: Start | None) -> tuple[str, str]:
        if start is None:
            return self._wiring.topics.requests, self._wiring.topics.predictions
        name = uuid.uuid4().hex
        source, sink = f"bench.{name}.source", f"bench.{name}.sink"
        self._wiring.log.create([Topic(source, PARTITIONS, 3600.0), Topic(sink, PARTITIONS, 3600.0)])
        return source, sink

    @contextmanager
    def _running(self, start: Start | None, source: str, sink: str) -> Iterator[None]:
        root = str(self._wiring.configuration.root)
        command = [sys.executable, "-m", "tidemill", "predictor", "--project", root]
        process = _process(command) if start is None else start(source, sink)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _send(self, topic: str, prefix: str, numbers: Sequence[int]) -> None:
        messages = [
            Message(topic, self._values[number % len(self._values)], f"{prefix}-{number}".encode()) for number in numbers
        ]
        for first in range(0, len(messages), 10_000):
            self._wiring.log.append(messages[first : first + 10_000])

    def _send_at(self, topic: str, prefix: str, count: int, rate: int) -> dict[bytes, float]:
        producer = Producer({"bootstrap.servers": self._brokers, "linger.ms": 1, "partitioner": "murmur2_random"})
        due: dict[bytes, float] = {}
        begin, sent = time.monotonic() + 0.5, 0
        while sent < count:
            while sent < count and begin + sent / rate <= time.monotonic():
                key = f"{prefix}-{sent}".encode()
                due[key] = begin + sent / rate
                producer.produce(topic, self._values[sent % len(self._values)], key)
                sent += 1
            producer.poll(0)
            time.sleep(0.0005)
        producer.flush()
        return due

    def _watch(self, topic: str, seen: dict[bytes, float], stop: threading.Event, warm: threading.Event) -> None:
        consumer = self._reader({"fetch.wait.max.ms": 100})
        ends = {partition: end for partition, (_, end) in self._wiring.log.bounds(topic).items()}
        consumer.assign([TopicPartition(topic, partition, end) for partition, end in ends.items()])
        while not stop.is_set():
            messages: list[Any] = consumer.consume(1, 0.1)
            messages += consumer.consume(999, 0.0)
            now = time.monotonic()
            seen.update((message.key(), now) for message in messages if message.error() is None)
            if seen:
                warm.set()
        consumer.close()

    def _reader(self, settings: dict[str, Any]) -> Consumer:
        common = {"bootstrap.servers": self._brokers, "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"}
        return Consumer({**common, "isolation.level": "read_committed", "enable.auto.commit": False, **settings})

    def _end(self, topic: str) -> int:
        consumer = self._reader({})
        try:
            return sum(consumer.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in range(PARTITIONS))
        finally:
            consumer.close()

    def _read(self, topic: str) -> list[int]:
        """The times of all records, in ms, sorted."""
        return sorted(record.time_ms for records in _standing(self._wiring, topic) for record in records)


def _standing(wiring: Wiring, topic: str) -> Iterator[list[Any]]:
    for records in wiring.log.follow(topic):
        if not records:
            return
        yield records


def _process(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"})


def _make_quix_environment() -> None:
    """Quix Streams wants other versions than ours of some packages, so it lives apart; made once."""
    python = QUIX_ENVIRONMENT / "bin" / "python"
    if (QUIX_ENVIRONMENT / ".ready").exists():
        return
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(QUIX_ENVIRONMENT)], check=True)
    packages = ["--editable", f"{ROOT}", f"quixstreams=={QUIX_VERSION}"]
    subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *packages], check=True)
    (QUIX_ENVIRONMENT / ".ready").touch()
