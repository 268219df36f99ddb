import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tidemill.configuration import describe, digest, load, make_settings, render
from tidemill.core.schema import Feature, Schema
from tidemill.errors import ConfigError
from tidemill.schema_file import read_schema, render_schema
from tidemill.settings import KAFKA_OWNED, KafkaValue, Project, Settings, Stream, Tune

SCHEMA = Schema(
    (
        Feature("age", "number", minimum=17.0, maximum=90.5),
        Feature("job", "category", ("é", "b")),
        Feature("sex", "category"),
    ),
    "rich",
    "binary",
    (0, 1),
    (("job", "sex"),),
)
TOML = '[project]\nname = "adult"\ndata = "adult.csv"\n'
KAFKA_URL = TOML + '[stream]\nurl = "kafka://localhost:9092"\n'
KAFKA = KAFKA_URL + "[stream.kafka]\n"


def project(folder: Path, toml: str = TOML, schema: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tidemill.toml").write_text(toml, encoding="utf-8")
    (folder / "schema.json").write_text(render_schema(SCHEMA) if schema is None else schema, encoding="utf-8")
    return folder


def refusal(folder: Path, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, environ or {})
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "DIR")


def test_a_variable_with_one_underscore_is_no_setting_in_silence(tmp_path: Path) -> None:
    """It names the one that was meant; a variable that is something else stays what it is."""
    folder = project(tmp_path, TOML)
    with pytest.raises(ConfigError, match=r"TIDEMILL_TUNE_TRIALS: two underscores .*: TIDEMILL_TUNE__TRIALS"):
        load(folder, {"TIDEMILL_TUNE_TRIALS": "7"})
    load(folder, {"TIDEMILL_TUNE_OTHERS": "7", "TIDEMILL_TEST_KAFKA": "x"})


def test_defaults_file_and_variables_in_this_order(tmp_path: Path) -> None:
    """A variable overrules the file, the file the default; each value knows where it is from."""
    folder = project(tmp_path, TOML + "[tune]\ntrials = 5\nfolds = 4\nseconds = 3\n")
    environ = {
        "TIDEMILL_TUNE__TRIALS": "7",
        "TIDEMILL_PREDICTOR__REQUIRE_ID": "true",
        "TIDEMILL_FAILPOINT": "x",
        "HOME": "/",
    }
    configuration = load(folder, environ)
    settings = configuration.settings
    assert (settings.tune.trials, settings.tune.folds, settings.tune.rounds_max) == (7, 4, Tune().rounds_max)
    assert (settings.tune.seconds, settings.predictor.require_id) == (3.0, True)
    assert type(settings.tune.seconds) is float
    assert configuration.origins["tune.trials"] == "TIDEMILL_TUNE__TRIALS"
    assert configuration.origins["tune.folds"] == "tidemill.toml"
    assert configuration.origins["tune.rounds_max"] == "default"
    rows = {name: (value, origin) for name, value, origin in describe(configuration)}
    assert rows["tune.trials"] == ("7", "TIDEMILL_TUNE__TRIALS")
    assert rows["stream.url"] == ('"sqlite:log"', "default")
    assert rows.keys() == configuration.origins.keys()


def test_the_digest_follows_the_settings_only(tmp_path: Path) -> None:
    """The same settings have the same digest wherever they come from and wherever the project lies."""
    one = load(project(tmp_path / "one"), {"TIDEMILL_TUNE__TRIALS": "7"})
    two = load(project(tmp_path / "two", TOML + "[tune]\ntrials = 7\n"), {})
    other = load(project(tmp_path / "two"), {})
    assert one.digest == two.digest
    assert one.digest != other.digest


