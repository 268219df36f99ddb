"""Outcomes: bytes -> the label, as the schema writes it; labels -> the numbers that a learner takes.

Of a classification, an outcome names a class by its text (``category_text``), so 1, 1.0 and ``"1"`` are the same; where no
class has that text, true stands for 1 and false for 0, and the other way round, and ``"1.0"`` for 1. Of a regression it is a
finite number, or its text. Whatever an app sends, the schema's own label comes out.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Raw
from numpy.typing import NDArray

from tidemill.core.decoding import Headers, check_content, outcome_id, outcome_time, parse_time
from tidemill.core.inspection import category_text, exact_number, parse_object, unique_fields
from tidemill.core.schema import Schema
from tidemill.errors import BadRecord, ConfigError
from tidemill.messages import Label, Outcome

OUTCOME_BYTES_MAX = 65_536
LABELS_MAX = 10_000
"""Texts of labels whose meaning is kept; of a regression each may be another."""
_NOTHING = (None, b"null")
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


class OutcomeDecoder:
    """``decode_outcome`` for many: what is plainly good is read by a typed parse, all else by the slow, exact one."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        fields = {name: f"field{number}" for number, name in enumerate(dict.fromkeys(("outcome", "time", schema.target)))}
        row = msgspec.defstruct(
            "Row", [(field, Raw, UNSET) for field in fields.values()], rename={f: n for n, f in fields.items()}, gc=False
        )
        self._decode = msgspec.json.Decoder(row).decode
        self._target = list(fields).index(schema.target)
        self._labels: dict[bytes, Label] = {}
        self._known: dict[bytes, Outcome] = {}

    def decode(self, key: bytes | None, value: bytes, headers: Headers = ()) -> Outcome:
        """See ``decode_outcome``."""
        plain = None if headers else self.plain(value)
        if plain is None:
            return decode_outcome(key, value, self._schema, headers)
        outcome_id(key)
        return plain

    def plain(self, value: bytes) -> Outcome | None:
        """The outcome in a value without headers; None where its bytes do not rule out that something is wrong."""
        found = self._known.get(value)
        if found is None:
            found = self._parse(value)
            if found is not None and found.time is None:
                _keep(self._known, value, found)
        return found

    def _parse(self, value: bytes) -> Outcome | None:
        # In ASCII without escapes, with one brace and no more colons than the known fields have, no key is there twice.
        if not value.isascii() or b"\\" in value or value.count(b"{") != 1 or len(value) > OUTCOME_BYTES_MAX:
            return None
        try:
            tokens = [None if raw is UNSET else bytes(raw) for raw in msgspec.structs.astuple(self._decode(value))]
        except (ValueError, RecursionError):
            return None
        if value.count(b":") != sum(1 + token.count(b":") for token in tokens if token is not None):
            return None
        token, time = tokens[self._target] if tokens[0] in _NOTHING else tokens[0], tokens[1]
        label = None if token is None else self._label(token)
        if label is None:
            return None
        if time is None or time == b"null":
            return Outcome(label)
        return Outcome(label, int(time)) if time.isdigit() and len(time) <= 15 else None

    def _label(self, token: bytes) -> Label | None:
        label = self._labels.get(token)
        if label is None:
            try:
                label = label_of(parse_object(b'{"outcome":%s}' % token, OUTCOME_BYTES_MAX)[0][1], self._schema)
            except BadRecord:
                return None
            _keep(self._labels, token, label)
        return label


def _keep(cache: dict[bytes, Any], key: bytes, value: Any) -> None:
    if len(cache) >= LABELS_MAX:
        cache.clear()
    cache[key] = value


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
