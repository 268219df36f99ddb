"""The broker's limit as seen from Python: poll, copy, commit, with librdkafka's client alone. Run as a process.

``python -m bench.programs.echo BROKERS SOURCE SINK GUARANTEE BATCH``, with GUARANTEE ``at_least_once`` or ``exactly_once``.
"""

import sys
import uuid
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition


def main(brokers: str, source: str, sink: str, guarantee: str, batch: str) -> None:
    name = uuid.uuid4().hex
    common = {"bootstrap.servers": brokers}
    consumer = Consumer(
        {
            **common,
            "group.id": name,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": 10,
        }
    )
    settings: dict[str, Any] = {
        **common,
        "linger.ms": 0,
        "batch.size": 1_000_000,
        "batch.num.messages": 100_000,
        "queue.buffering.max.messages": 1_000_000,
        "retry.backoff.ms": 1,
    }
    if guarantee == "exactly_once":
        producer = Producer({**settings, "transactional.id": name})
        producer.init_transactions(30)
    else:
        producer = Producer(settings)
    consumer.subscribe([source])
    while True:
        messages: list[Any] = consumer.consume(1, 1.0)
        messages += consumer.consume(int(batch) - 1, 0.0)
        messages = [message for message in messages if message.error() is None]
        if messages:
            _copy(consumer, producer, messages, sink, guarantee == "exactly_once")


def _copy(consumer: Consumer, producer: Producer, messages: list[Any], sink: str, exactly_once: bool) -> None:
    if exactly_once:
        producer.begin_transaction()
    for message in messages:
        producer.produce(sink, message.value(), message.key())
    ends = {(m.topic(), m.partition()): m.offset() + 1 for m in messages}
    offsets = [TopicPartition(*place, offset) for place, offset in ends.items()]
    if exactly_once:
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 30)
        producer.commit_transaction(30)
    else:
        producer.flush()
        consumer.commit(offsets=offsets, asynchronous=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