def test_paths_are_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths start at the project's folder, absolute ones stay."""
    monkeypatch.chdir(project(tmp_path))
    configuration = load(Path("."), {"TIDEMILL_LAKE__PATH": "/far/lake"})
    assert configuration.data == tmp_path / "adult.csv"
    assert configuration.schema_file == tmp_path / "schema.json"
    assert configuration.log_folder == tmp_path / "log"
    assert configuration.lake == Path("/far/lake")
    assert configuration.bundles == tmp_path / "bundles"
    assert configuration.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[project\n", "DIR/tidemill.toml: not valid TOML: Expected ']' at the end of a table declaration (at line 1,"),
        (TOML + "[tunes]\n", "DIR/tidemill.toml: [tunes]: unknown section; did you mean 'tune'?"),
        (TOML + "[zebra]\n", "[zebra]: unknown section; there are project, stream, predictor"),
        (TOML + "tune = 3\n", "DIR/tidemill.toml: project.tune: unknown setting; there are name, data, schema, seed"),
        ("tune = 3\n" + TOML, "DIR/tidemill.toml: tune must be a table: write [tune]"),
        ("trials = 3\n" + TOML, "[trials]: unknown section"),
        (TOML + "[tune]\ntrails = 3\n", "DIR/tidemill.toml: tune.trails: unknown setting; did you mean 'trials'?"),
        (TOML + "[tune]\ntrials = 0\n", "DIR/tidemill.toml: tune.trials = 0: must be a whole number from 1 on"),
        (TOML + "[tune]\ntrials = 2.5\n", "tune.trials = 2.5: must be a whole number from 1 on"),
        (TOML + "[tune]\ntrials = true\n", "tune.trials = True: must be a whole number from 1 on"),
        (TOML + '[tune]\ntrials = "9"\n', "tune.trials = '9': must be a whole number from 1 on"),
        (TOML + "[tune]\nfolds = 30\n", "tune.folds = 30: must be a whole number from 2 up to 20"),
        (TOML + "[tune]\nunbalanced = 1\n", "tune.unbalanced = 1: must be true or false"),
        (TOML + "[tune]\nexecutor = 'k8s'\n", 'tune.executor = \'k8s\': must be "processes" or "ray"'),
        (TOML + "[verdict]\nconfidence = 1\n", "verdict.confidence = 1: must be a number above 0.5 below 1"),
        (TOML + "[verdict]\npolicy = 3\n", 'must be "always" or "better" or "manual"'),
        (TOML + "[trainer]\ncores = -1\n", "DIR/tidemill.toml: trainer.cores = -1: must be a whole number from 0 on"),
        (
            TOML + "[tune]\nworkers = 4\n[trainer]\nmemory_gb = 0.9\n",
            "DIR/tidemill.toml: trainer.memory_gb = 0.9: must be 0, or 0.25 for each of tune.workers, 1",
        ),
        (TOML + "[labels]\nwait_hours = inf\n", "labels.wait_hours = inf: must be a number above 0"),
        (TOML + "[labels]\nwait_hours = nan\n", "labels.wait_hours = nan: must be a number above 0"),
        (TOML + "[lake]\npath = ''\n", "lake.path = '': must be a text that is not empty"),
        (TOML + "[stream]\nurl = 'kafka://x'\n", 'DIR/tidemill.toml: stream.url = "kafka://x": must be sqlite:FOLDER'),
        (TOML + "[stream]\nurl = 'sqlite:'\n", 'stream.url = "sqlite:": must be sqlite:FOLDER'),
        (TOML + "[tracking]\nuri = './mlruns'\n", 'tracking.uri = "./mlruns": must be sqlite:///FILE'),
        (
            TOML + "[tune]\nmetric = 'rmse'\n",
            "DIR/tidemill.toml: tune.metric 'rmse' does not fit a binary target; ",
        ),
        (
            TOML + "[drift]\nblock = 'customer'\n",
            'DIR/tidemill.toml: drift.block = "customer": there is no such feature; there are age, ',
        ),
        ('[project]\ndata = "x"\n', "DIR/tidemill.toml: project.name is missing: prefix of every topic"),
        ('[project]\nname = "A b"\ndata = "x"\n', "project.name = 'A b': must be 1 to 41 of the characters a-z, 0-9 and -"),
    ],
)
def test_mistakes_in_the_file_are_one_clear_line(tmp_path: Path, toml: str, expected: str) -> None:
    """Every mistake names the setting, the file, and what would be valid."""
    assert expected in refusal(project(tmp_path, toml))


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TIDEMILL_TUNE__TRIALS", "many", "variable TIDEMILL_TUNE__TRIALS = many: must be a whole number from 1 on"),
        ("TIDEMILL_TUNE__TRIALS", "", "variable TIDEMILL_TUNE__TRIALS = : must be a whole number from 1 on"),
        ("TIDEMILL_TUNE__TRIAL", "3", "variable TIDEMILL_TUNE__TRIAL: unknown setting; did you mean 'TRIALS'?"),
        ("TIDEMILL_TUNES__TRIALS", "3", "variable TIDEMILL_TUNES__TRIALS: unknown section; did you mean 'TUNE'?"),
        ("TIDEMILL_TUNE__", "3", "variable TIDEMILL_TUNE__: unknown setting; there are LEARNER"),
        ("TIDEMILL_LABELS__WAIT_HOURS", "nan", "must be a number above 0"),
        ("TIDEMILL_LABELS__WAIT_HOURS", "1e300", "= 1e300: must be a number above 0 up to 876000"),
        ("TIDEMILL_STREAM__RETENTION_HOURS", "1e18", "= 1e18: must be a number above 0 up to 876000"),
        ("TIDEMILL_LAKE__FLUSH_ROWS", "1" + "0" * 20, "must be a whole number from 1 up to 1000000"),
        ("TIDEMILL_PREDICTOR__BATCH_MAX", "1" + "0" * 20, "must be a whole number from 1 up to 1000000"),
        ("TIDEMILL_PROJECT__SEED", "4294967296", "must be a whole number from 0 up to 4294967295"),
        ("TIDEMILL_STREAM__URL", "redis:x", 'variable TIDEMILL_STREAM__URL = "redis:x": must be sqlite:FOLDER'),
    ],
)
def test_mistakes_in_variables_are_one_clear_line(tmp_path: Path, variable: str, value: str, expected: str) -> None:
    """Every mistake names the variable and what would be valid."""
    assert expected in refusal(project(tmp_path), {variable: value})


