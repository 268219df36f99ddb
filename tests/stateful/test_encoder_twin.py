"""Decoder and encoder against a slow, obvious twin: one record at a time, by the stdlib's json."""

import json
import math
import struct
from decimal import Decimal
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.decoding import Decoder
from tidemill.core.encoder import Encoder
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.core.schema import Feature, Schema

SCHEMA = Schema(
    (
        Feature("n", "number", minimum=-10, maximum=10),
        Feature("m", "number"),
        Feature("b", "boolean"),
        Feature("c", "category", categories=("x", "1")),
        Feature("d é", "category"),
    ),
    "y",
    "binary",
    ("no", "yes"),
    crosses=(("c", "d é"), ("d é", "c")),
)
SEEN: dict[str, list[Any]] = {"c": ["true", "0.5", "y:z", "é"], "d é": ["x", "1", "10000000000000000000000", None]}
ENCODER = Encoder.fit(SCHEMA, SEEN)
DECODER = Decoder(SCHEMA, 2000)
MATRIX_DECODER = MatrixDecoder(ENCODER, 2000)


# The twin.


def twin_row(value: bytes) -> list[float] | None:
    """The row of the matrix, or None for a value that cannot be used."""
    if len(value) > 2000:
        return None
    try:
        text = value.decode("utf-8")
        pairs = json.loads(text, object_pairs_hook=Object, parse_int=Digits, parse_float=Digits, parse_constant=refuse)
        json.dumps(pairs, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, Object):
        return None
    fields = {}
    for name, token in pairs:
        if name in fields:
            return None
        if any(name == feature.name for feature in SCHEMA.features):
            fields[name] = token
    try:
        read = {feature.name: twin_value(feature, fields.get(feature.name)) for feature in SCHEMA.features}
    except (ValueError, KeyError):
        return None
    row = []
    for feature in SCHEMA.features:
        found = read[feature.name]
        if feature.type == "category":
            found = code(ENCODER.categories[feature.name], found)
        row.append(math.nan if found is None else float(found) + 0.0)
    for cross, known in zip(SCHEMA.crosses, ENCODER.crosses, strict=True):
        joint = tuple(read[part] for part in cross)
        found = None if None in joint else code(known, joint)
        row.append(math.nan if found is None else float(found))
    return row


class Object(list[Any]):
    """An object's keys and values."""


class Digits(str):
    """A number as JSON has it."""

    __slots__ = ()


def refuse(token: str) -> None:
    raise ValueError(token)


def code(known: list[Any], value: Any) -> int | None:
    return known.index(value) if value in known else None


def twin_value(feature: Feature, token: Any) -> Any:
    if token is None:
        return None
    if isinstance(token, list):
        raise ValueError
    if feature.type == "number":
        if isinstance(token, bool):
            raise ValueError
        return twin_number(token)
    if feature.type == "boolean":
        if isinstance(token, Digits):
            token = str(int(twin_number(token))) if twin_number(token) in {0, 1} else "no boolean"
        return {"true": True, "false": False, "1": True, "0": False}[str(token).strip().lower()]
    if isinstance(token, bool):
        return str(token).lower()
    if isinstance(token, Digits):
        if all(c in "-0123456789" for c in token):
            if abs(int(token)) >= 2**64:
                raise ValueError
            return str(int(token))
        number = twin_number(token)
        return str(int(number)) if number.is_integer() else repr(number)
    if "\0" in token:
        raise ValueError
    return token


def twin_number(text: str) -> float:
    """By exact decimal arithmetic: the float must be finite, no zero that was none, and the integer that was written."""
    text = text.strip(" \t\n\r\f\v")
    if not text or not set(text) <= set("+-.0123456789eE"):
        raise ValueError
    try:
        exact = Decimal(text)
    except ArithmeticError as error:
        raise ValueError from error
    number = float(text)
    integer = all(c in "+-0123456789" for c in text)
    if math.isinf(number) or (number == 0 and exact != 0) or (integer and Decimal(number) != exact):
        raise ValueError
    return number


# Records: good ones, odd ones, and broken ones.

