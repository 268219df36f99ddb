"""Outcomes: bytes -> the label, as the schema writes it; labels -> the numbers that a learner takes.

Of a classification, an outcome names a class by its text (``category_text``), so 1, 1.0 and ``"1"`` are the same; where no
class has that text, true stands for 1 and false for 0, and the other way round, and ``"1.0"`` for 1. Of a regression it is a
finite number, or its text. Whatever an app sends, the schema's own label comes out.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.core.decoding import Headers, check_content, outcome_id, outcome_time, parse_time
from tidemill.core.inspection import category_text, exact_number, parse_object, unique_fields
from tidemill.core.schema import Schema
from tidemill.errors import BadRecord, ConfigError
from tidemill.messages import Label, Outcome

OUTCOME_BYTES_MAX = 65_536
_SAME = {"true": "1", "1": "true", "false": "0", "0": "false"}


def decode_outcome(key: bytes | None, value: bytes, schema: Schema, headers: Headers = ()) -> Outcome:
    """The outcome in ``{"outcome": ..., "time": ...}`` or, where that is absent or null, in the field named as the target.

    The time is whole milliseconds or RFC 3339 with a time zone; without one, the header ``ce_time``. Raises ``BadRecord``:
    missing_id, bad_id, not_json, not_an_object, duplicate_key, missing_outcome, unknown_class, wrong_type, not_finite,
    bad_time ...
    """
    outcome_id(key, headers)
    check_content(headers)
    fields = unique_fields(parse_object(value, OUTCOME_BYTES_MAX), ("outcome", "time", schema.target))
    label = fields.get("outcome")
    if label is None:
        label = fields.get(schema.target)
    if label is None:
        raise BadRecord("missing_outcome", "outcome", f"neither 'outcome' nor {schema.target!r} has a value")
    time = _time(fields.get("time"))
    return Outcome(label_of(label, schema), outcome_time(headers) if time is None else time)


def label_of(value: Any, schema: Schema) -> Label:
    """The schema's label for a value that an app sent, or that a table holds. Raises ``BadRecord``."""
    if not isinstance(value, str | int | float):
        raise BadRecord("wrong_type", "outcome", "neither text, a number, true nor false")
    if schema.task == "regression":
        if isinstance(value, bool):
            raise BadRecord("wrong_type", "outcome", "true or false for a number")
        return exact_number(value if isinstance(value, str) else repr(value), "outcome")
    table = _classes(*schema.classes)
    text = category_text(value)
    number = table[text] if text in table else table.get(_number_text(text))
    if number is None:
        raise BadRecord("unknown_class", "outcome", f"{text[:40]!r} is none of {', '.join(map(repr, schema.classes))[:200]}")
    return schema.classes[number]


def label_numbers(schema: Schema, outcomes: Sequence[Label]) -> NDArray[np.float64]:
    """The class numbers, or the values of a regression, float64[n]. Raises ``BadRecord`` for what is no label."""
    labels = (label_of(outcome, schema) for outcome in outcomes)
    if schema.task != "regression":
        numbers = {category_text(label): number for number, label in enumerate(schema.classes)}
        labels = (numbers[category_text(label)] for label in labels)
    return np.fromiter(labels, dtype=np.float64, count=len(outcomes))


@lru_cache(maxsize=64, typed=True)
def _classes(*classes: Label) -> dict[str, int]:
    """By text, the number of the class; also by the text that stands for it, where no class has that one."""
    table = {category_text(label): number for number, label in enumerate(classes)}
    if len(table) < len(classes):
        raise ConfigError(f"two of the schema's classes have the same text: {', '.join(map(repr, classes))}")
    return {_SAME[text]: number for text, number in table.items() if text in _SAME} | table


def _number_text(text: str) -> str:
    """``"1.0"`` as ``"1"``; what is no number stays."""
    try:
        return category_text(exact_number(text, "outcome"))
    except BadRecord:
        return text


def _time(token: Any) -> int | None:
    """The time of a parsed token: a number's text or a text."""
    if token is None:
        return None
    if not isinstance(token, str):
        raise BadRecord("bad_time", "time", "neither milliseconds nor text")
    return parse_time(token, "time")
