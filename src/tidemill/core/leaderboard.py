"""Trials side by side: one board an environment, ranked; what is left out of a board, and why."""

import csv
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tidemill.core.environment import differences
from tidemill.core.metrics import METRICS
from tidemill.errors import ConfigError
from tidemill.messages import Conditions, Trial

LATEST = "latest"
NAMED = 3
"""Experiments that one line of a table names; a script gets all."""
COLUMNS = (
    *("environment", "metric", "rank", "score", "state", "learner", "rounds", "seconds"),
    *("experiment", "number", "proposer", "error"),
)
"""Of the CSV, before a column for each parameter."""


class Row(Struct, frozen=True):
    """One trial. ``rank`` is None where there is no score: it was ``pruned``, or has ``failed``."""

    rank: int | None
    score: float | None
    state: str
    learner: str
    rounds: int
    seconds: float
    experiment: str
    number: int
    parameters: dict[str, Any]
    proposer: str = ""
    error: str = ""


class Board(Struct, frozen=True):
    """The trials of one environment, the best first, those without a score last; one that an experiment took over from
    an earlier one stands once.
    """

    environment: str
    metric: str
    conditions: Conditions | None
    experiments: list[str]
    rows: list[Row]

    @property
    def ranked(self) -> list[Row]:
        """The rows that have a score."""
        return [row for row in self.rows if row.rank is not None]


class LeftOut(Struct, frozen=True):
    """Trials that cannot be compared with those of the first board, for the same reasons."""

    experiments: list[str]
    trials: int
    reasons: list[str]


class Leaderboard(Struct, frozen=True):
    """Boards, each ranked alone, the one with the newest trial first, and what stands on none of them."""

    boards: list[Board]
    left_out: list[LeftOut]


def named(given: str, experiments: Sequence[str]) -> str:
    """The experiment that a person means: its id, how no other one begins, or ``latest``; ``experiments``, oldest first."""
    known = list(dict.fromkeys(experiments))
    if not known:
        raise ConfigError("there is no trial yet: tidemill train makes some")
    found = [known[-1]] if given == LATEST else [id for id in known if id.startswith(given)]
    if given in known or len(found) == 1:
        return given if given in known else found[0]
    if found:
        raise ConfigError(f"experiment {given!r} may be {_few(found)}: write more of its id")
    raise ConfigError(f"there is no experiment {given!r}; there are {_few(known[::-1])}, and {LATEST}")


def leaderboard(trials: Sequence[Trial], metric: str = "", every: bool = False) -> Leaderboard:
    """The newest board, or ``every`` one, of all metrics or of one. ``trials`` are all that there are, the oldest first."""
    if metric and metric not in METRICS:
        raise ConfigError(f"--metric {metric!r} is not one of {', '.join(sorted(METRICS))}")
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in reversed(trials):
        groups.setdefault((trial.environment, trial.metric), []).append(trial)
    fit = [key for key in groups if key[1] in METRICS and metric in ("", key[1])]
    shown = [_board(groups.pop(key)[::-1]) for key in fit[: None if every else 1]]
    return Leaderboard(shown, _left_out(shown[0] if shown else None, groups.values()))


def _board(found: Sequence[Trial]) -> Board:
    trials = _tried(found)
    measure = METRICS[trials[0].metric]
    scored = [(measure.loss(trial.score), place, trial) for place, trial in enumerate(trials) if trial.score is not None]
    ranked = [_row(trial, rank) for rank, (_, _, trial) in enumerate(sorted(scored, key=lambda one: one[:2]), 1)]
    others = [_row(trial, None) for trial in trials if trial.score is None]
    return Board(
        trials[0].environment,
        measure.name,
        trials[0].conditions,
        list(dict.fromkeys(trial.experiment for trial in found)),
        [*ranked, *sorted(others, key=lambda row: row.state == "failed")],
    )


def _tried(trials: Sequence[Trial]) -> list[Trial]:
    """Without those that an experiment took over from an earlier one of the same environment."""
    first: dict[tuple[object, ...], str] = {}
    found = []
    for trial in trials:
        point = trial.learner, trial.score, tuple(sorted(trial.parameters.items(), key=lambda one: one[0]))
        if trial.score is None or first.setdefault(point, trial.experiment) == trial.experiment:
            found.append(trial)
    return found


def _row(trial: Trial, rank: int | None) -> Row:
    return Row(
        rank,
        trial.score,
        trial.state,
        trial.learner,
        trial.rounds,
        trial.seconds,
        trial.experiment,
        trial.number,
        trial.parameters,
        trial.proposer,
        trial.error,
    )


def _left_out(board: Board | None, groups: Iterable[Sequence[Trial]]) -> list[LeftOut]:
    """Other environments' trials by their reasons, the newest first."""
    by_reasons: dict[tuple[str, ...], list[Trial]] = {}
    for group in groups:
        by_reasons.setdefault(_reasons(board, group[0]), []).extend(group)
    return [
        LeftOut(list(dict.fromkeys(trial.experiment for trial in found)), len(found), list(reasons))
        for reasons, found in by_reasons.items()
    ]