def test_a_folder_without_a_project_says_how_to_begin(tmp_path: Path) -> None:
    """No tidemill.toml: the line says which command makes one."""
    assert refusal(tmp_path) == "no tidemill.toml in DIR: run tidemill init DATA --target COLUMN"


def test_files_that_are_no_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8, and a folder in place of a file, are one line each; a byte order mark does no harm."""
    folder = project(tmp_path)
    (folder / "tidemill.toml").write_bytes(b'[project]\nname = "\xff"\n')
    assert "not valid TOML: the text is not UTF-8" in refusal(folder)
    (folder / "tidemill.toml").write_bytes(b"\xef\xbb\xbf" + TOML.encode())
    load(folder, {})
    (folder / "tidemill.toml").unlink()
    (folder / "tidemill.toml").mkdir()
    assert refusal(folder) == "DIR/tidemill.toml: cannot be read: Is a directory"


def schema_with(**changes: Any) -> str:
    return json.dumps(msgspec.to_builtins(SCHEMA) | changes)


def features(*changed: dict[str, Any]) -> str:
    return schema_with(features=[{"name": "job", "type": "category"}, {"name": "sex", "type": "category"}, *changed])


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ('{\n"a": 1,\n}', "DIR/schema.json: not valid JSON: "),
        ('{\n"a" 1\n}', "(at line 2, column 5)"),
        ("[]", "DIR/schema.json: Expected `object`, got `array`"),
        ("{}", "DIR/schema.json: Object missing required field `features`"),
        (schema_with(taks="binary"), "unknown field 'taks'; did you mean 'task'?"),
        (schema_with(task="ranking"), "DIR/schema.json: task: must be binary, multiclass or regression"),
        (schema_with(classes=[1]), "classes: there are 1, a binary task has 2, the positive one last"),
        (schema_with(classes=[1, 1]), "classes: 1 stands there twice"),
        (schema_with(classes=["1", 1]), 'classes: "1" and 1 have the same text'),
        (schema_with(classes=[1.0, 1]), "classes: 1.0 and 1 have the same text"),
        (features({"name": 'a"b', "type": "number"}), "feature 'a\"b': a name cannot hold quotes, backslashes"),
        (features({"name": "a\\b", "type": "number"}), "rename the column in the data and the field in the requests"),
        (features({"name": "a\nb", "type": "number"}), "feature 'a\\nb': a name cannot hold"),
        (features({"name": "a\ud800", "type": "number"}), "feature 'a\\ud800': a name cannot hold"),
        (schema_with(task="multiclass"), "classes: there are 2, a multiclass task has 3 or more"),
        (schema_with(task="regression"), "classes: a regression has none"),
        (schema_with(features=[]), "features is empty"),
        (schema_with(target="age"), "feature 'age' is also the target"),
        (schema_with(id="age"), "feature 'age' is also the id"),
        (schema_with(time="age"), "feature 'age' is also the time"),
        (schema_with(crosses=[["job", "sexe"]]), "crosses: 'job*sexe': there is no feature 'sexe'; did you mean 'sex'?"),
        (
            schema_with(crosses=[["job", "age"]]),
            "crosses: 'job*age': feature 'age' is a number, only categories are crossed",
        ),
        (schema_with(crosses=[["job"]]), "crosses: 'job' needs two or more different features"),
        (schema_with(crosses=[["job", "sex"], ["job", "sex"]]), "crosses: two columns would be named 'job*sex'"),
        (features({"name": "job", "type": "number"}), "feature 'job' stands there twice"),
        (features({"name": "", "type": "number"}), "a feature has an empty name"),
        (features({"name": "age", "type": "text"}), "feature 'age': type: must be number, boolean or category"),
        (features({"type": "number"}), "feature number 3: Object missing required field `name`"),
        (features({"name": "age", "type": "number", "max": 3}), "feature 'age': unknown field 'max'"),
        (features({"name": "age", "type": "number", "minimum": "3"}), "feature 'age': minimum: Expected `float"),
        (
            features({"name": "age", "type": "number", "minimum": 3, "maximum": 2}),
            "feature 'age': minimum 3 is above maximum 2",
        ),
        (
            features({"name": "age", "type": "boolean", "minimum": 3}),
            "minimum and maximum belong to the type number, not bool",
        ),
        (
            features({"name": "c", "type": "category", "categories": ["a", "a"]}),
            "feature 'c': category 'a' stands there twice",
        ),
        (
            features({"name": "c", "type": "number", "categories": ["a"]}),
            "categories belong to the type category, not number",
        ),
    ],
)
def test_mistakes_in_the_schema_are_one_clear_line(tmp_path: Path, schema: str, expected: str) -> None:
    """Every mistake names the file, the feature, the field, and what would be valid."""
    assert expected in refusal(project(tmp_path, schema=schema))


def test_a_missing_schema_is_named(tmp_path: Path) -> None:
    """A schema that is not there is said with the setting that names it."""
    assert "DIR/other.json: no such file (project.schema names it" in refusal(
        project(tmp_path), {"TIDEMILL_PROJECT__SCHEMA": "other.json"}
    )


def test_the_rendered_schema_is_the_schema_with_a_line_a_feature(tmp_path: Path) -> None:
    """What is written reads back the same, keeps its digest, and shows each feature on a line of its own."""
    (tmp_path / "s.json").write_text(render_schema(SCHEMA), encoding="utf-8")
    again = read_schema(tmp_path / "s.json")
    assert again == SCHEMA
    assert again.digest() == SCHEMA.digest()
    lines = render_schema(SCHEMA).splitlines()
    assert '    {"name": "age", "type": "number", "minimum": 17, "maximum": 90.5},' in lines


def test_the_rendered_settings_are_the_settings(tmp_path: Path) -> None:
    """The template holds every setting with its comment, fits a screen in width, and loads as what was rendered."""
    settings = Settings(project=Project(name="a", data='odd "name" \\ \x7f é.csv'), tune=Tune(trials=3, seconds=1e20))
    text = render(settings)
    assert load(project(tmp_path, text), {}).settings == settings
    lines = [line for line in text.splitlines() if " = " in line and not line.startswith("#")]
    assert len(lines) == sum(len(section) for section in msgspec.to_builtins(settings).values())
    assert all(len(line.split("# ", 1)[1]) > 3 for line in lines)
    assert max(map(len, text.splitlines())) <= 125


@hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1), st.floats(1e-300, 1e300))
def test_any_text_and_number_survives_the_file(tmp_path: Path, text: str, number: float) -> None:
    """Whatever a setting holds, rendering and loading gives it back."""
    settings = Settings(project=Project(name="a", data=text), tune=Tune(seconds=number))
    assert load(project(tmp_path, render(settings)), {}).settings == settings


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"tune.trails": "3"}, "tune.trails: unknown setting; did you mean 'trials'?"),
        ({"tune": "3"}, "tune: unknown setting; there are learner"),
        ({"tune.trials": "x"}, "tune.trials = x: must be a whole number from 1 on"),
        ({"project.name": "A"}, "project.name = A: must be 1 to 41"),
    ],
)
def test_wrong_overrides_are_one_clear_line(overrides: dict[str, str], expected: str) -> None:
    """Settings given as text are held to the same rules as variables."""
    with pytest.raises(ConfigError, match=expected.replace("?", r"\?")):
        make_settings({"project.name": "a", "project.data": "b"} | overrides)


@pytest.mark.parametrize(
    "brokers",
    [
        "localhost:9092",
        "10.0.0.1:1",
        "a.b-c.example.:65535,broker_2:9093",
        "[::1]:9092",
        "[fe80::1%eth0]:9092,[::ffff:1.2.3.4]:1",
    ],
)
def test_an_address_is_all_that_kafka_needs(tmp_path: Path, brokers: str) -> None:
    """``kafka://`` and one or more brokers: every other setting has its default."""
    configuration = load(project(tmp_path), {"TIDEMILL_STREAM__URL": f"kafka://{brokers}"})
    assert (configuration.log_kind, configuration.brokers) == ("kafka", brokers)
    stream = configuration.settings.stream
    assert (stream.partitions, stream.replication, stream.delivery, stream.node) == (4, 0, "exactly_once", "")
    assert configuration.kafka_settings() == {}
    assert load(tmp_path, {}).log_kind == "sqlite"


