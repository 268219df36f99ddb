"""``tidemill init``: a new project's files, its name, and what is refused before any is written."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tidemill.configuration import Configuration, load, make_settings
from tidemill.core.inference import Choices
from tidemill.errors import ConfigError
from tidemill.new_project import NewProject, init_project
from tidemill.settings import Project, Stream

TOML = '[project]\nname = "adult"\ndata = "adult.csv"\n'


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


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file in the way of the project's folder is one clear line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        make(tmp_path, directory=tmp_path / "file" / "project")
    assert pl.read_csv(tmp_path / "data.csv").height == 4


def test_settings_of_librdkafka_given_to_init(tmp_path: Path) -> None:
    """``--set`` takes them with and without quotes, as texts, and the new project has them."""
    overrides = {
        "stream.url": "kafka://a:1",
        "stream.kafka.sasl.username": "me",
        'stream.kafka."sasl.password"': "file:kafka.password",
    }
    stream = make(tmp_path, overrides=overrides).configuration.settings.stream
    assert stream == Stream(url="kafka://a:1", kafka={"sasl.username": "me", "sasl.password": "file:kafka.password"})
    with pytest.raises(ConfigError, match=r"stream\.kafka: must name one of its settings, as in stream\.kafka\.security"):
        make_settings({"project.name": "a", "project.data": "b", "stream.kafka": "x"})
