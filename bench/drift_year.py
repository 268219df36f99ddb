"""The watch over a year of flights, and over years whose days or weeks come in another order."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import polars as pl
from msgspec import Struct

from bench.drift_watch import DATASETS, Counted, Learnt, Rows, Table, Watching, count, learn
from tidemill.core.alarms import MONTH_MS, Finding, Limits
from tidemill.core.inference import infer
from tidemill.core.looking import Size, Tally, window
from tidemill.core.reference import blocks_of_times
from tidemill.demo.plans import PLANS
from tidemill.tables import columns_for_inference, read_table

FLIGHTS_ROWS = 26_000
LOOK = 1000
DAY_MS = 86_400_000
RETRAIN_EVERY = 10_000
WEATHER = {"temp", "dewp", "wind_speed", "precip", "pressure", "visib"}


class Year(NamedTuple):
    """What the watch did over the stream: its alarms, and what was up at each look."""

    at: list[int]
    up: list[set[str]]
    """By look the names of what the alarm that is up has found; empty where none is."""
    raised: list[tuple[int, str, list[Finding]]]
    worsened: list[tuple[int, str, list[Finding]]]
    cleared: list[tuple[int, str, str]]


def flights() -> Table:
    """In the order of requests."""
    plan = PLANS["flights"]
    frame = read_table(DATASETS / "flights.parquet").sort("id")
    schema = infer(columns_for_inference(frame), plan.choices).schema
    labels = frame["late"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return Table(schema, frame, labels, frame["request_time"].dt.epoch("ms").to_numpy())


def shuffled(table: Table, days: int, seed: int) -> Table:
    """Stretches of so many days, whole, in another order; each row keeps its time of the day."""
    day = (table.times_ms - table.times_ms[0]) // DAY_MS
    stretch = day // days
    order = np.random.default_rng(seed).permutation(int(stretch.max()) + 1)
    begins, at = {}, 0
    for one in order:
        begins[int(one)] = at
        at += min(days, int(day.max()) + 1 - int(one) * days)
    shift = np.array([begins[one] - one * days for one in range(len(order))])
    times = table.times_ms + shift[stretch] * DAY_MS
    rows = np.argsort(times, kind="stable")
    return Table(table.schema, table.frame[rows], table.labels[rows], times[rows])


def first_rows(table: Table) -> Rows:
    """The original data: the first rows that have an outcome."""
    return np.flatnonzero(~np.isnan(table.labels))[:FLIGHTS_ROWS]


def stream_of(learnt: Learnt) -> Counted:
    """What comes after the original data; its bins do not depend on blocks."""
    start = int(learnt.rows[-1]) + 1
    return count(learnt, learnt.apart().reference, learnt.matrix[start:], learnt.table.labels[start:])


def year(
    learnt: Learnt,
    counted: Counted,
    block_days: float,
    window_blocks: int,
    limits: Limits,
    every: int = 0,
    keep: int = 50_000,
) -> Year:
    """Looks of 1,000 requests from the end of the original data on (``counted`` as ``stream_of`` has it). ``every`` so many
    outcomes another model serves, which learnt from the newest ``keep``.
    """
    table = learnt.table
    watching, found = Watching(limits), Year([], [], [], [], [])
    start = int(learnt.rows[-1]) + 1
    outcomes = np.cumsum(~np.isnan(table.labels))
    due = FLIGHTS_ROWS + every
    width = round(block_days * DAY_MS)
    comparer = learnt.refer(blocks_of_times(table.times_ms[learnt.rows], width), width)
    offset, tallies = start, list[Tally]()
    for begin in range(start, len(table.labels) - LOOK, LOOK):
        if every and outcomes[begin - 1] >= due:
            rows = np.flatnonzero(~np.isnan(table.labels[:begin]))[-keep:]
            learnt = learn(table, rows, "time", 0)
            comparer = learnt.refer(blocks_of_times(table.times_ms[rows], width), width)
            end = begin + every * 2
            counted = count(learnt, comparer.reference, learnt.matrix[begin:end], table.labels[begin:end])
            offset, due = begin, due + every
            tallies.clear()
            watching.renew()
        times = table.times_ms[begin : begin + LOOK]
        tallies.append(counted.tally(np.arange(begin - offset, begin - offset + LOOK), int(times[0]), int(times[-1])))
        whole = width * window_blocks
        seen = window(tallies, Size(LOOK, whole // 3, whole))
        findings: list[Finding] = []
        if seen is not None:
            least = limits.effect_min
            findings = comparer.served(seen, watching.known, least) + comparer.told(seen, watching.known, least)
            at = int(times[-1])
            _, change, _ = watching.look(at, findings)
            if change is not None:
                watching.accept(change, comparer, seen, seen)
                told = (at, change.alarm.text, change.alarm.findings)
                if change.name == "alarm_raised":
                    found.raised.append(told)
                elif change.name == "alarm_worsened":
                    found.worsened.append(told)
                else:
                    found.cleared.append((at, change.why, change.alarm.id))
        found.at.append(int(times[-1]))
        alarm = watching.state.alarm
        found.up.append({one.name for one in alarm.findings} if alarm else set())
    return found


class Alarmed(Struct, frozen=True):
    """A year of flights: shares of the looks at which an alarm is up, and at which it is about weather alone; when between
    4 April and 2 May one was raised, or worsened, that names outcomes, errors or calibration (empty: none was).
    """

    data: str
    model: str
    block_days: float
    window_blocks: int
    looks: int
    allowed: float
    alarms: int
    up: float
    weather_alone: float
    april: str
    april_names: str


APRIL = tuple(int(datetime(2013, *day, tzinfo=UTC).timestamp() * 1000) for day in ((4, 4), (5, 3)))
TOLD = {"outcome", "error", "calibration"}


def alarmed(data: str, model: str, block_days: float, window_blocks: int, found: Year) -> Alarmed:
    """In figures."""
    april = [
        (at, sorted({one.kind for one in findings} & TOLD))
        for at, _, findings in sorted([*found.raised, *found.worsened], key=lambda told: told[0])
        if APRIL[0] <= at < APRIL[1] and {one.kind for one in findings} & TOLD
    ]
    looks = len(found.up)
    return Alarmed(
        data,
        model,
        block_days,
        window_blocks,
        looks,
        (found.at[-1] - found.at[0]) / MONTH_MS * Limits().per_month,
        len(found.raised),
        sum(bool(names) for names in found.up) / looks,
        sum(bool(names) and names <= WEATHER for names in found.up) / looks,
        _day(april[0][0]) if april else "",
        ", ".join(april[0][1]) if april else "",
    )


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%d %b")


def years(block_days: Sequence[int], window_blocks: Sequence[int], shuffles: int) -> list[Alarmed]:
    """The real year by blocks and windows, with a model that stays and with one that is renewed; and years whose days, or
    weeks, come in another order.
    """
    real = flights()
    learnt = learn(real, first_rows(real), "time", 0)
    counted = stream_of(learnt)
    pairs = [(days, blocks) for days in block_days for blocks in window_blocks]
    found = [alarmed("flights", "first", *pair, year(learnt, counted, *pair, Limits())) for pair in pairs]
    renewed = year(learnt, counted, 2, 7, Limits(), every=RETRAIN_EVERY)
    found.append(alarmed("flights", f"every {RETRAIN_EVERY:,}", 2, 7, renewed))
    for seed in range(shuffles):
        for days in (1, 7):
            table = shuffled(real, days, seed)
            other = learn(table, first_rows(table), "time", seed)
            served = stream_of(other)
            for pair in pairs:
                looked = year(other, served, *pair, Limits())
                found.append(alarmed(f"shuffled by {days} d", "first", *pair, looked))
    return found