def test_what_one_kind_of_log_has_is_refused_for_another(tmp_path: Path) -> None:
    """A folder or brokers that the log does not have are one clear line, which names the setting and its origin."""
    kafka = load(project(tmp_path), {"TIDEMILL_STREAM__URL": "kafka://a:1"})
    with pytest.raises(ConfigError) as caught:
        _ = kafka.log_folder
    assert str(caught.value) == 'stream.url = "kafka://a:1" (TIDEMILL_STREAM__URL): this is for a sqlite: log only'
    with pytest.raises(ConfigError, match=r'"sqlite:log" \(default\): this is for a kafka: log only'):
        _ = load(tmp_path, {}).brokers


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("kafka://", "; an address is empty"),
        ("kafka://a:1,", "; an address is empty"),
        ("kafka://a", "; 'a' has no port"),
        ("kafka://a:1,b", "; 'b' has no port"),
        ("kafka://[::1]", "; '[::1]' has no port"),
        ("kafka://a:", "; the port '' of 'a:' is no number from 1 to 65535"),
        ("kafka://a:0", "; the port '0' of 'a:0' is no number"),
        ("kafka://a:65536", "; the port '65536' of"),
        ("kafka://a:9092/requests", "; the port '9092/requests' of"),
        ("kafka://a:9092 ", "; the port '9092 ' of"),
        ("kafka://a:١", "; the port '١' of"),
        ("kafka://a:1, b:2", "; ' b' is no host name or address"),
        ("kafka://:9092", "; '' is no host name or address"),
        ("kafka://::1:9092", "; '::1' is no host name or address (one of IPv6 stands in brackets)"),
        ("kafka://[a]:9092", "; '[a]' is no host name or address"),
        ("kafka://a:1,kafka://b:1", "; 'kafka://b' is no host name or address"),
        ("kafka:a:9092", ""),
        ("KAFKA://a:9092", ""),
        ("a:9092", ""),
        ("sqlite://log", ""),
        ("sqlite:///log", ""),
    ],
)
def test_wrong_addresses_are_one_clear_line(tmp_path: Path, url: str, fault: str) -> None:
    """The line shows the address, both valid forms, and what is wrong with which broker."""
    line = refusal(project(tmp_path), {"TIDEMILL_STREAM__URL": url})
    valid = "must be sqlite:FOLDER, a path on a local disk, or kafka://HOST:PORT[,HOST:PORT...]"
    assert f"variable TIDEMILL_STREAM__URL = {json.dumps(url, ensure_ascii=False)}: {valid}{fault}" in line
    assert bool(fault) == (valid + ";" in line)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("STREAM__URL", "kafka://me:hunter2@a:9092"),
        ("STREAM__URL", "kafka://me:hunter2,x@a:9092,b:1"),
        ("STREAM__URL", "kafka://me:x\nhunter2@a:9092"),
        ("STREAM__URL", "amqp://me:hunter2@a"),
        ("TRACKING__URI", "postgresql://me:hunter2@a/b"),
    ],
)
def test_a_login_in_an_address_is_not_shown(tmp_path: Path, name: str, url: str) -> None:
    """A password that stands where none belongs is refused without being repeated."""
    line = refusal(project(tmp_path), {f"TIDEMILL_{name}": url})
    assert "hunter2" not in line
    assert ("a login stands in [stream.kafka]" in line) == url.startswith("kafka")


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("partitions = 0", "stream.partitions = 0: must be a whole number from 1 on"),
        ("replication = -1", "stream.replication = -1: must be a whole number from 0 on"),
        ("delivery = 'at_most_once'", 'stream.delivery = \'at_most_once\': must be "at_least_once" or "exactly_once"'),
        ("node = 'a b'", "stream.node = 'a b': must be up to 100 of the characters A-Z, a-z, 0-9, '.', '_' and '-'"),
        ('node = "a\\n"', "stream.node = 'a\\n': must be"),
        ("kafka = 3", "DIR/tidemill.toml: stream.kafka must be a table: write [stream.kafka] and its settings below"),
        ("kafka = [{}]", "stream.kafka must be a table"),
        ("kafkas = 3", "stream.kafkas: unknown setting; did you mean 'kafka'?"),
    ],
)
def test_mistakes_in_the_settings_of_kafka_are_one_clear_line(tmp_path: Path, toml: str, expected: str) -> None:
    """Every mistake names the setting, the file, and what would be valid."""
    assert expected in refusal(project(tmp_path, KAFKA_URL + toml))


