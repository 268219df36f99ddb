"""The watch without drift, with planted drift, and over a year of flights; beside it the usual rules.

The rules: any feature's PSI above 0.2 (ten bins between the reference's quantiles, a category's values, missing); MLBox's
joint estimate at 0.6 or more; half of the columns with p < 0.05 (Kolmogorov-Smirnov for numbers, chi-squared for
categories).
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy import stats

from bench.drift_watch import Counted, Learnt, Matrix, Rows, Table, Values, Watching, adult, count, learn
from bench.drift_year import LOOK, flights, years
from bench.report import _table
from tidemill.core.alarms import MONTH_MS, Finding, Limits, passing
from tidemill.core.decoding import Decoder
from tidemill.core.drift_estimator import forest, joint_drift, sampled
from tidemill.core.looking import Comparer, Known
from tidemill.core.shift import chi_squared, psi
from tidemill.learners.domain_classifier import lightgbm as domain_classifier

REFERENCE_ROWS = 20_000
SIZES = (50, 200, 1000, 5000)
A_MONTH = (30, 300, 3000)
"""Looks a month, with one false alarm a month."""
LEVELS = (0.05, 0.01, 0.001, 0.0001)
PSI_LIMIT, MLBOX_LIMIT, P_LIMIT = 0.2, 0.6, 0.05
COST_LOOKS = 20
MLBOX_WINDOWS = {50: 6, 200: 20, 1000: 20, 5000: 6}
"""Of each order of the rows, for the joint estimate, which takes longer than all else."""
ORDERS, WINDOWS = 50, 40
"""Of Adult's rows, and windows drawn of each size in each."""
MLBOX_ROWS = 2000
"""Of the reference, for the joint estimate."""


