"""Services that know nothing but Kafka's topics and the JSON in them, against a project that runs: the two examples."""

import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from tidemill.bundle_files import Card
from tidemill.core.encoder import Encoder
from tidemill.core.inference import Choices
from tidemill.learners.base import Samples
from tidemill.learners.lightgbm import LightGBM
from tidemill.log.base import Message, Record, read_all
from tidemill.messages import JournalEntry, ModelVersion, Prediction, to_bytes
from tidemill.new_project import init_project
from tidemill.wiring import Wiring

pytestmark = [pytest.mark.kafka, pytest.mark.process]

EXAMPLES = Path(__file__).parents[2] / "examples"
COUNT = 80
SECONDS = 60.0


class Served(NamedTuple):
    """A project that two services have used: what each of them sent and summed up, what the log and the lake then held."""

    folder: Path
    prefix: str
    bundle: str
    rows: dict[str, list[dict[str, Any]]]
    summaries: dict[str, dict[str, Any]]
    records: dict[str, list[Record]]
    observed: list[dict[str, Any]]


def make_project(folder: Path, bootstrap: str, prefix: str) -> str:
    """A project with a champion; the bundle's name."""
    draw = random.Random(1)
    lines = [f"{(age := draw.randint(17, 90))},{draw.choice(('Private', 'State-gov'))},{int(age > 50)}" for _ in range(200)]
    (folder / "people.csv").write_text("age,workclass,income\n" + "\n".join(lines) + "\n")
    settings = {
        "stream.url": f"kafka://{bootstrap}",
        "stream.partitions": "3",
        "lake.flush_seconds": "0.2",
        "tracking.tracker": "none",
    }
    init_project(folder / "people.csv", folder / "p", Choices(target="income"), prefix, settings)
    wiring = Wiring(folder / "p")
    schema = wiring.configuration.schema
    ages, kinds, labels = zip(*(line.split(",") for line in lines), strict=True)
    encoder = Encoder.fit(schema, {"age": [int(age) for age in ages], "workclass": list(kinds)})
    matrix = encoder.encode({"age": [int(age) for age in ages], "workclass": list(kinds)}).matrix
    targets = np.array(labels, dtype=np.float64)
    samples = Samples(matrix, targets, None, schema.columns, encoder.categorical, "binary", 2)
    model = LightGBM().fit(samples, {"min_data_in_leaf": 5}, 10, 1, threads=1)
    card = Card(
        learner="lightgbm", metric="log_loss", score=0.4, parameters={}, rounds=10, seed=1, data_version=0, rows=200,
        training_set="", experiment="first", version=1, created_at=0,
    )  # fmt: skip
    bundle = wiring.store.write(model, encoder, card, matrix[:8])
    champion = ModelVersion(1, f"bundles/{bundle}", bundle, schema.digest(), "champion", 0, "first", 0, 1)
    entry = JournalEntry("first", "promotion", "", "promoted", 0, version=1, bundle=bundle)
    wiring.log.append([Message(wiring.topics.models, to_bytes(champion), b"champion")])
    wiring.log.append([Message(wiring.topics.journal, to_bytes(entry), b"first")])
    wiring.close()
    return bundle


