"""The join over columns: as ``core/joining.py`` has it, thousands of rows at a time, and on disk.

An ordinary id (one request, one prediction, one outcome, each within the wait; repetitions of them) is a slot: a row of
arrays on disk, found by its key. One that is not, say because its outcome came too late, is moved apart: from then on a
``Joiner`` has it, in memory. What comes of an id is the same in either place (``tests/stateful``).

Memory thus does not follow the history: what a slot holds is some 150 bytes on disk, beside the features while it waits.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tidemill.core.joining import Counters, Joiner, Observation
from tidemill.core.keys import Hashes, KeyTable, Slots
from tidemill.lake import COLUMNS
from tidemill.roles.scratch import Columns, Texts
from tidemill.roles.tail import Feed

Rows = NDArray[np.int64]
"""Places in the frame that is fed."""

ASKED, ANSWERED, LABELLED, WAITING, NOTED, APART, HELD = (np.uint8(1 << bit) for bit in range(7))
"""A slot's flags: it has a request, a prediction, an outcome; its features are kept, for it may become an observation; its
label is kept; a ``Joiner`` has it; it belongs to an id.
"""
WHOLE = ASKED | ANSWERED | LABELLED
ROWS_MIN = 1 << 12
PIECE = 1 << 18
"""Slots that are looked at in one go."""
LET_GO_ROWS = 100_000
"""After so many rows the pages that they needed are given back; what is needed again costs a microsecond a page."""

OBSERVED = {name: kind for name, kind in COLUMNS["observations"].items() if name != "number"}


_MARKS = ("flags", "label")


class _Label:
    """An outcome's label: two that say the same are equal. The text may have been dropped by then."""

    __slots__ = ("hash", "text")

    def __init__(self, hash: int, text: str) -> None:
        self.hash = hash
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Label) and self.hash == other.hash

    def __hash__(self) -> int:
        return self.hash


