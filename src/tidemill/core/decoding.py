"""Bytes of requests -> columns of values; what cannot be used becomes a ``BadRecord`` that names the field.

A fast pass (typed msgspec) reads everything. It cannot see all that is wrong: doubled keys, digits that a float loses, bad
text in a field it skips. So cheap checks over the whole batch pick the values that *might* be wrong, and a slow, exact
inspection (``core/inspection.py``) judges those alone. The checks may suspect too much, never too little.

What a feature takes, by its type; absent and null are missing everywhere, and fields that the schema lacks are ignored:

- number: a JSON number, or its text in ASCII with spaces around it and a sign (``" 39 "``, ``"+1.5e3"``, ``".5"``);
- boolean: true, false, the numbers 0 and 1, or any of these as text, in any case;
- category: any scalar, by its text (``category_text``): 1, 1.0 and ``"1"`` are the same category.
"""

import math
import re
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType

from tidemill.core.inspection import (
    BOOLEANS,
    CATEGORY_INTEGER_MAX,
    DEPTH_MAX,
    EXACT,
    boolean_key,
    category_text,
    exact_number,
    judge,
    parse_object,
    unique_fields,
)
from tidemill.core.schema import FeatureType, Schema
from tidemill.errors import BadRecord, ConfigError

Columns = dict[str, list[Any]]
"""By feature: float, bool or str, or None where it is missing."""
Headers = Sequence[tuple[str, bytes]]

BYTES_MAX = 262_144
"""Of a request, where nothing else is said."""
ID_BYTES_MAX = 512

_FIELD_TYPES: dict[FeatureType, Any] = {
    "number": float | str | None | UnsetType,
    "boolean": bool | float | str | None | UnsetType,
    "category": str | int | float | bool | None | UnsetType,
}
_TEXT_OR_MISSING = {str, type(None)}
# It begins with the minus, which is looked for ten times as fast as a digit would be.
_SMALL = re.compile(rb"-(?<=[0-9][eE]-)[0-9]{3}")
_MANY_ZEROS = b"0" * 200


class Decoded(Struct, frozen=True):
    """The good values as columns, ``rows`` with their places among the values given, and the bad ones with theirs."""

    columns: Columns
    rows: list[int]
    bad: list[tuple[int, BadRecord]]


class _Parsed(Struct, frozen=True):
    """What the typed parse gave: fields as columns, the types that are in each, and the places of their values."""

    columns: list[Sequence[Any]]
    types: list[set[type]]
    rows: list[int]


