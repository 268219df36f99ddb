"""On a real broker, in one run: librdkafka's own echo, tidemill's predictor, and other ways to serve the same model.

Throughput is read off the broker's own record times once the answers stand, so that nobody watches meanwhile. Latency is
open loop: from when a request was due to when a reader of committed records saw its answer.
"""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from msgspec import Struct

from bench.stage import LEAVES, SECONDS_MAX, TREES, append, champion, cpu_seconds, requests, wait_for
from tidemill.log.base import Message, Topic
from tidemill.wiring import Wiring

ROOT = Path(__file__).parents[1]
QUIX_ENVIRONMENT = ROOT / ".venv-quix"
QUIX_VERSION = "3.28.1"
BATCH = 1000
PARTITIONS = 4

Start = Callable[[str, str], "subprocess.Popen[bytes]"]
"""Starts a program that answers what stands in one topic into another."""
RAW, MINE = "raw echo, exactly once", "tidemill, exactly once"
WIDE_BATCH = 4000
WARM_TURNS, TURNS = 3, 11
ORIGINAL = "the original's way"
WIDE = f"{MINE}, batches of {WIDE_BATCH}"


class Program(NamedTuple):
    """``start`` is None for the predictor, which reads and writes its project's topics; ``settings`` are its environment.

    ``share`` of the backlog is for those that would take minutes, ``rate_max`` what they are asked at most a second.
    """

    name: str
    start: Start | None = None
    settings: Mapping[str, str] = MappingProxyType({})
    share: float = 1.0
    rate_max: int = 1_000_000


class Throughput(Struct, frozen=True):
    """Requests a second with a backlog, between the first and the last answer by the broker's times.

    ``cpu_us``: processor time a request, of all its threads, from the program's start; the start itself is in it.
    """

    program: str
    backlog: int
    per_second: float
    cpu_us: float


class Latency(Struct, frozen=True):
    """Milliseconds from due to seen at an offered rate (a second)."""

    program: str
    rate: int
    p50: float
    p99: float
    p999: float
    unanswered: int


class Scale(Struct, frozen=True):
    """So many predictors on so many partitions; ``cpu_seconds`` a million requests, of all of them."""

    predictors: int
    partitions: int
    per_second: float
    cpu_seconds: float


def programs(bench: "Bench", wanted: str) -> list[Program]:
    """What is measured side by side. ``wanted``: "all", "ours" without Quix Streams, or "two" (the echo and tidemill)."""
    two = [Program(RAW, bench.program("echo", "exactly_once", str(BATCH))), Program(MINE, settings=_batches(BATCH))]
    if wanted == "two":
        return two
    bundle = champion(bench.wiring)
    root = str(bench.wiring.configuration.root)
    ours = [
        Program("raw echo, at least once", bench.program("echo", "at_least_once", str(BATCH))),
        *two,
        Program(WIDE, settings=_batches(WIDE_BATCH), rate_max=0),
        Program("tidemill, at least once", settings=_batches(BATCH) | {"TIDEMILL_STREAM__DELIVERY": "at_least_once"}),
        Program("a plain loop with LightGBM", bench.program("plain", root, bundle), share=0.1, rate_max=1000),
        Program(ORIGINAL, bench.program("original", root, str(TREES), str(LEAVES)), share=0.003, rate_max=20),
    ]
    if wanted == "ours":
        return ours
    _make_quix_environment()
    quix = {"defaults": ("0", "5.0", "0"), "best settings": (str(BATCH), "1.0", "1")}
    return ours + [
        Program(f"Quix Streams, {name}", bench.quix(root, bundle, *settings), share=0.15, rate_max=1000)
        for name, settings in quix.items()
    ]


def _batches(most: int) -> dict[str, str]:
    return {"TIDEMILL_PREDICTOR__BATCH_MAX": str(most)}


