"""A loop as one writes it in an afternoon: poll a message, JSON, ``Booster.predict``, produce; positions each second.

``python -m bench.programs.plain BROKERS SOURCE SINK PROJECT BUNDLE``. At least once; no dead letters, no reload, no audit.
"""

import json
import sys
import time
import uuid
from pathlib import Path

import lightgbm
import numpy as np
from confluent_kafka import Consumer, Producer

from tidemill.bundle_files import MODEL
from tidemill.wiring import Wiring


def main(brokers: str, source: str, sink: str, project: str, bundle_name: str) -> None:
    wiring = Wiring(Path(project))
    schema = wiring.store.schema(bundle_name)
    codes = [
        {value: code for code, value in enumerate(feature.categories)} if feature.type == "category" else None
        for feature in schema.features
    ]
    booster = lightgbm.Booster(model_str=(wiring.configuration.bundles / bundle_name / MODEL).read_text())
    name = uuid.uuid4().hex
    consumer = Consumer(
        {"bootstrap.servers": brokers, "group.id": name, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    )
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 5})
    consumer.subscribe([source])
    committed_at, answered = time.monotonic(), 0
    while True:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            values = json.loads(message.value() or b"")
            given = [values.get(feature.name) for feature in schema.features]
            row = [
                np.nan if value is None else value if table is None else table.get(value, -1)
                for value, table in zip(given, codes, strict=True)
            ]
            probability = float(booster.predict(np.array([row], dtype=np.float64), num_threads=1)[0])
            answer = {"prediction": int(probability > 0.5), "probability": probability}
            producer.produce(sink, json.dumps(answer).encode(), message.key())
            producer.poll(0)
            answered += 1
        if answered and time.monotonic() - committed_at > 1.0:
            producer.flush()
            consumer.commit(asynchronous=False)
            committed_at, answered = time.monotonic(), 0


if __name__ == "__main__":
    main(*sys.argv[1:])