@pytest.mark.parametrize("name", KAFKA_OWNED)
def test_settings_of_librdkafka_that_tidemill_needs_are_refused(tmp_path: Path, name: str) -> None:
    """The line says which one and why, or what to use instead; the name of the client is free."""
    said = f"tidemill sets {name} itself: {KAFKA_OWNED[name]}"
    line = refusal(project(tmp_path, f'{KAFKA}"client.id" = "me"\n"{name}" = "x"\n'))
    assert line == f'DIR/tidemill.toml: stream.kafka."{name}": {said}'
    variable = f"TIDEMILL_STREAM__KAFKA__{name.replace('.', '_').upper()}"
    assert refusal(project(tmp_path), {variable: "x"}) == f"variable {variable}: {said}"
    with pytest.raises(ConfigError, match=f"{name}: {said}"):
        make_settings({"project.name": "a", "project.data": "b", f"stream.kafka.{name}": "x"})


def test_the_settings_that_tidemill_needs() -> None:
    """What would break exactly-once, order, the groups or a commit is on the list, by each name that it has."""
    needed = "bootstrap.servers metadata.broker.list group.id group.instance.id group.protocol enable.auto.commit"
    needed += " auto.commit.enable enable.auto.offset.store auto.offset.reset isolation.level transactional.id"
    needed += " enable.idempotence enable.partition.eof partition.assignment.strategy partitioner"
    needed += " queue.buffering.max.messages queue.buffering.max.kbytes"
    assert set(needed.split()) == KAFKA_OWNED.keys()


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("retries = nan", 'DIR/tidemill.toml: stream.kafka."retries": must be a text, a number, or true or false'),
        ('"sasl.password" = ["hunter2"]', 'stream.kafka."sasl.password": must be a text, a number, or true or false'),
        ('"sasl.password" = 2026-01-01', 'stream.kafka."sasl.password": must be a text, a number, or true or false'),
        (
            'security.protocol = "hunter2"',
            'DIR/tidemill.toml: stream.kafka."security" is a table: a name with dots stands in quotes, '
            '"security.protocol" = ...',
        ),
        ('ssl.ca.location = "hunter2"', 'stands in quotes, "ssl.ca.location" = ...'),
        ('"sasl.password" = {}', 'stream.kafka."sasl.password" is a table: a name with dots stands in quotes'),
        ('"SASL.password" = "hunter2"', 'stream.kafka."SASL.password": no setting of librdkafka: their names are of a-z'),
        ('"a\\nb" = "hunter2"', 'stream.kafka."a\\nb": no setting of librdkafka'),
        ('"" = "hunter2"', 'stream.kafka."": no setting of librdkafka'),
        ('"sasl.password" = "file:"', '"sasl.password" = "file:": must be file:PATH or env:VARIABLE'),
        ('"sasl.password" = "env:"', '"sasl.password" = "env:": must be file:PATH or env:VARIABLE'),
        ('"ssl.key.location" = "file:key.pem"', '"ssl.key.location": must be the path itself, without file:'),
    ],
)
def test_mistakes_in_settings_of_librdkafka_are_one_clear_line(tmp_path: Path, toml: str, expected: str) -> None:
    """The line names the setting and the file, and never shows a value that may be a secret."""
    line = refusal(project(tmp_path, KAFKA + toml))
    assert expected in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("TIDEMILL_STREAM__KAFKA", ": must name one of its settings, as in TIDEMILL_STREAM__KAFKA__SECURITY_PROTOCOL"),
        ("TIDEMILL_STREAM__KAFKA__", ": must name one of its settings"),
        ("TIDEMILL_STREAM__KAFKA__SASL__PASSWORD", ": no setting of librdkafka"),
        ("TIDEMILL_STREAM__KAFKA_SASL_PASSWORD", ": unknown setting; there are URL"),
        ("TIDEMILL_KAFKA__SASL_PASSWORD", ": unknown section"),
        ("TIDEMILL_TUNE__KAFKA__SASL_PASSWORD", ": unknown setting; there are LEARNER"),
    ],
)
def test_mistakes_in_variables_of_librdkafka_are_one_clear_line(tmp_path: Path, variable: str, expected: str) -> None:
    """The line names the variable, and never shows its value."""
    line = refusal(project(tmp_path), {variable: "hunter2"})
    assert f"variable {variable}{expected}" in line
    assert "hunter2" not in line


