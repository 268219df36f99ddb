"""Quix Streams with the same model, a message at a time, as its documentation shows. A process of another environment.

``python quix.py BROKERS SOURCE SINK PROJECT BUNDLE COMMIT_EVERY COMMIT_SECONDS BACKOFF_MS``; COMMIT_EVERY 0 and BACKOFF_MS 0
are its defaults. It shares tidemill's decoder and encoder, and scores with LightGBM, as its users do.
"""

import sys
import uuid
from pathlib import Path
from typing import Any

from tidemill.bundle_files import MODEL
from tidemill.core.answers import Answerer
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.wiring import Wiring, learner


def main(
    brokers: str,
    source: str,
    sink: str,
    project: str,
    bundle_name: str,
    commit_every: str,
    commit_seconds: str,
    backoff_ms: str,
) -> None:
    from quixstreams import Application

    wiring = Wiring(Path(project))
    bundle = wiring.store.load(bundle_name)
    model = learner(bundle.manifest.learner).load_reference(
        (wiring.configuration.bundles / bundle_name / MODEL).read_bytes()
    )
    answerer = Answerer(MatrixDecoder(bundle.encoder), model.predict, bundle.threshold)

    def answer(value: bytes) -> dict[str, Any]:
        answers = answerer.answer([value])
        return {"prediction": answers.predictions[0], "probability": answers.probability[0], "bundle": bundle_name}

    extra = {"retry.backoff.ms": int(backoff_ms), "linger.ms": 0} if int(backoff_ms) else {}
    application = Application(
        broker_address=brokers,
        consumer_group=uuid.uuid4().hex,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=float(commit_seconds),
        commit_every=int(commit_every),
        producer_extra_config=extra,
        auto_create_topics=False,
        loglevel="WARNING",
    )
    stream = application.dataframe(application.topic(source, value_deserializer="bytes"))
    stream = stream.apply(answer)
    stream.to_topic(application.topic(sink, value_serializer="json"))
    application.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