class Decoder:
    """Decodes requests with one schema. Immutable; may be shared by threads."""

    def __init__(self, schema: Schema, bytes_max: int = BYTES_MAX) -> None:
        """Raises ``ConfigError`` for feature names that a JSON key cannot plainly be (quotes, control characters)."""
        self.schema = schema
        self.bytes_max = bytes_max
        self._features = {feature.name: feature for feature in schema.features}
        self._decode = typed_parse(schema, [_FIELD_TYPES[feature.type] for feature in schema.features], UNSET)
        self._decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode a batch; a bad value never changes what becomes of the others."""
        bad: dict[int, BadRecord] = {}
        parsed = self._parse(values, bad)
        rows = parsed.rows
        absent = sum(c.count(UNSET) for c, types in zip(parsed.columns, parsed.types, strict=True) if UnsetType in types)
        doubtful = self.doubtful([values[row] for row in rows], absent) if rows else set()
        columns = self._read(parsed, doubtful)
        for place in doubtful:
            try:
                self.inspect(values[rows[place]])
            except BadRecord as error:
                bad[rows[place]] = error
        if doubtful and bad:
            keep = [row not in bad for row in rows]
            rows = list(compress(rows, keep))
            columns = {name: list(compress(column, keep)) for name, column in columns.items()}
        return Decoded(columns, rows, sorted(bad.items(), key=lambda item: item[0]))

    def inspect(self, value: bytes) -> None:
        """The slow, exact judgement of one value: raises ``BadRecord`` unless it can be used.

        Where several things are wrong it names the first: of the bytes, then of the document, then field by field in the
        schema's order.
        """
        found = unique_fields(parse_object(value, self.bytes_max), self._features)
        for name, token in found.items():
            judge(self._features[name], token)
        try:
            self._decode(value)
        except (ValueError, RecursionError) as error:
            raise BadRecord("not_json", "", str(error)) from error

    def _parse(self, values: Sequence[bytes], bad: dict[int, BadRecord]) -> _Parsed:
        rows = list(range(len(values)))
        try:
            records = self._decode_all(values)
        except (ValueError, RecursionError):
            rows, records = self._decode_each(values, bad)
        columns: list[Sequence[Any]] = list(zip(*map(msgspec.structs.astuple, records), strict=True))
        columns = columns or [() for _ in self._features]
        return _Parsed(columns, [set(map(type, column)) for column in columns], rows)

    def _decode_all(self, values: Sequence[bytes]) -> list[Any]:
        if max(map(len, values), default=0) > self.bytes_max:
            raise ValueError
        return list(map(self._decode, values))

    def _decode_each(self, values: Sequence[bytes], bad: dict[int, BadRecord]) -> tuple[list[int], list[Any]]:
        rows, records = [], []
        for row, value in enumerate(values):
            try:
                records += self._decode_all([value])
                rows.append(row)
            except (ValueError, RecursionError) as error:
                bad[row] = self._explain(value, error)
        return rows, records

    def _explain(self, value: bytes, error: Exception) -> BadRecord:
        """Why a value that msgspec refuses is bad."""
        try:
            self.inspect(value)
        except BadRecord as found:
            return found
        return BadRecord("not_json", "", str(error))

    def doubtful(self, values: Sequence[bytes], absent: int) -> set[int]:
        """Places of values that may hide what a typed parse does not see; in all of them it found ``absent`` features less
        than there could be.
        """
        joined = b"\n".join(values)
        symbols = np.frombuffer(joined, dtype=np.uint8)
        doubtful: set[int] = set()
        if not joined.isascii() and not _is_utf8(joined):
            doubtful.update(i for i, value in enumerate(values) if not _is_utf8(value))
        # Every key has a colon: as many colons as fields that were found leave no room for a second one of any.
        if np.count_nonzero(symbols == ord(":")) != len(values) * len(self._features) - absent:
            doubtful.update(i for i, value in enumerate(values) if self._may_repeat_keys(value))
        # One bit is the difference between the two ways to begin something.
        if np.count_nonzero(symbols | (ord("[") ^ ord("{")) == ord("{")) >= len(values) + DEPTH_MAX:
            doubtful.update(i for i, v in enumerate(values) if v.count(b"{") + v.count(b"[") > DEPTH_MAX)
        if b"\\" in joined and b"\\u0000" in joined:
            doubtful.update(i for i, value in enumerate(values) if b"\\u0000" in value)
        if _may_underflow(joined):
            doubtful.update(i for i, value in enumerate(values) if _may_underflow(value))
        return doubtful

    def _may_repeat_keys(self, value: bytes) -> bool:
        """Whether there are colons that neither the different keys nor the text of their values account for."""
        try:
            fields = self._decode_raw(value)
        except (ValueError, RecursionError):
            return True
        return value.count(b":") != len(fields) + b"".join(fields.values()).count(b":")

    def _read(self, parsed: _Parsed, doubtful: set[int]) -> Columns:
        """Columns in the features' types; adds to ``doubtful`` the places whose values must be judged exactly."""
        read: Columns = {}
        for feature, column, types in zip(self.schema.features, parsed.columns, parsed.types, strict=True):
            values = list(column)
            if UnsetType in types:
                values = [None if value is UNSET else value for value in values]
            if feature.type == "number" and str in types:
                values = [_number_or_inf(value) if type(value) is str else value for value in values]
            elif feature.type == "boolean":
                values = [BOOLEANS.get(boolean_key(value), UNSET) for value in values]
                doubtful.update(i for i, value in enumerate(values) if value is UNSET)
            elif feature.type == "category" and not types - {UnsetType} <= _TEXT_OR_MISSING:
                huge = {i for i, v in enumerate(values) if type(v) is int and abs(v) >= CATEGORY_INTEGER_MAX}
                values = [None if v is None or i in huge else category_text(v) for i, v in enumerate(values)]
                doubtful |= huge
            read[feature.name] = values
        numbers = [read[feature.name] for feature in self.schema.features if feature.type == "number"]
        large = np.abs(np.array(numbers, dtype=np.float64)) >= EXACT
        if large.any():
            doubtful.update(np.flatnonzero(large.any(axis=0)).tolist())
        return read


def typed_parse(schema: Schema, types: Sequence[Any], absent: object) -> Callable[[bytes], Any]:
    """A parse of requests into structs of the features in their order, each of its type; ``absent`` stands for those that a
    request does not have. Raises ``ConfigError`` for feature names that a JSON key cannot plainly be.
    """
    names = {f"field{number}": feature.name for number, feature in enumerate(schema.features)}
    fields = [(name, of, absent) for name, of in zip(names, types, strict=True)]
    try:
        row = msgspec.defstruct("Row", fields, rename=names, gc=False)
    except ValueError as error:
        raise ConfigError(f"the schema's feature names cannot be read from JSON: {error}") from error
    return msgspec.json.Decoder(row).decode


def _number_or_inf(text: str) -> float:
    """The number, or infinity (which is judged later) where there is something wrong with it."""
    try:
        return exact_number(text, "")
    except BadRecord:
        return math.inf


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _may_underflow(text: bytes) -> bool:
    """Whether a number may be so small: it takes an exponent of three digits, or two hundred zeros."""
    return _SMALL.search(text) is not None or _MANY_ZEROS in text


# What travels beside the value: the key and the headers, an app's own or those of CloudEvents (Kafka binding, binary mode).
# Of several headers of one name the last counts.