def test_settings_of_librdkafka_come_from_the_file_and_from_variables(tmp_path: Path) -> None:
    """They keep their types in the file, are texts from variables, and each knows where it is from."""
    toml = '"security.protocol" = "SASL_SSL"\n"linger.ms" = 0.5\nretries = 3\n"socket.keepalive.enable" = true\n'
    environ = {"TIDEMILL_STREAM__KAFKA__SASL_PASSWORD": "Hunter_2", "TIDEMILL_STREAM__KAFKA__RETRIES": "007"}
    configuration = load(project(tmp_path, KAFKA + toml), environ)
    assert configuration.settings.stream.kafka == {
        "security.protocol": "SASL_SSL",
        "linger.ms": 0.5,
        "retries": "007",
        "socket.keepalive.enable": True,
        "sasl.password": "Hunter_2",
    }
    assert configuration.kafka_settings({}) == configuration.settings.stream.kafka
    rows = [row for row in describe(configuration) if row[0].startswith("stream.kafka")]
    assert rows == [
        ('stream.kafka."security.protocol"', '"SASL_SSL"', "tidemill.toml"),
        ('stream.kafka."linger.ms"', "0.5", "tidemill.toml"),
        ('stream.kafka."retries"', '"007"', "TIDEMILL_STREAM__KAFKA__RETRIES"),
        ('stream.kafka."socket.keepalive.enable"', "true", "tidemill.toml"),
        ('stream.kafka."sasl.password"', "***", "TIDEMILL_STREAM__KAFKA__SASL_PASSWORD"),
    ]
    assert {name for name, _, _ in describe(configuration)} == configuration.origins.keys()
    assert ("stream.kafka", "{}", "default") in describe(load(project(tmp_path, KAFKA), {}))


