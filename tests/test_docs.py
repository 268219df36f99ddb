"""The documents say what the code does: README's blocks run, and what a person can meet is in the reference."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from bench import report
from tidemill.cli.main import declare
from tidemill.core.decoding import Decoder, check_content, deadline, event_time, outcome_id, request_id
from tidemill.core.inspection import REASONS
from tidemill.core.outcomes import decode_outcome
from tidemill.core.schema import Feature, Schema
from tidemill.log.base import Record
from tidemill.messages import Event, JournalEntry, ModelVersion, Prediction, Retrain, Topics, Trial
from tidemill.roles.dead_letters import dead_letter
from tidemill.tables import read_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
INCOME = Schema(
    (Feature("age", "number"), Feature("workclass", "category"), Feature("hours", "number"), Feature("member", "boolean")),
    "income",
    "binary",
    ("no", "yes"),
)
"""The schema that the protocol's examples are of."""
STRUCTS: dict[str, type[msgspec.Struct]] = {
    "predictions": Prediction,
    "retrain": Retrain,
    "models": ModelVersion,
    "trials": Trial,
    "journal": JournalEntry,
    "events": Event,
}
KEYS: dict[str, Callable[[Any], str | None]] = {
    "predictions": lambda message: message.request_id,
    "retrain": lambda message: message.id,
    "models": lambda message: message.state,
    "trials": lambda message: f"{message.experiment}/{message.number}",
    "journal": lambda message: message.id,
    "events": lambda message: None,
}
ADULT = ROOT / "src" / "tidemill" / "datasets" / "adult.parquet"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def examples() -> list[tuple[str, dict[str, Any]]]:
    """The records that the protocol shows, each with its topic."""
    return [(topic, json.loads(text)) for topic, text in re.findall(r"```json ([a-z-]+)\n(.*?)```", PROTOCOL, re.DOTALL)]


def records_of(topic: str) -> list[dict[str, Any]]:
    return [record for name, record in examples() if name == topic]


def key_of(record: dict[str, Any]) -> bytes | None:
    return None if record["key"] is None else record["key"].encode()


def headers_of(record: dict[str, Any]) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, text.encode()) for name, text in record["headers"].items())


def commands() -> list[str]:
    """Every command, those of groups too."""
    return declare()[1].names


@pytest.mark.process
def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The console block makes, trains and runs a project; the Python block gets an answer from it."""
    table = read_table(ADULT).select("age", "workclass", pl.col("income_over_50k").alias("income")).head(2000)
    table.write_csv(tmp_path / "people.csv")
    monkeypatch.chdir(tmp_path)
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    tidemill = [line.split()[1:] for line in lines if line.startswith("tidemill")]
    assert [line[0] for line in tidemill] == ["init", "train", "run"]
    for arguments in tidemill[:-1]:
        subprocess.run([sys.executable, "-m", "tidemill", *arguments], check=True, capture_output=True)
    with subprocess.Popen([sys.executable, "-m", "tidemill", *tidemill[-1]], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            while "model_swapped" not in process.stdout.readline():
                assert process.poll() is None
            (code,) = blocks("python")
            told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        finally:
            process.terminate()
            started = time.monotonic()
            process.communicate()
    label, probability, version = told.split()
    assert (label, version) in {("0", "1"), ("1", "1")}
    assert 0 < float(probability) < 1
    assert time.monotonic() - started < 10, "it must stop in order"


@pytest.mark.parametrize("command", commands())
def test_every_command_is_in_the_readme(command: str) -> None:
    """A command that a person can type stands in README's table."""
    assert re.search(rf"`(tidemill )?{command}`", README), command


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_in_the_reference(reason: str) -> None:
    """Whoever finds a reason in a dead letter can look it up."""
    assert f"| `{reason}` |" in REFERENCE


def test_every_topic_is_in_the_protocol() -> None:
    """Whoever reads the log can look up each topic, and see a record of it; the reference leads there."""
    for name in Topics.__struct_fields__:
        topic = name.replace("_", "-")
        assert f"| `{topic}` |" in PROTOCOL
        assert any(named == topic for named, _ in examples()), topic
    assert "(protocol.md)" in REFERENCE


def test_every_event_is_in_the_reference() -> None:
    """Events are named in code as ``Event("name"``, or through a role's own function for them."""
    source = "\n".join(path.read_text() for path in (ROOT / "src" / "tidemill" / "roles").glob("*.py"))
    names = set(re.findall(r'(?:Event\(|_event\(|_emit\()\s*"([a-z_]+)"', source))
    assert {"model_swapped", "experiment_started"} <= names
    for name in names:
        assert f"| `{name}` |" in REFERENCE, name


