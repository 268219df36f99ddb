"""The joiner against a slow twin, under any interleaving of the feeds, any restart, and any forgetting that is allowed."""

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tidemill.core.joining import Counters, Joiner, Observation

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
        self.joiner = Joiner(WAIT)
        self.observed: list[Observation] = []
        self.commit()

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
        left = iter(chunk)
        found = getattr(self.joiner, f"feed_{table}")(left, room)
        assert len(found) <= room
        self.fed[table] += len(chunk) - len(list(left))
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
        self.joiner = Joiner(WAIT)
        since = self.settled() - 3 * WAIT
        done = {(one.request_id, one.offset) for one in observed} if known else set()
        for name in TABLES:
            rows = [row for row in self.tables[name][: fed[name]] if row[3 if name == "requests" else 1] >= since]
            if name == "requests":
                rows = [(*row[:5], None if (row[0], row[2]) in done else row[5]) for row in rows]
            getattr(self.joiner, f"feed_{name}")(iter(rows), -1)
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


TestJoining = JoiningMachine.TestCase
TestJoining.settings = settings(max_examples=250, stateful_step_count=60, deadline=None)