class _Openings:
    """The slots: which are in use, and their columns.

    What an outcome changes, long after the rest was written, is kept densely: a page that a row is written to is written to
    the disk as a whole, and costs 10 to 50 microseconds where there are many.
    """

    def __init__(self, folder: Path, scores: int) -> None:
        wide, narrow = np.int64, np.int32
        self.marks = Columns(folder, {"flags": np.uint8, "label": np.uint64}, ROWS_MIN)
        self.columns = Columns(
            folder,
            {
                "first": np.uint64,
                "second": np.uint64,
                "requested": wide,
                "last": wide,
                "answered": wide,
                "told": wide,
                "partition": narrow,
                "offset": wide,
                "event_at": wide,
                "features": wide,
                "features_bytes": narrow,
                "version": wide,
                "bundle": narrow,
                "scores": np.dtype((np.float64, (scores,))),
                "text": wide,
                "text_bytes": narrow,
                "outcome_at": wide,
            },
            ROWS_MIN,
        )
        self._unused = Columns(folder, {"slot": wide}, ROWS_MIN)
        self._folder = folder
        self._table_columns: Columns | None = None
        self._table = KeyTable(self._keys, self._empty, self._held)
        self._used = 0
        self._free = 0
        self._looked = 0

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, name: str) -> NDArray:  # type: ignore[type-arg]
        return self.marks[name] if name in _MARKS else self.columns[name]

    def find(self, first: Hashes, second: Hashes) -> Slots:
        return self._table.find(first, second)

    def add(self, first: Hashes, second: Hashes) -> Slots:
        """Slots for keys that are new; what they hold is not defined, but for their flags."""
        again = min(self._free, len(first))
        self._free -= again
        new = np.arange(self._used, self._used + len(first) - again)
        self._used += len(new)
        while self._used > self.columns.rows:
            for columns in (self.columns, self.marks):
                columns.grow(columns.rows + max(ROWS_MIN, columns.rows // 4))
        slots = np.concatenate([self._unused["slot"][self._free : self._free + again], new])
        self["first"][slots], self["second"][slots] = first, second
        self._table.add(first, slots)
        self["flags"][slots] = HELD
        return slots

    def free(self, slots: Slots) -> None:
        self._table.remove(*self._keys(slots))
        self["flags"][slots] = 0
        if self._free + len(slots) > self._unused.rows:
            self._unused.grow(2 * (self._free + len(slots)))
        self._unused["slot"][self._free : self._free + len(slots)] = slots
        self._free += len(slots)

    def look_through(self) -> Iterator[Slots]:
        """Slots in use in pieces: an eighth of all or more, others than those of the last time."""
        for _ in range(0, max(4 * PIECE, self._used // 8), PIECE):
            start = self._looked if self._looked < self._used else 0
            self._looked = start + PIECE
            yield self._piece(start)

    def _held(self) -> Iterator[Slots]:
        for start in range(0, self._used, PIECE):
            yield self._piece(start)

    def _piece(self, start: int) -> Slots:
        self.let_go()
        return start + np.flatnonzero(self["flags"][start : min(start + PIECE, self._used)])

    def let_go(self) -> None:
        self.columns.let_go()
        self.marks.let_go()
        self._unused.let_go()
        if self._table_columns:
            self._table_columns.let_go()

    def close(self) -> None:
        del self._table
        for columns in (self.columns, self.marks, self._unused, self._table_columns):
            if columns:
                columns.close()

    def _keys(self, slots: Slots) -> tuple[Hashes, Hashes]:
        return self["first"][slots], self["second"][slots]

    def _empty(self, size: int) -> Hashes:
        self._table_columns = Columns(self._folder, {"entries": np.uint64}, size)
        return self._table_columns["entries"]


class ColumnJoiner:
    """The join's state; its files are in ``folder``, without names, until it is closed. ``scores``: how many numbers an
    answer's score has.

    Frames that are fed have the columns of their table that matter here. ``value`` null: the request can no longer become an
    observation. A prediction has ``scores`` as an array, NaN where its answer is to another task.
    """

    def __init__(self, wait_ms: int, folder: Path, scores: int) -> None:
        self._wait = wait_ms
        self._openings = _Openings(folder, scores)
        self._texts = Texts(folder)
        self._apart = Joiner(wait_ms)
        self._apart_ids: dict[int, str] = {}
        self._bundles: dict[str, int] = {}
        self._counters = Counters()
        self._waiting = 0
        self._early = 0
        self._fed = 0

    def close(self) -> None:
        """Give the disk back what it holds. Nothing can be fed afterwards."""
        self._openings.close()
        self._texts.close()

    @property
    def waiting_requests(self) -> int:
        """Requests that may still become an observation."""
        return self._waiting + self._apart.waiting_requests

    @property
    def early_outcomes(self) -> int:
        """Outcomes that wait for a request."""
        return self._early + self._apart.early_outcomes

    @property
    def counters(self) -> Counters:
        """What did not become an observation; to be set after a restart."""
        mine, theirs = self._counters, self._apart.counters
        return Counters(*(getattr(mine, name) + getattr(theirs, name) for name in Counters.__struct_fields__))

    @counters.setter
    def counters(self, counters: Counters) -> None:
        self._counters, self._apart.counters = counters, Counters()

    def feed(self, table: Feed, rows: pl.DataFrame, room: Callable[[], int]) -> Iterator[tuple[pl.DataFrame, int]]:
        """Take rows part by part: the observations that each part completes, without their numbers, and its rows.

        A part completes ``room()`` observations at most, which must be 1 or more, and where it does, ends with the last.
        """
        slots, fresh = self._slots(rows["request_id"])
        plain = self._is_plain(table, slots, rows["time_ms"].to_numpy(), fresh)
        potential = np.cumsum(~plain | (fresh & self._completes(table, slots, rows)))
        start, end = 0, rows.height
        while start < end:
            left = room()
            if plain[start]:
                before = potential[start - 1] if start else 0
                stop = min(end, int(np.searchsorted(potential, before + left)) + 1)
                part = np.arange(start, stop)
                found = self._take(table, rows, part[plain[part]], slots, fresh)
            else:  # one by one: which of them complete an observation is not known before
                stop = start + int(np.argmax(np.append(plain[start:], True)))
                part = np.arange(start, stop)
                found = pl.DataFrame(schema=OBSERVED)
            apart = part[~plain[part]]
            more, taken = self._take_apart(table, rows[apart], slots[apart], left)
            if taken < len(apart):
                stop = int(apart[taken])
            yield pl.concat([found, more]), stop - start
            start = stop
        self._fed += end
        if self._fed >= LET_GO_ROWS:
            self._fed = 0
            self._openings.let_go()

    def forget(self, before_ms: int) -> None:
        """Free what has no future, given that every row to come has a log time of ``before_ms`` or later."""
        self._apart.forget(before_ms)
        gone = [slot for slot, id in self._apart_ids.items() if not self._apart.knows(id)]
        for slot in gone:
            del self._apart_ids[slot]
        self._openings.free(np.array(gone, dtype=np.int64))
        for slots in self._openings.look_through():
            self._forget(slots, before_ms)

    # -- which rows are plain, and which complete an observation

    def _slots(self, ids: pl.Series) -> tuple[Slots, NDArray[np.bool_]]:
        """The slots of the ids, new ones where there was none, and which ids stand there for the first time."""
        first = np.fromiter(map(hash, ids.to_list()), dtype=np.int64, count=len(ids)).view(np.uint64)
        second = ids.hash(1).to_numpy()
        fresh = ids.is_first_distinct().to_numpy()
        slots = self._openings.find(first, second)
        new = np.flatnonzero(fresh & (slots < 0))
        if len(new):
            slots[new] = self._openings.add(first[new], second[new])
        again = np.flatnonzero(slots < 0)
        slots[again] = self._openings.find(first[again], second[again])
        return slots, fresh

    def _is_plain(self, table: Feed, slots: Slots, times: Rows, fresh: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether a slot can hold what comes of the row: the first of its kind, or one that only repeats it.

        Of an id with a row that is not, the rows that repeat one in this frame are not either, so that all keep their order.
        """
        of, wait = self._openings, self._wait
        flags = of["flags"][slots]
        asked, answered, labelled = (_has(flags, flag) for flag in (ASKED, ANSWERED, LABELLED))
        if table == "requests":
            claims = ~answered | (abs(of["answered"][slots] - times) <= wait)
            claims &= ~labelled | (abs(of["told"][slots] - times) <= wait)
            plain = np.where(asked, times - of["last"][slots] <= 2 * wait, claims)
            plain = np.where(fresh, plain, times - np.minimum.accumulate(times) <= 2 * wait)
        else:
            first = fresh & ~asked & ~(answered if table == "predictions" else labelled)
            plain = first | (asked & (abs(times - of["requested"][slots]) <= wait))
        plain &= ~_has(flags, APART)
        return plain & (fresh | ~np.isin(slots, slots[~plain]))

    def _completes(self, table: Feed, slots: Slots, rows: pl.DataFrame) -> NDArray[np.bool_]:
        flags = self._openings["flags"][slots]
        found: NDArray[np.bool_]
        if table == "requests":
            found = ((flags & WHOLE) == (ANSWERED | LABELLED)) & rows["value"].is_not_null().to_numpy()
        else:
            other = ANSWERED if table == "outcomes" else LABELLED
            found = (flags & (WHOLE | WAITING)) == (ASKED | WAITING | other)
        return found

    # -- plain rows

    def _take(self, table: Feed, rows: pl.DataFrame, part: Rows, slots: Slots, fresh: NDArray[np.bool_]) -> pl.DataFrame:
        """Note plain rows in their slots; the observations that they complete."""
        note = {"requests": self._ask, "predictions": self._answer, "outcomes": self._label}[table]
        flag = {"requests": ASKED, "predictions": ANSWERED, "outcomes": LABELLED}[table]
        repeats = part[_has(self._openings["flags"][slots[part]], flag) | ~fresh[part]]
        part = part[~_has(self._openings["flags"][slots[part]], flag) & fresh[part]]
        done = self._completes(table, slots[part], _those(rows, part))
        note(_those(rows, part), slots[part], done)
        if len(repeats):
            self._count(table, rows[repeats], slots[repeats])
        return self._observe(_those(rows, part[done]), slots[part[done]]) if done.any() else pl.DataFrame(schema=OBSERVED)

    def _count(self, table: Feed, rows: pl.DataFrame, slots: Slots) -> None:
        """Rows that only repeat what was noted."""
        counters, of = self._counters, self._openings
        if table == "requests":
            counters.duplicate_requests += len(slots)
            np.maximum.at(of["last"], slots, rows["time_ms"].to_numpy())
        elif table == "predictions":
            counters.duplicate_predictions += len(slots)
        else:
            same = int((of["label"][slots] == _hash(rows["outcome"]).to_numpy()).sum())
            counters.duplicate_outcomes += same
            counters.conflicting_outcomes += len(slots) - same

    def _ask(self, rows: pl.DataFrame, slots: Slots, done: NDArray[np.bool_]) -> None:
        of = self._openings
        for name in ("partition", "offset", "event_at"):
            of[name][slots] = rows[name].to_numpy()
        of["requested"][slots] = of["last"][slots] = rows["time_ms"].to_numpy()
        flags = of["flags"][slots]
        self._early -= int(_has(flags, LABELLED).sum())
        kept = rows["value"].is_not_null().to_numpy()
        of["flags"][slots] = flags | ASKED | np.where(kept, WAITING, np.uint8(0))
        self._waiting += int(kept.sum())
        self._write("features", rows["value"].filter(kept & ~done), slots[kept & ~done])

    def _answer(self, rows: pl.DataFrame, slots: Slots, done: NDArray[np.bool_]) -> None:
        of = self._openings
        of["answered"][slots] = rows["time_ms"].to_numpy()
        of["version"][slots] = rows["version"].to_numpy()
        of["scores"][slots] = rows["scores"].to_numpy()
        codes = {bundle: self._bundles.setdefault(bundle, len(self._bundles)) for bundle in rows["bundle"].unique()}
        of["bundle"][slots] = rows["bundle"].replace_strict(codes, return_dtype=pl.Int32).to_numpy()
        of["flags"][slots] |= ANSWERED

    def _label(self, rows: pl.DataFrame, slots: Slots, done: NDArray[np.bool_]) -> None:
        of = self._openings
        of["label"][slots] = _hash(rows["outcome"]).to_numpy()
        of["told"][slots[~done]] = rows["time_ms"].to_numpy()[~done]
        of["outcome_at"][slots[~done]] = _outcome_at(rows)[~done]
        flags = of["flags"][slots] | LABELLED
        self._early += int((~_has(flags, ASKED)).sum())
        noted = ~done & (_has(flags, WAITING) | ~_has(flags, ASKED))
        of["flags"][slots] = flags | np.where(noted, NOTED, np.uint8(0))
        self._write("text", rows["outcome"].filter(noted).cast(pl.Binary), slots[noted])

    def _observe(self, rows: pl.DataFrame, slots: Slots) -> pl.DataFrame:
        """The observations of slots that are whole; the last row of each is among ``rows``, and holds what was not kept."""
        of = self._openings
        asked, told = "event_at" in rows.columns, "outcome" in rows.columns
        features = rows["value"] if asked else pl.Series(self._read("features", slots), dtype=pl.Binary)
        outcome = rows["outcome"] if told else pl.Series(self._read("text", slots), dtype=pl.Binary)
        scores = pl.Series("scores", of["scores"][slots]).arr.to_list()
        unscored = np.isnan(of["scores"][slots]).any(axis=1)
        if unscored.any():
            scores = scores.to_frame().select(pl.when(~pl.Series(unscored)).then("scores").otherwise(pl.lit([]))).to_series()
        columns = {
            "request_id": rows["request_id"],
            "request_partition": of["partition"][slots],
            "request_offset": of["offset"][slots],
            "features": features,
            "outcome": outcome.cast(pl.String),
            "event_at": of["event_at"][slots],
            "requested_at": of["requested"][slots],
            "outcome_at": _outcome_at(rows) if told else of["outcome_at"][slots],
            "version": of["version"][slots],
            "bundle": pl.Series(list(self._bundles), dtype=pl.String).gather(of["bundle"][slots]),
            "scores": scores,
        }
        self._settle(slots, features=not asked, text=not told)
        return pl.DataFrame(columns, schema=OBSERVED)

    def _settle(self, slots: Slots, features: bool = True, text: bool = True) -> None:
        """They will not become observations (any more); what was kept for that is released."""
        of = self._openings
        flags = of["flags"][slots]
        waiting, noted = _has(flags, WAITING), _has(flags, NOTED)
        self._waiting -= int(waiting.sum())
        if features:
            self._texts.release(of["features"][slots[waiting]])
        if text:
            self._texts.release(of["text"][slots[noted]])
        of["flags"][slots] = flags & ~(WAITING | NOTED)

    def _write(self, name: str, texts: pl.Series, slots: Slots) -> None:
        found = texts.to_list()
        self._openings[name][slots] = self._texts.write(found)
        self._openings[f"{name}_bytes"][slots] = np.fromiter(map(len, found), dtype=np.int32, count=len(found))

    def _read(self, name: str, slots: Slots) -> list[bytes]:
        return self._texts.read(self._openings[name][slots], self._openings[f"{name}_bytes"][slots])

    def _forget(self, slots: Slots, before_ms: int) -> None:
        of, wait = self._openings, self._wait
        flags = of["flags"][slots]
        asked = _has(flags, ASKED)
        over = _has(flags, WAITING) & (of["requested"][slots] + wait < before_ms)
        self._settle(slots[over])
        never = np.iinfo(np.int64).min
        early = np.maximum(
            np.where(_has(flags, ANSWERED), of["answered"][slots], never),
            np.where(_has(flags, LABELLED), of["told"][slots], never),
        )
        gone = np.where(asked, of["last"][slots] + 2 * wait < before_ms, early + wait < before_ms) & ~_has(flags, APART)
        self._early -= int((gone & ~asked & _has(flags, LABELLED)).sum())
        self._settle(slots[gone & ~over])
        self._openings.free(slots[gone])

    # -- rows of ids that are apart

    def _take_apart(self, table: Feed, rows: pl.DataFrame, slots: Slots, room: int) -> tuple[pl.DataFrame, int]:
        """Feed rows to the ``Joiner``; their observations, and how many rows were taken."""
        if not len(slots):
            return pl.DataFrame(schema=OBSERVED), 0
        for slot, id in zip(slots.tolist(), rows["request_id"], strict=True):
            if slot not in self._apart_ids:
                self._move_apart(slot, id)
        found, taken = _fed(self._apart, table, self._tuples(table, rows), room)
        return _frame(found), taken

    def _tuples(self, table: Feed, rows: pl.DataFrame) -> list[Any]:
        if table == "requests":
            return rows.select("request_id", "partition", "offset", "time_ms", "event_at", "value").rows()
        if table == "predictions":
            scores = ([] if np.isnan(one).any() else one.tolist() for one in rows["scores"].to_numpy())
            answers = zip(rows["version"], rows["bundle"], scores, strict=True)
            return list(zip(rows["request_id"], rows["time_ms"], answers, strict=True))
        labels = map(_Label, _hash(rows["outcome"]), rows["outcome"])
        return list(zip(rows["request_id"], rows["time_ms"], labels, rows["outcome_at"], strict=True))

    def _move_apart(self, slot: int, id: str) -> None:
        """Tell the ``Joiner`` what the slot holds: the same rows as far as they matter."""
        names = (*_MARKS, *(self._openings.columns.kind.names or ()))
        of = {name: self._openings[name][slot].item() for name in names if name != "scores"}
        at = np.array([slot])
        feed = partial(_fed, self._apart, room=-1)
        counters, self._apart.counters = self._apart.counters, Counters()
        if of["flags"] & ASKED:
            features = self._read("features", at)[0] if of["flags"] & WAITING else None
            place = (of["partition"], of["offset"])
            feed("requests", [(id, *place, of["requested"], of["event_at"], features)])
            self._apart.prolong(id, of["last"])
        if of["flags"] & ANSWERED:
            scores = self._openings["scores"][slot]
            answer = (of["version"], list(self._bundles)[of["bundle"]], [] if np.isnan(scores).any() else scores.tolist())
            feed("predictions", [(id, of["answered"], answer)])
        if of["flags"] & LABELLED:
            text = self._read("text", at)[0].decode() if of["flags"] & NOTED else ""
            observed = of["flags"] & ASKED and not of["flags"] & NOTED  # when it was told is not known: it belongs here
            told = of["requested"] if observed else of["told"]
            feed("outcomes", [(id, told, _Label(of["label"], text), of["outcome_at"])])
            self._early -= not of["flags"] & ASKED
        self._apart.counters = counters
        self._settle(at)
        self._openings["flags"][slot] = APART | HELD
        self._apart_ids[slot] = id


def _those(rows: pl.DataFrame, places: Rows) -> pl.DataFrame:
    return rows if len(places) == rows.height else rows[places]


def _has(flags: NDArray[np.uint8], flag: np.uint8) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (flags & flag) != 0
    return found


def _outcome_at(outcomes: pl.DataFrame) -> Rows:
    """Their own times, else the log's."""
    return outcomes["outcome_at"].fill_null(outcomes["time_ms"]).to_numpy()


def _hash(labels: pl.Series) -> pl.Series:
    return labels.hash(2)


def _fed(joiner: Joiner, table: Feed, rows: list[Any], room: int) -> tuple[list[Observation], int]:
    left: Any = iter(rows)
    feed: Callable[..., list[Observation]] = getattr(joiner, f"feed_{table}")
    return feed(left, room), len(rows) - left.__length_hint__()


def _frame(observations: list[Observation]) -> pl.DataFrame:
    rows = [
        (
            one.request_id,
            one.partition,
            one.offset,
            one.features,
            one.outcome.text,
            one.event_at,
            one.requested_at,
            one.outcome_at,
            *one.answer,
        )
        for one in observations
    ]
    return pl.DataFrame(rows, schema=OBSERVED, orient="row")