def test_no_example_of_the_protocol_goes_unread() -> None:
    """Each JSON block names its topic, and is one record."""
    assert len(examples()) == PROTOCOL.count("```json")
    assert all(set(record) == {"key", "headers", "value"} for _, record in examples())


@pytest.mark.parametrize("record", records_of("requests"), ids=lambda record: record["key"])
def test_requests_in_the_protocol_can_be_answered(record: dict[str, Any]) -> None:
    """They have an id, a time and no bad or unknown field."""
    headers = headers_of(record)
    assert request_id(key_of(record), "income.requests", 0, 17, True, headers)
    check_content(headers)
    assert event_time(headers, 0) > 0
    assert deadline(headers) in (None, 1767323050678)
    decoded = Decoder(INCOME).decode([msgspec.json.encode(record["value"])])
    assert decoded.bad == []
    assert {name for name, column in decoded.columns.items() if column[0] is not None} == set(record["value"])


@pytest.mark.parametrize("record", records_of("outcomes"), ids=lambda record: str(record["key"]))
def test_outcomes_in_the_protocol_can_be_read(record: dict[str, Any]) -> None:
    """They name a request of the page, or one like it, and one of the schema's classes."""
    outcome = decode_outcome(key_of(record), msgspec.json.encode(record["value"]), INCOME, headers_of(record))
    assert outcome.outcome in INCOME.classes
    assert outcome_id(key_of(record), headers_of(record)).startswith("visit-")


@pytest.mark.parametrize("record", records_of("dead-letters"), ids=lambda record: record["key"])
def test_dead_letters_in_the_protocol_are_what_a_role_writes(record: dict[str, Any]) -> None:
    """The same headers in the same order, for the reason that the decoder gives."""
    told, value = record["headers"], msgspec.json.encode(record["value"])
    own = tuple((name, text) for name, text in headers_of(record) if name == "time")
    sent = Record(told["topic"], int(told["partition"]), int(told["offset"]), 0, key_of(record), value, own)
    [(_, error)] = Decoder(INCOME).decode([value]).bad
    letter = dead_letter("income.dead-letters", sent, error, told["role"], told["request_id"])
    assert (letter.key, letter.value, letter.headers) == (key_of(record), value, headers_of(record))


@pytest.mark.parametrize(("topic", "kind"), STRUCTS.items(), ids=STRUCTS)
def test_other_records_in_the_protocol_are_the_projects_structs(topic: str, kind: type[msgspec.Struct]) -> None:
    """Every field is one of the struct, with its type, and the key is what the table says."""
    for record in records_of(topic):
        message = msgspec.json.decode(msgspec.json.encode(record["value"]), type=kind)
        assert set(record["value"]) <= set(kind.__struct_fields__)
        assert {name: msgspec.to_builtins(getattr(message, name)) for name in record["value"]} == record["value"]
        assert record["key"] == KEYS[topic](message)
        assert topic in ("predictions",) or record["headers"] == {}


def test_code_in_the_protocol_is_that_of_the_examples() -> None:
    """What the page shows can be run."""
    shown = re.findall(r"```python\n(.*?)```", PROTOCOL, re.DOTALL)
    assert len(shown) == 2
    for code in shown:
        assert any(code in path.read_text() for path in EXAMPLES), code


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_start(path: Path) -> None:
    """They know nothing of tidemill, and find their own library (a broker is needed for more)."""
    library = path.stem.removeprefix("app_").replace("kafka_python", "kafka")
    pytest.importorskip(library)
    assert "import tidemill" not in path.read_text()
    found = subprocess.run([sys.executable, path, "--help"], check=True, capture_output=True, text=True)
    assert "bootstrap" in found.stdout


def test_links_lead_somewhere() -> None:
    """Every relative link of every document is a file."""
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_invariant_names_tests_that_exist() -> None:
    """ARCHITECTURE.md's table names a file, or a shipped contract."""
    rows = [line for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if "| Invariant: " in line]
    assert len(rows) >= 10
    for row in rows:
        named = re.findall(r"`(tests/[^`]+)`", row)
        assert named or "Contract" in row, row
        for file in named:
            assert (ROOT / file).exists(), file


def test_the_documents_speak_of_the_project_only() -> None:
    """No path of a machine stands in a tracked text."""
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        assert str(ROOT) not in document.read_text()


def test_the_benchmarks_page_is_what_was_measured() -> None:
    """docs/benchmarks is what ``python -m bench --out`` wrote: the tables are of its results.json, the plots are there."""
    folder = ROOT / "docs" / "benchmarks"
    page = (folder / "README.md").read_text()
    assert page == report.page(json.loads((folder / "results.json").read_text()))
    for name in re.findall(r"!\[[^]]*\]\((.*)\)", page):
        assert (folder / name).read_text().startswith("<?xml")
