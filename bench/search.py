"""The search, against the original's way of doing it and against random points; and what remembering brings.

The original's way is this file's small rebuild of it: Hyperopt's ``fmin`` around ``lightgbm.cv``, one trial after another
with a thread a core, every trial to its end, nothing remembered. It has the same space, rows, folds, rounds and patience.

Seeds are of the sample, of the folds and of the engine. Losses do not depend on the machine's load; seconds do, so that the
ways take turns and one of them is run twice: what differs between its two runs is noise.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import hyperopt
import lightgbm
import numpy as np
import polars as pl
from hyperopt import hp
from msgspec import Struct

import tidemill
from tidemill.clock import SystemClock
from tidemill.core.inference import infer
from tidemill.core.schema import Schema
from tidemill.core.space import Choice, Integer, Real
from tidemill.core.training_set import Rows
from tidemill.demo.plans import PLANS
from tidemill.learners.base import Parameters
from tidemill.learners.lightgbm import LightGBM
from tidemill.messages import Trial
from tidemill.roles.experiment import Prepared, Search, find_best, make_executor, prepare
from tidemill.settings import Tune
from tidemill.tables import columns_for_inference, columns_of, read_table
from tidemill.wiring import PROPOSERS, processes
from tidemill.wiring import lightgbm as lightgbm_learner

DATASETS = Path(tidemill.__file__).parent / "datasets"
ENGINES = ("optuna", "hyperopt", "skopt")
TRIALS = 50
COLD_ROWS = 10_000
FIRST_ROWS, ADDED_ROWS = 10_000, 2_000
WARM_TRIALS = 20
"""The default of ``tune.trials``: what a retraining tries."""
SHIFT_ROWS, SHIFT_TRIALS = 6_000, 20
NEAR = 0.0005
"""Log loss: as good as the cold search's best."""
CORES = 2


class Effort(Struct, frozen=True):
    """Data sets, seeds, and at which of the retrainings a cold search of ``TRIALS`` is held against the warm one."""

    data: tuple[str, ...] = ("adult", "flights")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    references: tuple[int, ...] = (10,)


class Cold(Struct, frozen=True):
    """One search of ``TRIALS`` from nothing: ``way`` is ``original``, ``original again`` (the control) or ``tidemill``."""

    data: str
    seed: int
    way: str
    seconds: float
    best: float
    pruned: int


class Engine(Struct, frozen=True):
    """The best log loss of an engine's first 5, 20 and 50 trials from nothing; ``near`` is the first trial within ``NEAR``
    of the best.
    """

    data: str
    seed: int
    engine: str
    rows: int
    best_5: float
    best_20: float
    best_50: float
    near: int


class Memory(Struct, frozen=True):
    """A retraining that remembers, against a cold search of the same engine on the same rows: the first trial that is within
    ``NEAR`` of the cold best, 0 where none of ``WARM_TRIALS`` is; ``behind`` is how far the first one lies above it.
    """

    data: str
    seed: int
    engine: str
    retraining: int
    rows: int
    reached: int
    behind: float


class Shift(Struct, frozen=True):
    """The best of ``SHIFT_TRIALS`` on rows of another kind than those that are remembered, and of as many from nothing."""

    data: str
    seed: int
    engine: str
    warm: float
    cold: float


def measure(effort: Effort) -> dict[str, object]:
    """All of it, as tables."""
    places = [(data, seed) for seed in effort.seeds for data in effort.data]
    cold_found = [one for place in places for one in cold(*place)]
    found = [engine(*place, name, effort.references) for place in places for name in (*ENGINES, "random")]
    engines = [one for some, _ in found for one in some]
    memories = [one for _, some in found for one in some]
    shifts = [shift(*place, name) for place in places for name in ENGINES]
    return {
        "search_cold": ratios(cold_found),
        "search_memory": remembered(memories, engines),
        "search_engines": against_random(engines),
        "search_shift": shifted(shifts),
    }


def cold(data: str, seed: int) -> list[Cold]:
    """The ways in turn, another one first each time."""
    prepared = _prepared(data, seed, slice(0, COLD_ROWS))
    ways: list[tuple[str, Callable[[], tuple[float, int]]]] = [
        ("original", lambda: (_original(prepared, seed), 0)),
        ("tidemill", lambda: _ours(prepared, seed)),
        ("original again", lambda: (_original(prepared, seed), 0)),
    ]
    found = []
    for way, run in ways[seed % 3 :] + ways[: seed % 3]:
        begin = time.perf_counter()
        best, pruned = run()
        found.append(Cold(data, seed, way, time.perf_counter() - begin, best, pruned))
    return found


