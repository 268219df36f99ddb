import json
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tidemill.configuration import Configuration, describe, load, make_settings, render
from tidemill.core.inference import Choices
from tidemill.core.schema import Feature, Schema
from tidemill.errors import ConfigError
from tidemill.new_project import NewProject, init_project
from tidemill.schema_file import read_schema, render_schema
from tidemill.settings import Project, Settings, Tune

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
        (TOML + "[tune]\nlearner = 'xgb'\n", "tune.learner = 'xgb': must be \"lightgbm\""),
        (TOML + "[verdict]\nconfidence = 1\n", "verdict.confidence = 1: must be a number above 0.5 below 1"),
        (TOML + "[verdict]\npolicy = 3\n", 'must be "always" or "better" or "manual"'),
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


@hypothesis_settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1), st.floats(1e-300, 1e300))
def test_any_text_and_number_survives_the_file(tmp_path: Path, text: str, number: float) -> None:
    """Whatever a setting holds, rendering and loading gives it back."""
    settings = Settings(project=Project(name="a", data=text), tune=Tune(seconds=number))
    assert load(project(tmp_path, render(settings)), {}).settings == settings


def make(tmp_path: Path, target: str = "y", name: str = "", **options: Any) -> NewProject:
    data = tmp_path / "data.csv"
    data.write_text("id,x,job,y\n1,1.5,a,0\n2,2.5,b,1\n3,3.5,a,1\n4,1,b,\n")
    choices = Choices(target=target, **options.pop("choices", {}))
    return init_project(data, options.pop("directory", tmp_path), choices, name, **options)


def test_a_new_project_loads_and_sums_itself_up(tmp_path: Path) -> None:
    """``init`` writes files that load, keeps the data's path relative, and tells what it understood."""
    new = make(tmp_path, name="demo", overrides={"tune.trials": "3"})
    configuration: Configuration = new.configuration
    assert load(tmp_path, {}) == configuration
    assert configuration.settings.project == Project(name="demo", data="data.csv")
    assert configuration.settings.tune.trials == 3
    assert configuration.schema.id == "id"
    text = "\n".join(new.summary)
    assert "demo: 4 rows, 2 features, a binary of y" in text
    assert "0 33.3%, 1 66.7% (1 is the positive one)" in text
    assert "missing in 1 of the rows, which are not trained on" in text


def test_a_project_elsewhere_keeps_the_absolute_path(tmp_path: Path) -> None:
    """Data outside the project is named by its full path; the project's name is made from its folder."""
    new = make(tmp_path, directory=tmp_path / "My Project_2")
    assert new.configuration.settings.project.data == str(tmp_path / "data.csv")
    assert new.configuration.data == tmp_path / "data.csv"
    assert new.configuration.settings.project.name == "my-project-2"


@pytest.mark.parametrize(("folder", "name"), [("2024", "p-2024"), ("...", "p"), ("x" * 60, "x" * 41), ("é", "p")])
def test_any_folder_makes_a_valid_name(tmp_path: Path, folder: str, name: str) -> None:
    """A project can be made in a folder of any name."""
    assert make(tmp_path, directory=tmp_path / folder)
    assert load(tmp_path / folder, {}).settings.project.name == name


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    """An existing project stays as it is, unless it is forced; a refused one leaves no files."""
    make(tmp_path)
    (tmp_path / "tidemill.toml").write_text(TOML)
    with pytest.raises(ConfigError, match="exists: choose another folder, or --force"):
        make(tmp_path)
    assert (tmp_path / "tidemill.toml").read_text() == TOML
    assert make(tmp_path, force=True).configuration.settings.project.data == "data.csv"
    with pytest.raises(ConfigError, match="--target z"):
        make(tmp_path, target="z", directory=tmp_path / "new")
    with pytest.raises(ConfigError, match=r"--set: tune\.metric 'rmse' does not fit a binary target"):
        make(tmp_path, directory=tmp_path / "new", overrides={"tune.metric": "rmse"})
    assert not (tmp_path / "new").exists()


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


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file in the way of the project's folder is one clear line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        make(tmp_path, directory=tmp_path / "file" / "project")
    assert pl.read_csv(tmp_path / "data.csv").height == 4
