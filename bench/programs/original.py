"""The way of the program that tidemill replaces: kafka-python, a pandas row and a flush for every message.

``python -m bench.programs.original BROKERS SOURCE SINK PROJECT TREES LEAVES``. A small rebuild, not its code: JSON becomes a
frame of one row with categorical columns, scikit-learn's wrapper of LightGBM answers, and the answer is flushed.
"""

import json
import sys
import uuid
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from kafka import KafkaConsumer, KafkaProducer  # type: ignore[import-untyped]

from tidemill.original import load_original
from tidemill.wiring import Wiring


def main(brokers: str, source: str, sink: str, project: str, trees: str, leaves: str) -> None:
    wiring = Wiring(Path(project))
    schema = wiring.configuration.schema
    rows = load_original(wiring.configuration.data, schema)
    types = {
        feature.name: pd.CategoricalDtype(feature.categories) if feature.type == "category" else "float64"
        for feature in schema.features
    }
    frame = pd.DataFrame(rows.columns).astype(types)
    model = lightgbm.LGBMClassifier(n_estimators=int(trees), num_leaves=int(leaves), n_jobs=1, verbose=-1)
    model.fit(frame, rows.outcomes)
    consumer = KafkaConsumer(
        source, bootstrap_servers=brokers, group_id=uuid.uuid4().hex, auto_offset_reset="earliest", enable_auto_commit=True
    )
    producer = KafkaProducer(bootstrap_servers=brokers)
    for message in consumer:
        row = pd.DataFrame([json.loads(message.value)], columns=list(types)).astype(types)
        probability = float(np.asarray(model.predict_proba(row))[0, 1])
        answer = {"prediction": int(probability > 0.5), "probability": probability}
        producer.send(sink, key=message.key, value=json.dumps(answer).encode())
        producer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