def request_id(key: bytes | None, topic: str, partition: int, offset: int, require_id: bool, headers: Headers = ()) -> str:
    """The id of a request: its header ``ce_id``, else its key's text, else ``topic-partition-offset``, which is the same on
    every replay. Beside ``ce_id`` the key only chooses the partition, and may be any bytes.
    """
    event = dict(headers).get("ce_id") if headers else None
    if event is not None:
        return _id_text(event, "ce_id")
    if key is not None:
        return _id_text(key, "")
    if require_id:
        raise BadRecord("missing_id", "", "the record has neither a key nor a header 'ce_id'")
    return f"{topic}-{partition}-{offset}"


def plain_ids(keys: Sequence[bytes | None], headers: Sequence[Headers]) -> list[str] | None:
    """The ids of a batch of records that all have a good key and no headers, in one go; None where each must be looked at.

    Of requests and of outcomes alike: then the id is the key's text.
    """
    if None in keys or any(headers) or max(map(len, keys), default=0) > ID_BYTES_MAX:  # type: ignore[arg-type]
        return None
    try:
        ids = b"\0".join(keys).decode().split("\0")  # type: ignore[arg-type]
    except UnicodeDecodeError:
        return None
    return ids if len(ids) == len(keys) and all(ids) else None


def request_id_or_place(key: bytes | None, topic: str, partition: int, offset: int, headers: Headers) -> str:
    """The id under which a request is recorded: where it has a bad one, its place."""
    try:
        return request_id(key, topic, partition, offset, False, headers)
    except BadRecord:
        return request_id(None, topic, partition, offset, False)


def outcome_id(key: bytes | None, headers: Headers = ()) -> str:
    """The id of the request that an outcome is about: its key's text, else its header ``ce_subject``. An outcome's
    ``ce_id`` is its own.
    """
    if key is not None:
        return _id_text(key, "")
    subject = dict(headers).get("ce_subject")
    if subject is None:
        raise BadRecord("missing_id", "", "the record has neither a key nor a header 'ce_subject'")
    return _id_text(subject, "ce_subject")


def _id_text(name: bytes, field: str) -> str:
    what = f"the header {field!r}" if field else "the key"
    if not 0 < len(name) <= ID_BYTES_MAX:
        raise BadRecord("bad_id", field, f"{what} has {len(name)} bytes, not 1 to {ID_BYTES_MAX}")
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise BadRecord("bad_id", field, f"{what} is not UTF-8") from error
    if "\0" in text:
        raise BadRecord("bad_id", field, f"{what} has a NUL character")
    return text


def event_time(headers: Headers, default_ms: int) -> int:
    """A request's header ``time``, else ``ce_time``, in milliseconds, or the default."""
    said = dict(headers)
    found = _time_in(said, "time" if "time" in said else "ce_time")
    return default_ms if found is None else found


def outcome_time(headers: Headers) -> int | None:
    """An outcome's header ``ce_time`` in milliseconds, if there is one: it stands in for a time in the value."""
    return _time_in(dict(headers), "ce_time")


def deadline(headers: Headers) -> int | None:
    """The header ``deadline`` in milliseconds, if there is one."""
    return _time_in(dict(headers), "deadline")


def check_content(headers: Headers) -> None:
    """Raise ``BadRecord`` for a CloudEvent in structured mode: its value is an envelope, in which every feature would be
    missing.
    """
    content = dict(headers).get("content-type", b"")
    if content[: len(_STRUCTURED)].lower() == _STRUCTURED:
        raise BadRecord("wrong_type", "content-type", "a CloudEvent in structured mode; send it in binary mode")


_STRUCTURED = b"application/cloudevents"


def _time_in(said: dict[str, bytes], name: str) -> int | None:
    found = said.get(name)
    return None if found is None else parse_time(found.decode("utf-8", "replace"), name)


_MILLISECONDS = re.compile(r"-?\d{1,15}", re.ASCII)
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))", re.ASCII
)


def parse_time(text: str, field: str) -> int:
    """Milliseconds since 1970 of whole milliseconds as text, or of an RFC 3339 time, whose zone must be given.

    Digits beyond the milliseconds are dropped.
    """
    if _MILLISECONDS.fullmatch(text):
        return int(text)
    match = _RFC3339.fullmatch(text)
    if not match:
        raise BadRecord("bad_time", field, f"{text[:40]!r} is neither milliseconds nor RFC 3339 with a time zone")
    day, clock, fraction, sign, hours, minutes = match.groups()
    try:
        local = int(np.datetime64(f"{day}T{clock}", "ms").astype(np.int64))
    except ValueError as error:
        raise BadRecord("bad_time", field, f"{text[:40]!r} is no time") from error
    offset = (int(hours) * 60 + int(minutes)) * 60_000 if sign else 0
    return local + int(f"{fraction or ''}000"[:3]) - (-offset if sign == "-" else offset)