def test_a_value_may_stand_in_a_file_or_in_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read when it is asked for, from the project's folder, without the end of its last line."""
    toml = '"sasl.password" = "file:kafka.password"\n"ssl.key.password" = "env:KEY"\n"sasl.username" = "file:/no"\n'
    configuration = load(project(tmp_path, KAFKA + toml), {"TIDEMILL_STREAM__KAFKA__SASL_USERNAME": "env:WHO"})
    (tmp_path / "kafka.password").write_bytes(" é=hünter\n2\r\n".encode())
    environ = {"KEY": " k\n", "WHO": "me"}
    resolved = {"sasl.password": " é=hünter\n2", "ssl.key.password": " k\n", "sasl.username": "me"}
    assert configuration.kafka_settings(environ) == resolved
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir("/")
    assert configuration.kafka_settings() == resolved
    shown = {name: value for name, value, _ in describe(configuration)}
    assert shown['stream.kafka."sasl.password"'] == '"file:kafka.password"'
    assert shown['stream.kafka."ssl.key.password"'] == '"env:KEY"'


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("file:none", 'DIR/none: cannot be read: No such file or directory (stream.kafka."sasl.password" names it)'),
        ("file:.", "DIR: cannot be read: Is a directory"),
        ("file:bytes", 'DIR/bytes: not a text in UTF-8 (stream.kafka."sasl.password" names it)'),
        ("file:a\\u0000b", "not a text in UTF-8"),
        ("env:NONE", 'variable NONE is not set (stream.kafka."sasl.password" names it)'),
    ],
)
def test_a_value_that_is_not_where_it_should_be_is_one_clear_line(tmp_path: Path, reference: str, expected: str) -> None:
    """The line names the file or the variable, and the setting; the project itself still loads."""
    configuration = load(project(tmp_path, f'{KAFKA}"sasl.password" = "{reference}"\n'), {})
    (tmp_path / "bytes").write_bytes(b"hunter2\xff")
    with pytest.raises(ConfigError) as caught:
        configuration.kafka_settings({"OTHER": "hunter2"})
    line = str(caught.value).replace(str(tmp_path), "DIR")
    assert expected in line
    assert "\n" not in line
    assert "hunter2" not in line


def test_paths_of_librdkafka_are_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths start at the project's folder; absolute ones, and words that are no path, stay."""
    toml = """
        "ssl.ca.location" = "ca.pem"
        "ssl.certificate.location" = "tls/me.pem"
        "ssl.key.location" = "/far/key.pem"
        "ssl.keystore.location" = "env:STORE"
        "https.ca.location" = "probe"
        "ssl.crl.location" = ""
        "sasl.username" = "tls/me"
    """
    monkeypatch.chdir(project(tmp_path, KAFKA + toml))
    assert load(Path("."), {}).kafka_settings({"STORE": "store.p12"}) == {
        "ssl.ca.location": f"{tmp_path}/ca.pem",
        "ssl.certificate.location": f"{tmp_path}/tls/me.pem",
        "ssl.key.location": "/far/key.pem",
        "ssl.keystore.location": f"{tmp_path}/store.p12",
        "https.ca.location": "probe",
        "ssl.crl.location": "",
        "sasl.username": "tls/me",
    }