class Rules:
    """What the usual rules compare, of one reference: each gives one figure of a window, and is an alarm beyond a limit."""

    def __init__(self, learnt: Learnt) -> None:
        self._before = learnt.matrix[learnt.rows]
        self._categorical = set(learnt.encoder.categorical)
        self._columns = learnt.table.schema.columns
        self._codes = [int(np.nanmax(column, initial=0)) + 3 for column in self._before.T]
        self._edges = [np.unique(np.nanquantile(column, np.linspace(0.1, 0.9, 9))) for column in self._before.T]
        self._counts = [self._counted(i, self._before[:, i]) for i in range(len(self._columns))]
        self._sorted = [np.sort(column[~np.isnan(column)]) for column in self._before.T]
        self._sampled = sampled(self._before, MLBOX_ROWS)

    def psis(self, window: Matrix) -> Values:
        """Of each column."""
        return np.array([float(psi(self._counts[i], self._counted(i, window[:, i]))) for i in range(window.shape[1])])

    def half(self, window: Matrix) -> float:
        """The least p that half of the columns have or are below."""
        p = sorted(self._p(i, window[:, i]) for i in range(window.shape[1]))
        return p[-(-len(p) // 2) - 1]

    def mlbox(self, window: Matrix, quick: bool = True) -> float:
        """The joint estimate, by LightGBM or, as MLBox does, by a forest."""
        return joint_drift(self._sampled, window, domain_classifier if quick else forest)

    def _counted(self, i: int, values: Values) -> NDArray[np.int64]:
        missing = np.isnan(values)
        if i in self._categorical:
            places, bins = np.where(missing, -2, values).astype(np.intp) + 2, self._codes[i]
        else:
            bins = len(self._edges[i]) + 2
            places = np.where(missing, bins - 1, np.searchsorted(self._edges[i], values, side="right"))
        return np.bincount(places, minlength=bins)

    def _p(self, i: int, values: Values) -> float:
        if i in self._categorical:
            return chi_squared(self._counts[i], self._counted(i, values))[1]
        before, now = self._sorted[i], np.sort(values[~np.isnan(values)])
        if not len(now):
            return 0.0
        apart = [
            np.abs(np.searchsorted(before, now, side) / len(before) - np.searchsorted(now, now, side) / len(now)).max()
            for side in ("left", "right")
        ]
        size = len(before) * len(now) / (len(before) + len(now))
        return float(stats.kstwobign.sf(max(apart) * np.sqrt(size)))


# -- without drift


class Quiet(NamedTuple):
    """A window without drift: what the watch found, and the rules' figures; ``forest`` is NaN but of the first windows."""

    size: int
    findings: list[Finding]
    psi: float
    mlbox: float
    forest: float
    half: float


class Calibrated(Struct, frozen=True):
    """How many times as often as it should a finding's ``p`` was at or below the level, and out of how many."""

    finding: str
    size: int
    of: int
    p_05: float
    p_01: float
    p_001: float
    p_0001: float


class Budget(Struct, frozen=True):
    """Alarms over windows without drift at a budget of one false alarm a month; ``allowed`` are expected, ``at_most`` is
    what chance stays below 19 times of 20. ``..._0`` is with ``effect_min`` 0.
    """

    size: int
    looks_a_month: int
    windows: int
    allowed: float
    at_most: int
    windows_passing: int
    alarms: int
    windows_passing_0: int
    alarms_0: int


class Usual(Struct, frozen=True):
    """Of the same windows, how many the usual rules call drift; MLBox's joint estimate was asked about
    ``mlbox_of`` (LightGBM) and ``forest_of`` (MLBox's forest).
    """

    size: int
    windows: int
    psi: int
    mlbox: int
    mlbox_of: int
    mlbox_forest: int
    forest_of: int
    half: int


def quiet(seed: int, sizes: Sequence[int] = SIZES, windows: int = WINDOWS, rules: bool = True) -> list[Quiet]:
    """Adult in an order of its own: the first 20,000 rows are learnt, windows are drawn from the others, shuffled anew when
    they are used up.
    """
    table = adult()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(table.labels))
    learnt = learn(table, order[:REFERENCE_ROWS], "stratified", seed)
    comparer, usual = learnt.apart(), Rules(learnt)
    counted = count(learnt, comparer.reference, learnt.matrix, table.labels)
    found = []
    for size in sizes:
        for number, rows in enumerate(_drawn(order[REFERENCE_ROWS:], size, windows, rng)):
            seen, window = counted.tally(rows), learnt.matrix[rows]
            findings = comparer.served(seen, Known(), 0.0) + comparer.told(seen, Known(), 0.0)
            figures = [np.nan] * 4
            if rules:
                joint = usual.mlbox(window) if number < MLBOX_WINDOWS[size] else np.nan
                forests = usual.mlbox(window, quick=False) if number == seed % 3 == 0 else np.nan
                figures = [float(usual.psis(window).max()), joint, forests, usual.half(window)]
            found.append(Quiet(size, findings, *figures))
    return found


def _drawn(rest: Rows, size: int, windows: int, rng: np.random.Generator) -> Iterator[Rows]:
    at = len(rest)
    for _ in range(windows):
        if at + size > len(rest):
            rest, at = rng.permutation(rest), 0
        yield rest[at : at + size]
        at += size


def calibration(windows: Sequence[Quiet]) -> list[Calibrated]:
    """By kind and size."""
    tables = []
    for size in sorted({one.size for one in windows}):
        found = [finding for one in windows if one.size == size for finding in one.findings]
        for kind in dict.fromkeys(finding.kind for finding in found):
            p = np.array([finding.p for finding in found if finding.kind == kind])
            ratios = [float((p <= level).mean()) / level for level in LEVELS]
            tables.append(Calibrated(kind, size, len(p), *ratios))
    return tables


def budgets(windows: Sequence[Quiet]) -> list[Budget]:
    """One look a window, by a clock of its own."""
    tables = []
    for size in sorted({one.size for one in windows}):
        mine = [one for one in windows if one.size == size]
        for looks in A_MONTH:
            counts = []
            allowed = 0.0
            for least in (Limits().effect_min, 0.0):
                watching = Watching(Limits(effect_min=least))
                told = [watching.look(number * MONTH_MS // looks, one.findings) for number, one in enumerate(mine)]
                raised = sum(change is not None and change.name == "alarm_raised" for _, change, _ in told)
                counts += [sum(bool(passed) for passed, _, _ in told), raised]
                allowed = sum(alpha for _, _, alpha in told)
            tables.append(Budget(size, looks, len(mine), allowed, int(stats.poisson.ppf(0.95, allowed)), *counts))
    return tables


def usual_rules(windows: Sequence[Quiet]) -> list[Usual]:
    """With the limits that they come with."""
    tables = []
    for size in sorted({one.size for one in windows}):
        mine = [one for one in windows if one.size == size]
        forests = [one.forest for one in mine if np.isfinite(one.forest)]
        tables.append(
            Usual(
                size,
                len(mine),
                sum(one.psi > PSI_LIMIT for one in mine),
                sum(one.mlbox >= MLBOX_LIMIT for one in mine),
                sum(bool(np.isfinite(one.mlbox)) for one in mine),
                sum(one >= MLBOX_LIMIT for one in forests),
                len(forests),
                sum(one.half < P_LIMIT for one in mine),
            )
        )
    return tables


# -- planted


class Stream(NamedTuple):
    """Rows as they are served, in order, and their labels."""

    matrix: Matrix
    labels: Values


class Served(NamedTuple):
    """Rows to plant a shift in: the columns' names, all rows, and the generator."""

    columns: tuple[str, ...]
    categories: dict[str, list[str]]
    matrix: Matrix
    labels: Values
    rng: np.random.Generator

    def drawn(self, weights: Values) -> Stream:
        """Rows with other shares than before."""
        rows = self.rng.choice(len(self.labels), len(self.labels), p=weights / weights.sum())
        return Stream(self.matrix[rows].copy(), self.labels[rows].copy())

    def changed(self, name: str, change: Callable[[Values], Values]) -> Stream:
        """One column as it comes out of a change."""
        matrix = self.matrix.copy()
        i = self.columns.index(name)
        matrix[:, i] = change(matrix[:, i])
        return Stream(matrix, self.labels)


NUMBERS = ("age", "education_num", "capital_gain", "capital_loss", "hours_per_week")
Plant = Callable[[Served], Stream]


def _tilted(served: Served) -> Stream:
    """Each number's mean moves by some 0.15 of its deviation, and no value is new."""
    numbers = served.matrix[:, [served.columns.index(name) for name in NUMBERS]]
    z = np.clip((numbers - numbers.mean(axis=0)) / numbers.std(axis=0), -3, 3)
    return served.drawn(np.exp(0.15 * z.sum(axis=1)))


def _vanished(served: Served) -> Stream:
    """Rows of one occupation stop coming."""
    code = served.categories["occupation"].index("Prof-specialty")
    return served.drawn((served.matrix[:, served.columns.index("occupation")] != code).astype(np.float64))


def _renamed(served: Served) -> Stream:
    """One occupation has another text from now on."""
    code = served.categories["occupation"].index("Prof-specialty")
    return served.changed("occupation", lambda values: np.where(values == code, -1, values))


def _missing(served: Served) -> Stream:
    return served.changed("education_num", lambda values: np.where(served.rng.random(len(values)) < 0.3, np.nan, values))


def _flipped(served: Served) -> Stream:
    return Stream(served.matrix, np.where(served.rng.random(len(served.labels)) < 0.5, 1 - served.labels, served.labels))


def _more_positives(served: Served) -> Stream:
    """36 % instead of 24 %."""
    share = served.labels.mean()
    return served.drawn(np.where(served.labels == 1, 0.36 / share, 0.64 / (1 - share)))


PLANTS: dict[str, tuple[Plant, tuple[str, ...]]] = {
    "age in another unit (x 1000)": (lambda served: served.changed("age", lambda values: values * 1000), ("age",)),
    "age + 7 (half a deviation)": (lambda served: served.changed("age", lambda values: values + 7), ("age",)),
    "all numbers, 0.15 deviations": (_tilted, NUMBERS),
    "an occupation's rows vanish (13 %)": (_vanished, ("occupation",)),
    "an occupation is renamed": (_renamed, ("occupation",)),
    "education_num missing in 30 %": (_missing, ("education_num",)),
    "outcomes inverted for half": (_flipped, ("outcome", "error", "calibration")),
    "positives 36 %, not 24 %": (_more_positives, ("outcome", "prediction", "calibration", "error")),
}
"""What is planted, and what a finding that names it may be called."""
RULES = ("tidemill", "tidemill, effect_min 0", "psi", "mlbox", "half")


class Delay(NamedTuple):
    """Rows from a shift until the rule's alarm, None for never within ``STREAM_ROWS``; what it named first."""

    shift: str
    size: int
    seed: int
    rule: str
    rows: int | None
    named: str


class Delays(Struct, frozen=True):
    """Over the seeds: median rows until the alarm (infinite: most never), how many found it at all, and in how many of these
    the first thing named was what had shifted. ``first`` is what was named first, most often.
    """

    shift: str
    size: int
    rule: str
    seeds: int
    median_rows: float
    found: int
    named: int
    first: str


STREAM_ROWS = 20_000
MLBOX_STREAM_ROWS, MLBOX_SEEDS = 6000, 10
"""The joint estimate takes longer than all else."""
LOOKS_A_MONTH = 300


def limits_of(windows: Sequence[Quiet], size: int) -> dict[str, float]:
    """Of each rule, the figure that one window in ``LOOKS_A_MONTH`` without drift goes beyond."""
    mine = [one for one in windows if one.size == size]
    at = 1 / LOOKS_A_MONTH
    return {
        "psi": float(np.quantile([one.psi for one in mine], 1 - at)),
        "mlbox": float(np.nanquantile([one.mlbox for one in mine], 1 - at)),
        "half": float(np.quantile([one.half for one in mine], at)),
    }


def planted(seed: int, limits: dict[int, dict[str, float]], plants: Sequence[str] = tuple(PLANTS)) -> list[Delay]:
    """Each shift begins somewhere within a window. Looks and windows are the same for all rules."""
    table = adult()
    rng = np.random.default_rng(10_000 + seed)
    order = rng.permutation(len(table.labels))
    learnt = learn(table, order[:REFERENCE_ROWS], "stratified", seed)
    comparer, usual = learnt.apart(), Rules(learnt)
    rest = order[REFERENCE_ROWS:]
    found = []
    for name in plants:
        plant, _ = PLANTS[name]
        served = Served(table.schema.columns, learnt.encoder.categories, learnt.matrix[rest], table.labels[rest], rng)
        stream = plant(served)
        for size, beyond in limits.items():
            before = int(rng.integers(size))
            rows = rng.permutation(len(rest))
            matrix = np.concatenate([served.matrix[rows[:before]], stream.matrix[rows[before:]]])[: before + STREAM_ROWS]
            labels = np.concatenate([served.labels[rows[:before]], stream.labels[rows[before:]]])[: len(matrix)]
            counted = count(learnt, comparer.reference, matrix, labels)
            for rule in RULES:
                if rule == "mlbox" and seed >= MLBOX_SEEDS:
                    continue
                delay, named = _delay(rule, size, before, counted, matrix, comparer, usual, beyond)
                found.append(Delay(name, size, seed, rule, delay, named))
    return found


def _delay(
    rule: str,
    size: int,
    before: int,
    counted: Counted,
    matrix: Matrix,
    comparer: Comparer,
    usual: Rules,
    beyond: dict[str, float],
) -> tuple[int | None, str]:
    limits = Limits(effect_min=0.0 if rule.endswith("0") else Limits().effect_min)
    end = min(len(matrix), before + (MLBOX_STREAM_ROWS if rule == "mlbox" else STREAM_ROWS))
    for begin in range(0, end - size + 1, size):
        rows = np.arange(begin, begin + size)
        named: str | None = None
        if rule.startswith("tidemill"):
            seen = counted.tally(rows)
            findings = comparer.served(seen, Known(), 0.0) + comparer.told(seen, Known(), 0.0)
            passed = passing(findings, 1 / LOOKS_A_MONTH, limits)
            named = passed[0].name if passed else None
        elif rule == "psi":
            psis = usual.psis(matrix[rows])
            named = comparer.reference.features[int(psis.argmax())].name if psis.max() > beyond["psi"] else None
        elif rule == "mlbox":
            named = "" if usual.mlbox(matrix[rows]) > beyond["mlbox"] else None
        else:
            named = "" if usual.half(matrix[rows]) < beyond["half"] else None
        if named is not None:
            return begin + size - before, named
    return None, ""


def delays(found: Sequence[Delay]) -> list[Delays]:
    """By shift, size and rule."""
    tables = []
    for shift, size, rule in dict.fromkeys((one.shift, one.size, one.rule) for one in found):
        mine = [one for one in found if (one.shift, one.size, one.rule) == (shift, size, rule)]
        rows = [float("inf") if one.rows is None else float(one.rows) for one in mine]
        hits = [one.named for one in mine if one.rows is not None]
        names = PLANTS[shift][1]
        first = max(set(hits), key=hits.count) if hits else ""
        tables.append(
            Delays(shift, size, rule, len(mine), median(rows), len(hits), sum(name in names for name in hits), first)
        )
    return tables


class Cost(Struct, frozen=True):
    """Seconds of the processor for 100,000 requests in looks of ``LOOK``, by step; ``compare`` is with drawing the nulls."""

    data: str
    columns: int
    decode: float
    encode: float
    count: float
    compare: float


def cost(table: Table, learnt: Learnt, data: str) -> Cost:
    """Of 20 looks at rows that the model did not learn from."""
    comparer = learnt.apart()
    counted = count(learnt, comparer.reference, learnt.matrix, table.labels)
    names = list(table.schema.columns)
    decoder = Decoder(table.schema)
    first = len(table.labels) - COST_LOOKS * LOOK
    took = dict.fromkeys(("decode", "encode", "count", "compare"), 0.0)
    for begin in range(first, len(table.labels), LOOK):
        rows = table.frame[begin : begin + LOOK].select(names).to_dicts()
        values = [msgspec.json.encode(row) for row in rows]
        clock = [time.process_time()]
        decoded = decoder.decode(values)
        clock.append(time.process_time())
        encoded = learnt.encoder.encode(decoded.columns)
        clock.append(time.process_time())
        for i, column in enumerate(comparer.reference.features):
            column.count(encoded.matrix[:, i], int(encoded.unseen[i]))
        clock.append(time.process_time())
        seen = counted.tally(np.arange(begin, begin + LOOK))
        clock.append(time.process_time())
        comparer.served(seen, Known(), 0.2)
        comparer.told(seen, Known(), 0.2)
        clock.append(time.process_time())
        for step, ended, began in (("decode", 1, 0), ("encode", 2, 1), ("count", 3, 2), ("compare", 5, 4)):
            took[step] += clock[ended] - clock[began]
    scale = 100_000 / (COST_LOOKS * LOOK)
    return Cost(data, len(names), **{step: seconds * scale for step, seconds in took.items()})


def costs() -> list[Cost]:
    """Adult and flights."""
    found = []
    for name, table in (("adult", adult()), ("flights", flights())):
        rows = np.flatnonzero(~np.isnan(table.labels))[:REFERENCE_ROWS]
        found.append(cost(table, learn(table, rows, "stratified", 0), name))
    return found


class Effort(Struct, frozen=True):
    """Orders of Adult's rows without drift, seeds of the planted shifts, pairs of blocks and windows, shuffled years."""

    orders: int = ORDERS
    seeds: int = 20
    block_days: tuple[int, ...] = (1, 2, 7)
    window_blocks: tuple[int, ...] = (3, 7, 14)
    shuffles: int = 4


def measure(effort: Effort, parts: Sequence[str] = ("alarms", "planted", "flights", "cost")) -> dict[str, object]:
    """As tables; ``planted`` needs ``alarms``."""
    found: dict[str, object] = {}
    if "alarms" in parts:
        windows = [one for seed in range(effort.orders) for one in quiet(seed)]
        found |= {
            "drift_calibration": calibration(windows),
            "drift_budget": budgets(windows),
            "drift_usual": usual_rules(windows),
        }
    if "planted" in parts:
        limits = {size: limits_of(windows, size) for size in (200, 1000)}
        found["drift_planted"] = delays([one for seed in range(effort.seeds) for one in planted(seed, limits)])
    if "flights" in parts:
        found["drift_flights"] = years(effort.block_days, effort.window_blocks, effort.shuffles)
    if "cost" in parts:
        found["drift_cost"] = costs()
    return found


def main() -> None:
    """``python -m bench.drift [parts]``: the tables as Markdown; with commas between the parts."""
    parts = sys.argv[1].split(",") if len(sys.argv) > 1 else ["alarms", "planted", "flights", "cost"]
    for name, table in msgspec.to_builtins(measure(Effort(), parts)).items():
        print(f"## {name}\n\n{_table(table)}\n", flush=True)


if __name__ == "__main__":
    main()
