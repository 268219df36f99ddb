"""A service that asks for predictions with kafka-python; of tidemill it knows docs/protocol.md and nothing else.

    python app_kafka_python.py localhost:9092 income 20 < rows.jsonl

A row is {"features": {...}, "outcome": ...}; without an outcome none is reported. Rows come from standard input, else from
the sample below, over and over until so many requests are sent. Prints a summary as JSON; exit code 1 if an answer is
missing.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
import uuid

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

SAMPLE = [
    {"features": {"age": 39, "workclass": "Private"}, "outcome": 0},
    {"features": {"age": "52", "workclass": "Self-emp-inc"}, "outcome": 1},
    {"features": {"age": 23, "workclass": None}, "outcome": 0},
    {"features": {"workclass": "never seen before"}},
]


def main() -> int:
    """Ask, wait, report, and say what became of it; the exit code."""
    options = parse_options()
    # Its default partitioner is murmur2, as in Java: the records of a key stand together, whoever writes them.
    producer = KafkaProducer(bootstrap_servers=options.bootstrap, acks="all")
    consumer = follow_answers(options)
    requests = {uuid.uuid4().hex: row for row in rows(options.count)}
    sent = send_requests(producer, options, requests)
    answers, refused, latencies, repeated = await_answers(consumer, options, sent)
    outcomes = report_outcomes(producer, options, requests, answers)
    missing = len(requests) - len(answers) - len(refused)
    summary = {
        "sent": len(requests),
        "answered": len(answers),
        "refused": refused,
        "missing": missing,
        "repeated": repeated,
        "outcomes": outcomes,
        "versions": sorted({answer["version"] for answer in answers.values()}),
        "latency_ms_p50": round(statistics.median(latencies), 1) if latencies else None,
        "latency_ms_max": round(max(latencies), 1) if latencies else None,
    }
    print(json.dumps(summary))
    producer.close()
    consumer.close()
    return 1 if missing else 0


def parse_options() -> argparse.Namespace:
    """What stands behind the command."""
    parser = argparse.ArgumentParser(description="Ask for predictions with kafka-python.")
    parser.add_argument("bootstrap", help="the brokers, as host:port,host:port")
    parser.add_argument("prefix", help="the project's name, with which its topics begin")
    parser.add_argument("count", type=int, help="how many requests to send")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for the answers")
    return parser.parse_args()


def rows(count: int) -> list[dict]:
    """So many rows, from standard input or the sample."""
    given = [] if sys.stdin.isatty() else [json.loads(line) for line in sys.stdin if line.strip()]
    return list(itertools.islice(itertools.cycle(given or SAMPLE), count))


def follow_answers(options: argparse.Namespace) -> KafkaConsumer:
    """A consumer that stands at the ends of both topics before anything is asked, so that no answer can be missed."""
    consumer = KafkaConsumer(
        bootstrap_servers=options.bootstrap,
        isolation_level="read_committed",  # else answers would be seen that were taken back, and given again
        enable_auto_commit=False,
    )
    topics = [f"{options.prefix}.predictions", f"{options.prefix}.dead-letters"]
    places = [TopicPartition(topic, number) for topic in topics for number in consumer.partitions_for_topic(topic)]
    consumer.assign(places)
    consumer.seek_to_end(*places)
    for place in places:
        consumer.position(place)  # seeking waits for this
    return consumer


def send_requests(producer: KafkaProducer, options: argparse.Namespace, requests: dict[str, dict]) -> dict[str, float]:
    """Send them all; when each left, by id."""
    sent = {}
    for name, row in requests.items():
        until = round((time.time() + options.timeout) * 1000)  # after that nobody waits, so no answer is worth its while
        producer.send(
            f"{options.prefix}.requests",
            key=name.encode(),
            value=json.dumps(row["features"]).encode(),
            headers=[("deadline", str(until).encode())],
        )
        sent[name] = time.monotonic()
    producer.flush()
    return sent


def await_answers(
    consumer: KafkaConsumer, options: argparse.Namespace, sent: dict[str, float]
) -> tuple[dict[str, dict], dict[str, str], list[float], int]:
    """Answers by id, reasons by id for what was refused, milliseconds, and how many came a second time."""
    answers, refused, latencies, repeated = {}, {}, [], 0
    end = time.monotonic() + options.timeout
    while len(answers) + len(refused) < len(sent) and time.monotonic() < end:
        for records in consumer.poll(timeout_ms=200).values():
            for record in records:
                name, answer = read_answer(record, options.prefix)
                if name not in sent:
                    continue
                repeated += name in answers or name in refused
                latencies.append((time.monotonic() - sent[name]) * 1000)
                if isinstance(answer, dict):
                    answers[name] = answer
                else:
                    refused[name] = answer
    return answers, refused, latencies, repeated


def read_answer(record, prefix: str) -> tuple[str, dict | str]:
    """The request id, and the prediction or the reason for which there is none."""
    if record.topic == f"{prefix}.predictions":
        answer = json.loads(record.value)
        return answer["request_id"], answer
    said = {name: value.decode() for name, value in record.headers}  # the last header of a name counts
    if said["topic"] != f"{prefix}.requests":
        return "", ""
    return said["request_id"], f"{said['reason']} {said['field']}".strip()


def report_outcomes(
    producer: KafkaProducer, options: argparse.Namespace, requests: dict[str, dict], answers: dict[str, dict]
) -> int:
    """What became true about the requests that were answered: here at once, elsewhere seconds or weeks later."""
    labelled = {name: row["outcome"] for name, row in requests.items() if name in answers and row.get("outcome") is not None}
    for name, outcome in labelled.items():
        value = {"outcome": outcome, "time": round(time.time() * 1000)}
        producer.send(f"{options.prefix}.outcomes", key=name.encode(), value=json.dumps(value).encode())
    producer.flush()
    return len(labelled)


if __name__ == "__main__":
    sys.exit(main())
