"""The loop of every role: what it does while the log is away, and with an output that the log refuses."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tidemill.errors import BadRecord, Unavailable
from tidemill.log.base import Batch, Message, Positions, Reader, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.roles import loop
from tidemill.roles.loop import run_loop

REFUSED_BYTES = 100


class Moody:
    """A reader that refuses outputs above a size, and is away for as many calls as it is told."""

    def __init__(self, reader: Reader, join: Callable[[], Reader]) -> None:
        self._reader = reader
        self._join = join
        self.away = 0
        self.commits: list[int] = []

    def poll(self, limit: int, timeout: float) -> Batch:
        self._fail_if_away()
        return self._reader.poll(limit, timeout)

    def commit(self, outputs: Sequence[Message] = ()) -> None:
        self._fail_if_away()
        if any(len(output.value) > REFUSED_BYTES for output in outputs):
            self._start_over()
            raise BadRecord("refused_by_log", "", "too large")
        self.commits.append(len(outputs))
        self._reader.commit(outputs)

    def seek(self, positions: Positions) -> None:
        self._reader.seek(positions)

    def close(self) -> None:
        self._reader.close()

    def _fail_if_away(self) -> None:
        if self.away:
            self.away -= 1
            self._start_over()
            raise Unavailable("away")

    def _start_over(self) -> None:
        """As after any error: on from the last commit."""
        self._reader.close()
        self._reader = self._join()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    found = SqliteLog(tmp_path / "log", "normal")
    found.create([Topic("in"), Topic("out"), Topic("letters")])
    yield found
    found.close()


@pytest.fixture
def reader(log: SqliteLog) -> Iterator[Moody]:
    found = Moody(log.join("role", ["in"]), lambda: log.join("role", ["in"]))
    yield found
    found.close()


def turn(
    reader: Moody, handle: Callable[[Batch], list[Message]], done: Callable[[], bool], letters: str = "letters"
) -> None:
    """Run the loop until it is idle and ``done``."""
    stop = threading.Event()

    def idle() -> None:
        if done():
            stop.set()

    run_loop("role", reader, handle, stop, 64, 0.01, idle, letters)


def copied(batch: Batch) -> list[Message]:
    return [Message("out", value, key) for value, key in zip(batch.values, batch.keys, strict=True)]


def test_a_poison_output_is_isolated_and_its_neighbours_are_answered(log: SqliteLog, reader: Moody) -> None:
    """Two of 200 records make outputs that the log refuses: two dead letters, 198 answers, in order, each once."""
    values = [b"%d" % number for number in range(200)]
    poison = {17, 180}

    def handle(batch: Batch) -> list[Message]:
        return [Message("out", value * (REFUSED_BYTES if int(value) in poison else 1)) for value in batch.values]

    log.append([Message("in", value, b"k") for value in values])
    turn(reader, handle, lambda: True)
    assert [r.value for r in read_all(log, "out")] == [v for n, v in enumerate(values) if n not in poison]
    letters = read_all(log, "letters")
    assert [letter.value for letter in letters] == [values[17], values[180]]
    assert {dict(letter.headers)["reason"] for letter in letters} == {b"refused_by_log"}
    assert max(reader.commits) > 16, "batches must grow again behind the poison"


def test_a_letter_that_is_refused_too_goes_without_the_records_bytes(log: SqliteLog, reader: Moody) -> None:
    """The record stays where it was; the letter names its place."""
    log.append([Message("in", b"x" * 2 * REFUSED_BYTES, b"k"), Message("in", b"good")])
    turn(reader, copied, lambda: True)
    (letter,) = read_all(log, "letters")
    assert (letter.value, dict(letter.headers)["offset"]) == (b"", b"0")
    assert [record.value for record in read_all(log, "out")] == [b"good"]


def test_without_a_topic_for_letters_a_refused_output_ends_the_role(log: SqliteLog, reader: Moody) -> None:
    """Nothing is skipped in silence."""
    log.append([Message("in", b"x" * 2 * REFUSED_BYTES)])
    with pytest.raises(BadRecord, match="refused_by_log"):
        turn(reader, copied, lambda: True, letters="")
    assert sum(log.committed("role").values()) == 0


def test_while_the_log_is_away_the_loop_waits_and_nothing_is_lost_or_doubled(
    log: SqliteLog, reader: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polls and commits fail, the batch comes again; one line tells of it, not one a try."""
    monkeypatch.setattr(loop, "PAUSE_SECONDS_MIN", 0.001)
    lines: list[str] = []
    monkeypatch.setattr(loop.logger, "warning", lambda event, **_: lines.append(event), raising=False)
    values = [b"%d" % number for number in range(10)]
    log.append([Message("in", value) for value in values])
    handled: list[int] = []

    def handle(batch: Batch) -> list[Message]:
        handled.append(len(batch))
        if len(handled) == 1:
            reader.away = 4  # this commit fails, and the polls after it
        return copied(batch)

    turn(reader, handle, lambda: True)
    assert handled == [10, 10]
    assert [record.value for record in read_all(log, "out")] == values
    assert lines == ["log_unavailable"]


def test_what_a_role_cannot_reach_ends_it(log: SqliteLog, reader: Moody) -> None:
    """Only the reader's own errors are waited for: a batch that was not handled must never be passed over."""

    def handle(_: Batch) -> list[Message]:
        raise Unavailable("the lake is away")

    log.append([Message("in", b"1")])
    with pytest.raises(Unavailable, match="the lake"):
        turn(reader, handle, lambda: True)
    assert sum(log.committed("role").values()) == 0
