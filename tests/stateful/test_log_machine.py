"""A log against plain lists: whatever is done in whatever order, both say the same."""

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tidemill.errors import ConfigError
from tidemill.log.base import Message, Topic, lag, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.log.sqlite_check import check

TOPICS = ("a", "b", "out")
GROUPS = ("g", "h")
contents = st.lists(st.tuples(st.none() | st.binary(max_size=3), st.binary(max_size=20)), max_size=5)


class LogMachine(RuleBasedStateMachine):
    """Two groups read topics "a" and "b" and write to "out"; the model is a list a topic and a number a position."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="tidemill-")
        self.root = Path(self.folder.name)
        self.lists: dict[str, list[tuple[bytes | None, bytes]]] = {topic: [] for topic in TOPICS}
        self.committed: dict[str, dict[tuple[str, int], int]] = {group: {} for group in GROUPS}
        self.readers: dict[str, Any] = {}
        self.standing: dict[str, dict[str, int]] = {}
        self.sought: dict[str, dict[str, int]] = defaultdict(dict)

    @initialize()
    def open(self) -> None:
        """A new log."""
        self.log = SqliteLog(self.root, "normal")
        self.log.create([Topic(topic) for topic in TOPICS])

    def reader(self, group: str) -> Any:
        """The group's reader, joined when it is first needed."""
        if group not in self.readers:
            self.readers[group] = self.log.join(group, ["a", "b"])
            self.sought[group] = {}
            self.return_to_commit(group)
        return self.readers[group]

    def return_to_commit(self, group: str) -> None:
        """The model of a reader that starts, or whose commit failed."""
        committed = self.committed[group]
        self.standing[group] = {t: committed.get((t, 0), 0) for t in ("a", "b")} | self.sought[group]

    @rule(topic=st.sampled_from(TOPICS), contents=contents)
    def append(self, topic: str, contents: list[tuple[bytes | None, bytes]]) -> None:
        """Append to one topic."""
        self.log.append([Message(topic, value, key) for key, value in contents])
        self.lists[topic].extend(contents)

    @rule(group=st.sampled_from(GROUPS), limit=st.integers(1, 7))
    def poll(self, group: str, limit: int) -> None:
        """What comes stands next in the lists, and something comes where something is there."""
        batch = self.reader(group).poll(limit, 0)
        standing = self.standing[group]
        there = sum(len(self.lists[topic]) - standing[topic] for topic in standing)
        assert len(batch) == min(limit, there)
        for record in batch.records():
            assert record.offset == standing[record.topic]
            assert (record.key, record.value) == self.lists[record.topic][record.offset]
            standing[record.topic] += 1
        assert batch.positions == {(topic, 0): position for topic, position in standing.items()}

    @rule(group=st.sampled_from(GROUPS), outputs=contents)
    def commit(self, group: str, outputs: list[tuple[bytes | None, bytes]]) -> None:
        """Outputs and positions, together."""
        self.reader(group).commit([Message("out", value, key) for key, value in outputs])
        self.lists["out"].extend(outputs)
        for topic, position in self.standing[group].items():
            if position != self.committed[group].get((topic, 0), 0):
                self.committed[group][topic, 0] = position
                self.sought[group].pop(topic, None)

    @rule(group=st.sampled_from(GROUPS))
    def fail_to_commit(self, group: str) -> None:
        """Nothing is written; the reader goes on from its last commit."""
        with pytest.raises(ConfigError):
            self.reader(group).commit([Message("out", b"half"), Message("nowhere", b"")])
        self.return_to_commit(group)

    @rule(group=st.sampled_from(GROUPS), topic=st.sampled_from(("a", "b")), part=st.floats(0, 1))
    def seek(self, group: str, topic: str, part: float) -> None:
        """To anywhere in a topic."""
        reader = self.reader(group)
        position = round(part * len(self.lists[topic]))
        reader.seek({(topic, 0): position})
        self.standing[group][topic] = self.sought[group][topic] = position

    @rule(group=st.sampled_from(GROUPS), politely=st.booleans())
    def drop(self, group: str, politely: bool) -> None:
        """A reader that closes, or that is gone."""
        reader = self.readers.pop(group, None)
        if politely and reader is not None:
            reader.close()

    @rule()
    def reopen(self) -> None:
        """Close the log and open it again."""
        self.readers.clear()
        self.log.close()
        self.log = SqliteLog(self.root, "normal")

    @invariant()
    def the_log_equals_the_lists(self) -> None:
        """Records, bounds, positions and lags."""
        if not hasattr(self, "log"):
            return
        for topic in TOPICS:
            assert [(r.key, r.value) for r in read_all(self.log, topic)] == self.lists[topic]
            assert self.log.bounds(topic) == {0: (0, len(self.lists[topic]))}
        for group in GROUPS:
            assert self.log.committed(group) == self.committed[group]
            expected = {t: len(self.lists[t]) - self.committed[group].get((t, 0), 0) for t in ("a", "b")}
            assert lag(self.log, group, ["a", "b"]) == expected

    def teardown(self) -> None:
        """The audit, at the end of every run."""
        if hasattr(self, "log"):
            self.log.close()
            assert check(self.root).problems == []
        self.folder.cleanup()


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
