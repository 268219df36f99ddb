"""What a setting names: found, refused in one line, and a person's own functions that may fail."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tidemill.core.inference import Choices
from tidemill.errors import ConfigError
from tidemill.new_project import init_project
from tidemill.plugins import Plugins, callback
from tidemill.wiring import LEARNERS, PROPOSERS, Wiring

HOOKS = """
seen = []
def good(value): seen.append(value)
def bad(value): raise ValueError(value)
"""


def test_a_built_in_name_is_found_and_another_is_refused() -> None:
    """With all that there are, and the one that was meant."""
    plugins = Plugins("learner", {"lightgbm": int, "forest": float})
    assert plugins.find("forest") is float
    plugins.check("forest", "tune.learner")
    with pytest.raises(ConfigError, match=r"^learner 'forrest' is not one of lightgbm, forest; did you mean 'forest'\?$"):
        plugins.find("forrest")
    with pytest.raises(ConfigError, match=r"^tune\.learner: learner 'gbm' is not one of"):
        plugins.check("gbm", "tune.learner")


def test_an_installed_package_adds_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point, as its metadata has it."""
    (tmp_path / "grid_search.py").write_text("def make(space, seed): return 'a proposer'\n")
    metadata = tmp_path / "grid_search-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: grid-search\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tidemill.proposers]\ngrid = grid_search:make\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert PROPOSERS.names()[-1] == "grid"
    PROPOSERS.check("grid", "tune.proposer")
    assert PROPOSERS.find("grid")(None, 0) == "a proposer"  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize(("key", "value"), [("learner", "lightgbm, xgbost"), ("proposer", "optunaa")])
def test_a_name_that_is_none_is_refused_when_a_project_opens(tmp_path: Path, key: str, value: str) -> None:
    """It says which setting, from where, and what there is."""
    (tmp_path / "data.csv").write_text("x,y\n" + "1,0\n2,1\n" * 20)
    init_project(tmp_path / "data.csv", tmp_path / "p", Choices(target="y"), "p", {f"tune.{key}": value})
    known = (LEARNERS if key == "learner" else PROPOSERS).names()
    wrong = value.rsplit(", ", maxsplit=1)[-1]
    with pytest.raises(ConfigError) as refused:
        Wiring(tmp_path / "p")
    assert str(refused.value).startswith(f"tune.{key} (tidemill.toml): {key} '{wrong}' is not one of {', '.join(known)}")
    assert "did you mean" in str(refused.value)


def test_a_persons_function_is_called_and_may_fail(tmp_path: Path) -> None:
    """What it raises is logged and stops nothing."""
    (tmp_path / "my_hooks.py").write_text(
        "seen = []\ndef good(value): seen.append(value)\ndef bad(value): raise ValueError(value)\n"
    )
    callback(tmp_path, "my_hooks:good", "tune.on_trial")(1)
    import my_hooks  # type: ignore[import-not-found]

    assert my_hooks.seen == [1]
    with capture_logs() as logs:
        callback(tmp_path, "my_hooks:bad", "tune.on_trial")("x")
    assert [(log["event"], log["error"]) for log in logs] == [("callback_failed", "ValueError: x")]
    callback(tmp_path, "", "tune.on_trial")(1)


@pytest.mark.parametrize("text", ["my_hooks", "nowhere:f", "os:nothing", "os:name", "broken:f", ":"])
def test_a_function_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """In one line that names the setting."""
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=r"^tune\.on_trial = '"):
        callback(tmp_path, text, "tune.on_trial")
