"""What commands print where a terminal or a disk is not as usual."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process


def tidemill(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder, as a script would start it."""
    return subprocess.run(
        [sys.executable, "-m", "tidemill", *arguments],
        check=False,
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    """Columns in another script do not break ``init`` where the output is ASCII (a cron job, a container)."""
    rows = "".join(f"{number},{number % 2}\n" for number in range(20))
    (tmp_path / "t.csv").write_text(f"größe,y\n{rows}", encoding="utf-8")
    made = tidemill(tmp_path, "init", "t.csv", "--target", "y", PYTHONIOENCODING="ascii")
    assert (made.returncode, made.stderr) == (0, "")
    assert "1: gr\\xf6\\xdfe" in made.stdout
    shown = tidemill(tmp_path, "config", PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, "")


def test_mlflow_in_a_folder_that_takes_nothing_is_one_line(tmp_path: Path) -> None:
    """Its store cannot be made there: exit code 3, and which file."""
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{number},{number % 2}\n" for number in range(20)))
    assert tidemill(tmp_path, "init", "t.csv", "--target", "y").returncode == 0
    (tmp_path / "disk").touch()
    done = tidemill(tmp_path, "mlflow", TIDEMILL_TRACKING__URI="sqlite:///disk/mlflow.db")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("tidemill: MLflow's store ")
