"""Infers a schema from what the original data holds. Every guess is told in a note, and can be overruled by a choice."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct

from tidemill.core.schema import UNREADABLE, Feature, FeatureType, Schema, Task, is_readable
from tidemill.errors import ConfigError
from tidemill.messages import Label

Value = int | float | str | bool | None
"""What a JSON object can hold in a field."""
Kind = Literal["integer", "float", "boolean", "text", "time", "other"]

CODES_MAX = 20
"""A target of integers is taken as classes if it has up to so many values and they count up from 0 or 1."""
CLASSES_MAX = 1000
"""More classes than this are refused: they are ids or free text."""
CATEGORIES_MAX = 20_000
"""A text column with more different values than this is not a feature: its values are not even listed."""
IDS_MIN = 1000
"""A text column with more different values than this, and than half its rows, is taken for ids or free text."""


class Column(Struct, frozen=True):
    """One column of the table: its ``rows``, those with a ``missing`` value, and the ``distinct`` values of the others.

    ``counts`` has the rows of each value, or is empty where there are too many values. ``minimum`` and ``maximum`` are those
    of numbers and times; ``whole`` says that all numbers are integers, in whatever type they are kept.
    """

    name: str
    kind: Kind
    rows: int
    missing: int
    distinct: int
    minimum: float | None = None
    maximum: float | None = None
    whole: bool = False
    counts: dict[Any, int] = {}

    @property
    def present(self) -> int:
        """The rows that have a value."""
        return self.rows - self.missing


class Choices(Struct, frozen=True, kw_only=True):
    """What a person decides instead of leaving it to be inferred; empty fields are inferred."""

    target: str
    task: Task | Literal[""] = ""
    id: str = ""
    time: str = ""
    ignore: tuple[str, ...] = ()
    positive: str = ""


class Inferred(Struct, frozen=True):
    """A schema, why columns are not in it (by name), and remarks on guesses that a person should look at."""

    schema: Schema
    ignored: dict[str, str]
    remarks: list[str]


def infer(columns: Sequence[Column], choices: Choices) -> Inferred:
    """The schema of a table. Raises ``ConfigError`` where a choice names no column, or nothing can be learnt.

    - task: text, true/false and two-valued targets are classes; integers are classes if they are few and count up from
      0 or 1 (``CODES_MAX``); all else is a regression.
    - classes: in their natural order (false true, 0 1, a b), so that the positive one of two is the last; ``positive``
      puts another one last. The order does not depend on how often a class occurs, so that more data cannot turn it round.
    - id: the column ``id``, or the first ``*_id``, whose values are all there and all different.
    - time: the only column of dates or times.
    - features: all other columns, except constant ones, times, ids, and text that hardly ever repeats.

    Rows without a target are allowed: they are requests without an outcome, and are not trained on.
    """
    table = {column.name: column for column in columns}
    _check_names(table, choices)
    target = table[choices.target]
    task = choices.task or _task(target)
    classes = _classes(target, task, choices.positive)
    others = [c for c in columns if c.name != target.name and c.name not in choices.ignore]
    id_column = choices.id or _find_id(others)
    time_column, remarks = _find_time(others, choices.time)
    remarks = [*_task_remarks(target, task, choices), *remarks]
    ignored = dict.fromkeys(choices.ignore, "as you asked")
    features: list[Feature] = []
    for column in others:
        if column.name in {id_column, time_column}:
            continue
        if reason := _useless(column):
            ignored[column.name] = reason
        else:
            features.append(_feature(column))
    if not features:
        raise ConfigError(f"no column is left to learn {target.name!r} from: {_listed(ignored) or 'the table has no other'}")
    schema = Schema(tuple(features), target.name, task, classes, id=id_column, time=time_column)
    return Inferred(schema, ignored, remarks)


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` where one of the known names is near, else ``""``."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _listed(ignored: dict[str, str]) -> str:
    return ", ".join(f"{name} ({reason})" for name, reason in ignored.items())


def _check_names(table: dict[str, Column], choices: Choices) -> None:
    named = [
        ("target", choices.target),
        ("id", choices.id),
        ("time", choices.time),
        *(("ignore", n) for n in choices.ignore),
    ]
    for option, name in named:
        if name and name not in table:
            hint = nearest(name, table) or f"; there are {', '.join(table)}"
            raise ConfigError(f"--{option} {name}: the table has no such column{hint}")
    special = [name for _, name in named[:3] if name]
    doubled = [name for name in special if special.count(name) > 1 or name in choices.ignore]
    if doubled:
        raise ConfigError(f"column {doubled[0]!r} is given for more than one of --target, --id, --time and --ignore")
    if choices.id and not _is_id(table[choices.id]):
        raise ConfigError(f"--id {choices.id}: needs integers or text, in every row, and no value twice")
    if choices.time and table[choices.time].kind not in {"time", "integer"}:
        raise ConfigError(
            f"--time {choices.time}: holds {_kind_text(table[choices.time])}, not dates, times or milliseconds"
        )


def _kind_text(column: Column) -> str:
    return {
        "integer": "integers",
        "float": "numbers",
        "boolean": "true and false",
        "time": "times",
        "other": "lists, records or bytes",
    }.get(column.kind, column.kind)


def _is_id(column: Column) -> bool:
    return column.kind in {"integer", "text"} and not column.missing and column.distinct == column.rows


def _find_id(columns: Sequence[Column]) -> str:
    names = [c.name for c in columns if _is_id(c) and (c.name.lower() == "id" or c.name.lower().endswith("_id"))]
    return min(names, key=lambda name: name.lower() != "id", default="")


def _find_time(columns: Sequence[Column], chosen: str) -> tuple[str, list[str]]:
    times = [c.name for c in columns if c.kind == "time"]
    if chosen or not times:
        return chosen, []
    if len(times) == 1:
        advice = f"if it is another time (a birth date, say), leave it out with --ignore {times[0]}"
        return times[0], [f"{times[0]!r} is taken as the event time, and folds train on what came before; {advice}"]
    return "", [f"{len(times)} columns hold times ({', '.join(times)}): name the event time with --time, else none is used"]


def _task(target: Column) -> Task:
    if target.kind == "boolean" or (target.distinct == 2 and target.kind in {"integer", "float", "text"}):
        return "binary"
    if target.kind == "text" or _counts_up(target):
        return "multiclass"
    return "regression"


def _counts_up(column: Column) -> bool:
    low, high = column.minimum, column.maximum
    return (
        column.whole
        and low in {0, 1}
        and high is not None
        and 3 <= column.distinct <= CODES_MAX
        and column.distinct == high - low + 1
    )


def _task_remarks(target: Column, task: Task, choices: Choices) -> list[str]:
    if choices.task or target.kind in {"boolean", "text"} or target.distinct == 2:
        return []
    if task == "multiclass":
        return [f"{target.distinct} codes of {target.name!r} are taken as classes; --task regression takes them as numbers"]
    if target.whole and target.distinct <= CODES_MAX:
        return [f"{target.distinct} values of {target.name!r} are taken as numbers; --task multiclass takes them as classes"]
    return []


def _classes(target: Column, task: Task, positive: str) -> tuple[Label, ...]:
    """The labels, checked against the task; empty for a regression."""
    name, distinct = target.name, target.distinct
    if not target.present:
        raise ConfigError(f"--target {name}: is empty: nothing can be learnt")
    if target.kind in {"time", "other"}:
        raise ConfigError(f"--target {name}: holds {_kind_text(target)}, not labels or numbers")
    if distinct < 2:
        raise ConfigError(f"--target {name}: has a single value: nothing can be learnt")
    if task == "regression":
        if target.kind not in {"integer", "float"}:
            raise ConfigError(f"--target {name}: a regression needs numbers, not {_kind_text(target)}")
        if positive:
            raise ConfigError("--positive: a regression has no classes")
        return ()
    if (task == "binary") != (distinct == 2):
        wanted = "exactly 2" if task == "binary" else "3 or more"
        raise ConfigError(f"--target {name}: has {distinct} values, a {task} target has {wanted}")
    if distinct > min(CLASSES_MAX, max(2, target.present // 2)):
        raise ConfigError(f"--target {name}: {distinct} different values in {target.present} rows are too many for classes")
    labels = sorted(_label(value, target.whole) for value in target.counts)
    return _positive_last(name, tuple(labels), positive)


def _label(value: Any, whole: bool) -> Any:
    """0.0 and 1.0 (integers that a table keeps as floats because some are missing) are the labels 0 and 1."""
    return int(value) if whole else value


def _positive_last(name: str, labels: tuple[Label, ...], positive: str) -> tuple[Label, ...]:
    if not positive:
        return labels
    texts = [label_text(label) for label in labels]
    if positive not in texts or len(labels) != 2:
        raise ConfigError(f"--positive {positive}: must be one of the two values of {name!r}: {', '.join(texts)}")
    return labels if texts[1] == positive else labels[::-1]


def label_text(label: Label) -> str:
    """A label as JSON would show it, text without quotes."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def _useless(column: Column) -> str:
    """Why a column cannot be a feature, or ``""``."""
    if not column.present:
        return "empty"
    if column.kind == "other":
        return "neither numbers, text nor true/false"
    if column.kind == "time":
        return "a time; give its parts (hour, weekday ...) as columns to learn from them"
    if column.distinct == 1 and not column.missing:
        return "always the same"
    named_id = column.name.lower() == "id" or column.name.lower().endswith("_id")
    if named_id and _is_id(column):
        return "an id: different in every row"
    return _useless_text(column) if column.kind == "text" else ""


def _useless_text(column: Column) -> str:
    if column.distinct == column.present and column.present > CODES_MAX:
        return "text that never repeats: ids or free text"
    if column.distinct > IDS_MIN and column.distinct > column.present / 2:
        return f"text that hardly repeats: {column.distinct} values in {column.present} rows"
    return f"text with more than {CATEGORIES_MAX} different values" if column.distinct > CATEGORIES_MAX else ""


def _feature(column: Column) -> Feature:
    if not is_readable(column.name):
        advice = "rename it in the data and in the requests, or leave it out with --ignore"
        raise ConfigError(f"column {column.name!r}: {UNREADABLE}: {advice}")
    kinds: dict[Kind, FeatureType] = {"boolean": "boolean", "text": "category"}
    kind = kinds.get(column.kind, "number")
    categories = tuple(sorted(column.counts)) if kind == "category" else ()
    if kind != "number":
        return Feature(column.name, kind, categories)
    return Feature(column.name, kind, minimum=column.minimum, maximum=column.maximum)