def engine(data: str, seed: int, name: str, references: Sequence[int]) -> tuple[list[Engine], list[Memory]]:
    """From nothing on the first rows and at the references; and, but for random points, remembering at every retraining."""
    log: list[Trial] = []
    engines, remembered = [], []
    for retraining in range(max(references) + 1):
        prepared = _prepared(data, seed, slice(0, FIRST_ROWS + retraining * ADDED_ROWS))
        best = None
        if retraining in (0, *references):
            trials = _search(prepared, seed, name, TRIALS, f"cold-{retraining}", [])
            engines.append(_engine(data, seed, name, prepared, trials))
            best = engines[-1].best_50
            log += trials if retraining == 0 else []
        if retraining and name != "random":
            trials = _search(prepared, seed, name, WARM_TRIALS, f"warm-{retraining}", log)
            log += trials
            if best is not None:
                remembered.append(_memory(data, seed, name, retraining, prepared, trials, best))
    return engines, remembered


def shift(data: str, seed: int, name: str) -> Shift:
    """What was learnt on people up to 40, or from two airports, on the others."""
    before, after = _shifted(data, seed)
    log = _search(before, seed, name, TRIALS, "before", [])
    warm = _search(after, seed, name, SHIFT_TRIALS, "warm", log)
    alone = _search(after, seed, name, SHIFT_TRIALS, "cold", [])
    return Shift(data, seed, name, _best(warm), _best(alone))


def _search(
    prepared: Prepared, seed: int, name: str, trials: int, experiment: str, log: list[Trial], prune: bool = True
) -> list[Trial]:
    """The trials of one search; it remembers what is in the log."""
    tune = Tune(proposer=name, trials=trials, workers=CORES, prune=prune)
    plan = Search({"lightgbm": lightgbm_learner}, PROPOSERS.find(name), processes, tune, seed, SystemClock())
    found: list[Trial] = []
    with make_executor(prepared, plan, CORES) as executor:
        find_best(experiment, prepared, plan, log, found.append, executor)
    return found


def _ours(prepared: Prepared, seed: int) -> tuple[float, int]:
    """With the start of its workers."""
    found = _search(prepared, seed, "optuna", TRIALS, "cold", [])
    return _best(found), sum(trial.pruned for trial in found)


def _best(trials: Sequence[Trial]) -> float:
    return min(trial.score for trial in trials if trial.score is not None)


def _engine(data: str, seed: int, name: str, prepared: Prepared, trials: Sequence[Trial]) -> Engine:
    best = _best(trials)
    near = next(n for n, trial in enumerate(trials, 1) if trial.score is not None and trial.score <= best + NEAR)
    rows = len(prepared.samples.labels)
    return Engine(data, seed, name, rows, _best(trials[:5]), _best(trials[:20]), best, near)


def _memory(
    data: str, seed: int, name: str, retraining: int, prepared: Prepared, trials: Sequence[Trial], best: float
) -> Memory:
    good = (n for n, trial in enumerate(trials, 1) if trial.score is not None and trial.score <= best + NEAR)
    first = next(trial.score for trial in trials if trial.score is not None)
    return Memory(data, seed, name, retraining, len(prepared.samples.labels), next(good, 0), first - best)


def _original(prepared: Prepared, seed: int) -> float:
    """The best log loss that ``fmin`` finds around ``lightgbm.cv``."""
    samples, space = prepared.samples, LightGBM().space("binary")
    tune = Tune()

    def objective(point: Parameters) -> float:
        parameters = {
            name: int(value) if isinstance(space.dimensions[name], Integer) else value for name, value in point.items()
        }
        data = lightgbm.Dataset(
            samples.matrix, samples.labels, categorical_feature=list(samples.categorical), free_raw_data=False
        )
        fixed = {"objective": "binary", "metric": "binary_logloss", "verbosity": -1, "num_threads": CORES, "seed": seed}
        found = lightgbm.cv(
            fixed | space.fixed | parameters,
            data,
            num_boost_round=tune.rounds_max,
            folds=prepared.folds,
            callbacks=[lightgbm.early_stopping(tune.patience, verbose=False)],
        )
        losses: Any = found["valid binary_logloss-mean"]
        return float(min(losses))

    trials = hyperopt.Trials()
    hyperopt.fmin(
        objective,
        {name: _hyperopt_dimension(name, dimension) for name, dimension in space.dimensions.items()},
        algo=hyperopt.tpe.suggest,
        max_evals=TRIALS,
        trials=trials,
        rstate=np.random.default_rng(seed),
        show_progressbar=False,
        verbose=False,
    )
    return float(min(trials.losses()))


def _hyperopt_dimension(name: str, dimension: Real | Integer | Choice) -> Any:
    match dimension:
        case Real(low, high, True):
            return hp.loguniform(name, np.log(low), np.log(high))
        case Real(low, high):
            return hp.uniform(name, low, high)
        case Integer(low, high, _, True):
            return hp.qloguniform(name, np.log(low), np.log(high), 1)
        case Integer(low, high, step):
            return hp.quniform(name, low, high, step)
        case Choice(values):
            return hp.choice(name, list(values))


def _prepared(data: str, seed: int, rows: slice) -> Prepared:
    schema, table = _table(data, seed)
    return prepare(schema, _rows(schema, table[rows]), Tune(split="stratified"), seed)