def _reasons(board: Board | None, trial: Trial) -> tuple[str, ...]:
    if trial.metric not in METRICS:
        return ("a metric that this version does not know",)
    if board is not None and board.conditions is not None:
        return tuple(differences(board.conditions, trial.conditions)) or ("another environment",)
    metric = ("another metric",) if board is None or trial.metric != board.metric else ()
    return metric or ("another environment",)


def to_csv(found: Leaderboard, limit: int = 0) -> str:
    """A line a trial, of every board; parameters as ``param.NAME``."""
    rows = [(board, row) for board in found.boards for row in limited(board.rows, limit)]
    names = sorted({name for _, row in rows for name in row.parameters})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"param.{name}" for name in names)])
    for board, row in rows:
        cells = [getattr(row, name) for name in COLUMNS[2:]]
        writer.writerow([board.environment, board.metric, *cells, *(row.parameters.get(name) for name in names)])
    return text.getvalue()


def to_json(found: Leaderboard, limit: int = 0) -> str:
    """The leaderboard's own fields."""
    boards = [replace(board, rows=limited(board.rows, limit)) for board in found.boards]
    return msgspec.json.encode(replace(found, boards=boards)).decode()


def limited(rows: Sequence[Row], limit: int) -> list[Row]:
    """The first ``limit``, or all where it is 0."""
    return list(rows[: limit or None])


def render(found: Leaderboard, limit: int, width: int = 0, all_rows: bool = False) -> str:
    """For a terminal of so many columns (0: no line is broken): a line a trial, then who is left out.

    With ``all_rows`` the trials without a score stand at the end; else they are counted.
    """
    blocks = [_block(board, limit, width, all_rows) for board in found.boards]
    return "\n\n".join("\n".join(lines) for lines in [*blocks, [_told(left) for left in found.left_out]] if lines)


def _block(board: Board, limit: int, width: int, all_rows: bool) -> list[str]:
    rows = board.rows if all_rows else board.ranked
    shown = limited(rows, limit)
    head = ("rank", board.metric, "learner", "rounds", "seconds", "experiment/number")
    lines = [f"{board.metric}, environment {board.environment[:12]}: {_conditions(board.conditions)}"]
    shared = _shared(shown)
    lines += _table(head, [_cells(row) for row in shown], [_remark(row, shared) for row in shown], width)
    if shared:
        lines.append(f"all of these: {_parameters(shared)}")
    if len(shown) < len(rows):
        lines.append(f"and {_count(len(rows) - len(shown), 'trial')} more: --limit 0 shows all")
    silent = [row.state for row in board.rows if row.rank is None]
    if silent:
        counts = ", ".join(f"{silent.count(state)} {state}" for state in ("pruned", "failed") if state in silent)
        lines.append(f"without a score: {counts}" + ("" if all_rows else "; tidemill trials EXPERIMENT shows them"))
    return lines


def _conditions(conditions: Conditions | None) -> str:
    if conditions is None:
        return "its conditions were not recorded"
    rows = f"{conditions.rows:,} rows, " if conditions.rows else ""
    folds = f"{conditions.folds} folds ({conditions.split})" if conditions.folds else conditions.split
    return f"{rows}{folds}, seed {conditions.seed}" + (", unbalanced" if conditions.unbalanced else "")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], remarks: list[str], width: int) -> list[str]:
    """Columns as wide as they need, the remark last; it is broken into lines of its own where the terminal ends."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    starts = ["  ".join(map(str.ljust, row, widths)) for row in [head, *rows]]
    lines = []
    for start, remark in zip(starts, ["parameters", *remarks], strict=True):
        indent = len(start) + 2 if width - len(start) > 30 else 4
        text = f"{start}  {remark}".rstrip()
        lines += _wrapped(text, width, indent) if width else [text]
    return lines


def _wrapped(text: str, width: int, indent: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _cells(row: Row) -> tuple[str, ...]:
    score = row.state if row.score is None else f"{row.score:.6g}"
    place = f"{row.experiment}/{row.number}"
    return str(row.rank or "-"), score, row.learner or "-", str(row.rounds), f"{row.seconds:.1f}", place


def _shared(rows: Sequence[Row]) -> dict[str, Any]:
    """The parameters that have the same value in all of several rows: they tell none from another."""
    first = rows[0].parameters if len(rows) > 1 else {}
    return {name: value for name, value in first.items() if all(row.parameters.get(name) == value for row in rows)}


def _remark(row: Row, shared: Mapping[str, Any]) -> str:
    own = _parameters({name: value for name, value in row.parameters.items() if name not in shared})
    return f"{own}; {' '.join(row.error.split())}" if row.error else own


def _parameters(parameters: Mapping[str, Any]) -> str:
    texts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in parameters.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items())


def _told(left: LeftOut) -> str:
    which = "experiment" if len(left.experiments) == 1 else f"{len(left.experiments)} experiments:"
    return f"left out: {_count(left.trials, 'trial')} of {which} {_few(left.experiments)}: {', '.join(left.reasons)}"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
