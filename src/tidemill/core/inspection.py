"""The slow, exact judgement of one JSON value, token by token, with the reason and the field for what is wrong.

The parser keeps numbers as their text, so that what a float would lose is still there to be seen.
"""

import json
import math
import re
from collections.abc import Collection
from itertools import repeat
from typing import Any

from tidemill.core.schema import Feature
from tidemill.errors import BadRecord

REASONS = {
    "empty": "the value has no bytes",
    "too_large": "the value is larger than request_bytes_max; it was not parsed",
    "bad_utf8": "the value is not UTF-8, be it only in a field that the schema lacks",
    "not_json": "the value is not one JSON document",
    "not_an_object": "the value is JSON, but not an object",
    "too_deep": "lists and objects are nested deeper than 64 levels",
    "duplicate_key": "a field that the schema knows stands there twice",
    "wrong_type": "a field's value cannot be read as the feature's type, or a CloudEvent is not in binary mode",
    "not_finite": "NaN, infinite, or beyond what a float holds",
    "not_exact": "an integer with more digits than a float (in a category: 64 bits) holds exactly",
    "underflow": "a number other than 0 that a float would take for 0",
    "nul_in_text": "a category's text has a NUL character",
    "missing_id": "the record has neither a key nor an id among its headers, and one is needed",
    "bad_id": "the id is empty, not UTF-8, has a NUL character or more than 512 bytes",
    "bad_time": "a time is neither whole milliseconds nor RFC 3339 with a time zone",
    "expired": "the deadline had passed before the request could be answered",
    "non_finite_score": "the model's answer is not a finite number",
    "missing_outcome": "the outcome's field is absent or null",
    "unknown_class": "the outcome is none of the schema's classes",
    "not_a_command": "a record of the topic retrain that is no command",
}
"""Every reason for which a record becomes a dead letter."""

DEPTH_MAX = 64
"""Fixed, because what the parsers can bear depends on the stack of their caller: 64 is far below that, and above use."""
EXACT = 2.0**53
"""Below this magnitude every integer is a float64."""
CATEGORY_INTEGER_MAX = 2**64
"""An integer category must be smaller; the time to write one out grows with the square of its length."""
BOOLEANS: dict[Any, bool | None] = {0: False, 1: True, "false": False, "true": True, "0": False, "1": True, None: None}
"""What stands for true and false; texts in lower case, without spaces around them."""

_NUMBER = re.compile(r"\s*[+-]?((\d+)(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_NOT_FINITE = {"nan", "inf", "infinity"}


class _Integer(str):
    __slots__ = ()


class _Float(str):
    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands in the text: its keys in order, repeated ones too."""


_parser = json.JSONDecoder(object_pairs_hook=Pairs, parse_int=_Integer, parse_float=_Float, parse_constant=_Float)


def parse_object(value: bytes, bytes_max: int) -> Pairs:
    """One JSON object. Raises ``BadRecord`` where the bytes are not one."""
    if not value:
        raise BadRecord("empty", "", "the value has no bytes")
    if len(value) > bytes_max:
        raise BadRecord("too_large", "", f"{len(value)} bytes, {bytes_max} are allowed")
    try:
        document = _parser.decode(value.decode())
    except UnicodeDecodeError as error:
        raise BadRecord("bad_utf8", "", f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise BadRecord("too_deep", "", f"more than {DEPTH_MAX} levels") from error
    except ValueError as error:
        raise BadRecord("not_json", "", str(error)) from error
    if not isinstance(document, Pairs):
        raise BadRecord("not_an_object", "", f"the value is {_kind(document)}")
    if _deeper(document, DEPTH_MAX):
        raise BadRecord("too_deep", "", f"more than {DEPTH_MAX} levels")
    return document


def unique_fields(pairs: Pairs, names: Collection[str]) -> dict[str, Any]:
    """The fields among ``names``, in the order of ``names``; raises ``BadRecord`` for one that is there twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BadRecord("duplicate_key", name, "the field is there twice")
        if name in names:
            found[name] = value
    return {name: found[name] for name in names if name in found}


def judge(feature: Feature, token: Any) -> None:
    """Raise ``BadRecord`` unless the parsed token fits the feature."""
    if token is None:
        return
    if isinstance(token, list) or (feature.type == "number" and isinstance(token, bool)):
        raise BadRecord("wrong_type", feature.name, f"{_kind(token)} for a {feature.type}")
    if feature.type == "number":
        exact_number(token, feature.name)
    elif feature.type == "boolean":
        if isinstance(token, _Float | _Integer):
            token = exact_number(token, feature.name)
        if boolean_key(token) not in BOOLEANS:
            raise BadRecord("wrong_type", feature.name, f"{_shown(token)} is neither true nor false")
    else:
        _judge_category(token, feature.name)


def _judge_category(token: str | bool, field: str) -> None:
    if isinstance(token, _Integer):
        if len(token) > 21 or abs(int(token)) >= CATEGORY_INTEGER_MAX:
            raise BadRecord("not_exact", field, "an integer category has 64 bits at most; send it as text")
    elif isinstance(token, _Float):
        exact_number(token, field)
    elif isinstance(token, str) and "\0" in token:
        raise BadRecord("nul_in_text", field, "the text has a NUL character")


def exact_number(token: str, field: str) -> float:
    """The float of a number's text; raises ``BadRecord`` where it is none, or where the float would not be the number."""
    match = _NUMBER.fullmatch(token)
    if not match:
        reason = "not_finite" if token.strip().lstrip("+-").lower() in _NOT_FINITE else "wrong_type"
        raise BadRecord(reason, field, f"{_shown(token)} is not a finite number")
    number = float(token)
    if math.isinf(number):
        raise BadRecord("not_finite", field, f"{_shown(token)} is beyond what a float holds")
    if number == 0 and re.search("[1-9]", match[1]):
        raise BadRecord("underflow", field, f"a float would take {_shown(token)} for 0")
    whole = match[2] and match[3] is None and match[4] is None
    if whole and abs(number) >= EXACT and int(match[2].lstrip("0")) != abs(int(number)):
        raise BadRecord("not_exact", field, f"a float would take {_shown(token)} for {int(number)}")
    return number


def boolean_key(value: Any) -> Any:
    """What to look for in ``BOOLEANS``."""
    return value.strip().lower() if isinstance(value, str) else value


def category_text(value: str | int | float | bool) -> str:
    """The text by which a category is known: true and false, integers in decimal, integral floats likewise, else repr."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not (math.isfinite(value) and value == math.floor(value)):
        return repr(value)
    return str(int(value))


def _deeper(document: Any, levels: int) -> bool:
    if not isinstance(document, list):
        return False
    inner = (pair[1] for pair in document) if isinstance(document, Pairs) else document
    return levels == 0 or any(map(_deeper, inner, repeat(levels - 1)))


def _kind(value: Any) -> str:
    for kind, name in ((Pairs, "an object"), (list, "a list"), (_Integer | _Float, "a number"), (str, "text")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "true or false"


def _shown(token: Any) -> str:
    text = repr(str(token))
    return text if len(text) <= 40 else text[:37] + "..."
