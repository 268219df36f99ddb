"""Every backend of the log keeps the same contract."""

from functools import partial
from pathlib import Path

import pytest

from tidemill.log.base import Log
from tidemill.log.kafka import KafkaLog
from tidemill.log.sqlite import SqliteLog
from tidemill.testing.log_contract import LogContract, LogFactory


class TestSqliteLog(LogContract):
    """A folder per test."""

    @pytest.fixture
    def log_factory(self, tmp_path: Path) -> LogFactory:
        """Opens the same folder each time."""
        return partial(SqliteLog, tmp_path / "log")


@pytest.mark.kafka
class TestKafkaLog(LogContract):
    """A broker for all, topics of its own for each test."""

    @pytest.fixture
    def log_factory(self, bootstrap: str, tmp_path: Path) -> LogFactory:
        """Opens the same log each time."""
        return partial(KafkaLog, bootstrap, "contract", tmp_path / "slots")


class TestKafkaLogOfThreePartitions(TestKafkaLog):
    """Everything holds by key and partition, too."""

    partitions = 3


class TestKafkaLogAtLeastOnce(TestKafkaLog):
    """Without crashes, this delivery differs in nothing but that a commit is two steps."""

    @pytest.fixture
    def log_factory(self, bootstrap: str, tmp_path: Path) -> LogFactory:
        """Opens the same log each time."""
        return partial(KafkaLog, bootstrap, "contract", tmp_path / "slots", delivery="at_least_once")


def test_each_is_a_log(tmp_path: Path) -> None:
    """The type checker holds the classes against the protocol."""
    logs: list[Log] = [SqliteLog(tmp_path), KafkaLog("127.0.0.1:1", "none", tmp_path)]
    for log in logs:
        log.close()