numbers = st.one_of(
    st.integers(-20, 20).map(str),
    st.integers(2**53 - 3, 2**53 + 3).map(str),
    st.integers(2**64 - 2, 2**64 + 2).map(str),
    st.integers(-(10**25), 10**25).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(
        ["-0", "-0.0", "1e-999", "0e-999", "1E400", "5e-324", "1e22", "0.5", "1.0", "NaN", "-Infinity", "01", "1."]
    ),
)
texts = st.one_of(
    st.sampled_from(
        ["x", "1", "true", "0.5", "y:z", "é", "", "False", " 1 ", "nan", "inf", "a\0b", '","n":1,"', "{[", "1e-999"]
    ),
    numbers,
    st.text(max_size=5),
)
scalars = st.one_of(numbers, texts.map(json.dumps), st.sampled_from(["null", "true", "false"]))
values = st.one_of(
    scalars, scalars, scalars, st.sampled_from(["[]", "{}", '{"n": 1, "n": 2}', "[1, [2]]", '{"a": {"b": ":"}}'])
)
names = st.sampled_from([*(feature.name for feature in SCHEMA.features)] * 3 + ["note", "a:b", "N", "\\", '"', "c\0"])
keys = st.one_of(
    names.map(json.dumps), names.map(lambda n: json.dumps(n, ensure_ascii=False)), st.just('"\\u006e"'), st.just('"\\u0063"')
)
spaces = st.sampled_from(["", "", " ", "\n", "\t "])
members = st.tuples(keys, spaces, spaces, values).map(lambda m: f"{m[0]}{m[1]}:{m[2]}{m[3]}")


def unique(parts: list[str]) -> list[str]:
    return list({part.partition(":")[0].strip(): part for part in parts}.values())


objects = st.lists(members, max_size=7).flatmap(lambda parts: st.sampled_from([parts, unique(parts), unique(parts)]))
documents = st.tuples(objects, spaces).map(lambda d: (d[1] + "{" + f",{d[1]}".join(d[0]) + "}" + d[1]).encode())
broken = st.one_of(
    st.tuples(documents, st.integers(0, 60), st.binary(min_size=1, max_size=2)).map(
        lambda b: b[0][: b[1]] + b[2] + b[0][b[1] :]
    ),
    st.tuples(documents, st.integers(0, 60)).map(lambda b: b[0][: b[1]]),
    st.sampled_from(
        [b"", b"[]", b"null", b'{"n":1},{"n":2}', b'{"n":1}{"n":2}', b'{"x":"' + b"y" * 2000 + b'"}', b"\xff", b'{"n":']
    ),
)
requests = st.one_of(documents, documents, documents, broken)


def bits(row: Any) -> bytes:
    return struct.pack(f"{len(row)}d", *(math.nan if math.isnan(v) else v for v in row))


plain_tokens = {
    "number": st.one_of(st.integers(-20, 20).map(str), st.floats(allow_nan=False, allow_infinity=False).map(repr)),
    "boolean": st.sampled_from(["true", "false"]),
    "category": st.one_of(st.sampled_from(["x", "1", "true", "é", "never seen"]), st.text(max_size=5)).map(json.dumps),
}
plain_objects = st.fixed_dictionaries(
    {}, optional={f.name: st.one_of(st.just("null"), plain_tokens[f.type], plain_tokens[f.type]) for f in SCHEMA.features}
)
plain = plain_objects.map(lambda fields: f"{{{','.join(f'{json.dumps(n)}:{t}' for n, t in fields.items())}}}".encode())
mostly_plain = st.lists(st.integers(0, 12).flatmap(lambda kind: plain if kind else requests), min_size=8, max_size=40)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.lists(requests, max_size=8), mostly_plain))
def test_decoding_and_encoding_equal_the_twin_bit_for_bit(batch: list[bytes]) -> None:
    """The same values are good, and each row of the matrix is the twin's, whatever else is in the batch. In one step or in
    two, the counts and what is told of the bad ones are the same.
    """
    decoded, at_once = DECODER.decode(batch), MATRIX_DECODER.decode(batch)
    encoded = ENCODER.encode(decoded.columns)
    expected = {place: row for place, value in enumerate(batch) if (row := twin_row(value)) is not None}
    assert decoded.rows == at_once.rows == list(expected)
    assert [place for place, _ in decoded.bad] == [place for place in range(len(batch)) if place not in expected]
    for matrix in (encoded.matrix, at_once.encoded.matrix):
        assert [bits(row) for row in matrix.tolist()] == [bits(row) for row in expected.values()]
    assert [(row, str(error)) for row, error in at_once.bad] == [(row, str(error)) for row, error in decoded.bad]
    for name in ("missing", "unseen", "outside"):
        assert getattr(at_once.encoded, name).tolist() == getattr(encoded, name).tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(documents, max_size=8))
def test_counts_and_rows_do_not_depend_on_the_batch(batch: list[bytes]) -> None:
    """A batch counts what its records count alone."""
    together = ENCODER.encode(DECODER.decode(batch).columns)
    alone = [ENCODER.encode(DECODER.decode([value]).columns) for value in batch]
    for name in ("missing", "unseen", "outside"):
        total = sum((getattr(one, name) for one in alone), np.zeros(len(SCHEMA.columns), dtype=np.int64))
        assert getattr(together, name).tolist() == total.tolist()
