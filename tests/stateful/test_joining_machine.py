"""Both joiners against a slow twin, under any interleaving of the feeds, any restart, and any forgetting that is allowed."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tidemill.core.joining import Counters, Joiner, Observation
from tidemill.lake import COLUMNS
from tidemill.roles.joined import ColumnJoiner

WAIT = 10
TABLES = ("requests", "predictions", "outcomes")
ids = st.sampled_from("abc")


def twin(requests: list[Any], predictions: list[Any], outcomes: list[Any]) -> tuple[set[Any], dict[str, int]]:
    """What must come of these rows: (id, offset of the request, answer, label) of each observation, and the counters."""
    observed, counted = set(), Counter[str]()
    for id in "abc":
        openings, last = [], None
        for row in (row for row in requests if row[0] == id):
            if last is not None and row[3] - last <= 2 * WAIT:
                counted["duplicate_requests"] += 1
            else:
                openings.append(row)
            last = row[3]
        for opening in openings:
            answers = [row for row in predictions if row[0] == id and abs(row[1] - opening[3]) <= WAIT]
            labels = [row for row in outcomes if row[0] == id and abs(row[1] - opening[3]) <= WAIT]
            counted["duplicate_predictions"] += len(answers[1:])
            counted["duplicate_outcomes"] += sum(row[2] == labels[0][2] for row in labels[1:])
            counted["conflicting_outcomes"] += sum(row[2] != labels[0][2] for row in labels[1:])
            counted["late_outcomes"] += sum(row[0] == id and WAIT < row[1] - opening[3] <= 2 * WAIT for row in outcomes)
            if answers and labels:
                observed.add((id, opening[2], answers[0][2], labels[0][2]))
    return observed, {name: counted[name] for name in Counters.__struct_fields__}


class JoiningMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000
        self.tables: dict[str, list[Any]] = {name: [] for name in TABLES}
        self.fed = dict.fromkeys(TABLES, 0)
        self.joiner: Any = self.new_joiner()
        self.observed: list[Observation] = []
        self.commit()

    def new_joiner(self) -> Any:
        return Joiner(WAIT)

    def take(self, table: str, rows: list[Any], room: int) -> tuple[list[Observation], int]:
        """The observations that the rows complete, and how many were taken."""
        left = iter(rows)
        found = getattr(self.joiner, f"feed_{table}")(left, room)
        return found, len(rows) - len(list(left))

    @rule(by=st.sampled_from([0, 1, 4, 9, 10, 11, 15, 20, 21, 40]))
    def time_passes(self, by: int) -> None:
        self.now += by

    @rule(id=ids)
    def request(self, id: str) -> None:
        rows = self.tables["requests"]
        rows.append((id, 0, len(rows), self.now, self.now, b"x"))

    @rule(id=ids)
    def prediction(self, id: str) -> None:
        rows = self.tables["predictions"]
        rows.append((id, self.now, (len(rows), 0.5)))

    @rule(id=ids, label=st.sampled_from(["0", "1"]))
    def outcome(self, id: str, label: str) -> None:
        self.tables["outcomes"].append((id, self.now, label, None))

    @rule(table=st.sampled_from(TABLES), rows=st.integers(1, 20), room=st.integers(1, 3))
    def feed(self, table: str, rows: int, room: int) -> None:
        chunk = self.tables[table][self.fed[table] : self.fed[table] + rows]
        found, taken = self.take(table, chunk, room)
        assert len(found) <= room
        self.fed[table] += taken
        self.observed += found

    @rule()
    def feed_everything(self) -> None:
        for table in TABLES:
            self.feed(table, len(self.tables[table]), len(self.tables["requests"]) + 1)

    @rule()
    def commit(self) -> None:
        self.committed = (
            dict(self.fed),
            list(self.observed),
            {name: getattr(self.joiner.counters, name) for name in Counters.__struct_fields__},
        )

    @rule()
    def forget(self) -> None:
        self.joiner.forget(self.settled())

    @rule(known=st.booleans())
    def restart(self, known: bool) -> None:
        """Back to the last commit, from the rows before it that can still matter."""
        fed, observed, counted = self.committed
        self.fed, self.observed = dict(fed), list(observed)
        self.teardown()
        self.joiner = self.new_joiner()
        since = self.settled() - 4 * WAIT
        done = {(one.request_id, one.offset) for one in observed} if known else set()
        for name in TABLES:
            rows = [row for row in self.tables[name][: fed[name]] if row[3 if name == "requests" else 1] >= since]
            if name == "requests":
                rows = [(*row[:5], None if (row[0], row[2]) in done else row[5]) for row in rows]
            assert self.take(name, rows, len(self.tables["requests"]) + 1)[1] == len(rows)
        self.joiner.forget(self.settled())
        self.joiner.counters = Counters(**counted)

    def settled(self) -> Any:
        """No row to come is older: the oldest that was not fed yet, or now."""
        firsts = [rows[self.fed[name]] for name, rows in self.tables.items() if self.fed[name] < len(rows)]
        return min([self.now, *(row[3] if len(row) == 6 else row[1] for row in firsts)])

    @invariant()
    def the_same_as_the_twin(self) -> None:
        observed, counted = twin(*(self.tables[name][: self.fed[name]] for name in TABLES))
        assert Counter((one.request_id, one.offset, one.answer, one.outcome) for one in self.observed) == Counter(observed)
        assert counted == {name: getattr(self.joiner.counters, name) for name in Counters.__struct_fields__}


class ColumnJoiningMachine(JoiningMachine):
    """The same over columns: what comes of it may not depend on how the rows are cut into frames."""

    def new_joiner(self) -> ColumnJoiner:
        return ColumnJoiner(WAIT, Path(tempfile.gettempdir()), 1)

    def teardown(self) -> None:
        self.joiner.close()

    def take(self, table: str, rows: list[Any], room: int) -> tuple[list[Observation], int]:
        found: list[Observation] = []
        taken = 0

        def left() -> int:
            return room - len(found)

        for some, count in self.joiner.feed(table, frame(table, rows), left):
            found.extend(observation(row) for row in some.iter_rows(named=True))
            taken += count
            if len(found) == room:
                break
        return found, taken

    @invariant()
    def what_waits_is_counted(self) -> None:
        """No more than what has been fed; nothing below zero."""
        assert 0 <= self.joiner.waiting_requests <= self.fed["requests"]
        assert 0 <= self.joiner.early_outcomes <= self.fed["outcomes"]


def frame(table: str, rows: list[Any]) -> pl.DataFrame:
    """Rows of a feed as the lake has them."""
    if table == "predictions":
        columns: dict[str, Any] = {"request_id": pl.String, "time_ms": pl.Int64, "version": pl.Int64, "bundle": pl.String}
        scores = pl.Series("scores", [[answer[1]] for *_, answer in rows], dtype=pl.Array(pl.Float64, 1))
        rows = [(id, time, answer[0], f"bundle{answer[0] % 3}") for id, time, answer in rows]
        return pl.DataFrame(rows, schema=columns, orient="row").with_columns(scores)
    kinds = COLUMNS["requests" if table == "requests" else "outcomes"]
    fed = {name: kind for name, kind in kinds.items() if table == "requests" or name not in ("partition", "offset")}
    return pl.DataFrame(rows, schema=fed, orient="row")


def observation(row: dict[str, Any]) -> Observation:
    """A row of observations as the other joiner gives it; everything in it is of the same request."""
    assert (row["event_at"], row["features"], row["bundle"]) == (row["requested_at"], b"x", f"bundle{row['version'] % 3}")
    return Observation(
        row["request_id"],
        row["request_partition"],
        row["request_offset"],
        row["features"],
        row["outcome"],
        row["event_at"],
        row["requested_at"],
        row["outcome_at"],
        (row["version"], *row["scores"]),
    )


def test_a_chain_of_duplicates_stays_one_request_where_its_id_is_moved_apart() -> None:
    """Its last duplicate is more than two waits from the request itself."""
    state = ColumnJoiningMachine()
    state.request("a")
    state.time_passes(19)
    state.prediction("a")
    state.prediction("a")
    state.request("a")
    state.time_passes(4)
    state.feed("requests", 1, 1)
    state.request("a")
    state.feed_everything()
    state.the_same_as_the_twin()
    state.teardown()


TestJoining = JoiningMachine.TestCase
TestJoining.settings = settings(max_examples=250, stateful_step_count=60, deadline=None)
TestColumnJoining = ColumnJoiningMachine.TestCase
TestColumnJoining.settings = settings(max_examples=250, stateful_step_count=60, deadline=None)