class Bench:
    """Topics, senders and readers on one broker."""

    def __init__(self, brokers: str, wiring: Wiring) -> None:
        self.wiring = wiring
        self._brokers = brokers
        self._values = [message.value for message in requests(wiring, "value", 16_000)]

    def program(self, name: str, *arguments: str) -> Start:
        """One of ``bench/programs``."""

        def start(source: str, sink: str) -> "subprocess.Popen[bytes]":
            return _process([sys.executable, "-m", f"bench.programs.{name}", self._brokers, source, sink, *arguments])

        return start

    def quix(self, *arguments: str) -> Start:
        """``bench/programs/quix.py``, in its own environment."""

        def start(source: str, sink: str) -> "subprocess.Popen[bytes]":
            python = str(QUIX_ENVIRONMENT / "bin" / "python")
            return _process([python, "-m", "bench.programs.quix", self._brokers, source, sink, *arguments])

        return start

    def warm(self, programs: Sequence[Program], backlog: int) -> None:
        """Let the echo run: a broker is twice as fast after some 300,000 requests."""
        (echo,) = (program for program in programs if program.name == RAW)
        for _ in range(WARM_TURNS):
            self.throughput(echo, backlog)

    def throughputs(self, programs: Sequence[Program], backlog: int) -> list[Throughput]:
        """The echo and the predictor take turns once the broker is warm: a machine may be twice as fast a minute later. Of
        ``TURNS`` both have the one whose ratio is the median. The others have one turn each, after that.
        """
        self.warm(programs, backlog)
        echo, mine = (program for program in programs if program.name in (RAW, MINE))
        turns = [(self.throughput(echo, backlog), self.throughput(mine, backlog)) for _ in range(TURNS)]
        turns.sort(key=lambda turn: turn[1].per_second / turn[0].per_second)
        found = {one.program: one for one in turns[TURNS // 2]}
        return [found.get(program.name) or self.throughput(program, backlog) for program in programs]

    def throughput(self, program: Program, backlog: int, copies: int = 1) -> Throughput:
        """The backlog stands before the program starts."""
        source, sink = self._topics(program)
        count, before = max(100, int(backlog * program.share)), len(self._read(sink))
        self._send(source, uuid.uuid4().hex, range(count))
        with self._running(program, source, sink, copies) as processes:
            wait_for(lambda: self._end(sink) >= before + count, pause=0.1)
            times: list[int] = []
            deadline = time.monotonic() + SECONDS_MAX
            while len(times) < count and time.monotonic() < deadline:
                times = self._read(sink)[before:]
            cpu = sum(cpu_seconds(process.pid) for process in processes)
        seconds = max(0.001, (max(times) - min(times)) / 1000)
        return Throughput(program.name, count, count / seconds, cpu / count * 1e6)

    def scale(self, predictors: int, backlog: int) -> Scale:
        """As ``throughput``, with several predictors on the project's partitions."""
        found = self.throughput(Program(f"{predictors} predictors"), backlog, predictors)
        return Scale(predictors, PARTITIONS, found.per_second, found.cpu_us)

    def latency(self, program: Program, rate: int, seconds: float) -> Latency:
        """Open loop: a request is due on an absolute schedule, whatever the answers do. The first second does not count."""
        source, sink = self._topics(program)
        prefix, count = uuid.uuid4().hex, int(rate * (seconds + 1))
        seen: dict[bytes, float] = {}
        stop, warm = threading.Event(), threading.Event()
        reader = threading.Thread(target=self._watch, args=(sink, seen, stop, warm))
        with self._running(program, source, sink):
            reader.start()
            self._send(source, "warm", range(10))
            if not warm.wait(SECONDS_MAX):
                raise TimeoutError(f"{program.name} does not answer")
            due = self._send_at(source, prefix, count, rate)
            deadline = time.monotonic() + 15.0
            while time.monotonic() < deadline and not all(key in seen for key in due):
                time.sleep(0.1)
            stop.set()
            reader.join()
        settled = list(due.items())[rate:]
        delays = np.array([seen[key] - at for key, at in settled if key in seen]) * 1000
        p50, p99, p999 = np.percentile(delays, [50, 99, 99.9]) if len(delays) else (np.nan,) * 3
        return Latency(program.name, rate, float(p50), float(p99), float(p999), sum(key not in seen for key in due))

    def _topics(self, program: Program) -> tuple[str, str]:
        if program.start is None:
            return self.wiring.topics.requests, self.wiring.topics.predictions
        name = uuid.uuid4().hex
        source, sink = f"bench.{name}.source", f"bench.{name}.sink"
        self.wiring.log.create([Topic(source, PARTITIONS, 3600.0), Topic(sink, PARTITIONS, 3600.0)])
        return source, sink

    @contextmanager
    def _running(
        self, program: Program, source: str, sink: str, copies: int = 1
    ) -> Iterator[list["subprocess.Popen[bytes]"]]:
        root = str(self.wiring.configuration.root)
        command = [sys.executable, "-m", "tidemill", "predictor", "--project", root]
        processes = [
            _process(command, program.settings) if program.start is None else program.start(source, sink)
            for _ in range(copies)
        ]
        try:
            yield processes
        finally:
            for process in processes:
                _end(process)

    def _send(self, topic: str, prefix: str, numbers: Sequence[int]) -> None:
        messages = [
            Message(topic, self._values[number % len(self._values)], f"{prefix}-{number}".encode()) for number in numbers
        ]
        append(self.wiring, messages)

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
        ends = {partition: end for partition, (_, end) in self.wiring.log.bounds(topic).items()}
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
        return sorted(record.time_ms for records in _standing(self.wiring, topic) for record in records)


def _standing(wiring: Wiring, topic: str) -> Iterator[list[Any]]:
    for records in wiring.log.follow(topic):
        if not records:
            return
        yield records


def _process(command: Sequence[str], variables: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(variables or {})}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
