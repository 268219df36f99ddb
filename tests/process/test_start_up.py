"""What a start imports: the help page next to nothing, a predictor that answers nothing that only training needs.

How long that takes is measured by ``bench/start.py``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.log.base import Message, read_all
from tidemill.testing.faults import quick_project, wait_for
from tidemill.wiring import Wiring

pytestmark = pytest.mark.process

SHOW_MODULES = """
import atexit, os, sys
@atexit.register
def show():
    with open(os.environ["SHOWN"], "w") as file:
        file.write(" ".join(name for name, module in sys.modules.items() if module is not None))
from tidemill.cli.main import main
main()
"""
"""tidemill, which writes down at its end what it has imported."""

HEAVY = {
    *("lightgbm", "scipy", "sklearn", "narwhals", "pandas", "polars", "pyarrow", "deltalake", "optuna"),
    *("mlflow", "sqlalchemy", "requests", "rich", "pydantic", "matplotlib"),
}
"""What trains, tracks or shows; any of these would cost a replica 0.1 to 5 s and 10 to 200 MB."""


def packages(shown: Path) -> set[str]:
    """The top-level packages among the modules that were written down, without the standard library."""
    return {name.partition(".")[0] for name in shown.read_text().split()} - set(sys.stdlib_module_names)


def start(shown: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """tidemill in a fresh interpreter."""
    command = [sys.executable, "-c", SHOW_MODULES, *arguments]
    return subprocess.Popen(command, env={**os.environ, "SHOWN": str(shown)}, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("arguments", [["--help"], ["log", "--help"], ["predictor", "--help"]])
def test_the_help_imports_the_command_line_only(tmp_path: Path, arguments: list[str]) -> None:
    """Nothing of other packages but what every interpreter starts with, and of its own the commands and the errors."""
    shown, bare = tmp_path / "shown", tmp_path / "bare"
    assert start(shown, *arguments).wait(30) == 0
    listing = "import sys; open(sys.argv[1], 'w').write(' '.join(sys.modules))"
    subprocess.run([sys.executable, "-c", listing, str(bare)], check=True)
    assert packages(shown) - packages(bare) == {"tidemill"}
    own = {name for name in shown.read_text().split() if name.startswith("tidemill.")}
    assert {name for name in own if not name.startswith("tidemill.cli")} == {"tidemill.errors"}


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_a_predictor_that_answers_has_imported_nothing_of_the_training(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """From the start to an answer, whichever log it reads."""
    url = f"kafka://{request.getfixturevalue('bootstrap')}" if kind == "kafka" else "sqlite:log"
    project, shown = tmp_path / "project", tmp_path / "shown"
    [value, *_] = quick_project(project, f"start-{kind}", {"stream.url": url})
    subprocess.run([sys.executable, "-m", "tidemill", "train", "-p", str(project)], check=True, stdout=subprocess.DEVNULL)
    wiring = Wiring(project)
    try:
        wiring.log.append([Message(wiring.topics.requests, value, b"first")])
        process = start(shown, "predictor", "-p", str(project))
        try:
            wait_for(lambda: read_all(wiring.log, wiring.topics.predictions), "the first answer", 60)
        finally:
            process.terminate()
            assert process.wait(30) == 0
    finally:
        wiring.close()
    assert packages(shown) & {"tidemill", "numpy", "msgspec"} == {"tidemill", "numpy", "msgspec"}
    assert not packages(shown) & HEAVY
    assert ("confluent_kafka" in packages(shown)) == (kind == "kafka")
