"""The rows of the lake's table ``looks``: what a look counted and came to, and later what its outcomes were."""

import math
from collections.abc import Mapping

import msgspec
import polars as pl
from msgspec import Struct

from tidemill.core.alarms import Change, Finding, Watch
from tidemill.core.change import Adwin, Detector, PageHinkley
from tidemill.core.expected_quality import Estimate, widened
from tidemill.core.looking import Known, Tally
from tidemill.core.representative import Representative
from tidemill.failpoints import failpoint
from tidemill.lake import Lake
from tidemill.messages import Retrain

KEPT = 400
"""Looks that a start reads again, and that may wait for their outcomes."""

Positions = dict[int, int]


class Look(Struct):
    """A row of the table, and the state after it. ``requests`` and ``predictions`` are positions after those that it
    counted, ``began`` those of the requests before; ``since`` a number that none of its observations is below, ``counted``
    how many delays are in ``delays``; ``asked_at`` when a retraining was asked for last.
    """

    number: int
    bundle: str
    version: int
    tally: Tally
    began: Positions
    requests: Positions
    predictions: Positions
    since: int
    counted: int
    delays: list[int]
    alpha: float
    state: Watch = Watch()
    known: Known = Known()
    expected: Estimate | None = None
    widened: float = 1.0
    findings: list[Finding] = []
    change: Change | None = None
    asked_at: int | None = None
    command: Retrain | None = None
    suggested: bool = False


def error_detectors() -> dict[str, Detector]:
    """Of errors between 0 and 1. With Page-Hinkley's usual threshold of 50 it told 20 changes in 200,000 steady errors."""
    return {"adwin": Adwin(), "page_hinkley": PageHinkley(threshold=200.0, mode="up")}


class Matured(Struct):
    """Of a look's requests, once their outcomes are in: the tally with them, the metric, how many were labelled, and whether
    those look like the others. ``errors`` follow the error from request to request (``changed``: those that saw it move,
    which is told and no alarm: rows of a stretch are alike, and they take them as independent).
    """

    number: int
    tally: Tally
    labelled: int
    observed: int
    score: float | None = None
    errors: dict[str, Detector] = msgspec.field(default_factory=error_detectors)
    changed: list[str] = []
    alike: Representative | None = None


def read_looks(lake: Lake, last: int = KEPT) -> tuple[dict[int, Look], dict[int, Matured]]:
    """The last looks, and what became of them, by number."""
    numbers = lake.scan("looks").select(pl.col("number").max())
    newest = lake.read(numbers).item()
    if newest is None:
        return {}, {}
    rows = lake.read(lake.scan("looks").filter(pl.col("number") > newest - last).sort("number"))
    found: tuple[dict[int, Look], dict[int, Matured]] = {}, {}
    for number, kind, value in rows.select("number", "kind", "value").iter_rows():
        if kind == "look":
            found[0][number] = msgspec.json.decode(value, type=Look)
        else:
            found[1][number] = msgspec.json.decode(value, type=Matured)
    return found


def write_look(lake: Lake, row: Look | Matured, marks: Mapping[str, int], bundle: str) -> None:
    """Add a row, and move what stands at other marks than these."""
    frame = pl.DataFrame(
        {
            "number": [row.number],
            "kind": ["look" if isinstance(row, Look) else "matured"],
            "at": [row.tally.ended_at],
            "bundle": [bundle],
            "value": [msgspec.json.encode(row)],
        }
    )
    stored = lake.positions("looks", marks)
    lake.append("looks", frame, {app: at for app, at in marks.items() if at > stored.get(app, -1)})
    failpoint("watch.appended")
    lake.maintain("looks")


def within(began: Positions, until: Positions) -> pl.Expr:
    """Rows of observations whose request lies between the positions."""
    found = pl.lit(False)
    partition, offset = pl.col("request_partition"), pl.col("request_offset")
    for number, end in until.items():
        found |= (partition == number) & (offset >= began.get(number, 0)) & (offset < end)
    return found


def marks_of(table: str, positions: Positions) -> dict[str, int]:
    """By the names under which the table keeps them."""
    return {f"watch:{table}:{partition}": at for partition, at in positions.items()}


def interval(of: Look) -> dict[str, float | None]:
    """The metric that was expected, for an event."""
    if of.expected is None or not math.isfinite(of.expected.expected):
        return {"expected": None, "low": None, "high": None}
    told = widened(of.expected, of.widened)
    return {"expected": told.expected, "low": told.low, "high": told.high}
