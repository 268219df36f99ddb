"""A backtest as text: for a person, and for scripts."""

import csv
import io

from tidemill.backtest.result import PolicyResult, Result
from tidemill.core.choosing import BLOCKS_MIN, Interval
from tidemill.texts import aligned, moment

WINDOWS = 60
"""Lines of quality over time at most."""
COLUMNS = (
    *("policy", "chosen", "metric", "score", "scored", "gain", "gain_low", "gain_high", "behind_best", "behind_best_low"),
    *("behind_best_high", "trainings", "promoted", "training_seconds"),
)


def facts(result: Result) -> list[tuple[str, str]]:
    """What the figures rest on, as pairs of a name and a text."""
    of = f"{len(result.windows)} blocks of {length(result.block_hours)}, {result.resamples:,} times, seed {result.seed}"
    return [
        ("requests", f"{result.requests:,} of {result.source}, {moment(result.since)} to {moment(result.until)} UTC"),
        ("outcomes", f"{result.labelled:,}; {result.scored:,} answers are scored, the same for every policy"),
        ("quality", f"{result.metric}, each request by the version that served then; {_better(result)} is better"),
        ("intervals", f"{result.confidence:.0%}, from resampling {of}"),
        ("retrainings", f"{trials(result)} each; a new version serves {_ready(result)}"),
    ]


def trials(result: Result) -> str:
    """How many a retraining has."""
    return "1 trial" if result.trials == 1 else f"{result.trials} trials"


def _ready(result: Result) -> str:
    if not result.ready_after_seconds:
        return "at once, whatever its training took"
    return f"{result.ready_after_seconds:g} s after its training began"


def length(hours: float) -> str:
    """Hours in the unit that a person would take."""
    units = (("day", 24.0), ("hour", 1.0), ("minute", 1 / 60))
    name, size = next(((name, size) for name, size in units if hours >= size), units[-1])
    return f"{hours / size:g} {name}{'' if hours == size else 's'}"


def _better(result: Result) -> str:
    return "higher" if result.greater_is_better else "lower"


def conclusion(result: Result) -> list[str]:
    """The choice, and what speaks against trusting it."""
    lines = [f"chosen: {result.chosen} ({result.reason})"]
    if len(result.windows) < BLOCKS_MIN:
        lines.append(f"note: {len(result.windows)} blocks are few, so the intervals say little: --block-hours, or more data")
    failed = [f"{one.policy} {count}" for one in result.policies if (count := _count(one, "failed"))]
    if failed:
        lines.append(f"note: retrainings that failed: {', '.join(failed)}")
    return [*lines, *(f"note: {note}" for note in result.notes)]


def _count(one: PolicyResult, verdict: str) -> int:
    return sum(training.verdict == verdict for training in one.trainings)


def shown(interval: Interval) -> str:
    """A gain with its interval."""
    if interval.low is None or interval.high is None:
        return f"{interval.gain:+.4f}"
    return f"{interval.gain:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def table(result: Result) -> list[list[str]]:
    """A head and a row a policy, in the order in which they were played."""
    head = [
        "policy",
        result.metric,
        f"better than {result.baseline} by",
        "than the best",
        "trainings",
        "promoted",
        "seconds",
    ]
    rows = [
        [
            one.policy,
            f"{one.score:.4f}",
            shown(one.gain_over_baseline) if one.policy != result.baseline else "",
            shown(one.gain_over_best) if one.policy != result.best else "the best",
            str(len(one.trainings)),
            str(_count(one, "promoted")),
            f"{one.training_seconds:.1f}",
        ]
        for one in result.policies
    ]
    return [head, *rows]


def render(result: Result) -> str:
    """All of it for a terminal."""
    lines = [f"{name:<12}{text}" for name, text in facts(result)]
    lines += ["", *aligned(table(result)), ""]
    if len(result.windows) <= WINDOWS:
        lines += [*aligned(_windows(result)), ""]
    else:
        lines += [f"quality over time: {len(result.windows)} windows, which --html and --json show", ""]
    return "\n".join([*lines, *conclusion(result)])


def _windows(result: Result) -> list[list[str]]:
    head = ["from (UTC)", "answers", *(one.policy for one in result.policies)]
    rows = [
        [moment(start), f"{count:,}", *(_score(one.scores[number]) for one in result.policies)]
        for number, (start, count) in enumerate(zip(result.windows, result.rows, strict=True))
    ]
    return [head, *rows]


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"


def to_csv(result: Result) -> str:
    """A line a policy; the columns stay."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in result.policies:
        over, behind = one.gain_over_baseline, one.gain_over_best
        cells = [one.policy, int(one.policy == result.chosen), result.metric, one.score, result.scored]
        cells += [over.gain, over.low, over.high, behind.gain, behind.low, behind.high]
        writer.writerow([*cells, len(one.trainings), _count(one, "promoted"), round(one.training_seconds, 3)])
    return out.getvalue()
