"""Temporary folders: gone with their owner, and what a killed one left is swept away by the next."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tidemill.temporary import SWEEP_SECONDS, TemporaryFolder, remove_all
from tidemill.testing.ending import ending

OLD = time.time() - 2 * SWEEP_SECONDS
LEAVE = (
    "import os, sys; from pathlib import Path; from tidemill.temporary import TemporaryFolder\n"
    "folder = TemporaryFolder('t-', Path(sys.argv[1])); (folder.path / 'rows').write_text('x')\n"
    "print(folder.path, flush=True); os._exit(9) if len(sys.argv) > 2 else sys.stdin.read()\n"
)


def test_what_a_killed_owner_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    """Not before: a new folder is not locked at once."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVE, str(tmp_path), "die"], check=False, stdout=subprocess.PIPE, text=True
    )
    left = Path(done.stdout.strip())
    with TemporaryFolder("t-", tmp_path) as mine:
        assert left.exists()
    assert not mine.exists()
    os.utime(left, (OLD, OLD))
    with TemporaryFolder("other-", tmp_path):
        assert left.exists()
    with TemporaryFolder("t-", tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]


def test_what_a_living_process_holds_stays(tmp_path: Path) -> None:
    """However old it is; and what is not ours to open, or no folder, is passed over."""
    (tmp_path / "t-file").write_text("x")
    command, pipe = [sys.executable, "-c", LEAVE, str(tmp_path)], subprocess.PIPE
    with ending(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) as owner:
        assert owner.stdout is not None
        held = Path(owner.stdout.readline().strip())
        os.utime(held, (OLD, OLD))
        with TemporaryFolder("t-", tmp_path):
            assert (held / "rows").read_text() == "x"
        owner.kill()
    assert (tmp_path / "t-file").exists()


def test_an_end_that_unwinds_nothing_removes_them(tmp_path: Path) -> None:
    """What a signal's last resort calls; closing again does no harm."""
    folders = [TemporaryFolder("a-", tmp_path), TemporaryFolder("b-", tmp_path)]
    remove_all()
    assert list(tmp_path.iterdir()) == []
    for folder in folders:
        folder.close()
