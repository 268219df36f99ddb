"""Every backend of the log keeps the same contract."""

from functools import partial
from pathlib import Path

import pytest

from tidemill.log.base import Log
from tidemill.log.sqlite import SqliteLog
from tidemill.testing.log_contract import LogContract, LogFactory


class TestSqliteLog(LogContract):
    """A folder per test."""

    @pytest.fixture
    def log_factory(self, tmp_path: Path) -> LogFactory:
        """Opens the same folder each time."""
        return partial(SqliteLog, tmp_path / "log")


def test_it_is_a_log(tmp_path: Path) -> None:
    """The type checker holds the class against the protocol."""
    log: Log = SqliteLog(tmp_path)
    log.close()