@pytest.mark.parametrize(
    "name",
    [
        "sasl.password",
        "ssl.key.password",
        "ssl.keystore.password",
        "ssl.key.pem",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.assertion.private.key.pem",
        "sasl.oauthbearer.assertion.private.key.passphrase",
        "sasl.oauthbearer.config",
        "sasl.jaas.config",
        "some.token",
    ],
)
def test_secrets_are_not_shown(tmp_path: Path, name: str) -> None:
    """Neither the list of settings nor a traceback holds a secret, whatever its type; the digest does not depend on it."""
    configuration = load(project(tmp_path, f'{KAFKA}"{name}" = "hunter2"\n"client.id" = "me"\n'), {})
    shown = {setting: value for setting, value, _ in describe(configuration)}
    assert shown[f'stream.kafka."{name}"'] == "***"
    assert shown['stream.kafka."client.id"'] == '"me"'
    stream = configuration.settings.stream
    for text in (repr(configuration), repr(stream), str(stream), repr(stream.__rich_repr__())):
        assert "hunter2" not in text
        assert f"'{name}': '***', 'client.id': 'me'" in text
    assert configuration.digest == load(project(tmp_path, KAFKA), {}).digest
    number = load(project(tmp_path, f'{KAFKA}"{name}" = 12345\n'), {})
    assert "12345" not in repr(number) + repr(describe(number))


def test_a_stream_is_shown_as_what_makes_it() -> None:
    """Where there is no secret, the text of a stream is the call that makes the same one."""
    stream = Stream(url="kafka://a:1", node="n", kafka={"linger.ms": 5, "sasl.password": "file:p"})
    assert eval(repr(stream)) == stream


def test_the_digest_of_a_sqlite_log_is_of_what_it_heeds(tmp_path: Path) -> None:
    """Settings of Kafka, and of what training may take, do not touch it: a project had it before there were any."""
    settings = load(project(tmp_path), {}).settings
    values = msgspec.to_builtins(settings)
    del values["trainer"]
    values["stream"] = {key: values["stream"][key] for key in ("url", "durability", "retention_hours")}
    assert digest(settings) == hashlib.sha256(msgspec.json.encode(values)).hexdigest()
    assert load(tmp_path, {"TIDEMILL_STREAM__PARTITIONS": "8"}).digest == digest(settings)
    assert load(tmp_path, {"TIDEMILL_TRAINER__CORES": "8", "TIDEMILL_TRAINER__MEMORY_GB": "8"}).digest == digest(settings)
    assert load(tmp_path, {"TIDEMILL_STREAM__DURABILITY": "normal"}).digest != digest(settings)


def test_the_digest_of_a_kafka_log_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """A machine's name and the settings of its client are not in it, what the topics and answers depend on is."""
    folder = project(tmp_path, KAFKA_URL)
    one = load(folder, {"TIDEMILL_STREAM__NODE": "one", "TIDEMILL_STREAM__KAFKA__SASL_PASSWORD": "a"})
    assert one.digest == load(folder, {"TIDEMILL_STREAM__NODE": "two"}).digest
    for key, value in {"URL": "kafka://b:1", "PARTITIONS": "8", "REPLICATION": "3", "DELIVERY": "at_least_once"}.items():
        assert one.digest != load(folder, {f"TIDEMILL_STREAM__{key}": value}).digest


def test_the_rendered_table_of_librdkafka(tmp_path: Path) -> None:
    """It follows ``[stream]``: a commented example that is valid as it stands, or what was set, names in quotes."""
    text = render(Settings(project=Project(name="a", data="b")))
    before, found, after = text.partition("[stream.kafka]")
    assert found
    assert before.rpartition("\n[")[2].startswith("stream]")
    example = [line for line in after.partition("\n[")[0].splitlines()[1:] if line]
    assert 1 <= len(example) <= 4
    assert all(line.startswith('# "') for line in example)
    lively = "\n".join(line.removeprefix("# ") for line in example)
    kafka = load(project(tmp_path, KAFKA + lively), {}).settings.stream.kafka
    assert kafka["sasl.password"] == "file:kafka.password"
    text = render(Settings(project=Project(name="a", data="b"), stream=Stream(kafka=kafka)))
    assert '\n"security.protocol" = "SASL_SSL"\n' in text
    assert '# "' not in text.partition("[stream.kafka]")[2].partition("\n")[2]
    assert tomllib.loads(text)["stream"]["kafka"] == kafka


names = st.from_regex(r"[a-z0-9_]{1,8}(\.[a-z0-9_]{1,8}){0,2}", fullmatch=True).filter(lambda name: name not in KAFKA_OWNED)
kafka_values = st.one_of(st.text(), st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False))


@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, kafka_values.filter(lambda value: value not in ("file:", "env:")), max_size=4))
def test_any_settings_of_librdkafka_survive_the_file(tmp_path: Path, kafka: dict[str, KafkaValue]) -> None:
    """Whatever they hold, rendering and loading gives them back, each of its own type."""
    settings = Settings(project=Project(name="a", data="b"), stream=Stream(kafka=kafka))
    again = load(project(tmp_path, render(settings)), {}).settings
    assert again == settings
    assert [type(value) for value in again.stream.kafka.values()] == [type(value) for value in kafka.values()]