def rows(seed: int) -> list[dict[str, Any]]:
    """What a service is asked: good, odd and bad; some are labelled, some have a key."""
    chance = random.Random(seed)
    made: list[dict[str, Any]] = []
    for number in range(COUNT):
        age = chance.randint(17, 90)
        odd: dict[str, Any] = {"workclass": chance.choice(["Private", "never seen", None]), "note": [1, {"x": None}]}
        bad: dict[str, Any] = {"age": [age]} if number % 20 == 19 else {"age": "old"}
        features = bad if number % 10 == 9 else {"age": str(age)} if number % 4 == 0 else {"age": age, **odd}
        made.append({"features": features})
        if number % 3:
            made[-1]["outcome"] = chance.choice([int(age > 50), str(int(age > 50))])
        if number % 2:
            made[-1]["key"] = f"customer-{number % 7}"
    return made


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], output: Path) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < end, output.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def served(bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Both services ask at the same time, while `tidemill run` runs all roles, and end; then the roles are stopped."""
    folder = tmp_path_factory.mktemp("interoperability")
    prefix = f"shop-{uuid.uuid4().hex[:8]}"
    bundle = make_project(folder, bootstrap, prefix)
    project, output = folder / "p", folder / "output"
    sent = {"kafka_python": rows(1), "aiokafka": rows(2)}
    wiring = Wiring(project)
    with output.open("wb") as file:
        command = [sys.executable, "-m", "tidemill", "run", "-p", str(project)]
        run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    try:
        until(lambda: "model_swapped" in output.read_text(), run, output)
        summaries = ask_all(bootstrap, prefix, sent)
        told = sum(summary["outcomes"] for summary in summaries.values())
        until(lambda: wiring.lake.observations().height == told, run, output)
    finally:
        run.terminate()
        run.wait(SECONDS)
    topics = ("requests", "predictions", "dead_letters")
    records = {topic: read_all(wiring.log, getattr(wiring.topics, topic)) for topic in topics}
    yield Served(project, prefix, bundle, sent, summaries, records, wiring.lake.observations().to_dicts())
    wiring.lake.close()
    wiring.close()


def ask_all(bootstrap: str, prefix: str, sent: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Run the examples side by side; their summaries."""
    apps = {}
    for name, given in sent.items():
        command = [sys.executable, str(EXAMPLES / f"app_{name}.py"), bootstrap, prefix, str(len(given))]
        apps[name] = subprocess.Popen(
            command, env=os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert apps[name].stdin is not None
    texts = {name: "\n".join(map(json.dumps, given)) for name, given in sent.items()}
    for name, app in apps.items():
        app.stdin.write(texts[name])  # type: ignore[union-attr]
        app.stdin.close()  # type: ignore[union-attr]
        app.stdin = None
    summaries = {}
    for name, app in apps.items():
        out, said = app.communicate(timeout=SECONDS)
        assert app.returncode == 0, (name, out, said)
        summaries[name] = json.loads(out)
    return summaries


def headers_of(record: Record) -> dict[str, str]:
    """By name; the last one of a name counts."""
    return {name: value.decode() for name, value in record.headers}


def is_event(record: Record) -> bool:
    return any(name == "ce_id" for name, _ in record.headers)


@pytest.mark.parametrize("name", ["kafka_python", "aiokafka"])
def test_each_request_of_a_service_is_answered_or_refused(served: Served, name: str) -> None:
    """None is missing, and refused are the bad ones alone, each with its reason and field."""
    summary, given = served.summaries[name], served.rows[name]
    bad = COUNT // 10
    refused = summary["refused"]
    reasons = list(refused.values()) if isinstance(refused, dict) else refused
    assert (summary["sent"], summary["answered"], summary["missing"]) == (COUNT, COUNT - bad, 0)
    assert reasons == ["wrong_type age"] * bad
    assert summary["outcomes"] == sum("outcome" in row for number, row in enumerate(given) if number % 10 != 9)
    assert summary["versions"] == [1]
    assert summary.get("repeated", 0) == 0


def test_an_event_is_answered_under_its_own_id_and_goes_on_with_its_trace(served: Served) -> None:
    """Whatever its key; the service saw its own trace on each answer, and a refused event keeps all of its headers."""
    assert served.summaries["aiokafka"]["traced"] == COUNT - COUNT // 10
    events = {headers_of(record)["ce_id"]: record for record in served.records["requests"] if is_event(record)}
    assert len(events) == COUNT
    answers = {(record.key or b"").decode(): record for record in served.records["predictions"]}
    letters = [record for record in served.records["dead_letters"] if is_event(record)]
    assert len(letters) == COUNT // 10
    for name in events.keys() & answers.keys():
        assert answers[name].headers == (("traceparent", headers_of(events[name])["traceparent"].encode()),)
        assert msgspec.json.decode(answers[name].value, type=Prediction).request_id == name
    for letter in letters:
        request = events[headers_of(letter)["ce_id"]]
        assert (letter.key, letter.value) == (request.key, request.value)
        assert letter.headers[: len(request.headers)] == request.headers
        assert headers_of(letter)["request_id"] == headers_of(request)["ce_id"]
    assert len(events.keys() & answers.keys()) + len(letters) == COUNT
    keys = Counter(record.key for record in events.values())
    assert None in keys
    assert b"customer-1" in keys


def test_an_answer_stands_in_the_partition_of_its_request(served: Served) -> None:
    """Where the key is the request id: kafka-python, as Java, and tidemill share keys out in the same way."""
    places = {record.key: record.partition for record in served.records["requests"] if not is_event(record)}
    answers = [record for record in served.records["predictions"] if record.key in places]
    assert len(answers) == COUNT - COUNT // 10
    assert all(record.partition == places[record.key] for record in answers)
    assert len(set(places.values())) == 3


def test_outcomes_are_joined_with_their_requests_and_answers(served: Served) -> None:
    """Each that was reported, once: by the record's key, or by the event's subject."""
    assert len(served.observed) == sum(summary["outcomes"] for summary in served.summaries.values())
    values = {(record.key or b"").decode(): record.value for record in served.records["requests"] if not is_event(record)}
    values |= {headers_of(record)["ce_id"]: record.value for record in served.records["requests"] if is_event(record)}
    answers = [msgspec.json.decode(record.value, type=Prediction) for record in served.records["predictions"]]
    scores = {answer.request_id: answer.probability for answer in answers}
    assert {answer.bundle for answer in answers} == {served.bundle}
    for row in served.observed:
        assert row["features"] == values[row["request_id"]]
        assert row["scores"] == [scores[row["request_id"]]]
        assert int(row["outcome"].strip('"')) == (int(json.loads(row["features"])["age"]) > 50)


def test_the_audit_is_clean(served: Served) -> None:
    """`tidemill audit` finds every request answered or refused once, and each answer what its bundle gives."""
    command = [sys.executable, "-m", "tidemill", "audit", "--json", "-p", str(served.folder)]
    audit = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    report = json.loads(audit.stdout)
    bad = 2 * COUNT // 10
    assert (report["requests"], report["answers"], report["dead_letters"]) == (2 * COUNT, 2 * COUNT - bad, bad)
    assert (report["waiting"], report["lost"], report["doubled"], report["wrong"], report["unchecked"]) == (0, 0, 0, 0, 0)
    assert (report["recomputed"], report["observations"]) == (2 * COUNT - bad, len(served.observed))
    assert report["clean"]