def _shifted(data: str, seed: int) -> tuple[Prepared, Prepared]:
    schema, table = _table(data, seed)
    new = pl.col("age") > 40 if data == "adult" else pl.col("origin") == "LGA"
    tune = Tune(split="stratified")
    before, after = (_rows(schema, table.filter(chosen).head(SHIFT_ROWS)) for chosen in (~new, new))
    return prepare(schema, before, tune, seed), prepare(schema, after, tune, seed)


def _rows(schema: Schema, table: pl.DataFrame) -> Rows:
    names = [feature.name for feature in schema.features]
    outcomes = [outcome for outcome in columns_of(table, [schema.target])[schema.target] if outcome is not None]
    return Rows(columns_of(table, names), outcomes, [0] * len(table))


def _table(data: str, seed: int) -> tuple[Schema, pl.DataFrame]:
    """The labelled rows: people in an order by chance, flights in their own, each seed from another day on."""
    plan = PLANS[data]
    table = read_table(DATASETS / f"{data}.parquet")
    schema = infer(columns_for_inference(table), plan.choices).schema
    table = table.filter(pl.col(plan.choices.target).is_not_null())
    if data == "adult":
        return schema, table.sample(fraction=1.0, shuffle=True, seed=seed)
    return schema, table.sort("request_time")[seed * 50_000 :]


class Ratio(Struct, frozen=True):
    """Trials a second of one way to those of another, and how much better its best log loss is: the mean over the seeds,
    and the standard deviation of the pairs.
    """

    data: str
    what: str
    speed: float
    speed_low: float
    speed_high: float
    gain: float
    gain_deviation: float


def ratios(found: Sequence[Cold]) -> list[Ratio]:
    """Of tidemill to the original's way, and of the control to the same."""
    rows = []
    for data in dict.fromkeys(one.data for one in found):
        for way in ("tidemill", "original again"):
            pairs = [
                (next(one for one in found if (one.data, one.seed, one.way) == (data, seed, "original")), other)
                for other in found
                if (other.data, other.way) == (data, way)
                for seed in [other.seed]
            ]
            speeds = [then.seconds / now.seconds for then, now in pairs]
            gains = [then.best - now.best for then, now in pairs]
            deviation = stdev(gains) if len(gains) > 1 else 0.0
            rows.append(Ratio(data, f"{way} / original", median(speeds), min(speeds), max(speeds), mean(gains), deviation))
    return rows


class Remembered(Struct, frozen=True):
    """Over the seeds and retrainings: the median trial that is as good as the cold best (``WARM_TRIALS`` + 1 where none
    was), the share that got there in 5, how far the first trial lay behind, and what the cold search needed.
    """

    data: str
    engine: str
    reached_median: float
    within_5: float
    first_behind: float
    cold_median: float


def remembered(found: Sequence[Memory], engines: Sequence[Engine]) -> list[Remembered]:
    rows = []
    for data, name in dict.fromkeys((one.data, one.engine) for one in found):
        ours = [one for one in found if (one.data, one.engine) == (data, name)]
        reached = [one.reached or WARM_TRIALS + 1 for one in ours]
        needed = [one.near for one in engines if (one.data, one.engine) == (data, name)]
        within = mean(number <= 5 for number in reached)
        rows.append(Remembered(data, name, median(reached), within, mean(one.behind for one in ours), median(needed)))
    return rows


class AgainstRandom(Struct, frozen=True):
    """How much better than random points an engine's best is after 20 and 50 trials: the mean of pairs of the same rows and
    seed, and twice its standard error; within it nothing is shown.
    """

    data: str
    engine: str
    gain_20: float
    error_20: float
    gain_50: float
    error_50: float


def against_random(engines: Sequence[Engine]) -> list[AgainstRandom]:
    chance = {(one.data, one.seed, one.rows): one for one in engines if one.engine == "random"}
    rows = []
    for data, name in dict.fromkeys((one.data, one.engine) for one in engines if one.engine != "random"):
        pairs = [
            (one, chance[one.data, one.seed, one.rows])
            for one in engines
            if (one.data, one.engine) == (data, name) and (one.data, one.seed, one.rows) in chance
        ]
        if len(pairs) > 1:
            gains = [[by_chance.best_20 - one.best_20, by_chance.best_50 - one.best_50] for one, by_chance in pairs]
            columns = list(zip(*gains, strict=True))
            errors = [2 * stdev(column) / len(column) ** 0.5 for column in columns]
            rows.append(AgainstRandom(data, name, mean(columns[0]), errors[0], mean(columns[1]), errors[1]))
    return rows


class Shifted(Struct, frozen=True):
    """Warm against cold after a shift: over the seeds the mean gain in log loss, the worst, and the standard deviation."""

    data: str
    engine: str
    gain: float
    worst: float
    deviation: float


def shifted(found: Sequence[Shift]) -> list[Shifted]:
    rows = []
    for data, name in dict.fromkeys((one.data, one.engine) for one in found):
        gains = [one.cold - one.warm for one in found if (one.data, one.engine) == (data, name)]
        between = stdev(gains) if len(gains) > 1 else 0.0
        rows.append(Shifted(data, name, mean(gains), min(gains), between))
    return rows
