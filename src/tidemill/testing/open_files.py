"""What this process has open, by Linux's own list."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIST = Path("/proc/self/fd")


def open_files(folder: Path) -> list[str]:
    """Those below a folder, or that have no name there any more."""
    return [target for target in _targets() if target.startswith(str(folder))]


@contextmanager
def nothing_stays_open() -> Iterator[None]:
    """Fails where something is open at the end that was not at the beginning, whatever it is."""
    before = Counter(_targets())
    yield
    assert not Counter(_targets()) - before  # noqa: S101


def _targets() -> Iterator[str]:
    if not LIST.exists():
        pytest.skip("what is open can be seen on Linux only")
    for name in os.listdir(LIST):
        try:
            yield os.readlink(LIST / name)
        except FileNotFoundError:  # the list itself
            continue
