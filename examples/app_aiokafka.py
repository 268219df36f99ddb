"""A service that sends its requests and outcomes as CloudEvents with aiokafka; of tidemill it knows docs/protocol.md only.

    python app_aiokafka.py localhost:9092 income 20 < rows.jsonl

A row is {"features": {...}, "outcome": ..., "key": ...}; without an outcome none is reported, and the key, if there is one,
only chooses the partition: the request id is the event's. Each request has a trace of its own, which its answer goes on
with. Rows come from standard input, else from the sample below, over and over until so many requests are sent. Prints a
summary as JSON; exit code 1 if an answer is missing.
"""

import argparse
import asyncio
import itertools
import json
import secrets
import statistics
import sys
import time
import uuid
from datetime import UTC, datetime

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

SAMPLE = [
    {"features": {"age": 39, "workclass": "Private"}, "outcome": 0, "key": "customer-1"},
    {"features": {"age": "52", "workclass": "Self-emp-inc"}, "outcome": 1, "key": "customer-2"},
    {"features": {"age": 23, "workclass": None}, "outcome": 0, "key": "customer-1"},
    {"features": {"workclass": "never seen before"}},
]


class Refused(Exception):
    """The request became a dead letter."""


class Service:
    """Asks, and hands each answer to the one who asked."""

    def __init__(self, producer: AIOKafkaProducer, prefix: str, timeout: float) -> None:
        self._producer = producer
        self._prefix = prefix
        self._timeout = timeout
        self._asked: dict[str, asyncio.Future[tuple[dict, dict[str, str]]]] = {}

    async def ask(self, features: dict, key: str | None, trace: str) -> tuple[dict, dict[str, str]]:
        """The prediction and its headers. Raises ``Refused``, or ``TimeoutError``."""
        deadline = str(round((time.time() + self._timeout) * 1000))
        event = event_headers("request", {"deadline": deadline, "traceparent": trace})
        name = dict(event)["ce_id"].decode()
        self._asked[name] = asyncio.get_running_loop().create_future()
        try:
            await self._producer.send_and_wait(
                f"{self._prefix}.requests",
                json.dumps(features).encode(),
                key=key.encode() if key else None,
                headers=event,
            )
            return await asyncio.wait_for(self._asked[name], self._timeout)
        finally:
            del self._asked[name]

    async def report(self, name: str, outcome: object) -> None:
        """What became true about a request. The event's id is its own; its subject is the request.

        Without a key it goes to any partition, which is no harm as long as each outcome is reported once.
        """
        value = json.dumps({"outcome": outcome}).encode()
        event = event_headers("outcome", {"ce_subject": name})
        await self._producer.send_and_wait(f"{self._prefix}.outcomes", value, headers=event)

    async def hand_over(self, consumer: AIOKafkaConsumer) -> None:
        """Give answers and dead letters to who waits for them, for ever."""
        async for record in consumer:
            said = {name: value.decode() for name, value in record.headers}  # the last header of a name counts
            if record.topic == f"{self._prefix}.predictions":
                answer = json.loads(record.value)
                waiting = self._asked.get(answer["request_id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result((answer, said))
            elif said["topic"] == f"{self._prefix}.requests":
                waiting = self._asked.get(said["request_id"])
                if waiting is not None and not waiting.done():
                    waiting.set_exception(Refused(f"{said['reason']} {said['field']}".strip()))


def event_headers(kind: str, more: dict[str, str]) -> list[tuple[str, bytes]]:
    """A CloudEvent in binary mode: its attributes are headers, its data is the value as it stands."""
    attributes = {
        "ce_specversion": "1.0",
        "ce_type": f"example.{kind}",
        "ce_source": "/examples/app_aiokafka",
        "ce_id": uuid.uuid4().hex,
        "ce_time": datetime.now(UTC).isoformat(),
        "content-type": "application/json",
        **more,
    }
    return [(name, text.encode()) for name, text in attributes.items()]


async def run(options: argparse.Namespace) -> dict:
    """Serve so many rows, all at the same time; the summary."""
    producer = AIOKafkaProducer(bootstrap_servers=options.bootstrap, acks="all", enable_idempotence=True)
    consumer = AIOKafkaConsumer(
        f"{options.prefix}.predictions",
        f"{options.prefix}.dead-letters",
        bootstrap_servers=options.bootstrap,
        isolation_level="read_committed",  # else answers would be seen that were taken back, and given again
    )
    async with producer, consumer:
        await consumer.seek_to_end()  # it stands there before anything is asked, so no answer can be missed
        service = Service(producer, options.prefix, options.timeout)
        follower = asyncio.create_task(service.hand_over(consumer))
        started = time.monotonic()
        results = await asyncio.gather(*(serve(service, row) for row in rows(options.count)))
        follower.cancel()
        return summary(results, time.monotonic() - started)


async def serve(service: Service, row: dict) -> dict:
    """One request from its question to its outcome."""
    started = time.monotonic()
    trace = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"  # elsewhere that of the call which is served
    try:
        answer, said = await service.ask(row["features"], row.get("key"), trace)
    except Refused as error:
        return {"refused": str(error)}
    except TimeoutError:
        return {}
    latency_ms = (time.monotonic() - started) * 1000
    told = row.get("outcome") is not None
    if told:  # here at once, elsewhere seconds or weeks later
        await service.report(answer["request_id"], row["outcome"])
    traced = said.get("traceparent") == trace
    return {"version": answer["version"], "latency_ms": latency_ms, "told": told, "traced": traced}


def summary(results: list[dict], seconds: float) -> dict:
    """What became of the requests."""
    answered = [result for result in results if "version" in result]
    latencies = [result["latency_ms"] for result in answered]
    return {
        "sent": len(results),
        "answered": len(answered),
        "refused": [result["refused"] for result in results if "refused" in result],
        "missing": sum(not result for result in results),
        "traced": sum(result["traced"] for result in answered),
        "outcomes": sum(result["told"] for result in answered),
        "versions": sorted({result["version"] for result in answered}),
        "latency_ms_p50": round(statistics.median(latencies), 1) if latencies else None,
        "latency_ms_max": round(max(latencies), 1) if latencies else None,
        "seconds": round(seconds, 3),
    }


def rows(count: int) -> list[dict]:
    """So many rows, from standard input or the sample."""
    given = [] if sys.stdin.isatty() else [json.loads(line) for line in sys.stdin if line.strip()]
    return list(itertools.islice(itertools.cycle(given or SAMPLE), count))


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Ask for predictions with aiokafka, as CloudEvents.")
    parser.add_argument("bootstrap", help="the brokers, as host:port,host:port")
    parser.add_argument("prefix", help="the project's name, with which its topics begin")
    parser.add_argument("count", type=int, help="how many requests to send")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for each answer")
    options = parser.parse_args()
    found = asyncio.run(run(options))
    print(json.dumps(found))
    return 1 if found["missing"] else 0


if __name__ == "__main__":
    sys.exit(main())
